"""Image files to pixels: what is read, how more than 8 bits survive, and the resize to the cache's grid.

Pillow's ``convert("RGB")`` clips 16-bit values at 255, so a 16-bit film turns almost white without a word. Here a source with more
than 8 bits stays ``uint16`` on its full range (65535 = white), everything else is ``uint8`` (255 = white). The kind of a file is
told from its content, not from its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal, NamedTuple, cast
from weakref import finalize
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from evenhand.data.jpeg import decode_plain_jpeg
from evenhand.errors import EvenhandError, ImageError

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Resize = Literal["crop", "pad", "stretch"]
RESIZES = ("crop", "pad", "stretch")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_ORIENTATION = 0x0112
_MOST_VALUES = 1 << 30  # of a NumPy image; about what Pillow allows for colour images
_pages_lock = Lock()
_GREY_MODES = ("1", "L", "LA", "La", "F", "I")


class Header(NamedTuple):
    """What an image will be once decoded: bits a value (8 or 16) and channels (1 or 3)."""

    bits: int
    channels: int


def probe_image(path: str | Path) -> Header:
    """Bits and channels from the header, without decoding pixels.

    Args:
        path: the file, or a reference into one (`evenhand.data.references`).

    Raises:
        ImageError: missing, unreadable, or of a kind that is not supported.
    """
    with _reworded():
        reference = _reference(path)
        if reference is not None:
            from evenhand.data.references import probe_reference

            return probe_reference(reference)
        with _stream(path) as stream:
            return _probe(stream)


def probe_bytes(data: bytes) -> Header:
    """As `probe_image`, of a file's content."""
    with _reworded():
        return _probe(BytesIO(data))


def _probe(stream: BinaryIO, page: int | None = None) -> Header:
    head = stream.read(132)
    stream.seek(0)
    kind = _kind(head)
    if kind == "dicom":
        from evenhand.data.dicom import dicom_bits_channels

        return Header(*dicom_bits_channels(stream))
    if kind == "numpy":
        shape, _, dtype = numpy_header(_numpy_stream(stream))
        return array_header(shape, dtype)
    if _is_deep_colour_png(head):
        return Header(16, 1 if head[25] == 4 else 3)
    return _pillow_header(_open(stream, page))


def _pillow_header(image: Image.Image) -> Header:
    deep = image.mode.startswith("I") or image.mode == "F"
    return Header(16 if deep else 8, 1 if deep or image.mode in _GREY_MODES else 3)


def read_image(path: str | Path) -> Pixels:
    """Decode one file.

    PNG, JPEG, TIFF and BMP of 8 or 16 bits, NumPy ``.npy`` / ``.npz`` (uint8, uint16, bool, or float in [0, 1]; (h, w),
    (h, w, 1 or 3) or (1 or 3, h, w)), DICOM. Palettes become colours, transparency lies on black, CMYK and other
    colour spaces become RGB, the EXIF orientation is applied.

    Args:
        path: the file, or a reference into one (`evenhand.data.references`).

    Returns:
        uint8, or uint16 where the source has more than 8 bits; (h, w) for grey, (h, w, 3) for colour.

    Raises:
        ImageError: missing, truncated, unreadable, or of a kind that is not supported; one line saying which and why.
    """
    with _reworded():
        reference = _reference(path)
        if reference is not None:
            from evenhand.data.references import read_reference

            return read_reference(reference)
        with _stream(path) as stream:
            data = stream.read()
        return decode_image(data)


def probe_page(path: str | Path, page: int | None) -> Header:
    """As `probe_image`, of one page of a TIFF file (from 0)."""
    with _reworded(), _stream(path) as stream:
        if page is None or not _is_tiff(stream):
            return _probe(stream, page)
        with _kept_page(path, page, os.fstat(stream.fileno())) as image:
            return _pillow_header(image)


def read_page(path: str | Path, page: int | None) -> Pixels:
    """As `read_image`, of one page of a TIFF file (from 0)."""
    with _reworded():
        with _stream(path) as stream:
            if page is None or not _is_tiff(stream):
                return decode_image(stream.read(), page)
            state = os.fstat(stream.fileno())
        with _truncation_is_an_error(), _kept_page(path, page, state) as image:
            image.load()
            pixels = _image_pixels(image)
        if 0 in pixels.shape:
            raise ImageError(f"image is empty, its shape is {pixels.shape}")
        return pixels


def _is_tiff(stream: BinaryIO) -> bool:
    head = stream.read(4)
    stream.seek(0)
    return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextmanager
def _kept_page(path: str | Path, page: int, state: os.stat_result) -> Iterator[Image.Image]:
    """A page of a TIFF file that stays open, with the places of the pages that were seen, for its next pages."""
    with _pages_lock:
        try:
            image = _kept_file(os.fspath(path), state.st_size, state.st_mtime_ns)
            _turn_to(image, page)
            yield image
        except BaseException:  # a page that cannot be read may leave the file in any state
            _kept_file.cache_clear()
            raise


@lru_cache(maxsize=1)
def _kept_file(path: str, size: int, changed: int) -> Image.Image:
    stream = _stream(path)
    try:
        image = Image.open(stream, formats=FORMATS)
    except BaseException:
        stream.close()
        raise
    finalize(image, stream.close)
    return image


def decode_image(data: bytes, page: int | None = None) -> Pixels:
    """As `read_image`, of a file's content.

    Args:
        data: the content.
        page: page of a TIFF file, from 0; None: it must have one only.

    Raises:
        ImageError: truncated, unreadable, or of a kind that is not supported; one line saying why.
    """
    with _reworded():
        kind = _kind(data)
        if kind == "dicom":
            from evenhand.data.dicom import decode_dicom

            pixels = decode_dicom(data)
        elif kind == "numpy":
            pixels = array_pixels(_numpy_array(BytesIO(data)))
        elif _is_deep_colour_png(data):
            _require_complete(data)
            pixels = _decode_deep_colour_png(data)
        else:
            _require_complete(data)
            pixels = _decode_pillow(data, page)
        if 0 in pixels.shape:
            raise ImageError(f"image is empty, its shape is {pixels.shape}")
        return pixels


def resize_image(pixels: Pixels, size: int, how: Resize = "crop") -> Pixels:
    """Bring pixels to size x size with antialiased bilinear filtering, keeping their type.

    Args:
        pixels: (h, w) or (h, w, 3), uint8 or uint16.
        size: side of the result in pixels.
        how: ``crop``: the centre square, the short side becoming ``size``; ``pad``: the long side becomes ``size``, the rest is
            black; ``stretch``: both sides become ``size`` and the aspect ratio changes.
    """
    height, width = pixels.shape[:2]
    if how == "stretch" or height == width:
        return _resample(pixels, size, size)
    if how == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        return _resample(pixels[top : top + side, left : left + side], size, size)
    scale = size / max(height, width)
    new_h, new_w = max(1, round(height * scale)), max(1, round(width * scale))
    small = _resample(pixels, new_h, new_w)
    canvas = np.zeros((size, size, *pixels.shape[2:]), pixels.dtype)
    top, left = (size - new_h) // 2, (size - new_w) // 2
    canvas[top : top + new_h, left : left + new_w] = small
    return canvas


def fit_grid(pixels: Pixels, channels: int, bits: int) -> Pixels:
    """Bring decoded pixels to the cache's channels and bits, and to (c, h, w).

    Grey is repeated over three channels; colour becomes grey by ITU-R 601 weights; 8 bits become 16 by 257 x (so that white stays
    white), 16 bits become 8 by rounding v / 257.
    """
    if pixels.ndim == 3 and channels == 1:
        luma = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        pixels = np.rint(luma).astype(pixels.dtype)
    if bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    if bits == 8 and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 2:
        return cast(Pixels, np.repeat(pixels[None], channels, axis=0))
    return cast(Pixels, np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _resample(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.dtype == np.uint8:
        return cast(Pixels, np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)))
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    resized = [
        np.asarray(Image.fromarray(planes[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
        for c in range(planes.shape[2])
    ]
    stacked = np.rint(np.clip(np.stack(resized, axis=-1), 0, 65535)).astype(np.uint16)
    return cast(Pixels, stacked[..., 0] if pixels.ndim == 2 else stacked)


def _stream(path: str | Path) -> BinaryIO:
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise ImageError("file is missing") from None
    except OSError as error:
        raise ImageError(f"file cannot be opened ({error.strerror or error})") from error
    if os.fstat(stream.fileno()).st_size == 0:
        stream.close()
        raise ImageError("file is empty (0 bytes)")
    return stream


def _reference(path: str | Path) -> Any:
    from evenhand.data.references import find_reference

    return find_reference(path)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM: the mark after the preamble, or, without a preamble, a first element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and (head[4:6].isupper() or head[6:8] == b"\x00\x00")
    return little or (head[:3] in (b"\x00\x02\x00", b"\x00\x08\x00") and head[4:6].isupper())


def _kind(data: bytes) -> str:
    if is_dicom(data[:132]):
        return "dicom"
    if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        return "numpy"
    return "pillow"


@contextmanager
def _reworded() -> Iterator[None]:
    """Each decoder raises classes of its own on damaged files (`zlib.error`, `struct.error`, ...): any of them means unreadable."""
    try:
        yield
    except (EvenhandError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image of a known kind (PNG, JPEG, TIFF, BMP, NumPy, DICOM)") from None
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ImageError(text[0] if text else type(error).__name__) from error


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Pillow's switch is global, and another library may have turned it on."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _require_complete(data: bytes) -> None:
    """Decoders accept a file whose last bytes are cut when all pixels happen to be there; the end mark must be there too."""
    if data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9" and data.find(b"\xff\xd9", max(data.rfind(b"\xff\xda"), 0)) < 0:
        raise ImageError("JPEG file is truncated (no end-of-image mark)")
    if data[:4] == b"\x89PNG" and data.rfind(b"IEND") < 0:
        raise ImageError("PNG file is truncated (no end chunk)")


def _open(stream: BinaryIO, page: int | None = None) -> Image.Image:
    image = Image.open(stream, formats=FORMATS)
    _turn_to(image, page)
    return image


def _turn_to(image: Image.Image, page: int | None) -> None:
    pages = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))  # MPO: a phone photograph with a preview beside it
    if page is None and pages > 1:
        raise ImageError(f"{image.format} file has {pages} pages, but one row of the table is one image; name one, as in '#frame=0'")
    if page is not None and page >= pages:
        raise ImageError(f"frame {page} is out of range, the {image.format} file has {pages} page{'s' if pages > 1 else ''}")
    if page is not None and pages > 1:
        image.seek(page)
    if image.format == "TIFF" and image.mode in ("RGB", "RGBA", "CMYK", "LA"):
        bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        if max(bits) > 8:
            raise ImageError(f"colour TIFF with {max(bits)} bits a channel is not read without loss; convert it to 16-bit PNG")


def _decode_pillow(data: bytes, page: int | None = None) -> Pixels:
    plain = decode_plain_jpeg(data) if page is None else None
    if plain is not None:
        return plain
    with _truncation_is_an_error():
        image = _open(BytesIO(data), page)
        grey = _load(image)
    return _image_pixels(image, grey)


def _image_pixels(image: Image.Image, grey: npt.NDArray[np.uint8] | None = None) -> Pixels:
    """The pixels of an image that is loaded; grey ones that are in an array already are given with it."""
    if image.getexif().get(_ORIENTATION, 1) != 1:  # asked here, because the function below copies every image
        image = ImageOps.exif_transpose(image)
    elif grey is not None:
        return grey
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return _deep_grey(np.asarray(image), mode)
    if mode in ("1", "L"):
        return np.asarray(image if mode == "L" else image.convert("L"))
    if mode in ("LA", "La"):
        return _on_black(np.asarray(image.convert("LA")))[..., 0]
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return _on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _load(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Decode the pixels; of grey PNG and JPEG files into the array that is given back, which saves two copies."""
    if image.mode != "L" or image.format not in ("PNG", "JPEG"):
        image.load()
        return None
    pixels = np.zeros((image.height, image.width), np.uint8)
    place = Image.frombuffer("L", image.size, pixels, "raw", "L", 0, 1).im
    image.im = place
    image.load()
    return pixels if image.im is place else None


def _deep_grey(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint16]:
    if mode == "F":
        return _unit_to_uint16(values)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"grey values run from {values.min()} to {values.max()}, but must lie in 0..65535")
    return values.astype(np.uint16)


def _unit_to_uint16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ImageError(f"float pixels run from {low:g} to {high:g}, but must lie in [0, 1]")
    return cast(npt.NDArray[np.uint16], np.rint(values.astype(np.float64) * 65535.0).astype(np.uint16))


def _on_black(pixels: npt.NDArray[Any]) -> Pixels:
    top = int(np.iinfo(pixels.dtype).max)
    colour, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return cast(Pixels, ((colour * alpha + top // 2) // top).astype(pixels.dtype))


def _is_deep_colour_png(data: bytes) -> bool:
    """16-bit PNG with colour or alpha: Pillow keeps only the high byte of each value."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6)


def _decode_deep_colour_png(data: bytes) -> Pixels:
    from evenhand.data.png import decode_deep_png

    values = decode_deep_png(data)
    pixels = _on_black(values) if data[25] in (4, 6) else values
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _numpy_array(stream: BinaryIO) -> npt.NDArray[Any]:
    stream = _numpy_stream(stream)
    shape, _, dtype = numpy_header(stream)
    n = math.prod(shape)
    if n > _MOST_VALUES:
        raise ImageError(f"array has shape {shape}, which is no image: {n:,} values, and at most {_MOST_VALUES:,} are read")
    if dtype.hasobject:
        raise ImageError("the array holds Python objects, which are not loaded: they could run code")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _numpy_stream(stream: BinaryIO) -> BinaryIO:
    """The file itself, or the one array of an ``.npz`` that is the image, unpacked as it is read."""
    packed = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    if not packed:
        return stream
    archive = ZipFile(stream)
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(names) != 1 and "image" not in names:
        raise ImageError(f".npz holds the arrays {names}; it must hold one, or one named 'image'")
    return cast(BinaryIO, archive.open(archive.namelist()[names.index("image") if "image" in names else 0]))


def numpy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis runs fastest, and type of an ``.npy`` file, whose values come next in the stream."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def array_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Header:
    """Bits and channels of an array that is an image.

    Raises:
        ImageError: it is none.
    """
    array = _laid_out(np.broadcast_to(np.empty((), dtype), shape))
    return Header(8 if array.dtype in (np.uint8, np.bool_) else 16, 1 if array.ndim == 2 else 3)


def array_pixels(array: npt.NDArray[Any]) -> Pixels:
    """An array that is an image: uint8, uint16, bool, or float in [0, 1]; (h, w), (h, w, 1 or 3) or (1 or 3, h, w).

    Raises:
        ImageError: it is none.
    """
    array = _laid_out(array)
    if array.size == 0 or array.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    return _unit_to_uint16(array)


def _laid_out(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3) and shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ImageError(f"array has shape {shape}, but must be (h, w), (h, w, 1 or 3) or (1 or 3, h, w)")
    if array.dtype not in (np.uint8, np.uint16, np.bool_) and array.dtype.kind != "f":
        raise ImageError(f"array has type {array.dtype}, but must be uint8, uint16, bool, or float in [0, 1]")
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
