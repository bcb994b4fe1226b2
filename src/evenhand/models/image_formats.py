"""Images in [0, 1] as an embedding server takes them: float or 8-bit tensors, PNG or JPEG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from evenhand.errors import InputError

FORMATS = ("binary", "json", "binary_uint8", "json_uint8", "png", "jpeg")
LEVELS = 256
JPEG_QUALITY = 95
OFF_GRID = 1e-2

Values = npt.NDArray[np.float32]


def levels_of(format: str) -> int | None:
    """Grey levels that a format can hold, None where it holds any float."""
    return None if format in ("binary", "json") else LEVELS


def to_levels(values: Values, lossy: bool = False) -> npt.NDArray[np.uint8]:
    """Images (n, c, h, w) as 8-bit levels, exactly.

    Args:
        values: float32 in [0, 1], each a multiple of 1/255.
        lossy: round other values instead of refusing them.

    Raises:
        InputError: a value lies outside [0, 1], or off the grid by more than a hundredth of a level.
    """
    out = np.empty(values.shape, np.uint8)
    scaled = np.empty(values.shape[1:], np.float32)  # one image at a time stays in the processor's cache
    nearest = np.empty_like(scaled)
    off, low, high = 0.0, 0.0, 0.0
    for image, levels in zip(values, out, strict=True):
        np.multiply(image, np.float32(LEVELS - 1), out=scaled)
        np.rint(scaled, out=nearest)
        low, high = min(low, float(nearest.min(initial=0))), max(high, float(nearest.max(initial=0)))
        levels[...] = nearest.clip(0, LEVELS - 1) if low < 0 or high > LEVELS - 1 else nearest
        np.subtract(scaled, nearest, out=nearest)
        off = max(off, float(nearest.max(initial=0)), -float(nearest.min(initial=0)))
    if not lossy and (off > OFF_GRID or low < 0 or high > LEVELS - 1):
        raise InputError(
            f"images go to the server as 8-bit levels, but are up to {off:.2g} of a level off them, from {low:g} to {high:g} of 255; "
            "round them with model.api_lossy=true, or send floats with model.api_format=binary where the server takes floats; "
            "where an edit alone leaves the levels, train it with method.rounding=8bit and method.clamp=true"
        )
    return out


def to_files(levels: npt.NDArray[np.uint8], format: str) -> list[bytes]:
    """Images (n, c, h, w), c 1 or 3, as PNG (exact) or JPEG files (quality 95, no chroma subsampling)."""
    out = []
    options: dict[str, Any] = {"compress_level": 1} if format == "png" else {"quality": JPEG_QUALITY, "subsampling": 0}
    for image in levels:
        pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format=format.upper(), **options)
        out.append(buffer.getvalue())
    return out


def normalised(values: Values, mean: Sequence[float], std: Sequence[float]) -> Values:
    """(x - mean) / std by channel, for a server that wants it done."""
    shape = (1, -1, 1, 1)
    out: Values = (values - np.asarray(mean, np.float32).reshape(shape)) / np.asarray(std, np.float32).reshape(shape)
    return out
