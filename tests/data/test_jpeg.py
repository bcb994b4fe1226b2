"""JPEG by libjpeg-turbo directly: Pillow's values to the last bit, and Pillow where anything is unusual."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evenhand.data import jpeg
from evenhand.data.images import decode_image
from evenhand.errors import ImageError

pytest.importorskip("simplejpeg")


def encoded(mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    shape = {"L": (61, 43), "RGB": (61, 43, 3), "CMYK": (61, 43, 4)}[mode]
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).resize((97, 55)).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)])
def test_values_are_pillows(mode: str, subsampling: int, progressive: bool) -> None:
    for quality in (40, 90):
        data = encoded(mode, quality=quality, subsampling=subsampling, progressive=progressive)
        pixels = jpeg.decode_plain_jpeg(data)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(pixels, decode_image(data))


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_what_is_unusual_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(exif=exif)
    assert jpeg.decode_plain_jpeg(turned) is None
    assert decode_image(turned).shape == (97, 55, 3)
    assert jpeg.decode_plain_jpeg(encoded("CMYK")) is None
    whole = encoded()
    cut = whole[: len(whole) // 2] + b"\xff\xd9"  # the decoder warns
    assert jpeg.decode_plain_jpeg(cut) is None
    with pytest.raises(ImageError, match="truncated"):
        decode_image(whole[: len(whole) // 2])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert jpeg.decode_plain_jpeg(whole) is None
    monkeypatch.undo()
    monkeypatch.setattr(jpeg, "_turbo", None)
    assert jpeg.decode_plain_jpeg(whole) is None
    assert decode_image(whole).shape == (55, 97, 3)
