"""Sections on the groups themselves: how many there are, how each fares, and how far apart they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report import figures, summary, tables, words
from evenhand.report.page import Part, Picture, Section, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
FOREST = ("auc", "equalized_odds", "equal_opportunity", "fpr", "demographic_parity")
VALUE_GAPS = ("mean", "median")
REPEATS = {"tpr": "equal_opportunity", "fnr": "equal_opportunity", "tnr": "fpr", "positive_rate": "demographic_parity"}
"""A gap of the first kind is the same number as the named one of the second."""
MOST_COLUMNS = 5
PANELS = ("auc", "tpr", "fpr", "mean", "median")
BRIEF = {
    "equalized_odds": "equalized odds",
    "equal_opportunity": "TPR",
    "fpr": "FPR",
    "auc": "AUC",
    "demographic_parity": "positive rate",
}


def sizes_section(audit: Json) -> Section | None:
    """How many images, patients and positive cases every group has; with many labels the positives are in each label."""
    labels = audit["labels"]
    counted = any("n_positive" in block["overall"] for block in labels.values())
    few = len(labels) <= summary.FEW_LABELS and counted
    names = dict.fromkeys(a for block in labels.values() for a in block["attributes"])
    parts = [_sizes(name, audit, few) for name in names]
    hint = "A rate is only as sure as its group is large. Bars: share of the images."
    hint += "" if few or not counted else " Positive cases of each label stand in its own tables."
    return Section("sizes", "How large the groups are", tuple(parts), hint) if parts else None


def _sizes(name: str, audit: Json, positives: bool) -> Part:
    blocks = {label: b["attributes"][name]["groups"] for label, b in audit["labels"].items() if name in b["attributes"]}
    keys = dict.fromkeys(key for groups in blocks.values() for key in groups)
    shown = list(blocks) if positives else []
    titles = ["positive"] if len(shown) == 1 else [f"positive: {label}" for label in shown]
    rows = []
    for key in keys:
        found = [groups[key] for groups in blocks.values() if key in groups]
        images = max(int(g.get("n") or 0) + int(g.get("n_unlabelled") or 0) for g in found)
        share = images / max(int(audit["n"]), 1)
        patients = max(int(g.get("n_patients") or 0) for g in found)
        counts = [Cell(words.count(images), "", "count"), Cell(f"{100 * share:.1f}%", "", "bar", bar=share)]
        counts.append(Cell(words.count(patients), "", "count"))
        counts += [_positives(blocks[label].get(key, {})) for label in shown]
        missing = any(g.get("missing") for g in found)
        title = f"{words.group_label(name, name)} not recorded" if missing else words.group_label(name, key)
        rows.append(Row(title, tuple(counts), "missing" if missing else "group"))
    table = Table(("group", "images", "share", "patients", *titles), tuple(rows))
    caption = f"Size of each group by {words.group_label(name, name)}"
    long = len(rows) > 20
    return Part(table=table, caption=caption, fold=f"{caption}: {len(rows)} groups" if long else "")


def _positives(group: Json) -> Cell:
    n, positive = group.get("n"), group.get("n_positive")
    if positive is None:
        return Cell("–", "", "empty")
    return Cell(words.count(positive), f"{100 * positive / n:.1f}%" if n else "", "count")


def performance_parts(key: str, name: str, attribute: Json, overall: Json, *, brief: bool = False) -> list[Part]:
    """One table an attribute with the main measures, a picture of it (not if ``brief``), the gaps, and further measures folded."""
    groups, title = tables.known_groups(attribute), words.group_label(name, name)
    found = tables.metrics_of([overall, *groups.values()])
    main = [m for m in tables.MAIN if m in found] or list(found[:4])
    rest = [m for m in found if m not in main]
    hint = words.plural(len(groups), "group")
    if attribute.get("n_missing"):
        hint += f"; {title} is not recorded for {words.plural(attribute['n_missing'], 'image')}, shown in a row of their own"
    shown = None if brief else _panels(f"{key}-panels", name, groups, overall, main)
    table = tables.group_table(name, attribute, overall, main)
    parts = [Part(text=f"{hint}.", table=table, caption=f"Performance of each group by {title}; below each value its interval")]
    parts += [Part(figures=(shown,))] if shown else []
    parts += _gap_parts(name, attribute, overall)
    more = [tables.group_table(name, attribute, overall, rest[i : i + MOST_COLUMNS]) for i in range(0, len(rest), MOST_COLUMNS)]
    if more:
        inner = tuple(Part(table=t, caption=f"Further measures by {title}") for t in more)
        parts.append(Part(fold=f"Further measures by {title}", parts=inner))
    return parts


def _gap_parts(name: str, attribute: Json, overall: Json) -> list[Part]:
    title, gaps = words.group_label(name, name), attribute.get("gaps", {})
    usual = [m for m in gaps if REPEATS.get(m) not in gaps]
    first = [m for m in (*FOREST, "demographic_parity_ratio", "disparate_impact", *VALUE_GAPS) if m in usual] or usual
    if "disparate_impact" in first and _same(gaps["disparate_impact"], gaps.get("demographic_parity_ratio")):
        first.remove("disparate_impact")
    rest = [m for m in usual if m not in first]
    if not gaps:
        return []
    if not any(words.estimable(gap) for gap in gaps.values()):
        said = words.reason(next(iter(gaps.values())).get("reason")) or "fewer than two groups have enough patients"
        return [Part(text=f"No gap by {title} can be estimated: {said}.")]
    parts = [Part(table=tables.gap_table(name, attribute, first, overall), caption=f"Gaps between groups by {title}")]
    if rest:
        table = tables.gap_table(name, attribute, rest, overall)
        parts.append(Part(table=table, caption=f"Further gaps by {title}", fold=f"Further gaps by {title}"))
    return parts


def _same(gap: Json, other: Json | None) -> bool:
    """Whether two gaps are one number, as disparate impact and the parity ratio are without a reference group."""
    return other is not None and all(gap.get(end) == other.get(end) for end in ("value", "lower", "upper", "groups"))


def forest_picture(key: str, label: str, block: Json, sure: str) -> Picture | None:
    """Gaps of every attribute, those of main interest, on one axis."""
    points, numbers = [], []
    crowded = len(block["attributes"]) > 3
    known = any(m in a["gaps"] for a in block["attributes"].values() for m in FOREST)
    for name, attribute in block["attributes"].items():
        for metric in FOREST if known else VALUE_GAPS:
            gap = attribute["gaps"].get(metric)
            if gap is None or (metric == "equal_opportunity" and crowded):
                continue
            title = f"{words.group_label(name, name)}: {BRIEF.get(metric, metric)}"
            clear = gap.get("lower") is not None and gap["lower"] > 0
            points.append(figures.Point(title, gap.get("value"), gap.get("lower"), gap.get("upper"), emphasis=clear))
            numbers.append(f"{title} {words.with_interval(gap, sure) if words.estimable(gap) else 'not estimable'}")
    if not any(point.value is not None for point in points):
        return None
    svg = figures.forest(points, key=f"{key}-forest", summary=f"Gaps for {label}. {'; '.join(numbers)}.", axis="gap (0 = no difference)")
    how = f"A mark is the gap, a line its {sure} interval; filled where the interval excludes 0. Every number is in the tables above."
    return picture("Gaps between groups", svg, how)


def _panels(key: str, name: str, groups: Mapping[str, Json], overall: Json, metrics: Sequence[str]) -> Picture | None:
    """Each group's main measures with their intervals, everyone's value as a rule."""
    panels = []
    for metric in [m for m in metrics if m in PANELS]:
        points = tuple(_point(words.group_label(name, k), g.get(metric)) for k, g in groups.items())
        everyone = (overall.get(metric) or {}).get("value")
        panels.append(figures.Panel(words.measure(metric).title, points, everyone, metric not in VALUE_GAPS))
    if not panels or not any(p.value is not None for panel in panels for p in panel.points):
        return None
    title = words.group_label(name, name)
    said = "; ".join(f"{p.label} {panel.title} {words.number(p.value, 2) or 'not estimable'}" for panel in panels for p in panel.points)
    svg = figures.group_panels(panels, key=key, summary=f"Performance by {title}. {said}.")
    how = "A mark is a group's value, a line its interval, the dashed rule the value over everyone."
    return picture(f"Performance by {title}", svg, how)


def _point(label: str, estimate: Json | None) -> figures.Point:
    found = estimate or {}
    return figures.Point(label, found.get("value"), found.get("lower"), found.get("upper"))
