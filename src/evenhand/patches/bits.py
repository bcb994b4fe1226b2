"""Tensors as the bits they are made of: which entries differ, and flipping them there and back.

XOR of old and new bits is its own inverse, and knows nothing of numbers: a changed sign of zero and the payload of a NaN come
back as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evenhand.errors import InputError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHORT = 2**31


@dataclass(frozen=True)
class Entry:
    """The changed entries of one tensor of n entries.

    Attributes:
        indices: (k,) their flat positions, increasing; int32 where n fits, else int64.
        xor: (k,) XOR of the old and the new bits, as integers of the tensor's own size; never 0.
    """

    indices: Tensor
    xor: Tensor

    def __len__(self) -> int:
        return len(self.indices)


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of a tensor: (n,) integers of the same size, on the CPU; they share memory with a tensor that lies there in order.

    Raises:
        InputError: a sparse or quantised tensor, or one of 16 bytes an entry.

    Example:
        >>> bits_of(torch.tensor([0.0, -0.0, 1.0])).tolist()
        [0, -2147483648, 1065353216]
    """
    integer = _INTEGERS.get(tensor.element_size())
    if integer is None or tensor.layout is not torch.strided or tensor.is_quantized:
        what = "sparse" if tensor.layout is not torch.strided else "quantised" if tensor.is_quantized else str(tensor.dtype)
        raise InputError(f"a tensor is {what}, but a patch holds dense tensors of at most 8 bytes an entry; store it as fp32, fp16 or bf16")
    return tensor.detach().cpu().contiguous().reshape(-1).view(integer)


def difference(old: Tensor, new: Tensor) -> Entry | None:
    """The entries in which two tensors of one shape and type differ bit by bit; None where they do not.

    Example:
        >>> found = difference(torch.tensor([0.0, 2.0, 3.0]), torch.tensor([-0.0, 2.0, 3.0]))
        >>> found.indices.tolist(), found.xor.tolist()
        ([0], [-2147483648])
    """
    xor = bits_of(old).numpy() ^ bits_of(new).numpy()
    where = np.flatnonzero(xor != 0)
    if not len(where):
        return None
    return Entry(torch.from_numpy(where.astype(np.int32 if len(xor) < _SHORT else np.int64)), torch.from_numpy(xor[where]))


def flipped(tensor: Tensor, entry: Entry) -> Tensor:
    """A new tensor with the bits of an entry flipped: old to new, or new to old; same shape, type and device."""
    own = bits_of(tensor).clone()
    own.numpy()[entry.indices.numpy()] ^= entry.xor.numpy()
    return own.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)


def bytes_of_positions(k: int, n: int) -> int:
    """Bytes that the positions of k changed entries of n take in a file: none where all changed, a list, or a bit an entry.

    Example:
        >>> bytes_of_positions(10, 1000), bytes_of_positions(100, 1000), bytes_of_positions(1000, 1000)
        (40, 125, 0)
    """
    return 0 if k == n else min(k * (4 if n < _SHORT else 8), (n + 7) // 8)


def stored(entry: Entry, n: int) -> dict[str, Tensor]:
    """An entry as the tensors of a file: ``xor``, and with it ``index``, ``bits`` (one bit an entry of n), or nothing for all."""
    k, xor = len(entry), entry.xor.contiguous()
    if k == n:
        return {"xor": xor}
    if bytes_of_positions(k, n) < entry.indices.element_size() * k:
        mask = np.zeros(n, dtype=bool)
        mask[entry.indices.numpy()] = True
        return {"xor": xor, "bits": torch.from_numpy(np.packbits(mask, bitorder="little"))}
    return {"xor": xor, "index": entry.indices.contiguous()}


def restored(parts: dict[str, Tensor], n: int, dtype: torch.dtype) -> Entry:
    """The entry that `stored` gave for a tensor of n entries of a type.

    Raises:
        ValueError: the parts fit neither each other nor the tensor.
    """
    xor, kind = parts["xor"], torch.int32 if n < _SHORT else torch.int64
    if "bits" in parts:
        packed = parts["bits"]
        if packed.dtype != torch.uint8 or packed.shape != ((n + 7) // 8,):
            raise ValueError(f"{packed.dtype} {tuple(packed.shape)} marks the changed ones of {n} entries")
        marked = np.unpackbits(packed.numpy(), count=n, bitorder="little").view(bool)
        where = torch.from_numpy(np.flatnonzero(marked)).to(kind)
    elif "index" in parts:
        where = parts["index"]
    else:
        # counted before they are made: a file may say any n
        where = torch.arange(n if len(xor) == n else 0, dtype=kind)
    if where.ndim != 1 or where.dtype != kind or xor.shape != where.shape or xor.dtype != _INTEGERS.get(dtype.itemsize):
        raise ValueError(f"{xor.dtype} {tuple(xor.shape)} at {where.dtype} {tuple(where.shape)} of {n} entries of {dtype}")
    if not len(where) or int(where[0]) < 0 or int(where[-1]) >= n or not bool((where[1:] > where[:-1]).all()):
        raise ValueError(f"positions are not increasing ones of {n} entries")
    return Entry(where, xor)
