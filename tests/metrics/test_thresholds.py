"""Thresholds against a search over every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.errors import ConfigError
from evenhand.metrics import choose_threshold, parse_rule, rates


def _cuts(y: np.ndarray, s: np.ndarray) -> list[dict[str, float]]:
    return [{**rates(y, s, s >= cut), "flagged": float((s >= cut).sum())} for cut in [*np.unique(s), 2.0]]


@given(st.integers(0, 10_000), st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_rules_reach_the_best_cut(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 40)
    y[:2] = (0, 1)
    s = rng.integers(0, levels, 40) / levels
    cuts = _cuts(y, s)

    def at(rule: str) -> dict[str, float]:
        return rates(y, s, s >= choose_threshold(y, s, rule))

    chosen = at("youden")
    flagging = [cut for cut in cuts if cut["flagged"]]
    assert chosen["tpr"] - chosen["fpr"] == pytest.approx(max(cut["tpr"] - cut["fpr"] for cut in flagging))
    assert at("f1")["f1"] == pytest.approx(max(cut["f1"] for cut in flagging))
    assert at("sensitivity=0.8")["fpr"] == pytest.approx(min(cut["fpr"] for cut in cuts if cut["tpr"] >= 0.8))
    assert at("specificity=0.8")["tpr"] == pytest.approx(max(cut["tpr"] for cut in cuts if cut["tnr"] >= 0.8))
    misses = [abs(cut["flagged"] - y.sum()) for cut in flagging]
    assert abs((s >= choose_threshold(y, s, "prevalence")).sum() - y.sum()) == min(misses)


def test_a_number_is_itself() -> None:
    assert choose_threshold([0, 1], [0.2, 0.3], "0.25") == 0.25


@pytest.mark.parametrize("rule", ["yuden", "sensitivity", "sensitivity=2", "1.5", "nan", ""])
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="is not one of youden"):
        parse_rule(rule)
