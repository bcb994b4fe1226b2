"""Full fine-tuning by empirical risk minimisation, and the one way all full-network baselines go through the training loop.

    min_theta  mean_i w_i * loss(f_theta(x_i), y_i)

with weight decay, schedule and stopping as the trainer's options say; w = 1 here. The attribute is not used.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from evenhand.config.methods import FinetuneConfig
from evenhand.methods.base import Result, Split, Task
from evenhand.methods.predictors import ModelPredictor
from evenhand.methods.registry import register


def train_network(task: Task, train: Split, *, freeze: str = "none", from_scratch: bool = False, **options: Any) -> Result:
    """Build the task's network, train it on some rows, and wrap it as a result.

    Args:
        task: what to train for.
        train: the rows; ``task.train`` or a part of it.
        freeze: parts that stay as they are.
        from_scratch: ignore the checkpoint.
        options: ``loss, cells, balance, sample_weight`` of `evenhand.training.loop.train_model`.
    """
    from evenhand.models.parameters import freeze_parameters
    from evenhand.training.loop import train_model

    model = task.build_model(task.n_outputs, from_scratch=True) if from_scratch else task.build_model(task.n_outputs)
    if freeze != "none":
        freeze_parameters(model, freeze)
    outcome = train_model(model, train, task.val, task, **options)
    predictor = ModelPredictor(outcome.model, task.kind, task.n_outputs, task.batch_size, task.device)
    return Result(predictor, history=outcome.history, notes=outcome.notes)


def take_rows(split: Split, rows: np.ndarray[Any, Any]) -> Split:
    """Some rows of a split, by position."""
    groups = {name: value.take(rows) for name, value in split.groups.items()}
    return Split(ImageRows(split.x, rows), split.y[rows], groups, split.patient[rows], split.index[rows])


class ImageRows:
    """Some images of others, by position; embedded by taking rows of the whole's embeddings."""

    def __init__(self, whole: Any, rows: np.ndarray[Any, Any]) -> None:
        self.whole, self.rows = whole, rows
        self.shape = whole.shape
        self.fingerprint = f"{whole.fingerprint}/{hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Any) -> Any:
        """The images at positions of this selection."""
        return self.whole.batch(self.rows[positions])


@register("finetune")
class Finetune:
    """Full fine-tuning (ERM).

    Args:
        config: its options; see `FinetuneConfig`.
    """

    def __init__(self, config: FinetuneConfig | None = None) -> None:
        self.config = config or FinetuneConfig()

    def fit(self, task: Task) -> Result:
        """Train on the training rows; validation rows pick the epoch."""
        return train_network(task, task.train, freeze=self.config.freeze, from_scratch=self.config.from_scratch)
