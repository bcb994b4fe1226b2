"""Embeddings on disk, so that an image goes through an encoder once.

A folder per (model, data, edit, precision, size, normalisation, pool); in it ``manifest.json`` and shards of 1024 rows
in the order of the prepared data set, NaN where a row was not embedded yet. A subset of a data set (the rows of a split)
shares the shards of the whole, so that re-drawn splits embed nothing twice. Every file is replaced atomically: after a
kill the finished shards are there, and two writers can at worst both compute the same rows.

Answers of an encoder behind an API are paid for: each request's are put on disk before they are used, so that after a failed
request or a kill only what was under way is asked for again; and two processes that want rows of one shard take turns.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from evenhand.edits.base import ImageBatches
from evenhand.errors import InputError
from evenhand.files import locked, write_atomic, write_text
from evenhand.models.paid_log import KEY_BYTES, ResponseLog
from evenhand.models.precision import Agreement

logger = logging.getLogger(__name__)

SCHEMA = "evenhand.embeddings/1"
SHARD_ROWS = 1024


class CacheableEmbedder(Protocol):
    """What the cache asks of an encoder; `LocalEmbedder` is one.

    One that has ``embed_charged`` (`RemoteEmbedder`) also takes ``answered`` in `embed_images`.
    """

    settled: str | None
    agreement: Agreement | None

    @property
    def dim(self) -> int: ...

    def settle(self, images: ImageBatches) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def embed_images(self, images: ImageBatches, batch_size: int | None = None, progress: bool = False) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class _Rows:
    """A selection of images, by position."""

    source: ImageBatches
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.rows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: npt.NDArray[np.integer[Any]] | slice) -> torch.Tensor:
        return self.source.batch(self.rows[positions])


class EmbeddingCache:
    """Embeddings of images, computed where missing and kept in a folder.

    Args:
        folder: made when absent.

    Example:
        >>> cache = EmbeddingCache("data/ham/embeddings")  # doctest: +SKIP
        >>> cache.get(embedder, images).shape  # doctest: +SKIP
        (2604, 768)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def get(
        self, embedder: CacheableEmbedder, images: ImageBatches, edit_hash: str | None = None, progress: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embeddings (n, dim) of the images, from disk where they are there.

        Args:
            embedder: the encoder.
            images: n images; a view with ``base`` and ``rows`` (`CachedImages`) shares the shards of its base.
            edit_hash: hash of the edit that ``images`` already went through, None where there is none.
            progress: show a progress bar for what has to be computed.

        Raises:
            DiskFullError: no space is left; finished shards stay, nothing half-written does.
            RunError: an embedding is not finite.
        """
        whole, rows = _whole(images)
        self._settle(embedder, images)
        key, description = self._describe(embedder, whole, edit_hash)
        folder = self.folder / key[:32]
        out = np.empty((len(rows), embedder.dim), dtype=np.float32)
        for shard in np.unique(rows // SHARD_ROWS):
            wanted = rows // SHARD_ROWS == shard
            stored = self._filled(folder, int(shard), rows[wanted], whole, embedder, description, progress)
            out[wanted] = stored[rows[wanted] % SHARD_ROWS]
        return out

    def _filled(
        self, folder: Path, shard: int, rows: npt.NDArray[np.int64], whole: ImageBatches, embedder: CacheableEmbedder,
        description: dict[str, Any], progress: bool,
    ) -> npt.NDArray[np.float32]:
        """One shard with at least these rows in it."""
        path = folder / f"{shard:06d}.npy"
        stored, missing = _missing(path, rows, embedder.dim)
        if stored is not None and not len(missing):
            return stored
        first = shard * SHARD_ROWS
        height = min(SHARD_ROWS, len(whole) - first)
        if not hasattr(embedder, "embed_charged"):
            new = embedder.embed_images(_Rows(whole, missing), progress=progress)
            _write_json(folder / "manifest.json", description)
            return _merge(path, first, height, missing, new)
        _write_json(folder / "manifest.json", description)
        with locked(path.with_suffix(".lock"), partial(logger.info, "%s is being embedded by another process; waiting for it", path.name)):
            stored, missing = _missing(path, rows, embedder.dim)
            if stored is not None and not len(missing):
                return stored
            return self._paid(path, first, height, missing, whole, embedder, progress)

    @staticmethod
    def _paid(
        path: Path, first: int, height: int, missing: npt.NDArray[np.int64], whole: ImageBatches, embedder: Any, progress: bool
    ) -> npt.NDArray[np.float32]:
        """One shard from an encoder behind an API, every answer kept as it comes; the caller holds the shard's lock."""
        folder = path.with_suffix(".answers")
        log, guard = ResponseLog(folder, path.parent.name, embedder.dim), threading.Lock()
        try:
            left = np.array([row for row in missing if _key(row) not in log], dtype=np.int64)
            log.check_space(len(left))

            def keep(start: int, rows: npt.NDArray[np.float32]) -> None:
                with guard:
                    log.answered([_key(row) for row in left[start : start + len(rows)]], rows)

            if len(left):
                embedder.embed_images(_Rows(whole, left), progress=progress, answered=keep)
            known = np.array([row for row in range(first, first + height) if _key(row) in log], dtype=np.int64)
            merged = _merge(path, first, height, known, np.stack([log.read(_key(row)) for row in known]))
        finally:
            log.close()
        shutil.rmtree(folder, ignore_errors=True)
        return merged

    def _describe(self, embedder: CacheableEmbedder, whole: ImageBatches, edit_hash: str | None) -> tuple[str, dict[str, Any]]:
        parts = {
            "schema": SCHEMA, **embedder.describe(), "data": whole.fingerprint, "edit": edit_hash,
            "precision": embedder.settled, "n": len(whole), "shard_rows": SHARD_ROWS,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return key, {**parts, "agreement": embedder.agreement.to_json() if embedder.agreement else None}

    def _settle(self, embedder: CacheableEmbedder, images: ImageBatches) -> None:
        """For precision auto: the decision made for this model in this folder before, else a new one, kept here.

        What a server said then (other embeddings in every call) is said again.
        """
        if embedder.settled is not None:
            return
        name = hashlib.sha256(json.dumps(embedder.describe(), sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"precision-{name}.json"
        said = _read_json(path)
        notes: list[str] = getattr(embedder, "notes", [])
        if said is not None and said.get("precision") in ("fp32", "bf16"):
            embedder.settled = str(said["precision"])
            embedder.agreement = _agreement(said.get("agreement"))
            for note in said.get("notes", []):
                if note not in notes:
                    notes.append(note)
                    logger.warning("%s", note)
            return
        embedder.settle(images)
        agreement = embedder.agreement.to_json() if embedder.agreement else None
        _write_json(path, {"schema": SCHEMA, "precision": embedder.settled, "agreement": agreement, "notes": list(notes)})


def _agreement(said: Any) -> Agreement | None:
    if not isinstance(said, dict):
        return None
    names = ("min_cosine", "max_relative_error", "spread_error", "score_correlation")
    numbers = {key: float("nan") if said.get(key) is None else float(said[key]) for key in names}
    return Agreement(n_images=int(said["n_images"]), accepted=bool(said["accepted"]), **numbers)


def _whole(images: ImageBatches) -> tuple[ImageBatches, npt.NDArray[np.int64]]:
    """The data set that a view belongs to, and the view's rows in it; any other images are their own whole."""
    base, rows = getattr(images, "base", None), getattr(images, "rows", None)
    if base is not None and rows is not None and hasattr(base, "images"):
        whole: ImageBatches = base.images()
        return whole, np.asarray(rows, dtype=np.int64)
    return images, np.arange(len(images), dtype=np.int64)


def _missing(path: Path, rows: npt.NDArray[np.int64], dim: int) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int64]]:
    """A shard, None where there is none, and those of these rows that are not in it."""
    stored = _read_shard(path, dim)
    return stored, np.unique(rows) if stored is None else np.unique(rows[np.isnan(stored[rows % SHARD_ROWS, 0])])


def _merge(path: Path, first: int, height: int, rows: npt.NDArray[np.int64], new: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Put new rows into a shard beside what is there by now."""
    latest = _read_shard(path, new.shape[1])
    merged = np.full((height, new.shape[1]), np.nan, dtype=np.float32) if latest is None else np.array(latest)
    merged[rows - first] = new
    write_atomic(path, _npy(merged))
    return merged


def _key(row: int) -> bytes:
    return int(row).to_bytes(KEY_BYTES, "big")


def _read_shard(path: Path, dim: int) -> npt.NDArray[np.float32] | None:
    """A stored shard, memory-mapped; None where there is none."""
    name = f"{path.parent.name}/{path.name}"
    try:
        stored: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        raise InputError(f"embedding shard {name} is damaged ({error}); delete it, it will be computed again") from error
    if stored.ndim != 2 or stored.shape[1] != dim or stored.dtype != np.float32:
        raise InputError(f"embedding shard {name} has shape {stored.shape}; delete it, it will be computed again")
    return stored


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _npy(array: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
