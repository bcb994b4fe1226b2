"""The section on how much of a gap goes with case mix or prevalence: raw gaps beside standardised ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report import figures, tables, words
from evenhand.report.page import Part, Picture, Section, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
HINT = (
    "Groups may differ in age, severity or equipment as well as in how the model serves them. Here every group is given the same mix: "
    "that of all patients together. What is left is a gap between patients alike in these columns. What goes is not thereby "
    "excused: it is still a gap for the patients of that group, and columns that were not given may go with more of it. Gaps here are "
    "signed: the second group named minus the first."
)
PREVALENCE_HINT = (
    "Some measures differ between groups only because one group has more positive cases. Here positive and negative cases of every "
    "group are weighted to the share of positive cases over everyone. Gaps here are signed: the second group named minus the first. "
    "No case-mix columns were given."
)
FIRST = {"metrics": ("auc", "tpr", "fpr", "positive_rate"), "prevalence_matched": ("ppv", "npv", "average_precision", "net_benefit")}

MIRRORS = {"fnr": "tpr", "tnr": "fpr"}
"""One minus the other: its gaps are the same numbers."""


def explained_section(key: str, block: Json, sure: str, *, brief: bool = False) -> Section | None:
    """Gaps as they are, and after every group is given the same case mix or the same prevalence; no pictures if ``brief``."""
    parts, mixed = [], False
    for i, (name, attribute) in enumerate(block["attributes"].items()):
        given = attribute.get("explained") or {}
        found = [part for kind in FIRST for part in _kind_parts("" if brief else f"{key}-{i}", name, given, kind, sure)]
        parts += [Part(f"By {words.group_label(name, name)}", parts=tuple(found))] if found else []
        mixed = mixed or bool(given.get("metrics"))
    if not parts:
        return None
    if mixed:
        return Section(f"{key}-explained", "How much of a gap goes with case mix", tuple(parts), HINT)
    return Section(f"{key}-explained", "How much of a gap goes with prevalence", tuple(parts), PREVALENCE_HINT)


def _kind_parts(key: str, name: str, explained: Json, kind: str, sure: str) -> list[Part]:
    """One kind of weighting: a sentence, a picture, the main gaps, and the rest folded."""
    entries = {m: e for m, e in (explained.get(kind) or {}).items() if isinstance(e, Mapping)}
    if not entries or (kind != "metrics" and not any(words.estimable(e.get("gap")) for e in entries.values())):
        return []
    title = words.group_label(name, name)
    columns = words.listing([str(c) for c in explained.get("columns") or ()], 6)
    what = f"the same mix of {columns}" if kind == "metrics" else "the same share of positive cases"
    first = [m for m in FIRST[kind] if m in entries] or list(entries)[:4]
    rest = [m for m in entries if m not in first and MIRRORS.get(m) not in entries]
    caption = f"Gaps by {title}: as they are, and with {what} in every group"
    shown = _picture(key, name, {m: entries[m] for m in first}, what, sure) if kind == "metrics" and key else None
    text = _sentences(name, {m: entries[m] for m in first}, what) + (_lacking(entries) if kind == "metrics" else "")
    parts = [Part(text=text, table=_table(name, entries, first, kind), caption=caption, figures=(shown,) if shown else ())]
    if rest:
        parts.append(Part(table=_table(name, entries, rest, kind), caption=caption, fold=f"Further gaps with {what}"))
    groups = _groups_table(name, entries, first)
    if groups is not None:
        parts.append(Part(table=groups, caption=f"Each group by {title}, with {what}", fold=f"Each group with {what}"))
    return parts


def _sentences(name: str, entries: Mapping[str, Json], what: str) -> str:
    """The first gap that can be told in words."""
    for metric, entry in entries.items():
        gap, left = entry.get("gap"), entry.get("standardised")
        if not (words.estimable(gap) and words.estimable(left)) or gap is None or left is None:
            continue
        apart = entry.get("groups_apart") or ()
        between = f" between {' and '.join(words.group_label(name, str(g)) for g in apart)}" if apart else ""
        said = f"The {words.gap_title(metric)}{between} is {words.number(gap['value'])}; with {what} it is {words.number(left['value'])}."
        return said[0].upper() + said[1:]
    return f"No gap can be estimated with {what}."


def _lacking(entries: Mapping[str, Json]) -> str:
    """What could not be compared, because a group has nobody there."""
    coverage = [float(e["coverage"]) for e in entries.values() if e.get("coverage") is not None]
    if not coverage or min(coverage) > 0.999:
        return ""
    return (
        f" Groups share cells that hold {100 * min(coverage):.0f}% of the cases; the others cannot be compared and are left out, "
        "so that gaps 'as they are' differ a little from those in the tables above."
    )


def _table(name: str, entries: Mapping[str, Json], metrics: Sequence[str], kind: str) -> Table:
    rows = []
    for metric in metrics:
        entry = entries[metric]
        apart = " – ".join(words.group_label(name, str(g)) for g in entry.get("groups_apart") or ())
        cells = (
            number_cell(entry.get("gap")),
            number_cell(entry.get("standardised")),
            number_cell(entry.get("difference")),
            _share_cell(entry.get("explained_share")),
            Cell(apart or "–", "", "text"),
        )
        rows.append(Row(words.gap_title(metric), cells))
    same, goes = ("same mix", "goes with the mix") if kind == "metrics" else ("same prevalence", "goes with prevalence")
    return Table(("gap", "as it is", same, goes, "share", "lowest – highest group"), tuple(rows))


def _share_cell(share: Any) -> Cell:
    """The share of a gap that goes with the mix; below 0 the gap grows."""
    found = share if isinstance(share, Mapping) else {"value": share}
    if found.get("value") is None:
        return Cell("–", words.brief_reason(found.get("reason")), "empty")
    value = float(found["value"])
    small = "the gap grows" if value < 0 else "the gap turns round" if value > 1 else ""
    if found.get("lower") is not None and found.get("upper") is not None:
        ends = f"{100 * found['lower']:.0f}% to {100 * found['upper']:.0f}%".replace("-", "−")
        small = f"{ends}\n{small}" if small else ends
    return Cell(f"{100 * value:.0f}%".replace("-", "−"), small)


def number_cell(value: Any) -> Cell:
    """The cell of an estimate, or of a plain number."""
    return tables.estimate_cell(value if isinstance(value, Mapping) or value is None else {"value": value, "lower": None, "upper": None})


def _groups_table(name: str, entries: Mapping[str, Json], metrics: Sequence[str]) -> Table | None:
    keys = dict.fromkeys(g for m in metrics for g in entries[m].get("groups") or {})
    if not keys:
        return None
    rows = [
        Row(words.group_label(name, str(g)), tuple(number_cell((entries[m].get("groups") or {}).get(g)) for m in metrics)) for g in keys
    ]
    return Table(("group", *(words.measure(m).title for m in metrics)), tuple(rows))


def _picture(key: str, name: str, entries: Mapping[str, Json], what: str, sure: str) -> Picture | None:
    points = []
    for metric, entry in entries.items():
        if not words.estimable(entry.get("standardised")):
            continue
        title = words.gap_title(metric)
        for lead, field, filled in ((title, "gap", True), ("same mix", "standardised", False)):
            e = entry[field]
            points.append(figures.Point(lead, e.get("value"), e.get("lower"), e.get("upper"), emphasis=filled))
    if not points:
        return None
    said = "; ".join(f"{p.label} {words.number(p.value) or 'not estimable'}" for p in points)
    title = words.group_label(name, name)
    summary = f"Gaps by {title} as they are and with {what}. {said}."
    svg = figures.forest(points, key=f"{key}-mix", summary=summary, axis="gap (0 = no difference)")
    how = f"Filled: the gap as it is; ring: with {what}; lines are {sure} intervals. Both are of the same two groups, so a ring can pass 0."
    return picture(f"Gaps by {title}, as they are and with {what}", svg, how)
