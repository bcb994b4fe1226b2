"""The 16-bit PNG decoder against Pillow, on grey files whose rows use every filter."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from evenhand.data.png import decode_deep_png
from evenhand.errors import ImageError


def filtered(pixels: np.ndarray) -> bytes:
    """A 16-bit grey PNG whose rows use the filters 0 to 4 in turn."""
    stored = pixels.astype(">u2")
    height, width = stored.shape
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(height, -1).astype(int)
    body = b""
    for y in range(height):
        up = rows[y - 1] if y else np.zeros_like(rows[0])
        left, corner = np.r_[0, 0, rows[y][:-2]], np.r_[0, 0, up[:-2]]
        distance = np.abs(np.stack([up - corner, left - corner, left + up - 2 * corner]))
        paeth = np.choose(distance.argmin(axis=0), [left, up, corner])
        guess = [0 * up, left, up, (left + up) // 2, paeth][y % 5]
        body += bytes([y % 5]) + ((rows[y] - guess) % 256).astype(np.uint8).tobytes()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_every_filter_agrees_with_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (11, 13), dtype=np.uint16)
    data = filtered(pixels)
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), pixels)
    assert np.array_equal(decode_deep_png(data)[..., 0], pixels)


def test_cut_files_are_refused() -> None:
    data = filtered(np.zeros((4, 4), np.uint16))
    with pytest.raises(ImageError):
        decode_deep_png(data[:-20])
