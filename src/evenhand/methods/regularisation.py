"""How strongly a head is regularised when the user does not say: chosen on the validation rows.

Embeddings often have about as many numbers as there are training rows, so a fixed weak penalty overfits. The plain probe
is fitted along a falling grid of L2 strengths; the one with the lowest mean log loss on the validation rows is taken, for
every method on the same embeddings alike, so that methods are compared at one strength.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from evenhand.methods.base import Task
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head, label_columns
from evenhand.methods.predictors import probabilities

GRID = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
FALL_BACK = 0.1
MIN_ROWS = 10


def log_loss(head: FittedHead, x: npt.NDArray[np.float32], y: npt.NDArray[np.generic], kind: str) -> float:
    """Mean negative log-likelihood of the labelled rows, averaged over labels that have any; NaN where none has."""
    scores = np.clip(probabilities(x.astype(np.float64) @ head.weight.T + head.bias, kind), 1e-12, 1 - 1e-12)
    losses = []
    for column, (codes, labelled) in enumerate(label_columns(y, kind)):
        if not labelled.any():
            continue
        if kind == "multiclass":
            losses.append(-np.log(scores[labelled, codes[labelled]]).mean())
        else:
            own, positive = scores[labelled, column], codes[labelled] == 1
            losses.append(-np.log(np.where(positive, own, 1 - own)).mean())
    return float(np.mean(losses)) if losses else float("nan")


def choose_l2(task: Task, spec: HeadSpec) -> tuple[float, str]:
    """The L2 strength whose plain probe has the lowest validation log loss, and a sentence that says so.

    The grid falls from 10 to 0.0001 and is left after two strengths in a row that do worse. With fewer than 10
    validation rows nothing can be chosen and 0.1 is taken.

    Args:
        task: what a method is given; only ``embed``, ``train`` and ``val`` are read.
        spec: the head; its ``l2`` is ignored.

    Raises:
        MethodError: every label has one class in the training rows.
    """
    if len(task.val) < MIN_ROWS:
        return FALL_BACK, f"L2 strength {FALL_BACK:g}: {len(task.val)} validation rows are too few to choose one"
    x, x_val = task.embed(task.train.x), task.embed(task.val.x)
    best, lowest, worse = FALL_BACK, np.inf, 0
    for strength in GRID:
        head = fit_head(x, task.train.y, replace(spec, l2=strength))
        loss = log_loss(head, x_val, task.val.y, task.kind)
        if loss < lowest:
            best, lowest, worse = strength, loss, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best, f"L2 strength {best:g} was chosen by log loss on the {len(task.val)} validation rows"
