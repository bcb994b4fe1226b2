"""From a trial to a mask: one choice for each part of the network, and the learning rate, log-uniform.

    part in {frozen, trained}                     or one of ``lora_ranks`` (0 frozen, -1 trained whole, r a LoRA update)
    lr_scale of each part in ``lr_scales``        where there are several to choose from
    log lr ~ U(log lr_low, log lr_high)           where they differ

All are asked for in every trial, whether or not a part is trained, so that the space has no branches and every sampler can
learn from every trial. What does not matter to a training (the scale of a frozen part) is left out of the mask.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError, MethodError
from evenhand.models.lora import read_past_layers
from evenhand.models.masks import Mask, PartChoice
from evenhand.models.parts import Part, available_spaces, make_parts

WHOLE = -1
"""The entry of ``lora_ranks`` that trains a part itself."""


class Suggests(Protocol):
    """What a space needs of a trial; `optuna.Trial` has it."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class SearchSpace:
    """What a search chooses from.

    Attributes:
        name: of the space the parts are of.
        parts: the parts of the network, from the input to the head.
        lr: (lowest, highest) learning rate.
        lora_ranks: choices for a part; empty: frozen or trained.
        lr_scales: factors to choose from; empty: 1.
        rankless: names of the parts with matrices that can have no low-rank update, because the network reads one of them
            without calling its layer.
    """

    name: str
    parts: tuple[Part, ...]
    lr: tuple[float, float]
    lora_ranks: tuple[int, ...] = ()
    lr_scales: tuple[float, ...] = ()
    rankless: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: SearchConfig, parts: Sequence[Part]) -> SearchSpace:
        """The space of a configuration.

        Raises:
            ConfigError: bounds of the learning rate or scales that cannot be used.
        """
        low, high = config.lr_low, config.lr_high
        if not 0 < low <= high or not math.isfinite(high):
            raise ConfigError(f"lr_low={low:g} and lr_high={high:g} must be above 0, the first not above the second")
        if len(set(config.lora_ranks)) == 1:
            raise ConfigError(f"lora_ranks={config.lora_ranks[0]} leaves nothing to choose; give several, for example 0,4,8,16")
        if any(scale <= 0 for scale in config.lr_scales):
            given = ",".join(map(str, config.lr_scales))
            raise ConfigError(f"lr_scales={given} must be above 0; a part is frozen by its bit, not by a scale of 0")
        return cls(config.space, tuple(parts), (low, high), tuple(dict.fromkeys(config.lora_ranks)), tuple(dict.fromkeys(config.lr_scales)))

    @classmethod
    def of_network(cls, config: SearchConfig, model: nn.Module) -> SearchSpace:
        """The space of a configuration in a network, with ranks only for those parts that can have one there.

        Args:
            config: the search's options.
            model: the network, for one forward pass where ranks are asked for; it stays as it is.

        Raises:
            ConfigError: bounds of the learning rate or scales that cannot be used.
            InputError: no space of this name.
            MethodError: the network has no parts for this space, or ranks are asked for and none of its parts can have one.
        """
        parts = make_parts(model, config.space)
        space = cls.of(config, parts)
        if not any(rank > 0 for rank in config.lora_ranks):
            return space
        everywhere = {name: make_parts(model, name) for name in available_spaces(model)}
        past = set(read_past_layers(model, {matrix for group in everywhere.values() for part in group for matrix in part.matrices}))
        if not any(_can_have_rank(part, past) for part in parts):
            raise MethodError(_no_rank(config, parts, everywhere, past))
        return replace(space, rankless=tuple(part.name for part in parts if part.matrices and not _can_have_rank(part, past)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the search should know of its choices: the parts with matrices whose rank cannot be chosen."""
        if not self.rankless:
            return ()
        more = f" and {len(self.rankless) - 3} more" if len(self.rankless) > 3 else ""
        return (
            f"{len(self.rankless)} of {len(self.parts)} parts can have no LoRA rank, since the network reads a matrix of theirs without "
            f"calling its layer ({', '.join(self.rankless[:3])}{more}); they are frozen or trained whole",
        )

    @property
    def choices(self) -> tuple[int, ...]:
        """What can be chosen for a part: 0 and 1, or the ranks."""
        return self.lora_ranks or (0, 1)

    def choices_of(self, part: Part) -> tuple[int, ...]:
        """What can be chosen for one part: one that can have no rank (norms, biases, `rankless`) is frozen or trained whole."""
        return self.choices if not self.lora_ranks or (part.matrices and part.name not in self.rankless) else (0, WHOLE)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Ask a trial for a value of everything; name -> value."""
        found: dict[str, Any] = {part.name: trial.suggest_categorical(part.name, list(self.choices_of(part))) for part in self.parts}
        if len(self.lr_scales) > 1:
            for part in self.parts:
                found[_scale(part)] = trial.suggest_categorical(_scale(part), list(self.lr_scales))
        if self.lr[0] < self.lr[1]:
            found["lr"] = trial.suggest_float("lr", *self.lr, log=True)
        return found

    def mask(self, params: Mapping[str, Any], facts: Mapping[str, Any]) -> Mask:
        """The mask of a trial's values.

        Args:
            params: from `suggest`, or an Optuna trial's.
            facts: further fields of the mask: seed, model_hash, data_hash, study, trial, architecture.
        """
        default = self.lr_scales[0] if self.lr_scales else 1.0
        choices = []
        for part in self.parts:
            chosen = int(params[part.name])
            rank = chosen if self.lora_ranks and chosen > 0 else 0
            scale = float(params.get(_scale(part), default)) if chosen != 0 else 1.0
            choices.append(PartChoice(part.name, part.parameters, chosen != 0, rank, scale))
        return Mask(self.name, tuple(choices), float(params.get("lr", self.lr[0])), **facts)

    def params(self, mask: Mask) -> dict[str, Any]:
        """The values that give a mask of this space; the inverse of `mask`."""
        whole = WHOLE if self.lora_ranks else 1
        found: dict[str, Any] = {part.name: (part.lora_rank or whole) if part.train else 0 for part in mask.parts}
        if len(self.lr_scales) > 1:
            found |= {f"{part.name}.lr_scale": part.lr_scale if part.train else self.lr_scales[0] for part in mask.parts}
        return found | ({"lr": mask.lr} if self.lr[0] < self.lr[1] else {})

    def describe(self) -> dict[str, Any]:
        """JSON that tells two spaces apart, parameters included (as a hash)."""
        parts = [[part.name, list(part.parameters)] for part in self.parts]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        chosen = {"lr": list(self.lr), "lora_ranks": list(self.lora_ranks), "lr_scales": list(self.lr_scales)}
        rankless = {"rankless": list(self.rankless)} if self.rankless else {}
        return {"space": self.name, "parts": len(parts), "parts_hash": digest, **chosen, **rankless}


def _can_have_rank(part: Part, past: set[str]) -> bool:
    """Whether a part has matrices and its network calls the layers of all; ``past``: those it reads past their layers."""
    return bool(part.matrices) and past.isdisjoint(part.matrices)


def _no_rank(config: SearchConfig, parts: Sequence[Part], everywhere: Mapping[str, Sequence[Part]], past: set[str]) -> str:
    """Why no part of a space can have a rank, and the spaces with parts that can."""
    able = {}
    for name, group in everywhere.items():
        roles = dict.fromkeys(part.role for part in group if _can_have_rank(part, past))
        if roles:
            able[name] = name if len(roles) == len({part.role for part in group}) else f"{name} (its {', '.join(roles)})"
    read = next((matrix for part in parts for matrix in part.matrices if matrix in past), None)
    why = "they have no matrices" if read is None else f"the network reads {read} without calling its layer"
    hint = f"choose a space with parts that can: {', '.join(able.values())}; or" if able else "no other space of the network can either;"
    return (
        f"lora_ranks={','.join(map(str, config.lora_ranks))} needs parts that can have a low-rank update, and none of '{config.space}' "
        f"can ({why}); {hint} leave lora_ranks out"
    )


def _scale(part: Part) -> str:
    return f"{part.name}.lr_scale"


def training_key(mask: Mask) -> str:
    """sha256 of what decides a trial's training beside its study: the mask and the learning rate."""
    return hashlib.sha256(f"{mask.key}/{mask.lr!r}".encode()).hexdigest()
