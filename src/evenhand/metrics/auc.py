"""Area under the ROC curve: weighted, with ties, for many weightings of the same rows at once, with a clustered variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankedRows:
    """Rows sorted by score once, so that the AUC under any weights of their units is two sparse products and a running sum.

    A unit is what carries a weight: a patient in the bootstrap, a patient (within a group) in a permutation. A level is a
    run of neighbouring scores that no row of the other class comes between; a score that both classes have (a tie) is a
    level of its own. Only levels matter to the AUC, and there are at most twice as many as rows of the rarer class.

    Attributes:
        negative: sparse (n_units, levels), how many negative rows a unit has in a level.
        positive: the same of positive rows.
    """

    negative: Any
    positive: Any

    @cached_property
    def units_by_class(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(u,) whether a unit has negative rows, and whether it has positive rows."""
        own0, own1 = (np.diff(counts.indptr) > 0 for counts in (self.negative, self.positive))
        return own0, own1

    @cached_property
    def alone(self) -> bool:
        """Whether every unit has one row, so that sums of squares over units are sums over levels."""
        return bool(self.negative.sum() + self.positive.sum() == self.negative.shape[0] == np.sum(self.units_by_class))


def rank_rows(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], unit: IntArray, *, fine: bool = False) -> RankedRows:
    """Count every unit's rows by level of score.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) finite.
        unit: (n,) position of each row's unit in the weights that will be given.
        fine: also give every distinct score of a positive row a level of its own, as average precision needs.
    """
    from scipy.sparse import csr_array

    positive = y_true == 1
    distinct, place = np.unique(y_score, return_inverse=True)
    kind = (np.bincount(place[positive], minlength=len(distinct)) > 0) + 2 * (np.bincount(place[~positive], minlength=len(distinct)) > 0)
    alone = kind[1:] % 2 == 1 if fine else kind[1:] == 3
    starts = np.append(True, (kind[1:] != kind[:-1]) | alone)[: len(distinct)]
    level = (np.cumsum(starts) - 1)[place]
    shape = (int(unit.max(initial=-1)) + 1, int(starts.sum()))
    low, high = (csr_array((np.ones(int(use.sum())), (unit[use], level[use])), shape=shape) for use in (~positive, positive))
    return RankedRows(negative=low, positive=high)


def _placed(counts: FloatArray) -> FloatArray:
    """Weight of these rows below each level, those at the level counted half: (levels, b) -> (levels, b)."""
    below = np.cumsum(counts, axis=0)
    below -= 0.5 * counts
    return below


def weighted_auc(rows: RankedRows, weights: FloatArray) -> FloatArray:
    r"""AUC under each column of weights.

    .. math:: \frac{\sum_{i: y_i=1} \sum_{j: y_j=0} w_i w_j (1[s_i > s_j] + 1[s_i = s_j]/2)}{\sum_{i: y_i=1} w_i \sum_{j: y_j=0} w_j}

    Args:
        rows: from `rank_rows`.
        weights: (n_units, b), not negative.

    Returns:
        (b,), NaN where a class has no weight.
    """
    wins, total = _pairs_won(rows, weights)
    return np.asarray(np.divide(wins, total, out=np.full(len(total), np.nan), where=total > 0))


def stratified_auc(strata: Sequence[tuple[RankedRows, IntArray]], weights: FloatArray) -> FloatArray:
    """AUC over the pairs of rows that lie in one stratum, under each column of weights.

    For scores that are comparable within a stratum only, as those of models that were fitted without one fold each.

    Args:
        strata: rows from `rank_rows`, and the position in ``weights`` of each of their units.
        weights: (n_units, b), not negative.

    Returns:
        (b,), NaN where no stratum has weight in both classes.

    Example:
        >>> first = rank_rows(np.array([0, 1]), np.array([0.1, 0.2]), np.array([0, 1]))
        >>> second = rank_rows(np.array([0, 1]), np.array([7.2, 7.1]), np.array([0, 1]))
        >>> stratified_auc([(first, np.array([0, 1])), (second, np.array([2, 3]))], np.ones((4, 1)))
        array([0.5])
    """
    wins, total = np.zeros((2, weights.shape[1]))
    for rows, unit in strata:
        won, pairs = _pairs_won(rows, weights[unit])
        wins += won
        total += pairs
    return np.asarray(np.divide(wins, total, out=np.full(len(total), np.nan), where=total > 0))


def _pairs_won(rows: RankedRows, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weight of the pairs in which the positive row has the higher score (a tie is half), and of all pairs: (b,) each."""
    low, high = rows.negative.T @ weights, rows.positive.T @ weights
    return np.einsum("lb,lb->b", high, _placed(low)), low.sum(axis=0) * high.sum(axis=0)


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
    low, high = rows.negative.T @ member, rows.positive.T @ member
    count0, count1 = low.sum(axis=0), high.sum(axis=0)
    own0, own1 = rows.units_by_class
    units0, units1 = (count0, count1) if rows.alone else (own0 @ member, own1 @ member)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart1 = _placed(low)
        apart1 /= count0
        value = np.einsum("lb,lb->b", high, apart1) / count1
        apart1 -= value
        apart0 = _placed(high)
        apart0 /= -count1
        apart0 += 1 - value
        if rows.alone:
            squares1, squares0 = (np.einsum("lb,lb,lb->b", counts, apart, apart) for counts, apart in ((high, apart1), (low, apart0)))
        else:
            sum1, sum0 = (rows.positive @ apart1) * member, (rows.negative @ apart0) * member
            squares1, squares0 = np.einsum("ub,ub->b", sum1, sum1), np.einsum("ub,ub->b", sum0, sum0)
        variance = _factor(units1) * squares1 / count1**2 + _factor(units0) * squares0 / count0**2
        if (own0 & own1).any():
            units = (own0 | own1) @ member
            variance += 2 * _factor(units) * np.einsum("ub,ub->b", sum1, sum0) / (count1 * count0)
    smaller = np.minimum(units0, units1)
    enough = smaller >= 2
    floor = 0.25 / np.maximum(smaller, 1) ** 3
    return np.where(enough, value, np.nan), np.where(enough, np.maximum(variance, floor), np.nan)


def _factor(units: FloatArray) -> FloatArray:
    return np.asarray(units / np.maximum(units - 1, 1))


def auc(y_true: npt.ArrayLike, y_score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """P(S1 > S0) + P(S1 = S0) / 2, S1 the score of a random positive row (Y = 1) and S0 that of a random negative one.

    More than two groups: the gap is the largest minus the smallest group's value; cases of one group are never paired
    with non-cases of another. Other libraries: scikit-learn's roc_auc_score and torchmetrics' BinaryAUROC (without
    thresholds) are the same number; with one class scikit-learn gives NaN with a warning and torchmetrics 0, we give NaN.

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
