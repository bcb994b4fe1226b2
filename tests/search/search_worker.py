"""Stand-ins for a data set, a network and its training, and a program that searches with them: python search_worker.py JSON.

The stand-in training trains nothing: how well it predicts is a formula of mask, learning rate and epoch, so that a whole
search takes a second and its best mask is known. Every training and every epoch is written to a file, one line each.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evenhand.config.schema import TrainerConfig
from evenhand.config.search import SearchConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError, NonFiniteLossError
from evenhand.methods.base import Split, Task
from evenhand.search import run_search
from evenhand.training.loop import TrainOutcome
from evenhand.training.watching import EpochFacts, StopTraining

torch.set_num_threads(1)
GOOD = {"block0.norms": 1, "block0.attention": 0, "block0.mlp": 0, "block1.norms": 1, "block1.attention": 1, "block1.mlp": 0}
"""The mask that the stand-in training likes best, and its learning rate."""
GOOD_LR = 1e-4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4))
        self.norm2, self.mlp = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4))


class TinyViT(nn.Module):
    """The names of a ViT of two blocks."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(4, n_outputs)
        self.pretrained_cfg = {"classifier": "head"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1)[:, :4])


@dataclass
class Pixels:
    """Images that hold next to nothing."""

    n: int
    shape: tuple[int, int, int] = (1, 2, 2)
    fingerprint: str = "pixels"

    def __len__(self) -> int:
        return self.n

    def batch(self, positions: object) -> torch.Tensor:
        return torch.zeros(len(np.arange(self.n)[positions]), *self.shape)


def make_split(n: int, seed: int, kind: str = "binary", start: int = 0, n_groups: int = 2) -> Split:
    """Rows of two or more groups, half of each with the label."""
    rows = np.arange(n)
    if kind == "multiclass":
        y: np.ndarray = rows % 3
    else:
        y = np.stack([(rows // (1 + k)) % 2 for k in range(1 if kind == "binary" else 2)], axis=1).astype(np.float32)
    codes = ((rows // 6) % n_groups).astype(np.int64)
    groups = {"sex": Groups("sex", tuple("fmxyz"[:n_groups]), codes)}
    return Split(Pixels(n, fingerprint=f"pixels {seed}"), y, groups, rows + start, rows + start)


def make_task(k: int = 0, *, kind: str = "binary", n: int = 240, seed: int = 0, outer: str = "holdout", epochs: int = 4) -> Task:
    """The task of training k."""
    start = 10_000 + 1_000 * (k if outer == "cv" else 0)
    labels = {"binary": ("ill",), "multiclass": ("stage",), "multilabel": ("one", "two")}[kind]
    return Task(
        train=make_split(n, 1, kind), val=make_split(n, 2 + k, kind, start), kind=kind, labels=labels,
        classes=("a", "b", "c") if kind == "multiclass" else (), attributes=("sex",), seed=seed + k, device=torch.device("cpu"), store=None,
        embed=None, build_model=lambda n_outputs, **options: TinyViT(n_outputs),
        trainer=TrainerConfig(max_epochs=epochs, progress=False, accelerator="cpu", monitor="last"), batch_size=16,
    )


def quality(mask: object) -> float:
    """In [0, 1]: 1 for the best mask at its learning rate."""
    wrong = sum(part.train != bool(GOOD[part.name]) for part in mask.parts)
    return max(0.0, 1.0 - 0.12 * wrong - 0.15 * abs(np.log10(mask.lr / GOOD_LR)))


def logits_of(split: Split, kind: str, strength: float) -> np.ndarray:
    """Predictions that are the better the stronger; those of the second group are worse."""
    noise = np.random.default_rng(len(split)).standard_normal((len(split), 3 if kind == "multiclass" else split.y.shape[1]))
    truth = np.eye(3)[split.y] if kind == "multiclass" else split.y
    own = strength * (1.0 - 0.5 * (1 - strength) * (split.groups["sex"].codes > 0))[:, None]
    return (0.8 * own * (2 * truth - 1) + noise).astype(np.float32)


class Trainer:
    """Stands in for `train_masked`; see the module.

    Args:
        log: a line for every training and every epoch goes there.
        pause: seconds an epoch takes.
        mishaps: number of a trial -> "nan", "memory", "memory twice", "collapse", "one class", "not finite",
            "broken", "bug", or "die" (once).
    """

    def __init__(self, log: str, pause: float = 0.0, mishaps: dict[str, str] | None = None) -> None:
        self.log, self.pause, self.mishaps = log, pause, mishaps or {}

    def say(self, **facts: object) -> None:
        with open(self.log, "a") as file:
            file.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")

    def __call__(self, model, mask, train, val, setup, *, prefix=True, watch=None, **others):
        mishap = self.mishaps.get(str(mask.trial), "")
        self.say(trial=mask.trial, key=mask.key, lr=mask.lr, batch=setup.batch_size, accumulate=setup.trainer.accumulate, seed=setup.seed)
        if mishap == "nan":
            raise NonFiniteLossError("the loss became nan in epoch 1")
        if mishap == "broken":
            raise MethodError("peft cannot do this")
        if mishap == "bug":
            raise KeyError("a bug")
        if mishap == "memory twice" or (mishap == "memory" and setup.batch_size == 16):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        epochs = setup.trainer.max_epochs
        history, stopped = [], epochs
        for epoch in range(1, epochs + 1):
            time.sleep(self.pause)
            if mishap == "die" and epoch == 2:
                os.kill(os.getpid(), 9)
            logits = logits_of(val, setup.kind, quality(mask) * epoch / epochs)
            if mishap == "collapse":
                # as often high as low in each class and group: an AUC of exactly 0.5
                logits = np.broadcast_to((np.arange(len(val)) // 12 % 2)[:, None], logits.shape).astype(np.float32)
            if mishap == "one class":
                logits = logits * 0.01 + 4
            if mishap == "not finite":
                logits = logits * np.nan
            self.say(trial=mask.trial, epoch=epoch)
            history.append({"epoch": epoch})
            try:
                watch(EpochFacts(epoch, history[-1], logits, epoch))
            except StopTraining:
                stopped = epoch
                break
        return TrainOutcome(model, history, stopped, stopped)


def read_log(path: object) -> tuple[list[dict], list[dict]]:
    """The trainings and the epochs of a log."""
    if not Path(path).exists():
        return [], []
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [line for line in lines if "key" in line], [line for line in lines if "epoch" in line]


def make_config(out: object, **options: object) -> SearchConfig:
    """A search of the stand-ins: quick, without learning-rate scales or LoRA."""
    config = SearchConfig(out=str(out), n_trials=12, startup_trials=4, heartbeat=0.1, grace=1.5, storage_wait=5.0, min_patients=5)
    config.trainer = TrainerConfig(max_epochs=4, progress=False, accelerator="cpu", monitor="last")
    config.data.path = "nowhere"
    for name, value in options.items():
        setattr(config, name, value)
    return config


def main(text: str) -> None:
    orders = json.loads(text)
    sys.stdout.reconfigure(line_buffering=True)
    config = make_config(orders["out"], **orders.get("config", {}))
    trainer = Trainer(orders["log"], orders.get("pause", 0.0), orders.get("mishaps"))
    factory = functools.partial(make_task, **orders.get("task", {}))
    result = run_search(factory, config, report=lambda line: sys.stdout.write(f"{line}\n"), train=trainer)
    sys.stdout.write(json.dumps({"best": result.best.number, "values": result.best.values, "n": len(result.trials)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
