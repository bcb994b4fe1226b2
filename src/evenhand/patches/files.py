"""Patching a checkpoint on disk, in whatever layout it has: only the changed tensors differ afterwards, all else is kept.

Only the bytes of changed tensors are replaced, in safetensors and in torch files alike, so that taking a patch off gives the same
file again, byte by byte. A torch file of the older form, or one whose tensors share memory, is written anew, with its dictionaries
and its other contents.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from evenhand.errors import CheckpointError, InputError
from evenhand.files import write_atomic
from evenhand.models.checkpoints import read_checkpoint
from evenhand.models.parameters import state_fingerprint
from evenhand.patches.artifact import Patch, turned_tensors
from evenhand.patches.bits import bits_of
from evenhand.patches.locate import Path, find_copies, leaves
from evenhand.patches.torch_files import NotInPlaceError, replaced_in_place


def patch_file(source: str | FilePath, target: str | FilePath, patch: Patch, *, revert: bool = False) -> None:
    """Write the patched copy of a checkpoint.

    Args:
        source: a safetensors file, or a torch file of tensors in nested dictionaries, under any prefix.
        target: the new file; replaced whole or not at all.
        patch: to apply.
        revert: take it off instead.

    Raises:
        InputError: source and target are one file, or the checkpoint is another model than the patch is for.
        CheckpointError: the checkpoint is unsafe, truncated, or does not hold the network; nothing is written.
        DiskFullError: no space is left.
    """
    source, target = FilePath(source), FilePath(target)
    if target.exists() and source.resolve() == target.resolve():
        raise InputError(f"out={target} is the model itself; give another file, so that the model as delivered stays as it is")
    content = read_checkpoint(source)
    new = turned_tensors(leaves(content), patch, revert=revert, label=f"checkpoint {source.name}")
    if source.suffix == ".safetensors":
        write_atomic(target, _spliced(source.read_bytes(), {str(path[-1]): tensor for path, tensor in new.items()}))
        return
    try:
        data = replaced_in_place(source.read_bytes(), new)
    except NotInPlaceError:
        data = _written_anew(content, new, source.name)
    write_atomic(target, data)


def file_state(source: str | FilePath, patch: Patch) -> dict[str, Tensor]:
    """The network in a checkpoint, by the names of a patch: the copy that has or wants the patch, else the first.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not hold the network.
    """
    source = FilePath(source)
    found = leaves(read_checkpoint(source))
    copies = [{name: found[path] for name, path in copy.items()} for copy in find_copies(found, patch.tensors, f"checkpoint {source.name}")]
    known = (patch.base_hash, patch.result_hash)
    return next((copy for copy in copies if state_fingerprint(copy) in known), copies[0])


def _written_anew(content: Any, new: dict[Path, Tensor], name: str) -> bytes:
    """The bytes of a torch file with what was read, and some tensors replaced.

    Raises:
        CheckpointError: it holds objects that are not read, so that they cannot be written again.
    """
    for path, tensor in new.items():
        content = _put(content, path, tensor)
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except pickle.PicklingError as error:
        raise CheckpointError(
            f"checkpoint {name} holds objects beside its tensors that are not read, so they cannot be written again; save its state "
            "dictionary alone, and patch that file"
        ) from error
    return buffer.getvalue()


def _put(content: Any, path: tuple[Any, ...], tensor: Tensor) -> Any:
    """Replace a tensor in nested dictionaries that were just read; a parameter stays one."""
    *outer, last = path
    holder = content
    for key in outer:
        holder = holder[key]
    old = holder[last]
    holder[last] = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    return content


def _spliced(data: bytes, new: dict[str, Tensor]) -> bytes:
    """A safetensors file with the bytes of some tensors replaced; header, order and padding stay."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    out = bytearray(data)
    for name, tensor in new.items():
        begin, end = header[name]["data_offsets"]
        replacement = bits_of(tensor).numpy().tobytes()
        if end - begin != len(replacement):
            raise CheckpointError(f"tensor '{name}' takes {end - begin} bytes in the file, but has {len(replacement)}; copy it again")
        out[8 + length + begin : 8 + length + end] = replacement
    load_tensors(bytes(out))
    return bytes(out)
