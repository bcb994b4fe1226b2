"""What a state of a classifier is judged by on validation rows, and which of several states is kept.

    B_val  =  mean over thresholds t of  sum over the bias's sides  max_g P(s >= t | g, side) - min_g P(s >= t | g, side)

with the thresholds at the 5%, 10%, …, 95% quantiles of the scores s of all validation rows, sides label 1 (TPR), label 0
(FPR) or all rows, and groups with at least 10 rows on a side. It only reads the order of scores: shrinking all logits, by
which a bias on probabilities can be lowered without treating anybody otherwise, leaves it where it was, and averaging
over thresholds makes it steadier than the gap at one.

Rule: of the states whose validation AUC is within a tolerance of that of the classifier as delivered, the one of smallest
B_val, the earliest of equals; where there is none, the one of highest AUC. A collapsed classifier has an AUC of 0.5, which is
never enough, and so is not kept for its small gaps. Where validation rows are too few for B_val, methods that train the whole
network keep the last state within the tolerance, since a loss of AUC is seen on fewer rows than a gap is; a patch leaves step
one out there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenhand.methods.base import Kind, Split
from evenhand.methods.fitting import label_columns
from evenhand.methods.predictors import probabilities
from evenhand.training.selection import pooled_auc

LEAST = 10
THRESHOLDS = np.linspace(0.05, 0.95, 19)
_SIDES = {
    "eodds": (1, 0), "eopp": (1,), "tpr_diff": (1,), "fnr_diff": (1,), "fpr_diff": (0,), "tnr_diff": (0,), "spd": (-1,),
}


@dataclass(frozen=True)
class Judgement:
    """Of one state.

    Attributes:
        bias: B_val; None where no two groups can be compared.
        auc: pooled AUC; None where no label has both classes.
    """

    bias: float | None
    auc: float | None


def rank_bias(score: npt.NDArray[np.floating], truth: npt.NDArray[np.int64], codes: npt.NDArray[np.int64], sides: Sequence[int]) -> float:
    """B_val of one score column and one attribute; NaN where no two groups can be compared.

    Args:
        score: (n,).
        truth: (n,) 1 or 0; -1 for rows without a label.
        codes: (n,) groups, -1 where missing.
        sides: labels, -1 for all labelled rows.

    Example:
        >>> score = np.tile(np.arange(20.0), 2)
        >>> codes = np.repeat([0, 1], 20)
        >>> rank_bias(score, np.ones(40, int), codes, (1,)), rank_bias(score + 5.0 * codes, np.ones(40, int), codes, (1,)) > 0.1
        (0.0, True)
    """
    known = (truth >= 0) & np.isfinite(score)
    if not known.any():
        return float("nan")
    cuts = np.quantile(score[known], THRESHOLDS)
    total, found = 0.0, False
    for side in sides:
        rows = known & ((truth == side) if side >= 0 else True)
        rates = []
        for group in range(int(codes.max(initial=-1)) + 1):
            own = score[rows & (codes == group)]
            if len(own) >= LEAST:
                rates.append((own[:, None] >= cuts).mean(axis=0))
        if len(rates) > 1:
            total, found = total + float(np.ptp(np.stack(rates), axis=0).mean()), True
    return total if found else float("nan")


def judge(logits: npt.NDArray[np.floating], split: Split, attributes: Sequence[str], kind: Kind, bias: str, over: str = "sum") -> Judgement:
    """B_val and AUC of logits (n, K) on a split; several attributes as ``over`` says, several outputs by their mean.

    Args:
        logits: of every row.
        split: the rows, may be none.
        attributes: of the bias.
        kind: kind of the task.
        bias: name of the bias term; sums of rates, as ``tpr+fpr``, count as equalized odds.
        over: "sum" or "max".
    """
    if len(split) == 0:
        return Judgement(None, None)
    scores = probabilities(np.asarray(logits, dtype=np.float64), kind)
    values = []
    for name in attributes:
        own = [
            rank_bias(scores[:, column], truth, split.groups[name].codes, _SIDES.get(bias, (1, 0)))
            for column, truth in _truths(split, kind, scores.shape[1])
        ]
        known = [value for value in own if np.isfinite(value)]
        if known:
            values.append(float(np.mean(known)))
    total = None if not values else max(values) if over == "max" else sum(values)
    return Judgement(total, pooled_auc(np.asarray(split.y), scores, kind))


def _truths(split: Split, kind: str, n_outputs: int) -> list[tuple[int, npt.NDArray[np.int64]]]:
    columns = label_columns(np.asarray(split.y), kind)
    if kind == "multiclass":
        codes, known = columns[0]
        return [(c, np.where(known, (codes == c).astype(np.int64), -1)) for c in range(n_outputs)]
    return [(c, np.where(known, codes, -1)) for c, (codes, known) in enumerate(columns)]


def pick(found: Sequence[Judgement], delivered: Judgement, tolerance: float) -> int:
    """Position of the state to keep; see the module's rule. The last one where nothing can be estimated.

    Example:
        >>> pick([Judgement(None, 0.90), Judgement(None, 0.895), Judgement(None, 0.7)], Judgement(None, 0.90), tolerance=0.01)
        1
        >>> states = [Judgement(0.3, 0.90), Judgement(0.1, 0.895), Judgement(0.0, 0.5)]
        >>> pick(states, Judgement(0.3, 0.90), tolerance=0.01)
        1
    """
    if delivered.auc is None or all(item.auc is None for item in found):
        return len(found) - 1
    floor = delivered.auc - tolerance
    enough = [k for k, item in enumerate(found) if item.auc is not None and item.auc >= floor and item.auc > 0.5]
    if not enough:
        return max(range(len(found)), key=lambda k: (found[k].auc or 0.0, -k))
    known = [k for k in enough if found[k].bias is not None]
    return min(known, key=lambda k: (found[k].bias, k)) if known else enough[-1]
