"""Gaps under the pooled case mix: Simpson's paradox solved by hand, scikit-learn's weights, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, precision_score, recall_score, roc_auc_score

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import category_groups
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.case_columns import case_mix, check_columns
from evenhand.evaluation.casemix import explain
from evenhand.evaluation.cohort import Cohort, Question


def _cohort(frame: pd.DataFrame, attributes: Sequence[str] = ("sex",)) -> Cohort:
    """Decisions at 0.5; patients as given, or one a row."""
    record = {"value": 0.5, "rule": "0.5", "source": "fixed", "n": 0, "n_positive": 0, "note": None}
    question = Question("y", frame.y.to_numpy(float), frame.p.to_numpy(float), (frame.p >= 0.5).to_numpy(float), record)
    patient = np.unique(frame.patient if "patient" in frame else frame.index, return_inverse=True)[1]
    groups = {name: category_groups(frame[name], name) for name in attributes}
    return Cohort("binary", (question,), groups, patient.astype(np.int64), 0, (), frame)


def _explain(frame: pd.DataFrame, columns: Sequence[str], attribute: str = "sex", **options: Any) -> dict[str, Any]:
    cohort = _cohort(frame, (attribute,))
    bins = options.pop("bins", None)
    config = AuditConfig(adjust=list(columns), bootstrap=options.pop("bootstrap", 60), permutations=0, **options)
    found = explain(cohort, cohort.groups[attribute], config, bins=bins)["y"]
    json.dumps(found, allow_nan=False)
    return found


def _simpson() -> pd.DataFrame:
    """Sensitivity is 0.9 on PA films and 0.6 on AP films for everybody; women have mostly AP, men mostly PA films."""
    rows = []
    for sex, view, n in (("F", "AP", 80), ("F", "PA", 20), ("M", "AP", 20), ("M", "PA", 80)):
        found = round(n * {"AP": 0.6, "PA": 0.9}[view])
        rows += [{"sex": sex, "view": view, "y": 1, "p": 0.8 if k < found else 0.2} for k in range(n)]
        rows += [{"sex": sex, "view": view, "y": 0, "p": 0.1} for _ in range(n)]
    return pd.DataFrame(rows)


def test_simpsons_paradox() -> None:
    found = _explain(_simpson(), ["view"])["metrics"]["tpr"]
    assert found["groups_apart"] == ["F", "M"]
    assert found["gap"]["value"] == pytest.approx(0.84 - 0.66)
    assert found["standardised"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert found["difference"]["value"] == pytest.approx(0.18)
    assert found["explained_share"]["value"] == pytest.approx(1.0)
    assert found["standardised"]["lower"] < 0 < found["standardised"]["upper"]
    assert found["groups"]["F"]["value"] == pytest.approx(0.75)
    assert found["groups"]["F"]["raw"]["value"] == pytest.approx(0.66)
    assert (found["coverage"], found["lacking"]) == (1.0, [])


def _random(n: int = 600, seed: int = 0, images: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    m = n // images
    sex = rng.choice(["F", "M", "X"], m)
    site = np.where(rng.random(m) < np.where(sex == "F", 0.7, 0.3), "a", "b")
    y = (rng.random(m) < np.where(site == "a", 0.5, 0.3)).astype(int)
    frame = pd.DataFrame({"sex": sex, "site": site, "y": y, "patient": np.arange(m), "age": rng.integers(20, 90, m)})
    frame = frame.loc[np.repeat(np.arange(m), images)].reset_index(drop=True)
    frame["p"] = np.clip(0.35 + 0.3 * frame.y - 0.1 * (frame.site == "a") + rng.normal(0, 0.2, n), 0.01, 0.99)
    return frame


def _weights(frame: pd.DataFrame, by: Sequence[str], within: Sequence[str] = ()) -> np.ndarray:
    """Row weights pooled share / group share of the cells ``by``, within classes of ``within``."""
    pooled = frame.groupby([*within, *by])["y"].transform("size") / (
        frame.groupby(list(within))["y"].transform("size") if within else len(frame)
    )
    own = frame.groupby(["sex", *within, *by])["y"].transform("size") / frame.groupby(["sex", *within])["y"].transform("size")
    return (pooled / own).to_numpy()


def test_standardised_values_are_those_of_weighted_scikit_learn() -> None:
    frame = _random()
    asked = ["auc", "tpr", "accuracy", "ppv", "brier", "average_precision"]
    found = _explain(frame, ["site"], bootstrap=0, metrics=asked)
    given, free = _weights(frame, ["site"], ["y"]), _weights(frame, ["site"])
    prevalence = _weights(frame, ["y"])
    for sex, rows in frame.groupby("sex"):
        at, y, p = rows.index, rows.y, rows.p
        d = (p >= 0.5).astype(int)
        by_mix = {name: found["metrics"][name]["groups"][sex]["value"] for name in ("auc", "tpr", "accuracy", "ppv", "brier")}
        assert by_mix == pytest.approx(
            {
                "auc": roc_auc_score(y, p, sample_weight=given[at]),
                "tpr": recall_score(y, d, sample_weight=given[at]),
                "accuracy": accuracy_score(y, d, sample_weight=free[at]),
                "ppv": precision_score(y, d, sample_weight=free[at]),
                "brier": brier_score_loss(y, p, sample_weight=free[at]),
            },
            abs=1e-8,
        )
        w = prevalence[at]
        matched = {name: part["groups"][sex]["value"] for name, part in found["prevalence_matched"].items()}
        assert matched["ppv"] == pytest.approx(precision_score(y, d, sample_weight=w))
        assert matched["average_precision"] == pytest.approx(average_precision_score(y, p, sample_weight=w))
        assert matched["accuracy"] == pytest.approx(accuracy_score(y, d, sample_weight=w))
        assert found["metrics"]["auc"]["groups"][sex]["raw"]["value"] == pytest.approx(roc_auc_score(y, p))
    gap = found["metrics"]["auc"]["gap"]
    assert (gap["lower"], gap["upper"]) == (None, None)
    assert "replicates" in found["metrics"]["auc"]["explained_share"]["reason"]


def test_difference_is_gap_less_standardised_and_lies_in_its_interval() -> None:
    found = _explain(_random(), ["site", "age"])
    assert found["n_cells"] == 10
    assert len(found["cuts"]["age"]) == 6
    for part in (*found["metrics"].values(), *found["prevalence_matched"].values()):
        assert part["difference"]["value"] == pytest.approx(part["gap"]["value"] - part["standardised"]["value"])
        for name in ("gap", "standardised", "difference"):
            assert part[name]["lower"] <= part[name]["value"] <= part[name]["upper"]


def test_equal_prevalence_needs_no_matching() -> None:
    found = _explain(_simpson(), [])
    assert found["metrics"] == {}
    assert found["prevalence_matched"]["ppv"]["difference"]["value"] == pytest.approx(0.0, abs=1e-12)


def test_groups_without_a_common_cell_are_not_comparable() -> None:
    frame = _random().query("sex != 'X'").reset_index(drop=True)
    frame["site"] = np.where(frame.sex == "F", "a", "b")
    found = _explain(frame, ["site"])["metrics"]["tpr"]
    assert found["gap"]["value"] is None
    assert "0% of the pooled mix" in found["gap"]["reason"]
    assert len(found["excluded"]) == 1


def test_a_group_of_its_own_site_is_left_out_and_the_others_are_compared() -> None:
    frame = _random()
    frame.loc[frame.sex == "X", "site"] = "c"
    found = _explain(frame, ["site"])["metrics"]["accuracy"]
    assert [item["group"] for item in found["excluded"]] == ["X"]
    assert set(found["groups"]) == {"F", "M"}
    assert found["coverage"] == 1.0


def test_cells_that_a_group_lacks_are_named_and_left_out_for_all() -> None:
    frame = _random()
    frame.loc[(frame.sex == "F") & (frame.index < 150), "site"] = "only_f"
    found = _explain(frame, ["site"])["metrics"]["accuracy"]
    share = (frame.site == "only_f").mean()
    assert found["coverage"] == pytest.approx(1 - share)
    assert found["lacking"] == [{"cell": "only_f", "groups": ["M", "X"], "share": pytest.approx(share)}]
    kept = frame[(frame.site != "only_f") & (frame.sex == "F")]
    assert found["groups"]["F"]["raw"]["value"] == pytest.approx(((kept.p >= 0.5) == kept.y).mean())


def test_weights_carried_by_a_few_patients_are_refused() -> None:
    """One woman of site b would have to stand for most of the mix."""
    rows = [
        {"sex": "F", "site": "a", "n": 60},
        {"sex": "F", "site": "b", "n": 1},
        {"sex": "M", "site": "a", "n": 20},
        {"sex": "M", "site": "b", "n": 300},
    ]
    frame = pd.DataFrame(
        [{"sex": row["sex"], "site": row["site"], "y": k % 2, "p": 0.3 + 0.4 * (k % 3 > 0)} for row in rows for k in range(row["n"])]
    )
    found = _explain(frame, ["site"], bootstrap=0)["metrics"]["accuracy"]
    assert found["gap"]["value"] is None
    assert "counts as 1." in found["excluded"][0]["reason"]


def test_threads_and_seeds() -> None:
    frame, config = _random(), AuditConfig(adjust=["site"], bootstrap=300)
    cohort = _cohort(frame)
    one, two = (explain(cohort, cohort.groups["sex"], config, seed=3, threads=n) for n in (1, 3))
    assert one == two
    other = explain(cohort, cohort.groups["sex"], config, seed=4)
    assert other["y"]["metrics"]["auc"]["gap"]["lower"] != one["y"]["metrics"]["auc"]["gap"]["lower"]


def test_intervals_are_clustered_by_patient() -> None:
    """Every image five times over: the same values, and intervals as wide as without the copies."""
    frame = _random(300, images=1)
    copies = frame.loc[np.repeat(frame.index, 5)].reset_index(drop=True)
    single, many = (_explain(part, ["site"], bootstrap=400)["metrics"]["tpr"]["standardised"] for part in (frame, copies))
    assert many["value"] == pytest.approx(single["value"])
    assert many["upper"] - many["lower"] == pytest.approx(single["upper"] - single["lower"], rel=0.05)


def test_chosen_metrics_and_the_attribute_itself() -> None:
    found = _explain(_random(), ["sex", "site"], metrics=["tpr", "ppv"])
    assert (found["columns"], found["skipped"]) == (["site"], ["sex"])
    assert set(found["metrics"]) == {"tpr", "ppv"}
    assert set(found["prevalence_matched"]) == {"ppv"}


def test_columns_are_checked_and_cut() -> None:
    frame = _random()
    with pytest.raises(TableError, match="did you mean 'site'"):
        check_columns(frame, ["sitte"])
    with pytest.raises(ConfigError, match="twice"):
        check_columns(frame, ["site", "site"])
    frame.loc[:9, "age"] = np.nan
    mix = case_mix(_cohort(frame), ["age"], "sex", {"age": (0, 50, 100)})
    assert mix.keys == ("[0,50)", "[50,100)")
    assert (mix.codes[:10] == -1).all()
    assert len(case_mix(_cohort(frame), ["age"], "sex", {}).keys) == 5


def test_a_group_of_one_class_is_not_matched_in_prevalence() -> None:
    frame = _random().query("sex != 'X'").reset_index(drop=True)
    healthy = frame[(frame.sex == "M") & (frame.y == 0)].assign(sex="Z")
    found = _explain(pd.concat([frame, healthy], ignore_index=True), [])["prevalence_matched"]
    alone = _explain(frame, [])["prevalence_matched"]
    for metric in ("ppv", "f1"):
        assert [item["group"] for item in found[metric]["excluded"]] == ["Z"]
        assert "0 patients of the smaller class" in found[metric]["excluded"][0]["reason"]
        assert found[metric]["standardised"]["value"] == alone[metric]["standardised"]["value"]


def test_a_rate_that_is_0_by_0_on_the_common_cells_is_left_out() -> None:
    rows = [{"sex": sex, "site": "a", "y": k % 2, "p": 0.1 + 0.8 * (k % 3 == 0) * (sex != "C")} for sex in "ABC" for k in range(60)]
    rows += [{"sex": "C", "site": "b", "y": k % 2, "p": 0.9} for k in range(20)]
    found = _explain(pd.DataFrame(rows), ["site"])["metrics"]["ppv"]
    assert [item["group"] for item in found["excluded"]] == ["C"]
    assert "not defined" in found["excluded"][0]["reason"]
    assert set(found["groups"]) == {"A", "B"}
