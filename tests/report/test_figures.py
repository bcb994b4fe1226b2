"""Figures: small, well-formed, the same bytes twice, and curves that agree with scikit-learn."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from evenhand.report import figures


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_roc_points_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    y, s = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    if len(set(y)) < 2:
        return
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    ours = figures.roc_points(y, s)
    np.testing.assert_allclose(ours[0], fpr)
    np.testing.assert_allclose(ours[1], tpr)


def test_decimation_keeps_ends_and_shape() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 20_000).astype(float)
    fpr, tpr = figures.roc_points(y, rng.normal(size=20_000) + y)
    x, z = figures.decimate(fpr, tpr)
    assert len(x) <= 200
    assert (x[0], z[0], x[-1], z[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(fpr, x, z) - tpr).max() < 0.02


def test_forest_is_small_wellformed_and_repeatable() -> None:
    points = [figures.Point("sex: <AUC> & $x$", 0.1, 0.02, 0.2), figures.Point("tiny", None)]
    svg = figures.forest(points, key="a", summary='gaps "of" <sex>', axis="gap")
    assert svg == figures.forest(points, key="a", summary='gaps "of" <sex>', axis="gap")
    ET.fromstring(svg)
    assert len(svg) < 14_000
    assert "&lt;AUC&gt; &amp; $x$" in svg
    assert "not estimable" in svg
    assert figures.width_of(svg) > 300


@pytest.mark.parametrize("draw", [figures.score_histograms, figures.score_ranges])
def test_score_pictures_bear_an_empty_class(draw: object) -> None:
    groups = [figures.Scores("f", np.linspace(0, 1, 30), np.array([])), figures.Scores("m", np.full(20, 0.5), np.full(20, 1.0))]
    ET.fromstring(draw(groups, key="s", summary="scores", threshold=0.5))  # type: ignore[operator]


def test_groups_differ_by_shape_and_line_not_by_colour_alone() -> None:
    assert len(set(figures.MARKERS)) == len(set(map(str, figures.LINES))) == len(set(figures.COLOURS)) == figures.MOST_CURVES
