"""Numeric arrays of MATLAB files before 7.3, where their values lie and in which type, so that they can be read a block at a time.

Only what is needed for that is followed: plain numeric and logical arrays of the top level, packed (one zlib stream an array) or not.
A file writes values in a type as small as holds them, whatever the array's class: 0 to 255 of class double lie there as bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from evenhand.errors import ImageError

_PACKED, _MATRIX = 15, 14
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_LOGICAL, _COMPLEX = 0x200, 0x800
_STEP = 1 << 16
_BLOCK = 1 << 20


@dataclass(frozen=True)
class MatlabArray:
    """Where an array lies.

    Attributes:
        name: of the variable.
        shape: as MATLAB shows it; the first axis runs fastest.
        dtype: of its class.
        stored: in which its values are written.
        packed: the values are in a zlib stream.
        start: where the values begin in the file, or the stream that holds them.
        skip: bytes of the stream before the values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    packed: bool
    start: int
    skip: int

    @property
    def in_place(self) -> bool:
        """Whether the values can be used as they lie in the file."""
        return not self.packed and self.stored == self.dtype.newbyteorder(self.stored.byteorder)

    @property
    def n_bytes(self) -> int:
        """What the array takes once it is unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, path: str) -> npt.NDArray[Any]:
        """All values.

        Raises:
            ImageError: as `blocks`.
        """
        values = np.empty(math.prod(self.shape), self.dtype)
        done = 0
        for block in self.blocks(path, _BLOCK):
            values[done : done + len(block)] = block
            done += len(block)
        return values.reshape(self.shape, order="F")

    def blocks(self, path: str, n_values: int) -> Iterator[npt.NDArray[Any]]:
        """The values in the order of the file, in the type of the class, at most so many at a time.

        Raises:
            ImageError: the file is cut off or damaged.
        """
        left = math.prod(self.shape)
        with open(path, "rb") as file:
            file.seek(self.start)
            stream: Any = _Unpacked(file) if self.packed else file
            stream.read(self.skip)
            while left:
                n = min(left, n_values)
                data = stream.read(n * self.stored.itemsize)
                if len(data) < n * self.stored.itemsize:
                    raise ImageError(f"the file is cut off in the array '{self.name}'")
                yield np.frombuffer(data, self.stored).astype(self.dtype)
                left -= n
            if self.packed and not stream.ends():
                raise ImageError(f"the file is damaged after the array '{self.name}'")


class _Unpacked:
    """What a zlib stream holds, from its start on.

    Args:
        file: stands where the stream begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._unpacker = file, zlib.decompressobj()

    def read(self, n: int) -> bytes:
        """The next n bytes; fewer where the stream ends."""
        parts: list[bytes] = []
        while n > 0 and not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._file.read(_STEP)
            parts.append(self._unpacker.decompress(packed, n))
            if not packed and not parts[-1]:
                break
            n -= len(parts[-1])
        return b"".join(parts)

    def ends(self) -> bool:
        """Whether the stream ends within the next bytes, with the right checksum."""
        self.read(16)
        return self._unpacker.eof


def matlab_arrays(path: str) -> dict[str, MatlabArray]:
    """The plain arrays of a file by name: not complex, sparse, or of anything but numbers.

    Raises:
        ImageError: the file is damaged, or of no such version.
    """
    found: dict[str, MatlabArray] = {}
    with open(path, "rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
        if order is None:
            raise ImageError("the MATLAB file has no readable header")
        try:
            while head := file.read(8):
                kind, n_bytes = (int(value) for value in np.frombuffer(head, f"{order}u4"))
                start = file.tell()
                array = _array(file, order, start, kind == _PACKED) if kind in (_PACKED, _MATRIX) else None
                if array is not None and array.name:
                    found[array.name] = array
                file.seek(start + n_bytes)
        except (ValueError, IndexError, zlib.error) as error:
            raise ImageError(f"the MATLAB file is damaged ({error})") from error
    return found


def _array(file: BinaryIO, order: str, start: int, packed: bool) -> MatlabArray | None:
    """The array that begins here, None where it is of another kind."""
    reader = _Elements(_Unpacked(file) if packed else file, order)
    if packed and reader.tag()[0] != _MATRIX:
        return None
    flags = int(np.frombuffer(reader.element(), f"{order}u4")[0])
    dtype = _CLASSES.get(flags & 0xFF)
    if dtype is None or flags & _COMPLEX:
        return None
    shape = tuple(int(side) for side in np.frombuffer(reader.element(), f"{order}i4"))
    name = reader.element().decode("latin-1")
    kind, n_bytes = reader.tag()
    stored = np.dtype(order + _STORED[kind]) if kind in _STORED else None
    if stored is None or n_bytes != math.prod(shape) * stored.itemsize:
        raise ImageError(f"array '{name}' has shape {shape}, but its values do not fill it")
    values = np.dtype(bool) if flags & _LOGICAL else np.dtype(dtype)
    place, skip = (start, reader.done) if packed else (start + reader.done, 0)
    return MatlabArray(name, shape, values, stored, packed, place, skip)


class _Elements:
    """The elements of an array, one after the other."""

    def __init__(self, stream: Any, order: str) -> None:
        self._stream, self._order, self._small = stream, order, False
        self.done = 0

    def tag(self) -> tuple[int, int]:
        """Kind and length of the element that comes next; one of at most four bytes lies in the tag itself."""
        head = self._take(4)
        word = int(np.frombuffer(head, f"{self._order}u4")[0])
        self._small = bool(word >> 16)
        if self._small:
            return word & 0xFFFF, word >> 16
        return word, int(np.frombuffer(self._take(4), f"{self._order}u4")[0])

    def element(self) -> bytes:
        """The content of the next element."""
        _, n_bytes = self.tag()
        data = self._take(4 if self._small else -(-n_bytes // 8) * 8)
        return data[:n_bytes]

    def _take(self, n_bytes: int) -> bytes:
        if n_bytes > _STEP:
            raise ValueError("a header of that length")
        data: bytes = self._stream.read(n_bytes)
        if len(data) < n_bytes:
            raise ValueError("it is cut off")
        self.done += n_bytes
        return data
