"""Edited copies of DICOM files: the header kept, the pixels in stored units, and the derivation said in the header.

An edit works on what the encoder sees: grey values in [0, 1] after rescale, first window and MONOCHROME1. A copy must hold stored
values that show these greys under the same, unchanged rescale, window and photometric interpretation. So every stored value that
the bits can express is sent through the reader's own steps once, and each edited grey takes the stored value whose grey is nearest. That
is exact to half a stored step for any window function or table. A pixel that the edit leaves alone keeps its stored value, also outside
the window.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand import __version__
from evenhand.data.dicom import BROKEN, decode_dicom, dicom_grey, frame_header
from evenhand.errors import ImageError

_NATIVE = "1.2.840.10008.1.2.1"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a copy lie in its original, for what the header says of millimetres.

    Attributes:
        step: (rows, columns): original pixels a pixel of the copy.
        start: (row, column) of the copy's outer corner in the original.
    """

    step: tuple[float, float] = (1.0, 1.0)
    start: tuple[float, float] = (0.0, 0.0)


class DicomImage:
    """A DICOM file opened for a copy.

    Args:
        data: the file; compressed pixels are decompressed where a decoder is installed.

    Attributes:
        pixels: what the reader makes of it, as `evenhand.data.images.read_image` would.

    Raises:
        ImageError: no readable single-frame image, or compressed in a way that cannot be decoded here.
    """

    def __init__(self, data: bytes) -> None:
        from pydicom import dcmread
        from pydicom.pixels.utils import pixel_array

        with _quiet("cannot be read"):
            self._dataset: Any = dcmread(BytesIO(data))
            syntax = self._dataset.file_meta.TransferSyntaxUID
            if syntax.is_compressed and syntax != _DEFLATED:
                data = self._decompress(syntax)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pixels = decode_dicom(data)
        with _quiet("cannot be read"):
            self._stored: npt.NDArray[Any] = pixel_array(self._dataset)
            self._bits = int(self._dataset.BitsStored)
            if syntax == _BIG_ENDIAN:
                meta, self._dataset = self._dataset.file_meta, _turned(self._dataset)
                self._dataset.file_meta = meta
        if self._dataset.PhotometricInterpretation == "PALETTE COLOR":
            raise ImageError("DICOM file stores its colours in a palette; it is read, but copies of such files are not written")
        if self._bits > 16:
            raise ImageError(f"DICOM file stores {self._bits} bits a pixel, and copies are written for at most 16")

    def _decompress(self, syntax: Any) -> bytes:
        try:
            self._dataset.decompress(generate_instance_uid=False)
        except BROKEN as error:
            raise ImageError(
                f"DICOM transfer syntax {syntax.name} cannot be decoded with the packages that are installed; "
                "convert the file first, for example with gdcmconv --raw"
            ) from error
        return _written(self._dataset)

    def copy(self, greys: npt.NDArray[np.float64], placement: Placement, edit: str) -> tuple[bytes, float]:
        """The bytes of the edited copy.

        Args:
            greys: (h, w) or (h, w, 3) in [0, 1], as shown.
            placement: where they lie in the original.
            edit: the edit's fingerprint.

        Returns:
            The file, and the largest difference between a grey and what the file shows, in [0, 1].

        Raises:
            ImageError: a grey file cannot hold colours, or the header cannot be written.
        """
        dataset = self._dataset
        colour = int(dataset.SamplesPerPixel) == 3
        if colour != (greys.ndim == 3):
            made, held = ("grey", "colour") if colour else ("colour", "grey")
            channels = "3 channels" if colour else "1 channel"
            raise ImageError(f"the edit makes {made} images, and this DICOM file holds {held} ones; train an edit on data with {channels}")
        with _quiet("cannot be written"):
            stored, error = self._in_stored_units(greys)
            self._place(greys.shape[:2], placement)
            self._set_pixels(stored)
            self._say(edit)
            return _written(dataset), error

    def _in_stored_units(self, greys: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], float]:
        top = float(np.iinfo(self.pixels.dtype).max)
        if greys.ndim == 3:
            most = 255.0 if self._stored.dtype == np.uint8 else 2.0**self._bits - 1
            values = np.rint(greys * most)
            return values.astype(self._stored.dtype), float(np.abs(values / most - greys).max())
        signed = bool(int(self._dataset.get("PixelRepresentation", 0)))
        values = np.arange(2**self._bits, dtype=np.int64) - (2 ** (self._bits - 1) if signed else 0)
        shown = dicom_grey(frame_header(self._dataset, 0), values)
        padding = self._dataset.get("PixelPaddingValue")
        usable = np.ones(len(values), bool) if padding is None else values != int(padding)
        found = _nearest(shown[usable], values[usable], greys)
        if greys.shape == self.pixels.shape:
            same = np.rint(greys * top) == self.pixels
            found = np.where(same, self._stored, found)
            changed = ~same
        else:
            changed = np.ones(greys.shape, bool)
        error = np.abs(shown[found - values[0]] - greys)[changed]
        return found.astype(self._stored.dtype), float(error.max()) if error.size else 0.0

    def _place(self, shape: tuple[int, ...], placement: Placement) -> None:
        """Sizes and millimetres of another grid."""
        dataset = self._dataset
        if (int(dataset.Rows), int(dataset.Columns)) == shape and placement == Placement():
            return
        spacing = dataset.get("PixelSpacing")
        orientation, position = dataset.get("ImageOrientationPatient"), dataset.get("ImagePositionPatient")
        if spacing and orientation and position:
            # the centre of the new first pixel, measured from the centre of the old one
            down, right = ((placement.start[k] + placement.step[k] / 2 - 0.5) * float(spacing[k]) for k in (0, 1))
            axes = np.asarray(orientation, float).reshape(2, 3)
            moved = np.asarray(position, float) + right * axes[0] + down * axes[1]
            dataset.ImagePositionPatient = [_decimal(value) for value in moved]
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            if dataset.get(name):
                setattr(dataset, name, [_decimal(float(old) * step) for old, step in zip(dataset[name].value, placement.step, strict=True)])
        dataset.Rows, dataset.Columns = shape
        for element in list(dataset):
            if 0x6000 <= element.tag.group <= 0x60FF:  # overlays of the old size
                del dataset[element.tag]

    def _set_pixels(self, stored: npt.NDArray[Any]) -> None:
        dataset = self._dataset
        if stored.ndim == 3:
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
        dataset.HighBit = self._bits - 1
        for name, value in (("SmallestImagePixelValue", stored.min()), ("LargestImagePixelValue", stored.max())):
            if name in dataset:
                dataset[name].value = int(value)
        wide = int(dataset.BitsAllocated) > 8
        raw = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        dataset.add_new("PixelData", "OW" if wide else "OB", raw + b"\0" * (len(raw) % 2))

    def _say(self, edit: str) -> None:
        """What PS3.3 C.7.6.1 and C.12.1 ask of derived pixels: type, description, a UID of their own and their source."""
        from pydicom.dataset import Dataset

        dataset = self._dataset
        kinds = dataset.get("ImageType")
        kinds = [kinds] if isinstance(kinds, str) else list(kinds or ["ORIGINAL", "PRIMARY"])
        dataset.ImageType = ["DERIVED", *kinds[1:]]
        text = f"Pixels changed by evenhand {__version__}, image edit {edit[:16]}, for input to an encoder; not for diagnosis"
        before = str(dataset.get("DerivationDescription") or "")
        dataset.DerivationDescription = f"{before}; {text}" if before and len(before) + len(text) < 1000 else text
        original = dataset.get("SOPInstanceUID")
        if "SOPClassUID" not in dataset:
            dataset.SOPClassUID = _SECONDARY_CAPTURE
        if original:
            source, purpose = Dataset(), Dataset()
            purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
            purpose.CodeMeaning = "Source image for image processing operation"
            source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = dataset.SOPClassUID, original
            source.PurposeOfReferenceCodeSequence = [purpose]
            dataset.SourceImageSequence = [source]
        # the same copy of the same image has the same name, whenever it is made
        name = uuid.uuid5(uuid.NAMESPACE_OID, f"{original or uuid.uuid4()} {edit} {dataset.Rows} {dataset.Columns}")
        dataset.SOPInstanceUID = f"2.25.{name.int}"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _nearest(shown: npt.NDArray[np.float64], values: npt.NDArray[np.int64], greys: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For every grey the stored value that shows the nearest one.

    Where many values show the same grey (black and white outside the window), the one nearest to the inside of the window is taken.
    """
    inside = values[(shown > shown.min()) & (shown < shown.max())]
    centre = float(np.median(inside if len(inside) else values))
    order = np.lexsort((np.abs(values - centre), shown))
    first = np.concatenate([[True], np.diff(shown[order]) > 0])
    levels, chosen = shown[order][first], values[order][first]
    middles = (levels[1:] + levels[:-1]) / 2
    nearest: npt.NDArray[np.int64] = chosen[np.searchsorted(middles, greys)]
    return nearest


def _turned(dataset: Any) -> Any:
    """A big-endian data set as a new one whose byte strings of words are little-endian."""
    from pydicom.dataset import Dataset

    turned = Dataset()
    for element in dataset:
        value = element.value
        if element.VR == "SQ":
            value = [_turned(item) for item in value]
        elif element.VR in _WORDS and isinstance(value, bytes):
            value = np.frombuffer(value, f"u{_WORDS[element.VR]}").byteswap().tobytes()
        turned.add_new(element.tag, element.VR, value)
    return turned


def _written(dataset: Any) -> bytes:
    from pydicom.uid import UID

    dataset.file_meta.TransferSyntaxUID = UID(_NATIVE)
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _decimal(value: float) -> Any:
    from pydicom.valuerep import DSfloat

    return DSfloat(value, auto_format=True)


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """No warning and no error text of the library: they can quote values of the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except BROKEN as error:
        raise ImageError(f"DICOM file {what} ({type(error).__name__} in its header or pixel data)") from error
