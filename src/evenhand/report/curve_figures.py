"""Curves as inline SVG: ROC and precision-recall curves, reliability diagrams and decision curves, each group with its band.

A group has the same colour, line style and mark in every picture of its attribute, so that no picture needs colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenhand.metrics.curves import GroupCurves, Line, decimate
from evenhand.report.drawing import INK, MUTED, RULE, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, FIFTHS, GREY, LINES, MARKERS, legend_entry, short

MOST_BANDS = 4
MOST_PANELS = 8
LEGEND_ROW = 15
MOST_BAND = 34
"""Places at which the band of a decision curve is drawn."""


@dataclass(frozen=True)
class Shown:
    """One group in a picture.

    Attributes:
        label: its name in the legend.
        curves: its curves.
        style: which colour, line style and mark; None: a thin grey line without a name.
        point: (x, y) where the model is used, marked on the curve.
    """

    label: str
    curves: GroupCurves
    style: int | None
    point: tuple[float, float] | None = None


def roc(groups: Sequence[Shown], *, key: str, summary: str, note: str = "") -> str:
    """ROC curves; a mark is the threshold in use."""
    axes, sheet = _square(groups, "false alarms among negative cases (FPR)", "found among positive cases (TPR)", note)
    axes.line((0, 1), (0, 1), RULE)
    _overlay(axes, groups, [group.curves.roc for group in groups])
    for group in groups:
        if group.style is not None and group.point is not None:
            axes.mark(*group.point, MARKERS[group.style], 8.5, COLOURS[group.style], edge="white")
    _legend(sheet, groups, note)
    return sheet.svg(summary, key)


def precision_recall(groups: Sequence[Shown], *, key: str, summary: str, note: str = "") -> str:
    """Precision-recall curves; a short line at the right edge is the group's prevalence, which is a coin's precision."""
    axes, sheet = _square(groups, "found among positive cases (recall, TPR)", "positive among those called so (PPV)", note)
    for group in groups:
        if group.style is not None:
            share = group.curves.n_positive / group.curves.n
            axes.line((0.93, 1), (share, share), COLOURS[group.style], 1.1)
            axes.mark(1.0, share, MARKERS[group.style], 5, COLOURS[group.style])
    _overlay(axes, groups, [group.curves.precision_recall for group in groups])
    _legend(sheet, groups, note)
    return sheet.svg(summary, key)


def reliability(groups: Sequence[Shown], *, key: str, summary: str, note: str = "") -> str:
    """Share of positive cases against mean score in bins of equal size, with Wilson bars; on the diagonal scores are right."""
    named = [group for group in groups if group.style is not None]
    highest = max((float(v) for g in named for v in (*g.curves.reliability.score, *g.curves.reliability.upper)), default=1.0)
    top = next((edge for edge in (0.2, 0.4, 0.6) if highest < edge), 1.0)
    axes, sheet = _square(groups, "mean score in the bin", "share truly positive in the bin", note, top)
    axes.line((0, top), (0, top), INK, 0.8, "4 2")
    step = top * 0.008
    for i, group in enumerate(named):
        bins, style = group.curves.reliability, group.style or 0
        shift = step * (i - (len(named) - 1) / 2)
        if len(named) <= MOST_BANDS:
            bars = zip(bins.score + shift, bins.lower, bins.upper, strict=True)
            sheet.lines(([axes.at(float(x), float(low)), axes.at(float(x), float(high))] for x, low, high in bars), COLOURS[style], 0.9)
        axes.line(bins.score + shift, bins.observed, COLOURS[style], 1.2, LINES[style])
        places = [axes.at(float(x), float(y)) for x, y in zip(bins.score + shift, bins.observed, strict=True)]
        sheet.marks(places, MARKERS[style], 5.5, COLOURS[style], "white")
    _legend(sheet, groups, note)
    return sheet.svg(summary, key)


def decision(groups: Sequence[Shown], *, key: str, summary: str, top: float, threshold: float | None = None) -> str:
    """Decision curves, a panel a group: net benefit of the score with its band, of treating all, and 0 for treating none."""
    named = [group for group in groups if group.style is not None][:MOST_PANELS]
    across = min(len(named), 4)
    down = -(-len(named) // across)
    width, height, left, head = 2.05, 1.5, 0.62, 0.3
    sheet = Drawing(left + across * (width + 0.22), down * (height + head + 0.42) + 0.5)
    high = max((float(g.curves.decision.y[g.curves.decision.x <= top].max(initial=0)) for g in named), default=0.1)
    high = max(high, max(g.curves.n_positive / g.curves.n for g in named), 0.01) * 1.08
    scale = (-0.22 * high, high)
    for i, group in enumerate(named):
        row, column = divmod(i, across)
        axes = Axes(sheet, left + column * (width + 0.22), head + row * (height + head + 0.42), width, height, (0.0, top), scale)
        axes.x_axis(ticks(0, top, 5), "threshold probability" if i >= len(named) - across else "", grid=True)
        axes.y_axis(ticks(*scale, 5), "net benefit" if column == 0 else "", grid=True, words=column == 0)
        _decision_panel(axes, group, top, scale, threshold)
        sheet.text((72 * axes.left, 72 * axes.top - 6), short(group.label, 30), size=9.5)
    foot = 72 * sheet.height - 8
    legend_entry(sheet, (8, foot - 3), "model", INK)
    legend_entry(sheet, (96, foot - 3), "treat everybody", MUTED, "5 2")
    sheet.line([(214, foot - 3), (242, foot - 3)], MUTED, 0.8)
    sheet.text((250, foot), "nobody")
    return sheet.svg(summary, key)


def _decision_panel(axes: Axes, group: Shown, top: float, scale: tuple[float, float], threshold: float | None) -> None:
    style, line = group.style or 0, group.curves.decision
    use = line.x <= top + 1e-9
    low = scale[0]
    if len(line.grid):
        thin = slice(None, None, -(-int(use.sum()) // MOST_BAND))
        axes.band(line.grid[use][thin], line.lower[use].clip(*scale)[thin], line.upper[use].clip(*scale)[thin], COLOURS[style], 0.2)
    axes.line((0, top), (0, 0), MUTED, 0.8)
    everybody = group.curves.treat_all[use]
    inside = everybody >= low
    axes.line(*decimate(line.x[use][inside], everybody[inside].clip(*scale), 20), MUTED, 1.1, "5 2")
    axes.line(*decimate(line.x[use], line.y[use].clip(*scale), 50), COLOURS[style], 1.6)
    if threshold is not None and 0 < threshold < top:
        axes.rule(threshold, 0.8)


def _square(groups: Sequence[Shown], x: str, y: str, note: str, top: float = 1.0) -> tuple[Axes, Drawing]:
    rows = sum(group.style is not None for group in groups) + bool(note)
    sheet = Drawing(4.5, 4.32 + LEGEND_ROW / 72 * rows)
    axes = Axes(sheet, 0.58, 0.1, 3.64, 3.64, (0.0, top), (0.0, 1.005 * top))
    marks = FIFTHS if top == 1.0 else ticks(0, top, 6)
    axes.x_axis(marks, x, grid=True)
    axes.y_axis(marks, y, grid=True)
    return axes, sheet


def _overlay(axes: Axes, groups: Sequence[Shown], lines: Sequence[Line]) -> None:
    """Grey lines below, then bands where there are few, then the named curves."""
    named = [(g.style, line) for g, line in zip(groups, lines, strict=True) if g.style is not None]
    for group, line in zip(groups, lines, strict=True):
        if group.style is None:
            axes.line(*decimate(line.x, line.y, 40), GREY, 0.6)
    if len(named) <= MOST_BANDS:
        for style, line in named:
            if len(line.grid):
                axes.band(line.grid, line.lower, line.upper, COLOURS[style])
    for style, line in named:
        axes.line(*decimate(line.x, line.y), COLOURS[style], 1.6, LINES[style])


def _legend(sheet: Drawing, groups: Sequence[Shown], note: str) -> None:
    place = 72 * 4.36
    for group in groups:
        if group.style is not None:
            legend_entry(sheet, (42, place), group.label, COLOURS[group.style], LINES[group.style], MARKERS[group.style])
            place += LEGEND_ROW
    if note:
        legend_entry(sheet, (42, place), note, GREY)
