"""Which metrics an audit computes; what it says of tests, references and under-diagnosis; one-vs-rest, macro and multi-label."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError
from evenhand.evaluation.compare import compare
from evenhand.evaluation.evaluate import evaluate
from evenhand.evaluation.selection import RESAMPLED, check_names, check_no_finding, check_reference, chosen_metrics, underdiagnosis_metric
from evenhand.evaluation.significance import permuted_null
from evenhand.metrics import COMBINED, METRICS, average_precision, calibration_slope_intercept, expected_calibration_error
from evenhand.metrics.cells import make_cell
from evenhand.metrics.gaps import GroupValue
from evenhand.metrics.permutation import REACH, null_maxima
from evenhand.runs.audit import audit

RNG = np.random.default_rng(21)
N = 600
Y = (RNG.random(N) < 0.4).astype(int)
S = 1 / (1 + np.exp(-(1.5 * Y - 0.8 + RNG.normal(0, 1, N))))
FRAME = pd.DataFrame(
    {"y_true": Y, "y_score": S, "sex": RNG.choice(["f", "m"], N), "site": RNG.choice(["x", "y", "z"], N), "patient_id": np.arange(N) // 2}
)


def config(**options: Any) -> AuditConfig:
    return AuditConfig(**{"threshold": "0.5", "bootstrap": 60, "permutations": 60, "bounds": False, **options})


def audited(frame: pd.DataFrame = FRAME, attributes: tuple[str, ...] = ("sex",), labels: tuple[str, ...] = ("y",), **options: Any) -> Any:
    return evaluate(frame, labels=list(labels), attributes=list(attributes), config=config(**options), threads=1).to_json()


def test_everything_by_default() -> None:
    found = audited()
    block = found["labels"]["y"]
    assert set(METRICS) <= set(block["overall"])
    assert set(block["attributes"]["sex"]["gaps"]) == {*METRICS, *COMBINED}
    assert set(found["provenance"]["tests"]["bootstrap"]) == RESAMPLED
    assert all(gap["p"] is not None and gap["lower"] is not None for gap in block["attributes"]["sex"]["gaps"].values())


def test_the_numbers_are_those_of_the_public_functions() -> None:
    part = audited(ece_bins=7)["labels"]["y"]["attributes"]["sex"]["groups"]
    for key in ("f", "m"):
        use = (FRAME["sex"] == key).to_numpy()
        y, s, patient = Y[use], S[use], FRAME["patient_id"].to_numpy()[use]
        fit = calibration_slope_intercept(y, s)
        assert part[key]["average_precision"]["value"] == pytest.approx(average_precision(y, s))
        assert part[key]["ece"]["value"] == pytest.approx(expected_calibration_error(y, s, bins=7))
        corrected = expected_calibration_error(y, s, bins=7, corrected=True, patient=patient)
        assert part[key]["ece_corrected"]["value"] == pytest.approx(corrected, abs=1e-7)
        assert part[key]["calibration_slope"]["value"] == pytest.approx(fit.slope)
        assert part[key]["calibration_intercept"]["value"] == pytest.approx(fit.intercept)


def test_chosen_metrics_come_with_the_parts_of_the_primary_gaps() -> None:
    assert chosen_metrics(config()) == METRICS
    assert chosen_metrics(config(metrics=["brier", "auc"])) == ("auc", "tpr", "fpr", "brier")
    assert chosen_metrics(config(metrics=["underdiagnosis"], primary=["auc"])) == ("auc", "fpr", "fnr")
    found = audited(metrics=["brier"])
    block = found["labels"]["y"]
    assert set(block["overall"]) & set(METRICS) == {"auc", "tpr", "fpr", "brier"}
    gaps = ["auc", "tpr", "fpr", "brier", "equalized_odds", "equalized_odds_mean", "equal_opportunity"]
    assert list(block["attributes"]["sex"]["gaps"]) == gaps
    assert found["provenance"]["tests"] == {"permutation": ["auc", "tpr", "fpr", "brier"], "bootstrap": []}


def test_a_choice_changes_no_estimate() -> None:
    few, every = (found["labels"]["y"] for found in (audited(metrics=["brier"]), audited()))
    for name in ("auc", "tpr", "brier"):
        assert few["overall"][name] == every["overall"][name]
        assert few["attributes"]["sex"]["groups"]["f"][name] == every["attributes"]["sex"]["groups"]["f"][name]
        for part in ("value", "groups", "worst", "to_overall"):
            assert few["attributes"]["sex"]["gaps"][name][part] == every["attributes"]["sex"]["gaps"][name][part]


def test_a_page_without_the_usual_metrics_is_written(tmp_path: Any) -> None:
    result = audit(FRAME, "y_true", "y_score", ["sex", "site"], config=config(metrics=["ece"], primary=["brier"]), out=tmp_path)
    assert set(result.to_json()["labels"]["y_true"]["attributes"]["sex"]["gaps"]) == {"brier", "ece"}
    assert "calibration error" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not result.verdicts or all(item["metric"] != "auc" for item in result.verdicts)


def test_a_gate_adds_its_metric() -> None:
    options = config(metrics=["brier"], primary=["brier"])
    assert audit(FRAME, "y_true", "y_score", "sex", config=options, fail_if="sex.ece.value > 0.9")
    assert audit(FRAME, "y_true", "y_score", "sex", config=options, fail_if="sex.tpr.to_overall > 0.9")


def test_runs_are_compared_on_chosen_metrics_with_named_gaps() -> None:
    worse = FRAME.assign(y_score=np.clip(FRAME["y_score"] * 0.7, 0, 1))
    options = config(
        metrics=["average_precision", "disparate_impact", "underdiagnosis"], primary=["average_precision"], reference={"sex": "m"}
    )
    runs = [("a", [FRAME]), ("b", [worse])]
    found = compare(runs, labels=["y"], attributes=["sex"], config=options).to_json()["labels"]["y"]
    part = found["attributes"]["sex"]
    assert set(part["gap_changes"]["b"]) == set(part["gaps"]["a"]) >= {"average_precision", "disparate_impact_distance", "underdiagnosis"}
    alone = audited(worse, reference={"sex": "m"})["labels"]["y"]["attributes"]["sex"]["gaps"]
    for name in ("average_precision", "disparate_impact", "disparate_impact_distance", "underdiagnosis"):
        assert part["gaps"]["b"][name]["value"] == pytest.approx(alone[name]["value"])
    assert found["overall_changes"]["b"]["average_precision"]["value"] == pytest.approx(0, abs=1e-9)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match="metric 'ece_corected' is unknown; did you mean 'ece_corrected'"):
        check_names(config(metrics=["ece_corected"]))
    with pytest.raises(ConfigError, match="ece_bins is 1"):
        check_names(config(ece_bins=1))
    with pytest.raises(ConfigError, match="reference names the attribute 'sx', which is not audited; did you mean 'sex'"):
        check_reference({"sx": "m"}, {"sex": ["f", "m"]})
    with pytest.raises(ConfigError, match="reference group 'males' of sex does not occur; did you mean 'male'"):
        audited(FRAME.assign(sex=FRAME["sex"].map({"f": "female", "m": "male"})), reference={"sex": "males"})


def test_health_is_recognised_by_its_name() -> None:
    names = AuditConfig().no_finding
    assert [underdiagnosis_metric(name, names) for name in ("NO FINDING", "no-finding", "Normal", "Edema")] == ["fpr", "fpr", "fpr", "fnr"]
    found = audited(labels=("no_finding",))["labels"]["no_finding"]["attributes"]["sex"]["gaps"]["underdiagnosis"]
    assert found["measure"] == "fpr"


def test_the_family_gets_enough_replicates_where_it_is_tested_by_them() -> None:
    assert audited(attributes=("sex", "site"))["provenance"]["bootstrap"] == 60
    found = audited(attributes=("sex", "site"), primary=["calibration_slope", "auc"])["provenance"]
    assert (found["bootstrap"], found["permutations"]) == (160, 160)


def test_net_benefit_and_slope_say_why_they_are_not_defined() -> None:
    given = audited(FRAME.assign(y_pred=(S > 0.5).astype(int)))["labels"]["y"]["overall"]
    assert given["net_benefit"]["reason"].startswith("decisions were given without a threshold")
    assert given["calibration_slope"]["value"] is not None
    apart = audited(FRAME.assign(y_score=0.2 + 0.6 * Y + 0.01 * S))["labels"]["y"]["overall"]
    assert apart["calibration_slope"]["reason"].startswith("the scores separate the classes")
    assert apart["net_benefit"]["value"] == pytest.approx(Y.mean())


def test_several_labels_and_classes_carry_everything() -> None:
    many = FRAME.rename(columns={"y_true": "y_true_a", "y_score": "y_score_a"}).assign(y_true_b=1 - Y, y_score_b=1 - S)
    found = audited(many, labels=("a", "b"))["labels"]
    assert all(set(METRICS) <= set(found[label]["overall"]) for label in ("a", "b"))
    assert found["a"]["overall"]["calibration_slope"]["value"] == pytest.approx(
        found["b"]["overall"]["calibration_slope"]["value"], abs=1e-6
    )
    logits = RNG.normal(0, 1, (N, 3)) + 1.5 * np.eye(3)[RNG.integers(0, 3, N)]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array(["p", "q", "r"])[[RNG.choice(3, p=row) for row in scores]]
    frame = FRAME.drop(columns="y_score").assign(y_true=truth, **{f"y_score_{name}": scores[:, k] for k, name in enumerate("pqr")})
    result = evaluate(frame, labels=["y"], attributes=["sex"], config=config(), classes=["p", "q", "r"], threads=1).to_json()["labels"]
    one = [result[name]["overall"]["average_precision"]["value"] for name in "pqr"]
    assert result["macro"]["overall"]["average_precision"]["value"] == pytest.approx(np.mean(one))
    assert set(result["macro"]["attributes"]["sex"]["gaps"]) == {*METRICS, *COMBINED}
    assert result["macro"]["overall"]["net_benefit"]["reason"].startswith("decisions were given")


def test_the_test_of_the_calibration_error_has_the_bins_of_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, codes = np.arange(N) // 2, (FRAME["sex"] == "m").to_numpy(np.int64)
    decision = (S >= 0.5).astype(float)
    seen = {}

    def kept(rows: dict[str, Any], *rest: Any) -> dict[str, Any]:
        seen.update(rows)
        return permuted_null(rows, *rest)

    monkeypatch.setattr(sys.modules["evenhand.evaluation.evaluate"], "permuted_null", kept)
    audited(ece_bins=40, metrics=["ece"])
    assert seen["ece_bins"] == 40
    rows = {"y_true": Y, "y_score": S, "decision": decision, "unit": unit, "ece_bins": 40}
    members = {"ece": [GroupValue(key, 0.1, 0.01, 10, 10) for key in ("f", "m")]}
    made = permuted_null(rows, codes, members, ("f", "m"), {"ece": 50}, np.random.default_rng(3))
    cell = make_cell(Y, S, decision, unit * 2 + codes, ece_bins=40)
    both = {"ece": np.array([0, 1])}
    assert (made["ece"] == null_maxima(cell, cell.units % 2, both, {"ece": 50}, np.random.default_rng(3))["ece"]).all()


def test_macro_calibration_errors_are_not_tested_and_the_others_are() -> None:
    z = RNG.normal(size=(N, 3)) + 1.5 * np.eye(3)[np.arange(N) % 3]
    scores = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    columns = {f"y_score_{name}": scores[:, k] for k, name in enumerate("abc")}
    frame = FRAME.assign(y_true=np.array(list("abc"))[np.arange(N) % 3], **columns)
    asked = config(metrics=["ece", "ece_corrected", "auc"], permutations=100)
    found = evaluate(frame, labels=["y"], attributes=["sex"], classes=list("abc"), config=asked, threads=1).to_json()
    gaps = found["labels"]["macro"]["attributes"]["sex"]["gaps"]
    assert (gaps["ece"]["p"], gaps["ece"]["lower"]) == (None, None)
    assert gaps["ece_corrected"]["p"] is not None
    assert found["provenance"]["bootstrap"] == REACH * found["provenance"]["family"]["tests"]


def test_a_label_of_health_must_be_a_label() -> None:
    check_no_finding(["no-finding", "Normal"], ["Edema"])
    with pytest.raises(ConfigError, match="no_finding names 'edma', which is none of the labels; did you mean 'edema'"):
        check_no_finding(["edma"], ["edema", "mass"])
    frame = pd.DataFrame({"y": [0, 1] * 20, "p": np.linspace(0, 1, 40)})
    with pytest.raises(ConfigError, match="no_finding names 'foo'"):
        audit(frame, "y", "p", [], no_finding=["foo"])
