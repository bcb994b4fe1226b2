"""Where the tensors of a network lie among all that a file holds: under prefixes, in nested dictionaries, under other names."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from evenhand.errors import CheckpointError
from evenhand.models.layouts import recognise

HEAD_NAME = re.compile(r"(head|fc|classifier|last_linear|heads|head_dist|head_l|head_cls)\.")
"""Names of the head's tensors in timm's networks."""
Path = tuple[Hashable, ...]
"""The keys that lead to a tensor, from the outermost dictionary in."""


class Spec(Protocol):
    """Type and shape that a tensor must have."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without its counters of batches, which no hash of a model covers."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def leaves(content: Any) -> dict[Path, Tensor]:
    """Every tensor in nested dictionaries, by the keys that lead to it."""
    return dict(_walk(content, ()))


def _walk(content: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _walk(value, (*path, key))


def find_copies(found: Mapping[Path, Tensor], tensors: Mapping[str, Spec], label: str) -> list[dict[str, Path]]:
    """Every place where a network lies in full: its own names after one prefix in one dictionary, of the right types and shapes.

    A head may have another name there. Where no dictionary has the network's names, the published layouts are tried
    (`evenhand.models.layouts`), which rename.

    Args:
        found: tensors by place.
        tensors: the network's names with types and shapes.
        label: how messages name what holds them.

    Returns:
        For each copy: the network's name -> its place.

    Raises:
        CheckpointError: there is none; the details name what is missing or of another shape in the nearest.
    """
    problems: list[str] | None = None
    for look in (_by_parent, _renamed):
        copies: list[dict[str, Path]] = []
        for names in look(found):
            for copy, wrong in _in_one(names, tensors, found):
                if not wrong:
                    copies.append(copy)
                elif problems is None or len(wrong) < len(problems):
                    problems = wrong
        if copies:
            return copies
    raise _does_not_fit(label, tensors, problems)


def _does_not_fit(label: str, tensors: Mapping[str, Spec], problems: list[str] | None) -> CheckpointError:
    if problems is None:
        some = ", ".join(list(tensors)[:3])
        return CheckpointError(
            f"{label} holds none of the {len(tensors)} tensors of the network that the patch belongs to ({some}, …); it is of another "
            "architecture, or not in timm's names: give the model that the patch was made for"
        )
    types = all(text.startswith("type: ") for text in problems)
    hint = "convert them to the types that the patch was made for" if types else "give the model that the patch was made for"
    count = f"tensors that do not fit: {len(problems)}"
    return CheckpointError(f"{label} is not the network that the patch belongs to ({count}); {hint}", problems)


def _by_parent(found: Mapping[Path, Tensor]) -> list[dict[str, Path]]:
    """The tensors of each dictionary under their names, outermost first."""
    parents: dict[Path, dict[str, Path]] = {}
    for path in found:
        if path and isinstance(path[-1], str):
            parents.setdefault(path[:-1], {})[path[-1]] = path
    return [names for _, names in sorted(parents.items(), key=lambda item: len(item[0]))]


def _renamed(found: Mapping[Path, Tensor]) -> list[dict[str, Path]]:
    """What the published layouts make of the names; renaming hands on the same tensors, so each is known by itself."""
    places = {id(tensor): path for path, tensor in found.items()}
    content: dict[Any, Any] = {}
    for path, tensor in found.items():
        inner = content
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = tensor
    try:
        layout = recognise(content, "given")
    except CheckpointError:
        return []
    return [{name: places[id(tensor)] for name, tensor in layout.state.items() if id(tensor) in places}]


def _in_one(
    names: Mapping[str, Path], tensors: Mapping[str, Spec], found: Mapping[Path, Tensor]
) -> Iterator[tuple[dict[str, Path], list[str]]]:
    """(network's name -> place, what is wrong) for every prefix under which one dictionary has a name of the network."""
    for prefix in sorted(_prefixes(names, tensors)):
        copy = {name: names[prefix + name] for name in tensors if prefix + name in names}
        wrong = [f"missing: {prefix}{name}" for name in tensors if name not in copy]
        for name, path in copy.items():
            tensor, spec = found[path], tensors[name]
            dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            if shape != spec.shape:
                wrong.append(f"shape: {prefix}{name} is {shape}, in the patch {spec.shape}")
            elif dtype != spec.dtype:
                wrong.append(f"type: {prefix}{name} is {dtype}, in the patch {spec.dtype}")
        yield copy, wrong
        if wrong and all(text.startswith("missing: ") for text in wrong):
            yield from ((other, []) for other in _with_other_head(copy, names, tensors, found))


def _with_other_head(
    copy: Mapping[str, Path], names: Mapping[str, Path], tensors: Mapping[str, Spec], found: Mapping[Path, Tensor]
) -> Iterator[dict[str, Path]]:
    """Copies completed by any layer of the head's shape, where a head is all that is missing; hashes tell which of them is the one."""
    missing = [name for name in tensors if name not in copy]
    stems = {name.rpartition(".")[0] for name in missing}
    if len(stems) != 1 or not HEAD_NAME.match(missing[0]):
        return
    taken, ends = set(copy.values()), [name.rpartition(".")[2] for name in missing]
    for other in (name.removesuffix(ends[0]) for name in names if name.endswith(f".{ends[0]}")):
        paths = {name: names[other + end] for name, end in zip(missing, ends, strict=True) if other + end in names}
        if len(paths) == len(missing) and not taken & set(paths.values()) and _fits(paths, tensors, found):
            yield {name: paths[name] if name in paths else copy[name] for name in tensors}


def _fits(paths: Mapping[str, Path], tensors: Mapping[str, Spec], found: Mapping[Path, Tensor]) -> bool:
    kinds = {name: (str(found[path].dtype).removeprefix("torch."), tuple(found[path].shape)) for name, path in paths.items()}
    return all(kind == (tensors[name].dtype, tensors[name].shape) for name, kind in kinds.items())


def _prefixes(names: Mapping[str, Path], tensors: Mapping[str, Spec]) -> set[str]:
    """Prefixes before the most telling of the network's names: the longest three."""
    telling = sorted(tensors, key=lambda name: (-len(name), name))[:3]
    ends = re.compile(rf"^(.*\.|)({'|'.join(map(re.escape, telling))})$") if telling else re.compile(r"(?!)")
    return {match[1] for name in names if (match := ends.match(name))}
