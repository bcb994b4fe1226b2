"""Named gaps: under-diagnosis, disparate impact with a reference, its distance from 1, distance to everybody, worst groups."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_negative_rate, selection_rate
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics.cells import METRICS, make_cell
from evenhand.metrics.gaps import (
    COMBINED,
    Gap,
    GroupValue,
    all_gaps,
    distance_gap,
    farthest,
    gap_of_values,
    impact_gap,
    metric_gap,
    worst_group,
)

RNG = np.random.default_rng(11)
N = 900
Y = (RNG.random(N) < 0.4).astype(int)
S = np.clip(0.25 * Y + RNG.random(N) * 0.75, 0, 1)
GROUP = RNG.integers(0, 3, N)
D = (S >= 0.35 + 0.1 * GROUP).astype(int)
KEYS = ("a", "b", "c")


def members() -> dict[str, list[GroupValue]]:
    found: dict[str, list[GroupValue]] = {name: [] for name in METRICS}
    for code, key in enumerate(KEYS):
        rows = np.equal(GROUP, code)
        cell = make_cell(Y[rows], S[rows], D[rows], np.flatnonzero(rows), threshold=0.4)
        for name, (value, variance) in cell.moments(METRICS).items():
            n, units = cell.denominator(name)
            found[name].append(GroupValue(key, float(value[0]), float(variance[0]), units, n))
    return found


def gaps(**named: object) -> dict[str, Gap]:
    inside = members()
    null = np.abs(RNG.normal(size=(999, 3))).max(axis=1)
    nulls = {**dict.fromkeys(METRICS, null), "log_positive_rate": null}
    return all_gaps(inside, dict.fromkeys(METRICS, ()), nulls, 0.95, **named)  # type: ignore[arg-type]


def test_every_metric_and_every_named_gap_is_there() -> None:
    assert list(gaps()) == [*METRICS, *COMBINED]
    assert all(gap.value is not None for gap in gaps().values())


def test_underdiagnosis_is_the_gap_of_fnr_or_for_health_of_fpr() -> None:
    judge = MetricFrame(metrics=false_negative_rate, y_true=Y, y_pred=D, sensitive_features=GROUP)
    found = gaps()
    assert found["underdiagnosis"].value == pytest.approx(judge.difference())
    assert found["underdiagnosis"].to_json()["measure"] == "fnr"
    health = gaps(underdiagnosis="fpr")
    assert health["underdiagnosis"].value == health["fpr"].value
    assert health["underdiagnosis"].measure == "fpr"
    assert "measure" not in health["fpr"].to_json()


def test_disparate_impact_without_a_reference_is_the_ratio_of_the_extremes() -> None:
    judge = MetricFrame(metrics=selection_rate, y_true=Y, y_pred=D, sensitive_features=GROUP)
    found = gaps()
    assert found["disparate_impact"].value == pytest.approx(judge.ratio())
    assert found["disparate_impact"].value == found["demographic_parity_ratio"].value
    assert found["disparate_impact_distance"].value == pytest.approx(1 - judge.ratio())


@pytest.mark.parametrize("reference", KEYS)
def test_disparate_impact_with_a_reference(reference: str) -> None:
    rates = dict(zip(KEYS, (D[np.equal(GROUP, code)].mean() for code in range(3)), strict=True))
    others = min(rate for key, rate in rates.items() if key != reference)
    found = gaps(reference=reference)
    impact, distance = found["disparate_impact"], found["disparate_impact_distance"]
    assert impact.value == pytest.approx(others / rates[reference])
    assert impact.groups is not None
    assert impact.groups[1] == reference
    assert distance.value == pytest.approx(abs(1 - others / rates[reference]))
    assert found["demographic_parity_ratio"].value == pytest.approx(min(rates.values()) / max(rates.values()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.05, 0.95), min_size=2, max_size=5), st.floats(0.001, 0.01), st.integers(0, 4))
def test_one_lies_inside_exactly_when_the_test_does_not_reject(rates: list[float], variance: float, which: int) -> None:
    inside = [GroupValue(str(k), rate, variance, 100, 100) for k, rate in enumerate(rates)]
    null = np.linspace(0.01, 3.5, 199)
    base = metric_gap("positive_rate", inside, (), null, 0.95)
    gap = impact_gap(inside, base, null, 0.95, str(which % len(rates)))
    assert gap.lower is not None
    assert gap.upper is not None
    assert gap.value is not None
    assert gap.p is not None
    assert gap.lower <= gap.value <= gap.upper
    assert (gap.lower <= 1 <= gap.upper) == (gap.p >= 0.05)
    away = distance_gap(gap)
    assert away.lower is not None
    assert away.value is not None
    assert away.upper is not None
    assert away.lower <= away.value <= away.upper
    assert (away.lower == 0) == (gap.p >= 0.05)


def test_a_reference_that_cannot_be_estimated_has_a_reason() -> None:
    inside = [GroupValue("a", 0.2, 0.01, 50, 50), GroupValue("b", 0.0, 0.01, 50, 50)]
    base = metric_gap("positive_rate", inside, (), None, 0.95)
    assert impact_gap(inside, base, None, 0.95, "c").reason == "the reference group c cannot be estimated"
    assert impact_gap(inside, base, None, 0.95, "b").reason == "the reference group b has no positive decision, so there is no ratio"


def test_distance_to_everybody() -> None:
    overall = {"tpr": 0.5, "fpr": 0.2, "auc": float("nan")}
    found = gaps(overall=overall)
    values = {member.group: member.value for member in members()["tpr"]}
    far = max(values, key=lambda key: abs(values[key] - 0.5))
    assert found["tpr"].to_json()["to_overall"] == {"group": far, "value": pytest.approx(abs(values[far] - 0.5))}
    assert found["auc"].to_overall is None
    assert found["ppv"].to_overall is None
    tpr, fpr = found["tpr"].to_overall, found["fpr"].to_overall
    assert found["equalized_odds"].to_overall == (tpr if tpr["value"] >= fpr["value"] else fpr)  # type: ignore[index]
    assert farthest((), 0.5) is None


def test_the_worst_slope_is_furthest_from_one_and_signed_metrics_have_no_ratio() -> None:
    slopes = [GroupValue("a", 0.8, 0.01, 50, 50, 0.6, 1.0), GroupValue("b", 1.5, 0.01, 50, 50, 1.3, 1.7)]
    assert worst_group("calibration_slope", slopes) == {"group": "b", "value": 1.5, "lower": 1.3, "upper": 1.7}
    shifts = [GroupValue("a", -0.8, 0.01, 50, 50), GroupValue("b", 0.5, 0.01, 50, 50)]
    worst = worst_group("calibration_intercept", shifts)
    assert worst is not None
    assert worst["group"] == "a"
    errors = [GroupValue("a", 0.1, 0.01, 50, 50), GroupValue("b", 0.05, 0.01, 50, 50)]
    assert worst_group("ece", errors)["group"] == "a"  # type: ignore[index]
    for name, pair in (("calibration_slope", slopes), ("calibration_intercept", shifts), ("net_benefit", errors)):
        assert metric_gap(name, pair, (), None, 0.95).ratio is None
    assert metric_gap("ece", errors, (), None, 0.95).ratio == pytest.approx(0.5)


@pytest.mark.parametrize("reference", [None, "a", "b"])
@pytest.mark.parametrize("name", [*METRICS, *COMBINED])
def test_gaps_of_many_values_are_the_gaps(name: str, reference: str | None) -> None:
    inside = members()
    found = gap_of_values(
        name,
        lambda metric: np.array([[member.value] * 2 for member in inside[metric]]),
        dict.fromkeys(METRICS, KEYS),
        underdiagnosis="fpr",
        reference=reference,
    )
    assert found == pytest.approx([gaps(underdiagnosis="fpr", reference=reference)[name].value] * 2)
