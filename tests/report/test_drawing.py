"""The sheet and its axes: data land where they should, words are escaped, ticks are round and inside."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.report.drawing import SHAPES, Axes, Drawing, ticks


@given(st.floats(-10, 10), st.floats(0.01, 30))
@settings(max_examples=100, deadline=None)
def test_ticks_are_few_round_inside_and_apart(low: float, span: float) -> None:
    found = ticks(low, low + span)
    values = [value for value, _ in found]
    assert 1 <= len(found) <= 7
    assert low - 1e-6 <= min(values) <= max(values) <= low + span + 1e-6
    assert len({words for _, words in found}) == len(found)
    assert all(float(words.replace("−", "-")) == pytest.approx(value, abs=1e-9) for value, words in found)


def test_corners_of_the_data_are_corners_of_the_rectangle() -> None:
    axes = Axes(Drawing(4, 3), left=1, top=0.5, width=2, height=2, x=(-1, 1), y=(0, 10))
    assert axes.at(-1, 0) == (72, 72 * 2.5)
    assert axes.at(1, 10) == (72 * 3, 36)


def test_every_mark_has_its_own_shape_and_words_are_escaped() -> None:
    sheet = Drawing(2, 1)
    for shape in SHAPES:
        sheet.mark((10, 10), shape, 6, "white", "black")
    assert len(set(sheet.parts)) == len(SHAPES)
    sheet.text((0, 0), '<b> & "c"')
    svg = sheet.svg('a "summary" <x>. 1 < 2', "fig")
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("aria-labelledby") == "fig-t fig-d"
    assert [root.find(f"{space}{tag}").text for tag in ("title", "desc")] == ['a "summary" <x>', 'a "summary" <x>. 1 < 2']  # type: ignore[union-attr]
    assert root[-1].text == '<b> & "c"'


@given(st.lists(st.tuples(st.floats(0, 700), st.floats(-20, 700)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_steps_of_a_path_lead_to_its_corners(places: list[tuple[float, float]]) -> None:
    sheet = Drawing(9, 9)
    sheet.line(places, "black")
    (path,) = re.findall(r' d="([^"]*)"', sheet.parts[0])
    x = y = 0.0
    reached = []
    for kind, rest in re.findall(r"([Mlhv])([^Mlhv]*)", path):
        numbers = [float(text) for text in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", rest)]
        for step in zip(numbers[::2], numbers[1::2], strict=True) if kind in "Ml" else [(n, 0) if kind == "h" else (0, n) for n in numbers]:
            x, y = x + step[0], y + step[1]
            reached.append((x, y))
    assert reached[-1] == pytest.approx(places[-1], abs=0.051)
    assert min(a for a, _ in reached) == pytest.approx(min(a for a, _ in places), abs=0.051)
    assert max(b for _, b in reached) == pytest.approx(max(b for _, b in places), abs=0.051)
