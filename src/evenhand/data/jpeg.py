"""Plain JPEG files by libjpeg-turbo directly, without Pillow's detour; the values are those of Pillow.

What is not plain (metadata that may turn the image, CMYK, a warning of the decoder, a size beyond Pillow's limit) is left to Pillow.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import Image

_turbo: ModuleType | None
try:
    _turbo = import_module("simplejpeg")
except ImportError:  # Pillow does all the work
    _turbo = None

_APP1 = b"\xff\xe1"  # Exif or XMP; these two bytes cannot occur among coded pixels


def decode_plain_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """(h, w) for grey, (h, w, 3) for colour; None where Pillow must decide.

    Args:
        data: the content of a complete JPEG file.
    """
    if _turbo is None or data[:2] != b"\xff\xd8" or _APP1 in data:
        return None
    try:
        height, width, space, _ = _turbo.decode_jpeg_header(data)
        if space not in ("Gray", "YCbCr") or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        pixels: npt.NDArray[np.uint8] = _turbo.decode_jpeg(data, colorspace="GRAY" if space == "Gray" else "RGB")
    except ValueError:
        return None
    return pixels[..., 0] if space == "Gray" else pixels
