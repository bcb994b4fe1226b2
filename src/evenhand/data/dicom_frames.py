"""Frames of one DICOM file: the header is read once for all of them, and of the pixels only the frame that is asked for."""

from __future__ import annotations

import struct
import weakref
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from evenhand.data.dicom import View, dataset_bits_channels, dataset_pixels, pick_frame, quiet, read_dataset, stored_values
from evenhand.data.dicom_codecs import decode_open

_KEYWORDS = {0x0010: "PixelData", 0x0009: "DoubleFloatPixelData", 0x0008: "FloatPixelData"}
_DEFLATED = "1.2.840.10008.1.2.1.99"


class OpenFrames:
    """A file that stays open, standing where its pixels begin.

    Args:
        path: the file.

    Attributes:
        header: all before the pixels.

    Raises:
        ImageError: as `evenhand.data.dicom.read_dataset`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        with quiet():
            self.header = read_dataset(self._file, pixels=False)
        self._options = self._pixel_options()
        self._start = self._file.tell()
        self._whole: Any = None

    def stored(self, frame: int) -> npt.NDArray[Any]:
        """Decoded values of a frame, from 0, as they are stored.

        Raises:
            ImageError: as `evenhand.data.dicom.stored_values`.
        """
        if self._options is None:
            if self._whole is None:
                with open(self._path, "rb") as stream:
                    self._whole = read_dataset(stream, pixels=True)
            return stored_values(self._whole, frame)
        self._file.seek(self._start)
        options = self._options
        return stored_values(self.header, frame, lambda: decode_open(self._file, options, frame))

    def _pixel_options(self) -> dict[str, Any] | None:
        """What the library needs to know to decode from the file, which then stands at the pixels; None: it must have the whole file."""
        from pydicom.pixels.utils import as_pixel_options

        syntax = self.header.file_meta.TransferSyntaxUID
        if syntax == _DEFLATED:  # packs the whole file
            return None
        implicit, little = self.header.original_encoding
        order, head = "<" if little else ">", self._file.read(8)
        if len(head) < 8 or (implicit, little) != (syntax.is_implicit_VR, syntax.is_little_endian):
            return None
        group, element = struct.unpack(f"{order}HH", head[:4])
        if group != 0x7FE0 or element not in _KEYWORDS:
            return None
        options = {"transfer_syntax_uid": syntax, "pixel_keyword": _KEYWORDS[element]}
        if not implicit:
            options["pixel_vr"] = head[4:6].decode("latin-1")
            self._file.read(4)
        return dict(as_pixel_options(self.header, **options))


@lru_cache(maxsize=1)
def open_frames(path: str, mark: tuple[int, int]) -> OpenFrames:
    """A file, kept open until another is asked for.

    Args:
        path: the file.
        mark: size and time of change.
    """
    return OpenFrames(path)


def frame_bits_channels(path: str, mark: tuple[int, int], view: View) -> tuple[int, int]:
    """As `evenhand.data.dicom.dicom_bits_channels`, of a frame of a file that is kept open."""
    with quiet():
        header = open_frames(path, mark).header
        pick_frame(header, view)
        return dataset_bits_channels(header)


def decode_frame(path: str, mark: tuple[int, int], view: View) -> npt.NDArray[Any]:
    """As `evenhand.data.dicom.decode_dicom`, of a frame of a file that is kept open."""
    with quiet():
        frames = open_frames(path, mark)
        frame = pick_frame(frames.header, view)
        return dataset_pixels(frames.header, frames.stored(frame), frame, view)

