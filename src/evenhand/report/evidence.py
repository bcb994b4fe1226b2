"""Sections on what the data can bear: attributes that were not recorded, case mix, and how many patients would be needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenhand.report import tables, words
from evenhand.report.page import Part, Section
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
FIRST = ("auc", "equalized_odds", "equal_opportunity", "tpr", "fpr", "demographic_parity", "mean", "median")


def missing_section(key: str, block: Json) -> Section | None:
    """How often each attribute is not recorded, and how small or large each gap could be, wherever those patients belong."""
    parts = [part for name, a in block["attributes"].items() if a.get("n_missing") for part in _missing_parts(name, a, block)]
    hint = (
        "Patients whose group is not recorded enter no gap. The bounds say how small and how large a gap could be over every way "
        "in which these patients could be spread over the groups; they are not a confidence interval."
    )
    return Section(f"{key}-missing", "Attributes that are not recorded", tuple(parts), hint) if parts else None


def _missing_parts(name: str, attribute: Json, block: Json) -> list[Part]:
    title, n, total = words.group_label(name, name), attribute["n_missing"], block["overall"].get("n") or 0
    bounded = {m: g for m, g in attribute.get("gaps", {}).items() if (g.get("bounds") or {}).get("upper") is not None}
    text = f"{title} is not recorded for {words.plural(n, 'image')}" + (f" ({100 * n / total:.1f}%)." if total else ".")
    if not bounded:
        return [Part(f"By {title}", text)]
    patients = next(iter(bounded.values()))["bounds"].get("n_missing_patients")
    text += f" {words.plural(patients, 'patient')} could belong to any group." if patients is not None else ""
    order = [m for m in FIRST if m in bounded] or list(bounded)
    rest = [m for m in bounded if m not in order]
    caption = f"Bounds of each gap by {title}"
    parts = [Part(f"By {title}", text, table=_bounds_table(name, bounded, order), caption=caption)]
    if rest:
        parts.append(Part(table=_bounds_table(name, bounded, rest), caption=caption, fold=f"Bounds of further gaps by {title}"))
    return parts


def _bounds_table(name: str, gaps: Mapping[str, Json], order: list[str]) -> Table:
    rows = []
    for metric in order:
        gap = gaps[metric]
        bounds = gap["bounds"]
        low, high = bounds.get("groups") or (None, None)
        widest = "" if low is None else f"{words.group_label(name, str(low))} – {words.group_label(name, str(high))}"
        ends = [e for e in bounds.get("interval") or () if e is not None]
        cells = (
            tables.estimate_cell(gap),
            Cell(("" if bounds.get("lower_exact", True) else "≥ ") + words.number(bounds["lower"])),
            Cell(("" if bounds.get("upper_exact", True) else "≤ ") + words.number(bounds["upper"]), widest),
            Cell(f"{words.number(ends[0])} to {words.number(ends[1])}" if len(ends) == 2 else "–"),
        )
        rows.append(Row(words.gap_title(metric), cells))
    return Table(("gap", "as recorded", "smallest possible", "largest possible", "with sampling error"), tuple(rows))


def explained_section(key: str, block: Json) -> Section | None:
    """Gaps as they are, and after every group is given the same case mix or the same prevalence."""
    parts = [part for name, a in block["attributes"].items() if a.get("explained") for part in _explained_parts(name, a["explained"])]
    hint = (
        "Groups differ in age, severity or equipment as well as in how the model treats them. Standardised: every group is given the "
        "case mix of all patients together. What is left is a gap between patients alike in these columns; what goes is not thereby "
        "excused, and columns that were not given can still explain the rest."
    )
    return Section(f"{key}-explained", "How much of a gap goes with case mix", tuple(parts), hint) if parts else None


def _explained_parts(name: str, explained: Json) -> list[Part]:
    title, columns = words.group_label(name, name), [str(c) for c in explained.get("columns") or ()]
    parts = []
    metrics = {m: e for m, e in (explained.get("metrics") or {}).items() if isinstance(e, Mapping)}
    if metrics:
        over = words.listing(columns, 6)
        table = Table(("gap", "as it is", f"same {over}", "goes with case mix"), tuple(_explained_row(m, e) for m, e in metrics.items()))
        caption = f"Gaps by {title}, raw and standardised over {over}"
        parts.append(Part(f"By {title}", table=table, caption=caption, parts=tuple(_standardised(title, metrics, over))))
    matched = explained.get("prevalence_matched")
    if isinstance(matched, Mapping) and matched:
        same = _matched_table(matched)
        if same is not None:
            caption = f"Gaps by {title}, with the share of positive cases made equal in all groups"
            parts.append(Part("" if metrics else f"By {title}", table=same, caption=caption))
    return parts


def _explained_row(metric: str, entry: Json) -> Row:
    share = entry.get("explained_share")
    goes = Cell("–", words.brief_reason(entry.get("reason")), "none" if entry.get("reason") else "empty")
    if share is not None:
        goes = Cell(f"{100 * share:.0f}%".replace("-", "−"), "grows" if share < 0 else "")
    return Row(words.gap_title(metric), (_number_cell(entry.get("gap")), _number_cell(entry.get("standardised")), goes))


def _number_cell(value: Any) -> Cell:
    """The cell of an estimate, or of a plain number."""
    return tables.estimate_cell(value if isinstance(value, Mapping) or value is None else {"value": value, "lower": None, "upper": None})


def _standardised(title: str, metrics: Mapping[str, Json], over: str) -> list[Part]:
    keys = dict.fromkeys(g for e in metrics.values() for g in e.get("groups") or {})
    if not keys:
        return []
    rows = [Row(g, tuple(_number_cell((e.get("groups") or {}).get(g)) for e in metrics.values())) for g in keys]
    table = Table(("group", *(words.measure(m).title for m in metrics)), tuple(rows))
    caption = f"Each group by {title}, standardised over {over}"
    return [Part(table=table, caption=caption, fold="Each group, standardised")]


def _matched_table(matched: Json) -> Table | None:
    entries = matched.get("metrics") if isinstance(matched.get("metrics"), Mapping) else matched
    found = {m: e for m, e in (entries or {}).items() if isinstance(e, Mapping)}
    rows = [Row(words.gap_title(m), (_number_cell(e.get("gap")), _number_cell(e.get("matched", e.get("value"))))) for m, e in found.items()]
    return Table(("gap", "as it is", "same prevalence"), tuple(rows)) if rows else None


def power_section(key: str, block: Json) -> Section | None:
    """The gap that these data would show, and the patients that smaller gaps would need."""
    found = {name: a["power"] for name, a in block["attributes"].items() if a.get("power")}
    rows, steps = [], dict.fromkeys(s for power in found.values() for e in power.values() for s in e.get("needed") or {})
    for name, power in found.items():
        for metric, entry in power.items():
            needed = entry.get("needed") or {}
            counts = tuple(tables.count_cell(needed.get(step)) for step in steps)
            seen = Cell(words.number(entry.get("detectable"), 2) or "–")
            title = f"{words.group_label(name, name)}: {words.gap_title(metric)}"
            rows.append(Row(title, (tables.count_cell(entry.get("n_patients")), seen, *counts)))
    if not rows:
        return None
    columns = ("gap", "patients now", "smallest gap seen", *(f"needed for {step}" for step in steps))
    hint = (
        "With 80% power at the 5% level. A gap smaller than 'smallest gap seen' would more often than not go unnoticed in an audit of "
        "this size: not finding it says little. Needed: patients in all, spread over the groups as here."
    )
    return Section(f"{key}-power", "How many patients would be needed", (Part(table=Table(columns, tuple(rows))),), hint)
