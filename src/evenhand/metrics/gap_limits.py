r"""Limits of a max-min gap over any number of groups, by inverting the studentised maximum test at every size of gap.

A gap of size :math:`\delta` is compared with :math:`T(\delta) = \max_{ij} (|v_i - v_j| - \delta) / s_{ij}`. At
:math:`\delta = 0` this is the statistic of the permutation test, and 0 lies inside exactly when its p-value is not small.
For :math:`\delta > 0` its distribution depends on where the groups between the extremes lie: several groups that contend
for an end make the observed gap larger than the true one. So groups are set to the nearest values whose gap is
:math:`\delta` (cut to a window of that width; groups within 0.8 standard errors of an end contend for it), draws about
these give the critical value, and the lower limit is the smallest gap that is not too small for the data.

The upper limit needs no such care, as the groups that are truly furthest apart are one pair: it is the largest upper limit
of any pair. In K > 2 groups it misses less often than its share; the draws count how often, and the lower limit gets what
the upper one leaves of the 5%. That keeps coverage near nominal from a gap of 0, where only the lower limit can miss, to
large gaps, where each side has its half (as for the ordering of Feldman and Cousins).

Standard errors are taken from each group's own interval, towards the side in question (for two groups and shares this is
Newcombe's interval), which carries its asymmetry and small-sample widening into the gap.

References:
    Andrews and Soares, Econometrica 78 (2010) 119 (moment selection); Feldman and Cousins, Physical Review D 57 (1998) 3873;
    Zou and Donner, Statistics in Medicine 27 (2008) 1693.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_CONTEND = 0.8
_STEPS = 10
_PAIR_DRAWS = 40_000
_LATTICE = 8
_TINY = 1e-12


@dataclass(frozen=True)
class Side:
    """The groups of one metric.

    Attributes:
        values: (k,) estimates.
        down, up: (k,) distance to the lower and upper limit of each value, in units of the normal quantile.
    """

    values: FloatArray
    down: FloatArray
    up: FloatArray

    @property
    def span(self) -> float:
        """Largest minus smallest value."""
        return float(np.ptp(self.values))


def gap_limits(sides: Sequence[Side], excess: float, confidence: float, largest: float) -> tuple[float, float]:
    """Limits of the largest gap of one metric, or of the largest of several metrics' gaps.

    Args:
        sides: one or more metrics, each of at least two groups.
        excess: the test's statistic over its critical value; above 1 where the test rejects "no gap", and only there the
            lower limit is above 0.
        confidence: level.
        largest: the upper limit is cut to it.

    Returns:
        (lower, upper), ``0 <= lower <= observed gap <= upper``.

    Example:
        >>> error = np.array([0.05, 0.05])
        >>> low, high = gap_limits([Side(np.array([0.9, 0.5]), error, error)], 2.9, 0.95, 1.0)
        >>> round(low, 2), round(high, 2)
        (0.26, 0.54)
    """
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    observed = max(side.span for side in sides)
    upper = max(_upper(side, quantile) for side in sides)
    lower = _lower([_bounded(side) for side in sides], excess, confidence, quantile, observed) if excess > 1 and observed > 0 else 0.0
    return round(min(lower, observed), 12), round(max(min(upper, largest), observed), 12)


def _upper(side: Side, quantile: float) -> float:
    apart = side.values[:, None] - side.values[None, :]
    width = np.hypot(side.up[:, None], side.down[None, :])
    return float((np.abs(apart) + quantile * np.where(apart >= 0, width, width.T)).max(where=~np.eye(len(apart), dtype=bool), initial=0.0))


def _bounded(side: Side) -> Side:
    """Infinite distances (a ratio's group that may be 0) by the other side's, so that draws are finite."""
    down, up = np.where(np.isfinite(side.down), side.down, side.up), np.where(np.isfinite(side.up), side.up, side.down)
    wide = max(side.span, _TINY)
    return Side(side.values, *(np.maximum(np.where(np.isfinite(each), each, wide), _TINY) for each in (down, up)))


def _lower(sides: Sequence[Side], excess: float, confidence: float, quantile: float, observed: float) -> float:
    """The smallest gap that is not rejected, by halving.

    Near 0 the ratio of statistic to critical value is blended with the permutation test's, so that the limit is 0 exactly
    where that test does not reject; from one standard error on it is that of the draws alone.
    """
    start = _ratio(sides, 1e-9 * observed, confidence, quantile)
    blend = np.log(np.clip(excess, 1 + 1e-9, 1e6) / max(start, 1e-6))
    reach = max(float(np.hypot(*_extreme_errors(side))) for side in sides if side.span == observed)
    low, high = 0.0, observed
    for _ in range(_STEPS):
        middle = (low + high) / 2
        ratio = _ratio(sides, middle, confidence, quantile) * np.exp(blend * max(0.0, 1 - middle / reach))
        low, high = (middle, high) if ratio > 1 else (low, middle)
    return high


def _extreme_errors(side: Side) -> tuple[float, float]:
    return float(side.down[np.argmax(side.values)]), float(side.up[np.argmin(side.values)])


def _ratio(sides: Sequence[Side], delta: float, confidence: float, quantile: float) -> float:
    """T(delta) over its critical value under the nearest values whose gap is delta; above 1: the gap is larger than delta."""
    statistic, drawn, above = -np.inf, None, None
    noise = _noise(tuple(len(side.values) for side in sides))
    for side, normal in zip(sides, noise, strict=True):
        place, top = nearest(side, delta)
        here, there = np.where(top, side.down, side.up), np.where(top, side.up, side.down)
        statistic = max(statistic, float(_statistic(side.values[:, None], here, delta)[0]))
        t = _statistic(place[:, None] + here[:, None] * normal, here, delta)
        u = _largest_upper(place[:, None] + there[:, None] * normal, there, quantile)
        drawn, above = (t, u) if drawn is None or above is None else (np.maximum(drawn, t), np.maximum(above, u))
    if drawn is None or above is None:
        return 0.0
    alpha = 1 - confidence
    left = max(alpha - float(np.mean(above < delta)), alpha / 2)
    rank = min(int(np.ceil((1 - left) * len(drawn))), len(drawn) - 1)
    return statistic / max(float(np.partition(drawn, rank)[rank]), _TINY)


def nearest(side: Side, delta: float) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """The groups' values moved to a gap of delta, and which of them lie in the upper half.

    The window of width delta is placed where the squared standardised moves are least. Groups inside it keep their value,
    less 0.8 standard errors towards the nearer end: groups that close contend for it.

    Example:
        >>> error = np.full(3, 0.1)
        >>> nearest(Side(np.array([0.9, 0.5, 0.88]), error, error), 0.2)[0].round(2)
        array([0.83, 0.63, 0.83])
    """
    values, error = side.values, (side.down + side.up) / 2
    if side.span < delta:
        return values, values >= values.mean()
    weight = 1 / error**2
    low, high = float(values.min()), float(values.max()) - delta
    for _ in range(40):
        start = (low + high) / 2
        pull = float(weight @ (np.maximum(values - start - delta, 0) - np.maximum(start - values, 0)))
        low, high = (start, high) if pull > 0 else (low, start)
    placed = np.clip(values, start, start + delta)
    top = placed - start >= delta / 2
    away = np.maximum(np.where(top, start + delta - placed, placed - start) - _CONTEND * error, 0)
    return np.where(top, start + delta - away, start + away), top


def _statistic(values: FloatArray, error: FloatArray, delta: float) -> FloatArray:
    """max over pairs of (|v_i - v_j| - delta) / s_ij: (k, b) -> (b,)."""
    largest = np.full(values.shape[1], -np.inf)
    for i in range(len(values)):
        for j in range(i):
            t = np.abs(values[i] - values[j])
            t -= delta
            t /= np.hypot(error[i], error[j])
            np.maximum(largest, t, out=largest)
    return largest


def _largest_upper(values: FloatArray, error: FloatArray, quantile: float) -> FloatArray:
    largest = np.zeros(values.shape[1])
    for i in range(len(values)):
        for j in range(i):
            t = np.abs(values[i] - values[j])
            t += quantile * np.hypot(error[i], error[j])
            np.maximum(largest, t, out=largest)
    return largest


@lru_cache(maxsize=64)
def _noise(sizes: tuple[int, ...]) -> tuple[FloatArray, ...]:
    """Standard normal draws for each side's groups, the same for every gap of these sizes, with both signs of every draw.

    Up to eight groups they follow an additive lattice (multiples of the powers of 1 / phi_d, modulo 1), which fills space
    more evenly than random numbers; beyond, every group has the same evenly spaced quantiles in an order of its own. Gaps
    are smooth in common draws, and results do not depend on what was asked before.
    """
    from scipy.special import ndtri

    n_groups, pairs = sum(sizes), sum(k * (k - 1) // 2 for k in sizes)
    half = int(np.clip(_PAIR_DRAWS // (2 * pairs), 250, 1500))
    steps = np.arange(1, half + 1)
    if n_groups <= _LATTICE:
        root = 1.5
        for _ in range(60):
            root = (1 + root) ** (1 / (n_groups + 1))
        shares = (0.5 + steps * root ** -np.arange(1.0, n_groups + 1)[:, None]) % 1
    else:
        rng = np.random.default_rng(20211)
        shares = np.stack([(rng.permutation(half) + 0.5) / half for _ in range(n_groups)])
    draws = ndtri(shares)
    blocks = np.split(np.hstack([draws, -draws]), np.cumsum(sizes)[:-1])
    for block in blocks:
        block.setflags(write=False)
    return tuple(blocks)
