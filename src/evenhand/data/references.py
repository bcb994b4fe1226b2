"""Images inside other files: ``PATH#key=value&key=value`` names one row, frame, slice or projection of a file or folder.

A cell of the image column is a path or such a reference. It is split at its last ``#``; what follows must be ``key=value`` pairs, and
a file that has the whole text as its name comes first. The keys:

========== ==================================================================================================================
array      ``NAME``: the array of an ``.npz``, ``.mat`` or HDF5 file (``group/name``); not needed where it holds one only
row        ``K``: index on the first axis of an array (``.npy``, ``.npz``, ``.mat``, HDF5), row of a parquet file, or image of a pickle
           (``.pkl``, a list of arrays or one stack, see `evenhand.data.sources.safe_pickle`); from 0
column     ``NAME``: column of a parquet file, holding encoded images (bytes, or the struct of bytes and path of Hugging Face)
frame      ``K``: frame of a DICOM file, page of a TIFF file; from 0
axis       ``0``, ``1`` or ``2``: the axis of a volume that ``slice`` or ``project`` takes away
slice      ``K`` (from 0) or ``middle`` (n // 2)
project    ``max`` or ``mean`` along the axis
window     ``CENTRE,WIDTH``: centre - width / 2 becomes black, centre + width / 2 white (CT: in HU; DICOM: after the modality step)
window_index ``K``: the window of a DICOM header that counts, from 0; without it the first
scale      ``LOW,HIGH``: LOW becomes black, HIGH white; ``percentile``: the 0.5 and 99.5 percentile of the whole volume (for MR,
           which has no units)
colours    ``bgr`` (pickle): colours are stored blue first, as OpenCV reads them
orient     ``ras`` (NIfTI): axes 0, 1, 2 run to the right, front and top of the patient, and the picture stands upright: front or
           top at its upper edge, the patient's left (in sagittal slices: back) at its left edge; refused where the header has
           neither an sform nor a qform
========== ==================================================================================================================

A volume is an array of three axes: NIfTI, Analyze, a ``.npy``, ``.npz``, ``.mat`` or HDF5 array (after ``row``), a DICOM file of several
frames, or a folder of one DICOM series (``FOLDER/#axis=0&...``; axis 0 runs along the normal of the slices, by position, else by instance
number). Without ``orient`` the picture's rows and columns are the other two axes in stored order. With ``window`` or ``scale`` values
become uint16; without them an array must be an image already: uint8 (stays so), uint16, bool, or float in [0, 1]. NaN is black.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand.errors import ImageError, InputError, nearest

if TYPE_CHECKING:
    from evenhand.data.images import Header, Pixels

KEYS = ("array", "row", "column", "frame", "axis", "slice", "project", "window", "window_index", "scale", "orient", "colours")
NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgz", ".mgh")
VOLUMES = (*NIFTI, ".mat", ".h5", ".hdf5", ".hdf", ".parquet", ".pkl", ".pickle")
"""Files that are read through references only, so that a path without keys is answered with what is lacking."""
_NOT_DICOM = (*VOLUMES, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy", ".npz")
_ARRAY = frozenset({"array", "row", "axis", "slice", "project", "window", "scale"})
_ALLOWED: dict[str, frozenset[str]] = {
    "parquet": frozenset({"row", "column"}),
    "pickle": frozenset({"row", "colours"}),
    "array": _ARRAY,
    "nifti": (_ARRAY | {"orient"}) - {"array", "row"},
    "folder": _ARRAY - {"array", "row"},
    "dicom": (_ARRAY | {"frame", "window_index"}) - {"array", "row"},
    "image": frozenset({"frame"}),
}
_WORDS = {
    "parquet": "a parquet file", "pickle": "a pickle", "array": "a file of arrays", "nifti": "a NIfTI or Analyze file",
    "folder": "a folder of DICOM files",
    "dicom": "a DICOM file", "image": "an image file",
}


@dataclass(frozen=True)
class Reference:
    """A place in a file.

    Attributes:
        path: the file or folder.
        keys: key -> value as text.
    """

    path: str
    keys: Mapping[str, str]

    def whole(self, key: str) -> int | None:
        """A key's value as a number from 0, None where it is absent.

        Raises:
            ImageError: it is no such number.
        """
        text = self.keys.get(key)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise ImageError(f"{key} is '{text}', but must be a whole number from 0")
        return int(text)

    def pair(self, key: str) -> tuple[float, float] | None:
        """A key's two numbers, None where it is absent.

        Raises:
            ImageError: it is not two numbers with a comma between.
        """
        text = self.keys.get(key)
        if text is None:
            return None
        try:
            first, second = (float(part) for part in text.split(","))
        except ValueError:
            raise ImageError(f"{key} is '{text}', but must be two numbers with a comma between") from None
        return first, second


def find_reference(text: str | Path) -> Reference | None:
    """The reference that a path is, None for the plain path of an image file.

    Raises:
        ImageError: an unknown key, or a key given twice.

    Example:
        >>> find_reference("scan.npz#array=oct&axis=0&slice=middle").keys
        {'array': 'oct', 'axis': '0', 'slice': 'middle'}
        >>> find_reference("case #3.png") is None
        True
    """
    text = str(text)
    path, mark, tail = text.rpartition("#")
    if not mark or "=" not in tail or os.path.isfile(text):
        return Reference(text, {}) if text.lower().endswith(VOLUMES) else None
    keys: dict[str, str] = {}
    for part in tail.split("&"):
        name, equals, value = part.partition("=")
        if name not in KEYS:
            raise ImageError(f"reference '#{tail}' has the unknown key '{name}'; {nearest(name, KEYS)}")
        if not equals or not value or name in keys:
            raise ImageError(f"reference '#{tail}' must give '{name}' one value, once")
        keys[name] = value
    return Reference(path, keys)


def file_behind(text: str | Path) -> str:
    """The file or folder that a path or reference lies in; what is no well-formed reference is a path.

    Example:
        >>> file_behind("a/b.npz#row=3"), file_behind("series/#axis=0&slice=middle"), file_behind("c#3.png")
        ('a/b.npz', 'series/', 'c#3.png')
    """
    path, mark, tail = str(text).rpartition("#")
    return path if mark and "=" in tail and not os.path.isfile(text) else str(text)


def is_there(text: str | Path) -> bool:
    """Whether the file of a path, or the file or folder behind a reference, exists."""
    path = file_behind(text)
    return os.path.isfile(path) or (path != str(text) and os.path.isdir(path))


def window_keys(text: str) -> str:
    """What is typed as a window -> the key of a reference: ``1`` is the header's second window, ``40,400`` is centre and width.

    Raises:
        InputError: neither of the two.

    Example:
        >>> window_keys("1"), window_keys("-600, 1500")
        ('window_index=1', 'window=-600,1500')
    """
    text = text.replace(" ", "")
    if text.isascii() and text.isdigit():
        return f"window_index={text}"
    try:
        _, width = (float(part) for part in text.split(","))
    except ValueError:
        width = 0.0
    if width <= 0:
        raise InputError(f"DICOM window is '{text}', but must be the number of a window in the header, from 0, or CENTRE,WIDTH")
    return f"window={text}"


def with_window(cells: Sequence[str], folder: str | Path, window: str) -> list[str]:
    """Image cells with a window for those of DICOM images that have none of their own; volumes have theirs.

    Args:
        cells: paths or references, relative to the folder.
        folder: where they lie.
        window: as `window_keys` takes it.

    Raises:
        InputError: the window is none.
    """
    key = window_keys(window)
    return [_windowed(cell, os.path.join(folder, cell), key) for cell in cells]


def _windowed(cell: str, path: str, key: str) -> str:
    from evenhand.data.images import is_dicom

    keys: Mapping[str, str] = {}
    with suppress(ImageError):  # said when the image is read
        reference = find_reference(path)
        keys = reference.keys if reference else {}
    if path.lower().endswith(_NOT_DICOM) or {"axis", "window", "window_index", "scale"} & set(keys):
        return cell
    try:
        with open(file_behind(path), "rb") as stream:
            dicom = is_dicom(stream.read(132))
    except OSError:
        return cell
    return f"{cell}{'&' if keys else '#'}{key}" if dicom else cell


def rules_note(cells: Sequence[str]) -> list[str]:
    """One sentence about what is taken out of files, empty where every image is a file of its own; numbers that differ are left out.

    Example:
        >>> rules_note(["a.dcm#frame=3", "b.dcm#frame=3", "c.png", "d.nii#axis=2&slice=4", "d.nii#axis=2&slice=5"])
        ['4 images are taken out of files: 2 by axis=2 and slice=…; 2 by frame=3']
    """
    rules: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for cell in cells:
        if "#" in cell and "=" in cell.rpartition("#")[2]:
            keys = dict(part.partition("=")[::2] for part in cell.rpartition("#")[2].split("&"))
            rules.setdefault(tuple(keys), []).append(keys)
    if not rules:
        return []
    words = []
    for names, found in rules.items():
        values = {name: {keys[name] for keys in found} for name in names}
        shown = [f"{name}={next(iter(values[name])) if len(values[name]) == 1 else '…'}" for name in names]
        words.append(f"{len(found):,} by {', '.join(shown[:-1])}{' and ' if len(shown) > 1 else ''}{shown[-1]}")
    total = sum(map(len, rules.values()))
    verb = "image is" if total == 1 else "images are"
    return [f"{total:,} {verb} taken out of files: {'; '.join(sorted(words))}"]


def probe_reference(reference: Reference) -> Header:
    """As `evenhand.data.images.probe_image`.

    Raises:
        ImageError: missing, unreadable, or the reference does not fit the file.
    """
    from evenhand.data import images

    kind = _kind(reference)
    if kind == "parquet":
        return images.probe_bytes(_parquet_cell(reference))
    if kind == "pickle":
        array = _pickled(reference)
        return images.array_header(array.shape, array.dtype)
    if kind == "image":
        return images.probe_page(reference.path, reference.whole("frame"))
    if kind == "dicom" and "axis" not in reference.keys:
        from evenhand.data.dicom import dicom_bits_channels
        from evenhand.data.dicom_frames import frame_bits_channels

        if "frame" in reference.keys:
            return images.Header(*frame_bits_channels(reference.path, stamp(reference.path), _view(reference)))
        with open(reference.path, "rb") as stream:
            return images.Header(*dicom_bits_channels(stream, _view(reference)))
    from evenhand.data.volumes import Rule, open_volume

    return open_volume(reference, kind).header(Rule.of(reference))


def read_reference(reference: Reference) -> Pixels:
    """As `evenhand.data.images.read_image`.

    Raises:
        ImageError: missing, unreadable, or the reference does not fit the file.
    """
    from evenhand.data import images

    kind = _kind(reference)
    if kind == "parquet":
        return images.decode_image(_parquet_cell(reference))
    if kind == "pickle":
        return images.array_pixels(_pickled(reference))
    if kind == "image":
        return images.read_page(reference.path, reference.whole("frame"))
    if kind == "dicom" and "axis" not in reference.keys:
        from evenhand.data.dicom import decode_dicom
        from evenhand.data.dicom_frames import decode_frame

        if "frame" in reference.keys:
            return decode_frame(reference.path, stamp(reference.path), _view(reference))
        return decode_dicom(Path(reference.path).read_bytes(), _view(reference))
    from evenhand.data.volumes import Rule, open_volume

    return open_volume(reference, kind).picture(Rule.of(reference))


def stamp(path: str) -> tuple[int, int]:
    """Size and time of change, so that what is kept of a file is not used once the file is another."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def _kind(reference: Reference) -> str:
    path = reference.path
    if os.path.isdir(path):
        kind = "folder"
    else:
        if not os.path.exists(path):
            raise ImageError("file is missing")
        with open(path, "rb") as stream:
            kind = _kind_of_file(path, stream.read(132))
    odd = [key for key in reference.keys if key not in _ALLOWED[kind]]
    if odd:
        known = ", ".join(key for key in KEYS if key in _ALLOWED[kind])
        raise ImageError(f"'{odd[0]}' is not a key for {_WORDS[kind]}; its keys are {known}")
    return kind


def _kind_of_file(path: str, head: bytes) -> str:
    from evenhand.data.images import is_dicom

    if not head:
        raise ImageError("file is empty (0 bytes)")
    if head[:4] == b"PAR1":
        return "parquet"
    if path.lower().endswith(NIFTI):
        return "nifti"
    if is_dicom(head):
        return "dicom"
    if head[:6] == b"\x93NUMPY" or head[:4] == b"PK\x03\x04" or head[:8] == b"\x89HDF\r\n\x1a\n" or head[:6] == b"MATLAB":
        return "array"
    if path.lower().endswith((".pkl", ".pickle")):
        return "pickle"
    if path.lower().endswith((".mat", ".h5", ".hdf5", ".hdf")):
        return "array"
    return "image"


def _view(reference: Reference) -> Any:
    from evenhand.data.dicom import View

    if "window" in reference.keys and "window_index" in reference.keys:
        raise ImageError("a reference takes 'window' or 'window_index', not both")
    if "scale" in reference.keys:
        raise ImageError("'scale' is for volumes; a DICOM image takes 'window'")
    return View(reference.whole("frame"), reference.pair("window"), reference.whole("window_index"))


def _pickled(reference: Reference) -> Any:
    """One image of a pickle file, of which nothing is unpickled."""
    from evenhand.data.sources.safe_pickle import read_pickled_row

    row, colours = reference.whole("row"), reference.keys.get("colours")
    if row is None:
        raise ImageError("a reference into a pickle must give its row, as in '#row=0'")
    if colours not in (None, "bgr"):
        raise ImageError(f"colours is '{colours}', but must be bgr")
    array = read_pickled_row(reference.path, row)
    return array[..., ::-1] if colours and array.ndim == 3 and array.shape[2] == 3 else array


def _parquet_cell(reference: Reference) -> bytes:
    """The encoded image in a row of a parquet file."""
    from evenhand.data.parquet_cells import read_cell

    row = reference.whole("row")
    if row is None:
        raise ImageError("a reference into a parquet file must give its row, as in '#row=0&column=image'")
    return read_cell(reference.path, stamp(reference.path), reference.keys.get("column", "image"), row)
