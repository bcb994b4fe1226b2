r"""Intervals of one group's value: score, logit, logarithmic, studentised, percentile and BCa, all with patients as clusters.

``auto`` takes, for every metric, the kind that held the true value most evenly in simulations of groups of 20 to 2,000
patients with 1 to 5 images each (docs/guide/uncertainty.md has the measured table):

* shares (TPR, FPR, TNR, FNR, PPV, NPV, accuracy, positive rate, prevalence): Wilson's score interval with the effective
  number of rows ``v (1 - v) / variance`` in place of n and Student's quantile in place of the normal one;
* AUC, average precision, F1, balanced accuracy: Student's interval on the logit scale (close to 0 or 1 score limits), the
  variance DeLong's and Obuchowski's for AUC, the linearised clustered one for the others;
* Brier score, log loss: Student's interval on the scale 1 / sqrt(loss);
* calibration error, slope and intercept, net benefit: Student's interval; that of the calibration error is centred on its
  corrected form, as the plain one is too large by chance.

``percentile`` and ``bca`` use the patient bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from evenhand.metrics.bootstrap import percentile_interval
from evenhand.metrics.rates import UNBOUNDED, wilson

FloatArray = npt.NDArray[np.float64]
Limits = tuple[float, float]

SHARES = frozenset({"tpr", "fpr", "tnr", "fnr", "ppv", "npv", "accuracy", "positive_rate", "prevalence"})
LOGIT = frozenset({"auc", "average_precision", "f1", "balanced_accuracy"})
LOSSES = frozenset({"brier", "log_loss"})
ERRORS = frozenset({"ece", "ece_corrected"})
KINDS = ("auto", "percentile", "bca")
DESCRIPTIONS = {
    "auto": "groups: clustered Wilson score (rates), logit of the clustered DeLong variance (AUC), studentised clustered variance (others)",
    "percentile": "groups: patient-clustered percentile bootstrap within groups",
    "bca": "groups: patient-clustered BCa bootstrap within groups",
}
"""Kind -> how provenance names it."""

_LEAST_REPLICATES = 20
_LOGITS = 1.5
_HALF_WAY = 0.6


@dataclass(frozen=True)
class Spread:
    """What an interval is made from, besides the value.

    Attributes:
        variance: clustered variance of the value.
        units: patients in the denominator (of the smaller class, for metrics of both).
        patients: all patients of the group.
        acceleration: of BCa.
        centre: what a studentised interval is centred on; None: the value. The calibration error, which chance makes too
            large, has the centre and the variance of its corrected form.
    """

    variance: float
    units: int
    patients: int
    acceleration: float = 0.0
    centre: float | None = None


def interval(metric: str, value: float, spread: Spread, replicates: FloatArray, kind: str, confidence: float) -> Limits | None:
    """The interval of one group's metric, or None where there is none (no replicates, or no variance).

    The value always lies inside. A share of exactly 0 or 1, which no resampling varies, has Wilson's interval over its
    patients with every kind.

    Args:
        metric: name of `evenhand.metrics.cells.METRICS`.
        value: its estimate.
        spread: variance and sizes.
        replicates: (B,) bootstrap replicates; needed by ``percentile`` and ``bca``.
        kind: one of `KINDS`.
        confidence: level, as 0.95.

    Example:
        >>> low, high = interval("tpr", 0.9, Spread(0.0045, 20, 20), np.zeros(0), "auto", 0.95)
        >>> round(low, 3), round(high, 3)
        (0.682, 0.974)
    """
    if kind == "auto":
        limits = _studentised(metric, value, spread, confidence)
    elif metric in SHARES and value in (0.0, 1.0) and len(replicates):
        limits = wilson(value, spread.units, confidence)
    else:
        limits = bootstrap_limits(value, replicates, confidence, spread.acceleration if kind == "bca" else None)
    if limits is None or not np.isfinite(limits).all():
        return None
    return min(limits[0], value), max(limits[1], value)


def _studentised(metric: str, value: float, spread: Spread, confidence: float) -> Limits | None:
    if not np.isfinite(spread.variance):
        return None
    if metric in SHARES:
        return clustered_wilson(value, spread.variance, spread.units, confidence)
    quantile, error = student(0.5 + confidence / 2, spread.patients - 1), float(np.sqrt(spread.variance))
    if metric in LOGIT:
        return logit_limits(value, error, quantile, spread.units)
    if metric in LOSSES and value > 0:
        low, high = loss_limits(value, error, quantile)
        return low, high if metric in UNBOUNDED else min(high, 1.0)
    centre = value if spread.centre is None else spread.centre
    low, high = centre - quantile * error, centre + quantile * error
    return (max(low, 0.0), min(max(high, 0.0), 1.0)) if metric in ERRORS else (low, high)


def student(level: float, freedom: int) -> float:
    """Student's quantile.

    Example:
        >>> round(student(0.975, 9), 3)
        2.262
    """
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), level))


def score_limits(share: float, n: float, quantile: float) -> Limits:
    """Wilson's score limits of a share among ``n`` (which need not be whole) with a given quantile.

    .. math:: \\frac{v + q^2 / 2n \\pm q \\sqrt{v (1 - v) / n + q^2 / 4n^2}}{1 + q^2 / n}

    Example:
        >>> low, high = score_limits(0.5, 10, 1.959964)
        >>> round(low, 4), round(high, 4)
        (0.2366, 0.7634)
    """
    square = quantile**2 / n
    centre, half = share + square / 2, quantile * float(np.sqrt(share * (1 - share) / n + square / (4 * n)))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    return (0.0 if share <= 0 else low), (1.0 if share >= 1 else high)


def clustered_wilson(share: float, variance: float, units: int, confidence: float = 0.95) -> Limits:
    r"""Wilson's interval of a share with patients as clusters.

    The effective number of rows is :math:`v (1 - v) / \widehat{var}(v)`, that is rows over the design effect, and the number
    of patients where the share is 0 or 1 and has no variance. The quantile is Student's with patients - 1 degrees of
    freedom, as the variance is estimated from that many; with it, a design effect that is below 1 by accident of few
    patients does no harm (measured), and copies of a patient's images change nothing.

    Args:
        share: in [0, 1].
        variance: its clustered variance.
        units: patients in the denominator.
        confidence: level.

    References:
        Wilson, JASA 22 (1927) 209; Korn and Graubard, Survey Methodology 24 (1998) 193; Dean and Pagano, Journal of Survey
        Statistics and Methodology 3 (2015) 484.

    Example:
        >>> clustered_wilson(1.0, 0.0, 20)[1]
        1.0
    """
    quantile = student(0.5 + confidence / 2, units - 1)
    if share <= 0 or share >= 1 or variance <= 0:
        return score_limits(share, units, quantile)
    return score_limits(share, max(share * (1 - share) / variance, 1.0), quantile)


def logit_limits(value: float, error: float, quantile: float, units: int) -> Limits:
    """``value ± quantile * error`` made on the logit scale, so that the limits stay in (0, 1).

    Close to 0 or 1, where half the interval would be more than 1.5 logits, it opens far too wide (an AUC of 0.98 of 25
    patients: 0.33 instead of 0.16, with no better coverage); there, score limits with the effective size
    ``value (1 - value) / error^2`` are taken, and at 0 or 1 with the number of patients.

    Example:
        >>> low, high = logit_limits(0.95, 0.02, 1.96, 50)
        >>> round(low, 4), round(high, 4)
        (0.8928, 0.9775)
    """
    if not 0 < value < 1:
        return score_limits(value, max(units, 1), quantile)
    weight = value * (1 - value)
    half = quantile * error / weight
    if half > _LOGITS:
        return score_limits(value, max(weight / error**2, 1.0), quantile)
    centre = np.log(value / (1 - value))
    return float(1 / (1 + np.exp(half - centre))), float(1 / (1 + np.exp(-half - centre)))


def loss_limits(value: float, error: float, quantile: float) -> Limits:
    """``value ± quantile * error`` made on the scale ``1 / sqrt(value)``, on which mean losses of few patients are least skewed.

    Where the error is so large that this scale has no upper limit, the logarithmic scale is taken.

    Example:
        >>> low, high = loss_limits(0.16, 0.02, 2.0)
        >>> round(low, 4), round(high, 4)
        (0.1264, 0.209)
    """
    half = quantile * error / (2 * value)
    if half > _HALF_WAY:
        return value * float(np.exp(-2 * half)), value * float(np.exp(min(2 * half, 700.0)))
    return value / (1 + half) ** 2, value / (1 - half) ** 2


def bootstrap_limits(value: float, replicates: FloatArray, confidence: float, acceleration: float | None = None) -> Limits | None:
    """Percentile limits, or with an acceleration BCa limits; None without a finite replicate.

    BCa moves the percentiles by the bias correction (how many replicates lie below the value, ties half) and the
    acceleration (`acceleration_of`). With fewer than 20 finite replicates there is no BCa and percentiles are taken.

    References:
        Efron, Better bootstrap confidence intervals, JASA 82 (1987) 171.

    Example:
        >>> bootstrap_limits(0.5, np.linspace(0, 1, 101), 0.5)
        (0.25, 0.75)
    """
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return None
    if acceleration is None or len(finite) < _LEAST_REPLICATES:
        low, high, _ = percentile_interval(finite, confidence)
        return low, high
    normal = NormalDist()
    below = (np.count_nonzero(finite < value) + 0.5 * np.count_nonzero(finite == value)) / len(finite)
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / len(finite), 1 - 0.5 / len(finite))))
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        moved = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + moved / max(1 - acceleration * moved, 0.05)))
    low, high = np.quantile(finite, levels)
    return float(low), float(high)


def acceleration_of(left_out: FloatArray) -> float:
    r"""BCa's acceleration from the values with one patient (or block of patients) left out at a time.

    .. math:: a = \frac{\sum_u l_u^3}{6 (\sum_u l_u^2)^{3/2}}, \quad l_u = \bar\theta_{(\cdot)} - \theta_{(u)}

    Influences add up within a block, so that blocks of equal size estimate the same number.

    Example:
        >>> acceleration_of(np.array([1.0, 2.0, 3.0]))
        0.0
    """
    finite = left_out[np.isfinite(left_out)]
    pull = finite.mean() - finite if len(finite) else np.zeros(1)
    square = float((pull**2).sum())
    return float((pull**3).sum() / (6 * square**1.5)) if square > 0 else 0.0


def leave_out(
    values: Callable[[FloatArray], dict[str, FloatArray]], n_units: int, blocks: int = 200, chunk: int = 25
) -> dict[str, FloatArray]:
    """Every metric with one block of units left out at a time; a block is one unit where there are at most ``blocks``.

    Args:
        values: weights (n_units, b) -> metric -> (b,).
        n_units: units.
        blocks: most blocks.
        chunk: blocks computed at a time.
    """
    number = min(n_units, blocks)
    member, parts = np.arange(n_units) % max(number, 1), []
    for start in range(0, number, chunk):
        out = np.arange(start, min(start + chunk, number))
        parts.append(values((member[:, None] != out).astype(float)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def newcombe(share_a: float, n_a: float, share_b: float, n_b: float, confidence: float = 0.95) -> Limits:
    """Interval of a difference of two shares of independent groups, a - b: Newcombe's hybrid score (his method 10).

    Args:
        share_a, n_a: share and size of one group; clustered images: the effective size.
        share_b, n_b: of the other.
        confidence: level.

    References:
        Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17 (1998) 873.

    Example:
        >>> low, high = newcombe(56 / 70, 70, 48 / 80, 80)  # Newcombe's example (a)
        >>> round(low, 4), round(high, 4)
        (0.0524, 0.3339)
    """
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    return mover(share_a, score_limits(share_a, n_a, quantile), share_b, score_limits(share_b, n_b, quantile))


def mover(value_a: float, limits_a: Limits, value_b: float, limits_b: Limits) -> Limits:
    """Limits of a - b from the limits of two independent values ("method of variance estimates recovery").

    .. math:: d - \\sqrt{(a - l_a)^2 + (u_b - b)^2}, \\quad d + \\sqrt{(u_a - a)^2 + (b - l_b)^2}

    References:
        Zou and Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27 (2008) 1693.

    Example:
        >>> mover(0.9, (0.6, 1.0), 0.5, (0.4, 0.9))
        (-0.09999999999999998, 0.5414213562373095)
    """
    difference = value_a - value_b
    low = float(np.hypot(value_a - limits_a[0], limits_b[1] - value_b))
    high = float(np.hypot(limits_a[1] - value_a, value_b - limits_b[0]))
    return difference - low, difference + high
