"""Means and medians against statsmodels, SciPy and NumPy, and what shifting, scaling and permuting must do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics.means import ValueCell, make_value_cell, mean_limits, median_limits, student, value_null
from evenhand.metrics.permutation import largest_difference

FloatArray = npt.NDArray[np.float64]


def clustered(seed: int, n_units: int = 30) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n_units), rng.integers(1, 5, n_units))
    return rng.normal(size=n_units)[unit] + rng.normal(size=len(unit)), unit


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_and_its_variance_are_those_of_statsmodels_with_clusters(seed: int) -> None:
    import statsmodels.api as sm

    x, unit = clustered(seed)
    ((mean, variance),) = make_value_cell(x, unit).moments(("mean",)).values()
    fitted = sm.OLS(x, np.ones_like(x)).fit(cov_type="cluster", cov_kwds={"groups": unit})
    assert mean[0] == pytest.approx(fitted.params[0], abs=1e-12)
    # statsmodels corrects by G/(G-1) (n-1)/(n-k), and k is 1
    assert variance[0] == pytest.approx(fitted.bse[0] ** 2, rel=1e-9)


def test_without_clusters_the_interval_without_replicates_is_scipys_t_interval() -> None:
    from scipy import stats

    x = np.random.default_rng(1).normal(3, 2, 15)
    cell = make_value_cell(x, np.arange(15))
    ((mean, variance),) = cell.moments(("mean",)).values()
    found = mean_limits(float(mean[0]), float(variance[0]), 15, np.zeros(0), 0.95)
    assert found == pytest.approx(stats.t.interval(0.95, 14, x.mean(), stats.sem(x)), abs=1e-6)
    assert student(0.975, 15) == pytest.approx(stats.t.ppf(0.975, 14), abs=1e-5)


def test_the_median_and_the_spread_are_numpys_and_the_weighted_ones_those_of_repeated_rows() -> None:
    x, unit = clustered(5)
    cell = make_value_cell(x, unit)
    assert cell.values()["median"] == np.median(x)
    spread, quantiles = cell.describe()
    assert spread == pytest.approx(x.std(ddof=1))
    assert quantiles == pytest.approx({"0.05": np.quantile(x, 0.05), "0.25": np.quantile(x, 0.25), "0.75": np.quantile(x, 0.75),
                                       "0.95": np.quantile(x, 0.95)})  # fmt: skip
    weights = np.random.default_rng(0).integers(0, 4, (30, 5)).astype(float)
    found = cell.weighted(weights)
    for column in range(5):
        repeated = np.repeat(x, weights[unit, column].astype(int))
        assert found["mean"][column] == pytest.approx(repeated.mean())
        assert found["median"][column] == pytest.approx(np.median(repeated))


def test_the_studentised_error_is_that_of_the_resampled_patients() -> None:
    x, unit = clustered(7, 12)
    cell = make_value_cell(x, unit)
    drawn = np.random.default_rng(2).integers(0, 12, 12)
    t = cell.weighted(np.bincount(drawn, minlength=12)[:, None].astype(float))["t"][0]
    rows = [np.flatnonzero(unit == u) for u in drawn]
    again = make_value_cell(x[np.concatenate(rows)], np.repeat(np.arange(12), [len(r) for r in rows]))
    ((mean, variance),) = again.moments(("mean",)).values()
    assert t == pytest.approx((mean[0] - x.mean()) / np.sqrt(variance[0]))


def test_the_medians_standard_error_is_about_right_for_normal_values() -> None:
    # the asymptotic variance of a normal sample's median is pi/2 of the mean's
    rng = np.random.default_rng(0)
    found = [make_value_cell(rng.normal(size=200), np.arange(200)).moments(("median",))["median"][1][0] for _ in range(200)]
    assert np.mean(found) == pytest.approx(np.pi / 2 / 200, rel=0.1)


def test_clusters_of_equal_rows_count_as_one_row_each() -> None:
    x = np.random.default_rng(3).normal(size=25)
    once, thrice = make_value_cell(x, np.arange(25)), make_value_cell(np.repeat(x, 3), np.repeat(np.arange(25), 3))
    one, three = once.moments(("mean", "median")), thrice.moments(("mean", "median"))
    assert three["mean"][1][0] == pytest.approx(one["mean"][1][0])
    assert three["median"][0][0] == one["median"][0][0]
    # a third of the rows' variance would be a third of this
    assert three["median"][1][0] == pytest.approx(one["median"][1][0], rel=0.5)


def test_equal_values_have_no_variance_and_few_units_none_that_is_known() -> None:
    cell = make_value_cell(np.full(8, 0.3), np.repeat(np.arange(4), 2))
    moments = cell.moments(("mean", "median"))
    assert moments["mean"][0][0] == pytest.approx(0.3)
    assert moments["mean"][1][0] == moments["median"][1][0] == 0
    assert np.isnan(make_value_cell(np.array([1.0, 2.0]), np.array([0, 0])).moments(("mean", "median"))["mean"][1][0])
    assert np.isnan(make_value_cell(np.zeros(0), np.zeros(0, np.int64)).values()["mean"])


def test_limits_hold_the_value_and_widen_with_the_confidence() -> None:
    x = np.exp(np.random.default_rng(4).normal(size=40))
    cell = make_value_cell(x, np.arange(40))
    weights = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), 400).T.astype(float)
    replicates, moments = cell.weighted(weights), cell.moments(("mean", "median"))
    for confidence, wider in ((0.8, 0.95), (0.95, 0.99)):
        for make, name, key in ((mean_limits, "mean", "t"), (median_limits, "median", "median")):
            value, variance = (float(part[0]) for part in moments[name])
            (low, high), (lower, higher) = (make(value, variance, 40, replicates[key], level) for level in (confidence, wider))
            assert lower <= low <= value <= high <= higher  # type: ignore[operator]


def test_the_studentised_bootstrap_reaches_further_on_the_long_side() -> None:
    x = np.exp(np.random.default_rng(6).normal(size=40))
    cell = make_value_cell(x, np.arange(40))
    weights = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), 999).T.astype(float)
    ((mean, variance),) = cell.moments(("mean",)).values()
    low, high = mean_limits(float(mean[0]), float(variance[0]), 40, cell.weighted(weights)["t"], 0.95)
    assert high - mean[0] > mean[0] - low  # type: ignore[operator]


def groups_cell(x: FloatArray, unit: npt.NDArray[np.int64], n_groups: int) -> tuple[ValueCell, npt.NDArray[np.int64]]:
    return make_value_cell(x, unit), np.unique(unit) % n_groups


def test_a_permutations_numbers_are_those_of_the_groups_it_makes() -> None:
    x, unit = clustered(9)
    cell, codes = groups_cell(x, unit, 3)
    shuffled = np.random.default_rng(0).permuted(np.tile(codes, (4, 1)), axis=1).T.astype(np.int16)
    value, variance = cell.median_moments(shuffled, np.arange(3))
    for column in range(4):
        for group in range(3):
            rows = shuffled[unit, column] == group
            alone = make_value_cell(x[rows], unit[rows]).moments(("median",))["median"]
            assert value[group, column] == pytest.approx(alone[0][0])
            assert variance[group, column] == pytest.approx(alone[1][0])


def test_the_test_rejects_about_5_percent_where_groups_do_not_differ() -> None:
    # clusters, unequal groups, skewed values; a binomial limit of 200 tests at 5% is 8.5%
    rng, hits = np.random.default_rng(11), {"mean": 0, "median": 0}
    for _ in range(200):
        unit = np.repeat(np.arange(40), rng.integers(1, 4, 40))
        x = np.exp(0.6 * (rng.normal(size=40)[unit] + rng.normal(size=len(unit))))
        cell, codes = make_value_cell(x, unit), (np.arange(40) >= 28).astype(np.int64)
        null = value_null(cell, codes, np.arange(2), 99, rng)
        for name in hits:
            moments = [cell.moments((name,), (codes == g)[:, None].astype(float))[name] for g in range(2)]
            statistic = largest_difference(np.array([m[0] for m in moments]), np.array([m[1] for m in moments]))[0]
            hits[name] += int((1 + np.sum(null[name] >= statistic - 1e-12)) / 100 < 0.05 + 1e-9)
    assert all(count <= 20 for count in hits.values()), hits
    assert all(count >= 2 for count in hits.values()), hits


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 8)), min_size=4, max_size=40),
    st.integers(-10_000, 10_000),
    st.sampled_from([0.001, 0.5, 3.0, 1000.0]),
)
def test_shifting_and_scaling_move_the_values_and_scale_their_variances(rows: list[tuple[int, int]], shift: int, scale: float) -> None:
    x, unit = np.array([a for a, _ in rows], float), np.array([u for _, u in rows])
    before = make_value_cell(x, unit).moments(("mean", "median"))
    after = make_value_cell(scale * x + shift, unit).moments(("mean", "median"))
    for name in ("mean", "median"):
        assert after[name][0][0] == pytest.approx(scale * before[name][0][0] + shift, rel=1e-9, abs=1e-7)
        assert after[name][1][0] == pytest.approx(scale**2 * before[name][1][0], rel=1e-6, abs=1e-9, nan_ok=True)
