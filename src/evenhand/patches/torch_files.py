"""Replacing tensors inside a torch file without unpickling anything else: every other byte of the file stays.

A torch file is a zip archive of uncompressed records: ``data.pkl`` says which tensor lies where in which ``data/K``. The pickle is
read with stand-ins for every class and function it names, so that nothing in it runs, and what cannot be read (an optimiser, an
object of another package) need not be written again.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evenhand.patches.bits import bits_of
from evenhand.patches.locate import Path

_PICKLE = "data.pkl"


class NotInPlaceError(Exception):
    """The file is of another form, or tensors share memory in a way that replacing one would change another."""


@dataclass(frozen=True)
class _Stored:
    """Where the pickle says that a tensor lies: record, first entry, shape and steps."""

    record: str
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether its entries lie one after the other, as they are counted."""
        expected = 1
        for side, step in zip(reversed(self.shape), reversed(self.steps), strict=True):
            if side != 1 and step != expected:
                return False
            expected *= side
        return True


class _Nothing:
    """Stands in for every object of the pickle that is no tensor and no plain container."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """As a list."""

    def extend(self, values: Any) -> None:
        """As a list."""


class _Reader(pickle.Unpickler):
    """Reads the places of tensors; no class and no function of the file is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, whatever was named."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return _parameter
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        """The record of a storage."""
        return str(pid[2])


def _tensor(record: Any, offset: Any, shape: Any, steps: Any, *more: Any) -> _Stored:
    return _Stored(str(record), int(offset), tuple(shape), tuple(steps))


def _parameter(tensor: Any, *more: Any) -> Any:
    return tensor


def replaced_in_place(data: bytes, new: Mapping[Path, Tensor]) -> bytes:
    """A torch file with the bytes of some tensors replaced.

    Args:
        data: the file.
        new: keys that lead to a tensor -> its new values, of the same type and shape.

    Raises:
        NotInPlaceError: it cannot be done this way.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            directory = archive.start_dir
            records = {info.filename: info for info in archive.infolist()}
            names = [name for name in records if name.rsplit("/", 1)[-1] == _PICKLE]
            content = _Reader(io.BytesIO(archive.read(names[0]))).load()
        root = names[0].removesuffix(_PICKLE)
        places = dict(_walk(content, ()))
        regions = {path: _region(places[path], tensor) for path, tensor in new.items()}
        _check_shared(places, regions, new)
        out = bytearray(data)
        for path, (record, start, end) in regions.items():
            begin, size = _span(data, records[f"{root}data/{record}"])
            if end > size:
                raise NotInPlaceError("a tensor lies outside its record")
            out[begin + start : begin + end] = bits_of(new[path]).numpy().tobytes()
        for record in sorted({region[0] for region in regions.values()}):
            _seal(out, records[f"{root}data/{record}"], directory)
        with zipfile.ZipFile(io.BytesIO(out)) as archive:
            if archive.testzip() is not None:
                raise NotInPlaceError("a record would be damaged")
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, IndexError, ValueError, TypeError, AttributeError, struct.error, EOFError,
            RecursionError, NotImplementedError) as error:
        raise NotInPlaceError(str(error)) from error
    return bytes(out)


def _walk(content: Any, path: Path) -> Iterator[tuple[Path, _Stored]]:
    if isinstance(content, _Stored):
        yield path, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _walk(value, (*path, key))
    elif isinstance(content, (list, tuple)):
        for key, value in enumerate(content):
            yield from _walk(value, (*path, key))


def _region(place: _Stored, tensor: Tensor) -> tuple[str, int, int]:
    if not place.in_order or place.shape != tuple(tensor.shape):
        raise NotInPlaceError("a tensor does not lie in order")
    start = place.offset * tensor.element_size()
    return place.record, start, start + tensor.numel() * tensor.element_size()


def _check_shared(places: Mapping[Path, _Stored], regions: Mapping[Path, tuple[str, int, int]], new: Mapping[Path, Tensor]) -> None:
    """Tensors that share a record are replaced only where each has its own part of it, or all get the same values."""
    by_record: dict[str, list[Path]] = {}
    for path, place in places.items():
        by_record.setdefault(place.record, []).append(path)
    for paths in by_record.values():
        touched = [path for path in paths if path in regions]
        if not touched or len(paths) == 1:
            continue
        spans = {regions[path] for path in touched}
        apart = all(a[2] <= b[1] for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False))
        same = all(bits_of(new[a]).equal(bits_of(new[b])) for a in touched for b in touched if regions[a] == regions[b])
        if len(touched) < len(paths) or not apart or not same:
            raise NotInPlaceError("tensors share memory")


def _span(data: bytes | bytearray, info: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and number of bytes of an uncompressed record."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise NotInPlaceError("a record is compressed")
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    return info.header_offset + 30 + name + extra, info.file_size


def _seal(out: bytearray, info: zipfile.ZipInfo, directory: int) -> None:
    """Write a record's new checksum wherever the archive keeps it: behind the record or before it, and in the directory."""
    begin, size = _span(out, info)
    checksum = struct.pack("<I", zlib.crc32(out[begin : begin + size]))
    if info.flag_bits & 0x08:
        place = begin + size + (4 if out[begin + size : begin + size + 4] == b"PK\x07\x08" else 0)
        out[place : place + 4] = checksum
    else:
        out[info.header_offset + 14 : info.header_offset + 18] = checksum
    here = directory
    while out[here : here + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<HHH", out, here + 28)
        if out[here + 46 : here + 46 + name].decode() == info.filename:
            out[here + 16 : here + 20] = checksum
            return
        here += 46 + name + extra + comment
    raise NotInPlaceError("the archive's directory lacks a record")
