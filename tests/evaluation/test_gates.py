"""Gates: what they read, when they fail, and typos."""

from __future__ import annotations

from typing import Any

import pytest

from evenhand.errors import ConfigError, GateError
from evenhand.evaluation.gates import check_gates, parse_gate


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
