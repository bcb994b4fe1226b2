"""16-bit PNG with its low bytes: Pillow keeps only the high byte of colour and alpha values.

The five row filters of PNG (ISO/IEC 15948, section 9) are undone byte by byte; this is slow (seconds a megapixel), and used only for
the rare files that need it.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from evenhand.errors import ImageError

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def decode_deep_png(data: bytes) -> npt.NDArray[np.uint16]:
    """Pixels of a 16-bit PNG, (h, w, 1 to 4): grey, grey and alpha, colour, or colour and alpha.

    Raises:
        ImageError: interlaced, damaged or truncated.
    """
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if bits != 16 or colour not in _CHANNELS or interlace:
        raise ImageError("PNG is interlaced or of an unknown kind; save 16-bit colour PNG without interlacing")
    packed, position = b"", 8
    while position + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        if name == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += 12 + length
    try:
        raw = zlib.decompress(packed)
    except zlib.error as error:
        raise ImageError(f"PNG file is truncated or damaged ({error})") from error
    step = 2 * _CHANNELS[colour]
    stride = width * step
    if len(raw) != height * (stride + 1):
        raise ImageError(f"PNG holds {len(raw)} bytes of pixels, but its header says {height * (stride + 1)}")
    above = bytearray(stride)
    rows = []
    for start in range(0, len(raw), stride + 1):
        above = _unfilter(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, step)
        rows.append(bytes(above))
    return np.frombuffer(b"".join(rows), ">u2").astype(np.uint16).reshape(height, width, step // 2)


def _unfilter(kind: int, row: bytearray, above: bytearray, step: int) -> bytearray:
    if kind == 2:
        return bytearray((np.frombuffer(row, np.uint8) + np.frombuffer(above, np.uint8)).tobytes())
    if kind not in (0, 1, 3, 4):
        raise ImageError(f"PNG row has the unknown filter {kind}")
    for i in range(len(row) if kind else 0):
        left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + above[i]) >> 1
        else:
            guess = _paeth(left, above[i], corner)
        row[i] = (row[i] + guess) & 255
    return row


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    by_left, by_up, by_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
    if by_left <= by_up and by_left <= by_corner:
        return left
    return up if by_up <= by_corner else corner
