"""On which intersection a gap hangs: each gap as it is, and with one intersection left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report import tables, words
from evenhand.report.page import Part
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]
SMALL = 0.05
"""A share of a gap smaller than this says nothing, so that it is not shown."""
COLUMNS = ("gap", "left out", "as it is", "without it", "change", "share of the gap", "images", "patients")


def driver_parts(block: Json) -> list[Part]:
    """For every gap that is clearly above 0 the intersection that widens it most, and all others folded."""
    found = [item for item in block.get("drivers") or () if item.get("change") is not None]
    if not found:
        return []
    first = _widest([item for item in found if clearly_apart(item, block)])
    heading = "On which intersection a gap hangs"
    everything = _table(found, block)
    caption = "Every gap with one intersection left out"
    folded = Part(table=everything, caption=caption, fold=f"{caption}: {words.plural(len(found), 'row')}")
    if not first:
        return [Part(heading, "No gap that an intersection could carry is clearly above 0, so none is said to hang on one."), folded]
    text = (
        f"{_sentence(first[0])} Leaving an intersection out shows where a gap is found, not why; several intersections can each change a "
        "gap, and the changes do not add up to it. Intervals of the change are not corrected for the number of intersections."
    )
    return [Part(heading, text, table=_table(first, block), caption="The intersection that widens each gap most"), folded]


def clearly_apart(item: Json, block: Json) -> bool:
    """Whether the gap that the item takes apart has an interval above 0 and is not small."""
    gap = ((block["attributes"].get(item["attribute"]) or {}).get("gaps") or {}).get(item["metric"]) or {}
    return (gap.get("lower") or 0.0) > 0 and float(item.get("gap") or 0.0) >= SMALL


def _widest(items: Sequence[Json]) -> list[Json]:
    """The item of each attribute and measure with the largest change above 0, in the order given: the largest first."""
    first: dict[tuple[str, str], Json] = {}
    for item in sorted(items, key=lambda item: -float(item["change"])):
        if item["change"] > 0:
            first.setdefault((item["attribute"], item["metric"]), item)
    return list(first.values())


def _sentence(item: Json) -> str:
    name = str(item["attribute"])
    low, high = (words.group_label(name, str(group)) for group in item["groups"])
    without = words.group_label(str(item["joint"]), str(item["without"]))
    said = (
        f"The {words.gap_title(item['metric'])} between {low} and {high} is {words.number(item['gap'])}; without {without} it is "
        f"{words.number(item['gap_without'])}."
    )
    unsure = item.get("lower") is None or item["lower"] <= 0
    return f"{said} The interval of this change includes 0." if unsure else said


def _table(items: Sequence[Json], block: Json) -> Table:
    rows = []
    for item in items:
        name = str(item["attribute"])
        apart = " – ".join(words.group_label(name, str(group)) for group in item["groups"])
        share = item.get("share") if clearly_apart(item, block) else None
        cells = (
            Cell(words.group_label(str(item["joint"]), str(item["without"])), "", "text"),
            Cell(words.number(item["gap"]), apart),
            Cell(words.number(item["gap_without"])),
            tables.estimate_cell({"value": item["change"], "lower": item.get("lower"), "upper": item.get("upper")}),
            Cell("–", "", "empty") if share is None else Cell(f"{100 * share:.0f}%".replace("-", "−")),
            tables.count_cell(item.get("n")),
            tables.count_cell(item.get("n_patients")),
        )
        rows.append(Row(f"{words.group_label(name, name)}: {words.gap_title(item['metric'])}", cells))
    return Table(COLUMNS, tuple(rows))
