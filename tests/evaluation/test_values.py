"""Audits of continuous values: their numbers, what is left out and counted, what is refused, and what must not change them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, GateError, TableError
from evenhand.evaluation.gates import check_gates, parse_gate
from evenhand.evaluation.values import evaluate_values, value_column

QUICK = AuditConfig(bootstrap=60, permutations=99, primary=["mean"])


def cases(n: int = 240, seed: int = 0, gap: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    patient = np.arange(n) // 2
    sex = np.where(patient % 2, "f", "m")
    return pd.DataFrame(
        {
            "patient_id": [f"p{i}" for i in patient],
            "dice": 0.8 + 0.05 * rng.normal(size=n // 2)[patient] + 0.05 * rng.normal(size=n) - gap * (sex == "f"),
            "days": rng.integers(1, 30, n).astype(float),
            "sex": sex,
            "age": rng.integers(20, 90, n // 2)[patient],
        }
    )


def test_the_numbers_are_the_groups_own_and_the_gap_is_between_them() -> None:
    frame = cases(gap=0.1)
    found = evaluate_values(frame, values=["dice", "days"], attributes=["sex"], config=QUICK, lower_is_better=["days"]).to_json()
    assert found["kind"] == "value"
    assert list(found["labels"]) == ["dice", "days"]
    block = found["labels"]["dice"]
    part = block["attributes"]["sex"]
    means = frame.groupby("sex")["dice"].mean()
    assert part["groups"]["f"]["mean"]["value"] == pytest.approx(means["f"])
    assert part["groups"]["m"]["median"]["value"] == pytest.approx(frame.loc[frame.sex == "m", "dice"].median())
    assert part["groups"]["f"]["sd"] == pytest.approx(frame.loc[frame.sex == "f", "dice"].std())
    gap = part["gaps"]["mean"]
    assert gap["value"] == pytest.approx(means["m"] - means["f"])
    assert gap["groups"] == ["f", "m"]
    assert gap["worst"]["group"] == "f"
    assert gap["ratio"] == pytest.approx(means["f"] / means["m"])
    assert gap["lower"] > 0
    assert gap["p"] == gap["p_holm"] / 2 == 0.01
    assert gap["to_overall"]["value"] == pytest.approx(max(abs(means - frame["dice"].mean())))
    assert [item["code"] for item in found["verdicts"] if item["label"] == "dice"] == ["gap"]
    assert "higher is better" in found["verdicts"][0]["text"]
    assert found["labels"]["days"]["attributes"]["sex"]["gaps"]["mean"]["worst"]["group"] == frame.groupby("sex")["days"].mean().idxmax()


def test_no_gap_gives_an_interval_with_0_exactly_where_the_test_does_not_reject() -> None:
    for seed in range(6):
        found = evaluate_values(cases(seed=seed), values=["dice"], attributes=["sex"], config=QUICK, seed=seed).to_json()
        for gap in found["labels"]["dice"]["attributes"]["sex"]["gaps"].values():
            assert (gap["lower"] > 0) == (gap["p"] < 0.05)
            assert gap["lower"] <= gap["value"] <= gap["upper"]


def test_images_of_one_patient_do_not_pass_for_several() -> None:
    frame = cases(120)
    copied = pd.concat([frame, frame, frame])
    once, thrice = (
        evaluate_values(table, values=["dice"], attributes=["sex"], config=AuditConfig(bootstrap=400, permutations=20)).to_json()
        for table in (frame, copied)
    )
    widths = [
        row["upper"] - row["lower"] for row in (item["labels"]["dice"]["overall"]["mean"] for item in (once, thrice))
    ]
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)


def test_empty_cells_are_counted_and_left_out() -> None:
    frame = cases()
    frame.loc[:9, "dice"] = np.nan
    found = evaluate_values(frame, values=["dice", "days"], attributes=["sex"], config=QUICK).to_json()
    overall = found["labels"]["dice"]["overall"]
    assert (overall["n"], overall["n_missing_value"]) == (230, 10)
    assert overall["mean"]["value"] == pytest.approx(frame["dice"].mean())
    assert found["labels"]["days"]["overall"]["n"] == 240


def test_test_rows_are_judged_and_a_missing_attribute_enters_no_gap() -> None:
    frame = cases().assign(split=["val", "test"] * 120)
    frame.loc[:39, "sex"] = None
    found = evaluate_values(frame, values=["dice"], attributes=["sex"], config=QUICK).to_json()
    assert found["n"] == 120
    part = found["labels"]["dice"]["attributes"]["sex"]
    assert part["n_missing"] == 20
    assert part["groups"]["(missing)"]["missing"]
    assert part["gaps"]["mean"]["n"] == 100
    assert found["labels"]["dice"]["overall"]["mean"]["value"] == pytest.approx(frame.loc[frame.split == "test", "dice"].mean())


def test_a_group_of_nine_patients_is_not_estimable() -> None:
    frame = cases()
    frame["site"] = np.where(np.arange(240) < 18, "small", np.where(np.arange(240) % 4 < 2, "a", "b"))
    found = evaluate_values(frame, values=["dice"], attributes=["site"], config=QUICK).to_json()
    part = found["labels"]["dice"]["attributes"]["site"]
    row = part["groups"]["small"]
    assert row["mean"]["value"] is None
    assert "9 patients" in row["mean"]["reason"]
    assert row["n"] == 18
    assert [item["group"] for item in part["gaps"]["mean"]["excluded"]] == ["small"]
    assert [item["code"] for item in found["verdicts"] if item["group"] == "small"] == ["insufficient_evidence"]


def test_a_group_of_equal_values_is_not_certain() -> None:
    frame = cases()
    frame["error"] = np.where(frame["sex"] == "f", 0.0, frame["days"])
    found = evaluate_values(frame, values=["error"], attributes=["sex"], config=QUICK).to_json()["labels"]["error"]["attributes"]["sex"]
    row = found["groups"]["f"]["mean"]
    half = frame["error"].std() / (2 * 60)
    assert row["upper"] == pytest.approx(2.001 * half, rel=1e-3)  # Student's t of 59 degrees of freedom
    assert row["lower"] == pytest.approx(-row["upper"])
    both = frame.assign(error=np.where(frame["sex"] == "f", 0.0, 1.0))
    apart = evaluate_values(both, values=["error"], attributes=["sex"], config=QUICK).to_json()
    gap = apart["labels"]["error"]["attributes"]["sex"]["gaps"]
    assert 0.9 < gap["mean"]["lower"] < 1 < gap["mean"]["upper"] < 1.1
    constant = evaluate_values(frame.assign(error=3.0), values=["error"], attributes=["sex"], config=QUICK).to_json()
    gap = constant["labels"]["error"]["attributes"]["sex"]["gaps"]
    assert (gap["mean"]["value"], gap["mean"]["upper"], gap["mean"]["p"]) == (0, 0, 1)


def test_threads_and_the_order_of_rows_change_nothing() -> None:
    frame = cases()
    options = {"values": ["dice"], "attributes": ["sex"], "config": QUICK}
    first = evaluate_values(frame, threads=1, **options).dumps()
    assert evaluate_values(frame, threads=3, **options).dumps() == first
    mixed = json.loads(evaluate_values(frame.sample(frac=1, random_state=1), **options).dumps())
    for name in ("mean", "median"):
        one, other = (item["labels"]["dice"]["attributes"]["sex"]["gaps"][name] for item in (json.loads(first), mixed))
        assert one["value"] == pytest.approx(other["value"])
        assert one["p"] == other["p"]


@pytest.mark.parametrize("interval", ["auto", "percentile", "bca"])
def test_every_kind_of_interval_holds_the_value(interval: str) -> None:
    config = AuditConfig(bootstrap=200, permutations=0, interval=interval)
    found = evaluate_values(cases(), values=["days"], attributes=["sex"], config=config).to_json()
    part = found["labels"]["days"]["attributes"]["sex"]
    for row in part["groups"].values():
        for name in ("mean", "median"):
            assert row[name]["lower"] <= row[name]["value"] <= row[name]["upper"]
    assert part["gaps"]["mean"]["p"] > 0


def test_bca_limits_are_scipys_within_the_noise_of_the_bootstrap() -> None:
    from scipy import stats

    x = np.exp(np.random.default_rng(0).normal(size=60))
    config = AuditConfig(bootstrap=4000, permutations=0, interval="bca")
    found = evaluate_values(pd.DataFrame({"x": x}), values=["x"], attributes=[], config=config).to_json()["labels"]["x"]["overall"]["mean"]
    expected = stats.bootstrap((x,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    width = expected.high - expected.low
    assert (found["lower"], found["upper"]) == pytest.approx((expected.low, expected.high), abs=0.05 * width)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([-5.0, 0.25, 100.0]), st.sampled_from([0.5, 2.0, 64.0]))
def test_a_gap_does_not_move_with_a_shift_and_scales_with_the_unit(shift: float, scale: float) -> None:
    frame = cases(80)
    config = AuditConfig(bootstrap=40, permutations=39)
    gaps = [
        evaluate_values(table, values=["dice"], attributes=["sex"], config=config).to_json()["labels"]["dice"]["attributes"]["sex"]["gaps"]
        for table in (frame, frame.assign(dice=scale * frame["dice"] + shift))
    ]
    for name in ("mean", "median"):
        before, after = gaps[0][name], gaps[1][name]
        assert after["p"] == before["p"]
        for field in ("value", "lower", "upper"):
            assert after[field] == pytest.approx(scale * before[field], rel=1e-4, abs=1e-6)


def test_directions_are_known_by_name_and_told_for_the_rest() -> None:
    frame = cases().rename(columns={"days": "hd95"}).assign(error=1.0, los=2.0)
    names = ["dice", "hd95", "error", "los"]

    def worse_up(told: bool | list[str]) -> list[str]:
        found = evaluate_values(frame, values=names, attributes=[], config=QUICK, lower_is_better=told).to_json()
        return [name for name in names if found["labels"][name]["lower_is_better"]]

    assert worse_up(False) == ["hd95"]
    assert worse_up(True) == ["hd95", "error", "los"]
    assert worse_up(["los"]) == ["hd95", "los"]
    with pytest.raises(ConfigError, match="lower_is_better names 'typo'"):
        worse_up(["typo"])
    with pytest.raises(ConfigError, match="said of 'dice', which is known"):
        worse_up(["dice"])
    with pytest.raises(ConfigError, match="said of 'dice', which is known"):
        evaluate_values(frame, values=["dice"], attributes=[], config=QUICK, lower_is_better=True)


def test_tables_and_gates_work_for_values() -> None:
    found = evaluate_values(cases(gap=0.1), values=["dice"], attributes=["sex"], config=QUICK)
    table = found.to_table()
    assert set(table["metric"]) == {"mean", "median", "sd", "q5", "q25", "q75", "q95"}
    assert set(table[table["kind"] == "gap"]["metric"]) == {"mean", "median"}
    assert set(table["kind"]) == {"value", "gap"}
    gate = parse_gate("sex.mean.lower > 0.05", ["dice"], ["sex"], ("mean", "median"))
    with pytest.raises(GateError, match="1 gate condition failed"):
        check_gates([gate], found.to_json())
    check_gates([parse_gate("dice/sex.median.worst < 0.5", ["dice"], ["sex"], ("mean", "median"))], found.to_json())
    with pytest.raises(ConfigError, match="unknown"):
        parse_gate("sex.auc > 0.05", ["dice"], ["sex"], ("mean", "median"))


def test_columns_of_text_and_infinite_values_are_refused_with_their_rows() -> None:
    with pytest.raises(TableError, match="2 values that are not numbers") as caught:
        value_column(pd.Series(["0.5", "n/a", "high", ""]), "dice")
    assert caught.value.details[0] == "row 2: dice is 'n/a'"
    with pytest.raises(TableError, match="1 infinite values"):
        value_column(pd.Series([0.5, np.inf]), "dice")


@pytest.mark.parametrize(
    ("change", "values", "text"),
    [
        ({}, ["dicee"], "did you mean 'dice'"),
        ({}, [], "no value column is named"),
        ({"dice": np.nan}, ["dice"], "empty in all 240 judged rows"),
        ({"sex": None}, ["dice"], "missing in all"),
    ],
)
def test_what_cannot_be_audited_is_refused(change: dict[str, object], values: list[str], text: str) -> None:
    with pytest.raises((TableError, ConfigError), match=text):
        evaluate_values(cases().assign(**change), values=values, attributes=["sex"], config=QUICK)


def test_a_primary_gap_that_values_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'median'"):
        evaluate_values(cases(), values=["dice"], attributes=["sex"], config=AuditConfig(primary=["medin"]))
