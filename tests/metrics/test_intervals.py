"""Intervals of one group against statsmodels, SciPy and published examples; what clusters, copies and bounds do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from evenhand.metrics.cells import METRICS, make_cell
from evenhand.metrics.intervals import (
    KINDS,
    Spread,
    acceleration_of,
    bootstrap_limits,
    clustered_wilson,
    interval,
    leave_out,
    logit_limits,
    newcombe,
    score_limits,
    student,
)


@given(st.integers(1, 60), st.data())
@settings(max_examples=30, deadline=None)
def test_score_limits_are_wilsons_of_statsmodels(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    expected = proportion_confint(count, n, 0.05, method="wilson")
    assert score_limits(count / n, n, 1.959963984540054) == pytest.approx(expected, abs=1e-9)


def test_newcombes_published_examples() -> None:
    """Table II of Newcombe (1998), method 10, rows (a) to (h)."""
    published = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (6, 7, 2, 7): (0.0582, 0.8062),
        (5, 56, 0, 29): (-0.0381, 0.1926),
        (0, 10, 0, 20): (-0.1611, 0.2775),
        (0, 10, 0, 10): (-0.2775, 0.2775),
        (10, 10, 0, 20): (0.6791, 1.0),
        (10, 10, 0, 10): (0.6075, 1.0),
    }
    for (a, n, b, m), limits in published.items():
        assert newcombe(a / n, n, b / m, m) == pytest.approx(limits, abs=6e-5)


@given(st.integers(5, 80), st.integers(5, 80), st.data())
@settings(max_examples=25, deadline=None)
def test_newcombe_is_that_of_statsmodels(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    expected = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert newcombe(a / n, n, b / m, m) == pytest.approx(expected, abs=1e-9)


def test_independent_rows_have_wilsons_interval_with_students_quantile() -> None:
    share, n = 0.8, 50
    expected = score_limits(share, n - 1, student(0.975, n - 1))
    assert clustered_wilson(share, share * (1 - share) / (n - 1), n) == pytest.approx(expected)


def test_clusters_widen_and_bounds_are_kept() -> None:
    alone, clustered = (clustered_wilson(0.9, factor * 0.09 / 100, 100) for factor in (1, 2.5))
    assert clustered[0] < alone[0] < 0.9 < alone[1] < clustered[1] < 1
    assert clustered_wilson(1.0, 0.0, 20)[1] == 1.0
    assert clustered_wilson(0.0, 0.0, 20)[0] == 0.0
    low, high = logit_limits(1.0, 0.01, 2.0, 20)
    assert 0.8 < low < high == 1.0
    low, high = logit_limits(0.99, 0.01, 2.0, 20)
    assert 0.9 < low < high < 1.0


def _rows(seed: int, n: int = 60) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n), rng.integers(1, 4, n))
    y = (rng.random(n) < 0.4).astype(int)[unit]
    z = y + rng.normal(size=n)[unit] + 0.5 * rng.normal(size=len(unit)) - 0.5
    return y, 1 / (1 + np.exp(-z)), (z > 0).astype(int), unit


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_has_every_kind_of_interval(kind: str) -> None:
    cell = make_cell(*_rows(0), threshold=0.5)
    weights = np.random.default_rng(1).multinomial(cell.n_units, np.full(cell.n_units, 1 / cell.n_units), 200).T.astype(float)
    values, draws, moments = cell.values(METRICS), cell.values(METRICS, weights), cell.moments(METRICS)
    for name in METRICS:
        spread = Spread(float(moments[name][1][0]), cell.denominator(name)[1], cell.n_units, acceleration=0.02)
        found = interval(name, float(values[name][0]), spread, draws[name], kind, 0.95)
        assert found is not None
        assert found[0] <= values[name][0] <= found[1]
        assert found[0] < found[1]
        wider = interval(name, float(values[name][0]), spread, draws[name], kind, 0.99)
        assert wider is not None
        assert wider[0] <= found[0] < found[1] <= wider[1]


def test_bca_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).lognormal(size=40)
    outside = bootstrap((x,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(2))
    left = leave_out(lambda weights: {"mean": x @ weights / weights.sum(axis=0)}, 40)["mean"]
    assert left == pytest.approx([np.delete(x, i).mean() for i in range(40)])
    found = bootstrap_limits(float(x.mean()), outside.bootstrap_distribution, 0.95, acceleration_of(left))
    assert found == pytest.approx((outside.confidence_interval.low, outside.confidence_interval.high), rel=2e-3)


def test_blocks_of_patients_estimate_the_same_acceleration() -> None:
    x = np.random.default_rng(0).lognormal(size=4000)
    left = {number: leave_out(lambda weights: {"mean": x @ weights / weights.sum(axis=0)}, 4000, number)["mean"] for number in (4000, 200)}
    own, blocks = acceleration_of(left[4000]), acceleration_of(left[200])
    assert blocks == pytest.approx(own, rel=0.5)
    assert len(leave_out(lambda weights: {"n": weights.sum(axis=0)}, 7, 3)["n"]) == 3


def test_a_share_of_one_that_no_resampling_varies_is_not_certain() -> None:
    for kind in KINDS:
        found = interval("tpr", 1.0, Spread(0.0006, 20, 20), np.ones(100), kind, 0.95)
        assert found is not None
        assert found[0] < 0.87
        assert found[1] == 1.0


def test_the_calibration_errors_interval_is_centred_on_the_corrected_one() -> None:
    found = interval("ece", 0.06, Spread(0.0001, 50, 50, centre=0.01), np.zeros(0), "auto", 0.95)
    assert found == pytest.approx((0.0, 0.06))


def test_no_replicates_no_bootstrap_interval() -> None:
    spread = Spread(0.01, 20, 20)
    assert interval("auc", 0.8, spread, np.zeros(0), "percentile", 0.95) is None
    assert interval("auc", 0.8, spread, np.zeros(0), "auto", 0.95) is not None
    assert interval("auc", 0.8, Spread(float("nan"), 1, 1), np.zeros(0), "auto", 0.95) is None


def test_no_limit_lies_where_no_value_can() -> None:
    for metric in ("brier", "ece", "ece_corrected"):
        found = interval(metric, 0.7, Spread(0.04, 12, 12), np.zeros(0), "auto", 0.95)
        assert found is not None
        assert 0 <= found[0] <= 0.7 <= found[1] == 1.0
    loss = interval("log_loss", 0.7, Spread(0.04, 12, 12), np.zeros(0), "auto", 0.95)
    assert loss is not None
    assert loss[1] > 1
