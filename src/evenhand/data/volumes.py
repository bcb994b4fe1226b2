"""Pictures out of volumes: one slice or one projection of a three-axis array, on a stated scale of values.

The grammar is in `evenhand.data.references`. An array is opened without its values where the format allows it (HDF5, ``.npy``, an
uncompressed ``.npz``, an uncompressed NIfTI file, a DICOM series), and then only the slice is read; else the last array opened is kept,
so that the next rows of a table that lie in the same file do not decode it again. Packed arrays that are too large for that are
unpacked beside the cache that is being built (`evenhand.data.unpacking`).
"""

from __future__ import annotations

import math
import mmap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from evenhand.errors import DependencyError, EvenhandError, ImageError, nearest
from evenhand.optional import require

if TYPE_CHECKING:
    from evenhand.data.images import Header, Pixels
    from evenhand.data.matlab5 import MatlabArray
    from evenhand.data.references import Reference

Array = npt.NDArray[Any]
Index = tuple[Any, ...]
PERCENTILES = (0.5, 99.5)
_BLOCK = 1 << 25


class Stack(Protocol):
    """An array whose values may still be in a file; an index is a tuple of numbers and slices without a step, one an axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, index: Index) -> Any: ...


class Late:
    """A stack whose shape is known, and whose values are read all together when the first are asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, load: Callable[[], Array]) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.dtype = np.dtype(dtype)
        self._load = load
        self._values: Array | None = None

    def __getitem__(self, index: Index) -> Any:
        if self._values is None:
            self._values = np.asarray(self._load()).reshape(self.shape)
        return self._values[index]


class Turned:
    """A stack with its axes in another order, some of them backwards.

    Args:
        stack: the stored array.
        order: axis of the result -> stored axis; stored axes of length 1 that are not named are left out.
        backwards: axis of the result -> whether it runs against the stored one.
    """

    def __init__(self, stack: Stack, order: tuple[int, ...], backwards: tuple[bool, ...]) -> None:
        self._stack, self._order, self._backwards = stack, order, backwards
        self.shape = tuple(stack.shape[axis] for axis in order)
        self.dtype = stack.dtype

    def __getitem__(self, index: Index) -> Any:
        inner: list[Any] = [0] * len(self._stack.shape)
        for part, axis, backwards, n in zip(index, self._order, self._backwards, self.shape, strict=True):
            if isinstance(part, slice):
                start, stop, _ = part.indices(n)
                inner[axis] = slice(n - stop, n - start) if backwards else slice(start, stop)
            else:
                inner[axis] = n - 1 - part if backwards else part
        values = np.asarray(self._stack[tuple(inner)])
        parts = zip(index, self._order, self._backwards, strict=True)
        kept = [(axis, backwards) for part, axis, backwards in parts if isinstance(part, slice)]
        stored = sorted(axis for axis, _ in kept)
        values = values.transpose([stored.index(axis) for axis, _ in kept])
        return values[tuple(slice(None, None, -1) if backwards else slice(None) for _, backwards in kept)]


@dataclass(frozen=True)
class Rule:
    """What is taken of an array, and how its values become grey.

    Attributes:
        row: index on the first axis, before everything else.
        axis: the axis of the volume that is taken away; None: the array is an image.
        at: which slice; None: the middle one, or a projection.
        project: ``max``, ``mean`` or None.
        ends: (black, white), ``percentile``, or None: the array holds pixels.
        upright: canonical axes, and the picture stands upright.
    """

    row: int | None = None
    axis: int | None = None
    at: int | None = None
    project: Literal["max", "mean"] | None = None
    ends: tuple[float, float] | Literal["percentile"] | None = None
    upright: bool = False

    @classmethod
    def of(cls, reference: Reference) -> Rule:
        """The rule in a reference's keys.

        Raises:
            ImageError: keys that do not go together, or an impossible value.
        """
        keys = reference.keys
        axis, orient, project = reference.whole("axis"), keys.get("orient"), keys.get("project")
        if axis is not None and axis > 2:
            raise ImageError(f"axis is {axis}, but must be 0, 1 or 2")
        if project not in (None, "max", "mean"):
            raise ImageError(f"project is '{project}', but must be max or mean")
        if orient not in (None, "ras"):
            raise ImageError(f"orient is '{orient}', but must be ras")
        if (axis is not None) != (("slice" in keys) != (project is not None)) or (axis is None and "slice" in keys):
            raise ImageError("a volume needs 'axis' with either 'slice' or 'project', as in '#axis=0&slice=middle'")
        if "window" in keys and "scale" in keys:
            raise ImageError("a reference takes 'window' or 'scale', not both")
        at = None if keys.get("slice") == "middle" else reference.whole("slice")
        return cls(reference.whole("row"), axis, at, cast(Any, project), _ends(reference), orient == "ras")


def _ends(reference: Reference) -> tuple[float, float] | Literal["percentile"] | None:
    if reference.keys.get("scale") == "percentile":
        return "percentile"
    window, ends = reference.pair("window"), reference.pair("scale")
    if window is not None:
        ends = window[0] - window[1] / 2, window[0] + window[1] / 2
    if ends is not None and not ends[0] < ends[1]:
        raise ImageError(f"black is {ends[0]:g} and white {ends[1]:g}, but white must be above black")
    return ends


class Volume:
    """An opened array.

    Args:
        stack: its values.
        canonical: the axes to the right, front and top of the patient, where the format tells them.
        inverted: small values are white (MONOCHROME1).
    """

    def __init__(self, stack: Stack, canonical: Stack | None = None, inverted: bool = False) -> None:
        self.stack, self.canonical, self.inverted = stack, canonical, inverted
        self._percentiles: tuple[int | None, tuple[float, float]] | None = None

    def header(self, rule: Rule) -> Header:
        """Bits and channels of the picture; its values are not read.

        Raises:
            ImageError: the rule does not fit the array.
        """
        from evenhand.data.images import Header, array_header

        stack, shape = self._fit(rule)
        if rule.ends is not None or rule.project == "mean":
            return Header(16, array_header(shape, np.dtype(np.uint8)).channels)
        return array_header(shape, _storable(stack.dtype))

    def picture(self, rule: Rule) -> Pixels:
        """The pixels.

        Raises:
            ImageError: the rule does not fit the array, or its values cannot be read.
        """
        from evenhand.data.images import array_pixels

        stack, _ = self._fit(rule)
        _let_go(stack)
        lead: Index = () if rule.row is None else (rule.row,)
        with Readable():
            values = self._values(stack, lead, rule)
            ends = self._spread(stack, lead, rule) if rule.ends == "percentile" else rule.ends
        if ends is None and rule.project == "mean" and stack.dtype.kind in "bu":
            ends = 0.0, 1.0 if stack.dtype.kind == "b" else float(np.iinfo(stack.dtype).max)
        if ends is not None:
            low, high = ends
            grey = np.nan_to_num(np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0), nan=0.0)
            values = np.rint((1.0 - grey if self.inverted else grey) * 65535.0).astype(np.uint16)
        elif values.dtype.kind == "f":
            values = np.nan_to_num(values, nan=0.0)
        pixels = array_pixels(values.astype(_storable(values.dtype), copy=False))
        return np.rot90(pixels).copy() if rule.upright else pixels

    def _fit(self, rule: Rule) -> tuple[Stack, tuple[int, ...]]:
        """The array that the rule is about, and the shape of what it takes."""
        stack = self.stack
        if rule.upright:
            if self.canonical is None:
                raise ImageError("orient=ras needs a NIfTI file with an sform or qform: this file does not tell how it lies in the patient")
            stack = self.canonical
        shape = tuple(stack.shape)
        if rule.row is not None:
            if not shape or rule.row >= shape[0]:
                raise ImageError(f"row {rule.row} is out of range, the array has shape {shape}")
            shape = shape[1:]
        if rule.axis is None:
            if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3) and shape[0] not in (1, 3)):
                row = "" if rule.row is not None or len(shape) < 3 else ", or '#row=0' where its first axis counts images"
                raise ImageError(f"array has shape {shape} and is no image; say which slice, as in '#axis=0&slice=middle'{row}")
        elif len(shape) != 3:
            raise ImageError(f"array has shape {shape}, but a volume has three axes{'; give its row' if len(shape) == 4 else ''}")
        else:
            if rule.at is not None and rule.at >= shape[rule.axis]:
                raise ImageError(f"slice {rule.at} is out of range, axis {rule.axis} has {shape[rule.axis]} slices")
            if 0 in shape:
                raise ImageError(f"array is empty, its shape is {shape}")
            shape = shape[: rule.axis] + shape[rule.axis + 1 :]
        kind = stack.dtype.kind
        if kind not in "buif" or (rule.ends is None and kind == "i") or (rule.ends is None and kind == "u" and stack.dtype.itemsize > 2):
            advice = "; give window=CENTRE,WIDTH or scale=LOW,HIGH (or scale=percentile)" if kind in "buif" else " and holds no numbers"
            raise ImageError(f"array has type {stack.dtype}{advice}")
        return stack, shape

    def _values(self, stack: Stack, lead: Index, rule: Rule) -> Array:
        shape = stack.shape[len(lead) :]
        if rule.axis is None:
            return np.asarray(stack[lead + (slice(None),) * len(shape)])
        if rule.project is not None:
            return _projected(stack, lead, rule.axis, rule.project)
        at = shape[rule.axis] // 2 if rule.at is None else rule.at
        index: list[Any] = [slice(None)] * 3
        index[rule.axis] = at
        return np.asarray(stack[lead + tuple(index)])

    def _spread(self, stack: Stack, lead: Index, rule: Rule) -> tuple[float, float]:
        """The percentiles of the whole volume, kept for its next slice."""
        if self._percentiles is None or self._percentiles[0] != rule.row:
            values = np.asarray(stack[lead + (slice(None),) * (len(stack.shape) - len(lead))])
            values = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
            low, high = np.percentile(values, PERCENTILES) if len(values) else (0.0, 0.0)
            if not low < high:
                raise ImageError(f"the 0.5 and 99.5 percentile of the volume are both {low:g}, so it has no scale")
            self._percentiles = rule.row, (float(low), float(high))
        return self._percentiles[1]


def _let_go(stack: Stack) -> None:
    """Of a mapped file keep no pages of earlier pictures: the system has them cached, and the process should not grow with the file."""
    pages = getattr(stack, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def _projected(stack: Stack, lead: Index, axis: int, how: str) -> Array:
    """Maximum or mean along an axis, NaN left out, by blocks of the volume's first axis."""
    shape = stack.shape[len(lead) :]
    step = max(1, _BLOCK // max(1, shape[1] * shape[2]))
    spans = (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
    blocks = (np.asarray(stack[(*lead, span, slice(None), slice(None))]) for span in spans)
    if how == "max":
        tops = [np.fmax.reduce(block, axis=axis) for block in blocks]
        return np.asarray(np.fmax.reduce(np.stack(tops), axis=0) if axis == 0 else np.concatenate(tops))
    sums, counts = [], []
    for block in blocks:
        known = ~np.isnan(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
        sums.append(np.where(known, block, 0).sum(axis, dtype=np.float64))
        counts.append(known.sum(axis))
    total, count = (np.sum(parts, axis=0) if axis == 0 else np.concatenate(parts) for parts in (sums, counts))
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In the byte order of this machine."""
    return dtype.newbyteorder("=")


class Readable:
    """What the libraries raise on damaged files, each its own classes, in one line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DependencyError):
            raise ImageError(error.summary) from error
        if isinstance(error, Exception) and not isinstance(error, (EvenhandError, MemoryError)):
            lines = str(error).strip().splitlines()
            raise ImageError(f"cannot be read ({lines[0].strip() if lines else type(error).__name__})") from error


def open_volume(reference: Reference, kind: str) -> Volume:
    """The array that a reference is about.

    Args:
        reference: a path, with the key ``array`` where it needs one.
        kind: ``array``, ``nifti``, ``dicom`` or ``folder``.

    Raises:
        ImageError: unreadable, no such array, or the library that reads it is not installed.
    """
    from evenhand.data.references import stamp

    with Readable():
        return _open(reference.path, stamp(reference.path), kind, reference.keys.get("array"))


@lru_cache(maxsize=1)
def _open(path: str, mark: tuple[int, int], kind: str, name: str | None) -> Volume:
    if kind == "nifti":
        return _nifti(path)
    if kind in ("dicom", "folder"):
        from evenhand.data.dicom_series import DicomFrames, DicomSeries

        series = DicomSeries(path) if kind == "folder" else DicomFrames(path)
        return Volume(series, inverted=series.inverted)
    with open(path, "rb") as stream:
        head = stream.read(8)
    if head[:6] == b"\x93NUMPY":
        if name is not None:
            raise ImageError(f"an .npy file holds one array without a name, but the reference asks for '{name}'")
        return Volume(np.load(path, mmap_mode="r", allow_pickle=False))
    if head[:4] == b"PK\x03\x04":
        return Volume(_npz(path, name))
    if head[:6] == b"MATLAB" and not _is_hdf5(path):
        return Volume(_matlab(path, name))
    return Volume(_hdf5(path, name))


def _choose(names: list[str], name: str | None) -> str:
    if not names:
        raise ImageError("the file holds no array")
    if name is None:
        if len(names) == 1 or "image" in names:
            return names[0] if len(names) == 1 else "image"
        raise ImageError(f"the file holds the arrays {', '.join(names[:20])}; say which, as in '#array={names[0]}'")
    if name not in names:
        raise ImageError(f"the file has no array '{name}'; {nearest(name, names[:50])}")
    return name


def packed_bytes(path: str, name: str | None) -> int:
    """What an array of an ``.npz`` or ``.mat`` file takes once it is unpacked; 0 where its values are read in place.

    Raises:
        ImageError: unreadable, or no such array.
    """
    with Readable(), open(path, "rb") as stream:
        head = stream.read(6)
        if head[:4] == b"PK\x03\x04":
            member, _, _, dtype, _ = npz_member(path, name)
            return 0 if member.compress_type == zipfile.ZIP_STORED or dtype.hasobject else member.file_size
        if head != b"MATLAB" or _is_hdf5(path):
            return 0
        array = matlab_array(path, name)
        return 0 if array.in_place else array.n_bytes


def npz_member(path: str, name: str | None) -> tuple[zipfile.ZipInfo, tuple[int, ...], bool, np.dtype[Any], int]:
    """An array of an ``.npz`` file: its member, shape, whether the first axis runs fastest, type, and where its values begin in it."""
    from evenhand.data.images import numpy_header

    with zipfile.ZipFile(path) as archive:
        members = {member.removesuffix(".npy"): member for member in archive.namelist() if member.endswith(".npy")}
        member = archive.getinfo(members[_choose(list(members), name)])
        with archive.open(member) as stream:
            shape, fortran, dtype = numpy_header(cast(Any, stream))
            start = stream.tell()
    if not dtype.hasobject and member.file_size - start != math.prod(shape) * dtype.itemsize:
        raise ImageError(f"array '{member.filename}' has shape {shape}, but its values do not fill it")
    return member, shape, fortran, dtype, start


def _npz(path: str, name: str | None) -> Stack:
    member, shape, fortran, dtype, start = npz_member(path, name)
    if dtype.hasobject:
        raise ImageError("the array holds Python objects, which are not loaded: they could run code")
    if member.compress_type == zipfile.ZIP_STORED and 0 not in shape:
        with open(path, "rb") as file:
            file.seek(member.header_offset)
            local = file.read(30)
        start += member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        return cast(Stack, np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C"))

    def load() -> Array:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[member.filename.removesuffix(".npy")])

    return Late(shape, dtype, load)


def matlab_array(path: str, name: str | None) -> MatlabArray:
    """An array of a MATLAB file before 7.3."""
    from evenhand.data.matlab5 import matlab_arrays

    found = {known: array for known, array in matlab_arrays(path).items() if math.prod(array.shape) > 1}
    return found[_choose(list(found), name)]


def _matlab(path: str, name: str | None) -> Stack:
    array = matlab_array(path, name)
    if array.in_place:
        return cast(Stack, np.memmap(path, array.stored, "r", array.start, array.shape, "F"))
    return Late(array.shape, array.dtype, lambda: array.read(path))


def forget() -> None:
    """Let go of the last file that was read."""
    _open.cache_clear()


def _is_hdf5(path: str) -> bool:
    with open(path, "rb") as stream:
        return any(stream.seek(place) == place and stream.read(8) == b"\x89HDF\r\n\x1a\n" for place in (0, 512, 1024, 2048))


def _hdf5(path: str, name: str | None) -> Stack:
    """MATLAB 7.3 files are HDF5 with the axes turned round: here they come back in MATLAB's order."""
    h5py: Any = require("h5py", "volumes", "Reading HDF5 and MATLAB 7.3 files")
    file = h5py.File(path, "r")
    names: list[str] = []

    def note(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim > 1 and not key.startswith("#"):
            names.append(key)

    file.visititems(note)
    data = cast(Any, file[_choose(names, name.strip("/") if name else None)])
    matlab = "MATLAB_class" in data.attrs
    logical = matlab and bytes(data.attrs["MATLAB_class"]) == b"logical"
    stack: Stack = _Truth(data) if logical else data
    return Turned(stack, tuple(reversed(range(data.ndim))), (False,) * data.ndim) if matlab else stack


def _nifti(path: str) -> Volume:
    nibabel: Any = require("nibabel", "volumes", "Reading NIfTI and Analyze volumes")
    image = nibabel.load(path)
    proxy: Any = image.dataobj
    shape = tuple(image.shape)
    kept = tuple(axis for axis in range(len(shape)) if axis < 3 or shape[axis] != 1)
    scaled = getattr(proxy, "slope", 1) != 1 or getattr(proxy, "inter", 0) != 0
    dtype = np.dtype(np.float32) if scaled else _storable(np.dtype(image.get_data_dtype()))
    if path.lower().endswith(("gz", "mgz")):
        stack: Stack = Late(shape, dtype, lambda: np.asarray(proxy).astype(dtype))
    else:
        stack = _Proxy(shape, dtype, proxy)
    if len(kept) < len(shape):
        stack = Turned(stack, kept, (False,) * len(kept))
    if len(kept) != 3 or not isinstance(image, (nibabel.Nifti1Pair, nibabel.MGHImage)):
        return Volume(stack)
    if isinstance(image, nibabel.Nifti1Pair) and not (image.header["sform_code"] or image.header["qform_code"]):
        return Volume(stack)  # the library would make up an orientation
    codes = nibabel.io_orientation(image.affine)
    if np.isnan(codes).any():  # an affine that turns two axes into one
        return Volume(stack)
    order = tuple(int(np.flatnonzero(codes[:, 0] == axis)[0]) for axis in range(3))
    return Volume(stack, Turned(stack, order, tuple(bool(codes[axis, 1] < 0) for axis in order)))


class _Truth:
    """A stack of numbers, of which those that are not 0 are true."""

    def __init__(self, stack: Stack) -> None:
        self.shape, self.dtype, self._stack = tuple(stack.shape), np.dtype(bool), stack

    def __getitem__(self, index: Index) -> Any:
        return np.asarray(self._stack[index]) != 0


class _Proxy:
    """nibabel's array proxy, which reads what an index asks for."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], proxy: Any) -> None:
        self.shape, self.dtype, self._proxy = shape, dtype, proxy

    def __getitem__(self, index: Index) -> Any:
        return np.asarray(self._proxy[index]).astype(self.dtype)
