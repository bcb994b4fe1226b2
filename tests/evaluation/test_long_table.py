"""The tables of an audit hold what audit.json holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.evaluation.long_table import TABLES, audit_tables
from evenhand.runs.audit import write_audit

Make = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def result() -> AuditResult:
    from tests.evaluation.conftest import table

    frame = table(400, shift=1.0)
    frame.loc[8:20, "sex"] = None
    frame.loc[30:35, "sex"] = "other"
    config = AuditConfig(bootstrap=60, permutations=60, adjust=["age"], metrics=["auc", "tpr", "fpr"])
    return evaluate(frame, labels=["label"], attributes=["sex", "sex*age"], bins={"age": (0, 60, 200)}, config=config)


@pytest.fixture(scope="module")
def tables(result: AuditResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("audit")
    (folder / "tables").mkdir()
    write_audit(result, folder, title="t")
    return {file.stem: pd.read_csv(file) for file in (folder / "tables").iterdir()}


def test_every_table_is_written(tables: Mapping[str, pd.DataFrame]) -> None:
    assert set(tables) == set(TABLES)


def test_gaps_hold_all_of_a_gap(result: AuditResult, tables: Mapping[str, pd.DataFrame]) -> None:
    gap = result.data["labels"]["label"]["attributes"]["sex"]["gaps"]["tpr"]
    row = tables["gaps"].query("attribute == 'sex' and metric == 'tpr'").iloc[0]
    assert row["ratio"] == pytest.approx(gap["ratio"])
    assert (row["worst_group"], row["worst_value"]) == (gap["worst"]["group"], pytest.approx(gap["worst"]["value"]))
    assert (row["to_overall_group"], row["to_overall"]) == (gap["to_overall"]["group"], pytest.approx(gap["to_overall"]["value"]))
    assert row["bound_upper"] == pytest.approx(gap["bounds"]["upper"])
    assert row["bound_interval_upper"] == pytest.approx(gap["bounds"]["interval"][1])
    assert (row["n_excluded"], row["n_groups"]) == (1, 2)
    assert row["excluded"].startswith("other: ")
    estimates = tables["estimates"].query("attribute == 'sex' and metric == 'auc'").set_index("group")
    assert estimates.loc["male", "n_patients"] == result.data["labels"]["label"]["attributes"]["sex"]["groups"]["male"]["n_patients"]


def test_no_number_of_the_lists_is_left_out(result: AuditResult, tables: Mapping[str, pd.DataFrame]) -> None:
    item = result.data["labels"]["label"]
    assert len(tables["intersections"]) == len(item["intersections"]) > 0
    assert len(tables["drivers"]) == len(item["drivers"]) > 0
    power = [found for part in item["attributes"].values() for found in part.get("power", {}).values()]
    assert sorted(tables["power"]["n_patients"]) == sorted(found["n_patients"] for found in power)
    assert tables["power"]["needed_0.1"].iloc[0] == power[0]["needed"]["0.1"]
    parts = [item["attributes"]["sex"]["explained"][name] for name in ("metrics", "prevalence_matched")]
    numbers = [number for part in parts for found in part.values() for number in _estimates(found)]
    shown = tables["explained"].query("attribute == 'sex'")["value"].dropna()
    assert sorted(shown) == pytest.approx(sorted(number for number in numbers if number is not None))


def _estimates(found: Mapping[str, Any]) -> Iterator[float | None]:
    for name in ("gap", "standardised", "difference", "explained_share"):
        yield found.get(name, {}).get("value")
    yield from (row["value"] for row in found["groups"].values())


def test_tables_of_an_earlier_audit_do_not_stay(result: AuditResult, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "drivers.csv").write_text("old")
    plain = {name: part for name, part in result.data["labels"]["label"].items() if name != "drivers"}
    write_audit(AuditResult({**result.data, "labels": {"label": plain}}, result.predictions), tmp_path, title="t")
    assert not (tmp_path / "tables" / "drivers.csv").exists()


def test_counts_are_whole_numbers(result: AuditResult) -> None:
    made = audit_tables(result.data)
    assert {str(made["gaps"][name].dtype) for name in ("n", "n_groups", "n_excluded", "n_missing")} == {"Int64"}
