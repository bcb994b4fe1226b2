"""Large packed files of many images, unpacked once beside the cache that is being built, so that no process holds one in memory.

A compressed ``.npz`` or ``.mat`` array and a large row group of a parquet file can only be read from their beginning on. Where they take
more than `MANY` bytes (one volume: `ONE`), their values are written as a plain ``.npy``, or as a parquet file of small row groups, a block
at a time; all workers then map that file into memory or read the one group they need. Smaller ones are unpacked by the worker that
reads them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from evenhand.data import parquet_cells, volumes
from evenhand.data.references import Reference, find_reference
from evenhand.errors import ImageError
from evenhand.files import disk_errors

FOLDER = "unpacked"
MANY = 1 << 28
"""Bytes from which an array of many images, or a row group, is unpacked to disk."""
ONE = 1 << 30
"""Bytes from which one volume is."""
_BLOCK = 1 << 24
_DENSEST = 1100
"""No packed byte becomes more than about 1,032."""


@dataclass
class Large:
    """A packed array, or a column of a parquet file.

    Attributes:
        path: of the file.
        name: of the array or column, None where the references give none.
        target: where it is unpacked.
        n_bytes: what it takes there.
        rows: position in the files -> reference.
    """

    path: str
    name: str | None
    target: Path
    n_bytes: int
    rows: dict[int, Reference] = field(default_factory=dict)


def find_large(names: Sequence[str], folder: Path) -> list[Large]:
    """What is to be unpacked into a folder, the same on every machine that sees the files.

    Args:
        names: image files and references, in row order.
        folder: where the unpacked files will be.
    """
    groups: dict[tuple[str, str | None], dict[int, Reference]] = {}
    for position, name in enumerate(names):
        if "#" in name:
            with suppress(ImageError):  # said when the image is read
                reference = find_reference(name)
                if reference is not None and ("row" in reference.keys or "axis" in reference.keys):
                    member = reference.keys.get("array") or reference.keys.get("column")
                    groups.setdefault((reference.path, member), {})[position] = reference
    found = []
    for (path, member), rows in groups.items():
        least = MANY if any("row" in reference.keys for reference in rows.values()) else ONE
        with suppress(ImageError, OSError):
            state = os.stat(path)
            if state.st_size * _DENSEST >= least and os.path.isfile(path):
                n_bytes, ending = _size(path, member, least)
                if n_bytes:
                    mark = f"{min(rows)}\0{os.path.basename(path)}\0{state.st_size}\0{state.st_mtime_ns}\0{member}"
                    target = folder / (hashlib.blake2b(mark.encode(errors="surrogateescape"), digest_size=8).hexdigest() + ending)
                    found.append(Large(path, member, target, n_bytes, rows))
    return found


def _size(path: str, name: str | None, least: int) -> tuple[int, str]:
    """Bytes once unpacked, 0 where it need not be; and the ending of the unpacked file."""
    with open(path, "rb") as stream:
        parquet = stream.read(4) == b"PAR1"
    if parquet:
        with volumes.Readable():
            largest, every = parquet_cells.column_bytes(path, name or "image")
        return (every if largest >= least else 0), ".parquet"
    n_bytes = volumes.packed_bytes(path, name)
    return (n_bytes if n_bytes >= least else 0), ".npy"


def placed(names: Sequence[str], large: Sequence[Large]) -> list[str]:
    """The files with references into those that have been unpacked."""
    result = list(names)
    for part in large:
        if part.target.exists():
            drop = {"array"} if part.target.suffix == ".npy" else set()
            for position, reference in part.rows.items():
                keys = "&".join(f"{key}={value}" for key, value in reference.keys.items() if key not in drop)
                result[position] = f"{part.target}#{keys}"
    return result


def unpack(large: Large, advance: Callable[[int], None]) -> None:
    """Write one unpacked file, whole or not at all.

    Args:
        large: what is unpacked.
        advance: told the bytes that are written.

    Raises:
        ImageError: the file is damaged.
        DiskFullError: no room.
    """
    with disk_errors(large.target):
        large.target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=large.target.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            out = _Written(file, large.target)
            with volumes.Readable():
                _write(large, out, advance)
            out.sync()
        with suppress(FileNotFoundError):  # swept by a process that took this one for dead, and unpacks it itself
            os.replace(scratch, large.target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


def sweep(folder: Path) -> None:
    """Remove what killed processes have begun to unpack: it may take the room that is needed to begin again."""
    for scratch in folder.glob("*.tmp"):
        with suppress(OSError):
            scratch.unlink()


class _Written:
    """A file whose errors of writing are told from those of reading.

    Args:
        file: is written to.
        path: named in errors.
    """

    closed = False

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def write(self, data: bytes) -> int:
        """As a file does."""
        with disk_errors(self._path):
            return self._file.write(data)

    def flush(self) -> None:
        """As a file does."""
        with disk_errors(self._path):
            self._file.flush()

    def tell(self) -> int:
        """As a file does."""
        return self._file.tell()

    def sync(self) -> None:
        """What was written outlasts a power cut."""
        self.flush()
        with disk_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing: the owner closes the file."""


def _write(large: Large, out: _Written, advance: Callable[[int], None]) -> None:
    if large.target.suffix == ".parquet":
        parquet_cells.write_small_groups(large.path, large.name or "image", cast(BinaryIO, out), advance)
    elif zipfile.is_zipfile(large.path):
        member = volumes.npz_member(large.path, large.name)[0]
        with zipfile.ZipFile(large.path) as archive, archive.open(member) as stream:
            while block := stream.read(_BLOCK):  # a member is an .npy file
                out.write(block)
                advance(len(block))
    else:
        array = volumes.matlab_array(large.path, large.name)
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": True, "shape": array.shape}
        np.lib.format.write_array_header_1_0(out, header)
        for values in array.blocks(large.path, _BLOCK // array.dtype.itemsize):
            out.write(values.tobytes())
            advance(values.nbytes)


def forget() -> None:
    """Let go of the files that this process has read last: a removed file takes its space until nobody has it open."""
    volumes.forget()
    parquet_cells.forget()


def remove(folder: Path) -> None:
    """Remove what was unpacked."""
    if folder.exists():
        forget()
        shutil.rmtree(folder, ignore_errors=True)
