"""The audit as a whole: point values against scikit-learn and fairlearn, invariants, kinds, what is reported and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import equalized_odds_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score, roc_auc_score

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation import evaluate
from evenhand.evaluation.cells import Measured
from evenhand.evaluation.significance import replicate_variances
from evenhand.evaluation.verdicts import collapsed_verdicts
from evenhand.metrics import METRICS, choose_threshold
from evenhand.metrics.gaps import COMBINED

BINS = {"age": (0, 60, 200)}


def _run(
    frame: pd.DataFrame, config: AuditConfig, attributes: tuple[str, ...] = ("sex", "age", "sex*age"), **options: Any
) -> dict[str, Any]:
    found = evaluate(frame, labels=options.pop("labels", ("y",)), attributes=attributes, config=config, bins=BINS, **options).to_json()
    json.dumps(found, allow_nan=False)
    return found


def test_values_agree_with_outside_judges(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(400)
    found = _run(frame, quick)["labels"]["y"]
    val, test = frame[frame.split == "val"], frame[frame.split == "test"]
    cut = choose_threshold(val.y_true, val.y_score, "youden")
    assert found["threshold"] == {
        "value": cut,
        "rule": "youden",
        "source": "val",
        "n": len(val),
        "n_positive": val.y_true.sum(),
        "note": None,
    }
    assert found["overall"]["auc"]["value"] == pytest.approx(roc_auc_score(test.y_true, test.y_score))
    sex = found["attributes"]["sex"]
    for group, rows in test.groupby("sex"):
        assert sex["groups"][group]["auc"]["value"] == pytest.approx(roc_auc_score(rows.y_true, rows.y_score))
        assert sex["groups"][group]["tpr"]["value"] == pytest.approx(recall_score(rows.y_true, rows.y_score >= cut))
        assert sex["groups"][group]["n_patients"] == rows.patient_id.nunique()
    expected = equalized_odds_difference(test.y_true, test.y_score >= cut, sensitive_features=test.sex)
    assert sex["gaps"]["equalized_odds"]["value"] == pytest.approx(expected)


def test_the_contracts_shape(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    found = _run(make_table(), quick)
    assert found["schema"] == "evenhand.audit/1"
    part = found["labels"]["y"]["attributes"]["sex*age"]
    assert set(part) == {"n_missing", "groups", "gaps", "power", "explained"}
    assert {"auc", "equalized_odds"} <= set(part["power"])
    assert found["labels"]["y"]["intersections"][0]["rank"] == 1
    assert set(part["gaps"]) == {*METRICS, *COMBINED}
    assert {"n", "n_positive", "n_patients", *METRICS} <= set(next(iter(part["groups"].values())))
    gap = found["labels"]["y"]["attributes"]["sex"]["gaps"]["auc"]
    assert {"value", "lower", "upper", "p", "p_holm", "groups", "excluded"} <= set(gap)
    primary = [part["gaps"][name] for part in found["labels"]["y"]["attributes"].values() for name in ("auc", "equalized_odds")]
    n_tests = sum(gap["p"] is not None for gap in primary)
    assert found["provenance"]["family"] == {"metrics": ["auc", "equalized_odds"], "tests": n_tests, "method": "holm"}
    assert all((gap["p_holm"] is None) == (gap["p"] is None) for gap in primary)


def test_without_details_and_bounds_only_the_numbers_themselves(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table()
    frame.loc[frame["patient_id"].isin(frame["patient_id"].unique()[::9]), "sex"] = None
    full, bare = _run(frame, quick), _run(frame, replace(quick, details=False, bounds=False))
    assert full["labels"]["y"]["attributes"]["sex"]["gaps"]["tpr"]["bounds"]["n_missing"] > 0
    part = bare["labels"]["y"]["attributes"]["sex"]
    assert set(part) == {"n_missing", "groups", "gaps"}
    assert "bounds" not in part["gaps"]["tpr"]
    assert "intersections" not in bare["labels"]["y"]
    assert bare["labels"]["y"]["overall"] == full["labels"]["y"]["overall"]


@given(st.integers(0, 1000))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_rows_changes_nothing(make_table: Callable[..., pd.DataFrame], quick: AuditConfig, seed: int) -> None:
    frame = make_table(200, seed)
    shuffled = frame.sample(frac=1, random_state=seed)
    first, second = _run(frame, quick), _run(shuffled, quick)
    assert first["labels"] == second["labels"]
    assert first["verdicts"] == second["verdicts"]


def test_the_number_of_threads_changes_nothing(make_table: Callable[..., pd.DataFrame]) -> None:
    config = AuditConfig(bootstrap=300, permutations=0)
    assert _run(make_table(), config) == _run(make_table(), config, threads=3)


def test_copies_of_a_patients_images_narrow_nothing(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(240)
    once, thrice = (_run(item, quick, ("sex",))["labels"]["y"] for item in (frame, pd.concat([frame] * 3)))
    for name in METRICS:
        for where in ("female", "male"):
            a, b = (item["attributes"]["sex"]["groups"][where][name] for item in (once, thrice))
            assert (a["lower"], a["upper"]) == pytest.approx((b["lower"], b["upper"]), abs=1e-8)
        assert once["attributes"]["sex"]["gaps"][name]["p"] == thrice["attributes"]["sex"]["gaps"][name]["p"]


def test_names_of_groups_do_not_matter(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(240)
    renamed = frame.assign(sex=frame.sex.map({"female": "z", "male": "a"}))
    first, second = (_run(item, quick, ("sex",))["labels"]["y"]["attributes"]["sex"]["gaps"] for item in (frame, renamed))
    for name in first:
        assert first[name]["value"] == pytest.approx(second[name]["value"], abs=1e-9)
        assert first[name]["p"] == pytest.approx(second[name]["p"], abs=0.2)


def test_a_planted_gap_is_found_and_named(make_table: Callable[..., pd.DataFrame]) -> None:
    found = _run(make_table(800, shift=1.5), AuditConfig(bootstrap=200, permutations=200), ("sex",))
    verdict = next(item for item in found["verdicts"] if item["code"] == "gap" and item["metric"] == "auc")
    assert verdict["attribute"] == "sex"
    assert "furthest apart are female (lower) and male (higher)" in verdict["text"]
    assert verdict["lower"] > 0


def test_every_gap_holds_zero_exactly_when_its_p_is_not_small(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    for seed in range(4):
        for part in _run(make_table(300, seed, shift=0.6), quick)["labels"]["y"]["attributes"].values():
            for name, gap in part["gaps"].items():
                if gap["p"] is None:
                    continue
                edge = gap["upper"] >= 1 if name in ("demographic_parity_ratio", "disparate_impact") else gap["lower"] <= 0
                assert edge == (gap["p"] >= 0.05), name


def test_small_groups_are_not_estimable_and_in_no_gap(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(480)
    frame.loc[frame.patient_id == "p1", "sex"] = "other"
    found = _run(frame, quick, ("sex",))
    part = found["labels"]["y"]["attributes"]["sex"]
    assert part["groups"]["other"]["auc"]["value"] is None
    assert "at least 10 are needed" in part["groups"]["other"]["tpr"]["reason"]
    assert [item["group"] for item in part["gaps"]["auc"]["excluded"]] == ["other"]
    assert any(item["code"] == "insufficient_evidence" and item["group"] == "other" for item in found["verdicts"])


def test_missing_attributes_follow_the_policy(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(240)
    frame.loc[frame.patient_id.isin(["p1", "p2", "p3"]), "sex"] = None
    own = _run(frame, quick, ("sex",))
    part = own["labels"]["y"]["attributes"]["sex"]
    assert part["n_missing"] == 6
    assert part["groups"]["(missing)"]["missing"] is True
    assert part["gaps"]["accuracy"]["excluded"] == []
    dropped = _run(frame, quick, ("sex",), missing="drop")
    assert dropped["n"] == own["n"] - 6
    assert "(missing)" not in dropped["labels"]["y"]["attributes"]["sex"]["groups"]
    with pytest.raises(TableError, match="6 rows have a missing attribute"):
        _run(frame, quick, ("sex",), missing="error")
    with pytest.raises(ConfigError, match="not one of own_group"):
        _run(frame, quick, ("sex",), missing="ignore")


def test_no_validation_rows_is_said(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    found = _run(make_table().assign(split="test"), quick, ("sex",))
    assert found["labels"]["y"]["threshold"]["value"] == 0.5
    assert [item["code"] for item in found["verdicts"]].count("threshold_on_test") == 1
    fixed = _run(make_table().assign(split="test"), AuditConfig(bootstrap=50, permutations=0, threshold="0.3"), ("sex",))
    assert "threshold_on_test" not in [item["code"] for item in fixed["verdicts"]]


def test_one_class_in_validation_falls_back(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table()
    frame.loc[frame.split == "val", "y_true"] = 0
    threshold = _run(frame, quick, ("sex",))["labels"]["y"]["threshold"]
    assert (threshold["value"], threshold["source"]) == (0.5, "default")
    assert "falls back" in threshold["note"]


def test_decisions_and_given_thresholds_win(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table()
    given_one = _run(frame, quick, ("sex",), thresholds={"y": 0.9})["labels"]["y"]
    assert given_one["threshold"]["value"] == 0.9
    decided = _run(frame.assign(y_pred=1), quick, ("sex",))
    assert decided["labels"]["y"]["overall"]["positive_rate"]["value"] == 1.0
    assert decided["labels"]["y"]["threshold"]["rule"] == "y_pred"
    assert "collapsed" in [item["code"] for item in decided["verdicts"]]


def test_chance_scores_are_called_collapsed(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table().assign(y_score=np.tile([0.4, 0.6], 120))
    assert any(item["code"] == "collapsed" and item["metric"] == "auc" for item in _run(frame, quick, ("sex",))["verdicts"])


def test_many_labels_one_without_cases(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table()
    frame = frame.rename(columns={"y_true": "y_true_a", "y_score": "y_score_a"}).assign(y_true_b=0, y_score_b=0.2)
    frame.loc[:9, "y_true_a"] = np.nan
    found = _run(frame, quick, ("sex",), labels=("a", "b"))
    assert found["kind"] == "multilabel"
    assert found["labels"]["a"]["overall"]["n_unlabelled"] == int((frame.split[:10] == "test").sum())
    assert found["labels"]["b"]["overall"]["auc"]["value"] is None
    assert found["labels"]["b"]["overall"]["tnr"]["value"] == 1.0
    assert found["labels"]["b"]["overall"]["tnr"]["lower"] < 1.0
    frame["y_true_a"] = 0
    with pytest.raises(TableError, match="every label has one class"):
        _run(frame, quick, ("sex",), labels=("a", "b"))


def test_classes_are_judged_one_against_the_rest_and_on_average(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    frame = make_table(360)
    rng = np.random.default_rng(0)
    names = np.array(["mel", "nv", "bcc"])
    truth = rng.integers(0, 3, 180)[np.arange(360) // 2]
    scores = rng.dirichlet([1, 1, 1], 360) + 0.5 * np.eye(3)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    frame = frame.drop(columns=["y_true", "y_score"]).assign(
        y_true=names[truth], **{f"y_score_{name}": scores[:, j] for j, name in enumerate(names)}
    )
    found = _run(frame, quick, ("sex",), labels=("dx",), classes=tuple(names))
    assert set(found["labels"]) == {"mel", "nv", "bcc", "macro"}
    test = frame[frame.split == "test"]
    columns = [f"y_score_{name}" for name in sorted(names)]
    expected = roc_auc_score(test.y_true, test[columns], multi_class="ovr", labels=sorted(names))
    assert found["labels"]["macro"]["overall"]["auc"]["value"] == pytest.approx(expected)
    assert found["labels"]["mel"]["threshold"]["rule"] == "argmax"
    gap = found["labels"]["macro"]["attributes"]["sex"]["gaps"]["auc"]
    assert (gap["lower"] <= 0) == (gap["p"] >= 0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_true": 2}, "not 0 or 1"),
        ({"y_score": 1.5}, "outside"),
        ({"y_score": -3.0}, "logits"),
        ({"y_score": np.nan}, "not finite"),
        ({"sex": None}, "missing in all"),
        ({"y_true": 1}, "one class"),
        ({"split": "train"}, "no row 'test'"),
    ],
)
def test_bad_tables_are_refused(make_table: Callable[..., pd.DataFrame], quick: AuditConfig, change: dict[str, Any], words: str) -> None:
    with pytest.raises(TableError, match=words):
        _run(make_table(40).assign(**change), quick, ("sex",))


def test_other_bad_input(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    with pytest.raises(TableError, match="did you mean 'sex'"):
        _run(make_table(40), quick, ("sexx",))
    with pytest.raises(TableError, match="at most 50 are allowed"):
        _run(make_table(240), quick, ("patient_id",))
    with pytest.raises(TableError, match="outside its bins"):
        evaluate(make_table(40), labels=("y",), attributes=("age",), config=quick, bins={"age": (0, 30)})
    frame = make_table(40)
    with pytest.raises(TableError, match="2 seeds"):
        _run(pd.concat([frame, frame.assign(seed=1)]), quick, ("sex",))
    with pytest.raises(ConfigError, match="did you mean 'equalized_odds'"):
        _run(make_table(40), AuditConfig(primary=["equalised_odds"]), ("sex",))
    with pytest.raises(ConfigError, match="confidence"):
        _run(make_table(40), AuditConfig(confidence=95), ("sex",))


def test_a_large_family_of_one_rate_tests_both_rates_alike(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(360)
    for primary in (["tpr"], ["fnr"], ["equal_opportunity"]):
        config = AuditConfig(bootstrap=20, permutations=30, primary=primary)
        gaps = _run(frame, config, ("sex",))["labels"]["y"]["attributes"]["sex"]["gaps"]
        assert gaps["equalized_odds"]["p"] is not None
        assert gaps["tpr"]["p"] == gaps["fnr"]["p"]


def test_a_rare_class_of_many_is_not_a_collapse_but_one_class_for_everybody_is() -> None:
    rate = {"value": 0.004, "lower": 0.0, "upper": 0.01}
    overall = {"auc": {"value": 0.8, "lower": 0.7, "upper": 0.9}, "positive_rate": rate}
    assert len(collapsed_verdicts("rare", overall)) == 1
    assert collapsed_verdicts("rare", overall, one_of_many=True) == []
    assert len(collapsed_verdicts("all", {**overall, "positive_rate": {**rate, "value": 0.995}}, one_of_many=True)) == 1


def test_a_rate_that_never_varies_over_replicates_still_has_a_variance() -> None:
    item = Measured(20, 10, 20, 0, dict.fromkeys(METRICS, 1.0), dict.fromkeys(METRICS, np.ones(50)), dict.fromkeys(METRICS, (10, 10)), {})
    found = replicate_variances({"g": item})["g"]
    assert (found["tpr"], found["brier"]) == (0.25 / 100, 0.0)


def test_the_macro_calibration_error_is_centred_as_its_classes_are(quick: AuditConfig) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(["a", "b", "c"], p=row) for row in shares])
    frame = pd.DataFrame({"y_true": truth, **{f"y_score_{name}": shares[:, j] for j, name in enumerate("abc")}, "sex": ["f", "m"] * 150})
    macro = evaluate(frame, labels=["y"], classes=["a", "b", "c"], attributes=["sex"], config=quick).data["labels"]["macro"]["overall"]
    assert (macro["ece"]["lower"], macro["ece"]["upper"]) == (macro["ece_corrected"]["lower"], macro["ece_corrected"]["upper"])
    assert macro["ece"]["value"] > macro["ece_corrected"]["value"]


def test_names_of_one_test_count_once_in_the_family(make_table: Callable[..., pd.DataFrame], quick: AuditConfig) -> None:
    alone = _run(make_table(), replace(quick, primary=["auc", "tpr"]))
    twice = _run(make_table(), replace(quick, primary=["auc", "tpr", "fnr", "equal_opportunity"]))
    assert twice["provenance"]["family"]["tests"] == alone["provenance"]["family"]["tests"]
    for part in twice["labels"]["y"]["attributes"].values():
        assert len({part["gaps"][name]["p_holm"] for name in ("tpr", "fnr", "equal_opportunity")}) == 1
