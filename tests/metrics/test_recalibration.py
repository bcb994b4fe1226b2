"""Calibration slope and intercept against statsmodels, one Newton step against full fits, and where there is no fit."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from evenhand.metrics import METRICS, calibration_slope_intercept, make_cell
from evenhand.metrics.recalibration import CONSTANT, ONE_CLASS, SEPARATED, recalibrate

RNG = np.random.default_rng(3)
N = 900
PATIENT = np.unique(RNG.integers(0, 300, N), return_inverse=True)[1]
Y = (RNG.random(N) < 0.35).astype(int)
X = 1.4 * Y - 1 + RNG.normal(0, 1.3, N) + RNG.normal(0, 0.5, PATIENT.max() + 1)[PATIENT]
S = 1 / (1 + np.exp(-X))
UNITS = PATIENT.max() + 1


def test_the_slope_is_statsmodels_logit_with_its_clustered_sandwich() -> None:
    found = calibration_slope_intercept(Y, S, patient=PATIENT)
    clusters = {"groups": PATIENT, "use_correction": True}
    fit = sm.Logit(Y, sm.add_constant(X)).fit(disp=0, tol=1e-12, cov_type="cluster", cov_kwds=clusters)
    assert found.slope == pytest.approx(fit.params[1], abs=1e-9)
    assert found.slope_variance * (N - 1) / (N - 2) == pytest.approx(fit.cov_params()[1, 1], rel=1e-7)


def test_the_intercept_is_statsmodels_glm_with_an_offset() -> None:
    found = calibration_slope_intercept(Y, S, patient=PATIENT)
    clusters = {"groups": PATIENT, "use_correction": True}
    model = sm.GLM(Y, np.ones(N), offset=X, family=sm.families.Binomial())
    fit = model.fit(tol=1e-12, cov_type="cluster", cov_kwds=clusters)
    assert found.intercept == pytest.approx(fit.params[0], abs=1e-9)
    assert found.intercept_variance == pytest.approx(fit.cov_params()[0, 0], rel=1e-7)


def test_weights_are_repeated_rows() -> None:
    weight = RNG.integers(0, 3, N)
    rows = np.repeat(np.arange(N), weight)
    weighted, repeated = calibration_slope_intercept(Y, S, weight=weight), calibration_slope_intercept(Y[rows], S[rows])
    assert weighted.slope == pytest.approx(repeated.slope, abs=1e-9)
    assert weighted.intercept == pytest.approx(repeated.intercept, abs=1e-9)


def test_a_calibrated_score_has_slope_one_and_intercept_zero() -> None:
    s = RNG.beta(1, 2, 40_000)
    found = calibration_slope_intercept(RNG.random(40_000) < s, s)
    assert abs(found.slope - 1) < 4 * found.slope_variance**0.5 < 0.1
    assert abs(found.intercept) < 4 * found.intercept_variance**0.5 < 0.1


def test_one_newton_step_is_close_to_the_full_fit() -> None:
    fit = recalibrate(Y, S, PATIENT)
    weights = RNG.multinomial(UNITS, np.full(UNITS, 1 / UNITS), 60).T.astype(float)
    slopes, intercepts = fit.replicates(weights)
    full = [recalibrate(Y, S, PATIENT, weights[PATIENT, k]) for k in range(60)]
    for step, exact in ((slopes, np.array([f.slope for f in full])), (intercepts, np.array([f.intercept for f in full]))):
        assert np.abs(step - exact).max() < 0.25 * exact.std()
        assert step.std() == pytest.approx(exact.std(), rel=0.05)
    assert fit.replicates(np.ones((UNITS, 1)))[0][0] == fit.slope


def test_the_variances_are_near_those_of_the_bootstrap() -> None:
    fit = recalibrate(Y, S, PATIENT)
    weights = RNG.multinomial(UNITS, np.full(UNITS, 1 / UNITS), 2000).T.astype(float)
    slopes, intercepts = fit.replicates(weights)
    assert fit.slope_variance == pytest.approx(slopes.var(), rel=0.15)
    assert fit.intercept_variance == pytest.approx(intercepts.var(), rel=0.15)


@pytest.mark.parametrize(
    ("y", "s", "why"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], SEPARATED),
        ([0, 0, 1, 1], [0.1, 0.3, 0.3, 0.4], SEPARATED),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], SEPARATED),
        ([0, 1, 0, 1], [0.2, 0.2, 0.2, 0.2], CONSTANT),
        ([1, 1], [0.2, 0.3], ONE_CLASS),
        ([], [], ONE_CLASS),
    ],
)
def test_no_slope_has_a_reason(y: list[int], s: list[float], why: str) -> None:
    found = calibration_slope_intercept(y, s)
    assert np.isnan(found.slope)
    assert found.reasons["slope"] == why
    assert np.isnan(found.intercept) == (why == ONE_CLASS) == ("intercept" in found.reasons)


def test_scores_of_0_and_1_are_cut() -> None:
    found = calibration_slope_intercept([0, 1, 0, 1, 1, 0], [0.0, 0.0, 0.2, 0.8, 1.0, 1.0])
    cut = calibration_slope_intercept([0, 1, 0, 1, 1, 0], [1e-6, 1e-6, 0.2, 0.8, 1 - 1e-6, 1 - 1e-6])
    assert np.isfinite(found.slope)
    assert found.slope == cut.slope


def test_the_order_of_rows_changes_no_bit() -> None:
    order = RNG.permutation(N)
    one = make_cell(Y, S, Y, PATIENT, threshold=0.5)
    two = make_cell(Y[order], S[order], Y[order], PATIENT[order], threshold=0.5)
    weights = RNG.poisson(1.0, (UNITS, 3)).astype(float)
    for name in METRICS:
        assert np.array_equal(one.values((name,), weights)[name], two.values((name,), weights)[name]), name
        assert np.array_equal(one.moments((name,))[name][1], two.moments((name,))[name][1]), name


def test_memberships_are_fitted_anew() -> None:
    member = (np.arange(UNITS) % 2 == 0).astype(float)[:, None]
    inside = member[PATIENT, 0] > 0
    value, variance = make_cell(Y, S, Y, PATIENT).moments(("calibration_slope",), member)["calibration_slope"]
    alone = calibration_slope_intercept(Y[inside], S[inside], patient=PATIENT[inside])
    assert [value[0], variance[0]] == pytest.approx([alone.slope, alone.slope_variance])


def test_scores_that_are_decisions_have_a_slope() -> None:
    y, s = np.repeat([0, 1, 0, 1], [20, 2, 2, 28]), np.repeat([0, 0, 1, 1], [20, 2, 2, 28])
    found = calibration_slope_intercept(y, s)
    logits = np.log(np.array([2 / 20, 28 / 2]))
    assert found.slope == pytest.approx(np.ptp(logits) / (2 * np.log((1 - 1e-6) / 1e-6)))
    assert found.intercept == pytest.approx(0.5 * np.log(30 / 22), abs=1e-4)  # 22 exp(a) = 30 exp(-a)
    assert found.reasons == {}
