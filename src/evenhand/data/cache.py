"""The decode-once image cache: flat files of equal-sized images, mapped into memory, beside a JSON manifest.

A cache folder holds ``images.bin`` ((n, c, h, w), uint8 or uint16; several files where several machines have built it),
``hashes.npy`` (a BLAKE2b of every image) and, written last, ``manifest.json``: without a manifest there is no cache. How one is
built, and goes on after a kill, is in `evenhand.data.building` (one machine) and `evenhand.data.shards` (several).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenhand.data.building import build_alone, clear, difference, files_key, n_workers, unreadable
from evenhand.data.cache_files import IntArray, MappedImages, fingerprint, read_cache_files
from evenhand.data.images import RESIZES, Resize
from evenhand.errors import DiskFullError, InputError
from evenhand.files import disk_errors, locked

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
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

    def __init__(self, folder: Path, manifest: dict[str, Any], pixels: MappedImages, hashes: npt.NDArray[np.uint8]) -> None:
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
        manifest, pixels, hashes = read_cache_files(folder)
        return cls(folder, manifest, pixels, hashes)

    def __len__(self) -> int:
        return self._n

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache.open, (self.folder,)

    def raw(self, positions: Positions) -> npt.NDArray[Any]:
        """A copy of the stored values, (n, c, h, w), uint8 or uint16."""
        return self._pixels.take(positions if isinstance(positions, slice) else np.asarray(positions))

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
            together = len(part) == 1 or bool((np.diff(part) == 1).all() and part[0] >= 0)
            run = self._pixels.run(int(part[0]) % len(self), len(part)) if together else None
            if run is not None:
                block.copy_(torch.from_numpy(run))
            elif n_values < _SMALL:
                block.copy_(torch.from_numpy(self._pixels.take(part)))
            else:
                for row, image in zip(part, block, strict=True):
                    image.copy_(torch.from_numpy(self._pixels.image(int(row) % len(self))))
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
        self.fingerprint: str = fingerprint((len(self.rows), *base.shape), base.dtype, base.hashes[self.rows])

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
    shared: bool = False,
) -> tuple[ImageCache, dict[int, str]]:
    """Decode files once into a cache; go on where a killed build stopped; do nothing where it is finished.

    Two processes may call this with the same folder: the second waits, then opens what the first has built; or, with ``shared``,
    any number of processes on any machines that see the folder share the work.

    Args:
        files: image files, in row order.
        folder: the cache folder; made if absent.
        size: side of the stored images in pixels.
        resize: ``crop``, ``pad`` or ``stretch``.
        channels: 1 or 3; None: 1 where every file is grey, else 3.
        workers: processes; None: one a processor core, or this process alone for few files.
        keep_going: leave unreadable files out instead of refusing.
        progress: show a progress bar.
        shared: share the work with every process, on this machine or others, that calls this with the same folder.

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
    key = {"files": files_key(names), "n": len(names), "size": size, "resize": resize, "channels": channels}
    n = n_workers(workers, len(names))
    created = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if shared:
        from evenhand.data.shards import build_shared

        build_shared(names, folder, key, n, progress)
    else:
        _build(names, folder, key, n, keep_going, progress)
    cache = ImageCache.open(folder)
    if cache.manifest["key"] != key:
        raise InputError(f"{folder} holds a cache of {difference(cache.manifest['key'], key)}; choose another folder, or delete it")
    if created:
        log.info("cached %d images in %s", len(cache), folder)
    excluded = {int(position): reason for position, reason in cache.manifest["excluded"].items()}
    if excluded and not keep_going:
        raise unreadable(excluded, names)
    return cache, excluded


def _build(names: list[str], folder: Path, key: dict[str, Any], workers: int, keep_going: bool, progress: bool) -> None:
    """Build on this machine, or wait for another process that does."""
    waiting = lambda: log.warning("another process is building %s; waiting for it to finish", folder)  # noqa: E731
    with locked(folder / ".lock", waiting):
        if (folder / "manifest.json").exists():
            return
        if (folder / "building").exists():
            raise InputError(f"{folder} holds an unfinished cache that several machines build; go on with --shared, or delete it")
        try:
            build_alone(names, folder, key, workers, keep_going, progress)
        except (InputError, DiskFullError):
            if not (folder / "building.json").exists():
                clear(folder)
            raise
