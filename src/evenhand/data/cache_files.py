"""What a cache folder holds: the manifest, the hashes, and the images in one file or in several.

A cache that one machine has built has one ``images.bin``. One that several machines have built (`evenhand.data.shards`) has
``images-00000.bin``, ``images-00001.bin``, … of equally many rows each; rows of files that could not be read stay unused in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from evenhand.data.decoding import HASH_BYTES
from evenhand.errors import InputError
from evenhand.files import write_atomic

SCHEMA = "evenhand.cache/1"
SCHEMA_PARTS = "evenhand.cache/2"
IntArray = npt.NDArray[np.integer[Any]]


class MappedImages:
    """Images of equal size, mapped into memory from one file or from several.

    Args:
        files: arrays (rows, c, h, w), of equally many rows but for the last.
        slots: int64 (n,), where each image stands in the files taken together; None: image i stands at i.
    """

    def __init__(self, files: Sequence[npt.NDArray[Any]], slots: npt.NDArray[np.int64] | None = None) -> None:
        self._files = list(files)
        self._rows = len(files[0])
        self._slots = slots
        n = sum(len(file) for file in files) if slots is None else len(slots)
        self.shape: tuple[int, ...] = (n, *files[0].shape[1:])
        self.dtype = files[0].dtype
        self._whole = self._files[0] if slots is None and len(self._files) == 1 else None

    def image(self, row: int) -> npt.NDArray[Any]:
        """One image, (c, h, w), not copied."""
        if self._whole is not None:
            return cast(npt.NDArray[Any], self._whole[row])
        file, local = divmod(int(row if self._slots is None else self._slots[row]), self._rows)
        return cast(npt.NDArray[Any], self._files[file][local])

    def run(self, first: int, n: int) -> npt.NDArray[Any] | None:
        """Images ``first`` to ``first + n - 1``, not copied; None where they do not stand together in one file."""
        if self._whole is not None:
            return self._whole[first : first + n]
        slots = (first, first + n - 1) if self._slots is None else (int(self._slots[first]), int(self._slots[first + n - 1]))
        file, local = divmod(slots[0], self._rows)
        if slots[1] - slots[0] != n - 1 or slots[1] // self._rows != file:
            return None
        return self._files[file][local : local + n]

    def take(self, rows: IntArray | slice) -> npt.NDArray[Any]:
        """A copy of some images, (n, c, h, w), in the order asked for."""
        if self._whole is not None:
            return np.array(self._whole[rows])
        slots = np.arange(self.shape[0])[rows] if self._slots is None else self._slots[rows]
        out = np.empty((len(slots), *self.shape[1:]), self.dtype)
        files, local = np.divmod(slots, self._rows)
        for file in np.unique(files):
            here = files == file
            out[here] = self._files[file][local[here]]
        return out


def fingerprint(shape: Sequence[int], dtype: np.dtype[Any], hashes: npt.NDArray[np.uint8]) -> str:
    """sha256 over shape, type and the images' content hashes; the same however many files hold them."""
    digest = hashlib.sha256(f"{list(map(int, shape))} {np.dtype(dtype).name}".encode())
    digest.update(np.ascontiguousarray(hashes).tobytes())
    return digest.hexdigest()


def part_name(part: int) -> str:
    """The file of one part of the rows."""
    return f"images-{part:05d}.bin"


def write_manifest(
    folder: Path, shape: Sequence[int], dtype: np.dtype[Any], hashes: npt.NDArray[np.uint8], key: dict[str, Any],
    excluded: dict[int, str], part: int | None = None,
) -> None:
    """Write the hashes and, last, the manifest; only from then on there is a cache.

    Args:
        folder: the cache folder.
        shape: (n, c, h, w).
        dtype: of the stored values.
        hashes: uint8 (n, 16).
        key: what the cache was made of.
        excluded: position in the files -> reason, of those left out.
        part: rows a file, where several machines have built it.
    """
    buffer = BytesIO()
    np.save(buffer, hashes, allow_pickle=False)
    write_atomic(folder / "hashes.npy", buffer.getvalue())
    manifest = {
        "schema": SCHEMA if part is None else SCHEMA_PARTS, "shape": list(shape), "dtype": np.dtype(dtype).name,
        "fingerprint": fingerprint(shape, dtype, hashes), "key": key,
        "excluded": {str(position): reason for position, reason in sorted(excluded.items())},
        **({} if part is None else {"part": part}),
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def read_cache_files(folder: Path) -> tuple[dict[str, Any], MappedImages, npt.NDArray[np.uint8]]:
    """Manifest, mapped images and hashes of a finished cache; nothing is read but the manifest and the hashes.

    Raises:
        InputError: no manifest, or files that do not agree with it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        if manifest.get("schema") not in (SCHEMA, SCHEMA_PARTS):
            known = f"'{SCHEMA}' and '{SCHEMA_PARTS}' are read"
            raise InputError(f"image cache {folder} has schema {manifest.get('schema')!r}, but {known}; prepare it again")
        shape, dtype = tuple(manifest["shape"]), np.dtype(manifest["dtype"])
        hashes = np.load(folder / "hashes.npy", allow_pickle=False)
        files, slots = _file_rows(manifest)
        sizes = [(folder / name).stat().st_size for name in files]
    except FileNotFoundError as error:
        raise InputError(f"image cache {folder} is not complete ({Path(error.filename).name} is missing); prepare it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"image cache {folder} is damaged ({error}); prepare it again") from error
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    agrees = sizes == [rows * row_bytes for rows in files.values()] and hashes.shape == (shape[0], HASH_BYTES)
    if not agrees or fingerprint(shape, dtype, hashes) != manifest["fingerprint"]:
        raise InputError(f"image cache {folder} does not agree with its manifest; delete it and prepare again")
    # copy-on-write: tensors can be made of it without a warning, and the file never changes
    maps = [np.asarray(np.memmap(folder / name, dtype=dtype, mode="c", shape=(rows, *shape[1:]))) for name, rows in files.items()]
    return manifest, MappedImages(maps, slots), hashes


def _file_rows(manifest: dict[str, Any]) -> tuple[dict[str, int], npt.NDArray[np.int64] | None]:
    """Rows of every image file, and the slots of the images where some rows are unused."""
    if manifest["schema"] == SCHEMA:
        return {"images.bin": int(manifest["shape"][0])}, None
    n, part = int(manifest["key"]["n"]), int(manifest["part"])
    files = {part_name(k): min(part, n - k * part) for k in range(-(-n // part))}
    excluded = [int(position) for position in manifest["excluded"]]
    return files, np.setdiff1d(np.arange(n), excluded) if excluded else None
