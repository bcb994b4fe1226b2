"""What a patch changes: entries, share and size of the change by tensor and by layer, and its bytes against the model's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evenhand.models.parameters import state_fingerprint
from evenhand.models.parts import block_prefix
from evenhand.patches.artifact import Patch, turned_tensors
from evenhand.patches.bits import bytes_of_positions
from evenhand.patches.locate import HEAD_NAME, Path, find_copies
from evenhand.patches.storage import patch_bytes

HEAD = "head"
RATES = (0.01, 0.05, 0.10, 0.50)
"""Shares of the weights at which sizes are told."""

_LAST = re.compile(r"(norm|fc_norm|conv_head|bn2|norm_head|final_conv|features\.norm5)$")
_PER_TENSOR = 250
"""Bytes of a file that a tensor takes besides its entries: its names, types, shapes and offsets, in the middle."""


@dataclass(frozen=True)
class Change:
    """What changes in a tensor or a layer.

    Attributes:
        name: of the tensor, or of the layer: ``layer1.0``, ``blocks.3``, ``head``.
        layer: the layer that it belongs to.
        n: entries.
        changed: entries that change.
        mean: mean absolute change over the changed entries; None where the model was not given or holds no numbers.
        largest: largest absolute change.
        relative: norm of the change over the norm of all n entries before.
    """

    name: str
    layer: str
    n: int
    changed: int
    mean: float | None = None
    largest: float | None = None
    relative: float | None = None

    @property
    def share(self) -> float:
        """Changed entries of all, in [0, 1]."""
        return self.changed / self.n if self.n else 0.0


@dataclass(frozen=True)
class PatchFacts:
    """A patch in numbers.

    Attributes:
        tensors: every tensor of the network, in its order.
        layers: the same by layer, in the order of their first tensors; from the input to the head, where the tensors came sorted by
            name, as many files hold them.
        n: entries of the network.
        changed: entries that change.
        n_bytes: of the patch file.
        model_bytes: of the network's tensors.
        at_rates: rate -> bytes of a patch that changed this share of every tensor but the head, and all of the head.
    """

    tensors: tuple[Change, ...]
    layers: tuple[Change, ...]
    n: int
    changed: int
    n_bytes: int
    model_bytes: int
    at_rates: Mapping[float, int]

    @property
    def share(self) -> float:
        """Changed entries of all, in [0, 1]."""
        return self.changed / self.n if self.n else 0.0

    @property
    def share_of_bytes(self) -> float:
        """Size of the patch file over the size of the network's tensors."""
        return self.n_bytes / self.model_bytes if self.model_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON: numbers that are not known are null."""
        rows = {"tensors": self.tensors, "layers": self.layers}
        told = {key: [{**asdict(item), "share": item.share} for item in items] for key, items in rows.items()}
        size = {"bytes": self.n_bytes, "model_bytes": self.model_bytes, "share_of_bytes": self.share_of_bytes}
        rates = [{"rate": rate, "bytes": n, "share_of_bytes": n / max(self.model_bytes, 1)} for rate, n in self.at_rates.items()]
        return {"n": self.n, "changed": self.changed, "share": self.share, **size, "at_rates": rates, **told}


def patch_facts(patch: Patch, state: Mapping[str, Tensor] | None = None, *, n_bytes: int | None = None) -> PatchFacts:
    """What a patch changes.

    Args:
        patch: the patch.
        state: the model before or after it, for the size of changes; None leaves that out.
        n_bytes: size of its file; default: counted by writing it in memory.

    Raises:
        InputError: the model is neither.
        CheckpointError: the model's tensors do not fit.

    Example:
        >>> from evenhand.patches import make_patch
        >>> before, after = {"fc.weight": torch.zeros(4)}, {"fc.weight": torch.tensor([0.0, 0.0, 0.5, -1.0])}
        >>> found = patch_facts(make_patch(before, after), before)
        >>> found.layers[0].name, found.layers[0].share, found.layers[0].mean, found.layers[0].largest
        ('head', 0.5, 0.75, 1.0)
    """
    pairs = {} if state is None else _both(patch, state)
    sums = {name: _sums(*pair) if pair is not None else None for name, pair in pairs.items()}
    tensors = [_change(name, layer_of(name), [name], patch, sums) for name in patch.tensors]
    members: dict[str, list[str]] = {}
    for item in tensors:
        members.setdefault(item.layer, []).append(item.name)
    if list(patch.tensors) == sorted(patch.tensors):
        members = {layer: members[layer] for layer in sorted(members, key=_from_input)}
    layers = [_change(layer, layer, names, patch, sums) for layer, names in members.items()]
    return PatchFacts(
        tuple(tensors),
        tuple(layers),
        sum(spec.numel for spec in patch.tensors.values()),
        patch.n_changed,
        len(patch_bytes(patch)) if n_bytes is None else n_bytes,
        sum(spec.numel * spec.itemsize for spec in patch.tensors.values()),
        {rate: size_at(patch, rate) for rate in RATES},
    )


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, from its name in the timm network: a block, the head, or the module it lies in.

    Example:
        >>> [layer_of(name) for name in ("blocks.3.attn.qkv.weight", "layer1.0.bn1.bias", "conv1.weight", "fc.bias", "pos_embed")]
        ['blocks.3', 'layer1.0', 'conv1', 'head', 'pos_embed']
    """
    if HEAD_NAME.match(name):
        return HEAD
    block = block_prefix(name)
    if block is not None:
        return block
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "features" and len(parts) > 2 else parts[0]


def _from_input(layer: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    """Sorts layers by their names from the input to the head: stem, blocks as they are counted, last norm, head."""
    rank = 3 if layer == HEAD else 2 if _LAST.match(layer) else 1 if block_prefix(f"{layer}.weight") is not None else 0
    return rank, tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", layer))


def size_at(patch: Patch, rate: float) -> int:
    """Bytes of a patch that changes a share of every floating-point tensor of the network, and all of its head; within a few percent.

    Args:
        patch: any patch of the network.
        rate: share in [0, 1].
    """
    total = 0
    for name, spec in patch.tensors.items():
        if not spec.torch_dtype.is_floating_point or not spec.numel:
            continue
        k = spec.numel if layer_of(name) == HEAD else math.ceil(rate * spec.numel)
        total += k * spec.itemsize + bytes_of_positions(k, spec.numel) + _PER_TENSOR
    return total


def _both(patch: Patch, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor] | None]:
    """Tensor name -> its values before and after; None for types whose changes have no size."""
    places: dict[Path, Tensor] = {(name,): tensor for name, tensor in state.items()}
    copy = find_copies(places, patch.tensors, "the model")[0]
    own = {name: places[path] for name, path in copy.items()}
    is_patched = state_fingerprint(own) == patch.result_hash and patch.result_hash != patch.base_hash
    other = turned_tensors({(name,): tensor for name, tensor in own.items()}, patch, revert=is_patched)
    pairs: dict[str, tuple[Tensor, Tensor] | None] = {}
    for name, tensor in own.items():
        turned = other.get((name,), tensor)
        pair = (turned, tensor) if is_patched else (tensor, turned)
        pairs[name] = pair if tensor.is_floating_point() else None
    return pairs


def _sums(old: Tensor, new: Tensor) -> tuple[float, float, float, float]:
    """(sum of absolute changes, largest, sum of their squares, sum of squares before), where both are finite."""
    a, b = old.detach().cpu().double().reshape(-1), new.detach().cpu().double().reshape(-1)
    known = torch.isfinite(a) & torch.isfinite(b)
    a, change = a[known], (b[known] - a[known]).abs()
    largest = float(change.max()) if len(change) else 0.0
    return float(change.sum()), largest, float(change.square().sum()), float(a.square().sum())


def _change(name: str, layer: str, names: Iterable[str], patch: Patch, sums: Mapping[str, Any]) -> Change:
    names = list(names)
    n = sum(patch.tensors[item].numel for item in names)
    changed = sum(len(patch.entries[item]) for item in names if item in patch.entries)
    found = [sums[item] for item in names if sums.get(item) is not None]
    if not found or not changed:
        return Change(name, layer, n, changed)
    total, largest, squares, before = (sum(column) if k != 1 else max(column) for k, column in enumerate(zip(*found, strict=True)))
    relative = math.sqrt(squares / before) if before else None
    return Change(name, layer, n, changed, total / changed, largest, relative)
