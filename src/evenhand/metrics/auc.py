"""Area under the ROC curve: weighted, with ties, for many weightings of the same rows at once, with a clustered variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


_DENSE = 200_000
"""Up to this many entries a product with a dense unit-by-row matrix is faster than summing row by row."""


@dataclass(frozen=True)
class RankedRows:
    """Rows sorted by score once, so that the AUC under any weights of their units is two gathers and a running sum.

    A unit is what carries a weight: a patient in the bootstrap, a patient (within a group) in a permutation.

    Attributes:
        negative: int64 (n0,), the unit of each negative row, by ascending score.
        positive: int64 (n1,), the unit of each positive row, by ascending score.
        negatives_below: int64 (n1,), for each positive row the number of negative rows with a smaller score.
        negatives_upto: int64 (n1,), the same with a smaller or equal score.
        positives_below: int64 (n0,), for each negative row the number of positive rows with a smaller score.
        positives_upto: int64 (n0,), the same with a smaller or equal score.
    """

    negative: IntArray
    positive: IntArray
    negatives_below: IntArray
    negatives_upto: IntArray
    positives_below: IntArray
    positives_upto: IntArray


def rank_rows(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], unit: IntArray) -> RankedRows:
    """Sort rows by score and note, for each row, how many of the other class lie below it.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) finite.
        unit: (n,) position of each row's unit in the weights that will be given.
    """
    positive = y_true == 1
    order = np.lexsort((unit, y_score))
    low, high = order[~positive[order]], order[positive[order]]
    negative_scores, positive_scores = y_score[low], y_score[high]
    return RankedRows(
        negative=unit[low],
        positive=unit[high],
        negatives_below=np.searchsorted(negative_scores, positive_scores, side="left"),
        negatives_upto=np.searchsorted(negative_scores, positive_scores, side="right"),
        positives_below=np.searchsorted(positive_scores, negative_scores, side="left"),
        positives_upto=np.searchsorted(positive_scores, negative_scores, side="right"),
    )


def _running(weights: FloatArray) -> FloatArray:
    """Running sum over rows with a leading zero: (n, b) -> (n + 1, b)."""
    total = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=total[1:])
    return total


def _placed(running: FloatArray, below: IntArray, upto: IntArray) -> FloatArray:
    """Weight of the other class below each row, ties counted half."""
    placed = running[below]
    if not np.array_equal(below, upto):
        placed += running[upto]
        placed *= 0.5
    return placed


def weighted_auc(rows: RankedRows, weights: FloatArray) -> FloatArray:
    r"""AUC under each column of weights.

    .. math:: \frac{\sum_{i: y_i=1} \sum_{j: y_j=0} w_i w_j (1[s_i > s_j] + 1[s_i = s_j]/2)}{\sum_{i: y_i=1} w_i \sum_{j: y_j=0} w_j}

    Args:
        rows: from `rank_rows`.
        weights: (n_units, b), not negative.

    Returns:
        (b,), NaN where a class has no weight.
    """
    running = _running(weights[rows.negative])
    own = weights[rows.positive]
    total = own.sum(axis=0) * running[-1]
    wins = np.einsum("ib,ib->b", own, _placed(running, rows.negatives_below, rows.negatives_upto))
    return np.asarray(np.divide(wins, total, out=np.full(len(total), np.nan), where=total > 0))


def _unit_sums(values: FloatArray, unit: IntArray, n_units: int) -> FloatArray:
    """Sum of the rows of every unit: (n, b) -> (n_units, b)."""
    if n_units * len(unit) <= _DENSE:
        return np.asarray((np.arange(n_units)[:, None] == unit).astype(float) @ values)
    sums = np.zeros((n_units, values.shape[1]))
    order = np.argsort(unit, kind="stable")
    present, start = np.unique(unit[order], return_index=True)
    sums[present] = values[order] if len(present) == len(unit) else np.add.reduceat(values[order], start, axis=0)
    return sums


def auc_with_variance(rows: RankedRows, member: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""AUC and its variance with units as clusters, for each column of memberships.

    With :math:`V_i` the placement of a positive row among the negatives and :math:`V_j` that of a negative row among the
    positives, summed over the rows of a unit to :math:`a_u = \sum (V_i - A)` and :math:`b_u = \sum (V_j - A)`:

    .. math:: \frac{n_1'}{n_1'-1} \frac{\sum_u a_u^2}{N_1^2} + \frac{n_0'}{n_0'-1} \frac{\sum_u b_u^2}{N_0^2}
              + 2 \frac{n'}{n'-1} \frac{\sum_u a_u b_u}{N_1 N_0}

    where primes count units. With one row a unit this is DeLong's variance. A perfect separation, whose variance would
    be 0, gets the floor 1 / (4 m^3) with m the units of the smaller class.

    Args:
        rows: from `rank_rows`.
        member: (n_units, b) in {0, 1}: which units form the group.

    Returns:
        Two arrays (b,); NaN where a class has fewer than two units.

    References:
        DeLong et al., Biometrics 44 (1988) 837; Obuchowski, Biometrics 53 (1997) 567.
    """
    n_units = len(member)
    z0, z1 = member[rows.negative], member[rows.positive]
    running0, running1 = _running(z0), _running(z1)
    count0, count1 = running0[-1], running1[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        placed1 = _placed(running0, rows.negatives_below, rows.negatives_upto) / count0
        value = np.einsum("ib,ib->b", z1, placed1) / count1
        placed0 = 1 - _placed(running1, rows.positives_below, rows.positives_upto) / count1
        placed1 -= value
        placed1 *= z1
        placed0 -= value
        placed0 *= z0
        has0, has1 = np.unique(rows.negative), np.unique(rows.positive)
        units0, units1 = member[has0].sum(axis=0), member[has1].sum(axis=0)
        mixed = np.intersect1d(has0, has1)
        plain1, plain0 = (not len(mixed) and len(has) == len(unit) for has, unit in ((has1, rows.positive), (has0, rows.negative)))
        sum1 = placed1 if plain1 else _unit_sums(placed1, rows.positive, n_units)
        sum0 = placed0 if plain0 else _unit_sums(placed0, rows.negative, n_units)
        variance = _factor(units1) * np.einsum("ib,ib->b", sum1, sum1) / count1**2
        variance += _factor(units0) * np.einsum("ib,ib->b", sum0, sum0) / count0**2
        if len(mixed):
            units = member.sum(axis=0)
            variance += 2 * _factor(units) * np.einsum("ib,ib->b", sum1, sum0) / (count1 * count0)
    smaller = np.minimum(units0, units1)
    enough = smaller >= 2
    floor = 0.25 / np.maximum(smaller, 1) ** 3
    return np.where(enough, value, np.nan), np.where(enough, np.maximum(variance, floor), np.nan)


def _factor(units: FloatArray) -> FloatArray:
    return np.asarray(units / np.maximum(units - 1, 1))


def auc(y_true: npt.ArrayLike, y_score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """P(score of a random positive > score of a random negative) + P(equal) / 2.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) any finite numbers.
        weight: (n,) not negative; default: all 1.

    Returns:
        The area in [0, 1], NaN where a class has no weight.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    truth, score = np.asarray(y_true), np.asarray(y_score, float)
    weights = np.ones(len(truth)) if weight is None else np.asarray(weight, float)
    return float(weighted_auc(rank_rows(truth, score, np.arange(len(truth))), weights[:, None])[0])
