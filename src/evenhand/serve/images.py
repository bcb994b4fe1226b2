"""Images out of a tensor of the protocol, as the encoder or an edit takes them, and back into a tensor of the same kind.

FP32 holds values in [0, 1]; UINT8 holds 0 to 255; BYTES holds one PNG or JPEG file an image. Nothing else is read from a stranger:
files of other kinds, 16-bit colour PNG (slow to read) and very large pictures are refused before they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from evenhand.data.images import Pixels, decode_image, fit_grid, resize_image
from evenhand.edits.base import LOOSE_RANGE
from evenhand.errors import ImageError
from evenhand.models.protocol import InferRequest, Tensor, files_array
from evenhand.serve.limits import Refusal

DATATYPES = ("FP32", "UINT8", "BYTES")
MAX_PIXELS = 64_000_000
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True)
class Grid:
    """The pixel grid that images are sent on."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def __str__(self) -> str:
        return f"{self.channels} x {self.height} x {self.width}"


@dataclass(frozen=True)
class Sent:
    """Images of one request.

    Attributes:
        values: float32 (n, c, h, w) in [0, 1].
        tensor: what they came as.
        bits: of each file of a BYTES tensor, 8 or 16; else empty.
        colour: of each file of a BYTES tensor, whether it came with three channels; else empty.
    """

    values: npt.NDArray[np.float32]
    tensor: Tensor
    bits: tuple[int, ...] = ()
    colour: tuple[bool, ...] = ()


def bad(text: str, status: int = 400) -> Refusal:
    """A refusal of what was sent."""
    return Refusal(status, text, "size" if status == 413 else "bad_request")


def only_input(request: InferRequest, name: str | None = None) -> Tensor:
    """The one tensor of a request.

    Raises:
        Refusal: there are more, or it has another name or datatype.
    """
    if len(request.inputs) != 1:
        raise bad(f"{len(request.inputs)} inputs arrived, but one tensor of images must")
    tensor = request.inputs[0]
    if name is not None and tensor.name != name:
        raise bad(f"input '{tensor.name[:100]}' arrived, but the model's input is '{name}'")
    if tensor.datatype not in DATATYPES:
        raise bad(f"input of {tensor.datatype} arrived, but images must be {', '.join(DATATYPES)}")
    return tensor


def count_images(tensor: Tensor, max_batch: int) -> int:
    """How many images a tensor holds, before any of them is read.

    Raises:
        Refusal: none, too many, or dimensions that are not those of images.
    """
    shape = tensor.data.shape
    files = tensor.datatype == "BYTES"
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1) if files else len(shape) == 4):
        raise bad(f"{tensor.datatype} of shape {list(shape)} arrived, but must be {'(n) files' if files else '(n, c, h, w)'}")
    if shape[0] == 0:
        raise bad("no images arrived")
    if shape[0] > max_batch:
        raise bad(f"{shape[0]} images arrived, but a request may have {max_batch}; send several requests", 413)
    return int(shape[0])


def may_be_colour(tensor: Tensor) -> bool:
    """Whether any image comes with three channels; of files, as their headers say, and yes where those cannot be read."""
    if tensor.datatype != "BYTES":
        return bool(tensor.data.shape[1] == 3)
    return not all(_is_grey(data) for data in tensor.data.ravel())


def _is_grey(data: bytes) -> bool:
    if data.startswith(PNG):
        return len(data) > 25 and data[25] in (0, 4)
    try:
        return data.startswith(JPEG) and _open(data).mode == "L"
    except ImageError:
        return False


def read_images(tensor: Tensor, grid: Grid, fit: bool, go_on: Callable[[], bool] = lambda: True) -> Sent:
    """Images in [0, 1] on the grid.

    Args:
        tensor: FP32, UINT8 or BYTES, counted before.
        grid: what must arrive; a single channel is repeated.
        fit: bring files of another size to the grid (centre crop, as `evenhand prepare`); without it they are refused.
        go_on: asked before every file; false where nobody waits any more.

    Raises:
        Refusal: another shape, values that are not finite or not scaled, a file that is not a readable PNG or JPEG.
    """
    if tensor.datatype == "BYTES":
        return _read_files(tensor, grid, fit, go_on)
    c, h, w = tensor.data.shape[1:]
    if (h, w) != (grid.height, grid.width) or c not in (1, grid.channels):
        raise bad(f"images of {c} x {h} x {w} arrived, but must be {grid} (channels, height, width); resize them first")
    if tensor.datatype == "UINT8":
        values = np.divide(tensor.data, np.float32(255), dtype=np.float32)
    else:
        values = tensor.data
        low, high = float(values.min()), float(values.max())
        if not (LOOSE_RANGE[0] <= low and high <= LOOSE_RANGE[1]):
            raise bad(f"pixels run from {low:g} to {high:g}, but FP32 images must lie in [0, 1]; divide by full scale, or send UINT8")
    if c != grid.channels:
        values = np.repeat(values, grid.channels, axis=1)
    return Sent(values, tensor)


def _read_files(tensor: Tensor, grid: Grid, fit: bool, go_on: Callable[[], bool]) -> Sent:
    files = tensor.data.ravel()
    values = np.empty((len(files), *grid.shape), dtype=np.float32)
    bits, colour = [], []
    for position, data in enumerate(files):
        if not go_on():
            raise bad("nobody waits for the answer any more", 408)
        try:
            pixels = _decode(data)
        except ImageError as error:
            raise bad(f"file {position + 1} of {len(files)}: {error.summary}") from error
        if pixels.shape[:2] != (grid.height, grid.width):
            if not fit or grid.height != grid.width:
                found, wanted = f"{pixels.shape[0]} x {pixels.shape[1]}", f"{grid.height} x {grid.width}"
                raise bad(f"file {position + 1} of {len(files)} is {found} pixels, but must be {wanted}; resize it first")
            pixels = resize_image(pixels, grid.height)
        bits.append(8 if pixels.dtype == np.uint8 else 16)
        colour.append(pixels.ndim == 3)
        np.divide(fit_grid(pixels, grid.channels, bits[-1]), np.float32(np.iinfo(pixels.dtype).max), out=values[position], casting="unsafe")
    return Sent(values, tensor, tuple(bits), tuple(colour))


def _decode(data: bytes) -> Pixels:
    """Pixels of a PNG or JPEG file whose header says that it is worth decoding."""
    if not data.startswith((PNG, JPEG)):
        raise ImageError("not a PNG or JPEG file")
    if data.startswith(PNG) and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6):
        raise ImageError("16-bit colour PNG is not read here; send 8 bits a channel, or 16-bit grey")
    width, height = _size(data)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are too many, at most {MAX_PIXELS // 10**6} million may be")
    return decode_image(data)


def _size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says."""
    if data.startswith(PNG) and len(data) > 25:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return _open(data).size


def _open(data: bytes) -> Image.Image:
    """A file's header; its pixels are not read."""
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as header:
            return header
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("not a PNG or JPEG file that can be read") from error


def write_images(values: npt.NDArray[np.float32], sent: Sent, grey: bool = False) -> Tensor:
    """Images as a tensor of the kind that was sent: FP32 as they are, UINT8 rounded, BYTES as PNG files.

    A JPEG file comes back as PNG, because compressing it anew would change pixels that the edit did not. 16-bit grey stays 16-bit where
    it is written with one channel.

    Args:
        values: the images, changed.
        sent: what they were.
        grey: a file that came with one channel is written with one, also where it was read on a grid of three.
    """
    name, parameters = sent.tensor.name, sent.tensor.parameters
    if sent.tensor.datatype == "FP32":
        return Tensor(name, np.ascontiguousarray(values, dtype=np.float32), parameters)
    if sent.tensor.datatype == "UINT8":
        return Tensor(name, _levels(values, 255, np.uint8), parameters)
    kept = [image[:1] if grey and not colour else image for image, colour in zip(values, sent.colour, strict=True)]
    files = [_png(image, bits) for image, bits in zip(kept, sent.bits, strict=True)]
    return Tensor(name, files_array(files).reshape(sent.tensor.data.shape), parameters)


def _levels(values: npt.NDArray[np.float32], top: int, dtype: Any) -> npt.NDArray[Any]:
    levels: npt.NDArray[Any] = np.rint(np.clip(values, 0.0, 1.0) * np.float32(top)).astype(dtype)
    return levels


def _png(image: npt.NDArray[np.float32], bits: int) -> bytes:
    deep = bits == 16 and len(image) == 1
    levels = _levels(image, 65535 if deep else 255, np.uint16 if deep else np.uint8)
    out = BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(out, "PNG", compress_level=1)
    return out.getvalue()
