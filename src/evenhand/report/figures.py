"""Pictures as inline SVG: intervals in rows, score distributions, and AUC against gap; curves are in curve_figures.py.

Every picture is the same bytes for the same input, and names its groups by shape of mark and style of line as well as
by a colour that colour-blind readers can tell apart (Okabe and Ito).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenhand.report.drawing import INK, MUTED, PALE, Axes, Drawing, ticks

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A6A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("", "8 3", "1.6 2", "10 2.4 1.6 2.4", "5 1.6", "10 1.6 1.6 1.6 1.6 1.6", "3.2 3.2", "13 3.2")
GREY = "#b4bcc4"
QUARTERS = ((0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1"))
FIFTHS = tuple((i / 5, f"{i / 5:.1f}") for i in range(6))
MOST_CURVES = len(COLOURS)
MOST_HISTOGRAMS = 6

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """An estimate with its interval; ``value`` is None where it could not be made, ``marker`` another shape than the picture's."""

    label: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    emphasis: bool = True
    marker: str = ""


@dataclass(frozen=True)
class Panel:
    """One column of `group_panels`: a measure of every group, and of everyone; ``share`` where it runs from 0 to 1."""

    title: str
    points: tuple[Point, ...]
    overall: float | None = None
    share: bool = True


@dataclass(frozen=True)
class Scores:
    """One group's scores, by true label."""

    label: str
    positive: Array
    negative: Array


def forest(
    points: Sequence[Point], *, key: str, summary: str, axis: str, reference: float = 0.0, ends: tuple[str, str] | None = None
) -> str:
    """A forest plot: one row an estimate, its interval a line, the reference a dashed rule.

    Args:
        points: rows, from top to bottom; those with a value of None say "not estimable".
        key: a name that no other figure of the page has.
        summary: the text alternative.
        axis: what is measured, under the axis.
        reference: where "no difference" lies.
        ends: words for what lies left and right of the reference.
    """
    left = label_width([p.label for p in points], most=3.0)
    sheet = Drawing(left + 4.1, 0.29 * len(points) + (0.8 if ends else 0.6))
    axes = Axes(sheet, left, 0.1, 3.85, 0.29 * len(points) + 0.05, limits_of(points, reference))
    _rows(axes, [p.label for p in points])
    axes.x_axis(ticks(*axes.x), axis)
    axes.rule(reference)
    _interval_rows(axes, points, colour=COLOURS[0])
    if ends:
        below = 72 * sheet.height - 4
        sheet.text((72 * left, below), f"← {ends[0]}", size=8, colour=MUTED)
        sheet.text((72 * (left + axes.width), below), f"{ends[1]} →", size=8, colour=MUTED, anchor="end")
    return sheet.svg(summary, key)


def group_panels(panels: Sequence[Panel], *, key: str, summary: str, limits: tuple[float, float] | None = None) -> str:
    """Measures side by side, one row a group, everyone's value as a dashed rule.

    With ``limits`` all panels have these and one colour; else each has a colour and a mark of its own.
    """
    labels = [p.label for p in panels[0].points]
    left, width, space = label_width(labels), 2.35, 0.3
    sheet = Drawing(left + len(panels) * (width + space), 0.27 * len(labels) + 0.62)
    for column, panel in enumerate(panels):
        span = limits or ((-0.02, 1.02) if panel.share else limits_of(panel.points, panel.overall))
        axes = Axes(sheet, left + column * (width + space), 0.3, width, 0.27 * len(labels) + 0.05, span)
        _rows(axes, labels if column == 0 else [""] * len(labels))
        axes.x_axis(QUARTERS if panel.share else ticks(*span, 5))
        if panel.overall is not None:
            axes.rule(panel.overall)
        style = 0 if limits else column
        _interval_rows(axes, panel.points, colour=COLOURS[style % len(COLOURS)], marker=MARKERS[style % len(MARKERS)])
        sheet.text((72 * axes.left, 14), short(panel.title, 32), size=9.5)
    return sheet.svg(summary, key)


def score_histograms(groups: Sequence[Scores], *, key: str, summary: str, threshold: float | None = None, bins: int = 25) -> str:
    """Mirrored histograms: positive cases above the line, negative cases below, each as a share of its own cases."""
    left, row = label_width([g.label for g in groups]), 0.78
    sheet = Drawing(left + 4.25, row * len(groups) + 0.55)
    hatch = sheet.hatch(f"{key}-hatch", COLOURS[5])
    edges = np.linspace(0.0, 1.0, bins + 1)
    for i, group in enumerate(groups):
        axes = Axes(sheet, left, 0.1 + row * i + 0.06, 4.0, row - 0.06, y=(-1.08, 1.08))
        for scores, sign, fill, colour in ((group.positive, 1, COLOURS[1], COLOURS[1]), (group.negative, -1, hatch, COLOURS[5])):
            share = np.histogram(np.clip(scores, 0, 1), edges)[0] / max(len(scores), 1)
            heights = np.repeat(sign * share / max(float(share.max()), 1e-9), 2)
            outline = [(0.0, 0.0), *zip(np.repeat(edges, 2)[1:-1], heights, strict=True), (1.0, 0.0)]
            if len(scores):
                sheet.area((axes.at(float(x), float(y)) for x, y in outline), fill, colour)
        axes.line((0, 1), (0, 0), INK, 0.7)
        if threshold is not None:
            axes.rule(threshold, 1)
        sheet.text((72 * left - 6, axes.at(0, 0)[1] + 3), short(group.label), anchor="end")
        if i == len(groups) - 1:
            axes.x_axis(FIFTHS, "model's score")
    return sheet.svg(summary, key)


def score_ranges(groups: Sequence[Scores], *, key: str, summary: str, threshold: float | None = None) -> str:
    """Ranges of the scores, for many groups: median as a mark, middle half as a thick line, 5% to 95% as a thin one."""
    left = label_width([g.label for g in groups])
    sheet = Drawing(left + 4.35, 0.33 * len(groups) + 0.6)
    axes = Axes(sheet, left, 0.1, 4.1, 0.33 * len(groups) + 0.05, (-0.01, 1.01))
    _rows(axes, [g.label for g in groups])
    axes.x_axis(FIFTHS, "model's score")
    for i, group in enumerate(groups):
        for scores, shift, colour, marker in ((group.positive, -0.17, COLOURS[1], "s"), (group.negative, 0.17, COLOURS[0], "o")):
            if len(scores) < 5:
                continue
            low, first, middle, third, high = np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95])
            y = -i - shift
            axes.line((low, high), (y, y), colour, 0.8)
            axes.line((first, third), (y, y), colour, 2.6)
            axes.mark(float(middle), y, marker, 4.6, colour, face=colour if marker == "s" else "white")
    if threshold is not None:
        axes.rule(threshold, 1)
    return sheet.svg(summary, key)


def value_ranges(groups: Sequence[tuple[str, Array]], *, key: str, summary: str, axis: str) -> str:
    """Ranges of a continuous value: median as a mark, mean as a ring, middle half as a thick line, 5% to 95% as a thin one."""
    left = label_width([label for label, _ in groups])
    sheet = Drawing(left + 4.35, 0.3 * len(groups) + 0.6)
    shown = [np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]) for _, values in groups]
    limits = limits_of([Point("", float(q[2]), float(q[0]), float(q[4])) for q in shown], None)
    axes = Axes(sheet, left, 0.1, 4.1, 0.3 * len(groups) + 0.05, limits)
    _rows(axes, [label for label, _ in groups])
    axes.x_axis(ticks(*limits), axis)
    for i, ((_, values), (low, first, middle, third, high)) in enumerate(zip(groups, shown, strict=True)):
        axes.line((low, high), (-i, -i), COLOURS[0], 0.9)
        axes.line((first, third), (-i, -i), COLOURS[0], 3.4)
        axes.mark(float(middle), -i, "s", 6, COLOURS[0], edge="white")
        axes.mark(float(np.mean(values)), -i, "o", 4.6, COLOURS[1], face="white")
    return sheet.svg(summary, key)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Rows from top to bottom at y = 0, -1, …: a label and a hairline each."""
    axes.y = (0.5 - len(labels), 0.5)
    for row, label in enumerate(labels):
        axes.line(axes.x, (-row, -row), PALE, 0.8)
        if label:
            x, y = axes.at(axes.x[0], -row)
            axes.drawing.text((x - 6, y + 3), short(label), anchor="end")


def _interval_rows(axes: Axes, points: Sequence[Point], *, colour: str, marker: str = "o") -> None:
    for row, point in enumerate(points):
        if point.value is None:
            x, y = axes.at(axes.x[0], -row)
            axes.drawing.text((x + 5, y + 3), "not estimable", size=8, colour=MUTED, style="italic")
            continue
        if point.lower is not None and point.upper is not None:
            axes.line((point.lower, point.upper), (-row, -row), colour, 1.5)
            for end in (point.lower, point.upper):
                x, y = axes.at(end, -row)
                axes.drawing.line([(x, y - 2.75), (x, y + 2.75)], colour)
        axes.mark(point.value, -row, point.marker or marker, 6.2, colour, face=colour if point.emphasis else "white")


def limits_of(points: Sequence[Point], reference: float | None) -> tuple[float, float]:
    """Data limits that hold all points with their intervals, and the reference where there is one."""
    values = [v for p in points for v in (reference, p.value, p.lower, p.upper) if v is not None] or [0.0, 1.0]
    low, high = min(values), max(values)
    pad = 0.04 * max(high - low, 0.05)
    return low - pad, max(high, low + 0.05) + pad


def legend_entry(sheet: Drawing, place: tuple[float, float], label: str, colour: str, dash: str = "", marker: str = "") -> None:
    """One entry of a legend: a piece of the line with its mark, and the name."""
    x, y = place
    sheet.line([(x, y), (x + 28, y)], colour, 1.6, dash)
    if marker:
        sheet.mark((x + 14, y), marker, 6.2, colour, colour)
    sheet.text((x + 36, y + 3), short(label, 48))


def width_of(svg: str) -> int:
    """The width, in CSS pixels, at which a figure's text has its intended size."""
    found = re.search(r'style="width:(\d+)px"', svg)
    return int(found[1]) if found else 0


def label_width(labels: Sequence[str], most: float = 2.9) -> float:
    """Inches that the longest label needs at 9 points."""
    return float(min(most, 0.25 + 0.078 * max((len(short(label, 44)) for label in labels), default=0)))


def short(label: str, most: int = 38) -> str:
    """A label on one line, cut where it is very long, and shown even when it begins with an underscore."""
    line = " ".join(label.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return "\u200b" + line if line.startswith("_") else line
