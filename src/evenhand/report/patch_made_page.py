"""The page of a patch that was made: before and after on test rows, where it changes the network, what it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenhand.report import words
from evenhand.report.html import write_sections
from evenhand.report.page import Part, Section
from evenhand.report.patch_page import patch_sections, percent, size_words
from evenhand.report.tables import Cell, Row, Table, estimate_cell

Json = Mapping[str, Any]

LEAD = (
    "The patch was learnt from a small external set and judged on test rows that neither it nor its thresholds saw. Both columns are "
    "at thresholds chosen on the same validation rows, so that what differs is the classifier."
)
CHANGES = "Changes are of the same patients before and after; intervals are 95% (patient bootstrap)."
GAP = "equalized_odds"


def before_after_table(compared: Json, gap: str = GAP) -> Table:
    """Overall AUC and one gap per attribute, of every classifier, with its change against the classifier as delivered.

    Args:
        compared: the comparison's dictionary; its reference is the classifier as delivered.
        gap: which gap.
    """
    rows = []
    for label, item in compared["labels"].items():
        attributes = list(item["attributes"])
        for run in compared["runs"]:
            name = run["name"]
            cells = [estimate_cell(item["overall"][name]["auc"]), _change(item["overall_changes"].get(name, {}).get("auc"))]
            for attribute in attributes:
                part = item["attributes"][attribute]
                cells += [estimate_cell(part["gaps"][name].get(gap)), _change(part["gap_changes"].get(name, {}).get(gap))]
            rows.append(Row(name if len(compared["labels"]) == 1 else f"{label}: {name}", tuple(cells)))
    names = [attribute for item in compared["labels"].values() for attribute in item["attributes"]]
    heads = [text for attribute in dict.fromkeys(names) for text in (f"{words.gap_title(gap)} by {attribute}", "change")]
    return Table(("classifier", "AUC", "change", *heads), tuple(rows))


def _change(estimate: Json | None) -> Cell:
    """A change with its sign; an empty cell where there is none to name."""
    if estimate is None:
        return Cell("–")
    if estimate.get("value") is None:
        return estimate_cell(estimate)
    limits = "" if estimate.get("lower") is None else f"{estimate['lower']:+.3f} to {estimate['upper']:+.3f}"
    return Cell(f"{estimate['value']:+.3f}", limits)


def cost_table(record: Json) -> Table:
    """What the patch and what was made beside it took, in passes over the external set."""
    rows = []
    for name, cost in ((record["method"], record["cost"]), *((kind, said["cost"]) for kind, said in record["beside"].items())):
        cells = (Cell(words.count(cost["forward"])), Cell(words.count(cost["backward"])), Cell(f"{cost['passes']:.1f}"))
        rows.append(Row(name, (*cells, Cell(f"{cost['seconds']:.0f} s"))))
    return Table(("made", "images forward", "images backward", "passes", "time"), tuple(rows))


def write_made_page(record: Json, compared: Json, path: Path) -> Path:
    """Write patch.html.

    Args:
        record: the dictionary of patch.json, and ``beside``: comparison -> its cost and notes.
        compared: the comparison's dictionary.
        path: the HTML file.
    """
    verdicts = tuple(str(item["text"]) for item in compared.get("verdicts", ()))
    sections = [
        Section("tested", "Before and after, on test rows", (
            Part(table=before_after_table(compared), text=CHANGES),
            *([Part(heading="What to know", points=verdicts)] if verdicts else []),
        )),
        *patch_sections(record["patch"]),
        Section("cost", "What it took", (Part(table=cost_table(record), text=PASSES),)),
        Section("notes", "Notes", (Part(points=tuple(map(str, record["notes"]))),)),
    ]
    return write_sections(
        path, title="A patch for a finished classifier", eyebrow="Patch", about=str(record["data"].get("name") or ""),
        heading="The patch", lead=LEAD, facts=made_facts(record), sections=sections,
        version=(record.get("versions") or {}).get("evenhand"), source="a patch",
    )


PASSES = "A pass is one forward pass over the external set; a backward pass counts as two. An epoch of ordinary training is three."


def made_facts(record: Json) -> list[tuple[str, str]]:
    """(name, value) of what was patched, by what, on what."""
    patch, data = record["patch"], record["data"]
    counts = data["n_images"]
    pairs = [
        ("method", str(record["method"])),
        ("classifier", f"{record['classifier']['name']} from {record['classifier']['source']}"),
        ("belongs to", f"model {patch['base_hash'][:16]}; gives model {patch['result_hash'][:16]}"),
        ("external set", f"{data['name']} ({data['hash'][:16]})"),
        ("images", f"{counts['train']} learnt from, {counts['val']} for thresholds and stopping, {counts['test']} tested"),
        ("attributes", ", ".join(record["attributes"])),
        ("changes", f"{words.count(patch['changed'])} of {words.count(patch['n'])} weights ({percent(patch['share'])})"),
        ("file", f"{size_words(patch['bytes'])}, {percent(patch['share_of_bytes'])} of the model"),
        ("undo", "evenhand patch revert gives the classifier back bit for bit"),
    ]
    return [(name, value) for name, value in pairs if value]
