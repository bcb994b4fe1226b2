"""Search spaces: the parts of a network that a mask switches on and off, for any timm classifier.

A part is a set of parameters that is trained or frozen together, in a block or stage of the network. Every space lists
its parts from the input to the head, and inside a block in the order of the space's name, which is the order of the bits
of the published masks. Roles in a transformer's block are its submodules (``attn``, ``norm1``, ``norm2``, ``mlp``), as
published, with all they hold; in a convolutional network they are normalisation layers, squeeze-and-excite modules, and
all the rest (``conv``).

The head is in no part: it is always trained. What is outside the blocks (embeddings, tokens, stem, last norm, last
convolution) is in no part either: it stays frozen. Layers between two stages belong to the block beside them: a
``downsample`` to the first block of its stage, a DenseNet ``transition`` to the last block before it.

The released code of FairTune trains the position embedding too where it searches attention tensors; here it stays frozen.

References:
    Dutt, Bohdal, Tsaftaris, Hospedales. FairTune: Optimizing Parameter Efficient Fine Tuning for Fairness in Medical
    Image Analysis. ICLR 2024, arXiv:2310.05055.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from evenhand.errors import InputError, MethodError, nearest
from evenhand.models.lora import lora_matrices
from evenhand.models.parameters import _unwrap, is_bias, layer_ids, parameter_roles

SPACES: Mapping[str, str] = MappingProxyType(
    {
        "blocks": "one bit a block: all of it",
        "attention": "one bit a block: its attention",
        "norms": "one bit a block: its normalisation layers",
        "mlp": "one bit a block: its MLP",
        "attention+norms": "one bit a block: attention and normalisation layers together",
        "attention+mlp": "one bit a block: attention and MLP together",
        "norms+mlp": "one bit a block: normalisation layers and MLP together",
        "norms|attention|mlp": "three bits a block (published as auto_peft1)",
        "norm1|attention|norm2|mlp": "four bits a block (published as auto_peft2)",
        "attention_tensors": "one bit for each of qkv.weight, qkv.bias, proj.weight and proj.bias of every block",
        "stages": "one bit a stage: all of it",
        "conv|norm": "two bits a stage: normalisation layers, and all the rest",
        "conv|norm|se": "three bits a stage: normalisation layers, squeeze-and-excite modules, and all the rest",
        "bitfit": "one bit a block: its biases",
    }
)
"""Search space -> what a bit of it stands for."""

# where in a parameter's name its stage and block are, most specific first: EfficientNet and MobileNet; Swin, ConvNeXt and
# other networks of stages; ResNet; DenseNet; RegNet; ViT and DeiT
_BLOCKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"blocks\.(?P<stage>\d+)\.(?P<block>\d+)\.",
        r"(?:layers|stages|levels)\.(?P<stage>\d+)\.(?:blocks\.)?(?P<block>\d+)\.",
        r"layer(?P<stage>\d+)\.(?P<block>\d+)\.",
        r"features\.denseblock(?P<stage>\d+)\.denselayer(?P<block>\d+)\.",
        r"s(?P<stage>\d+)\.b(?P<block>\d+)\.",
        r"blocks\.(?P<block>\d+)\.",
    )
)
_BEFORE = re.compile(r"(?:layers|stages|levels)\.(?P<stage>\d+)\.downsample\.")
_AFTER = re.compile(r"(?:features\.transition|(?:layers|stages|levels)\.)(?P<stage>\d+)\.")
_PATHS = {
    "attention": re.compile(r"(attn|attention|self_attn)\."),
    "mlp": re.compile(r"(mlp\w*|ffn|conv_mlp)\."),
    "norms": re.compile(r"norm\w*\."),
    "norm1": re.compile(r"norm1\."),
    "norm2": re.compile(r"norm2\."),
}
_TENSOR = re.compile(r"(?:attn|attention|self_attn)\.(qkv\.weight|qkv\.bias|proj\.weight|proj\.bias)$")


@dataclass(frozen=True)
class Part:
    """Parameters that a mask trains or freezes together.

    Attributes:
        name: unique in its space, for example ``block3.attention`` or ``stage1.norm``; counted from 0.
        parameters: their names in the timm network, in its order.
        role: what they are: ``block, attention, norms, norm1, norm2, mlp, qkv.weight, …, stage, conv, norm, se, bias``.
        depth: the block or stage, 0 nearest to the input.
        matrices: those of the parameters that can have a low-rank update; a LoRA rank for a part without any is refused.
    """

    name: str
    parameters: tuple[str, ...]
    role: str
    depth: int
    matrices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """Where a parameter of a block lies: block and stage counted from 0, and its name inside the block."""

    block: int
    stage: int | None
    inner: str
    role: str


_Belongs = Callable[[_Place], bool]


def make_parts(model: nn.Module, space: str) -> tuple[Part, ...]:
    """The parts of a network in a search space, from the input to the head.

    Args:
        model: a timm network or an `ImageClassifier`.
        space: a name of `SPACES`.

    Returns:
        Parts without a parameter in common, each with at least one; the head is in none.

    Raises:
        InputError: no space of this name.
        MethodError: the network has no parts for this space; the spaces that it has are named.

    Example:
        >>> from timm import create_model
        >>> parts = make_parts(create_model("vit_tiny_patch16_224", img_size=32, depth=2), "norms|attention|mlp")
        >>> [part.name for part in parts][:4], parts[0].parameters[0]
        (['block0.norms', 'block0.attention', 'block0.mlp', 'block1.norms'], 'blocks.0.norm1.weight')
    """
    if space not in SPACES:
        raise InputError(f"search space '{space}' is not known; {nearest(space, list(SPACES))}")
    places = _places(model)
    parts = tuple(replace(part, matrices=lora_matrices(model, part.parameters)) for part in _split(places, space))
    if not parts:
        network = _unwrap(model)
        known = [name for name in SPACES if _split(places, name)]
        there = f"the spaces it has are {', '.join(known)}" if known else "it has none: its blocks are not known"
        raise MethodError(f"search space '{space}' ({SPACES[space]}) has no parts in {type(network).__name__}; {there}")
    return parts


def available_spaces(model: nn.Module) -> tuple[str, ...]:
    """The search spaces that have parts in a network, in the order of `SPACES`.

    Args:
        model: a timm network or an `ImageClassifier`.

    Example:
        >>> from timm import create_model
        >>> available_spaces(create_model("resnet10t"))
        ('blocks', 'norms', 'stages', 'conv|norm', 'bitfit')
    """
    places = _places(model)
    return tuple(space for space in SPACES if _split(places, space))


def _places(model: nn.Module) -> dict[str, _Place]:
    """Parameter name -> place, for the parameters in and between blocks; in the order of depth."""
    network: Any = _unwrap(model)
    roles = {name: role for name, role in parameter_roles(network).items() if role != "head"}
    found = {name: match for name in roles if (match := _match(name)) is not None}
    if 2 * len(found) < len(roles):
        return _places_by_layer(network, roles)
    keys = {name: (int(match.groupdict().get("stage") or 0), int(match["block"])) for name, match in found.items()}
    inner = {name: name[match.end() :] for name, match in found.items()}
    for name in roles:
        if name not in found and (key := _neighbour(name, keys)) is not None:
            keys[name], inner[name] = key, name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1]
    blocks = {key: k for k, key in enumerate(sorted(set(keys.values())))}
    stages = {stage: k for k, stage in enumerate(sorted({stage for stage, _ in blocks}))}
    staged = any("stage" in match.groupdict() for match in found.values())
    ordered = sorted((name for name in roles if name in keys), key=lambda name: blocks[keys[name]])
    return {name: _Place(blocks[keys[name]], stages[keys[name][0]] if staged else None, inner[name], roles[name]) for name in ordered}


def _match(name: str) -> re.Match[str] | None:
    return next((match for pattern in _BLOCKS if (match := pattern.match(name))), None)


def block_prefix(name: str) -> str | None:
    """The block of a parameter from its name alone, or the layer between two stages; None where it lies in neither.

    Example:
        >>> block_prefix("layer2.0.conv1.weight"), block_prefix("layers.1.downsample.norm.bias"), block_prefix("norm.weight")
        ('layer2.0', 'layers.1.downsample', None)
    """
    match = _match(name) or _BEFORE.match(name) or _AFTER.match(name)
    return None if match is None else match[0].rstrip(".")


def _neighbour(name: str, keys: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """The block that a layer between two stages belongs to; None where it is not between any."""
    before = _BEFORE.match(name)
    match = before or _AFTER.match(name)
    if match is None:
        return None
    same = [key for key in keys.values() if key[0] == int(match["stage"])]
    return (min(same) if before else max(same)) if same else None


def _places_by_layer(network: nn.Module, roles: Mapping[str, str]) -> dict[str, _Place]:
    """Networks of other families: timm's own layers between stem and head stand for the blocks."""
    if not hasattr(network, "group_matcher"):
        return {}
    layers = layer_ids(network)
    last = max(layers.values())
    ordered = sorted((name for name in roles if 0 < layers[name] < last), key=lambda name: layers[name])
    return {name: _Place(layers[name] - 1, None, name, roles[name]) for name in ordered}


def _split(places: Mapping[str, _Place], space: str) -> tuple[Part, ...]:
    """The parts of a space; none where the network lacks one of its roles."""
    by_stage = space in ("stages", "conv|norm", "conv|norm|se")
    if by_stage and (not places or any(place.stage is None for place in places.values())):
        return ()
    groups = _groups(space)
    members: dict[tuple[int, int], list[str]] = {}
    for name, place in places.items():
        depth = place.stage if by_stage and place.stage is not None else place.block
        for k, (_, belongs) in enumerate(groups):
            if belongs(place):
                members.setdefault((depth, k), []).append(name)
                break
    needed = groups if space != "attention_tensors" else groups[:1]
    if any(all(k != index for _, k in members) for index in range(len(needed))):
        return ()
    inside = places.values()
    if space.startswith("conv|") and not any(place.role == "conv" for place in inside):
        return ()
    if "+" in space and not all(any(_in_role(place, role) for place in inside) for role in space.split("+")):
        return ()
    label = "stage" if by_stage else "block"
    return tuple(
        Part(f"{label}{depth}" if role == label else f"{label}{depth}.{role}", tuple(names), role, depth)
        for (depth, k), names in sorted(members.items())
        for role in (groups[k][0],)
    )


def _groups(space: str) -> tuple[tuple[str, _Belongs], ...]:
    """Role -> what belongs to it, in the order of the bits; a parameter goes to the first that takes it."""
    everything: _Belongs = lambda place: True  # noqa: E731
    if space in ("blocks", "stages"):
        return ((space[:-1], everything),)
    if space == "bitfit":
        return (("bias", lambda place: is_bias(place.inner)),)
    if space == "attention_tensors":
        return tuple((tensor, _is_tensor(tensor)) for tensor in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"))
    if space.startswith("conv|"):
        others = tuple(space.split("|")[1:])
        own: dict[str, _Belongs] = {"conv": lambda place: place.role not in others}
        return tuple((role, own.get(role, _has_role(role))) for role in space.split("|"))
    if "+" in space:
        roles = space.split("+")
        return ((space, lambda place: any(_in_role(place, role) for role in roles)),)
    return tuple((role, lambda place, role=role: _in_role(place, role)) for role in space.split("|"))


def _is_tensor(tensor: str) -> _Belongs:
    def belongs(place: _Place) -> bool:
        match = _TENSOR.match(place.inner)
        return match is not None and match[1] == tensor

    return belongs


def _has_role(role: str) -> _Belongs:
    return lambda place: place.role == role


def _in_role(place: _Place, role: str) -> bool:
    """By submodule of the block, as published; norms that lie in no attention or MLP count as the block's own."""
    if _PATHS[role].match(place.inner):
        return True
    inside = _PATHS["attention"].match(place.inner) or _PATHS["mlp"].match(place.inner)
    return role == "norms" and place.role == "norm" and not inside
