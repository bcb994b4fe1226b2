"""Two attributes crossed: heat maps of each cell, and the ranked list of intersections that differ from everyone else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report import figures, tables, words
from evenhand.report.drivers import driver_parts
from evenhand.report.page import Part, Picture, Section, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
MAPS = ("auc", "tpr", "fpr", "mean", "median")
LOWER_IS_DARKER = frozenset({"auc", "tpr", "tnr", "ppv", "npv", "accuracy", "balanced_accuracy", "mean", "median"})
MOST_RANKED = 12
STEPS = ("best of this map", "", "", "", "", "worst of this map")
NARROW = 0.05
"""A map whose cells lie closer together than this is shaded as if they were this far apart, so that noise is not painted dark."""


def intersection_section(key: str, label: str, block: Json, sure: str, level: float) -> Section | None:
    """Heat maps for attributes of depth 2 and the ranked table; None where there are neither."""
    parts = [part for name, a in block["attributes"].items() for part in heat_parts(name, a, block)]
    ranked = ranked_parts(key, label, block.get("intersections") or [], sure, level)
    hangs = driver_parts(block)
    if not parts and not ranked and not hangs:
        return None
    joint = any("*" in str(name) for name in (*block["attributes"], *(item["attribute"] for item in block.get("intersections") or [])))
    title = "Where groups cross" if joint else "Groups against everyone else"
    return Section(f"{key}-crossed", title, (*parts, *ranked, *hangs))


def heat_parts(name: str, attribute: Json, block: Json) -> list[Part]:
    """Heat maps of AUC, TPR and FPR over the cells of two crossed attributes, each with its number of images."""
    groups = tables.known_groups(attribute)
    pairs = {key: tuple(key.split("*")) for key in groups if key.count("*") == 1}
    if name.count("*") != 1 or len(pairs) < 4 or len(pairs) < len(groups):
        return []
    first, second = name.split("*")
    rows, columns = (list(dict.fromkeys(pair[side] for pair in pairs.values())) for side in (0, 1))
    turned = len(columns) > len(rows) and len(columns) > 8
    if turned:
        first, second, rows, columns = second, first, columns, rows
    found = [m for m in MAPS if any(words.estimable(g.get(m)) for g in groups.values())]
    parts = []
    for metric in found:
        at = {pair[::-1] if turned else pair: groups[key] for key, pair in pairs.items()}
        lower_is_darker = metric in LOWER_IS_DARKER and not block.get("lower_is_better")
        table = heat_map(metric, (first, second), rows, columns, at, block["attributes"], lower_is_darker)
        caption = f"{words.measure(metric).title} by {first} (rows) and {second} (columns), with the images of each cell"
        parts.append(Part(table=table, caption=caption, classes="heat cross"))
    if not parts:
        return []
    title = words.group_label(name, name)
    text = "Darker is worse. A cell is shaded by where it lies between the best and the worst cell of its map; n/e: not estimable."
    return [Part(f"{title}, cell by cell", text, shades=STEPS, classes="side", parts=tuple(parts))]


def heat_map(
    metric: str,
    names: tuple[str, str],
    rows: Sequence[str],
    columns: Sequence[str],
    at: Mapping[Any, Json],
    attributes: Json,
    lower_is_darker: bool,
) -> Table:
    """One metric over crossed groups; where the attributes were audited by themselves too, their groups are the margins."""
    values = [g[metric]["value"] for g in at.values() if words.estimable(g.get(metric))]
    low, high = min(values), max(values)
    wide = max(high - low, NARROW)

    def cell(group: Json | None, shaded: bool) -> Cell:
        if group is None:
            return Cell("–", "no images", "empty")
        size = f"n = {words.count(group.get('n'))}"
        estimate = group.get(metric)
        if not words.estimable(estimate) or estimate is None:
            return Cell("n/e", size, "none")
        value = estimate["value"]
        share = (high - value) / wide if lower_is_darker else (value - low) / wide
        return Cell(words.number(value, 2), size, "ok", min(5, int(5.999 * max(0.0, share))) if shaded else None)

    margins = [attributes.get(name, {}).get("groups", {}) for name in names]
    both = all(margins)
    body = []
    for row in rows:
        cells = [cell(at.get((row, column)), True) for column in columns]
        body.append(Row(row, tuple([*cells, cell(margins[0].get(row), False)] if both else cells)))
    if both:
        body.append(Row("all", (*(cell(margins[1].get(column), False) for column in columns), Cell("", "", "empty")), "overall"))
    return Table((names[0], *columns, *(["all"] if both else [])), tuple(body))


def ranked_parts(key: str, label: str, ranked: Sequence[Json], sure: str, level: float) -> list[Part]:
    """The intersections in the order of the audit: a picture of the first and a table of all."""
    if not ranked:
        return []
    ranked = without_mirrors(ranked)
    clear, known = (sum(test) for test in ([_clear(i, level) for i in ranked], [i.get("effect") is not None for i in ranked]))
    if not known:
        return [Part("Which groups and intersections stand out", f"None of {len(ranked)} comparisons can be estimated: too few patients.")]
    said = f"{clear} of {words.plural(known, 'comparison')} " + ("has" if clear == 1 else "have")
    text = (
        "Each group and intersection against everyone who is not in it: the difference, its interval, and its p-value corrected for all "
        "comparisons of this list (the intervals are not). Of an attribute with two groups one is listed, the other is its mirror image. "
        f"{said} an adjusted p below {level:g}."
    )
    table = Table(
        ("group", "measure", "here", "everyone else", "difference", "adjusted p", "images", "patients"),
        tuple(_ranked_row(item) for item in ranked),
    )
    long = len(ranked) > MOST_RANKED
    caption = "Groups and intersections, ranked by the strength of the evidence"
    shown = _ranked_picture(key, label, ranked[:MOST_RANKED], sure, level)
    part = Part(table=table, caption=caption, fold=f"All {len(ranked)} comparisons" if long else "")
    return [Part("Which groups and intersections stand out", text, figures=(shown,) if shown else ()), part]


def without_mirrors(ranked: Sequence[Json]) -> list[Json]:
    """The list with one row for each attribute of two groups and measure: the second is the first with its sign turned, one test."""
    groups: dict[Any, dict[Any, None]] = {}
    for item in ranked:
        groups.setdefault(item["attribute"], {})[item["group"]] = None
    seen, kept = set(), []
    for item in ranked:
        where, two = (item["attribute"], item["metric"]), len(groups[item["attribute"]]) == 2
        if not (two and where in seen):
            kept.append(item)
        seen.add(where)
    return kept


def _ranked_row(item: Json) -> Row:
    metric = words.measure(str(item["metric"])).title.split(" (")[0]
    effect = {"value": item.get("effect"), "lower": item.get("lower"), "upper": item.get("upper"), "reason": item.get("reason")}
    cells = (
        Cell(metric, "", "text"),
        Cell(words.number(item.get("value")) or "–"),
        Cell(words.number(item.get("rest")) or "–"),
        tables.estimate_cell(effect),
        Cell(words.p_value(item.get("p_adjusted")) or "–", "", "count"),
        tables.count_cell(item.get("n")),
        tables.count_cell(item.get("n_patients")),
    )
    return Row(_name(item), cells)


def _clear(item: Json, level: float) -> bool:
    p = item.get("p_adjusted")
    return p is not None and float(p) < level


def _name(item: Json) -> str:
    """The group, after its attribute where it is not a crossed one."""
    attribute, group = str(item["attribute"]), str(item["group"])
    return words.group_label(attribute, group) if "*" in attribute else f"{attribute}: {group}"


def _ranked_picture(key: str, label: str, ranked: Sequence[Json], sure: str, level: float) -> Picture | None:
    points = []
    for item in ranked:
        p = item.get("p_adjusted")
        title = f"{_name(item)}: {words.measure(str(item['metric'])).title.split(' (')[0]}"
        sign = f", p {words.p_value(p)}" if p is not None else ""
        points.append(figures.Point(title + sign, item.get("effect"), item.get("lower"), item.get("upper"), emphasis=_clear(item, level)))
    if not any(point.value is not None for point in points):
        return None
    said = "; ".join(f"{p.label}: {words.number(p.value) or 'not estimable'}" for p in points)
    axis = "difference from everyone else"
    svg = figures.forest(points, key=f"{key}-ranked", summary=f"Intersections of {label}. {said}.", axis=axis)
    caption = f"The first {len(points)}; lines are {sure} intervals; p is the adjusted one; filled where it is below {level:g}."
    return picture("Groups and intersections against everyone else", svg, caption)
