"""Gates: what they read, when they fail, and typos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, GateError
from evenhand.evaluation.evaluate import evaluate
from evenhand.evaluation.gates import FIELDS, check_gates, gate_fields, parse_gate
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED


def _audit() -> dict[str, Any]:
    gap = {"value": 0.2, "lower": 0.05, "upper": 0.3, "p": 0.01, "p_holm": 0.02, "ratio": 0.7, "worst": {"group": "f", "value": 0.7}}
    none = {"value": None, "lower": None, "upper": None, "reason": "3 patients"}
    labels = {
        name: {
            "overall": {"auc": {"value": 0.8, "lower": 0.7, "upper": 0.9}},
            "attributes": {"sex*age": {"gaps": {"auc": gap}}, "age": {"gaps": {"auc": none}}},
        }
        for name in ("a", "b")
    }
    return {"labels": labels}


@pytest.mark.parametrize(
    ("text", "n_failed"),
    [
        ("sex*age.auc > 0.1", 2),
        ("a/sex*age.auc > 0.1", 1),
        ("sex*age.auc.lower > 0.1", 0),
        ("b/sex*age.auc.worst < 0.8", 1),
        ("sex*age.auc.p_holm <= 0.05", 2),
        ("overall.auc < 0.75", 0),
        ("a/overall.auc.lower<7.5e-1", 1),
        ("age.auc > 0.9", 2),
        ("any.auc >= 0.2", 4),
    ],
)
def test_gates(text: str, n_failed: int) -> None:
    gate = parse_gate(text, ["a", "b"], ["sex*age", "age"])
    if not n_failed:
        check_gates([gate], _audit())
        return
    with pytest.raises(GateError) as caught:
        check_gates([gate], _audit())
    assert len(caught.value.details) == n_failed
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age.auk > 0.1", "did you mean 'auc'"),
        ("agee.auc > 0.1", "did you mean 'age'"),
        ("c/age.auc > 0.1", "names the label 'c'"),
        ("age.auc.lowr > 0.1", "did you mean 'lower'"),
        ("age.auc == 0.1", "not understood"),
        ("age > 0.1", "not understood"),
        ("age.auc > 1e", "not a number"),
        ("overall.equalized_odds > 1", "unknown"),
    ],
)
def test_typos(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_gate(text, ["a", "b"], ["age"])


def test_a_gate_about_groups_needs_groups() -> None:
    with pytest.raises(ConfigError, match="none is audited"):
        parse_gate("any.auc.worst < 0.8", ["a"], [])


@pytest.mark.parametrize(
    ("gate", "fields"),
    [
        ("equalized_odds.worst < 2", "value, lower, upper, p, p_holm, to_overall"),
        ("equalized_odds_mean.to_overall > 0", "value, lower, upper, p, p_holm"),
        ("disparate_impact.ratio < 0.8", "value, lower, upper, p, p_holm"),
        ("positive_rate.worst < 0.1", "value, lower, upper, p, p_holm, ratio, to_overall"),
        ("calibration_slope.ratio < 0.5", "value, lower, upper, p, p_holm, worst, to_overall"),
    ],
)
def test_a_field_that_never_exists_is_refused_with_those_that_do(gate: str, fields: str) -> None:
    with pytest.raises(ConfigError, match="has no") as caught:
        parse_gate(f"age.{gate}", ["a"], ["age"])
    assert str(caught.value).endswith(f"its fields are {fields}")


def test_only_primary_gaps_have_a_corrected_p() -> None:
    assert parse_gate("age.tpr.p_holm < 0.05", ["a"], ["age"], primary=["tpr"]).field == "p_holm"
    with pytest.raises(ConfigError, match="add --primary fpr"):
        parse_gate("age.fpr.p_holm < 0.05", ["a"], ["age"], primary=["tpr"])


def test_the_fields_are_those_of_an_audit(make_table: Callable[..., pd.DataFrame]) -> None:
    """Every field offered has a number, and every field refused has none, in the gaps of a real audit."""
    config = AuditConfig(bootstrap=40, permutations=40, primary=[*METRICS, *COMBINED])
    audit = evaluate(make_table(480), labels=["label"], attributes=["sex"], config=config).to_json()
    for metric, gap in audit["labels"]["label"]["attributes"]["sex"]["gaps"].items():
        assert [name for name in FIELDS if gap[name] is not None] == list(gate_fields(metric)), metric
