r"""Average precision: weighted, with ties, for many weightings of the same rows at once, with a clustered variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import RankedRows, rank_rows

FloatArray = npt.NDArray[np.float64]

_CHUNK = 32  # columns whose running sums stay in the processor's cache


def auc_and_average_precision(rows: RankedRows, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""AUC and average precision under each column of weights, from one pass over the scores.

    .. math:: \mathrm{AP} = \sum_k (R_k - R_{k-1}) P_k
              = \frac{\sum_{i: y_i=1} w_i \, T(s_i) / A(s_i)}{\sum_{i: y_i=1} w_i},
              \quad T(s) = \sum_{j: y_j=1, s_j \ge s} w_j, \quad A(s) = \sum_{j: s_j \ge s} w_j

    Args:
        rows: from `rank_rows` with ``fine=True``.
        weights: (n_units, b), not negative.

    Returns:
        Two arrays (b,); the AUC is NaN where a class has no weight, average precision where no positive row has any.
    """
    low, high = rows.negative.T @ weights, rows.positive.T @ weights
    levels = np.unique(rows.positive.indices)
    parts = [_columns(low[:, i : i + _CHUNK], high[:, i : i + _CHUNK], levels) for i in range(0, weights.shape[1], _CHUNK)]
    return np.concatenate([area for area, _ in parts]), np.concatenate([precision for _, precision in parts])


def _columns(low: FloatArray, high: FloatArray, levels: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Both areas of a few columns, from the counts by level; only levels with a positive row add to either."""
    found, tied = high[levels], low[levels]
    count0, count1 = low.sum(axis=0), found.sum(axis=0)
    below = np.cumsum(low, axis=0)[levels]
    below -= tied
    wins = np.einsum("lb,lb->b", found, below) + 0.5 * np.einsum("lb,lb->b", found, tied)
    area = np.divide(wins, count0 * count1, out=np.full(len(wins), np.nan), where=count0 * count1 > 0)
    precision = count1 - (np.cumsum(found, axis=0) - found)
    below -= count0
    below -= precision
    np.minimum(below, -np.finfo(float).tiny, out=below)
    precision /= below
    total = -np.einsum("lb,lb->b", found, precision)
    return area, np.divide(total, count1, out=np.full(len(wins), np.nan), where=count1 > 0)


def average_precision_with_variance(rows: RankedRows, member: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Average precision and its variance with units as clusters, for each column of memberships.

    The influence of a row is the derivative of the weighted average precision by its weight,

    .. math:: d_k = \frac{1}{N_1} \Big[ y_k (P(s_k) - \mathrm{AP}) + \sum_{i: y_i=1, s_i \le s_k} \frac{y_k - P(s_i)}{A(s_i)} \Big]

    and the variance is :math:`\frac{u}{u-1} \sum_u (\sum_{k \in u} d_k)^2` (the infinitesimal jackknife), at least
    :math:`1 / (2m)^2` with m the units of the smaller class, so that a perfect ranking has a variance too.

    Args:
        rows: from `rank_rows` with ``fine=True``.
        member: (n_units, b) in {0, 1}: which units form the group.

    Returns:
        Two arrays (b,); NaN where a class has fewer than two units.

    References:
        Boyd et al., Area under the precision-recall curve, ECML 2013 (estimators); Jaeckel, Bell Labs 1972, and Efron,
        Biometrika 68 (1981) 589 (the infinitesimal jackknife).
    """
    low, high = rows.negative.T @ member, rows.positive.T @ member
    own0, own1 = rows.units_by_class
    smaller = np.minimum(low.sum(axis=0), high.sum(axis=0)) if rows.alone else np.minimum(own0 @ member, own1 @ member)
    units = low.sum(axis=0) + high.sum(axis=0) if rows.alone else (own0 | own1) @ member
    count1 = np.maximum(high.sum(axis=0), 1.0)
    found = np.cumsum(high[::-1], axis=0)[::-1]
    above = np.maximum(found + np.cumsum(low[::-1], axis=0)[::-1], 1.0)
    precision = found / above
    value = np.einsum("lb,lb->b", high, precision) / count1
    share = high / above
    drop = np.cumsum(share * precision, axis=0)
    precision += np.cumsum(share, axis=0, out=share)
    precision -= value
    precision -= drop
    if rows.alone:
        squares = np.einsum("lb,lb,lb->b", high, precision, precision) + np.einsum("lb,lb,lb->b", low, drop, drop)
    else:
        pull = (rows.positive @ precision - rows.negative @ drop) * member
        squares = np.einsum("ub,ub->b", pull, pull)
    variance = units / np.maximum(units - 1, 1) * squares / count1**2
    floor = 0.25 / np.maximum(smaller, 1.0) ** 2
    enough = smaller >= 2
    return np.where(enough, value, np.nan), np.where(enough, np.maximum(variance, floor), np.nan)


def average_precision(y_true: npt.ArrayLike, y_score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    r"""The positive predictive value :math:`P(Y=1 \mid S \ge s)`, averaged over the scores s of the positive cases.

    :math:`\mathrm{AP} = E[\,P(Y=1 \mid S \ge s)\,]` with s drawn from the scores given Y = 1; the same as
    :math:`\sum_k (R_k - R_{k-1}) P_k` over descending thresholds, without interpolation. A tie is one threshold. A
    ranking at random has about the prevalence, so groups of different prevalence have different levels to start from.

    More than two groups: the gap is the largest minus the smallest group's value. Other libraries: scikit-learn and
    torchmetrics (``thresholds=None``) compute the same; scikit-learn gives 0 with a warning where there is no positive
    row, we give NaN; the trapezoidal area under the precision-recall curve is another, more optimistic number.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) any finite numbers.
        weight: (n,) not negative; default: all 1.

    Returns:
        A number in [0, 1], NaN where no positive row has weight.

    Example:
        >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
        0.8333

    References:
        Davis and Goadrich, The relationship between precision-recall and ROC curves, ICML 2006.
    """
    truth, score = np.asarray(y_true), np.asarray(y_score, float)
    weights = np.ones(len(truth)) if weight is None else np.asarray(weight, float)
    if not len(truth):
        return float("nan")
    rows: Any = rank_rows(truth, score, np.arange(len(truth)), fine=True)
    return float(auc_and_average_precision(rows, weights[:, None])[1][0])
