"""Image arrays in a pickle file, found and read without unpickling anything: no name in the file is imported, no function is called.

A pickle is a small program, and running one that a stranger has written gives him the machine. Here the program is only followed: the
opcodes that build lists, tuples, numbers, texts, bytes and NumPy arrays are understood, the bytes of every array are located in the file,
and everything else is refused by its name. An array is read from its place when it is asked for, so that a stack of many gigabytes is
never held in memory.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evenhand.errors import ImageError

NAMES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct",), "numpy._core.multiarray": ("_reconstruct",),
        "numpy.core.numeric": ("_frombuffer",), "numpy._core.numeric": ("_frombuffer",),
    }.items()
    for name in names
)
"""What may be named: the four words that a pickled array consists of. They are recognised, never called."""
_LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = ("PROTO", "FRAME", "STOP", "MARK", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET",
           "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD")
_FOLLOWED = frozenset((*_LENGTHS, *_NUMBERS, *_CONSTANTS, *_TUPLES, *_OTHERS))
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_OLD = "the pickle is of an old protocol; write it again with pickle.dump(images, file, protocol=4)"


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Where bytes lie in the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Name:
    """A module's attribute that the pickle names."""

    text: str


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = "|"

    def numpy(self) -> np.dtype[Any]:
        try:
            dtype = np.dtype((self.order if self.order in ("<", ">") else "") + self.code)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind not in "buif":
            raise ImageError(f"the pickle holds an array of type '{self.code}', but only numbers are read")
        return dtype


@dataclass(slots=True)
class _Array:
    dtype: _Dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: _Bytes | None = None


class PickledArrays(Sequence[npt.NDArray[Any]]):
    """The arrays of a pickle file that holds a list of arrays, or one stack of them along its first axis.

    Args:
        path: the file.

    Raises:
        ImageError: the file is missing, cut off, or holds anything but arrays; what it holds is named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ImageError("file is missing") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"file cannot be opened ({error})") from error
        found = _Follower(self._map).result()
        self._stack = isinstance(found, _Array)
        items = list(found) if isinstance(found, (list, tuple)) else [found]
        arrays = [item for item in items if isinstance(item, _Array)]
        if len(arrays) < len(items):
            raise ImageError(f"the pickle holds {_word(found, items)}, but must hold a list of image arrays, or one array of images")
        kinds: dict[_Kind, int] = {}
        places = [(kinds.setdefault(kind, len(kinds)), offset) for kind, offset in (_checked(item, len(self._map)) for item in arrays)]
        self._kinds = list(kinds)
        self._kind_of, self._offsets = np.array(places, np.int64).reshape(-1, 2).T
        if self._stack and len(self._kinds[0].shape) < 3:
            raise ImageError(f"the pickle holds an array of shape {self._kinds[0].shape}, but must hold one of (n, h, w) or (n, h, w, c)")

    def __len__(self) -> int:
        return self._kinds[0].shape[0] if self._stack else len(self._offsets)

    def __getitem__(self, row: Any) -> Any:
        """One array, read from its place in the file."""
        if not 0 <= row < len(self):
            raise ImageError(f"row {row} is out of range, the pickle has {len(self)} images")
        place = 0 if self._stack else row
        kind = self._kinds[self._kind_of[place]]
        values = np.frombuffer(self._map, kind.dtype, math.prod(kind.shape), int(self._offsets[place]))
        values = values.reshape(kind.shape, order="F" if kind.fortran else "C")
        return np.array(values[row] if self._stack else values)


class _Kind(NamedTuple):
    """What many arrays of a file have in common."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


def read_pickled_row(path: str | os.PathLike[str], row: int) -> npt.NDArray[Any]:
    """One image of a pickle file; the places of all are kept for the next call.

    Raises:
        ImageError: as `PickledArrays`, or there is no such row.
    """
    return np.asarray(open_pickled(path)[row])


def open_pickled(path: str | os.PathLike[str]) -> PickledArrays:
    """The arrays of a pickle file; a file that has not changed is looked through once in a process.

    Raises:
        ImageError: as `PickledArrays`.
    """
    try:
        state = os.stat(path)
    except OSError:
        raise ImageError("file is missing") from None
    return _opened(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: str, size: int, changed: int) -> PickledArrays:
    return PickledArrays(path)


def _word(found: Any, items: Sequence[Any]) -> str:
    if isinstance(found, (list, tuple)):
        other = next(item for item in items if not isinstance(item, _Array))
        return f"a list with {'bytes' if isinstance(other, _Bytes) else type(other).__name__} in it"
    return "bytes" if isinstance(found, _Bytes) else type(found).__name__


def _checked(array: _Array, size: int) -> tuple[_Kind, int]:
    """An array's kind and where its values begin; they must fill it and lie in the file."""
    if array.dtype is None or array.data is None:
        raise ImageError("the pickle holds an array without values")
    dtype, n = array.dtype.numpy(), 1
    for side in array.shape:
        if not isinstance(side, int) or side < 0:
            raise ImageError("the pickle holds an array whose shape is not made of numbers")
        n *= side
    if n * dtype.itemsize != array.data.length or array.data.offset + array.data.length > size:
        raise ImageError(f"the pickle holds an array of shape {array.shape} whose values do not fill it")
    return _Kind(dtype, array.shape, array.fortran), array.data.offset


class _Follower:
    """Follows the opcodes of a pickle with a stack and a memo, as an unpickler does, but makes only descriptions."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def result(self) -> Any:
        """The description of what an unpickler would return."""
        try:
            for name, argument in self._opcodes():
                if name == "STOP":
                    return self.stack.pop()
                self._step(name, argument)
        except ImageError:
            raise
        except (IndexError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ImageError("the file is cut off, or is not a pickle") from error
        raise ImageError("the pickle is cut off: it does not end")

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        data = self.data
        while code := data.read(1):
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise ImageError("the file is not a pickle")
            if opcode.name not in _FOLLOWED:
                raise ImageError(f"the pickle uses '{opcode.name}', which arrays do not need; only lists of NumPy arrays are read")
            if opcode.name in _LENGTHS:
                length = int.from_bytes(data.read(_LENGTHS[opcode.name]), "little")
                place = _Bytes(data.tell(), length)
                if place.offset + length > len(data):
                    raise ImageError("the pickle is cut off")
                data.seek(length, os.SEEK_CUR)
                yield opcode.name, place
            elif opcode.name == "GLOBAL":
                yield opcode.name, ".".join(data.readline().decode("latin-1").strip() for _ in range(2))
            else:
                reader: Any = opcode.arg.reader if opcode.arg else None
                yield opcode.name, reader(data) if reader else None

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LENGTHS or name in _NUMBERS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(self._take(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "APPEND":
            self._extend(stack[-2], self._take(1))
        elif name == "APPENDS":
            items = self._to_mark()
            self._extend(stack[-1], items)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            if name != "MEMOIZE" and argument != len(self.memo):
                raise ImageError("the pickle was rewritten by another program than pickle; write it again with pickle.dump")
            self.memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self._take(2)
            stack.append(_named(f"{module}.{attribute}"))
        elif name == "REDUCE":
            function, arguments = self._take(2)
            stack.append(_described(function, arguments))
        elif name == "BUILD":
            self._build(self._take(1)[0])

    def _take(self, n: int) -> list[Any]:
        taken = self.stack[-n:]
        if len(taken) < n:
            raise ValueError("nothing to take")
        del self.stack[-n:]
        return taken

    def _to_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    @staticmethod
    def _extend(target: Any, items: list[Any]) -> None:
        if not isinstance(target, list):
            raise ValueError("not a list")
        target += items

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            target.order = str(state[1])
        elif isinstance(target, _Array):
            _, shape, dtype, fortran, data = state
            if not isinstance(dtype, _Dtype) or not isinstance(data, _Bytes):
                raise ImageError("the pickle holds an array of objects, but only numbers are read")
            target.dtype, target.shape, target.fortran, target.data = dtype, tuple(shape), bool(fortran), data
        else:
            raise ImageError(f"the pickle sets the state of {type(target).__name__}, which is refused")


def _named(text: str) -> _Name:
    if text == "_codecs.encode":
        raise ImageError(_OLD)
    if text not in NAMES:
        raise ImageError(f"the pickle names '{text}', which is refused: only NumPy arrays are read, and nothing in the file is run")
    return _Name(text)


def _described(function: Any, arguments: Any) -> Any:
    """What a call of one of `NAMES` would make."""
    if not isinstance(function, _Name):
        raise ImageError("the pickle calls something that is not named, which is refused")
    last = function.text.rpartition(".")[2]
    if last == "dtype":
        return _Dtype(str(arguments[0]))
    if last == "_reconstruct":
        return _Array()
    if last == "_frombuffer":
        data, dtype, shape, order = arguments
        if not isinstance(dtype, _Dtype) or not isinstance(data, _Bytes):
            raise ImageError("the pickle holds an array whose values lie outside the file")
        return _Array(dtype, tuple(shape), order == "F", data)
    raise ImageError(f"the pickle calls '{function.text}', which is refused")
