"""Decoding many files by several processes, a chunk at a time: what runs in a worker, and how workers are run.

Workers are started afresh (``spawn``), so threads of the calling process do no harm; they never import the caller's main script,
so a script needs no ``__main__`` guard; and they end by themselves when the calling process is killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from types import ModuleType
from typing import Any, TypeVar

from evenhand.data.images import Header, Resize, fit_grid, probe_image, read_image, resize_image
from evenhand.errors import ImageError, RunError

HASH_BYTES = 16
_TOO_LARGE = "image is too large for the memory of this machine"
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Grid:
    """Where decoded images go: a flat file of rows (channels, size, size) of ``bits`` bits, of which the first is row ``first``."""

    path: str
    size: int
    resize: Resize
    channels: int
    bits: int
    first: int = 0

    @property
    def row_bytes(self) -> int:
        return self.channels * self.size * self.size * self.bits // 8


@dataclass(frozen=True)
class Chunk:
    """Files of consecutive positions; a file that is already known to be bad is None."""

    start: int
    files: tuple[str | None, ...]


@dataclass(frozen=True)
class Decoded:
    """What became of a chunk: a content hash an image, and position -> reason for those that could not be read."""

    start: int
    hashes: tuple[bytes, ...]
    failed: dict[int, str]


def probe_chunk(chunk: Chunk) -> tuple[int, list[Header | str]]:
    """The header, or the reason why there is none, of every file of a chunk."""
    found: list[Header | str] = []
    for file in chunk.files:
        try:
            found.append(probe_image(file or ""))
        except ImageError as error:
            found.append(error.summary)
        except MemoryError:
            found.append(_TOO_LARGE)
    return chunk.start, found


def decode_chunk(task: tuple[Grid, Chunk]) -> Decoded:
    """Decode, resize and write every file of a chunk to its place; when it returns they are on the disk."""
    grid, chunk = task
    hashes: list[bytes] = []
    failed: dict[int, str] = {}
    descriptor = os.open(grid.path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        for position, file in enumerate(chunk.files, start=chunk.start):
            row = b""
            if file is not None:
                try:
                    row = fit_grid(resize_image(read_image(file), grid.size, grid.resize), grid.channels, grid.bits).tobytes()
                except ImageError as error:
                    failed[position] = error.summary
                except MemoryError:
                    failed[position] = _TOO_LARGE
            if row:
                _write_at(descriptor, row, (position - grid.first) * grid.row_bytes)
            hashes.append(hashlib.blake2b(row, digest_size=HASH_BYTES).digest())
        _sync(descriptor)
    finally:
        os.close(descriptor)
    return Decoded(chunk.start, tuple(hashes), failed)


def _write_at(descriptor: int, row: bytes, offset: int) -> None:
    view = memoryview(row)
    os.lseek(descriptor, offset, os.SEEK_SET)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync(descriptor: int) -> None:
    """Written values, not the time of change, outlast a power cut."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def chunks(files: Sequence[str | None], length: int) -> Iterator[Chunk]:
    """Consecutive files, ``length`` at a time."""
    for start in range(0, len(files), length):
        yield Chunk(start, tuple(files[start : start + length]))


def run_chunks(function: Callable[[A], R], tasks: Iterable[A], workers: int) -> Iterator[R]:
    """Results in the order in which they are done; with one worker in this process.

    Raises:
        RunError: a worker died (killed, or out of memory).
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield from _bounded(pool, function, iter(tasks), in_flight=3 * workers)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died while decoding (killed, or out of memory); run the same command again to continue, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bounded(pool: ProcessPoolExecutor, function: Callable[[A], R], tasks: Iterator[A], in_flight: int) -> Iterator[R]:
    pending: set[Future[R]] = set()
    more = True
    while more or pending:
        with _no_main_module(), _interrupts_held():
            while more and len(pending) < in_flight:
                try:
                    pending.add(pool.submit(function, next(tasks)))
                except StopIteration:
                    more = False
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes started in it never see it: ending them is the caller's business."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Spawned processes import the caller's main script, which would run an unguarded script again; ours need only this module."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    parent: Any = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
