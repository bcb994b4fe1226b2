"""Which epoch is the best one: the monitored value, pooled over the validation rows, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import auc

if TYPE_CHECKING:
    from evenhand.methods.base import Kind


def pooled_auc(y: npt.NDArray[Any], y_score: npt.NDArray[Any], kind: Kind) -> float | None:
    """AUC over all rows at once, the mean over labels (multi-class: one-vs-rest over classes) that have both classes.

    Never a mean over batches. None where no label has both classes among its labelled rows.

    Args:
        y: labels as in `Split`.
        y_score: probabilities (n, L) or (n, C).
        kind: kind of the task.

    Example:
        >>> pooled_auc(np.array([[0.0], [1.0], [np.nan]]), np.array([[0.1], [0.9], [0.5]]), "binary")
        1.0
    """
    columns = _one_vs_rest(y, y_score.shape[1]) if kind == "multiclass" else y
    values = []
    for truth, score in zip(columns.T, y_score.T, strict=True):
        known = ~np.isnan(truth)
        if len(np.unique(truth[known])) == 2:
            values.append(auc(truth[known], score[known]))
    return float(np.mean(values)) if values else None


def _one_vs_rest(y: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.float64]:
    return np.where(y[:, None] < 0, np.nan, (y[:, None] == np.arange(n_classes)).astype(float))


def resolve_monitor(wanted: str, y: npt.NDArray[Any], kind: Kind) -> tuple[str, str]:
    """What can be monitored on these validation labels, and a sentence where that is not what was asked for.

    "val_auc" needs a label with both classes, "val_loss" a labelled row; otherwise the next in
    val_auc -> val_loss -> last is taken.
    """
    labelled = bool((y >= 0).any()) if kind == "multiclass" else bool((~np.isnan(y)).any())
    if wanted != "last" and not labelled:
        return "last", f"no validation row is labelled, so {wanted} cannot pick an epoch; the last epoch is taken"
    if wanted == "val_auc" and not _has_both(y, kind):
        return "val_loss", "no label has both classes among the validation rows, so val_auc is not estimable; val_loss picks the epoch"
    return wanted, ""


def _has_both(y: npt.NDArray[Any], kind: Kind) -> bool:
    if kind == "multiclass":
        return len(np.unique(y[y >= 0])) > 1
    return bool(((y == 0).any(axis=0) & (y == 1).any(axis=0)).any())


@dataclass
class Best:
    """The best epoch so far.

    Attributes:
        monitor: "val_auc" (larger is better), "val_loss" (smaller is better) or "last" (every epoch is).
        epoch: number of the best epoch, from 1; 0 before the first.
        value: its monitored value.
        bad_epochs: epochs since.
        weights: its weights on the CPU; empty for "last".
    """

    monitor: str
    epoch: int = 0
    value: float | None = None
    bad_epochs: int = 0
    weights: dict[str, Any] = field(default_factory=dict)

    def update(self, epoch: int, value: float | None) -> bool:
        """Count one epoch; True where it is the best one. A tie keeps the earlier epoch."""
        better = self.monitor == "last" or self.value is None
        if not better and value is not None and self.value is not None:
            better = value > self.value if self.monitor == "val_auc" else value < self.value
        if better:
            self.epoch, self.value, self.bad_epochs = epoch, value, 0
        else:
            self.bad_epochs += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {"epoch": self.epoch, "value": self.value, "bad_epochs": self.bad_epochs, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.epoch, self.value = int(state["epoch"]), state["value"]
        self.bad_epochs, self.weights = int(state["bad_epochs"]), state["weights"]
