"""The Pareto picture of a comparison: performance against gap, with the runs that no other run beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenhand.report import tables, words
from evenhand.report.drawing import INK, MUTED, RULE, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, Point, limits_of, short
from evenhand.report.page import Part, Picture, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
PAIRS = (("auc", "equalized_odds"), ("worst", "auc"))
"""(performance, gap) of the two pictures; 'worst' is the AUC of the worst group."""
LEGEND_ROW = 15
MOST_COLOURED = 4
"""With more runs the intervals of dominated ones are grey."""
APART = 13.0
"""Points between the numbers of neighbouring runs."""


@dataclass(frozen=True)
class Position:
    """One run: its gap (x), its performance (y), and both in every seed."""

    label: str
    x: Point
    y: Point
    seeds: tuple[tuple[float, float], ...] = ()


def front(positions: Sequence[Position]) -> tuple[bool, ...]:
    """Which runs are not dominated: no other run has at least the performance and at most the gap, and one of them better.

    Example:
        >>> runs = [Position(n, Point(n, x), Point(n, y)) for n, x, y in (("a", 0.1, 0.8), ("b", 0.2, 0.9), ("c", 0.2, 0.8))]
        >>> front(runs)
        (True, True, False)
    """
    places = [(p.x.value or 0.0, p.y.value or 0.0) for p in positions]
    return tuple(not any(a <= x and b >= y and (a < x or b > y) for a, b in places) for x, y in places)


def tradeoff_part(key: str, name: str, attribute: Json, block: Json, runs: Sequence[str], sure: str) -> Part | None:
    """The two pictures of one attribute and their table."""
    shown = [found for pair in PAIRS if (found := _picture(key, name, attribute, block, runs, pair, sure)) is not None]
    if not shown:
        return None
    title = words.group_label(name, name)
    table, caption = _table(name, attribute, block, runs), f"Performance against gap by {title}; ● no other run is better in both"
    return Part(figures=tuple(shown), table=table, caption=caption)


def positions_of(attribute: Json, block: Json, runs: Sequence[str], pair: tuple[str, str]) -> list[Position]:
    """The runs that can be placed: both numbers are estimable."""
    found = []
    for run in runs:
        gaps = attribute["gaps"].get(run, {})
        gap, auc = gaps.get(pair[1]), block["overall"].get(run, {}).get("auc")
        high = (gaps.get("auc") or {}).get("worst") if pair[0] == "worst" else auc
        if gap is None or not words.estimable(gap) or not words.estimable(high):
            continue
        each = tuple(zip(gap.get("seeds") or (), (high or {}).get("seeds") or (), strict=False))
        found.append(Position(run, _point(run, gap), _point(run, high or {}), tuple((x, y) for x, y in each if None not in (x, y))))
    return found


def _point(label: str, estimate: Json) -> Point:
    return Point(label, estimate.get("value"), estimate.get("lower"), estimate.get("upper"))


def _picture(
    key: str, name: str, attribute: Json, block: Json, runs: Sequence[str], pair: tuple[str, str], sure: str
) -> Picture | None:
    places = positions_of(attribute, block, runs, pair)
    if len(places) < 2:
        return None
    title, gap = words.group_label(name, name), words.gap_title(pair[1])
    high = "overall AUC" if pair[0] == "auc" else "AUC of the worst group"
    best = [p.label for p, free in zip(places, front(places), strict=True) if free]
    said = "; ".join(f"{p.label}: {high} {words.number(p.y.value)}, gap {words.number(p.x.value)}" for p in places)
    text = f"{high[0].upper()}{high[1:]} against {gap} by {title}. {said}. Not dominated: {words.listing(best, 12)}."
    svg = tradeoff(places, key=f"{key}-{pair[0]}", summary=text, x_axis=f"{gap} by {title}", y_axis=high)
    caption = (
        f"Up is better, left is a smaller gap; lines are {sure} intervals. Filled and joined: no other run is better in both "
        f"({words.listing(best, 6)}); intervals overlap, so this order is not certain."
    )
    if pair[0] == "auc":
        caption += " A run far left but low has a small gap because it is poor for everyone."
    if any(len(p.seeds) > 1 for p in places):
        caption += " Small dots: single seeds."
    return picture(f"{high[0].upper()}{high[1:]} against the {gap} by {title}", svg, caption)


def _table(name: str, attribute: Json, block: Json, runs: Sequence[str]) -> Table:
    free = {pair: dict(zip([p.label for p in places], front(places), strict=True)) for pair in PAIRS
            for places in [positions_of(attribute, block, runs, pair)]}
    rows = []
    for run in runs:
        gaps = attribute["gaps"].get(run, {})
        worst = (gaps.get("auc") or {}).get("worst")
        who = words.group_label(name, str(worst["group"])) if worst else ""
        cells = (
            tables.estimate_cell(block["overall"].get(run, {}).get("auc")),
            tables.estimate_cell(gaps.get("equalized_odds")),
            _mark(free[PAIRS[0]].get(run)),
            Cell(tables.estimate_cell(worst).text, who, "ok" if words.estimable(worst) else "none"),
            tables.estimate_cell(gaps.get("auc")),
            _mark(free[PAIRS[1]].get(run)),
        )
        rows.append(Row(run, cells, "run"))
    columns = ("run", "overall AUC", "equalized odds", "not dominated", "AUC of the worst group", "AUC gap", "not dominated ")
    return Table(columns, tuple(rows))


def _mark(free: bool | None) -> Cell:
    return Cell("–", "", "empty") if free is None else Cell("● yes" if free else "○ no", "", "count")


def tradeoff(positions: Sequence[Position], *, key: str, summary: str, x_axis: str, y_axis: str) -> str:
    """Runs as numbered marks with intervals in both directions; better is up and to the left."""
    sheet = Drawing(4.5, 3.95 + LEGEND_ROW / 72 * len(positions))
    limits = [limits_of([getattr(p, side) for p in positions], None) for side in ("x", "y")]
    axes = Axes(sheet, 0.62, 0.28, 3.6, 2.9, *limits)
    axes.x_axis(ticks(*axes.x), x_axis, grid=True)
    axes.y_axis(ticks(*axes.y), y_axis, grid=True)
    free = front(positions)
    _front_line(axes, positions, free)
    for i, p in enumerate(positions):
        _spread(axes, p, COLOURS[i % len(COLOURS)], COLOURS[i % len(COLOURS)] if free[i] or len(positions) <= MOST_COLOURED else RULE)
    places = [axes.at(p.x.value or 0.0, p.y.value or 0.0) for p in positions]
    numbers = apart([(x + 9, y - 9) for x, y in places], (72 * axes.left + 6, 26.0, 72 * (axes.left + axes.width) - 6, 72 * 3.18 - 8))
    for i, (place, spot) in enumerate(zip(places, numbers, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        sheet.line([place, (spot[0], spot[1] - 3)], MUTED, 0.6)
        sheet.mark(place, "o", 7, colour if free[i] else "white", colour)
        sheet.mark((spot[0], spot[1] - 3), "o", 11, "white", "white")
        sheet.text(spot, str(i + 1), size=9, anchor="middle")
    for i, p in enumerate(positions):
        colour, y = COLOURS[i % len(COLOURS)], 72 * 3.82 + LEGEND_ROW * i
        sheet.text((52, y + 3), str(i + 1), size=9, anchor="end")
        sheet.mark((62, y), "o", 7, colour if free[i] else "white", colour)
        sheet.text((72, y + 3), short(p.label, 48))
    sheet.text((72 * axes.left, 14), "↖ higher performance, smaller gap", size=8.5, colour=MUTED)
    return sheet.svg(summary, key)


def _front_line(axes: Axes, positions: Sequence[Position], free: Sequence[bool]) -> None:
    """The steps between the runs that are not dominated."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted((p.x.value or 0.0, p.y.value or 0.0) for p, f in zip(positions, free, strict=True) if f):
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    axes.line([x for x, _ in corners], [y for _, y in corners], INK, 0.9, "3 2")


def _spread(axes: Axes, p: Position, colour: str, line: str) -> None:
    """Intervals in both directions and, as dots, the seeds."""
    x, y = p.x.value or 0.0, p.y.value or 0.0
    if p.x.lower is not None and p.x.upper is not None:
        axes.line((p.x.lower, p.x.upper), (y, y), line, 0.8)
    if p.y.lower is not None and p.y.upper is not None:
        axes.line((x, x), (p.y.lower, p.y.upper), line, 0.8)
    if len(p.seeds) > 1:
        for sx, sy in p.seeds:
            if axes.x[0] <= sx <= axes.x[1] and axes.y[0] <= sy <= axes.y[1]:
                axes.mark(sx, sy, "o", 2, colour)


def apart(spots: Sequence[tuple[float, float]], box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Places of labels, pushed apart until none covers another, within a box (left, top, right, bottom).

    Example:
        >>> apart([(10.0, 10.0), (50.0, 50.0)], (0, 0, 100, 100))
        [(10.0, 10.0), (50.0, 50.0)]
    """
    found = [list(spot) for spot in spots]
    for _ in range(120):
        moved = False
        for i in range(len(found)):
            for j in range(i):
                dx, dy = found[i][0] - found[j][0], found[i][1] - found[j][1]
                far = (dx * dx + dy * dy) ** 0.5
                if far < APART:
                    moved = True
                    ux, uy = (dx / far, dy / far) if far > 1e-6 else (0.0, 1.0)
                    push = (APART - far) / 2 + 0.1
                    found[i] = [found[i][0] + push * ux, found[i][1] + push * uy]
                    found[j] = [found[j][0] - push * ux, found[j][1] - push * uy]
        found = [[min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])] for x, y in found]
        if not moved:
            break
    return [(x, y) for x, y in found]
