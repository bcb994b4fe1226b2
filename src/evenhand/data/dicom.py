"""DICOM to grey or colour pixels: decompressed, rescaled, windowed, MONOCHROME1 turned round.

Steps, in the order of DICOM PS3.3 C.11 and PS3.4 N.2: stored value -> modality (slope, intercept, or table) -> values of
interest (a window: the one asked for, else the first; or a table) -> [0, 1], inverted for MONOCHROME1, padding black -> uint8 where at
most 8 bits are stored, else uint16. Palettes and YBR colours become RGB. Without a window the whole range that the stored bits can
express maps to [0, 1]; an image's own minimum and maximum are never used, so equal stored values give equal pixels in every image.

Compressed pixels are decoded by the library's own decoders, with the packages that are installed: RLE, 8-bit JPEG and JPEG 2000 without
any extra, the others (12-bit and lossless JPEG, JPEG-LS, high-throughput JPEG 2000) with the extra ``dicom``.
"""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from evenhand.data.dicom_codecs import all_installed, decode, find_decoder
from evenhand.errors import ImageError

BROKEN = (
    ArithmeticError, AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError,
    struct.error, zlib.error,
)
"""What the DICOM library raises on damaged files."""
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_lock = threading.RLock()


@dataclass(frozen=True)
class View:
    """Which frame of a file is read, and which window counts.

    Attributes:
        frame: from 0; None: the file must hold one frame only.
        window: (centre, width) in place of the header's windows: centre - width / 2 is black, centre + width / 2 white.
        window_index: the header's window, from 0; None: the first.
    """

    frame: int | None = None
    window: tuple[float, float] | None = None
    window_index: int | None = None


PLAIN = View()


def dicom_bits_channels(stream: BinaryIO, view: View = PLAIN) -> tuple[int, int]:
    """Bits (8 or 16) and channels (1 or 3) of a DICOM image, from its header; its pixels are not read.

    Raises:
        ImageError: no image, several frames and none picked, or a transfer syntax that cannot be decoded here.
    """
    with quiet():
        header = read_dataset(stream, pixels=False)
        pick_frame(header, view)
        return dataset_bits_channels(header)


def dataset_bits_channels(header: Any) -> tuple[int, int]:
    """As `dicom_bits_channels`, of a header that has been read."""
    try:
        palette = header.PhotometricInterpretation == "PALETTE COLOR"
        bits = int(header.RedPaletteColorLookupTableDescriptor[2] if palette else header.BitsStored)
        return (16 if bits > 8 else 8), 3 if palette else int(header.SamplesPerPixel)
    except BROKEN as error:
        raise ImageError(f"not a readable DICOM image ({_reason(error)})") from error


def decode_dicom(data: bytes, view: View = PLAIN) -> npt.NDArray[Any]:
    """Pixels of a DICOM file as uint8 or uint16, (h, w) or (h, w, 3), 0 = black.

    Raises:
        ImageError: a transfer syntax that cannot be decoded here, several frames and none picked, pixel data missing or cut, an unknown
            colour space, or no such frame or window.
    """
    with quiet():
        dataset = read_dataset(BytesIO(data), pixels=True)
        frame = pick_frame(dataset, view)
        return dataset_pixels(dataset, stored_values(dataset, frame), frame, view)


def dataset_pixels(dataset: Any, stored: npt.NDArray[Any], frame: int, view: View) -> npt.NDArray[Any]:
    """As `decode_dicom`, from the header and the stored values of one frame."""
    try:
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            return _palette(dataset, stored)
        if int(dataset.SamplesPerPixel) == 3:
            return stored if stored.dtype == np.uint8 else _quantise(stored / (2.0 ** int(dataset.BitsStored) - 1), 16)
        return _shown(frame_header(dataset, frame), stored, view)
    except BROKEN as error:
        raise ImageError(f"DICOM pixel data cannot be decoded ({_reason(error)})") from error


def _shown(header: Any, stored: npt.NDArray[Any], view: View) -> npt.NDArray[Any]:
    """Grey pixels; where there are more of them than values that the bits can express, each value is sent through the steps once."""
    bits = int(header.BitsStored)
    low = -(2 ** (bits - 1)) if int(header.get("PixelRepresentation", 0)) else 0
    few = bits <= 16 and stored.dtype.kind in "iu" and 2**bits <= stored.size
    if not few or int(stored.min()) < low or int(stored.max()) >= low + 2**bits:
        return _quantise(dicom_grey(header, stored, view), bits)
    every = np.arange(low, low + 2**bits).astype(stored.dtype)
    shown = _quantise(dicom_grey(header, every, view), bits)
    return shown[stored if low == 0 else stored.astype(np.int32) - low]


def dicom_grey(dataset: Any, stored: npt.NDArray[Any], view: View = PLAIN) -> npt.NDArray[np.float64]:
    """Stored values -> [0, 1], 0 = black: modality step, window or table, inverted for MONOCHROME1; padding is black.

    Args:
        dataset: the header (slope, intercept, window, photometric interpretation).
        stored: (h, w) integers.
        view: the window that is asked for.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    bits = int(dataset.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if int(dataset.get("PixelRepresentation", 0)) else (0, 2**bits - 1)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    chosen = view.window or _header_window(dataset, view.window_index)
    if chosen is not None:
        function = "LINEAR_EXACT" if view.window else str(dataset.get("VOILUTFunction") or "LINEAR")
        grey = window(values, *chosen, function)
    elif dataset.get("VOILUTSequence"):
        top = 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        grey = np.asarray(apply_voi(values.astype(np.int64), dataset), np.float64) / top
    elif dataset.get("ModalityLUTSequence"):
        grey = values / (2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
        ends = sorted((low * slope + intercept, high * slope + intercept))
        grey = (values - ends[0]) / (ends[1] - ends[0])
    grey = np.clip(grey, 0.0, 1.0)
    if str(dataset.PhotometricInterpretation) == "MONOCHROME1":
        grey = 1.0 - grey
    grey[padding(dataset, stored)] = 0.0
    return grey


def padding(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which stored values are no part of the image: the padding value, or all from it to the padding range limit."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    return np.asarray((stored >= low) & (stored <= high))


def _header_window(dataset: Any, index: int | None) -> tuple[float, float] | None:
    """(centre, width) of the header's window of that number (None: the first), None where it has no window and none is asked for."""
    centres, widths = (_numbers(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    n = min(len(centres), len(widths))
    if index is not None and index >= n:
        raise ImageError(f"window {index} is asked for, but the DICOM header has {n} window{'' if n == 1 else 's'} (counted from 0)")
    return (centres[index or 0], widths[index or 0]) if n else None


def _numbers(value: Any) -> list[float]:
    if value is None or isinstance(value, str):
        return [float(value)] if value else []
    return [float(part) for part in value if part is not None] if hasattr(value, "__len__") else [float(value)]


def window(values: npt.NDArray[np.float64], center: float, width: float, function: str = "LINEAR") -> npt.NDArray[np.float64]:
    """A DICOM window on [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    ``LINEAR``: 0 below c - 0.5 - (w-1)/2, 1 above c - 0.5 + (w-1)/2, a line between. ``LINEAR_EXACT``: the same without the
    half pixel. ``SIGMOID``: 1 / (1 + exp(-4 (x - c) / w)).

    Example:
        >>> window(np.array([0.0, 2047.5, 4095.0]), 2048, 4096).tolist()
        [0.0, 0.5, 1.0]
    """
    function = function.strip().upper()
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700))))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ImageError(f"DICOM window function '{function}' is not one of LINEAR, LINEAR_EXACT, SIGMOID")
    if (width < 1 and function == "LINEAR") or width <= 0:
        raise ImageError(f"DICOM window width is {width:g}, but must be at least 1 (LINEAR_EXACT: above 0)")
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def read_dataset(stream: BinaryIO, *, pixels: bool) -> Any:
    """The header of an image, with its pixel data or without; also of a file without preamble or without file meta.

    Raises:
        ImageError: no image, or a transfer syntax or colour space that is not read here.
    """
    from pydicom import dcmread

    try:
        dataset = dcmread(stream, stop_before_pixels=not pixels, force=True)
        if "Rows" not in dataset or "BitsAllocated" not in dataset:
            what = dataset.get("SOPClassUID")
            raise ImageError(f"DICOM file holds no image{f' but {what.name}' if what and what.name != what else ''}")
        _check_syntax(dataset)
        photometric = str(dataset.PhotometricInterpretation)
        if photometric not in PHOTOMETRIC:
            raise ImageError(f"DICOM photometric interpretation {photometric} is not one of {', '.join(PHOTOMETRIC)}")
    except ImageError:
        raise
    except BROKEN as error:
        raise ImageError(f"not a readable DICOM image ({_reason(error)})") from error
    return dataset


def _check_syntax(dataset: Any) -> None:
    """A transfer syntax that the header lacks is what the file was read by; one without a decoder is refused."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if not syntax.is_compressed or syntax == _DEFLATED:  # deflate packs the whole file, not the pixels
        return
    try:
        decoder = find_decoder(UID(syntax))
    except NotImplementedError:
        raise ImageError(f"DICOM transfer syntax {syntax.name} ({syntax}) is compressed in a way that is not read; {_convert()}") from None
    if not decoder.is_available:
        raise ImageError(f"DICOM transfer syntax {syntax.name} ({syntax}) is compressed and {_decoders()}")


def _convert() -> str:
    return "convert the file first, for example with gdcmconv --raw"


def _decoders() -> str:
    """What to do about a compressed file that cannot be decoded."""
    if all_installed():
        return f"cannot be decoded; {_convert()}"
    return "needs a decoder that is not installed; install the decoders with: pip install 'evenhand[dicom]'"


def pick_frame(dataset: Any, view: View) -> int:
    """The frame that is read, from 0.

    Raises:
        ImageError: several frames and none picked, or no such frame.
    """
    n = int(dataset.get("NumberOfFrames", 1) or 1)
    if view.frame is None and n != 1:
        raise ImageError(f"DICOM file has {n} frames, but one row of the table is one image; name one, as in '#frame=0'")
    if view.frame is not None and view.frame >= n:
        raise ImageError(f"frame {view.frame} is out of range, the DICOM file has {n} frame{'' if n == 1 else 's'}")
    return view.frame or 0


def stored_values(
    dataset: Any, frame: int | None, decoded: Callable[[], npt.NDArray[Any]] | None = None
) -> npt.NDArray[Any]:
    """Decoded values as they are stored, colours as RGB: of one frame, or with None of all, (frames, h, w).

    Args:
        dataset: the header, with the pixels unless ``decoded`` is given.
        frame: from 0.
        decoded: decodes the frame from somewhere else.

    Raises:
        ImageError: missing or damaged, or no decoder that can.
    """
    try:
        return decode(dataset, frame) if decoded is None else decoded()
    except BROKEN as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        packed = syntax.is_compressed and syntax != _DEFLATED
        more = f", and its transfer syntax {syntax.name} ({syntax}) {_decoders()}" if packed and not all_installed() else ""
        raise ImageError(f"DICOM pixel data cannot be decoded ({_reason(error)}){more}") from error


def frame_header(dataset: Any, frame: int) -> Any:
    """The header as it holds for one frame: rescale and window of the functional groups of an enhanced file, else the file's own."""
    from pydicom.dataset import Dataset

    shared, own = (dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("Shared", "PerFrame"))
    items = [*shared, *own[frame : frame + 1]]
    parts = [item.get(name) for item in items for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence")]
    if not any(parts):
        return dataset
    header = Dataset()
    for name in (
        "BitsStored", "PixelRepresentation", "PhotometricInterpretation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope",
        "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    ):
        if name in dataset:
            header[name] = dataset[name]
    for part in parts:
        for element in part[0] if part else ():
            header.add(element)
    return header


def _palette(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut

    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    colours = apply_color_lut(stored, dataset)[..., :3]
    return np.ascontiguousarray(colours.astype(np.uint8)) if bits <= 8 else _quantise(colours / (2.0**bits - 1), 16)


@contextmanager
def quiet() -> Iterator[None]:
    """The library warns of every header that is not to the letter and logs a traceback for every decoder that fails; the error says it."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "openjpeg")]
    with _lock, warnings.catch_warnings():  # filters and levels belong to the process, not to the thread
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):  # one line a decoder
        return "; ".join(lines[1:4])
    return lines[0] if lines else type(error).__name__


def _quantise(unit: npt.NDArray[np.float64], bits: int) -> npt.NDArray[Any]:
    if bits <= 8:
        return np.rint(unit * 255.0).astype(np.uint8)
    return np.rint(unit * 65535.0).astype(np.uint16)
