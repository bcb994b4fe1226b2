"""The recipe of the bundled demo encoder: ``python -m evenhand.models.demo_encoder.pretrain`` makes its weights again.

Self-supervised (see `pretext`) on synthetic images of both kinds, drawn with seeds and settings of their own: the trace is
independent of the disease there, and neither the disease nor the trace nor the group is given to the training. The same
machine, number of threads and settings give the same file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import nn

from evenhand.data.synthetic import SHORTCUTS, SyntheticConfig, make_cohort
from evenhand.files import write_atomic, write_text
from evenhand.models.demo_encoder.architecture import ARGUMENTS, MEAN, NAME, STD, evenhand_demo_vit, weights_path
from evenhand.models.demo_encoder.pretext import N_TARGETS, augment, corrupt
from evenhand.random import derive_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the recipe.

    Attributes:
        images_per_kind: synthetic images drawn of each kind (chest, skin).
        steps: optimiser steps; the two kinds alternate.
        batch_size: images a step.
        lr: peak learning rate of AdamW (linear warm-up over the first tenth, then cosine).
        weight_decay: decoupled weight decay.
        keep: share of tokens the encoder sees.
        threads: torch threads; part of what makes the numbers reproducible (one costs the least processor time).
        seed: of every random stream.
    """

    images_per_kind: int = 6000
    steps: int = 500
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    keep: float = 0.5
    threads: int = 1
    seed: int = 0


def pretraining_images(kind: str, n: int, seed: int) -> torch.Tensor:
    """Synthetic images without labels, uint8 (n, 3, 64, 64): half without any trace, half with all three at half strength."""
    parts = []
    for name, shortcuts, count in (("plain", (), n - n // 2), ("traced", SHORTCUTS, n // 2)):
        config = SyntheticConfig(
            kind=kind,
            n_patients=count,
            images_per_patient=(1, 1),
            prevalence={"one": 0.4, "other": 0.4},
            traced_groups=(),
            fidelity=0.5,
            shortcuts=shortcuts,
            shortcut_strength=0.5,
            signal=1.0,
            seed=derive_seed(seed, "pretrain", kind, name),
        )
        parts.append(make_cohort(config, twins=False).images)
    images = np.concatenate(parts)
    return torch.from_numpy(np.repeat(images, 3, 1) if images.shape[1] == 1 else images)


class TokenPredictor(nn.Module):
    """The encoder's tokens -> their targets. Only the encoder is kept after pre-training."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(encoder.num_features, N_TARGETS)

    def forward(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) normalised images, (n, k) token positions -> (n, k, N_TARGETS)."""
        tokens = self.encoder.patch_embed(images) + self.encoder.pos_embed
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        return self.out(self.encoder.fc_norm(self.encoder.blocks(tokens)))  # type: ignore[no-any-return]


def pretrain(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Run the recipe.

    Returns:
        The encoder's weights, float16, without a head.
    """
    torch.set_num_threads(config.threads)
    data = [pretraining_images(kind, config.images_per_kind, config.seed) for kind in ("chest", "skin")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "init"))
        model = TokenPredictor(evenhand_demo_vit(num_classes=0)).train()
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "batches"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    warmup = max(config.steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    )
    start = time.monotonic()
    for step in range(config.steps):
        loss = _step(model, data[step % 2], config, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 < 2:
            log.info("step %d of %d: loss %.4f, %.0f s", step, config.steps, loss.item(), time.monotonic() - start)
    return {key: value.detach().half().contiguous() for key, value in sorted(model.encoder.state_dict().items())}


def _step(model: TokenPredictor, images: torch.Tensor, config: PretrainConfig, generator: torch.Generator) -> torch.Tensor:
    rows = torch.randint(len(images), (config.batch_size,), generator=generator)
    batch = corrupt(augment(images[rows].float() / 255, generator), generator)
    n_tokens = batch.targets.shape[1]
    kept = torch.rand(len(rows), n_tokens, generator=generator).argsort(1)[:, : round(n_tokens * config.keep)]
    targets = batch.targets.gather(1, kept[..., None].expand(-1, -1, N_TARGETS))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    error = nn.functional.smooth_l1_loss(model((batch.images - mean) / std, kept), targets, reduction="none").mean((0, 1))
    return 4 * error[:2].mean() + error[2:].mean()


def describe() -> dict[str, Any]:
    """What ``config.json`` beside the weights says, in timm's layout."""
    return {
        "architecture": NAME,
        "num_classes": 0,
        "num_features": ARGUMENTS["embed_dim"],
        "global_pool": ARGUMENTS["global_pool"],
        "model_args": ARGUMENTS,
        "pretrained_cfg": {
            "tag": "synthetic",
            "input_size": [3, 64, 64],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write the weights and ``config.json`` beside them, each replaced at once."""
    write_text(path.parent / "config.json", json.dumps(describe(), indent=2) + "\n")
    write_atomic(path, to_bytes(weights, {"format": "pt"}))


def main(arguments: list[str] | None = None) -> int:
    """The command: ``python -m evenhand.models.demo_encoder.pretrain [--out FILE] [--steps N]``."""
    default = PretrainConfig()
    parser = argparse.ArgumentParser(description="Make the weights of the bundled demo encoder (minutes on two cores).")
    parser.add_argument("--out", type=Path, default=weights_path(), help="weights file to write; default: the bundled one")
    parser.add_argument("--steps", type=int, default=default.steps, help=f"optimiser steps (default {default.steps})")
    parser.add_argument("--threads", type=int, default=default.threads, help=f"torch threads (default {default.threads})")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    save(pretrain(PretrainConfig(steps=given.steps, threads=given.threads)), given.out)
    log.info("wrote %s", given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
