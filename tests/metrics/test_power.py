"""Numbers of patients and detectable gaps, against statsmodels, SciPy, a published number, and power found by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, studentized_range
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import power_proportions_2indep

from evenhand.errors import ConfigError
from evenhand.metrics.auc import auc, auc_with_variance, rank_rows
from evenhand.metrics.gaps import GroupValue
from evenhand.metrics.power import (
    Plan,
    critical_value_of_range,
    design_effect,
    detectable_gap,
    hanley_mcneil_variance,
    needed_patients,
    odds_power_block,
    power_block,
    power_of_gap,
)


@pytest.mark.parametrize("n_groups", [2, 3, 5, 12])
@pytest.mark.parametrize("n_tests", [1, 6])
def test_the_critical_value_is_tukeys(n_groups: int, n_tests: int) -> None:
    found = critical_value_of_range(n_groups, 0.05, n_tests)
    assert found == pytest.approx(studentized_range.ppf(1 - 0.05 / n_tests, n_groups, np.inf) / math.sqrt(2), abs=1e-6)
    if n_groups == 2:
        assert found == pytest.approx(norm.ppf(1 - 0.025 / n_tests), abs=1e-9)


@pytest.mark.parametrize(("better", "worse"), [(0.8, 0.7), (0.95, 0.9), (0.6, 0.4)])
def test_patients_for_two_proportions_agree_with_statsmodels(better: float, worse: float) -> None:
    variance = better * (1 - better) + worse * (1 - worse)
    effect = (better - worse) / math.sqrt(variance / 2)
    outside = NormalIndPower().solve_power(effect_size=effect, alpha=0.05, power=0.8, ratio=1.0)
    n, same = needed_patients(better - worse, Plan("accuracy", better))
    assert n == same == math.ceil(outside)
    # With the variance pooled under "no gap" instead, as in the usual z-test, the power is nearly the same.
    pooled = power_proportions_2indep(better - worse, worse, n, return_results=False)
    assert pooled == pytest.approx(0.8, abs=0.015)


def test_a_rate_counts_the_patients_in_its_denominator_only() -> None:
    everybody = needed_patients(0.1, Plan("accuracy", 0.8))[0]
    assert needed_patients(0.1, Plan("tpr", 0.8, prevalence=0.25))[0] == pytest.approx(4 * everybody, abs=4)
    assert needed_patients(0.1, Plan("tnr", 0.8, prevalence=0.25))[0] == pytest.approx(everybody / 0.75, abs=2)
    assert needed_patients(0.1, Plan("fpr", 0.2, prevalence=0.25)) == needed_patients(0.1, Plan("tnr", 0.8, prevalence=0.25))
    assert needed_patients(0.1, Plan("fnr", 0.2, prevalence=0.25)) == needed_patients(0.1, Plan("tpr", 0.8, prevalence=0.25))


def test_hanley_and_mcneils_number_of_patients() -> None:
    # Their table for AUC 0.70 against 0.75, 80% power, one-sided 5%: 652 normal and 652 abnormal in each group. Their
    # formula takes the worse group's variance in both under "no difference"; ours has each group's own throughout.
    n = 1e9
    low, high = (n * hanley_mcneil_variance(value, n, n) for value in (0.70, 0.75))
    published = ((norm.ppf(0.95) * math.sqrt(2 * low) + norm.ppf(0.8) * math.sqrt(low + high)) / 0.05) ** 2
    assert math.floor(published) == 652
    ours = needed_patients(0.05, Plan("auc", 0.75, alpha=0.1))
    assert ours[0] / 2 == pytest.approx(652, rel=0.05)


def test_hanley_and_mcneils_variance_is_that_of_exponential_scores() -> None:
    rng = np.random.default_rng(0)
    positive, negative = 30, 60
    y = np.repeat([1, 0], [positive, negative])
    found = [auc(y, np.concatenate([rng.exponential(4.0, positive), rng.exponential(1.0, negative)])) for _ in range(3000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.003)  # P(X > Y) = 4 / (4 + 1)
    assert np.var(found) == pytest.approx(hanley_mcneil_variance(0.8, positive, negative), rel=0.08)


def test_images_of_one_patient_count_for_less() -> None:
    plan = Plan("accuracy", 0.8)
    alone = needed_patients(0.1, plan)[0]
    assert design_effect(1, 0.9) == 1
    assert needed_patients(0.1, Plan("accuracy", 0.8, images=4, icc=1.0))[0] == alone
    assert needed_patients(0.1, Plan("accuracy", 0.8, images=4, icc=0.0))[0] == math.ceil(alone / 4)
    assert needed_patients(0.1, Plan("accuracy", 0.8, images=4, icc=0.5))[0] == pytest.approx(alone * 2.5 / 4, abs=1)


def test_the_gap_may_lie_between_any_two_groups() -> None:
    # The hardest pair are the two smallest groups, so only their shares (and the number of groups) matter.
    plan = Plan("accuracy", 0.8, shares=(0.1, 0.2, 0.7))
    n = needed_patients(0.1, plan)
    error = math.sqrt(0.7 * 0.3 / n[0] + 0.8 * 0.2 / n[1])
    assert power_of_gap(0.1, error, critical_value_of_range(3)) == pytest.approx(0.8, abs=0.002)
    assert sum(n) > sum(needed_patients(0.1, Plan("accuracy", 0.8, shares=(0.1, 0.9))))


@given(
    st.sampled_from(["auc", "tpr", "fpr", "accuracy"]), st.floats(0.02, 0.3), st.floats(0.05, 0.6), st.floats(0.1, 0.9), st.integers(1, 20)
)
@settings(max_examples=40, deadline=None)
def test_patients_and_gap_are_inverse(metric: str, gap: float, prevalence: float, share: float, n_tests: int) -> None:
    value = 0.2 if metric == "fpr" else 0.85
    plan = Plan(metric, value, (share, 1 - share), prevalence, images=2, icc=0.4, n_tests=n_tests)
    n = needed_patients(gap, plan)
    seen = detectable_gap(n, plan)
    assert seen is not None
    assert seen <= gap * (1 + 1e-6)
    fewer = detectable_gap([max(k // 2, 1) for k in n], plan)
    assert fewer is None or fewer > seen


def test_no_gap_is_detectable_with_a_handful() -> None:
    assert detectable_gap((3, 3), Plan("auc", 0.85, prevalence=0.2)) is None


def test_simulated_power_is_the_planned_one() -> None:
    rng = np.random.default_rng(1)
    n = needed_patients(0.15, Plan("accuracy", 0.85))[0]
    shares = rng.binomial(n, [[0.85], [0.70]], (2, 20_000)) / n
    z = np.abs(shares[0] - shares[1]) / np.sqrt((shares * (1 - shares)).sum(axis=0) / n)
    assert (z > 1.959964).mean() == pytest.approx(0.8, abs=0.03)


def test_simulated_power_of_an_auc_gap() -> None:
    rng = np.random.default_rng(2)
    patients = needed_patients(0.15, Plan("auc", 0.85, prevalence=0.4))
    seen = []
    for _ in range(300):
        found = [_auc_of_binormal(rng, n, value) for n, value in zip(patients, (0.85, 0.70), strict=True)]
        (one, first), (two, second) = found
        seen.append(abs(one - two) / math.sqrt(first + second) > 1.959964)
    assert np.mean(seen) == pytest.approx(0.8, abs=0.07)  # Hanley and McNeil's variance is not quite a binormal score's


def _auc_of_binormal(rng: np.random.Generator, n: int, value: float) -> tuple[float, float]:
    y = (np.arange(n) < round(0.4 * n)).astype(float)
    score = rng.standard_normal(n) + y * norm.ppf(value) * math.sqrt(2)
    found, variance = auc_with_variance(rank_rows(y, score, np.arange(n)), np.ones((n, 1)))
    return float(found[0]), float(variance[0])


MEMBERS = [GroupValue("a", 0.8, 0.0004, 400, 500), GroupValue("b", 0.7, 0.0009, 200, 250), GroupValue("c", 0.75, 0.0036, 50, 60)]


def test_a_block_says_what_the_data_can_show() -> None:
    block = power_block(MEMBERS, n_tests=2)
    critical = critical_value_of_range(3, 0.05, 2)
    hardest = (critical + norm.ppf(0.8)) * math.sqrt(0.0036 + 0.0009)
    assert block["critical"] == pytest.approx(critical)
    assert block["detectable"] == pytest.approx(hardest)
    assert block["pair"] == ["c", "b"]
    assert block["detectable_easiest"] == pytest.approx(hardest * math.sqrt(0.0013 / 0.0045))
    assert block["times"]["0.1"] == pytest.approx((hardest / 0.1) ** 2)
    assert block["n_patients"] == 650
    assert block["needed"]["0.1"] == pytest.approx(650 * (hardest / 0.1) ** 2, abs=3)
    assert power_of_gap(hardest, math.sqrt(0.0045), critical) == pytest.approx(0.8, abs=1e-6)


def test_a_block_counts_all_patients_where_they_are_given() -> None:
    block, own = power_block(MEMBERS, patients={"a": 4000, "b": 2000, "c": 500}), power_block(MEMBERS)
    assert block["n_patients"] == 6500
    assert block["times"] == own["times"]
    assert block["needed"]["0.05"] == pytest.approx(10 * own["needed"]["0.05"], rel=0.01)


def test_a_gap_that_only_more_than_everything_would_show_is_none() -> None:
    tiny = [GroupValue("a", 0.8, 0.0004, 400, 500), GroupValue("b", 0.5, 0.25, 2, 2)]
    block = power_block(tiny)
    assert block["detectable"] is block["detectable_easiest"] is None
    assert block["needed"]["0.2"] == pytest.approx(402 * block["times"]["0.2"], abs=2)


def test_a_block_of_equalized_odds_is_of_the_harder_rate() -> None:
    easy = [GroupValue(member.group, 0.1, member.variance / 10, 1000, 1000) for member in MEMBERS]
    block = odds_power_block({"tpr": MEMBERS, "fpr": easy})
    assert block["part"] == "tpr"
    assert block["detectable"] == pytest.approx(power_block(MEMBERS, n_tests=2)["detectable"])
    assert block["n_patients"] == 3000


@pytest.mark.parametrize("members", [[], MEMBERS[:1]])
def test_a_block_of_fewer_than_two_groups_knows_nothing(members: list[GroupValue]) -> None:
    block = power_block(members)
    assert block["detectable"] is block["critical"] is block["needed"]["0.1"] is None
    assert block["n_patients"] == sum(member.units for member in members)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metric": "brier"}, "no plan can be made for the metric 'brier'"),
        ({"shares": (0.5, 0.6)}, "sum to 1"),
        ({"shares": (1.0,)}, "two or more"),
        ({"prevalence": (0.1, 0.2, 0.3)}, "3 prevalences were given for 2 groups"),
        ({"prevalence": 1.5}, "prevalence is 1.5, but must lie between 0 and 1"),
        ({"value": 0.4}, "must be at least 0.5"),
        ({"icc": 2}, "icc must lie in"),
    ],
)
def test_plans_that_cannot_be(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Plan(**{"metric": "auc", "value": 0.8, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("gap", [0.0, -0.1, 0.9])
def test_gaps_that_cannot_be(gap: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and end between 0 and 1"):
        needed_patients(gap, Plan("auc", 0.8))
