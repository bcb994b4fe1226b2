"""Learning rates as a function of the fraction of epochs done, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Any

from evenhand.config.schema import TrainerConfig


def learning_rate(epochs: float, trainer: TrainerConfig, peak: float) -> float:
    """The learning rate after ``epochs`` passes (fractions count), before layer-wise and plateau factors.

    With W warm-up epochs out of E, s = epochs - W and peak rate p:

    - warm-up, epochs < W: linear p * (r + (1 - r) * epochs / W) with r = ``warmup_share`` (0 where it is not given), or
      constant ``warmup_lr`` (r * p where r is given);
    - constant and plateau: p (a plateau's drops come from `Plateau`);
    - cosine: m + (p - m) * (1 + cos(pi * s / (E - W))) / 2 with m = min(min_lr, p), so that it never rises;
    - step: p * gamma ** floor(s / step_size);
    - exponential: p * gamma ** floor(s).

    Example:
        >>> trainer = TrainerConfig(max_epochs=50, warmup_epochs=5, min_lr=1e-5)
        >>> [learning_rate(e, trainer, 1e-3) for e in (0, 2.5, 5, 50)]
        [0.0, 0.0005, 0.001, 1e-05]

    References:
        Cosine with per-step linear warm-up as in MAE's fine-tuning (arXiv 2111.06377).
    """
    if epochs < trainer.warmup_epochs:
        share = trainer.warmup_share
        if trainer.warmup == "constant":
            return trainer.warmup_lr if share is None else peak * share
        done = epochs / trainer.warmup_epochs
        return peak * (done if share is None else share + (1 - share) * done)
    since = epochs - trainer.warmup_epochs
    if trainer.schedule == "cosine":
        share = min(1.0, since / max(trainer.max_epochs - trainer.warmup_epochs, 1e-12))
        low = min(trainer.min_lr, peak)
        return low + (peak - low) * (1.0 + math.cos(math.pi * share)) / 2.0
    if trainer.schedule == "step":
        return peak * trainer.gamma ** math.floor(since / trainer.step_size)
    if trainer.schedule == "exponential":
        return peak * trainer.gamma ** math.floor(since)
    return peak


class Plateau:
    """A factor that drops by ``gamma`` after more than ``patience`` epochs without improvement.

    Improvement is relative, as in torch's ReduceLROnPlateau: below best * (1 - 1e-4) when minimising, above
    best * (1 + 1e-4) when maximising.
    """

    def __init__(self, gamma: float, patience: int, maximise: bool) -> None:
        self.gamma, self.patience, self.maximise = gamma, patience, maximise
        self.factor, self.bad_epochs = 1.0, 0
        self.best: float | None = None

    def update(self, value: float) -> None:
        """Count one epoch."""
        if self.best is None or (value > self.best * (1 + 1e-4) if self.maximise else value < self.best * (1 - 1e-4)):
            self.best, self.bad_epochs = value, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.factor, self.bad_epochs = self.factor * self.gamma, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"factor": self.factor, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.factor, self.best, self.bad_epochs = float(state["factor"]), state["best"], int(state["bad_epochs"])
