"""What a frozen prefix makes of every image, computed once and kept: on disk for all processes, or in memory.

A folder per (prefix, data set, view, arithmetic); in it ``rows.bin`` with a place for every row of the data set, ``done.npy``
with the rows that are there, and ``manifest.json``. A selection of rows (a split, a fold) shares the file of the whole, and
only its missing rows are computed; the others take no space on the disk. One process computes while the others wait; after a
kill the finished rows are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.errors import DiskFullError
from evenhand.files import disk_errors, locked, write_atomic, write_text
from evenhand.models.prefix import NetworkSplit
from evenhand.training.predicting import as_format, read_ahead

if TYPE_CHECKING:
    from evenhand.methods.base import Images, IntArray

log = logging.getLogger(__name__)
SCHEMA = "evenhand.activations/1"
KEPT_ROWS = 1024
"""Rows after which what was computed is entered as done, so that a kill loses no more."""
_BITS = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16, torch.bfloat16: np.uint16}


class ActivationImages:
    """Activations by position, in place of the images they were made of (`evenhand.methods.base.Images`).

    A batch is a tensor (n, …) of the prefix's own type, not of pixels: it suits the split's suffix only.

    Args:
        values: every row's activations, (rows, …); bf16 as uint16.
        rows: int64 (n,), the rows of this selection.
        dtype: of the activations.
        fingerprint: identifies them.
        source_fingerprint: of the images; a run's checkpoint belongs to these, whether their activations are kept or not.

    Attributes:
        shape: of one image's activations, filled up with ones to three numbers, as images have.
    """

    def __init__(
        self, values: npt.NDArray[Any], rows: npt.NDArray[np.int64], dtype: torch.dtype, fingerprint: str, source_fingerprint: str
    ) -> None:
        first, second, third = (*values.shape[1:], 1, 1)[:3]
        self.shape: tuple[int, int, int] = (first, second, third)
        self.fingerprint, self.source_fingerprint = fingerprint, source_fingerprint
        self._values, self._rows, self._dtype = values, rows, dtype

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, positions: IntArray | slice) -> torch.Tensor:
        """Activations (n, …) at positions of this selection."""
        taken = torch.from_numpy(self._values[self._rows[positions]])
        return taken.view(torch.bfloat16) if self._dtype == torch.bfloat16 else taken


@dataclass(frozen=True)
class Arithmetic:
    """How a network is run.

    Attributes:
        name: of the arithmetic, part of the key of what is kept.
        context: entered around a forward pass, for example autocast.
        channels_last: whether images are given in that memory format.
    """

    name: str = "fp32"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    channels_last: bool = False


@dataclass
class ActivationCache:
    """Activations of images, computed where they are missing.

    Args:
        folder: where they are kept, shared by all processes; None: in the memory of this one.
        max_bytes: most that the folder (or this process's memory) may take; default: 20 GB on disk, 2 GB in memory. Where there
            is no room for new ones, those that were not used for the longest time go; what is larger in itself is refused.

    Example:
        >>> cache = ActivationCache(Path("runs/search/activations"))  # doctest: +SKIP
        >>> cache.get(split, images, 64, torch.device("cpu")).batch(slice(0, 8)).shape  # doctest: +SKIP
        torch.Size([8, 197, 768])
    """

    folder: Path | None = None
    max_bytes: int | None = None
    _memory: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]] = field(default_factory=dict, repr=False)

    @property
    def bound(self) -> int:
        """Most bytes that are kept."""
        default = 2 * 10**9 if self.folder is None else 20 * 10**9
        return default if self.max_bytes is None else self.max_bytes

    def get(
        self, split: NetworkSplit, images: Images, batch_size: int, device: torch.device, arithmetic: Arithmetic | None = None
    ) -> ActivationImages:
        """The activations of images, from disk or memory where they are there.

        Args:
            split: its prefix is run, on ``device`` already.
            images: n images; views of a cache (``base`` and ``rows``) and selections (``whole`` and ``rows``) share what is
                kept of the whole.
            batch_size: images a forward pass.
            device: where the prefix is.
            arithmetic: how it is run; default: fp32.

        Raises:
            DiskFullError: they would take more than ``max_bytes``, or more than is free; nothing half-written counts.
        """
        arithmetic = arithmetic or Arithmetic()
        whole, n, rows = locate(images)
        dtype = split.dtype_under(arithmetic.context)
        parts = [SCHEMA, split.fingerprint, whole, n, arithmetic.name, arithmetic.channels_last, list(split.shape), str(dtype)]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        compute = _Compute(split, dtype, images, rows, batch_size, device, arithmetic)
        values = self._in_memory(key, n, rows, compute) if self.folder is None else self._on_disk(self.folder / key[:32], n, rows, compute)
        fingerprint = hashlib.sha256(f"{key} {images.fingerprint}".encode()).hexdigest()
        return ActivationImages(values, rows, dtype, fingerprint, images.fingerprint)

    def _in_memory(self, key: str, n: int, rows: npt.NDArray[np.int64], compute: _Compute) -> npt.NDArray[Any]:
        if key not in self._memory:
            self._check_size(n * compute.row_bytes)
            while self._memory and self._held() + n * compute.row_bytes > self.bound:
                del self._memory[next(iter(self._memory))]
            self._memory[key] = np.empty((n, *compute.split.shape), _BITS[compute.dtype]), np.zeros(n, bool)
        values, done = self._memory[key] = self._memory.pop(key)
        for part, block in compute.blocks(np.unique(rows[~done[rows]])):
            values[part] = block
            done[part] = True
        return values

    def _held(self) -> int:
        return sum(values.nbytes for values, _ in self._memory.values())

    def _on_disk(self, folder: Path, n: int, rows: npt.NDArray[np.int64], compute: _Compute) -> npt.NDArray[Any]:
        path = folder / "rows.bin"
        with _locked_folder(folder):
            done = _read_done(folder / "done.npy", n)
            missing = np.unique(rows[~done[rows]])
            if len(missing):
                self._make_room(folder, len(missing) * compute.row_bytes)
                description = {"before": compute.split.before, "shape": compute.split.shape, "dtype": str(compute.dtype), "n": n}
                write_text(folder / "manifest.json", json.dumps({"schema": SCHEMA, **description}, indent=1) + "\n")
                _fill(path, folder / "done.npy", n, compute.row_bytes, compute.blocks(missing), done)
            with suppress(OSError):
                os.utime(folder / "manifest.json")
            # copy-on-write: tensors can be made of it without a warning, and the file never changes
            return np.asarray(np.memmap(path, dtype=_BITS[compute.dtype], mode="c", shape=(n, *compute.split.shape)))

    def _check_size(self, needed: int) -> None:
        if needed > self.bound:
            raise DiskFullError(
                f"the activations of the frozen part need {needed / 1e9:.3g} GB, but at most {self.bound / 1e9:.3g} GB may be kept; "
                "allow more, or train smaller images"
            )

    def _make_room(self, folder: Path, needed: int) -> None:
        """Delete what was not used for the longest time; what other processes have open stays with them until they end."""
        self._check_size(needed)
        assert self.folder is not None
        others = sorted((path for path in self.folder.glob("*/manifest.json") if path.parent != folder), key=_last_used)
        taken = sum(_size(path.parent) for path in others) + _size(folder)
        for path in others:
            if taken + needed <= self.bound and needed <= shutil.disk_usage(self.folder).free:
                break
            size = _size(path.parent)
            if _discard(path.parent):
                taken -= size
                log.info("activations in %s were deleted to make room", path.parent)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DiskFullError(
                f"the activations of the frozen part need {needed / 1e9:.3g} GB, and {self.folder} has {free / 1e9:.3g} GB free; "
                "free some space or choose another folder"
            )
        if taken + needed > self.bound:
            raise DiskFullError(
                f"the activations of the frozen part need {needed / 1e9:.3g} GB, and others in use take {taken / 1e9:.3g} GB of the "
                f"{self.bound / 1e9:.3g} GB that may be kept"
            )


@dataclass(frozen=True)
class _Compute:
    """Runs the prefix over missing rows."""

    split: NetworkSplit
    dtype: torch.dtype
    images: Images
    rows: npt.NDArray[np.int64]
    batch_size: int
    device: torch.device
    arithmetic: Arithmetic

    @property
    def row_bytes(self) -> int:
        """Size of one image's activations."""
        return torch.Size(self.split.shape).numel() * self.dtype.itemsize

    def blocks(self, missing: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Rows of the whole and their activations, a batch at a time."""
        position = {int(row): position for position, row in enumerate(self.rows)}
        parts = [missing[start : start + self.batch_size] for start in range(0, len(missing), self.batch_size)]
        prefix = self.split.prefix
        modes = [(module, module.training) for module in prefix.modules()]
        prefix.eval()
        try:
            feed = read_ahead(self.images, [np.array([position[int(row)] for row in part]) for part in parts])
            for part, batch in zip(parts, feed, strict=True):
                with torch.inference_mode(), self.arithmetic.context():
                    out = prefix(as_format(batch.to(self.device), self.arithmetic.channels_last)).to(self.dtype).cpu().contiguous()
                yield part, (out.view(torch.uint16) if out.dtype == torch.bfloat16 else out).numpy()
        finally:
            for module, training in modes:
                module.training = training


def locate(images: Images) -> tuple[str, int, npt.NDArray[np.int64]]:
    """The data set that images are a selection of: what identifies it, its size, and their rows in it.

    Example:
        >>> locate(cache.images(np.array([5, 2])))[1:]  # doctest: +SKIP
        (2604, array([5, 2]))
    """
    own: Any = images
    if hasattr(own, "view_key"):
        whole, n, outer = locate(own.source)
        return f"{whole} {own.view_key}", n, outer
    rows, base = getattr(own, "rows", None), getattr(own, "base", None)
    if base is not None and rows is not None and hasattr(base, "fingerprint") and hasattr(base, "__len__"):
        return str(base.fingerprint), len(base), np.asarray(rows, dtype=np.int64)
    if rows is not None and hasattr(own, "whole"):
        whole, n, outer = locate(own.whole)
        return whole, n, outer[np.asarray(rows, dtype=np.int64)]
    return own.fingerprint, len(own), np.arange(len(own), dtype=np.int64)


def _fill(
    path: Path,
    done_path: Path,
    n: int,
    row_bytes: int,
    blocks: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]],
    done: npt.NDArray[np.bool_],
) -> None:
    """Write blocks to their places. A write into a mapped file kills the process where the disk is full; this one raises."""
    since = 0
    with disk_errors(path), open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(n * row_bytes)
        for rows, block in blocks:
            for row, value in zip(rows, block, strict=True):
                file.seek(int(row) * row_bytes)
                file.write(value.tobytes())
            done[rows] = True
            since += len(rows)
            if since >= KEPT_ROWS:
                _enter(file.fileno(), file.flush, done_path, done)
                since = 0
        _enter(file.fileno(), file.flush, done_path, done)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """A folder of activations, made where it is not there, with its lock held."""
    waiting = lambda: log.info("another process is computing the activations in %s; waiting for it", folder)  # noqa: E731
    tries = 100
    with ExitStack() as stack:
        while True:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder / ".lock", waiting))
                break
            except FileNotFoundError:  # another process has just deleted the folder to make room
                tries -= 1
                if not tries:
                    raise
        yield


class _InUse(Exception):
    """Another process holds a folder's lock."""


def _discard(folder: Path) -> bool:
    """Delete a folder of activations; false, and all stays, where a process is computing in it.

    What counts is the lock, not its file: a killed process leaves the file. The lock is held meanwhile and its file goes last.
    """

    def give_up() -> None:
        raise _InUse

    try:
        with locked(folder / ".lock", give_up):
            # the manifest last of them: a folder without one is not found again
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "manifest.json"):
                if path.name != ".lock":
                    path.unlink()
    except (_InUse, OSError):
        return False
    with suppress(OSError):  # a process that begins again in it has its lock there
        folder.rmdir()
    return True


def _enter(descriptor: int, flush: Callable[[], None], path: Path, done: npt.NDArray[np.bool_]) -> None:
    flush()
    os.fsync(descriptor)
    buffer = io.BytesIO()
    np.save(buffer, done)
    write_atomic(path, buffer.getvalue())


def _read_done(path: Path, n: int) -> npt.NDArray[np.bool_]:
    """Which rows are there; none where the file is missing or damaged, so that they are computed again."""
    if not (path.parent / "rows.bin").exists():
        return np.zeros(n, bool)
    try:
        done = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(n, bool)
    return done if done.dtype == np.bool_ and done.shape == (n,) else np.zeros(n, bool)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    """Bytes that a folder takes on the disk; places that were never written take none."""
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            total += getattr(stat, "st_blocks", stat.st_size // 512) * 512
    return total
