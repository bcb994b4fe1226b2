"""What the loop is given besides model and data, and the values that options left to it resolve to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch

from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError

if TYPE_CHECKING:
    from evenhand.methods.base import Kind, Store

Report = Callable[[str], None]
Log = Callable[[Mapping[str, Any]], None]
"""Told of every epoch's record (epoch, lr, train_loss, val_loss, val_auc) once its checkpoint is written."""


class Setup(Protocol):
    """What `train_model` reads; a method's ``Task`` is one, so is `TrainSetup`."""

    @property
    def kind(self) -> Kind: ...

    @property
    def trainer(self) -> TrainerConfig: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def store(self) -> Store: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def augment(self) -> str: ...

    @property
    def report(self) -> Report: ...

    @property
    def log(self) -> Log: ...


@dataclass(frozen=True)
class TrainSetup:
    """A `Setup` for callers without a task.

    Attributes:
        kind: "binary", "multiclass" or "multilabel".
        trainer: the options of the loop.
        store: where the checkpoint of every epoch goes.
        seed: every random stream derives from it.
        batch_size: images a batch, over all processes.
        device: where to train; under torchrun on GPUs each process takes its own.
        augment: name of an augmentation recipe (`evenhand.data.augment.RECIPES`).
        report: called with one line after every epoch.
        log: called with every epoch's record.
    """

    kind: Kind
    trainer: TrainerConfig
    store: Store
    seed: int = 0
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    augment: str = "none"
    report: Report = field(default=lambda text: None)
    log: Log = field(default=lambda record: None)


# option -> (lowest, highest, is the lowest allowed, is the highest allowed)
_RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "max_epochs": (0, float("inf"), True, False),
    "lr": (0, float("inf"), False, False),
    "base_lr": (0, float("inf"), False, False),
    "min_lr": (0, float("inf"), True, False),
    "weight_decay": (0, float("inf"), True, False),
    "momentum": (0, 1, True, False),
    "layer_decay": (0, 1, False, True),
    "warmup_epochs": (0, float("inf"), True, False),
    "warmup_lr": (0, float("inf"), True, False),
    "warmup_share": (0, 1, True, True),
    "step_size": (1, float("inf"), True, False),
    "gamma": (0, 1, False, True),
    "plateau_patience": (0, float("inf"), True, False),
    "label_smoothing": (0, 1, True, False),
    "mixup": (0, float("inf"), True, False),
    "cutmix": (0, float("inf"), True, False),
    "random_erasing": (0, 1, True, True),
    "clip_norm": (0, float("inf"), True, False),
    "accumulate": (1, float("inf"), True, False),
    "early_stopping": (0, float("inf"), True, False),
    "ema_decay": (0, 1, True, False),
    "overfit_batches": (0, float("inf"), True, False),
    "limit_batches": (0, float("inf"), True, False),
}


def check_trainer(trainer: TrainerConfig) -> None:
    """Refuse options outside their range or list of choices, all of them at once.

    Raises:
        ConfigError: names each option, what it is and what it must be.
    """
    problems = []
    for option in fields(TrainerConfig):
        value = getattr(trainer, option.name)
        choices = option.metadata.get("choices", ())
        if choices and value not in choices:
            problems.append(f"trainer.{option.name} is {value!r}, but must be one of {', '.join(choices)}")
        if option.name in _RANGES and value is not None:
            low, high, low_in, high_in = _RANGES[option.name]
            if not ((value > low or (low_in and value == low)) and (value < high or (high_in and value == high))):
                interval = f"{'[' if low_in else '('}{low:g}, {high:g}{']' if high_in else ')'}"
                problems.append(f"trainer.{option.name} is {value!r}, but must be in {interval}")
    if problems:
        raise ConfigError(problems[0] if len(problems) == 1 else f"{len(problems)} trainer options are not usable", problems)


def peak_lr(trainer: TrainerConfig, batch_size: int) -> float:
    """The peak learning rate: ``lr``, else ``base_lr * batch_size * accumulate / 256``.

    Example:
        >>> peak_lr(TrainerConfig(base_lr=2.5e-4), 128)
        0.000125
    """
    if trainer.lr is not None:
        return float(trainer.lr)
    return trainer.base_lr * batch_size * trainer.accumulate / 256


def resolve_precision(precision: str, device: torch.device) -> str:
    """The arithmetic a ``precision`` option stands for on a device; "auto" is bf16 on a GPU that has it, else fp32.

    Raises:
        ConfigError: fp16 on a CPU, where it has no kernels and no use.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("trainer.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return precision
