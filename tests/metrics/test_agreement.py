"""Values and intervals against scikit-learn, torchmetrics, fairlearn, statsmodels and SciPy where definitions agree."""

from __future__ import annotations

from typing import Any

import fairlearn.metrics as fm
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from evenhand.metrics import average_precision, expected_calibration_error, holm, make_cell, wilson
from evenhand.metrics.bootstrap import bootstrap_blocks, percentile_interval
from evenhand.metrics.permutation import largest_difference, null_maxima, p_value

EXACT = {"abs": 1e-9, "rel": 0}

RATES: dict[str, Any] = {
    "tpr": lambda y, d: sk.recall_score(y, d, zero_division=np.nan),
    "tnr": lambda y, d: sk.recall_score(y, d, pos_label=0, zero_division=np.nan),
    "fpr": lambda y, d: 1 - sk.recall_score(y, d, pos_label=0, zero_division=np.nan),
    "fnr": lambda y, d: 1 - sk.recall_score(y, d, zero_division=np.nan),
    "ppv": lambda y, d: sk.precision_score(y, d, zero_division=np.nan),
    "npv": lambda y, d: sk.precision_score(y, d, pos_label=0, zero_division=np.nan),
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "f1": lambda y, d: sk.f1_score(y, d, zero_division=np.nan),
    "positive_rate": lambda y, d: fm.selection_rate(y, d),
    "prevalence": lambda y, d: fm.selection_rate(y, y),
}
SCORES: dict[str, Any] = {"auc": sk.roc_auc_score, "brier": sk.brier_score_loss}


def ours(y: np.ndarray, s: np.ndarray, d: np.ndarray, metrics: tuple[str, ...]) -> dict[str, float]:
    cell = make_cell(y, s, d, np.arange(len(y)))
    return {name: float(value[0]) for name, value in cell.values(metrics).items()}


def of_all_and_each(judged: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [(judged.y, judged.s, judged.d), *(judged.of(group) for group in np.unique(judged.g))]


def test_rates_are_scikit_learns(judged: Any) -> None:
    for y, s, d in of_all_and_each(judged):
        expected = {name: float(call(y, d)) for name, call in RATES.items()}
        assert ours(y, s, d, tuple(RATES)) == pytest.approx(expected, **EXACT, nan_ok=True)


def test_scores_are_scikit_learns(judged: Any) -> None:
    for y, s, d in of_all_and_each(judged):
        found = ours(y, s, d, (*SCORES, "log_loss"))
        if len(np.unique(y)) < 2:
            assert np.isnan(found["auc"])
            continue
        inside = np.clip(s, 1e-15, 1 - 1e-15)
        expected = {name: float(call(y, s)) for name, call in SCORES.items()} | {"log_loss": float(sk.log_loss(y, inside))}
        assert found == pytest.approx(expected, **EXACT)


def test_average_precision_is_scikit_learns_and_torchmetrics(judged: Any) -> None:
    for y, s, _ in of_all_and_each(judged):
        if y.any():
            assert average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s), **EXACT)
    theirs = tm.binary_average_precision(torch.tensor(judged.s.tolist(), dtype=torch.float64), torch.tensor(judged.y.tolist()))
    assert average_precision(judged.y, judged.s) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_calibration_error_is_torchmetrics_with_as_many_bins(judged: Any, bins: int) -> None:
    """Single precision would put a score on a bin's edge into either bin; both get doubles that lie off the edges."""
    s = np.clip(judged.s * 0.98 + 0.0071, 0, 1)
    theirs = tm.binary_calibration_error(torch.tensor(s.tolist(), dtype=torch.float64), torch.tensor(judged.y.tolist()), n_bins=bins)
    assert expected_calibration_error(judged.y, s, bins=bins) == pytest.approx(float(theirs), abs=1e-6)


def test_values_are_torchmetrics(judged: Any) -> None:
    """torchmetrics calls a score above the threshold positive, we from the threshold on; decisions are passed to both."""
    y, s, d = (torch.as_tensor(np.asarray(x)) for x in (judged.y, judged.s.astype(float), judged.d))
    found = ours(judged.y, judged.s, judged.d, ("auc", "tpr", "tnr", "accuracy", "f1"))
    expected = {
        "auc": tm.binary_auroc(s, y),
        "tpr": tm.binary_recall(d, y),
        "tnr": tm.binary_specificity(d, y),
        "accuracy": tm.binary_accuracy(d, y),
        "f1": tm.binary_f1_score(d, y),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)


def test_group_values_are_those_of_a_metric_frame(judged: Any) -> None:
    metrics = {
        "tpr": fm.true_positive_rate,
        "fpr": fm.false_positive_rate,
        "tnr": fm.true_negative_rate,
        "fnr": fm.false_negative_rate,
        "positive_rate": fm.selection_rate,
        "n": fm.count,
    }
    frame = fm.MetricFrame(metrics=metrics, y_true=judged.y, y_pred=judged.d, sensitive_features=judged.g)
    for group in np.unique(judged.g):
        y, s, d = judged.of(group)
        found = {**ours(y, s, d, tuple(name for name in metrics if name != "n")), "n": len(y)}
        expected = frame.by_group.loc[group].to_dict()
        assert {name: value for name, value in found.items() if np.isfinite(value)} == pytest.approx(
            {name: value for name, value in expected.items() if np.isfinite(found[name])}, **EXACT
        )


@pytest.mark.parametrize(("hits", "n", "level"), [(0, 12, 0.95), (12, 12, 0.9), (5, 30, 0.95), (99, 1000, 0.99)])
def test_wilson_is_statsmodels(hits: int, n: int, level: float) -> None:
    assert wilson(hits / n, n, level) == pytest.approx(proportion_confint(hits, n, alpha=1 - level, method="wilson"), **EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed: int) -> None:
    p = np.round(np.random.default_rng(seed).random(12) ** 3, 2)
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1], **EXACT)


def test_percentiles_are_scipys_bootstrap_within_monte_carlo_error() -> None:
    x = (np.random.default_rng(0).random(300) < 0.3).astype(float)
    made = stats.bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    replicates = np.concatenate(list(bootstrap_blocks(lambda w: x @ w / 300, np.zeros(300, np.int64), 4000, 0)))
    low, high, failed = percentile_interval(replicates, 0.95)
    assert failed == 0
    # a 2.5% quantile of 4000 draws has a standard error of about 0.0025 SD / density(1.96) = 0.042 SD
    within = 4 * np.sqrt(2) * 0.042 * made.standard_error
    assert (low, high) == pytest.approx((made.confidence_interval.low, made.confidence_interval.high), abs=within)


@pytest.mark.parametrize("shift", [0.0, 0.12])
def test_permutation_p_is_scipys_with_the_same_statistic(shift: float) -> None:
    rng = np.random.default_rng(3)
    group = np.arange(200) % 2
    right = rng.random(200) < 0.7 + shift * group
    cell = make_cell(np.ones(200), np.full(200, 0.5), right.astype(float), np.arange(200))

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        variances = [max(x.mean() * (1 - x.mean()) / (len(x) - 1), 0.25 / len(x) ** 2) for x in (a, b)]
        return float(abs(a.mean() - b.mean()) / np.sqrt(sum(variances)))

    moments = [make_cell(*(x[group == k] for x in (np.ones(200), np.full(200, 0.5), right.astype(float))), np.arange(100)) for k in (0, 1)]
    value, variance = (np.array([cell.moments(("accuracy",))["accuracy"][i] for cell in moments]) for i in (0, 1))
    observed = float(largest_difference(value, variance)[0])
    assert observed == pytest.approx(statistic(right[group == 0], right[group == 1]), abs=1e-12)

    null = null_maxima(cell, group, {"accuracy": np.array([0, 1])}, {"accuracy": 4000}, np.random.default_rng(0))["accuracy"]
    theirs = stats.permutation_test(
        (right[group == 0], right[group == 1]), statistic, n_resamples=4000, alternative="greater", rng=np.random.default_rng(1)
    ).pvalue
    within = 4 * np.sqrt(2 * theirs * (1 - theirs) / 4000)
    assert p_value(observed, null) == pytest.approx(theirs, abs=within)
