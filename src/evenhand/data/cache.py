"""The decode-once image cache: a flat file of equal-sized images, mapped into memory, beside a JSON manifest.

A cache folder holds ``images.bin`` ((n, c, h, w), uint8 or uint16), ``hashes.npy`` (a BLAKE2b of every image) and, written last,
``manifest.json``: without a manifest there is no cache. While it is being built the folder holds ``building.json`` and
``journal.jsonl`` (the chunks that are done), from which a killed build goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenhand.data.decoding import HASH_BYTES, Decoded, Grid, chunks, decode_chunk, probe_chunk, run_chunks
from evenhand.data.images import RESIZES, Header, Resize
from evenhand.errors import DiskFullError, ImageError, InputError
from evenhand.files import disk_errors, locked, write_atomic

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
SCHEMA = "evenhand.cache/1"
CHUNK = 32
ALONE_BELOW = 200
IntArray = npt.NDArray[np.integer[Any]]
Positions = IntArray | slice | Sequence[int]
_BLOCK = 1 << 18
_SMALL = 1 << 14


class ImageCache:
    """All images of a prepared data set, by row.

    Attributes:
        folder: where it lies.
        shape: (c, h, w).
        dtype: uint8, or uint16 where a source had more than 8 bits.
        hashes: uint8 (n, 16), content hash of every image.
        fingerprint: sha256 over shape, type and hashes.
        manifest: the JSON manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], pixels: npt.NDArray[Any], hashes: npt.NDArray[np.uint8]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hashes = hashes
        n, c, h, w = pixels.shape
        self.shape: tuple[int, int, int] = (c, h, w)
        self.dtype = pixels.dtype
        self.fingerprint: str = manifest["fingerprint"]
        self._pixels = pixels
        self._n = int(n)

    @classmethod
    def open(cls, folder: str | Path) -> ImageCache:
        """Map a finished cache; nothing is read but the manifest and the hashes.

        Raises:
            InputError: no manifest, or files that do not agree with it.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest.get("schema") != SCHEMA:
                raise InputError(f"image cache {folder} has schema {manifest.get('schema')!r}, but {SCHEMA!r} is read; prepare it again")
            shape, dtype = tuple(manifest["shape"]), np.dtype(manifest["dtype"])
            hashes = np.load(folder / "hashes.npy", allow_pickle=False)
            expected = int(np.prod(shape)) * dtype.itemsize
            actual = (folder / "images.bin").stat().st_size
        except FileNotFoundError as error:
            raise InputError(f"image cache {folder} is not complete ({Path(error.filename).name} is missing); prepare it again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"image cache {folder} is damaged ({error}); prepare it again") from error
        if actual != expected or hashes.shape != (shape[0], HASH_BYTES) or _fingerprint(shape, dtype, hashes) != manifest["fingerprint"]:
            raise InputError(f"image cache {folder} does not agree with its manifest; delete it and prepare again")
        # copy-on-write: tensors can be made of it without a warning, and the file never changes
        pixels = np.asarray(np.memmap(folder / "images.bin", dtype=dtype, mode="c", shape=shape))
        return cls(folder, manifest, pixels, hashes)

    def __len__(self) -> int:
        return self._n

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache.open, (self.folder,)

    def raw(self, positions: Positions) -> npt.NDArray[Any]:
        """A copy of the stored values, (n, c, h, w), uint8 or uint16."""
        return np.array(self._pixels[positions if isinstance(positions, slice) else np.asarray(positions)])

    def batch(self, positions: Positions, out: torch.Tensor | None = None) -> torch.Tensor:
        """Images as float32 in [0, 1], (n, c, h, w).

        Args:
            positions: rows, in any order, repeated or not.
            out: float32 tensor (n, c, h, w) to fill instead of a new one.
        """
        top = float(self._top)
        return self._fill(positions, lambda block: block.div_(top), out)

    def normalized_batch(
        self, positions: Positions, mean: Sequence[float], std: Sequence[float], out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(x - mean) / std of images in [0, 1], float32 (n, c, h, w), in one pass over the memory.

        Args:
            positions: rows, in any order, repeated or not.
            mean: per channel, for values in [0, 1].
            std: per channel.
            out: float32 tensor (n, c, h, w) to fill instead of a new one.
        """
        import torch

        scale = (1.0 / (torch.tensor(std, dtype=torch.float64) * self._top)).float()[:, None, None]
        shift = (-torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)).float()[:, None, None]
        return self._fill(positions, lambda block: block.mul_(scale).add_(shift), out)

    def images(self, rows: IntArray | None = None) -> CachedImages:
        """A selection of rows, all of them by default."""
        return CachedImages(self, np.arange(len(self)) if rows is None else rows)

    @property
    def _top(self) -> int:
        return 65535 if self.dtype == np.uint16 else 255

    def _fill(self, positions: Positions, finish: Callable[[torch.Tensor], Any], out: torch.Tensor | None) -> torch.Tensor:
        """Convert block by block and finish each in place while it is still in the processor's cache."""
        import torch

        rows = np.arange(len(self))[positions] if isinstance(positions, slice) else np.asarray(positions)
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        if len(rows) and not (rows.min() >= -len(self) and rows.max() < len(self)):
            raise IndexError(f"positions run from {rows.min()} to {rows.max()}, but the cache has {len(self)} images")
        if out is None:
            # NumPy asks the kernel for huge pages: new memory for a batch costs half of what torch's allocator makes of it
            out = torch.from_numpy(np.empty((len(rows), *self.shape), np.float32))
        n_values = int(np.prod(self.shape))
        step = max(1, _BLOCK // n_values)
        for start in range(0, len(rows), step):
            part, block = rows[start : start + step], out[start : start + step]
            if len(part) == 1 or bool((np.diff(part) == 1).all() and part[0] >= 0):
                first = int(part[0]) % len(self)
                block.copy_(torch.from_numpy(self._pixels[first : first + len(part)]))
            elif n_values < _SMALL:
                block.copy_(torch.from_numpy(self._pixels[part]))
            else:
                for row, image in zip(part, block, strict=True):
                    image.copy_(torch.from_numpy(self._pixels[row]))
            finish(block)
        return out


class CachedImages:
    """Rows of a cache, as the `evenhand.methods.base.Images` protocol asks.

    Attributes:
        base: the cache.
        rows: int64 (n,), its rows, in order.
        shape: (c, h, w).
        fingerprint: sha256 over shape, type and the content hashes of the rows, in order.
    """

    def __init__(self, base: ImageCache, rows: IntArray) -> None:
        self.base = base
        self.rows = np.asarray(rows, dtype=np.int64)
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < len(base)):
            raise IndexError(f"rows run from {self.rows.min()} to {self.rows.max()}, but the cache has {len(base)} images")
        self.shape = base.shape
        self.fingerprint: str = _fingerprint((len(self.rows), *base.shape), base.dtype, base.hashes[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Positions, out: torch.Tensor | None = None) -> torch.Tensor:
        """float32 in [0, 1], (n, c, h, w); see `ImageCache.batch`."""
        return self.base.batch(self._at(positions), out)

    def normalized_batch(
        self, positions: Positions, mean: Sequence[float], std: Sequence[float], out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(x - mean) / std; see `ImageCache.normalized_batch`."""
        return self.base.normalized_batch(self._at(positions), mean, std, out)

    def raw(self, positions: Positions) -> npt.NDArray[Any]:
        """The stored values, (n, c, h, w), uint8 or uint16."""
        return self.base.raw(self._at(positions))

    def _at(self, positions: Positions) -> IntArray:
        return self.rows[positions if isinstance(positions, slice) else np.asarray(positions)]


def _fingerprint(shape: Sequence[int], dtype: np.dtype[Any], hashes: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(f"{list(map(int, shape))} {np.dtype(dtype).name}".encode())
    digest.update(np.ascontiguousarray(hashes).tobytes())
    return digest.hexdigest()


def build_cache(
    files: Sequence[str | Path],
    folder: str | Path,
    *,
    size: int = 224,
    resize: Resize = "crop",
    channels: int | None = None,
    workers: int | None = None,
    keep_going: bool = False,
    progress: bool = False,
) -> tuple[ImageCache, dict[int, str]]:
    """Decode files once into a cache; go on where a killed build stopped; do nothing where it is finished.

    Two processes may call this with the same folder: the second waits, then opens what the first has built.

    Args:
        files: image files, in row order.
        folder: the cache folder; made if absent.
        size: side of the stored images in pixels.
        resize: ``crop``, ``pad`` or ``stretch``.
        channels: 1 or 3; None: 1 where every file is grey, else 3.
        workers: processes; None: one a processor core, or this process alone for few files.
        keep_going: leave unreadable files out instead of refusing.
        progress: show a progress bar.

    Returns:
        The cache of the readable files, and position in ``files`` -> reason for those left out.

    Raises:
        ImageError: files that are missing or unreadable (all of them are listed); nothing is left in the folder.
        InputError: the folder holds a cache of other files or settings.
        DiskFullError: no room; nothing half-written is left.
    """
    if not 1 <= size <= 8192:
        raise InputError(f"size is {size}, but must be 1 to 8192 pixels")
    if resize not in RESIZES or channels not in (None, 1, 3):
        raise InputError(f"resize is '{resize}' and channels {channels}, but must be one of {', '.join(RESIZES)}, and 1 or 3")
    if not len(files):
        raise InputError("there is no image to prepare")
    folder, names = Path(folder), [str(file) for file in files]
    key = {"files": _files_key(names), "n": len(names), "size": size, "resize": resize, "channels": channels}
    created = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    waiting = lambda: log.warning("another process is building %s; waiting for it to finish", folder)  # noqa: E731
    with locked(folder / ".lock", waiting):
        if not (folder / "manifest.json").exists():
            try:
                _build(names, folder, key, _n_workers(workers, len(names)), keep_going, progress)
            except (InputError, DiskFullError):
                if not (folder / "building.json").exists():
                    _clear(folder)
                raise
        cache = ImageCache.open(folder)
        if cache.manifest["key"] != key:
            raise InputError(f"{folder} holds a cache of {_difference(cache.manifest['key'], key)}; choose another folder, or delete it")
    if created:
        log.info("cached %d images in %s", len(cache), folder)
    excluded = {int(position): reason for position, reason in cache.manifest["excluded"].items()}
    if excluded and not keep_going:
        raise _unreadable(excluded, names)
    return cache, excluded


def _n_workers(workers: int | None, n: int) -> int:
    if workers is not None:
        if workers < 1:
            raise InputError(f"workers is {workers}, but must be at least 1")
        return min(workers, -(-n // CHUNK))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if n < ALONE_BELOW else min(cores, -(-n // CHUNK))


def _files_key(names: Sequence[str]) -> str:
    """Names relative to their common folder, sizes and times of change: tells whether the inputs are the same, without reading them."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])
    digest = hashlib.sha256()
    for name in names:
        try:
            stat = os.stat(name)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{os.path.relpath(os.path.abspath(name), root)}\0{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    words = [f"{name} {old[name]} (asked for: {new[name]})" for name in ("n", "size", "resize", "channels") if old.get(name) != new[name]]
    return "other settings: " + ", ".join(words) if words else "other files, or of files that have changed since"


def _unreadable(failed: dict[int, str], names: Sequence[str]) -> ImageError:
    lines = [f"row {position + 1}: {names[position]}: {reason}" for position, reason in sorted(failed.items())]
    if len(failed) == len(names):
        return ImageError(f"none of the {len(names)} images can be read; is the images folder the one the table's paths start from?", lines)
    summary = f"{len(failed)} of {len(names)} images are missing or cannot be read; correct them, or leave them out with --keep-going"
    return ImageError(summary, lines)


def _clear(folder: Path) -> None:
    for name in ("journal.jsonl", "building.json", "images.bin", "hashes.npy"):
        with suppress(FileNotFoundError):
            (folder / name).unlink()


def _build(names: list[str], folder: Path, key: dict[str, Any], workers: int, keep_going: bool, progress: bool) -> None:
    state = _start(names, folder, key, workers, progress)
    failed = {int(position): reason for position, reason in state["failed"].items()}
    if len(failed) == len(names):
        _clear(folder)
        raise _unreadable(failed, names)
    grid = Grid(str(folder / "images.bin"), key["size"], key["resize"], state["channels"], state["bits"])
    hashes = np.zeros((len(names), HASH_BYTES), np.uint8)
    for done in _decode(names, folder, grid, failed, workers, progress):
        failed.update(done.failed)
        hashes[done.start : done.start + len(done.hashes)] = np.frombuffer(b"".join(done.hashes), np.uint8).reshape(-1, HASH_BYTES)
    if failed and (not keep_going or len(failed) == len(names)):
        _clear(folder)
        raise _unreadable(failed, names)
    _finish(folder, grid, key, hashes, failed)


def _start(names: list[str], folder: Path, key: dict[str, Any], workers: int, progress: bool) -> dict[str, Any]:
    """Look at all headers and reserve the space; or take up what a killed build has left."""
    with suppress(FileNotFoundError, ValueError):
        state: dict[str, Any] = json.loads((folder / "building.json").read_text())
        if state["key"] != key:
            raise InputError(f"{folder} holds an unfinished cache of {_difference(state['key'], key)}; choose another folder, or delete it")
        log.info("going on with the unfinished cache in %s", folder)
        return state
    _clear(folder)
    headers: dict[int, Header | str] = {}
    with _bar("looking at headers", len(names), progress) as advance:
        for start, found in run_chunks(probe_chunk, chunks(names, 8 * CHUNK), workers if len(names) > 5000 else 1):
            headers.update(enumerate(found, start=start))
            advance(len(found))
    good = [header for header in headers.values() if isinstance(header, Header)]
    state = {
        "key": key,
        "channels": key["channels"] or max((header.channels for header in good), default=1),
        "bits": max((header.bits for header in good), default=8),
        "failed": {position: header for position, header in headers.items() if isinstance(header, str)},
    }
    if good:
        grid = Grid(str(folder / "images.bin"), key["size"], key["resize"], state["channels"], state["bits"])
        _reserve(Path(grid.path), len(names) * grid.row_bytes)
        write_atomic(folder / "building.json", json.dumps(state).encode())
    return state


def _reserve(path: Path, n_bytes: int) -> None:
    """Take the whole space at once, so that a disk that is too small is found before the first image is decoded."""
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise DiskFullError(
            f"the image cache needs {n_bytes / 1e9:.3g} GB, and {path.parent} has {free / 1e9:.3g} GB free; "
            "free some space or choose another folder"
        )
    with disk_errors(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)


def _decode(names: list[str], folder: Path, grid: Grid, failed: dict[int, str], workers: int, progress: bool) -> Iterator[Decoded]:
    """Results of all chunks: first the journal's, then the new ones, each entered in the journal once it is on its place."""
    journal = folder / "journal.jsonl"
    finished = _read_journal(journal, len(names))
    yield from finished
    starts = {done.start for done in finished}
    files = [None if position in failed else name for position, name in enumerate(names)]
    tasks = ((grid, chunk) for chunk in chunks(files, CHUNK) if chunk.start not in starts)
    with disk_errors(folder), journal.open("a") as log_file, _bar("decoding images", len(names), progress) as advance:
        advance(sum(len(done.hashes) for done in finished))
        for done in run_chunks(decode_chunk, tasks, workers):
            record = {"start": done.start, "hashes": [value.hex() for value in done.hashes], "failed": done.failed}
            log_file.write(json.dumps(record) + "\n")
            log_file.flush()
            advance(len(done.hashes))
            yield done


def _read_journal(path: Path, n: int) -> list[Decoded]:
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # killed in the middle of a line
        write_atomic(path, whole.encode())
    records = [json.loads(line) for line in whole.splitlines()]
    return [
        Decoded(record["start"], tuple(map(bytes.fromhex, record["hashes"])), {int(k): v for k, v in record["failed"].items()})
        for record in records
        if record["start"] < n
    ]


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
    buffer = BytesIO()
    np.save(buffer, hashes, allow_pickle=False)
    write_atomic(folder / "hashes.npy", buffer.getvalue())
    manifest = {
        "schema": SCHEMA, "shape": shape, "dtype": dtype.name, "fingerprint": _fingerprint(shape, dtype, hashes), "key": key,
        "excluded": {str(position): reason for position, reason in sorted(failed.items())},
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    for name in ("journal.jsonl", "building.json"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _bar(text: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda n: progress.advance(task, n)
