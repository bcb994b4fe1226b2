"""Pictures of a data card: prevalence by group and split, grey levels by group, and ages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evenhand.evaluation.data_counts import OVERALL
from evenhand.report import words
from evenhand.report.card_tables import STATISTICS, group_name, ordered, prevalence_table, statistics_table
from evenhand.report.drawing import MUTED, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, Panel, Point, group_panels
from evenhand.report.page import Picture, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]


def _point(label: str, found: Json | None) -> Point:
    if not found or found.get("value") is None:
        return Point(label, None)
    return Point(label, found["value"], found.get("lower"), found.get("upper"))


def prevalence_picture(label: str, attribute: str, groups: Json, key: str) -> Picture:
    """Share of images with a label, one row a group, one panel a split; the dashed rule is everyone."""
    splits = [name for name in next(iter(groups.values())) if name != "all"]
    keys = [name for name in ordered(groups) if name != OVERALL]
    values = [
        found[name]
        for own in groups.values()
        for split, found in own.items()
        if split in splits
        for name in ("value", "upper")
        if found.get(name) is not None
    ]
    high = min(1.0, 1.12 * max([*values, 0.02]))
    panels = [
        Panel(
            split,
            tuple(_point(group_name(attribute, name), groups[name].get(split)) for name in keys),
            _value(groups[OVERALL], split),
            False,
        )
        for split in splits
    ]
    summary = f"Share of images with {label} by {attribute}. " + "; ".join(
        f"{split}: "
        + ", ".join(f"{group_name(attribute, name)} {words.number(groups[name][split].get('value'), 2) or 'not shown'}" for name in keys)
        for split in splits
    )
    svg = group_panels(panels, key=key, summary=summary, limits=(-0.02 * high, high))
    caption = f"Share of images, by {words.group_label(attribute, attribute)} and split, with 95% intervals; the dashed rule is everyone."
    return picture(label, svg, caption, prevalence_table(attribute, groups))


def statistics_picture(attribute: str, groups: Json, everyone: Json, key: str) -> Picture:
    """Mean grey level, contrast and sharpness, one row a group."""
    panels = [
        Panel(
            name,
            tuple(_point(group_name(attribute, group), block.get(name)) for group, block in groups.items()),
            _value(everyone, name),
            share=False,
        )
        for name in STATISTICS
    ]
    summary = f"Grey level, contrast and sharpness by {attribute}. " + "; ".join(
        f"{group_name(attribute, group)}: "
        + ", ".join(f"{name} {words.number(_value(block, name), 1) or 'not shown'}" for name in STATISTICS)
        for group, block in groups.items()
    )
    svg = group_panels(panels, key=key, summary=summary)
    caption = "Means over images with 95% intervals that count patients, in grey levels of 255; the dashed rule is everyone."
    return picture("Grey level, contrast and sharpness", svg, caption, statistics_table(attribute, groups, everyone))


def _value(block: Json, name: str) -> float | None:
    found = block.get(name)
    return found["value"] if found else None


def age_picture(name: str, found: Json, key: str) -> Picture:
    """Patients by age, in bins of five years, wider where there are few; heights are patients for every five years."""
    edges, counts = found["edges"], found["patients"]
    heights = [5 * count / (edges[k + 1] - edges[k]) for k, count in enumerate(counts)]
    top = 1.08 * max([*heights, 1])
    sheet = Drawing(5.4, 2.5)
    axes = Axes(sheet, 0.65, 0.15, 4.6, 1.75, (edges[0], edges[-1]), (0.0, top))
    axes.y_axis(ticks(0, top, 5), "patients per 5 years", grid=True)
    axes.x_axis(ticks(edges[0], edges[-1], 9), name)
    for k, height in enumerate(heights):
        corners = [axes.at(x, y) for x, y in ((edges[k], 0), (edges[k], height), (edges[k + 1], height), (edges[k + 1], 0))]
        if height:
            sheet.area(corners, COLOURS[0], MUTED)
    low, middle, high = (f"{round(value, 1):g}" for value in found["quartiles"])
    missing = found["n_missing"]
    said = f"{words.plural(found['n_patients'], 'patient')}, median {middle}, middle half {low} to {high}"
    said += f"; not recorded for {missing} patients" if missing else ""
    wide = " A bar's area is its patients; bins of few patients were joined." if len(set(np.diff(edges))) > 1 else ""
    rows = [Row(f"{edges[k]:g} to {edges[k + 1]:g}", (Cell(words.count(count)),)) for k, count in enumerate(counts)]
    title = f"Patients by {name}"
    return picture(title, sheet.svg(f"{title}: {said}.", key, title), f"{said}.{wide}", Table((name, "patients"), tuple(rows)))
