"""Comparisons: means over seeds, paired changes, levelling down, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from evenhand.config.schema import AuditConfig
from evenhand.errors import InputError
from evenhand.evaluation import evaluate, write_predictions
from evenhand.evaluation.compare import _shifted, compare
from evenhand.evaluation.runs_table import read_runs
from evenhand.metrics.gaps import Gap

QUICK = AuditConfig(bootstrap=200)


def _noisy(frame: pd.DataFrame, seed: int, spread: float, only: str = "") -> pd.DataFrame:
    z = np.log(frame.y_score / (1 - frame.y_score))
    noise = np.random.default_rng(seed).normal(size=len(frame)) * spread * ((frame.sex == only) if only else 1)
    return frame.assign(y_score=1 / (1 + np.exp(-(z + noise))), seed=seed)


def _compare(runs: list[tuple[str, list[pd.DataFrame]]], **options: Any) -> dict[str, Any]:
    result = compare(runs, labels=("y",), attributes=("sex",), config=QUICK, **options)
    json.dumps(result.to_json(), allow_nan=False)
    assert len(result.to_table()) > 100
    return result.to_json()


def test_equal_runs_do_not_differ(make_table: Callable[..., pd.DataFrame]) -> None:
    found = _compare([("a", [make_table()]), ("b", [make_table()])])["labels"]["y"]
    for changes in (
        found["overall_changes"]["b"],
        found["attributes"]["sex"]["changes"]["b"]["male"],
        found["attributes"]["sex"]["gap_changes"]["b"],
    ):
        assert {(item["value"], item["p"]) for item in changes.values() if item["p"] is not None} == {(0.0, 1.0)}


def test_values_are_means_over_seeds(make_table: Callable[..., pd.DataFrame]) -> None:
    frames = [_noisy(make_table(300), seed, 0.5) for seed in range(3)]
    found = _compare([("a", frames), ("b", frames[:1])])["labels"]["y"]
    each = [roc_auc_score(*frame.loc[frame.split == "test", ["y_true", "y_score"]].to_numpy().T) for frame in frames]
    row = found["overall"]["a"]["auc"]
    assert row["value"] == pytest.approx(np.mean(each))
    assert row["sd_over_seeds"] == pytest.approx(np.std(each, ddof=1))
    assert row["seeds"] == pytest.approx(each)
    gaps = [
        evaluate(frame, labels=("y",), attributes=("sex",), config=AuditConfig(bootstrap=0, permutations=0)).to_json() for frame in frames
    ]
    expected = [item["labels"]["y"]["attributes"]["sex"]["gaps"]["equalized_odds"]["value"] for item in gaps]
    gap = found["attributes"]["sex"]["gaps"]["a"]["equalized_odds"]
    assert gap["value"] == pytest.approx(np.mean(expected))
    assert gap["lower"] <= gap["value"] <= gap["upper"]
    change = found["overall_changes"]["b"]["auc"]
    assert change["value"] == pytest.approx(each[0] - np.mean(each))


def test_who_got_worse_is_named(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(800)
    found = _compare([("before", [frame]), ("after", [_noisy(frame, 1, 4.0, only="male")])])
    worse = {(item["group"], item["metric"]) for item in found["verdicts"] if item["code"] == "levelling_down"}
    assert ("male", "auc") in worse
    assert ("female", "auc") not in worse
    assert all(item["run"] == "after" for item in found["verdicts"] if item["code"] == "levelling_down")
    rows = [row for part in found["labels"]["y"]["attributes"].values() for row in part["changes"]["after"].values()]
    tested = [row[name] for row in rows for name in ("auc", "tpr", "fpr") if row[name]["p"] is not None]
    assert [change["p_holm"] for change in tested] == pytest.approx(multipletests([change["p"] for change in tested], method="holm")[1])
    assert all("adjusted for all changes looked at" in item["text"] for item in found["verdicts"] if item["code"] == "levelling_down")


def test_pairing_makes_changes_sharper_than_the_runs_themselves(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(400)
    found = _compare([("a", [frame]), ("b", [_noisy(frame, 1, 0.2)])])["labels"]["y"]
    change, own = found["overall_changes"]["b"]["auc"], found["overall"]["a"]["auc"]
    assert change["upper"] - change["lower"] < 0.5 * (own["upper"] - own["lower"])


def test_zero_is_inside_a_change_exactly_when_p_is_not_small(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(400)
    found = _compare([("a", [frame]), ("b", [_noisy(frame, 1, 1.0)])])["labels"]["y"]["attributes"]["sex"]
    for change in [*found["changes"]["b"]["male"].values(), *found["gap_changes"]["b"].values()]:
        if change["p"] is not None:
            assert (change["lower"] <= 0 <= change["upper"]) == (change["p"] >= 0.05)


def test_refused(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(80)
    with pytest.raises(InputError, match="at least two runs"):
        _compare([("a", [frame])])
    with pytest.raises(InputError, match="different names"):
        _compare([("a", [frame]), ("a", [frame])])
    with pytest.raises(InputError, match="other test rows"):
        _compare([("a", [frame]), ("b", [frame.iloc[:-4]])])


def test_runs_are_read_from_folders_and_files(tmp_path: Path, make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(20).assign(sex__group="f")
    write_predictions(frame, tmp_path / "one" / "predictions.parquet")
    for seed in (10, 2):
        write_predictions(frame.assign(seed=seed), tmp_path / "two" / f"seed={seed}" / "predictions.parquet")
    write_predictions(pd.concat([frame, frame.assign(seed=1)]), tmp_path / "three.csv")
    found = read_runs([tmp_path / "one", tmp_path / "two", f"renamed={tmp_path / 'three.csv'}"])
    assert [(name, [int(item.seed.iloc[0]) for item in frames]) for name, frames in found.runs] == [
        ("one", [0]),
        ("two", [2, 10]),
        ("renamed", [0, 1]),
    ]
    assert (found.labels, found.attributes) == (["label"], ["sex"])
    with pytest.raises(InputError, match="two runs are named"):
        read_runs([tmp_path / "one", tmp_path / "one"])
    with pytest.raises(InputError, match="has neither predictions"):
        read_runs([tmp_path])


def test_other_facts_about_the_same_images_are_refused(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(80)
    with pytest.raises(InputError, match="other truth of y"):
        _compare([("a", [frame]), ("b", [frame.assign(y_true=1 - frame.y_true)])])
    with pytest.raises(InputError, match="other groups of sex"):
        _compare([("a", [frame]), ("b", [frame.assign(sex=np.where(frame.sex == "male", "female", "male"))])])
    _compare([("a", [frame]), ("b", [frame.iloc[::-1]])])


def test_a_threshold_that_nobody_chose_is_said_for_each_run(make_table: Callable[..., pd.DataFrame]) -> None:
    frame = make_table(80)
    found = _compare([("a", [frame]), ("b", [frame[frame.split == "test"]])])
    assert [item["run"] for item in found["verdicts"] if item["code"] == "threshold_on_test"] == ["b"]


def test_a_ratio_without_any_positive_decision_in_one_seed_is_not_estimable(make_table: Callable[..., pd.DataFrame]) -> None:
    usual, none = make_table(300), make_table(300)
    none = none.assign(y_pred=0)
    found = _compare([("a", [usual.assign(y_pred=(usual.y_score > 0.5).astype(int)), none]), ("b", [usual])])["labels"]["y"]
    gap = found["attributes"]["sex"]["gaps"]["a"]["demographic_parity_ratio"]
    assert gap["value"] is None
    assert "0 / 0 in 1 of 2 seeds" in gap["reason"]
    assert found["attributes"]["sex"]["gap_changes"]["b"]["demographic_parity_ratio"]["value"] is None
    assert found["attributes"]["sex"]["gaps"]["a"]["demographic_parity"]["value"] is not None


def test_limits_of_seeds_gaps_hold_them_and_keep_their_verdict() -> None:
    ratio, distance = Gap(value=0.7, lower=0.02, upper=0.9), Gap(value=0.3, lower=0.1, upper=0.98)
    for value in (0.6, 0.65, 0.75, 0.99):
        one, other = _shifted(ratio, value, "disparate_impact"), _shifted(distance, 1 - value, "disparate_impact_distance")
        assert 0 <= one.lower <= value <= one.upper < 1
        assert 0 < other.lower <= 1 - value <= other.upper <= 1
    wider = _shifted(Gap(value=1.4, lower=0.9, upper=2.1), 1.5, "disparate_impact")  # against a reference group
    assert (wider.lower, wider.upper) == pytest.approx((0.9, 2.2))
    plain = _shifted(Gap(value=0.2, lower=0.0, upper=0.4), 0.25, "auc")
    assert (plain.lower, plain.upper) == pytest.approx((0.0, 0.45))


def test_disparate_impact_against_a_reference_may_exceed_1(make_table: Callable[..., pd.DataFrame]) -> None:
    frames = [_noisy(make_table(400, shift=1.0), seed, 0.5) for seed in range(2)]
    config = AuditConfig(bootstrap=100, reference={"sex": "female"})
    found = compare([("a", frames), ("b", frames)], labels=("y",), attributes=("sex",), config=config).to_json()
    gap = found["labels"]["y"]["attributes"]["sex"]["gaps"]["a"]["disparate_impact"]
    assert gap["value"] > 1
    assert gap["lower"] <= gap["value"] <= gap["upper"]
