"""DICOM volumes: the slices of a series in a folder, or the frames of one file, as an array (n, h, w) after the modality step."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.dicom import PHOTOMETRIC, View, frame_header, pick_frame, quiet, read_dataset, stored_values
from evenhand.data.dicom_frames import OpenFrames
from evenhand.data.images import is_dicom
from evenhand.errors import ImageError

_TAGS = (
    "SOPClassUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "Rows", "Columns",
    "PhotometricInterpretation", "NumberOfFrames",
)
_GREY = PHOTOMETRIC[:2]
_SAME_PLACE = 1e-3


class DicomFrames:
    """The frames of one file; only those asked for are decoded.

    Args:
        path: the file.

    Attributes:
        shape: (n, h, w).
        dtype: float32.
        inverted: MONOCHROME1.
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, path: str) -> None:
        self._frames = OpenFrames(path)
        header = self._frames.header
        n = int(header.get("NumberOfFrames", 1) or 1)
        if n == 1:
            raise ImageError("DICOM file has one frame, so it is an image and takes no 'axis'")
        self.shape: tuple[int, ...] = (n, int(header.Rows), int(header.Columns))
        self.inverted = _inverted(str(header.PhotometricInterpretation))

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        first, *rest = index
        with quiet():
            if not isinstance(first, slice):
                return self._frame(first)[tuple(rest)]
            frames = range(*first.indices(self.shape[0]))
            return np.stack([self._frame(frame)[tuple(rest)] for frame in frames])

    def _frame(self, frame: int) -> npt.NDArray[np.float32]:
        return _modality(self._frames.header, self._frames.stored(frame), frame)


class DicomSeries:
    """The slices of the one series in a folder, in order along their normal; only the files asked for are decoded.

    Args:
        folder: where the files are; other files in it are passed over.

    Attributes:
        shape: (n, h, w).
        dtype: float32.
        inverted: MONOCHROME1.

    Raises:
        ImageError: no slices, two series, slices of different sizes or directions, or no order among them.
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, folder: str) -> None:
        found = _headers(folder)
        if not found:
            raise ImageError("folder holds no DICOM images")
        series = {str(header.get("SeriesInstanceUID")) for _, header in found}
        if len(series) > 1:
            raise ImageError(f"folder holds {len(series)} DICOM series, but a volume is one; put each into a folder of its own")
        sizes = {(int(header.Rows), int(header.Columns)) for _, header in found}
        if len(sizes) > 1:
            raise ImageError(f"the slices of the series have {len(sizes)} sizes (as {' and '.join(map(str, sorted(sizes)[:2]))})")
        photometric = {str(header.get("PhotometricInterpretation")) for _, header in found}
        if len(photometric) > 1:
            raise ImageError(f"the slices of the series are of several kinds ({', '.join(sorted(photometric))})")
        self.inverted = _inverted(photometric.pop())
        self._files = [found[k][0] for k in _order([header for _, header in found])]
        self.shape: tuple[int, ...] = (len(found), *sizes.pop())
        self._whole: npt.NDArray[np.float32] | None = None

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        first, *rest = index
        if self._whole is not None:
            return self._whole[index]
        if not isinstance(first, slice):
            return self._slice(first)[tuple(rest)]
        positions = range(*first.indices(self.shape[0]))
        if len(positions) < len(self._files):
            return np.stack([self._slice(k)[tuple(rest)] for k in positions])
        whole = np.empty(self.shape, np.float32)
        for k in positions:
            whole[k] = self._slice(k)
        self._whole = whole
        return whole[index]

    def _slice(self, k: int) -> npt.NDArray[np.float32]:
        with quiet(), open(self._files[k], "rb") as stream:
            dataset = read_dataset(stream, pixels=True)
            frame = pick_frame(dataset, View())
            return _modality(dataset, stored_values(dataset, frame), frame)


def _inverted(photometric: str) -> bool:
    if photometric not in _GREY:
        raise ImageError(f"a DICOM volume must be grey, but its photometric interpretation is {photometric}")
    return photometric == _GREY[0]


def _modality(header: Any, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[np.float32]:
    from pydicom.pixels.processing import apply_modality_lut

    return np.asarray(apply_modality_lut(stored, frame_header(header, frame)), dtype=np.float32)


def _headers(folder: str) -> list[tuple[str, Any]]:
    """File and header of every image in a folder, by name."""
    from pydicom import dcmread

    found = []
    with quiet():
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name.startswith(".") or not os.path.isfile(path):
                continue
            with open(path, "rb") as stream:
                head = stream.read(132)
                if not is_dicom(head):
                    continue
                stream.seek(0)
                header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            if "Rows" in header and "Columns" in header:
                found.append((path, header))
    return found


def _order(headers: list[Any]) -> list[int]:
    """Positions of the slices by place along their normal, else by instance number."""
    places: list[float]
    if all(header.get("ImagePositionPatient") and header.get("ImageOrientationPatient") for header in headers):
        directions = np.array([[float(part) for part in header.ImageOrientationPatient] for header in headers])
        if np.abs(directions - directions[0]).max() > 0.01:
            raise ImageError("the slices of the series are not parallel, so they are no volume")
        normal = np.cross(directions[0, :3], directions[0, 3:])
        places = [float(np.dot(normal, [float(part) for part in header.ImagePositionPatient])) for header in headers]
    elif all(header.get("InstanceNumber") is not None for header in headers):
        places = [float(header.InstanceNumber) for header in headers]
    else:
        raise ImageError("the slices of the series have neither positions nor instance numbers, so they have no order")
    order = np.argsort(places, kind="stable")
    if len(order) > 1 and np.diff(np.asarray(places)[order]).min() < _SAME_PLACE:
        raise ImageError("two slices of the series lie at one place (two acquisitions, or a file twice), so they are no volume")
    return [int(k) for k in order]
