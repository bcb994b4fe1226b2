"""How one machine builds an image cache: space is taken first, chunks are entered in a journal, the manifest is written last.

While it is being built the folder holds ``building.json`` and ``journal.jsonl`` (the chunks that are done), from which a killed
build goes on, and ``unpacked`` where large packed files are read (`evenhand.data.unpacking`). A chunk is entered after its images have
been synced to the disk, so that a power cut leaves no entry without its images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data import parquet_cells, unpacking
from evenhand.data.cache_files import write_manifest
from evenhand.data.decoding import HASH_BYTES, Decoded, Grid, chunks, decode_chunk, probe_chunk, run_chunks
from evenhand.data.images import Header
from evenhand.data.references import file_behind
from evenhand.errors import DiskFullError, ImageError, InputError
from evenhand.files import disk_errors, write_atomic

log = logging.getLogger(__name__)
CHUNK = 32
ALONE_BELOW = 200


def n_workers(workers: int | None, n: int) -> int:
    """Processes to use: as asked for, else one a core, or this process alone for few files."""
    if workers is not None:
        if workers < 1:
            raise InputError(f"workers is {workers}, but must be at least 1")
        return min(workers, -(-n // CHUNK))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if n < ALONE_BELOW else min(cores, -(-n // CHUNK))


def files_key(names: Sequence[str]) -> str:
    """Names relative to their common folder, sizes and times of change: tells whether the inputs are the same, without reading them."""
    paths = [os.path.abspath(name) for name in names]
    root = os.path.commonpath({os.path.dirname(path) for path in paths})
    inside = len(root) + (not root.endswith(os.sep))
    digest = hashlib.sha256()
    behind: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        file = file_behind(name)
        state = behind.get(file) or _state(file)
        if file != name:  # many rows of one file
            behind[file] = state
        digest.update(f"{path[inside:]}\0{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(file: str) -> str:
    """Size and time of change; of a folder's files all, because its own time does not tell when one is written over.

    With them those of the files that this one needs: the values of an Analyze header, images that a parquet file only names.
    """
    try:
        stat = os.stat(file)
        if not S_ISDIR(stat.st_mode):
            return " ".join([f"{stat.st_size} {stat.st_mtime_ns}", *map(_state, _needed(file))])
        digest = hashlib.sha256()
        for entry in sorted(os.scandir(file), key=lambda entry: entry.name):
            if entry.is_file():
                stat = entry.stat()
                digest.update(f"{entry.name}\0{stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    except OSError:
        return "missing"


def _needed(file: str) -> list[str]:
    for header, values in ((".hdr", ".img"), (".HDR", ".IMG")):
        for packed in ("", ".gz"):
            if file.endswith(header + packed):
                return [file.removesuffix(header + packed) + values + packed]
    if file.lower().endswith(".parquet"):
        with suppress(ImageError, ValueError):  # damaged: said when it is read
            return parquet_cells.files_beside(file)
    return []


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How the settings of a cache differ from those asked for, in words."""
    words = [f"{name} {old[name]} (asked for: {new[name]})" for name in ("n", "size", "resize", "channels") if old.get(name) != new[name]]
    return "other settings: " + ", ".join(words) if words else "other files, or of files that have changed since"


def unreadable(failed: dict[int, str], names: Sequence[str]) -> ImageError:
    """The error that lists all files that cannot be read."""
    lines = [f"row {position + 1}: {names[position]}: {reason}" for position, reason in sorted(failed.items())]
    if len(failed) == len(names):
        return ImageError(f"none of the {len(names)} images can be read; is the images folder the one the table's paths start from?", lines)
    summary = f"{len(failed)} of {len(names)} images are missing or cannot be read; correct them, or leave them out with --keep-going"
    return ImageError(summary, lines)


def clear(folder: Path, unpacked_stays: bool = False) -> None:
    """Remove what a build has begun; unpacked files are known again by their names, and may stay."""
    for name in ("journal.jsonl", "building.json", "images.bin", "hashes.npy"):
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    if not unpacked_stays:
        unpacking.remove(folder / unpacking.FOLDER)


def build_alone(names: list[str], folder: Path, key: dict[str, Any], workers: int, keep_going: bool, progress: bool) -> None:
    """Build a cache on this machine; or go on with one that a killed build has left.

    Raises:
        ImageError: files are unreadable and not to be left out, or all of them are.
        InputError: the folder holds an unfinished cache of other files or settings.
        DiskFullError: no room.
    """
    state, places = _start(names, folder, key, workers, progress)
    failed = {int(position): reason for position, reason in state["failed"].items()}
    if len(failed) == len(names):
        clear(folder)
        raise unreadable(failed, names)
    grid = Grid(str(folder / "images.bin"), key["size"], key["resize"], state["channels"], state["bits"])
    hashes = np.zeros((len(names), HASH_BYTES), np.uint8)
    for done in _decode(places, folder, grid, failed, workers, progress):
        failed.update(done.failed)
        hashes[done.start : done.start + len(done.hashes)] = np.frombuffer(b"".join(done.hashes), np.uint8).reshape(-1, HASH_BYTES)
    if failed and (not keep_going or len(failed) == len(names)):
        clear(folder)
        raise unreadable(failed, names)
    _finish(folder, grid, key, hashes, failed)


def _start(
    names: list[str], folder: Path, key: dict[str, Any], workers: int, progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Look at all headers and reserve the space; or take up what a killed build has left. Also where the images are read from."""
    state: dict[str, Any] | None = None
    with suppress(FileNotFoundError, ValueError):
        state = json.loads((folder / "building.json").read_text())
    if state is not None:
        if state["key"] != key:
            raise InputError(f"{folder} holds an unfinished cache of {difference(state['key'], key)}; choose another folder, or delete it")
        log.info("going on with the unfinished cache in %s", folder)
        done = {chunk.start for chunk in _read_journal(folder / "journal.jsonl", len(names))}
        finished = all(start in done for start in range(0, len(names), CHUNK))
        return state, names if finished else unpack_large(names, folder / unpacking.FOLDER, 0, progress)[0]
    clear(folder, unpacked_stays=True)
    places, damaged = unpack_large(names, folder / unpacking.FOLDER, len(names) * key["size"] ** 2, progress)
    state = plan_grid(places, key, workers, progress, damaged)
    if len(state["failed"]) < len(names):
        grid = Grid(str(folder / "images.bin"), key["size"], key["resize"], state["channels"], state["bits"])
        _reserve(Path(grid.path), len(names) * grid.row_bytes)
        write_atomic(folder / "building.json", json.dumps(state).encode())
    return state, places


def unpack_large(names: list[str], folder: Path, beside: int, progress: bool) -> tuple[list[str], dict[int, str]]:
    """Unpack the large packed files among the images, as far as that is not done.

    Args:
        names: image files and references, in row order.
        folder: where they are unpacked.
        beside: bytes that will be written beside them at least.
        progress: show a progress bar.

    Returns:
        Where every image is read from, and position -> reason for those whose file is damaged.

    Raises:
        DiskFullError: no room.
    """
    large = unpacking.find_large(names, folder)
    absent = [part for part in large if not part.target.exists()]
    damaged: dict[int, str] = {}
    if absent:
        unpacking.sweep(folder)
        n_bytes = sum(part.n_bytes for part in absent)
        check_room(folder.parent, n_bytes + beside, "the image cache, and large packed files beside it while it is built,")
        log.info("unpacking %d large files into %s (%.3g GB), which is removed at the end", len(absent), folder, n_bytes / 1e9)
        with progress_bar("unpacking large files (bytes)", n_bytes, progress) as advance:
            for part in absent:
                try:
                    unpacking.unpack(part, advance)
                except ImageError as error:
                    damaged.update(dict.fromkeys(part.rows, error.summary))
    return unpacking.placed(names, large), damaged


def plan_grid(names: list[str], key: dict[str, Any], workers: int, progress: bool, damaged: Mapping[int, str]) -> dict[str, Any]:
    """Look at all headers: channels and bits of the cache, and the files that cannot be read, with those known to be damaged."""
    files = [None if position in damaged else name for position, name in enumerate(names)]
    headers: dict[int, Header | str] = {}
    with progress_bar("looking at headers", len(names), progress) as advance:
        for start, found in run_chunks(probe_chunk, chunks(files, 8 * CHUNK), workers if len(names) > 5000 else 1):
            headers.update(enumerate(found, start=start))
            advance(len(found))
    headers.update(damaged)
    good = [header for header in headers.values() if isinstance(header, Header)]
    return {
        "key": key,
        "channels": key["channels"] or max((header.channels for header in good), default=1),
        "bits": max((header.bits for header in good), default=8),
        "failed": {position: header for position, header in headers.items() if isinstance(header, str)},
    }


def check_room(folder: Path, n_bytes: int, what: str = "the image cache") -> None:
    """Refuse to begin where the disk is too small.

    Raises:
        DiskFullError: it is.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise DiskFullError(
            f"{what} needs {n_bytes / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB free; "
            "free some space or choose another folder"
        )


def _reserve(path: Path, n_bytes: int) -> None:
    """Take the whole space at once, so that a disk that is too small is found before the first image is decoded."""
    check_room(path.parent, n_bytes)
    with disk_errors(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
        os.fsync(file.fileno())


def _decode(names: list[str], folder: Path, grid: Grid, failed: dict[int, str], workers: int, progress: bool) -> Iterator[Decoded]:
    """Results of all chunks: first the journal's, then the new ones, each entered in the journal once it is on its place."""
    journal = folder / "journal.jsonl"
    finished = _read_journal(journal, len(names))
    yield from finished
    starts = {done.start for done in finished}
    files = [None if position in failed else name for position, name in enumerate(names)]
    tasks = ((grid, chunk) for chunk in chunks(files, CHUNK) if chunk.start not in starts)
    done_before = sum(len(done.hashes) for done in finished)
    with (
        disk_errors(folder), journal.open("a") as log_file,
        progress_bar("decoding images", len(names), progress, done_before) as advance,
    ):
        for done in run_chunks(decode_chunk, tasks, workers):
            log_file.write(journal_line(done))
            log_file.flush()
            advance(len(done.hashes))
            yield done


def _read_journal(path: Path, n: int) -> list[Decoded]:
    if not path.exists():
        return []
    found, whole = journal_lines(path.read_bytes())
    if not whole:
        write_atomic(path, "".join(map(journal_line, found)).encode())
    return [done for done in found if done.start < n]


def journal_line(done: Decoded) -> str:
    """A chunk that is done, as a line of a journal."""
    return json.dumps({"start": done.start, "hashes": [value.hex() for value in done.hashes], "failed": done.failed}) + "\n"


def journal_lines(data: bytes) -> tuple[list[Decoded], bool]:
    """The chunks in a journal, and whether all of it could be read: a kill leaves half a line, a power cut perhaps other bytes."""
    lines = data.split(b"\n")
    found, whole = [], lines.pop() == b""
    for line in lines:
        try:
            record = json.loads(line)
            hashes = tuple(map(bytes.fromhex, record["hashes"]))
            found.append(Decoded(record["start"], hashes, {int(k): v for k, v in record["failed"].items()}))
        except (ValueError, TypeError, KeyError, AttributeError):
            whole = False
    return found, whole


def _finish(folder: Path, grid: Grid, key: dict[str, Any], hashes: npt.NDArray[np.uint8], failed: dict[int, str]) -> None:
    dtype = np.dtype(np.uint16 if grid.bits == 16 else np.uint8)
    shape = (len(hashes), grid.channels, grid.size, grid.size)
    if failed:
        # from here on the journal no longer describes the file: a kill now means starting again
        (folder / "building.json").unlink(missing_ok=True)
        kept = np.setdiff1d(np.arange(len(hashes)), list(failed))
        pixels = np.memmap(grid.path, dtype=dtype, mode="r+", shape=shape)
        for target, source in enumerate(kept):
            if target != source:
                pixels[target] = pixels[source]
        pixels.flush()
        del pixels
        hashes, shape = hashes[kept], (len(kept), *shape[1:])
    with open(grid.path, "r+b") as file, disk_errors(folder):
        file.truncate(len(hashes) * grid.row_bytes)
        os.fsync(file.fileno())
    unpacking.remove(folder / unpacking.FOLDER)
    write_manifest(folder, shape, dtype, hashes, key, failed)
    for name in ("journal.jsonl", "building.json"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def progress_bar(text: str, total: int, show: bool, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with the time that has passed and the time left; what an earlier run has done does not count for the speed."""
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total, completed=done)
        yield lambda n: progress.advance(task, n)
