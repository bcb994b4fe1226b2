r"""Two models on the same patients: paired differences, and DeLong's interval of one AUC.

Both models see the same patients, so their errors go together and a difference is known better than either number. To first
order a metric is a sum of patients' influences; the variance of the difference is the sum of squares of the patients'
differences of influence (for AUC with one image a patient this is DeLong's test, with several images Obuchowski's).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from evenhand.errors import ConfigError, TableError
from evenhand.metrics.auc import auc_with_variance, rank_rows
from evenhand.metrics.bootstrap import bootstrap_blocks
from evenhand.metrics.cells import METRICS, make_cell
from evenhand.metrics.influence import INFLUENCES, Rows, influences
from evenhand.metrics.intervals import SHARES, logit_limits, student
from evenhand.metrics.permutation import critical_value, p_value
from evenhand.metrics.rates import UNBOUNDED

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WITHIN = {"accuracy": (0, 1), "tpr": (1,), "fnr": (1,), "tnr": (0,), "fpr": (0,)}
"""Shares of right (or wrong) decisions among rows of these truths: with one row a patient their test is McNemar's."""


@dataclass(frozen=True)
class AucEstimate:
    """One AUC.

    Attributes:
        value: the area; NaN where a class has fewer than two patients.
        variance: DeLong's, with several rows a patient Obuchowski's.
        lower, upper: Student's interval on the logit scale.
        n, n_patients: rows and patients.
    """

    value: float
    variance: float
    lower: float
    upper: float
    n: int
    n_patients: int


@dataclass(frozen=True)
class PairedDifference:
    """Model a minus model b on the same patients.

    Attributes:
        value: the difference; NaN where the metric is not defined for one of them (AUC: fewer than two patients of a class).
        lower, upper: limits of its interval.
        p: p-value of "no difference".
        value_a, value_b: the metric of each model.
        variance: of the difference; of bootstrap replicates where ``method`` says so.
        n, n_patients: rows and patients.
        method: how limits and p-value were made.
    """

    value: float
    lower: float
    upper: float
    p: float
    value_a: float
    value_b: float
    variance: float
    n: int
    n_patients: int
    method: str


def delong(y_true: npt.ArrayLike, y_score: npt.ArrayLike, patient: npt.ArrayLike | None = None, confidence: float = 0.95) -> AucEstimate:
    r"""AUC = P(score of a random positive > that of a random negative) + P(equal) / 2, with DeLong's variance.

    With several rows a patient the variance is Obuchowski's, of patients as clusters. The interval is made on the logit
    scale with Student's quantile for patients - 1 degrees of freedom: it stays in [0, 1] and holds the truth of small groups
    more often than the symmetric one. A perfect separation has the variance floor of `auc_with_variance`.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) finite.
        patient: (n,) whose row it is; default: every row another patient's.
        confidence: level.

    Raises:
        TableError: arrays of different lengths, labels other than 0 and 1, scores that are not finite.

    Example:
        >>> found = delong([0, 0, 0, 1, 1, 1], [0.1, 0.3, 0.4, 0.35, 0.7, 0.9])
        >>> round(found.value, 4), round(found.variance, 4)
        (0.8889, 0.0247)

    References:
        DeLong et al., Biometrics 44 (1988) 837; Obuchowski, Biometrics 53 (1997) 567.
    """
    truth, unit, (score,) = _checked(y_true, patient, {"y_score": y_score})
    ranked = rank_rows(truth, score, unit)
    units = int(unit.max(initial=-1)) + 1
    value, variance = (float(item[0]) for item in auc_with_variance(ranked, np.ones((units, 1))))
    if not np.isfinite(value):
        return AucEstimate(value, variance, value, value, len(truth), units)
    smaller = min(len(np.unique(unit[truth == kind])) for kind in (0, 1))
    lower, upper = logit_limits(value, float(np.sqrt(variance)), student(0.5 + confidence / 2, units - 1), smaller)
    return AucEstimate(value, variance, lower, upper, len(truth), units)


def paired_difference(
    y_true: npt.ArrayLike,
    score_a: npt.ArrayLike,
    score_b: npt.ArrayLike,
    patient: npt.ArrayLike | None = None,
    metric: str = "auc",
    *,
    decision_a: npt.ArrayLike | None = None,
    decision_b: npt.ArrayLike | None = None,
    threshold: float = 0.5,
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    r"""metric(a) - metric(b) on the same rows, with an interval and a test that use the pairing.

    AUC: DeLong's (several rows a patient: Obuchowski's) variance of a difference and the normal quantile, as published.
    Rates, Brier score, log loss: the variance of the patients' differences of influence and Student's quantile; for shares
    of right decisions with one row a patient the p-value is McNemar's exact one, which an interval that excludes 0 can
    contradict when only a few rows differ. Unless all scores and decisions are equal, the variance is at least that of half a
    patient's answer: two models that both find 20 of 20 are not known to be equal. Other metrics: the patient bootstrap of
    the difference; the interval is ``value ± q`` with q the critical value of the centred replicates, so that 0 lies inside
    exactly when p >= 1 - confidence.

    Args:
        y_true: (n,) in {0, 1}.
        score_a, score_b: (n,) finite scores of either model; in [0, 1] for metrics of probabilities.
        patient: (n,) whose row it is; default: every row another patient's.
        metric: name out of `evenhand.metrics.cells.METRICS`.
        decision_a, decision_b: (n,) in {0, 1}; default: score >= ``threshold``.
        threshold: of default decisions and of net benefit.
        confidence: level.
        n_bootstrap: replicates, where they are used.
        seed: of the bootstrap.

    Raises:
        ConfigError: an unknown metric.
        TableError: arrays of different lengths, labels or decisions other than 0 and 1, scores that are not finite.

    Example:
        >>> y = [0, 0, 0, 0, 1, 1, 1, 1]
        >>> a, b = [0.1, 0.2, 0.3, 0.6, 0.5, 0.7, 0.8, 0.9], [0.1, 0.6, 0.3, 0.7, 0.4, 0.5, 0.8, 0.9]
        >>> found = paired_difference(y, a, b)
        >>> round(found.value, 4), round(found.p, 3), found.method
        (0.1875, 0.268, 'paired DeLong')

    References:
        DeLong et al., Biometrics 44 (1988) 837; McNemar, Psychometrika 12 (1947) 153.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric '{metric}' is unknown; known are {', '.join(METRICS)}")
    truth, unit, scores = _checked(y_true, patient, {"score_a": score_a, "score_b": score_b})
    given = zip(("decision_a", "decision_b"), (decision_a, decision_b), scores, strict=True)
    decisions = [_decisions(name, decision, score, threshold) for name, decision, score in given]
    models = [Rows(truth, score, decision, unit) for score, decision in zip(scores, decisions, strict=True)]
    if metric not in INFLUENCES:
        return _resampled(models, metric, threshold, confidence, n_bootstrap, seed)
    a, b = (influences(model, np.ones(len(truth), bool), (metric,))[metric] for model in models)
    apart, units = a.by_unit - b.by_unit, min(a.units, b.units)
    same = np.array_equal(scores[0], scores[1]) and np.array_equal(decisions[0], decisions[1])
    variance = max(float(apart @ apart), 0.0 if same else max(a.floor, b.floor))
    value = a.value - b.value if metric != "auc" or units > 1 else float("nan")
    patients = models[0].n_units
    clustered, free = len(truth) > patients, (units if metric in SHARES else patients) - 1
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2) if metric == "auc" else student(0.5 + confidence / 2, free)
    width, p = quantile * float(np.sqrt(variance)), float("nan")
    method = ("paired Obuchowski" if clustered else "paired DeLong") if metric == "auc" else "paired clustered variance"
    if metric in WITHIN and not clustered:
        inside = np.isin(truth, WITHIN[metric])
        p, method = mcnemar(decisions[0][inside] == truth[inside], decisions[1][inside] == truth[inside]), f"{method}; exact McNemar"
    elif np.isfinite(value):
        p = _two_sided(value, variance, None if metric == "auc" else free)
    return PairedDifference(value, *_limits(metric, value, width), p, a.value, b.value, variance, len(truth), patients, method)


def mcnemar(right_a: npt.ArrayLike, right_b: npt.ArrayLike) -> float:
    r"""McNemar's exact p-value: of the rows that one model alone has right, is either model's share other than a half?

    :math:`\min(1, 2 P(X \le \min(n_a, n_b)))` with X binomial (n_a + n_b, 1/2); 1 where no row differs.

    Args:
        right_a, right_b: (n,) whether each row is right; one row a patient.

    Example:
        >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
        0.0625
    """
    from scipy.special import bdtr

    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))) if only_a + only_b else 1.0


def _two_sided(value: float, variance: float, freedom: int | None) -> float:
    if variance <= 0:
        return 1.0 if value == 0 else 0.0
    statistic = abs(value) / float(np.sqrt(variance))
    if freedom is None:
        return 2 * NormalDist().cdf(-statistic)
    from scipy.special import stdtr

    return 2 * float(stdtr(max(freedom, 1), -statistic))


def _resampled(models: list[Rows], metric: str, threshold: float, confidence: float, n_bootstrap: int, seed: int) -> PairedDifference:
    cells = [make_cell(model.y_true, model.y_score, model.decision, model.unit, threshold=threshold) for model in models]
    strata = cells[0].label_patterns()  # cases stay cases: a replicate has as many patients of either class

    def difference(weights: FloatArray) -> FloatArray:
        a, b = (cell.values((metric,), weights)[metric] for cell in cells)
        return a - b

    a, b = (float(cell.values((metric,))[metric][0]) for cell in cells)
    draws = np.concatenate(list(bootstrap_blocks(difference, strata, n_bootstrap, seed, "paired", metric)))
    errors = np.abs(draws[np.isfinite(draws)] - (a - b))
    p, width, variance = float("nan"), float("nan"), float("nan")
    if len(errors) > 1 and np.isfinite(a - b):
        p, width, variance = p_value(abs(a - b), errors), critical_value(errors, confidence), float(np.mean(errors**2))
    n, patients = len(models[0].y_true), models[0].n_units
    return PairedDifference(a - b, *_limits(metric, a - b, width), p, a, b, variance, n, patients, "paired patient bootstrap")


def _limits(metric: str, value: float, width: float) -> tuple[float, float]:
    """``value ± width``, within [-1, 1] for metrics whose difference cannot be larger."""
    low, high = value - width, value + width
    return (low, high) if metric in UNBOUNDED or not np.isfinite(low) else (max(low, -1.0), min(high, 1.0))


def _checked(
    y_true: npt.ArrayLike, patient: npt.ArrayLike | None, scores: dict[str, npt.ArrayLike]
) -> tuple[npt.NDArray[np.float64], IntArray, list[FloatArray]]:
    truth = np.asarray(y_true, float)
    given = {name: np.asarray(score, float) for name, score in scores.items()}
    lengths = {"y_true": len(truth), **{name: len(score) for name, score in given.items()}}
    owner = np.arange(len(truth)) if patient is None else np.asarray(patient)
    lengths["patient"] = len(owner)
    if len(set(lengths.values())) > 1:
        raise TableError(f"arrays differ in length ({', '.join(f'{name} {n}' for name, n in lengths.items())}); give one entry a row")
    if not np.isin(truth, (0, 1)).all():
        raise TableError(f"y_true has {int((~np.isin(truth, (0, 1))).sum())} values other than 0 and 1; leave unlabelled rows out")
    for name, score in given.items():
        if not np.isfinite(score).all():
            raise TableError(f"{name} has {int((~np.isfinite(score)).sum())} values that are not finite; leave these rows out")
    return truth, np.unique(owner, return_inverse=True)[1].astype(np.int64), list(given.values())


def _decisions(name: str, given: npt.ArrayLike | None, score: FloatArray, threshold: float) -> npt.NDArray[np.float64]:
    decision = (score >= threshold).astype(float) if given is None else np.asarray(given, float)
    if len(decision) != len(score) or not np.isin(decision, (0, 1)).all():
        raise TableError(f"{name} needs {len(score)} values that are 0 or 1, got {len(decision)}; give one decision a row")
    return decision
