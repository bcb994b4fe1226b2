"""Paired differences: DeLong against an independent computation, McNemar against statsmodels, what pairing gains."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as outside_mcnemar

from evenhand.errors import ConfigError, TableError
from evenhand.metrics.paired import delong, mcnemar, paired_difference


def _delong_by_pairs(y: np.ndarray, *scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and their covariance from the definition: the matrix of all pairs, row means, sample covariances."""
    tens, ones = [], []
    for s in scores:
        wins = (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
        tens.append(wins.mean(axis=1))
        ones.append(wins.mean(axis=0))
    values = np.array([ten.mean() for ten in tens])
    return values, np.cov(tens) / (y == 1).sum() + np.cov(ones) / (y == 0).sum()


def _two_models(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    common = rng.normal(size=n)
    a, b = (np.round(1 / (1 + np.exp(-(shift * y + common + 0.7 * rng.normal(size=n) - 0.5))), 2) for shift in (1.4, 0.9))
    return y, a, b


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_the_definition(seed: int) -> None:
    y, a, b = _two_models(seed)
    values, covariance = _delong_by_pairs(y, a, b)
    one, found = delong(y, a), paired_difference(y, a, b)
    assert (one.value, one.variance) == pytest.approx((values[0], covariance[0, 0]))
    assert found.value == pytest.approx(values[0] - values[1])
    assert found.variance == pytest.approx(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert one.lower < one.value < one.upper
    assert (found.lower <= 0 <= found.upper) == (found.p >= 0.05)


def test_copies_of_a_patients_rows_change_nothing() -> None:
    y, a, b = _two_models(0)
    patient = np.arange(len(y))
    thrice = [np.tile(item, 3) for item in (y, a, b, patient)]
    for metric in ("auc", "tpr", "brier"):
        once, more = paired_difference(y, a, b, patient, metric), paired_difference(*thrice, metric)
        assert more.variance == pytest.approx(once.variance)
        assert more.n_patients == once.n_patients


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_is_that_of_statsmodels(seed: int) -> None:
    y, a, b = _two_models(seed)
    right_a, right_b = (a >= 0.5) == y, (b >= 0.5) == y
    table = [[np.sum(right_a & right_b), np.sum(right_a & ~right_b)], [np.sum(~right_a & right_b), np.sum(~right_a & ~right_b)]]
    expected = outside_mcnemar(table, exact=True)
    assert mcnemar(right_a, right_b) == pytest.approx(min(expected.pvalue, 1.0))
    found = paired_difference(y, a, b, metric="accuracy")
    assert found.p == pytest.approx(min(expected.pvalue, 1.0))
    assert found.value == pytest.approx(right_a.mean() - right_b.mean())
    difference = right_a.astype(float) - right_b
    assert found.variance == pytest.approx(difference.var(ddof=1) / len(y))


def test_a_paired_t_test_is_that_of_scipy() -> None:
    from scipy.stats import ttest_rel

    y, a, b = _two_models(4)
    found = paired_difference(y, a, b, metric="brier")
    expected = ttest_rel((a - y) ** 2, (b - y) ** 2)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-5)
    interval = expected.confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), abs=1e-7)


def test_other_metrics_are_resampled_by_patient_with_seeded_draws() -> None:
    y, a, b = _two_models(1)
    first, again = (paired_difference(y, a, b, metric="average_precision", n_bootstrap=300, seed=3) for _ in range(2))
    assert first == again
    assert first.method == "paired patient bootstrap"
    assert (first.lower <= 0 <= first.upper) == (first.p >= 0.05)
    same = paired_difference(y, a, a, metric="average_precision", n_bootstrap=50)
    assert (same.value, same.p) == (0.0, 1.0)


def test_equal_models_do_not_differ() -> None:
    y, a, _ = _two_models(2)
    for metric in ("auc", "tpr", "f1"):
        found = paired_difference(y, a, a, metric=metric)
        assert (found.value, found.lower, found.upper, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        paired_difference([0, 1], [0.1, 0.2], [0.1, 0.2], metric="aucc")
    with pytest.raises(TableError, match="differ in length"):
        delong([0, 1], [0.1])
    with pytest.raises(TableError, match="other than 0 and 1"):
        delong([0, 2], [0.1, 0.2])
    with pytest.raises(TableError, match="not finite"):
        delong([0, 1], [0.1, np.nan])
    with pytest.raises(TableError, match="decision_a"):
        paired_difference([0, 1], [0.1, 0.2], [0.1, 0.2], metric="tpr", decision_a=[0, 3])


def test_one_class_has_no_auc() -> None:
    assert np.isnan(delong([1, 1], [0.1, 0.2]).value)
    assert np.isnan(paired_difference([1, 1], [0.1, 0.2], [0.3, 0.2]).value)


def test_two_perfect_models_are_not_known_to_be_equal() -> None:
    y = np.repeat([1, 0], 20)
    a, b = np.where(y, 0.9, 0.1), np.where(y, 0.8, 0.2)
    for metric in ("auc", "tpr", "accuracy", "f1"):
        found = paired_difference(y, a, b, metric=metric)
        assert (found.value, found.p) == (0.0, 1.0)
        assert found.lower < 0 < found.upper
    worst = paired_difference(y, a, 1 - a, metric="tpr")
    assert worst.lower < worst.value == worst.upper == 1.0  # and never beyond 1


def test_one_patient_of_a_class_has_no_difference_of_aucs() -> None:
    y, a, b = [1, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.3], [0.15, 0.1, 0.2, 0.3, 0.3]
    found = paired_difference(y, a, b)
    assert np.isnan([found.value, found.lower, found.upper, found.p]).all()


def test_degrees_of_freedom_are_those_of_the_denominator() -> None:
    y = np.repeat([1, 0], [6, 500])
    a = np.where(y, 0.9, 0.1)
    b = np.where(np.arange(506) % 2, a, 1 - a)
    found = paired_difference(y, a, b, metric="tpr")
    assert found.value == 0.5
    assert (found.value - found.lower) / found.variance**0.5 == pytest.approx(2.5706, abs=1e-3)  # Student's t, 5
