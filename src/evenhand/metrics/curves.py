r"""Curves of a score, group by group: ROC, precision-recall, reliability and decision curves, with bands over patients.

A point of a curve is exact: it uses every distinct score. A band is pointwise: at each place of a fixed grid it is the
percentile interval of the curve over bootstrap replicates in which patients, with all their images, are drawn with
replacement within their group. Replicates see at most `MOST_LEVELS` distinct scores of a group, which moves a band by less
than the width of a printed line.

With more than two groups nothing changes: every group has curves of its own, and none is compared with another here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.rates import wilson
from evenhand.random import generator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GRID: FloatArray = np.linspace(0.0, 1.0, 51)
"""Where bands of ROC (FPR) and precision-recall (recall) curves are given."""
THRESHOLDS: FloatArray = np.arange(1, 100) / 100
"""Threshold probabilities of decision curves."""
MOST_LEVELS = 200
MOST_DRAWS = 20_000_000
"""Replicates times kinds of patients: beyond it fewer replicates are drawn, but never fewer than `FEWEST`; bands are narrow there."""
FEWEST = 50


@dataclass(frozen=True)
class Line:
    """A curve and its band.

    Attributes:
        x, y: (k,) the curve's points, x ascending.
        grid: (g,) where the band is given; empty without replicates.
        lower, upper: (g,) ends of the pointwise band.
    """

    x: FloatArray
    y: FloatArray
    grid: FloatArray = field(default_factory=lambda: np.zeros(0))
    lower: FloatArray = field(default_factory=lambda: np.zeros(0))
    upper: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Reliability:
    """Bins of equal size over the scores of a group.

    Attributes:
        score: (b,) mean score in a bin.
        observed: (b,) share of positive rows.
        lower, upper: (b,) Wilson's interval with the bin's patients, not its rows, as the sample size.
        n: (b,) rows.
        n_patients: (b,) patients.
    """

    score: FloatArray
    observed: FloatArray
    lower: FloatArray
    upper: FloatArray
    n: IntArray
    n_patients: IntArray


@dataclass(frozen=True)
class GroupCurves:
    """All curves of one group.

    Attributes:
        n, n_positive, n_patients: its size.
        roc: TPR over FPR.
        precision_recall: PPV over recall (TPR).
        decision: net benefit over the threshold probability.
        treat_all: (k,) net benefit of calling everybody positive, at the decision curve's x; treating nobody has 0.
        reliability: share of positive rows over mean score.
    """

    n: int
    n_positive: int
    n_patients: int
    roc: Line
    precision_recall: Line
    decision: Line
    treat_all: FloatArray
    reliability: Reliability


def roc_points(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    r"""ROC curve: :math:`P(S \ge t | Y=0)` and :math:`P(S \ge t | Y=1)` at every distinct score t, from (0, 0) to (1, 1).

    Args:
        y_true: (n,) in {0, 1}, both occurring.
        y_score: (n,) finite.

    Returns:
        (FPR, TPR), both ascending. The points are scikit-learn's with ``drop_intermediate=False``.

    Example:
        >>> roc_points(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.2]))
        (array([0., 0., 1.]), array([0. , 0.5, 1. ]))
    """
    found, alarms = _cumulative(y_true, y_score)
    return np.append(0.0, alarms / max(alarms[-1], 1)), np.append(0.0, found / max(found[-1], 1))


def precision_recall_points(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    r"""Precision-recall curve: :math:`P(S \ge t | Y=1)` and :math:`P(Y=1 | S \ge t)` at every distinct score t.

    scikit-learn adds a point (0, 1) that no threshold has; it is left out here.

    Args:
        y_true: (n,) in {0, 1}, with a 1.
        y_score: (n,) finite.

    Returns:
        (recall, precision), recall ascending.

    Example:
        >>> precision_recall_points(np.array([1, 0, 1]), np.array([0.9, 0.5, 0.2]))
        (array([0.5, 0.5, 1. ]), array([1.        , 0.5       , 0.66666667]))
    """
    found, alarms = _cumulative(y_true, y_score)
    return found / max(found[-1], 1), found / (found + alarms)


def net_benefit_points(
    y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], thresholds: FloatArray = THRESHOLDS
) -> tuple[FloatArray, FloatArray]:
    r"""Decision curve: :math:`P(S \ge t, Y=1) - P(S \ge t, Y=0)\, t / (1-t)`, of the score and of treating everybody.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities.
        thresholds: (k,) in (0, 1), ascending.

    Returns:
        Net benefit of the score and of calling everybody positive, each (k,); calling nobody positive has 0.

    Example:
        >>> net_benefit_points(np.array([1, 0, 0, 1]), np.array([0.9, 0.8, 0.1, 0.3]), np.array([0.5]))
        (array([0.]), array([0.]))

    References:
        Vickers and Elkin, Medical Decision Making 26 (2006) 565.
    """
    positive = np.asarray(y_true) == 1
    odds = thresholds / (1 - thresholds)
    found, alarms = (len(s) - np.searchsorted(np.sort(s), thresholds, side="left") for s in (y_score[positive], y_score[~positive]))
    share = float(positive.mean())
    return (found - alarms * odds) / len(positive), share - (1 - share) * odds


def reliability_bins(
    y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], unit: IntArray | None = None, *, most: int = 10, confidence: float = 0.95
) -> Reliability:
    r"""Observed share of positive rows, :math:`P(Y=1 | S \in b)`, against the mean score in bins b of about equal size.

    Edges are quantiles of the scores, as in scikit-learn's ``calibration_curve(strategy="quantile")``; there are as many
    bins as leave about 20 rows in each, ``most`` at the most.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities.
        unit: (n,) patients; default: every row is one.
        most: bins at the most.
        confidence: level of the intervals.

    Example:
        >>> bins = reliability_bins(np.array([0, 1] * 20), np.array([0.2, 0.8] * 20))
        >>> bins.observed
        array([0., 1.])
    """
    count = int(np.clip(len(y_score) // 20, 1, most))
    edges = np.quantile(y_score, np.linspace(0, 1, count + 1))[1:-1]
    place = np.searchsorted(edges, y_score)
    own = np.arange(len(y_score)) if unit is None else unit
    used = np.unique(place)
    rows = [place == b for b in used]
    n = np.array([int(r.sum()) for r in rows])
    patients = np.array([len(np.unique(own[r])) for r in rows])
    observed = np.array([float(np.mean(y_true[r] == 1)) for r in rows])
    limits = np.array([wilson(share, int(size), confidence) for share, size in zip(observed, patients, strict=True)])
    return Reliability(np.array([float(y_score[r].mean()) for r in rows]), observed, limits[:, 0], limits[:, 1], n, patients)


def group_curves(
    y_true: npt.NDArray[Any],
    y_score: npt.NDArray[Any],
    unit: IntArray,
    codes: IntArray,
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    name: str = "",
    confidence: float = 0.95,
) -> dict[int, GroupCurves]:
    """All curves of every group, with bands.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities in [0, 1].
        unit: (n,) patient of each row.
        codes: (n,) group of each row, from 0 on; rows of a negative code take no part.
        n_bootstrap: replicates of the bands; 0: no bands. Beyond `MOST_DRAWS` there are fewer.
        seed: of the random stream.
        name: names the random stream.
        confidence: level of the bands.

    Returns:
        Group code -> curves. A group without positive or without negative rows is left out: it has no ROC curve.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 400)
        >>> found = group_curves(y, 0.3 * y + 0.7 * rng.random(400), np.arange(400), np.repeat([0, 1], 200), n_bootstrap=50)
        >>> sorted(found), bool(np.all(found[0].roc.lower <= found[0].roc.upper))
        ([0, 1], True)
    """
    positive = np.asarray(y_true) == 1
    known = [int(c) for c in np.unique(codes[codes >= 0]) if len(np.unique(positive[codes == c])) == 2]
    found = {}
    for code in known:
        use = np.flatnonzero(codes == code)
        y, score, own = positive[use], np.asarray(y_score, float)[use], unit[use]
        rng = generator(seed, "curves", name, code)
        bands = _bands(_levels(y, score, own), n_bootstrap, rng, confidence) if n_bootstrap else {}
        benefit, everybody = net_benefit_points(y, score)
        curves = {"roc": roc_points(y, score), "pr": precision_recall_points(y, score), "decision": (THRESHOLDS, benefit)}
        lines = {kind: _line(kind, *points, bands.get(kind)) for kind, points in curves.items()}
        bins = reliability_bins(y, score, own, confidence=confidence)
        sizes = (len(use), int(y.sum()), len(np.unique(own)))
        found[code] = GroupCurves(*sizes, lines["roc"], lines["pr"], lines["decision"], everybody, bins)
    return found


def at_grid(kind: str, x: FloatArray, y: FloatArray, grid: FloatArray) -> FloatArray:
    """A curve's height at a grid: ROC and decision curves linear between points, precision that of the first point of that recall."""
    if kind == "pr":
        return np.asarray(y[np.searchsorted(x, grid - 1e-12).clip(0, len(x) - 1)])
    return np.asarray(np.interp(grid, x, y))


def decimate(x: FloatArray, y: FloatArray, most: int = 120) -> tuple[FloatArray, FloatArray]:
    """At most ``most`` points of a curve, evenly along its length, both ends kept.

    Example:
        >>> decimate(np.linspace(0, 1, 5), np.zeros(5), 3)
        (array([0. , 0.5, 1. ]), array([0., 0., 0.]))
    """
    if len(x) <= most:
        return x, y
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    picked = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], most)).clip(0, len(x) - 1))
    picked[0], picked[-1] = 0, len(x) - 1
    return x[picked], y[picked]


def _cumulative(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Positive and negative rows with at least each distinct score, from the highest score down."""
    order = np.argsort(-y_score, kind="stable")
    scores, positive = y_score[order], y_true[order] > 0
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return np.cumsum(positive)[last].astype(float), np.cumsum(~positive)[last].astype(float)


def _line(kind: str, x: FloatArray, y: FloatArray, band: tuple[FloatArray, FloatArray] | None) -> Line:
    if band is None:
        return Line(x, y)
    grid = THRESHOLDS if kind == "decision" else GRID
    here = at_grid(kind, x, y, grid)
    return Line(x, y, grid, np.minimum(band[0], here), np.maximum(band[1], here))


@dataclass(frozen=True)
class _Levels:
    """One group's rows by level of score (ascending) and kind of patient.

    Patients with one row in the same level and of the same class are of one kind: in the bootstrap only their number
    matters. A patient with several rows is a kind of its own.

    Attributes:
        positive, negative: sparse (levels, kinds), rows of one patient of the kind.
        patients: (kinds,) how many there are.
        starts: level at which each of `THRESHOLDS` starts.
    """

    positive: Any
    negative: Any
    patients: IntArray
    starts: IntArray


def _levels(positive: npt.NDArray[np.bool_], score: FloatArray, unit: IntArray) -> _Levels:
    from scipy.sparse import csr_array

    distinct = np.unique(score)
    edges = np.unique(np.append(distinct[:: -(-len(distinct) // MOST_LEVELS)], THRESHOLDS))
    level = np.searchsorted(edges, score, side="right")
    _, local, rows = np.unique(unit, return_inverse=True, return_counts=True)
    several = rows[local] > 1
    kind, first = np.unique(np.where(several, -1 - local, 2 * level + positive), return_inverse=True)
    patients = np.bincount(first, minlength=len(kind))
    patients[kind < 0] = 1
    one = np.append(True, np.diff(np.sort(first)) > 0)
    picked = several.copy()
    picked[np.argsort(first, kind="stable")[one]] = True
    shape = (len(edges) + 1, len(kind))
    high, low = (
        csr_array((np.ones(int(use.sum())), (level[use], first[use])), shape=shape) for use in (positive & picked, ~positive & picked)
    )
    return _Levels(high, low, patients, np.searchsorted(edges, THRESHOLDS) + 1)


def _bands(cell: _Levels, n_bootstrap: int, rng: np.random.Generator, confidence: float) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Kind of curve -> (lower, upper) on its grid, from draws of the group's patients with replacement."""
    total = int(cell.patients.sum())
    wanted = min(n_bootstrap, max(FEWEST, MOST_DRAWS // len(cell.patients)))
    size = max(8, 4_000_000 // len(cell.patients))
    parts = []
    for start in range(0, wanted, size):
        parts.append(_replicates(cell, _draws(cell.patients, total, min(size, wanted - start), rng)))
    return {kind: _percentiles([part[kind] for part in parts], confidence) for kind in ("roc", "pr", "decision")}


def _draws(patients: IntArray, total: int, columns: int, rng: np.random.Generator) -> FloatArray:
    """How often each kind is drawn when ``total`` patients are drawn with replacement: (kinds, columns)."""
    if total > 10 * len(patients):
        return rng.multinomial(total, patients / total, size=columns).T.astype(float)
    kind = np.repeat(np.arange(len(patients), dtype=np.int32), patients)
    drawn = [np.bincount(kind[rng.integers(0, total, total, dtype=np.int32)], minlength=len(patients)) for _ in range(columns)]
    return np.stack(drawn, axis=1).astype(float)


def _replicates(cell: _Levels, weights: FloatArray) -> dict[str, FloatArray]:
    """Each curve's height on its grid under each column of weights of kinds: (grid, b), NaN where a class has no weight."""
    found, alarms = (np.cumsum((part @ weights)[::-1], axis=0) for part in (cell.positive, cell.negative))
    all1, all0 = found[-1], alarms[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        tpr, fpr, precision = found / all1, alarms / all0, found / (found + alarms)
        odds = (THRESHOLDS / (1 - THRESHOLDS))[:, None]
        down = len(found) - 1 - cell.starts
        decision = (found[down] - alarms[down] * odds) / (all1 + all0)
    roc, pr = np.full((2, len(GRID), weights.shape[1]), np.nan)
    first = (found + alarms <= 0).sum(axis=0)
    for b in np.flatnonzero((all1 > 0) & (all0 > 0)):
        roc[:, b] = np.interp(GRID, fpr[:, b], tpr[:, b])
        pr[:, b] = precision[np.maximum(np.searchsorted(tpr[:, b], GRID - 1e-12), first[b]), b]
    return {"roc": roc, "pr": pr, "decision": decision}


def _percentiles(parts: Sequence[FloatArray], confidence: float) -> tuple[FloatArray, FloatArray]:
    values = np.concatenate(parts, axis=1)
    usable = values[:, np.isfinite(values).all(axis=0)]
    if not usable.shape[1]:
        empty = np.full(len(values), np.nan)
        return empty, empty
    low, high = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return np.asarray(low), np.asarray(high)
