"""Sections on what the data can bear: attributes that were not recorded, and how many patients would be needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenhand.report import tables, words
from evenhand.report.groups_sections import REPEATS
from evenhand.report.page import Part, Section
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
FIRST = ("auc", "equalized_odds", "equal_opportunity", "fpr", "demographic_parity", "mean", "median")


def missing_section(key: str, block: Json) -> Section | None:
    """How often each attribute is not recorded, and how small or large each gap could be, wherever those patients belong."""
    parts = [part for name, a in block["attributes"].items() if a.get("n_missing") for part in _missing_parts(name, a, block)]
    hint = "Patients whose group is not recorded enter no gap."
    if any(part.table is not None for part in parts):
        hint += (
            " The bounds say how small and how large a gap could be over every way in which these patients could be spread over the "
            "groups; they are not a confidence interval. The last column moves them apart by the gap's own sampling error."
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
    rest = [m for m in bounded if m not in order and REPEATS.get(m) not in bounded]
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


def power_section(key: str, block: Json) -> Section | None:
    """The gap that these data would show, and the patients that smaller gaps would need."""
    found = {name: a["power"] for name, a in block["attributes"].items() if a.get("power")}
    steps = dict.fromkeys(str(step) for power in found.values() for entry in power.values() for step in entry.get("needed") or {})
    said = [(name, metric, entry) for name, power in found.items() for metric, entry in power.items() if _says_something(entry)]
    rows = [_power_row(name, metric, entry, list(steps)) for name, metric, entry in said]
    title, silent = "How many patients would be needed", [name for name in found if name not in {name for name, _, _ in said}]
    if not found:
        return None
    named = words.listing([words.group_label(name, name) for name in silent], 8)
    text = f"By {named}: fewer than two groups have enough patients to tell which gaps could be seen." if silent else ""
    if not rows:
        return Section(f"{key}-power", title, (Part(text=text),))
    first = next(iter(next(iter(found.values())).values()))
    chance, level = f"{100 * float(first.get('power', 0.8)):g}%", f"{100 * float(first.get('alpha', 0.05)):g}%"
    tests = f", corrected for {words.plural(first['n_tests'], 'test')}" if (first.get("n_tests") or 1) > 1 else ""
    columns = ("gap", "patients now", f"gap seen with {chance} power", "between", *(f"needed for {step}" for step in steps))
    hint = (
        f"With {chance} power at the {level} level{tests}, between whichever two groups it lies. A smaller gap would go unnoticed more "
        "often than that in an audit of this size, so that not finding it says little. Needed: patients in all, in the same mix of groups."
    )
    table = Table(columns, tuple(rows))
    return Section(f"{key}-power", title, (Part(text=text, table=table, caption="Gaps that would be seen, and patients needed"),), hint)


def _says_something(entry: Json) -> bool:
    return entry.get("detectable") is not None or any(count is not None for count in (entry.get("needed") or {}).values())


def _power_row(name: str, metric: str, entry: Json, steps: list[str]) -> Row:
    needed, pair = entry.get("needed") or {}, entry.get("pair")
    seen = Cell(words.number(entry.get("detectable"), 2)) if entry.get("detectable") is not None else Cell("not estimable", "", "none")
    between = " – ".join(words.group_label(name, str(group)) for group in pair) if pair else "–"
    counts = tuple(tables.count_cell(needed.get(step)) for step in steps)
    title = f"{words.group_label(name, name)}: {words.gap_title(metric)}"
    return Row(title, (tables.count_cell(entry.get("n_patients")), seen, Cell(between, "", "text"), *counts))
