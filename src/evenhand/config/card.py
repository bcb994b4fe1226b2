"""Options of `evenhand card` that are typed as NAME=VALUE: the encoder that attributes are read with."""

from __future__ import annotations

from dataclasses import dataclass, field

from evenhand.config.schema import ModelConfig, opt


@dataclass
class CardConfig:
    """`evenhand card`: the encoder of the probe, and where it runs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    accelerator: str = opt("auto", "where the encoder runs", choices=("auto", "cpu", "gpu", "mps"))
