"""Masks that no search has to find: the comparisons of FairTune's paper, and random masks of the size of a given one.

| name | trained, beside the head |
|---|---|
| full | everything |
| head | nothing |
| attention | the attention of every block |
| norms | every normalisation layer, the last one too |
| bitfit | every bias (Ben Zaken et al., ACL 2022) |
| random | some parts of a search space, drawn at random |
| lora | low-rank updates of the attention's matrices whose layers are called, of the blocks' where there is no attention |

The released code trains the position embedding too with its fixed ``attention``; here it stays frozen.

References:
    Dutt, Bohdal, Tsaftaris, Hospedales. FairTune. ICLR 2024, arXiv:2310.05055.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from evenhand.errors import InputError, MethodError, nearest
from evenhand.models.lora import lora_matrices, read_past_layers
from evenhand.models.masks import Mask, PartChoice, check_mask, make_mask
from evenhand.models.parameters import _unwrap, is_bias, parameter_roles
from evenhand.models.parts import SPACES, Part, available_spaces, make_parts
from evenhand.random import generator

FIXED_MASKS = ("full", "head", "attention", "norms", "bitfit", "random", "lora")
FIXED_SPACE = "fixed:"
"""``Mask.space`` of a fixed mask is this and its name; a random mask has the space that it was drawn from."""

LORA_RANK = 8
_DRAWS, _NEAR = 200, 0.1
_RANDOM_SPACES = ("norms|attention|mlp", "conv|norm|se", "conv|norm", "blocks")


def fixed_mask(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    seed: int,
    n: int | None = None,
    space: str | None = None,
    like: Mask | None = None,
) -> Mask:
    """One of `FIXED_MASKS` for a network.

    Args:
        model: a timm network or an `ImageClassifier`.
        name: which.
        lr: peak learning rate.
        seed: of the random mask; written to every mask.
        n: random: number of trained parts (default: half of them); lora: the rank (default 8).
        space: random: the search space to draw from; default: norms, attention and MLP of every block, or convolutions,
            normalisation layers and squeeze-and-excite modules of every stage.
        like: random: a mask of this network with whose size one is drawn: as many parts of every role, with the same LoRA
            ranks and learning-rate scales, and as many trained parameters (exactly where blocks are alike, as in a ViT;
            else within a tenth where one of 200 draws is, else the nearest of them). Never that mask itself. Gives the space, too.

    Raises:
        InputError: no mask of this name, an option it has no use for, or more parts than there are.
        MethodError: the network has no such parts, or there is no other mask of the size of ``like``.

    Example:
        >>> from timm import create_model
        >>> vit = create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> [round(fixed_mask(vit, name, lr=1e-3, seed=0).share(vit), 3) for name in ("full", "attention", "bitfit", "head")]
        [1.0, 0.397, 0.16, 0.157]
    """
    if name not in FIXED_MASKS:
        raise InputError(f"fixed mask '{name}' is not known; {nearest(name, FIXED_MASKS)}")
    if (n is not None and name not in ("random", "lora")) or ((space or like) and name != "random"):
        raise InputError(f"mask '{name}' has no size or space to choose; n is of random and lora, space and like are of random")
    if name == "random":
        if like is not None:
            return _random_like(model, like, lr, seed)
        return _random(model, space or _first_space(model), lr, seed, n)
    parts, train = fixed_parts(model, name)
    ranks = [(LORA_RANK if n is None else n) if name == "lora" and bit else 0 for bit in train]
    if name == "lora" and max(ranks, default=0) < 1:
        raise InputError(f"the rank of mask 'lora' is {n}, but must be at least 1")
    return make_mask(model, FIXED_SPACE + name, parts, train, lr=lr, seed=seed, lora_ranks=ranks)


def fixed_parts(model: nn.Module, name: str) -> tuple[tuple[Part, ...], list[bool]]:
    """The parts of a fixed mask and which are trained: what is outside the blocks, then every block.

    Where a block is trained in part, it is two parts: what is trained, and the rest.

    Raises:
        MethodError: the network has nothing of the kind.
    """
    roles = {key: role for key, role in parameter_roles(model).items() if role != "head"}
    wanted = _wanted(model, name, roles)
    blocks = make_parts(model, "blocks") if "blocks" in available_spaces(model) else ()
    inside = {key for block in blocks for key in block.parameters}
    outside = Part("outside", tuple(key for key in roles if key not in inside), "outside", -1)
    parts: list[Part] = []
    train: list[bool] = []
    for whole in (outside, *blocks):
        chosen = tuple(key for key in whole.parameters if key in wanted)
        rest = tuple(key for key in whole.parameters if key not in wanted)
        if chosen:
            parts.append(Part(f"{whole.name}.{name}" if rest else whole.name, chosen, name if rest else whole.role, whole.depth))
            train.append(True)
        if rest:
            parts.append(Part(f"{whole.name}.rest" if chosen else whole.name, rest, "rest" if chosen else whole.role, whole.depth))
            train.append(False)
    return tuple(parts), train


def _wanted(model: nn.Module, name: str, roles: dict[str, str]) -> set[str]:
    """Names of the trained parameters, the head's aside."""
    if name == "full":
        return set(roles)
    if name == "head":
        return set()
    if name == "norms":
        found = {key for key, role in roles.items() if role == "norm"}
    elif name == "bitfit":
        found = {key for key in roles if is_bias(key)}
    elif name == "attention":
        return {key for part in make_parts(model, "attention") for key in part.parameters}
    else:
        space = "attention" if "attention" in available_spaces(model) else "blocks"
        found = {key for part in make_parts(model, space) for key in lora_matrices(model, part.parameters)}
        found -= set(read_past_layers(model, sorted(found)))
    if not found:
        kind = {"norms": "normalisation layers", "bitfit": "biases", "lora": "matrices"}[name]
        raise MethodError(f"mask '{name}' needs {kind}, which {type(_unwrap(model)).__name__} lacks; use full or head")
    return found


def _first_space(model: nn.Module) -> str:
    spaces = available_spaces(model)
    found = next((space for space in _RANDOM_SPACES if space in spaces), None)
    if found is None:
        raise MethodError(f"a random mask needs a search space, and {type(_unwrap(model)).__name__} has none; use full or head")
    return found


def _random(model: nn.Module, space: str, lr: float, seed: int, n: int | None) -> Mask:
    parts = make_parts(model, space)
    count = len(parts) // 2 if n is None else n
    if not 0 <= count <= len(parts):
        raise InputError(f"a random mask of {count} parts was asked for, but space '{space}' has {len(parts)} in this network")
    bits = np.zeros(len(parts), dtype=bool)
    bits[generator(seed, "random mask").choice(len(parts), count, replace=False)] = True
    return make_mask(model, space, parts, bits.tolist(), lr=lr, seed=seed)


def _random_like(model: nn.Module, like: Mask, lr: float, seed: int) -> Mask:
    """Permute a mask's choices among the parts of one role, until it is another mask that trains as many parameters as before."""
    if like.space not in SPACES:
        raise MethodError(f"a random mask of the size of one of space '{like.space}' cannot be drawn; give one of a search space")
    check_mask(model, like)
    parts = make_parts(model, like.space)
    size, rng = like.share(model), generator(seed, "random mask")
    best, distance = None, np.inf
    for _ in range(_DRAWS):
        drawn = replace(like, parts=_permuted(parts, like.parts, rng), lr=lr, seed=seed, study=None, trial=None, data_hash="")
        if drawn.key == like.key:
            continue
        off = abs(drawn.share(model) / size - 1.0)
        if off < distance:
            best, distance = drawn, off
        if off <= _NEAR:
            break
    if best is None:
        raise MethodError("there is no other mask of this one's size: it trains all parts of a role alike; compare with full or head")
    return best


def _permuted(parts: Sequence[Part], choices: Sequence[PartChoice], rng: np.random.Generator) -> tuple[PartChoice, ...]:
    out = list(choices)
    for role in dict.fromkeys(part.role for part in parts):
        places = [k for k, part in enumerate(parts) if part.role == role]
        for place, source in zip(places, rng.permutation(places), strict=True):
            given = choices[int(source)]
            out[place] = replace(choices[place], train=given.train, lora_rank=given.lora_rank, lr_scale=given.lr_scale)
    return tuple(out)
