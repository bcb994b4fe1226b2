"""How several machines build one image cache over a shared file system: the same call on each, no process in charge.

The rows are cut into parts; a part is one file ``images-0000K.bin``. Beside the files, the folder ``building`` holds ``plan.json``
(channels, bits and unreadable files, found once), the claims on parts (`evenhand.data.leases`), a journal for each holder of a part,
and ``K.done``, written when a part is complete. Every process takes a part that nobody holds, goes on where the part's earlier
holders stopped, and takes the next; whoever sees that all parts are complete writes the manifest and removes ``building``. Large packed
files are unpacked into ``building/unpacked`` by the process that makes the plan.

Nothing needs a lock. The same row is always the same bytes at the same place, so a holder that was taken for dead and wakes up
does no harm; journals have one writer each; ``plan.json``, ``K.done`` and the manifest appear whole and are the same from every process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from evenhand.data import unpacking
from evenhand.data.building import (
    CHUNK,
    check_room,
    difference,
    journal_line,
    journal_lines,
    plan_grid,
    progress_bar,
    unpack_large,
    unreadable,
)
from evenhand.data.cache_files import part_name, write_manifest
from evenhand.data.decoding import HASH_BYTES, Chunk, Decoded, Grid, chunks, decode_chunk, run_chunks
from evenhand.data.leases import Claim, Leases
from evenhand.errors import InputError, RunError
from evenhand.files import disk_errors, write_atomic

log = logging.getLogger(__name__)
MOST_PARTS = 64
LEAST_ROWS = 256
POLL = 0.5
_GONE = 5.0


def build_shared(names: list[str], folder: Path, key: dict[str, Any], workers: int, progress: bool) -> None:
    """Share in building a cache until it is finished.

    Args:
        names: image files, in row order; the paths may differ between machines, the files not.
        folder: the cache folder, which all machines see.
        key: what tells whether the inputs are the same.
        workers: decoding processes of this machine.
        progress: show a progress bar.

    Raises:
        ImageError: none of the files can be read.
        InputError: the folder holds an unfinished cache of other files, or one that one machine builds.
        DiskFullError: no room.
        RunError: the folder was removed meanwhile.
    """
    room = folder / "building"
    missing_since: float | None = None
    while not (folder / "manifest.json").exists():
        if (folder / "building.json").exists():
            raise InputError(f"{folder} holds an unfinished cache that one machine builds; go on without --shared, or delete it")
        try:
            plan = _agree_on_plan(names, folder, key, workers, progress)
            if plan is not None:
                _work(names, folder, plan, workers, progress)
                _finish(folder, plan)
            missing_since = None
        except FileNotFoundError as error:
            # another process has finished and removed the folder of the work, and a file system over a network may show the manifest late
            if (folder / "manifest.json").exists():
                return
            missing_since = missing_since or time.monotonic()
            if room.exists() or time.monotonic() - missing_since > _GONE:
                raise RunError(f"{error.filename} is gone; was {folder} removed? Run the same command again") from error
            time.sleep(0.1)


def _agree_on_plan(names: list[str], folder: Path, key: dict[str, Any], workers: int, progress: bool) -> dict[str, Any] | None:
    """The plan, made by one process for all; None where the cache is finished."""
    room = folder / "building"
    with disk_errors(folder):
        room.mkdir(exist_ok=True)
    leases = Leases(room)
    while not (folder / "manifest.json").exists():
        with suppress(FileNotFoundError):
            plan: dict[str, Any] = json.loads((room / "plan.json").read_text())
            if plan["key"] != key:
                other = difference(plan["key"], key)
                raise InputError(f"{folder} holds an unfinished cache of {other}; choose another folder, or delete it")
            return plan
        claim = leases.take("plan")
        if claim is None:
            time.sleep(POLL)
            continue
        try:
            places, damaged = unpack_large(names, room / unpacking.FOLDER, len(names) * key["size"] ** 2, progress)
            plan = plan_grid(places, key, workers, progress, damaged)
            if len(plan["failed"]) == len(names):
                shutil.rmtree(room, ignore_errors=True)
                raise unreadable(plan["failed"], names)
            rows = -(-len(names) // MOST_PARTS)
            plan["part"] = max(LEAST_ROWS, -(-rows // CHUNK) * CHUNK)
            check_room(folder, len(names) * _grid(folder, plan, 0).row_bytes)
            write_atomic(room / "plan.json", json.dumps(plan).encode())
        finally:
            claim.give_up()
    shutil.rmtree(room, ignore_errors=True)  # made above, after another process had finished
    return None


def _grid(folder: Path, plan: dict[str, Any], part: int) -> Grid:
    key = plan["key"]
    return Grid(str(folder / part_name(part)), key["size"], key["resize"], plan["channels"], plan["bits"], first=part * plan["part"])


@dataclass
class _Part:
    """A part that this process holds: its claim, its journal, and what is known of its chunks."""

    number: int
    start: int
    stop: int
    claim: Claim
    journal: IO[str]
    done: dict[int, Decoded] = field(default_factory=dict)

    @property
    def rows_done(self) -> int:
        return sum(len(chunk.hashes) for chunk in self.done.values())

    @property
    def complete(self) -> bool:
        return self.rows_done == self.stop - self.start

    def enter(self, chunk: Decoded) -> None:
        self.journal.write(journal_line(chunk))
        self.journal.flush()
        self.done[chunk.start] = chunk

    def close(self) -> None:
        self.claim.give_up()
        self.journal.close()


class _Worker:
    """One process's share: the parts it holds, and which parts are complete."""

    def __init__(self, names: list[str], folder: Path, plan: dict[str, Any], advance: Callable[[int], None]) -> None:
        self.folder, self.room, self.plan = folder, folder / "building", plan
        places = unpacking.placed(names, unpacking.find_large(names, self.room / unpacking.FOLDER))
        self.files = [None if str(position) in plan["failed"] else name for position, name in enumerate(places)]
        self.leases = Leases(self.room)
        self.held: dict[int, _Part] = {}
        self.complete: set[int] = set()
        self.advance = advance
        self._shown: dict[int, int] = {}
        self.n_parts = -(-len(names) // int(plan["part"]))

    def look(self) -> bool:
        """Whether all parts are complete."""
        for file in os.listdir(self.room):
            if file.endswith(".done"):
                part = int(file.split(".")[0])
                self.complete.add(part)
                self._show(part, min(self.plan["part"], len(self.files) - part * self.plan["part"]))
        return len(self.complete) == self.n_parts

    def tasks(self) -> Iterator[tuple[Grid, Chunk]]:
        """Chunks of the parts that can be had now, each part claimed when its turn comes."""
        while (part := self._next_part()) is not None:
            grid = _grid(self.folder, self.plan, part.number)
            for chunk in chunks(self.files[part.start : part.stop], CHUNK):
                if part.start + chunk.start not in part.done:
                    yield grid, Chunk(part.start + chunk.start, chunk.files)
            if part.complete and part.number in self.held:  # all was in the journals of earlier holders
                self._finish_part(part)

    def enter(self, done: Decoded) -> None:
        """Put down a chunk; the last one of a part completes it."""
        part = self.held[done.start // self.plan["part"]]
        part.enter(done)
        self._show(part.number, part.rows_done)
        if part.complete:
            self._finish_part(part)

    def close(self) -> None:
        """Give up what is held, so that others can have it at once."""
        for part in self.held.values():
            part.close()
        self.held.clear()

    def _next_part(self) -> _Part | None:
        self.look()
        for number in range(self.n_parts):
            if number in self.complete or number in self.held:
                continue
            claim = self.leases.take(f"{number:05d}")
            if claim is not None:
                if (self.room / f"{number:05d}.done").exists():  # completed since the folder was looked at
                    claim.give_up()
                    continue
                return self._open(number, claim)
        return None

    def _open(self, number: int, claim: Claim) -> _Part:
        start = number * self.plan["part"]
        stop = min(start + self.plan["part"], len(self.files))
        grid = _grid(self.folder, self.plan, number)
        done: dict[int, Decoded] = {}
        for path in sorted(self.room.glob(f"{number:05d}.*.jsonl")):
            done |= {chunk.start: chunk for chunk in journal_lines(path.read_bytes())[0]}
        try:
            with disk_errors(self.folder):
                _extend(Path(grid.path), (stop - start) * grid.row_bytes)
                journal = (self.room / f"{claim.name}.{claim.generation}.jsonl").open("a")
        except BaseException:
            claim.give_up()
            raise
        part = self.held[number] = _Part(number, start, stop, claim, journal, done)
        self._show(number, part.rows_done)
        return part

    def _finish_part(self, part: _Part) -> None:
        chunks_done = [part.done[start] for start in sorted(part.done)]
        record = {
            "hashes": [value.hex() for chunk in chunks_done for value in chunk.hashes],
            "failed": {str(position): reason for chunk in chunks_done for position, reason in chunk.failed.items()},
        }
        with disk_errors(self.folder), open(_grid(self.folder, self.plan, part.number).path, "r+b") as file:
            os.fsync(file.fileno())
        _put(self.room / f"{part.number:05d}.done", json.dumps(record).encode())
        del self.held[part.number]
        part.close()

    def _show(self, part: int, rows: int) -> None:
        self.advance(rows - self._shown.get(part, 0))
        self._shown[part] = rows


def _put(path: Path, data: bytes) -> None:
    """Write a file whole, but never make its folder anew: it is gone when another process has finished."""
    if not path.parent.exists():
        raise FileNotFoundError(2, "no such folder", str(path))
    write_atomic(path, data)


def _extend(path: Path, n_bytes: int) -> None:
    """A file of this length; what is in it stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(descriptor).st_size < n_bytes:
            os.ftruncate(descriptor, n_bytes)
    finally:
        os.close(descriptor)


def _work(names: list[str], folder: Path, plan: dict[str, Any], workers: int, progress: bool) -> None:
    """Decode parts until all are complete, whoever has done them."""
    told = False
    with progress_bar("decoding images (shared)", len(names), progress) as advance:
        worker = _Worker(names, folder, plan, advance)
        try:
            while not worker.look():
                tasks = worker.tasks()
                first = next(tasks, None)
                if first is None:
                    if not told and not worker.look():
                        log.info("the last parts of %s are being decoded by other processes; waiting for them", folder)
                        told = True
                    time.sleep(POLL)
                    continue
                with disk_errors(folder):
                    for done in run_chunks(decode_chunk, _chain(first, tasks), workers):
                        worker.enter(done)
        finally:
            worker.close()


def _chain(first: tuple[Grid, Chunk], rest: Iterator[tuple[Grid, Chunk]]) -> Iterator[tuple[Grid, Chunk]]:
    yield first
    yield from rest


def _finish(folder: Path, plan: dict[str, Any]) -> None:
    """Put the parts together and write the manifest; several processes may do so at once, and write the same."""
    room, n = folder / "building", int(plan["key"]["n"])
    hashes: list[bytes] = []
    failed = {int(position): reason for position, reason in plan["failed"].items()}
    for part in range(-(-n // plan["part"])):
        record = json.loads((room / f"{part:05d}.done").read_text())
        hashes += map(bytes.fromhex, record["hashes"])
        failed |= {int(position): reason for position, reason in record["failed"].items()}
    kept = np.setdiff1d(np.arange(n), list(failed)).astype(np.int64)
    grid = _grid(folder, plan, 0)
    table = np.frombuffer(b"".join(hashes), np.uint8).reshape(n, HASH_BYTES)[kept]
    dtype = np.dtype(np.uint16 if grid.bits == 16 else np.uint8)
    write_manifest(folder, (len(kept), grid.channels, grid.size, grid.size), dtype, table, plan["key"], failed, plan["part"])
    # moved first, so that no process finds it half emptied and takes the work for undone
    unpacking.forget()
    away = folder / f".building-{os.getpid()}-{time.monotonic_ns()}"
    with suppress(OSError):
        room.rename(away)
    shutil.rmtree(away, ignore_errors=True)
