"""Rates against scikit-learn, Wilson's interval against SciPy, the linearised variance against the binomial one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as outside

from evenhand.metrics import METRICS, Estimate, make_cell, rates, wilson
from evenhand.metrics.rates import RATES, rate, rate_gradient, row_sums

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 300)
S = np.clip(0.4 * Y + 0.6 * RNG.random(300), 0, 1)
D = (S > 0.5).astype(int)


def test_rates_agree_with_scikit_learn() -> None:
    found = rates(Y, S, D)
    expected = {
        "tpr": outside.recall_score(Y, D),
        "tnr": outside.recall_score(Y, D, pos_label=0),
        "ppv": outside.precision_score(Y, D),
        "npv": outside.precision_score(Y, D, pos_label=0),
        "accuracy": outside.accuracy_score(Y, D),
        "balanced_accuracy": outside.balanced_accuracy_score(Y, D),
        "f1": outside.f1_score(Y, D),
        "positive_rate": D.mean(),
        "prevalence": Y.mean(),
        "brier": outside.brier_score_loss(Y, S),
        "log_loss": outside.log_loss(Y, S),
    }
    expected["fpr"], expected["fnr"] = 1 - expected["tnr"], 1 - expected["tpr"]
    assert found == pytest.approx(expected, abs=1e-9)
    assert set(found) == set(expected) == set(RATES)


def test_empty_denominators_are_not_zero() -> None:
    found = rates([0, 0], [0.1, 0.2], [0, 0])
    assert np.isnan(found["tpr"])
    assert np.isnan(found["ppv"])
    assert found["tnr"] == 1.0


@pytest.mark.parametrize("name", RATES)
def test_gradient_is_the_numerical_one(name: str) -> None:
    sums = row_sums(Y, S, D).sum(axis=0)[:, None]
    step = 1e-4
    for j in range(6):
        moved = sums.copy()
        moved[j] += step
        assert rate_gradient(name, sums)[j, 0] == pytest.approx((rate(name, moved) - rate(name, sums))[0] / step, abs=1e-6)


def test_variance_of_a_rate_is_binomial_where_every_row_is_a_patient() -> None:
    cell = make_cell(Y, S, D, np.arange(300))
    n = int((Y == 1).sum())
    value, variance = cell.moments(("tpr",))["tpr"]
    assert variance[0] == pytest.approx(value[0] * (1 - value[0]) / (n - 1))


def test_variance_of_a_rate_of_one_is_above_zero() -> None:
    cell = make_cell(np.ones(20), np.ones(20), np.ones(20), np.arange(20))
    assert cell.moments(("tpr",))["tpr"][1][0] == pytest.approx(1 / 40**2)


def test_copies_of_a_patients_images_change_nothing() -> None:
    once = make_cell(Y, S, D, np.arange(300) // 3)
    twice = make_cell(np.tile(Y, 2), np.tile(S, 2), np.tile(D, 2), np.tile(np.arange(300) // 3, 2))
    for name, (value, variance) in once.moments(METRICS).items():
        assert np.allclose([value, variance], twice.moments(METRICS)[name], rtol=1e-7, equal_nan=True), name


def test_denominators_count_patients() -> None:
    y, d = np.array([1, 1, 1, 0, 0]), np.array([1, 0, 1, 1, 0])
    cell = make_cell(y, np.full(5, 0.5), d, np.array([7, 7, 9, 9, 9]))
    assert cell.denominator("tpr") == (3, 2)
    assert cell.denominator("fpr") == (2, 1)
    assert cell.denominator("ppv") == (3, 2)
    assert cell.denominator("auc") == (5, 1)


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (12, 12), (5, 30)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert wilson(hits / n, n, 0.9) == pytest.approx((expected.low, expected.high))


def test_an_estimate_is_a_number_or_a_reason() -> None:
    assert Estimate(0.5, 0.4, 0.6, 10, 5).to_json() == {"value": 0.5, "lower": 0.4, "upper": 0.6, "n": 10}
    missing = Estimate(None, None, None, 3, 1, "3 patients").to_json()
    assert missing == {"value": None, "lower": None, "upper": None, "reason": "3 patients", "n": 3, "n_positive": 1}
