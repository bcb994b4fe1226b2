"""A mask: which parts of a network are trained, at what learning rate, and where that was found; the file mask.json.

    trained(theta_p)  =  bit_p = 1            frozen parameters keep their very bits
    lr_p              =  lr * lr_scale_p      the head has scale 1 and is always trained

A part with a LoRA rank is trained through low-rank updates of its matrices (`evenhand.models.lora`); its other parameters
stay frozen. The learning rate belongs to the mask: the released code of FairTune did not store it, trained with its
default of 0.1 in stage two, and collapsed; here a mask without one is refused.

References:
    Dutt, Bohdal, Tsaftaris, Hospedales. FairTune. ICLR 2024, arXiv:2310.05055.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from evenhand.errors import InputError, MethodError
from evenhand.files import write_text
from evenhand.models.lora import add_lora, lora_matrices, lora_size
from evenhand.models.parameters import _unwrap, head_prefixes, hold_frozen_norms, model_fingerprint, parameter_roles
from evenhand.models.parts import SPACES, Part, make_parts

SCHEMA = "evenhand.mask/1"
MASK_FILE = "mask.json"


@dataclass(frozen=True)
class PartChoice:
    """What a mask decides about one part.

    Attributes:
        name: the part's name in its space.
        parameters: its parameters' names in the timm network.
        train: whether it is trained.
        lora_rank: 0: trained in full; else the rank of the updates of its matrices, the rest of it frozen.
        lr_scale: factor on the learning rate of this part.
    """

    name: str
    parameters: tuple[str, ...]
    train: bool
    lora_rank: int = 0
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.train, bool) or not isinstance(self.lora_rank, int):
            raise InputError(
                f"part '{self.name}' has train {self.train!r} and lora_rank {self.lora_rank!r}, but must be true or false and a number"
            )
        if self.lora_rank < 0 or (self.lora_rank and not self.train):
            raise InputError(
                f"part '{self.name}' has lora_rank {self.lora_rank} and train={self.train}; a rank is >= 0, and 0 where frozen"
            )
        if not (math.isfinite(self.lr_scale) and self.lr_scale > 0):
            raise InputError(f"part '{self.name}' has lr_scale {self.lr_scale!r}, but must be above 0; freeze a part with train=false")


@dataclass(frozen=True)
class Mask:
    """Which parts are trained and how.

    Attributes:
        space: the search space the parts are of (`evenhand.models.parts.SPACES`), or ``fixed:`` and a name.
        parts: a choice for every part of the space, from the input to the head.
        lr: peak learning rate it was found with.
        seed: seed of the search or of the random mask.
        model_hash: `network_hash` of the network it was made for; empty where not known (published masks).
        data_hash: fingerprint of the data it was searched on; empty where none was.
        study: name of the study that found it.
        trial: number of the trial that found it.
        architecture: timm name of the network.
    """

    space: str
    parts: tuple[PartChoice, ...]
    lr: float
    seed: int
    model_hash: str
    data_hash: str
    study: str | None = None
    trial: int | None = None
    architecture: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.lr, int | float) and not isinstance(self.lr, bool) and math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"the mask's learning rate is {self.lr!r}, but must be a number above 0")
        names = [name for part in self.parts for name in part.parameters]
        if len(names) != len(set(names)):
            raise InputError(f"the mask has {len(names)} parameters of which only {len(set(names))} differ; parts must not overlap")

    @property
    def key(self) -> str:
        """sha256 of what decides a training beside learning rate, seed and data: trained parameters, ranks and scales.

        Masks of two spaces that train the same parameters in the same way have the same key.
        """
        trained = [part for part in self.parts if part.train]
        ways = sorted((name, part.lora_rank, float(part.lr_scale)) for part in trained for name in part.parameters)
        return hashlib.sha256(json.dumps(ways).encode()).hexdigest()

    @property
    def bits(self) -> tuple[int, ...]:
        """1 for every trained part, 0 for every frozen one; the published vector."""
        return tuple(int(part.train) for part in self.parts)

    def to_json(self) -> str:
        """The text of mask.json; `from_json` restores the very mask."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Mask:
        """The mask of a mask.json.

        Raises:
            InputError: not a mask, of another schema, or without a learning rate.
        """
        return _from_record(_parse(text), None)

    def trained(self, model: nn.Module) -> set[str]:
        """Names of the parameters whose values a training changes: trained ones, matrices with LoRA, and the head.

        Args:
            model: the network before `apply_mask` or after `merge_lora`.
        """
        return _head(model) | {name for name, rank, _ in _choices(model, self.parts) if not rank} | set(_lora_ranks(model, self.parts))

    def share(self, model: nn.Module) -> float:
        """Share of the network's parameters that are trained, head included; LoRA counts its own, r (rows + columns).

        Args:
            model: the network before `apply_mask` or after `merge_lora`.

        Returns:
            Trained parameters over the network's own parameters.

        Raises:
            MethodError: the mask is of another network.
        """
        network = _unwrap(model)
        check_mask(model, self)
        ranks = _lora_ranks(model, self.parts)
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        full = sum(sizes[name] for name in self.trained(model) - set(ranks))
        return (full + lora_size(network, ranks)) / sum(sizes.values())


def network_hash(model: nn.Module) -> str:
    """Hash of a network's weights without its head, which differs from seed to seed.

    Args:
        model: a timm network or an `ImageClassifier`.
    """
    return model_fingerprint(_unwrap(model), without=head_prefixes(model))


def make_mask(
    model: nn.Module,
    space: str,
    parts: Sequence[Part],
    bits: Iterable[bool | int],
    *,
    lr: float,
    seed: int = 0,
    lora_ranks: Sequence[int] | None = None,
    lr_scales: Sequence[float] | None = None,
    data_hash: str = "",
) -> Mask:
    """A mask from one bit a part.

    Args:
        model: the network the parts are of.
        space: their space.
        parts: from `make_parts`.
        bits: 1 to train a part, 0 to freeze it.
        lr: peak learning rate.
        seed: what to write as the mask's seed.
        lora_ranks: a rank for every part, 0 to train it in full; of frozen parts it is ignored.
        lr_scales: a factor for every part; of frozen parts it is ignored.
        data_hash: fingerprint of the data.

    Raises:
        InputError: not as many bits as parts.

    Example:
        >>> from timm import create_model
        >>> from evenhand.models.parts import make_parts
        >>> vit = create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> mask = make_mask(vit, "attention", make_parts(vit, "attention"), [1, 0], lr=1e-4)
        >>> mask.bits, round(mask.share(vit), 3)
        ((1, 0), 0.277)
    """
    chosen = [bool(bit) for bit in bits]
    ranks = list(lora_ranks) if lora_ranks is not None else [0] * len(parts)
    scales = list(lr_scales) if lr_scales is not None else [1.0] * len(parts)
    if not len(chosen) == len(ranks) == len(scales) == len(parts):
        raise InputError(
            f"space '{space}' has {len(parts)} parts in this network, but {len(chosen)} bits, {len(ranks)} ranks and {len(scales)} "
            "learning-rate scales arrived; give one of each a part"
        )
    choices = tuple(
        PartChoice(part.name, part.parameters, bit, rank if bit else 0, scale if bit else 1.0)
        for part, bit, rank, scale in zip(parts, chosen, ranks, scales, strict=True)
    )
    name = getattr(model, "name", None)
    architecture = name if isinstance(name, str) else _architecture(model)
    return Mask(space, choices, lr, seed, network_hash(model), data_hash, architecture=architecture)


def apply_mask(model: nn.Module, mask: Mask, *, seed: int | None = None) -> list[str]:
    """Make a network train what a mask says: gradients, held batch norms, LoRA layers, learning-rate scales.

    Frozen batch norms also keep their statistics: `ImageClassifier.train` leaves them in evaluation mode (for a bare
    network call `hold_frozen_norms` after every ``train()``). The scales are read by `parameter_groups`. After training,
    `merge_lora` makes it a plain network again.

    Args:
        model: a timm network or an `ImageClassifier`, changed in place.
        mask: of this network.
        seed: seeds the LoRA layers; default: the mask's.

    Returns:
        Names of the trainable parameters; those of LoRA layers have names of their own.

    Raises:
        MethodError: the mask is of another network, or gives a rank to a part that has no matrix.
        DependencyError: LoRA is asked for, and peft is not installed.
    """
    network = _unwrap(model)
    if hasattr(network, "peft_config"):
        raise MethodError("this network has LoRA layers of a mask already; fold them in with merge_lora before the next mask")
    check_mask(model, mask)
    ranks = _lora_ranks(model, mask.parts)
    trained = {name: scale for name, rank, scale in _choices(model, mask.parts) if not rank}
    scales = {name: part.lr_scale for part in mask.parts for name in part.parameters if name in ranks}
    trained |= dict.fromkeys(_head(model), 1.0)
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
        parameter.lr_scale = trained.get(name, 1.0)  # type: ignore[attr-defined]
    if ranks:
        add_lora(model, ranks, scales, mask.seed if seed is None else seed)
    hold_frozen_norms(model)
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def check_mask(model: nn.Module, mask: Mask) -> None:
    """Refuse a mask of another network: its parameters must be the network's, and its parts those of its space there.

    Raises:
        MethodError: says what differs.
    """
    own, heads = {name for name, _ in _unwrap(model).named_parameters()}, _head(model)
    foreign = [name for part in mask.parts for name in part.parameters if name not in own or name in heads]
    made = f"a mask of {mask.architecture}" if mask.architecture else "this mask"
    if foreign:
        raise MethodError(
            f"{made} has parameters that this network ({_architecture(model)}) lacks or that are its head "
            f"({len(foreign)}, first: {foreign[0]}); use a mask that was searched for it"
        )
    expected = _parts_of(model, mask.space)
    if expected is not None and {(part.name, part.parameters) for part in mask.parts} != expected:
        raise MethodError(
            f"{made} has {len(mask.parts)} parts of '{mask.space}', which are not the {len(expected)} of this network "
            f"({_architecture(model)}); use a mask that was searched for it"
        )


def _parts_of(model: nn.Module, space: str) -> set[tuple[str, tuple[str, ...]]] | None:
    """Names and parameters of the parts of a space, None where it is neither a search space nor of a fixed mask."""
    from evenhand.models.fixed_masks import FIXED_MASKS, FIXED_SPACE, fixed_parts

    name = space.removeprefix(FIXED_SPACE)
    if space in SPACES:
        parts = make_parts(model, space)
    elif space.startswith(FIXED_SPACE) and name in FIXED_MASKS:
        parts = fixed_parts(model, name)[0]
    else:
        return None
    return {(part.name, part.parameters) for part in parts}


def read_mask(
    path: str | Path, model: nn.Module, lr: float | None = None, *, space: str | None = None, other_weights: bool = False
) -> Mask:
    """Read a mask.json, or a published ``.npy`` vector of bits, for a network.

    Args:
        path: the file, or the folder of a search with its mask.json.
        model: the network that it will be applied to.
        lr: learning rate to use instead of the file's; a ``.npy`` has none, so there it must be given.
        space: the space of a ``.npy``; default: the only published one of that length. A mask.json states its own.
        other_weights: take a mask.json that was searched on other weights of the same architecture.

    Raises:
        InputError: the file cannot be read, is no mask, or has no learning rate.
        MethodError: the mask is of another network, of other weights, or of another length.
    """
    path = Path(path)
    path = path / MASK_FILE if path.is_dir() else path
    if path.suffix == ".npy":
        from evenhand.models.published_masks import read_published

        return read_published(path, model, lr, space)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"mask {path} cannot be read ({error}); give a mask.json that a search wrote, or a published .npy") from error
    mask = _from_record(_parse(text, str(path)), lr, str(path))
    check_mask(model, mask)
    if mask.model_hash and not other_weights and mask.model_hash != network_hash(model):
        raise MethodError(
            f"mask {path} was searched on other weights than these ({mask.model_hash[:12]}…, here {network_hash(model)[:12]}…); "
            "give the checkpoint of its search, or say that other weights of this architecture are meant (method.mask_other_weights=true)"
        )
    return mask


def write_mask(path: str | Path, mask: Mask) -> None:
    """Write mask.json, completely or not at all.

    Raises:
        DiskFullError: no space is left; an older file stays.
        RunError: the file cannot be written.
    """
    write_text(path, mask.to_json())


def _parse(text: str, label: str = "the text") -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{label} is not a mask: it is not JSON ({error}); give a mask.json that a search wrote") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        arrived = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{label} is not a mask: schema is {arrived!r}, but must be '{SCHEMA}'; give a mask.json that a search wrote")
    return record


def _from_record(record: dict[str, Any], lr: float | None, label: str = "the mask") -> Mask:
    if record.get("lr") is None and lr is None:
        raise InputError(f"{label} has no learning rate, and none is assumed; search again or give one with method.mask_lr=…")
    _check_types(record, label)
    fields = {key: value for key, value in record.items() if key not in ("schema", "lr", "parts")}
    try:
        parts = tuple(PartChoice(**{**part, "parameters": tuple(part["parameters"])}) for part in record["parts"])
        mask = Mask(parts=parts, lr=record["lr"] if lr is None else lr, **fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"{label} is not a complete mask ({error}); give a mask.json that a search wrote") from error
    return mask


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
_FIELDS: _Rules = MappingProxyType(
    {
        "space": (_is_text, "text, the name of its search space"),
        "parts": (lambda value: isinstance(value, list) and all(isinstance(part, dict) for part in value), "a list with an object a part"),
        "seed": (_is_whole, "a whole number"),
        "model_hash": (_is_text, "text, empty where the network is not known"),
        "data_hash": (_is_text, "text, empty where it was searched on no data"),
        "study": (lambda value: value is None or _is_text(value), "text or null"),
        "trial": (lambda value: value is None or _is_whole(value), "a whole number or null"),
        "architecture": (lambda value: value is None or _is_text(value), "text or null"),
    }
)
"""Field of a mask.json -> whether a value is one, and what it must be. The learning rate is judged by `Mask`, which it may be given to."""
_PART_FIELDS: _Rules = MappingProxyType(
    {
        "name": (_is_text, "text"),
        "parameters": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of parameters' names"),
        "train": (lambda value: isinstance(value, bool), "true or false"),
        "lora_rank": (_is_whole, "a whole number"),
        "lr_scale": (_is_number, "a number"),
    }
)


def _check_types(record: Mapping[str, Any], label: str) -> None:
    """Refuse values of other types than a search writes; fields that are absent or unknown are not judged here."""
    _check_fields(record, _FIELDS, label, "")
    for k, part in enumerate(record.get("parts", ())):
        _check_fields(part, _PART_FIELDS, label, f"parts[{k}].")


def _check_fields(record: Mapping[str, Any], rules: _Rules, label: str, within: str) -> None:
    for name, (fits, rule) in rules.items():
        if name in record and not fits(record[name]):
            arrived = reprlib.repr(record[name])
            raise InputError(
                f"{label} is not a complete mask: {within}{name} is {arrived}, but must be {rule}; give a mask.json that a search wrote"
            )


def _architecture(model: nn.Module) -> str:
    network = _unwrap(model)
    name = getattr(model, "name", None) or (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    return str(name or type(network).__name__)


def _head(model: nn.Module) -> set[str]:
    return {name for name, role in parameter_roles(model).items() if role == "head"}


def _choices(model: nn.Module, parts: Iterable[PartChoice]) -> list[tuple[str, int, float]]:
    """Name, rank and scale of every parameter of the trained parts."""
    return [(name, part.lora_rank, part.lr_scale) for part in parts if part.train for name in part.parameters]


def _lora_ranks(model: nn.Module, parts: Iterable[PartChoice]) -> dict[str, int]:
    """Matrix -> rank, for the parts with one."""
    ranks: dict[str, int] = {}
    for part in parts:
        if part.train and part.lora_rank:
            matrices = lora_matrices(model, part.parameters)
            if not matrices:
                raise MethodError(f"part '{part.name}' has lora_rank {part.lora_rank}, but no matrix; give it rank 0")
            ranks |= dict.fromkeys(matrices, part.lora_rank)
    return ranks
