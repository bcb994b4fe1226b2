"""A patch: the bits that turn one network into another, and back, with the hashes of both.

``patched[i] = delivered[i] XOR xor[i]`` on the bits of every changed entry i, and ``delivered[i] = patched[i] XOR xor[i]``.

A patch belongs to one network: applying it to another, applying it twice and taking off what is not there are refused. Names
are those of the timm network, so that a patch made for a run fits the run's folder, its export, and the checkpoint that it
came from; the normalisation and an image edit around the network are no part of it. Counters of batches
(``num_batches_tracked``) are no part of a network's hash, and a patch leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.errors import CheckpointError, InputError
from evenhand.models.parameters import state_fingerprint
from evenhand.patches.bits import Entry, bits_of, difference, flipped
from evenhand.patches.locate import Path, find_copies, without_counters

_WRAPPED = "network."
_AROUND = ("mean", "std")


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor.

    Attributes:
        dtype: torch's name without its prefix: ``float32``.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes an entry."""
        return int(self.torch_dtype.itemsize)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself.

        Raises:
            CheckpointError: torch has no such type.
        """
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"a tensor is of type '{self.dtype}', which torch {torch.__version__} does not have; use a newer torch")
        return found


@dataclass(frozen=True)
class Patch:
    """The changed entries of a network.

    Attributes:
        base_hash: `evenhand.models.parameters.state_fingerprint` of the network that it belongs to.
        result_hash: of the network that it gives.
        data_hash: of the data set that it was learnt from, None where that is not known.
        entries: tensor name -> what changes in it; other tensors stay as they are.
        tensors: name, type and shape of every tensor of the network, in its order: what the two hashes are over.
        history: anything that fits JSON on how it was made. ``thresholds`` (label -> decision threshold of the patched network)
            is used by what applies it; ``package`` and ``written`` are filled in when it is saved.
    """

    base_hash: str
    result_hash: str
    data_hash: str | None
    entries: Mapping[str, Entry]
    tensors: Mapping[str, TensorSpec]
    history: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_changed(self) -> int:
        """Number of changed entries."""
        return sum(len(entry) for entry in self.entries.values())

    @property
    def thresholds(self) -> dict[str, float]:
        """Label -> decision threshold that was chosen for the patched network; empty where none was."""
        return {str(name): float(value) for name, value in (self.history.get("thresholds") or {}).items()}


def network_state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the timm network inside a classifier, in timm's names: what a patch and its hashes are about.

    Args:
        model: an `evenhand.models.ImageClassifier`, a bare network, or the state dictionary of either.

    Example:
        >>> sorted(network_state({"mean": torch.zeros(1), "std": torch.ones(1), "network.fc.bias": torch.zeros(2)}))
        ['fc.bias']
    """
    state: Mapping[str, Tensor] = model.state_dict() if isinstance(model, nn.Module) else model
    if not all(name in state for name in _AROUND):
        return dict(state)
    return {name.removeprefix(_WRAPPED): value for name, value in state.items() if name.startswith(_WRAPPED)}


def make_patch(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    data_hash: str | None = None,
    history: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> Patch:
    """The patch that turns one network into another.

    Args:
        before: state dictionary as delivered, of a network or of an `ImageClassifier` around one.
        after: state dictionary of the same network with other values.
        data_hash: fingerprint of the data set that the change was learnt from.
        history: how it was made; fits JSON.
        allow_nonfinite: keep entries that were finite and are not any more, instead of refusing them.

    Raises:
        InputError: names, types or shapes differ, so does what is around the network, or an entry became NaN or infinite.

    Example:
        >>> before, after = {"fc.weight": torch.zeros(2, 3)}, {"fc.weight": torch.tensor([[0.0, 0, 0], [0, 1, 0]])}
        >>> patch = make_patch(before, after)
        >>> patch.entries["fc.weight"].indices.tolist(), patch.n_changed
        ([4], 1)
        >>> bool(torch.equal(apply_patch(before, patch)["fc.weight"], after["fc.weight"]))
        True
    """
    _check_around(before, after)
    old, new = without_counters(network_state(before)), without_counters(network_state(after))
    _check_alike(old, new)
    entries = {}
    for name, tensor in old.items():
        entry = difference(tensor, new[name])
        if entry is None:
            continue
        if not allow_nonfinite:
            _check_finite(name, tensor, new[name])
        entries[name] = entry
    tensors = {name: TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in old.items()}
    return Patch(state_fingerprint(old), state_fingerprint(new), data_hash, entries, tensors, dict(history or {}))


def apply_patch(state: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The patched network.

    Args:
        state: the state dictionary that the patch belongs to: of the network, of an `ImageClassifier` around it, or with a
            prefix before every name.
        patch: from `make_patch` or `evenhand.patches.load_patch`.

    Returns:
        The same names; changed tensors are new ones, all others are those that were given.

    Raises:
        InputError: another network than the patch belongs to, or one that has the patch already.
        CheckpointError: the tensors do not fit, or the patch gives another network than it says.
    """
    return _turned(state, patch, revert=False)


def revert_patch(state: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The network as it was before a patch, bit for bit; as `apply_patch`, the other way round.

    Raises:
        InputError: a network that does not have the patch.
        CheckpointError: the tensors do not fit, or the patch gives another network than it says.

    Example:
        >>> before, after = {"fc.bias": torch.tensor([0.0, 0.1])}, {"fc.bias": torch.tensor([-0.0, 0.1])}
        >>> revert_patch(after, make_patch(before, after))["fc.bias"].signbit().tolist()
        [False, False]
    """
    return _turned(state, patch, revert=True)


def _turned(state: Mapping[str, Tensor], patch: Patch, *, revert: bool) -> dict[str, Tensor]:
    new = turned_tensors({(name,): tensor for name, tensor in state.items()}, patch, revert=revert)
    return {name: new.get((name,), tensor) for name, tensor in state.items()}


def turned_tensors(leaves: Mapping[Path, Tensor], patch: Patch, *, revert: bool, label: str = "the model") -> dict[Path, Tensor]:
    """The changed tensors of everything that a file holds, by their place in it.

    A file may hold the network more than once, as raw and averaged weights: every copy that is the network in question is
    changed, any other is left alone.

    Args:
        leaves: place in the file -> tensor, as `evenhand.patches.locate.leaves` lists them.
        patch: to apply or to take off.
        revert: take it off.
        label: how messages name what holds the tensors.

    Raises:
        InputError: no copy is the network in question.
        CheckpointError: the tensors do not fit, or the patch gives another network than it says.
    """
    start, end = (patch.result_hash, patch.base_hash) if revert else (patch.base_hash, patch.result_hash)
    found: dict[Path, Tensor] = {}
    hashes = []
    for copy in find_copies(leaves, patch.tensors, label):
        state = {name: leaves[path] for name, path in copy.items()}
        hashes.append(state_fingerprint(state))
        if hashes[-1] != start:
            continue
        new = {name: flipped(state[name], entry) for name, entry in patch.entries.items()}
        if state_fingerprint({**state, **new}) != end:
            raise CheckpointError("the patch gives another model than it says, so it was damaged or edited by hand; get it again")
        found.update({copy[name]: tensor for name, tensor in new.items()})
    if start not in hashes:
        raise _wrong_model(hashes, patch, revert, label)
    return found


def _wrong_model(hashes: list[str], patch: Patch, revert: bool, label: str) -> InputError:
    base, result, here = patch.base_hash[:12], patch.result_hash[:12], hashes[0][:12]
    if not revert and patch.result_hash in hashes:
        return InputError(f"{label} has this patch already (sha256 {result}); use it as it is, or take it off: evenhand patch revert")
    if revert and patch.base_hash in hashes:
        return InputError(f"{label} does not have this patch: it is the model as delivered (sha256 {base}); there is nothing to revert")
    if revert:
        return InputError(
            f"the patch gives the model sha256 {result}, but {label} is sha256 {here}; it was changed after the patch was applied, "
            "or is another model: give the model as it was patched"
        )
    return InputError(
        f"the patch belongs to the model sha256 {base}, but {label} is sha256 {here}; give the model that it was made for, or make a "
        "patch for this one: evenhand patch make"
    )


def _check_around(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """What is around the network of an `ImageClassifier` is no part of a patch, so it may not change."""
    inside = [{name: value for name, value in state.items() if name not in _kept(state)} for state in (before, after)]
    if set(inside[0]) != set(inside[1]):
        return _check_alike(inside[0], inside[1])
    for name, value in inside[0].items():
        if value.shape != inside[1][name].shape or not bool(torch.equal(bits_of(value), bits_of(inside[1][name]))):
            raise InputError(
                f"'{name}' differs before and after, but lies outside the network, where a patch does not reach; keep it as it was"
            )
    return None


def _kept(state: Mapping[str, Tensor]) -> set[str]:
    """Names that belong to the network."""
    if not all(name in state for name in _AROUND):
        return set(state)
    return {name for name in state if name.startswith(_WRAPPED)}


def _check_alike(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    problems = [f"only before: {name}" for name in old if name not in new] + [f"only after: {name}" for name in new if name not in old]
    for name in old:
        if name in new and (old[name].shape != new[name].shape or old[name].dtype != new[name].dtype):
            was, now = old[name], new[name]
            problems.append(f"{name}: {was.dtype} {tuple(was.shape)} before, {now.dtype} {tuple(now.shape)} after")
    if problems:
        raise InputError(
            f"tensors that differ in name, type or shape before and after: {len(problems)}; a patch changes values only, so give two "
            "states of one network", problems
        )


def _check_finite(name: str, old: Tensor, new: Tensor) -> None:
    if not new.is_floating_point():
        return
    broken = int((torch.isfinite(old.detach().cpu()) & ~torch.isfinite(new.detach().cpu())).sum())
    if broken:
        raise InputError(
            f"entries of '{name}' that became NaN or infinite: {broken}; make the patch again with a smaller learning rate"
        )
