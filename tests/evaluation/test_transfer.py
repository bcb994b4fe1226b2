"""Drops between a set and the own test rows: by hand, against Newcombe's and DeLong's formulas, and by coverage."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.config.schema import AuditConfig
from evenhand.errors import InputError
from evenhand.evaluation import evaluate
from evenhand.evaluation.transfer import OWN, JudgedSet, drop_of, transfer, worse
from evenhand.metrics import newcombe
from evenhand.metrics.paired import delong

POINTS = AuditConfig(threshold="0.5", bootstrap=0, permutations=0, min_patients=2, details=False)


def frame(n=200, seed=0, shift=1.0, attribute="sex", groups=("F", "M"), share=0.4):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + shift * (2 * y - 1))))
    return pd.DataFrame({"y_true": y, "y_score": score, attribute: rng.choice(groups, n)})


def judged(table, attributes, config=POINTS, data=""):
    found = evaluate(table, labels=["ill"], attributes=attributes, config=config).to_json()
    return JudgedSet(found["labels"], data, found["n"], found["n_patients"])


def estimate(value, lower=None, upper=None):
    return {"value": value, "lower": lower, "upper": upper, "n": 100}


def block(auc, gap=None, groups=("F", "M"), excluded=(), attribute="sex"):
    rows = {key: {"n": 50, "auc": auc} for key in groups}
    gaps = {"auc": {**(gap or estimate(0.1, 0.0, 0.2)), "excluded": [{"group": key} for key in excluded], "n": 100}}
    return {"ill": {"overall": {"n": 100, "n_positive": 30, "auc": auc}, "attributes": {attribute: {"groups": rows, "gaps": gaps}}}}


def test_a_drop_is_the_other_set_minus_the_own_rows_with_limits_of_both():
    found = drop_of(estimate(0.7, 0.6, 0.9), estimate(0.9, 0.8, 0.95))
    assert found["value"] == pytest.approx(-0.2)
    assert found["lower"] == pytest.approx(-0.2 - np.hypot(0.1, 0.05))
    assert found["upper"] == pytest.approx(-0.2 + np.hypot(0.2, 0.1))


probabilities = st.floats(0.01, 0.99)


@given(probabilities, probabilities, st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_limits_hold_the_drop_and_turn_round_with_the_sets(there, own, a, b):
    def around(value, width):
        return estimate(value, value - width, value + width / 2)

    found, turned = drop_of(around(there, a), around(own, b)), drop_of(around(own, b), around(there, a))
    assert found["lower"] <= found["value"] <= found["upper"]
    assert (found["lower"], found["upper"]) == pytest.approx((-turned["upper"], -turned["lower"]))


def test_a_shares_limits_are_newcombes_for_one_row_a_patient():
    """His interval takes the normal quantile, the audit Student's: alike to a few thousandths."""
    own, there = frame(400, 0), frame(300, 1, shift=0.3)
    found = transfer({"run": {OWN: judged(own, []), "b": judged(there, [])}}).to_table()
    row = found[(found["set"] == "b") & (found["metric"] == "tpr")].iloc[0]
    shares = []
    for table in (there, own):
        positive = table[table["y_true"] == 1]
        shares += [float((positive["y_score"] >= 0.5).mean()), len(positive)]
    assert row["drop"] == pytest.approx(shares[0] - shares[2])
    assert (row["drop_lower"], row["drop_upper"]) == pytest.approx(newcombe(*shares), abs=4e-3)


def test_an_aucs_limits_are_delongs_for_two_samples():
    own, there = frame(3000, 0), frame(2500, 1, shift=0.7)
    found = transfer({"run": {OWN: judged(own, []), "b": judged(there, [])}}).findings[0]
    a, b = (delong(table["y_true"], table["y_score"]) for table in (there, own))
    width = 1.96 * np.sqrt(a.variance + b.variance)
    assert found["value"] == pytest.approx(a.value - b.value)
    assert (found["lower"], found["upper"]) == pytest.approx((a.value - b.value - width, a.value - b.value + width), abs=2e-3)
    assert found["code"] == "worse"


def test_intervals_of_drops_cover():
    """Two samples of one population: 0 is inside in about 95 of 100 (at 150 draws: between 90% and 99%)."""

    def of(n, seed):
        found = delong(*(frame(n, seed)[name] for name in ("y_true", "y_score")))
        return estimate(found.value, found.lower, found.upper)

    drops = [drop_of(of(90, 2 * seed + 1), of(150, 2 * seed)) for seed in range(150)]
    assert 0.90 < np.mean([drop["lower"] <= 0 <= drop["upper"] for drop in drops]) < 0.99


def test_an_attribute_of_one_set_only_is_said_and_has_no_drop():
    own, there = judged(frame(), ["sex"]), judged(frame(attribute="tone", groups=("I", "VI"), seed=1), ["tone"])
    found = transfer({"run": {OWN: own, "b": there}})
    assert found.data["attributes"] == {"sex": {"known": [OWN], "unknown": ["b"]}, "tone": {"known": ["b"], "unknown": [OWN]}}
    table = found.to_table()
    tone = table[(table["attribute"] == "tone") & (table["metric"] == "auc")]
    assert tone["value"].notna().all()
    assert tone["drop"].isna().all()
    assert tone["drop_reason"].str.contains("not known there").all()
    said = {one["attribute"]: one for one in found.findings if one["metric"] == "auc"}
    assert said["tone"]["code"] == "not_estimable"
    assert "own test rows: the attribute is not known there" in said["tone"]["text"]
    assert said[""]["value"] is not None
    assert "sex" not in said


def test_a_gap_over_other_groups_is_not_compared():
    own = JudgedSet(block(estimate(0.9, 0.8, 0.95), groups=("F", "M", "X")))
    there = JudgedSet(block(estimate(0.8, 0.7, 0.9), groups=("F", "M", "X"), excluded=("X",)))
    drop = transfer({"run": {OWN: own, "b": there}}).data["labels"]["ill"]["run"]["b"]["attributes"]["sex"]["gaps"]["auc"]["drop"]
    assert drop["value"] is None
    assert drop["reason"] == "over other groups: F, M here, F, M, X on own test rows"
    same = transfer({"run": {OWN: own, "b": JudgedSet(block(estimate(0.8, 0.7, 0.9), groups=("X", "M", "F")))}})
    assert same.data["labels"]["ill"]["run"]["b"]["attributes"]["sex"]["gaps"]["auc"]["drop"]["value"] == pytest.approx(0.0)


def test_what_is_not_estimable_gives_its_reason_and_never_a_number():
    none = {"value": None, "lower": None, "upper": None, "reason": "3 patients of the smaller class", "n": 3}
    found = transfer({"run": {OWN: JudgedSet(block(estimate(0.9, 0.8, 0.95))), "b": JudgedSet(block(none))}})
    assert found.findings[0]["code"] == "not_estimable"
    assert found.findings[0]["text"] == "the AUC has no drop on b (this set: 3 patients of the smaller class)"
    json.loads(found.dumps())


@pytest.mark.parametrize(
    ("metric", "drop", "gap", "expected"),
    [("auc", -0.1, False, True), ("fpr", 0.1, False, True), ("tpr", 0.1, False, False), ("equalized_odds", 0.1, True, True),
     ("demographic_parity_ratio", -0.1, True, True), ("prevalence", 0.1, False, None), ("calibration_slope", -0.2, False, None)],
)
def test_which_way_is_worse(metric, drop, gap, expected):
    assert worse(metric, drop, gap=gap) is expected


def test_findings_say_worse_better_and_open_in_words():
    own = JudgedSet(block(estimate(0.8, 0.78, 0.82), estimate(0.1, 0.08, 0.12)))
    sets = {
        OWN: own,
        "low": JudgedSet(block(estimate(0.6, 0.58, 0.62), estimate(0.3, 0.28, 0.32))),
        "high": JudgedSet(block(estimate(0.9, 0.88, 0.92), estimate(0.02, 0.0, 0.04))),
        "wide": JudgedSet(block(estimate(0.78, 0.6, 0.9), estimate(0.12, 0.0, 0.4))),
    }
    found = {(one["set"], one["attribute"]): one for one in transfer({"run": sets}).findings}
    assert [found[name, ""]["code"] for name in ("low", "high", "wide")] == ["worse", "better", "open"]
    assert [found[name, "sex"]["code"] for name in ("low", "high", "wide")] == ["worse", "better", "open"]
    assert found["low", "sex"]["text"].startswith("the AUC gap by sex is 0.200 wider on low than on own test rows (")
    assert found["wide", ""]["text"].endswith("which is open: the interval includes 0")


def test_runs_on_different_sets_or_labels_are_refused():
    one = JudgedSet(block(estimate(0.9, 0.8, 0.95)))
    with pytest.raises(InputError, match="at least one other set"):
        transfer({"run": {OWN: one}})
    with pytest.raises(InputError, match="judge all on the same sets"):
        transfer({"run": {OWN: one, "b": one}, "other": {OWN: one, "c": one}})
    with pytest.raises(InputError, match="runs of one task"):
        transfer({"run": {OWN: one, "b": JudgedSet({"well": one.labels["ill"]})}})
