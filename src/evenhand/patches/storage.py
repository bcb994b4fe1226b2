"""A patch as a file: one safetensors file with the changed entries, readable by any program that reads safetensors.

For a tensor NAME with changed entries the file holds ``xor/NAME`` (integers of the tensor's own size), and where they are:
``index/NAME`` (flat positions), ``bits/NAME`` (one bit an entry, the first in the lowest bit of the first byte) where that is
shorter, or neither where every entry changes. The header's metadata hold ``schema`` ("evenhand.patch/1"), ``patch`` (JSON: both
hashes of the model, the hash of the data, type and shape of every tensor of the network, history) and ``checksum``: sha256 over
that text and over names, types, shapes and bytes of all tensors. It finds damage, not forgery: who can write the file can write
its checksum too, so what a patch should give (``result_hash``) is told by another way where that matters.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from evenhand import __version__
from evenhand.errors import CheckpointError, InputError
from evenhand.files import find_file, write_atomic
from evenhand.patches.artifact import Patch, TensorSpec
from evenhand.patches.bits import Entry, bits_of, restored, stored

SCHEMA = "evenhand.patch/1"
FILE = "patch.safetensors"

_PARTS = ("xor", "index", "bits")
_AGAIN = "nothing was changed; get it again from where it was made"


def save_patch(path: str | Path, patch: Patch) -> None:
    """Write a patch, whole or not at all.

    Args:
        path: the file; a folder is given ``patch.safetensors``.
        patch: from `make_patch`.

    Raises:
        InputError: its history does not fit JSON.
        DiskFullError: no space is left; an older file of that name stays.
    """
    path = Path(path)
    write_atomic(path / FILE if path.is_dir() else path, patch_bytes(patch))


def patch_bytes(patch: Patch) -> bytes:
    """The bytes of a patch file.

    Raises:
        InputError: its history does not fit JSON.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    said = {
        "base_hash": patch.base_hash,
        "result_hash": patch.result_hash,
        "data_hash": patch.data_hash,
        "tensors": [[name, spec.dtype, list(spec.shape)] for name, spec in patch.tensors.items()],
        "history": {"package": __version__, "written": now, **patch.history},
    }
    try:
        text = json.dumps(said, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"history of the patch does not fit JSON ({error}); give texts, finite numbers, lists and dictionaries") from error
    tensors = {
        f"{part}/{name}": tensor
        for name, entry in patch.entries.items()
        for part, tensor in stored(entry, patch.tensors[name].numel).items()
    }
    data: bytes = save_tensors(tensors, metadata={"schema": SCHEMA, "patch": text, "checksum": _checksum(text, tensors)})
    return data


def load_patch(path: str | Path) -> Patch:
    """Read a patch; no code in a file is ever run.

    Args:
        path: a patch file, or a folder that holds ``patch.safetensors``.

    Raises:
        InputError: there is no such file.
        CheckpointError: truncated, damaged, edited, or of another schema.
    """
    file = patch_file_of(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"patch '{path}' cannot be read ({error.strerror or error}); give the file {FILE}") from error
    try:
        tensors, header = load_tensors(data), _header(data)
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"patch file '{file.name}' is truncated or is not safetensors ({error}); {_AGAIN}") from error
    if header.get("schema") != SCHEMA:
        found = header.get("schema")
        raise CheckpointError(f"file '{file.name}' has schema {found!r}, but {SCHEMA!r} is read; it is no patch, or of another version")
    text = header.get("patch", "")
    if _checksum(text, tensors) != header.get("checksum"):
        raise CheckpointError(f"patch file '{file.name}' is not as it was written: its checksum does not fit; {_AGAIN}")
    try:
        return _parsed(json.loads(text), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"patch file '{file.name}' cannot be used ({type(error).__name__}: {error}); {_AGAIN}") from error


def patch_file_of(path: str | Path) -> Path:
    """The file of a patch: the path itself, or patch.safetensors in that folder.

    Raises:
        InputError: neither.
    """
    return find_file(
        path, FILE, "patch", folder="a patched run folder, or the file", file=f"a {FILE}, or a run folder that holds one"
    )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bits_of(tensor).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return dict(metadata)


def _parsed(said: dict[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    specs = {str(name): TensorSpec(str(dtype), tuple(int(side) for side in shape)) for name, dtype, shape in said["tensors"]}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in _PARTS or name not in specs:
            raise ValueError(f"tensor '{key}' is none of a patch")
        parts.setdefault(name, {})[part] = tensor
    entries: dict[str, Entry] = {}
    for name in (name for name in specs if name in parts):
        entries[name] = restored(parts[name], specs[name].numel, specs[name].torch_dtype)
    data_hash = said["data_hash"]
    history = dict(said["history"])
    known = None if data_hash is None else str(data_hash)
    patch = Patch(str(said["base_hash"]), str(said["result_hash"]), known, entries, specs, history)
    if not all(math.isfinite(value) for value in patch.thresholds.values()):
        raise ValueError("a threshold is no finite number")
    return patch
