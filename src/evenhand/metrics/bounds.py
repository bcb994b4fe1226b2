r"""Bounds on a gap over all ways in which the missing groups could fall, without trying them one by one.

Some units (patients) have an unknown group. Every assignment of them to the groups gives every group a value, and so a
gap; the bounds are its largest and smallest value over all assignments. What is computed here is, for every ordered pair
of groups, the largest value of :math:`v_i - v_j` that any assignment reaches; the bounds of the gap follow from these.

*Shares* (ratios of sums, :math:`v_g = (A_g + \sum_u a_u) / (B_g + \sum_u b_u)`). With a third group to send units to,
:math:`v_i` is largest when it receives exactly the units with :math:`a_u / b_u` above a threshold, :math:`v_j` is smallest
when it receives those below one, and the two sets do not meet. With two groups only, what does not go to i goes to j. For
a given sum of b, the difference grows with the sum of a, so that the best fractional assignment gives i the units of
largest :math:`a_u / b_u`; between two whole units the difference is monotone or convex wherever it is not negative. So one
scan over thresholds is exact, also where units differ in size.

*AUC*. For given negatives, a group's AUC gains most from the positives of highest score, and the reverse; so the best
assignment sends the top :math:`m_1` positives and the bottom :math:`m_0` negatives. For given :math:`m_0` the AUC rises in
:math:`m_1` and then falls. With two groups only, both numbers are found by branch and bound. Rows of one patient are let
go separately here, which can only widen the bounds; they are exact where the best assignment keeps patients together.

References:
    Horowitz and Manski, Journal of the American Statistical Association 95 (2000) 77 (bounds under missing covariates).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_MOST_POINTS = 400_000
_COARSEST = 64


@dataclass(frozen=True)
class GapBounds:
    """Bounds on max - min (or on min / max) over the groups.

    Attributes:
        lower: no assignment gives less.
        upper: no assignment gives more.
        lower_exact: an assignment is known to reach ``lower``.
        upper_exact: an assignment is known to reach ``upper``.
        pair: positions of the groups with the lowest and the highest value in the extreme case, where the gap is widest.
    """

    lower: float
    upper: float
    lower_exact: bool
    upper_exact: bool
    pair: tuple[int, int]


@dataclass(frozen=True)
class Differences:
    """The largest value of v_i - v_j over all assignments, for every ordered pair of groups.

    Attributes:
        largest: (k, k), row i, column j; 0 on the diagonal. No assignment gives more.
        exact: (k, k), whether an assignment is known to reach it.
        settled: no unit was left to assign, so every difference is a plain number.
    """

    largest: FloatArray
    exact: BoolArray
    settled: bool = False


def bounds_of_gap(differences: Differences) -> GapBounds:
    """The gap's bounds: the largest of all differences, and the largest that no assignment can undo.

    The lower bound is exact with two groups whose order no assignment can change, or without missing units; otherwise it
    is conservative: no assignment gives less, but the smallest gap may be a little larger.

    Example:
        >>> bounds_of_gap(Differences(np.array([[0.0, 0.3], [-0.1, 0.0]]), np.ones((2, 2), bool)))
        GapBounds(lower=0.1, upper=0.3, lower_exact=True, upper_exact=True, pair=(1, 0))
    """
    high, low = np.unravel_index(int(np.argmax(differences.largest)), differences.largest.shape)
    sure = -differences.largest
    below, above = np.unravel_index(int(np.argmax(sure)), sure.shape)
    lower = max(0.0, float(sure[below, above]))
    lower_exact = differences.settled or bool(len(sure) == 2 and lower > 0 and differences.exact[below, above])
    upper = max(float(differences.largest[high, low]), 0.0)
    return GapBounds(lower, upper, lower_exact, bool(differences.exact[high, low]), (int(low), int(high)))


def share_ranges(known_top: FloatArray, known_bottom: FloatArray, top: FloatArray, bottom: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Smallest and largest :math:`(A_g + \sum_{u \in S} a_u) / (B_g + \sum_{u \in S} b_u)` over all sets S, for every group.

    Args:
        known_top: (k,) A of each group.
        known_bottom: (k,) B of each group, positive.
        top: (u,) numerator of each unit that could join.
        bottom: (u,) its denominator, not negative; units of denominator 0 change nothing.

    Example:
        >>> low, high = share_ranges(np.array([5.0]), np.array([10.0]), np.array([1.0, 0.0]), np.array([1.0, 1.0]))
        >>> low.round(3), high.round(3)
        (array([0.455]), array([0.545]))
    """
    order = _by_share(top, bottom)
    ends = []
    for turned in (order, order[::-1]):
        tops = known_top[:, None] + _running(top[turned])
        bottoms = known_bottom[:, None] + _running(bottom[turned])
        ends.append(tops / bottoms)
    return ends[1].min(axis=1), ends[0].max(axis=1)


def share_differences(
    known_top: FloatArray, known_bottom: FloatArray, top: FloatArray, bottom: FloatArray, *, other_groups: bool
) -> Differences:
    """`Differences` of one ratio of sums.

    Args:
        known_top, known_bottom, top, bottom: as in `share_ranges`, for the k groups of the gap.
        other_groups: whether a unit could also fall into a group besides these k. With k = 2 and no other group, units that
            do not join one join the other.
    """
    k = len(known_top)
    use = bottom > 0
    top, bottom = top[use], bottom[use]
    if k == 2 and not other_groups:
        return _two_shares(known_top, known_bottom, top, bottom)
    low, high = share_ranges(known_top, known_bottom, top, bottom)
    largest = high[:, None] - low[None, :]
    exact = largest >= 0
    np.fill_diagonal(largest, 0.0)
    return Differences(largest, exact | (not len(top)), settled=not len(top))


def _two_shares(known_top: FloatArray, known_bottom: FloatArray, top: FloatArray, bottom: FloatArray) -> Differences:
    largest, exact = np.zeros((2, 2)), np.ones((2, 2), dtype=bool)
    order = _by_share(top, bottom)
    for i, j in ((0, 1), (1, 0)):
        tops, bottoms = known_top[i] + _running(top[order]), known_bottom[i] + _running(bottom[order])
        rest_top, rest_bottom = known_top.sum() + top.sum() - tops, known_bottom.sum() + bottom.sum() - bottoms
        reached = float((tops / bottoms - rest_top / rest_bottom).max())
        # Only a difference that is negative everywhere can be larger between two whole units; then the bound says so.
        between = reached if reached >= 0 else _largest_between(tops, bottoms, rest_top, rest_bottom, top[order], bottom[order])
        largest[i, j], exact[i, j] = max(reached, between), between <= reached + 1e-12
    return Differences(largest, exact, settled=not len(top))


def _largest_between(
    tops: FloatArray, bottoms: FloatArray, rest_top: FloatArray, rest_bottom: FloatArray, top: FloatArray, bottom: FloatArray
) -> float:
    """Largest difference while a fraction of one unit is on either side, from the zero of its derivative."""
    if not len(top):
        return -np.inf
    p, q, p_rest, q_rest, share = tops[:-1], bottoms[:-1], rest_top[:-1], rest_bottom[:-1], top / bottom
    gain, loss = share * q - p, share * q_rest - p_rest
    turns = (gain > 0) & (loss < 0)
    if not turns.any():
        return -np.inf
    p, q, p_rest, q_rest, share, bottom = (part[turns] for part in (p, q, p_rest, q_rest, share, bottom))
    root = np.sqrt(gain[turns] / -loss[turns])
    moved = np.clip((root * q_rest - q) / (1 + root), 0, bottom)
    return float(((p + share * moved) / (q + moved) - (p_rest - share * moved) / (q_rest - moved)).max())


def ratio_bounds(
    known_top: FloatArray,
    known_bottom: FloatArray,
    top: FloatArray,
    bottom: FloatArray,
    *,
    other_groups: bool,
    reference: int | None = None,
) -> GapBounds:
    """Bounds on min / max of a share over the groups, or on min / reference; arguments as in `share_differences`.

    The lower bound (the worst case) is exact; the upper one is conservative, without a reference at most 1, with one possibly
    infinite. ``reference`` is the position of the reference group.
    """
    use = bottom > 0
    top, bottom = top[use], bottom[use]
    low, high = share_ranges(known_top, known_bottom, top, bottom)
    k = len(known_top)
    worst, best, pair = np.inf, np.inf if reference is not None else 1.0, (0, 1)
    for i in range(k) if reference is None else (reference,):
        for j in range(k):
            if i == j:
                continue
            if k == 2 and not other_groups:
                reached = _two_ratios(known_top, known_bottom, top, bottom, i)
            else:
                reached = low[j] / high[i] if high[i] > 0 else np.inf
            if reached < worst:
                worst, pair = reached, (j, i)
            best = min(best, high[j] / low[i] if low[i] > 0 else np.inf)
    worst = worst if reference is not None else min(worst, 1.0)
    return GapBounds(float(worst), float(best), bool(np.isfinite(worst)), not len(top), pair)


def _two_ratios(known_top: FloatArray, known_bottom: FloatArray, top: FloatArray, bottom: FloatArray, i: int) -> float:
    order = _by_share(top, bottom)
    tops, bottoms = known_top[i] + _running(top[order]), known_bottom[i] + _running(bottom[order])
    rest = (known_top.sum() + top.sum() - tops) / (known_bottom.sum() + bottom.sum() - bottoms)
    own = tops / bottoms
    return float(np.divide(rest, own, out=np.full(len(own), np.inf), where=own > 0).min())


def _by_share(top: FloatArray, bottom: FloatArray) -> IntArray:
    share = np.divide(top, bottom, out=np.zeros(len(top)), where=bottom > 0)
    return np.argsort(-share, kind="stable").astype(np.int64)


def _running(values: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(values)])


@dataclass(frozen=True)
class _Offer:
    """Wins of one group when it gets the top m1 of the missing positives and the bottom m0 of the missing negatives.

    Every part of the count is a running sum, so that wins at any (m1, m0) are looked up, not counted.
    """

    n1: int
    n0: int
    base: float
    gain1: FloatArray
    gain0: FloatArray
    crossed: tuple[FloatArray, ...]
    reach: tuple[IntArray, ...]

    def wins(self, m1: IntArray, m0: IntArray) -> FloatArray:
        cross = np.zeros(np.broadcast(m1, m0).shape)
        for running, reach in zip(self.crossed, self.reach, strict=True):
            whole = np.minimum(m1, reach[m0])
            cross += 0.5 * (m0 * whole + running[m1] - running[whole])
        return np.asarray(self.base + self.gain1[m1] + self.gain0[m0] + cross)

    def auc(self, m1: IntArray, m0: IntArray) -> FloatArray:
        return np.asarray(self.wins(m1, m0) / ((self.n1 + m1) * (self.n0 + m0)))

    def best(self) -> tuple[float, int, int]:
        """(largest AUC, m1, m0): for every m0 the AUC rises in m1 and then falls, so the turn is found by halving."""
        m0 = np.arange(len(self.gain0))
        low, high = np.zeros(len(m0), np.int64), np.full(len(m0), len(self.gain1) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            rises = self.auc(np.minimum(middle + 1, high), m0) > self.auc(middle, m0) + 1e-15
            low, high = np.where((low < high) & rises, middle + 1, low), np.where((low < high) & ~rises, middle, high)
        found = self.auc(low, m0)
        at = int(np.argmax(found))
        return float(found[at]), int(low[at]), at


def _offer(positive: FloatArray, negative: FloatArray, more_positive: FloatArray, more_negative: FloatArray) -> _Offer:
    """Compile one group; scores of the missing positives descend, those of the missing negatives ascend."""
    known0, known1 = np.sort(negative), np.sort(positive)
    gain1 = _running(_below(known0, more_positive))
    gain0 = _running(len(known1) - _below(known1, more_negative))
    crossed, reach = [], []
    for side in ("left", "right"):
        below = np.searchsorted(more_negative, more_positive, side=side)
        crossed.append(_running(below.astype(float)))
        reach.append(len(below) - np.searchsorted(below[::-1], np.arange(len(more_negative) + 1), side="left"))
    base = float(_below(known0, known1).sum())
    return _Offer(len(known1), len(known0), base, gain1, gain0, tuple(crossed), tuple(reach))


def _below(sorted_scores: FloatArray, scores: FloatArray) -> FloatArray:
    """How many of the sorted scores lie below each score, ties counted half."""
    return np.asarray(0.5 * (np.searchsorted(sorted_scores, scores, "left") + np.searchsorted(sorted_scores, scores, "right")))


def auc_differences(
    known: Sequence[tuple[FloatArray, FloatArray]],
    positive: tuple[FloatArray, IntArray],
    negative: tuple[FloatArray, IntArray],
    *,
    other_groups: bool,
) -> Differences:
    """`Differences` of the AUC.

    Args:
        known: of each group the scores of its positive and of its negative rows, neither empty.
        positive: scores and unit codes of the positive rows without a group.
        negative: the same of the negative rows.
        other_groups: as in `share_differences`.
    """
    order1, order0 = np.lexsort((positive[1], -positive[0])), np.lexsort((negative[1], negative[0]))
    p, n = positive[0][order1], negative[0][order0]
    rising = [_offer(*scores, p, n) for scores in known]
    falling = [_offer(-high, -low, -p[::-1], -n[::-1]) for high, low in known]
    units = (positive[1][order1], negative[1][order0])
    k = len(known)
    largest, exact = np.zeros((k, k)), np.ones((k, k), dtype=bool)
    two = k == 2 and not other_groups
    best, worst = ([], []) if two else ([offer.best() for offer in rising], [offer.best() for offer in falling])
    whole = [_together(units, cut[1:]) for cut in best], [_together((units[0][::-1], units[1][::-1]), cut[1:]) for cut in worst]
    for i in range(k):
        for j in range(k):
            if i == j:
                continue
            if two:
                largest[i, j], m1, m0, sure = _largest_of_two(rising[i], falling[j])
                exact[i, j] = sure and _together(units, (m1, m0))
                continue
            (high, m1, m0), (low, r1, r0) = best[i], worst[j]
            largest[i, j] = high + low - 1
            apart = m1 + r1 <= len(p) and m0 + r0 <= len(n)
            exact[i, j] = apart and whole[0][i] and whole[1][j]
    return Differences(largest, exact, settled=not len(p) + len(n))


def _together(units: tuple[IntArray, IntArray], cut: tuple[int, int]) -> bool:
    """Whether no unit has rows on both sides of the cuts."""
    inside = np.concatenate([units[0][: cut[0]], units[1][: cut[1]]])
    outside = np.concatenate([units[0][cut[0] :], units[1][cut[1] :]])
    return not len(np.intersect1d(inside, outside))


def _largest_of_two(one: _Offer, other: _Offer) -> tuple[float, int, int, bool]:
    """(largest AUC_i - AUC_j, m1, m0, exact) where all missing rows go to i or to j.

    ``other`` is compiled from the negated scores, so that 1 - AUC_j is the AUC it gets from the rest. Squares of (m1, m0)
    whose centre plus the most that the difference can change within them stays below the best are dropped; the others
    are cut in four. A mean of values in [0, 1] over s rows changes by at most r / s when r rows leave or join.
    """
    all1, all0 = len(one.gain1) - 1, len(one.gain0) - 1
    step = _COARSEST
    m1, m0 = (axis.ravel() for axis in np.meshgrid(_centres(all1, step), _centres(all0, step), indexing="ij"))
    best, at, limit = -np.inf, (0, 0), -np.inf
    while True:
        c1, c0 = np.minimum(m1, all1), np.minimum(m0, all0)
        found = one.auc(c1, c0) + other.auc(all1 - c1, all0 - c0) - 1
        top = int(np.argmax(found))
        if found[top] > best:
            best, at = float(found[top]), (int(c1[top]), int(c0[top]))
        if step == 1:
            return max(best, limit), *at, bool(limit <= best)
        slack = 1 / (one.n1 + c1) + 1 / (one.n0 + c0) + 1 / (other.n1 + all1 - c1) + 1 / (other.n0 + all0 - c0)
        reach = found + slack * (step // 2)
        keep = np.flatnonzero(reach > best)
        if 4 * len(keep) > _MOST_POINTS:
            keep = keep[np.argsort(-reach[keep], kind="stable")]
            limit = max(limit, float(reach[keep[_MOST_POINTS // 4]]))
            keep = keep[: _MOST_POINTS // 4]
        if not len(keep):
            return max(best, limit), *at, bool(limit <= best)
        corner1, corner0, step = m1[keep] - step // 2, m0[keep] - step // 2, step // 2
        m1 = np.concatenate([corner1 + a + step // 2 for a in (0, step) for _ in (0, 1)])
        m0 = np.concatenate([corner0 + b + step // 2 for _ in (0, 1) for b in (0, step)])
        inside = (m1 - step // 2 <= all1) & (m0 - step // 2 <= all0)
        m1, m0 = m1[inside], m0[inside]


def _centres(last: int, step: int) -> IntArray:
    """Centres of the blocks of ``step`` numbers that cover 0 … last."""
    return np.arange(0, last + 1, step, dtype=np.int64) + step // 2
