"""The compare page: runs that no other beats, numbers that do not cover each other, and a panel a group."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.report import changes, tradeoff
from evenhand.report.figures import Point
from evenhand.report.html import write_compare_report
from evenhand.report.tradeoff import Position
from tests.report import pages

SPACE = "{http://www.w3.org/2000/svg}"


def runs_of(values: list[tuple[float, float]]) -> list[Position]:
    return [Position(f"run {i}", Point("", x, x - 0.02, x + 0.02), Point("", y, y - 0.02, y + 0.02)) for i, (x, y) in enumerate(values)]


def with_worst(runs: tuple[str, ...]) -> dict[str, Any]:
    compare = pages.compare(runs)
    for label in compare["labels"].values():
        for attribute in label["attributes"].values():
            for i, gaps in enumerate(attribute["gaps"].values()):
                gaps["auc"]["worst"] = {"group": "f", **pages.estimate(0.7 + 0.01 * i)}
    return compare


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_no_run_beats(values: list[tuple[int, int]]) -> None:
    free = tradeoff.front(runs_of([(x / 10, y / 10) for x, y in values]))
    assert any(free)
    for i, (x, y) in enumerate(values):
        beaten = any((a <= x and b > y) or (a < x and b >= y) for a, b in values)
        assert free[i] == (not beaten)


def test_numbers_of_equal_runs_do_not_cover_each_other() -> None:
    places = tradeoff.apart([(50.0, 50.0)] * 12, (0, 0, 200, 200))
    far = [((x - a) ** 2 + (y - b) ** 2) ** 0.5 for i, (x, y) in enumerate(places) for a, b in places[:i]]
    assert min(far) > 9
    assert all(0 <= v <= 200 for place in places for v in place)


@pytest.mark.parametrize("n", [2, 12])
def test_two_to_twelve_runs_are_drawn(n: int, tmp_path: Path) -> None:
    svg = tradeoff.tradeoff(runs_of([(0.1 + 0.01 * i, 0.8) for i in range(n)]), key="k", summary="Runs. Many.", x_axis="x", y_axis="y")
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter(f"{SPACE}text")]
    assert texts.count(str(n)) >= 2
    assert f"run {n - 1}" in texts
    text = write_compare_report(with_worst(tuple(f"run{i}" for i in range(n))), tmp_path / "c.html").read_text(encoding="utf-8")
    assert text.count("Who gained, who lost: AUC by sex") >= 1
    assert "AUC of the worst group against the AUC gap by sex" in text
    assert "● yes" in text


def test_changes_have_a_panel_a_group_with_marks_for_gained_and_lost() -> None:
    up, down = pages.estimate(0.09), pages.estimate(-0.09)
    attribute = {"changes": {"dro": {"f": {"auc": up, "fpr": up}, "m": {"auc": down, "fpr": down}}}}
    table = changes.matrix("sex", attribute, "auc")
    assert table is not None
    assert table.columns == ("run", "f", "m")
    assert [cell.text[0] for cell in table.rows[0].cells] == ["▲", "▼"]
    fpr = changes.matrix("sex", attribute, "fpr")
    assert fpr is not None
    assert [cell.text[0] for cell in fpr.rows[0].cells] == ["▼", "▲"]
    (picture,) = changes.change_pictures("k", "sex", attribute, "auc", "erm", "95%")
    assert [element.text for element in ET.fromstring(picture.svg).iter(f"{SPACE}text")].count("dro") == 1
    assert "right of the dashed line is better" in picture.caption


def test_many_groups_make_several_pictures() -> None:
    attribute = {"changes": {"dro": {f"g{i}": {"auc": pages.estimate(0.01 * i)} for i in range(9)}}}
    assert len(changes.change_pictures("k", "site", attribute, "auc", "erm", "95%")) == 3
