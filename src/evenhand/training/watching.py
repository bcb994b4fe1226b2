"""What somebody who watches a training run is told after every epoch, and how they end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class EpochFacts:
    """One finished epoch.

    Attributes:
        epoch: its number, from 1.
        record: its record in the history: epoch, lr, train_loss, val_loss, val_auc (None where not estimable).
        val_logits: float32 (n, L) or (n, C), the logits of all validation rows in their order, of the weights that would
            be kept (their moving average where that is on); None where there is no validation row.
        best_epoch: number of the best epoch so far, this one included; equal to ``epoch`` where this is the best.
    """

    epoch: int
    record: Mapping[str, Any]
    val_logits: npt.NDArray[np.float32] | None
    best_epoch: int


class StopTraining(Exception):
    """A signal and no error: raised by a watch to end training after the epoch it was told of.

    The epoch counts, its checkpoint is kept, and the outcome has the best epoch so far, ``stopped_epoch`` and a note with
    the reason. The end is in the checkpoint: the same call again returns the same outcome and trains no further.

    Args:
        reason: ends the note's sentence: "training was stopped after epoch 3 of 10: <reason>".

    Example:
        >>> def give_up(facts: EpochFacts) -> None:
        ...     if facts.record["val_auc"] < 0.5:
        ...         raise StopTraining("worse than chance")
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Watch = Callable[[EpochFacts], None]
"""Told of every epoch once its weights are known and before its checkpoint is written, so that a run which is killed in
between tells of that epoch again, with the same numbers. On several processes only the first one's is called."""
