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
from dataclasses import dataclass
from typing import Any, Protocol

from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError
from evenhand.models.masks import Mask, PartChoice
from evenhand.models.parts import Part

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
    """

    name: str
    parts: tuple[Part, ...]
    lr: tuple[float, float]
    lora_ranks: tuple[int, ...] = ()
    lr_scales: tuple[float, ...] = ()

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

    @property
    def choices(self) -> tuple[int, ...]:
        """What can be chosen for a part: 0 and 1, or the ranks."""
        return self.lora_ranks or (0, 1)

    def choices_of(self, part: Part) -> tuple[int, ...]:
        """What can be chosen for one part: a part without matrices (norms, biases) has no rank, it is frozen or trained whole."""
        return self.choices if part.matrices or not self.lora_ranks else (0, WHOLE)

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
        return {"space": self.name, "parts": len(parts), "parts_hash": digest, **chosen}


def _scale(part: Part) -> str:
    return f"{part.name}.lr_scale"


def training_key(mask: Mask) -> str:
    """sha256 of what decides a trial's training beside its study: the mask and the learning rate."""
    return hashlib.sha256(f"{mask.key}/{mask.lr!r}".encode()).hexdigest()
