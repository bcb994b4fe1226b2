"""What an edit fools and what it hides, as rows: for the terminal, for CSV, and for a page, from one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenhand.report import words
from evenhand.report.tables import Cell, Row, Table, estimate_cell

Json = Mapping[str, Any]

CONDITIONS = {"none": "no edit", "noise": "noise of the same size", "edit": "edit"}
"""Condition -> how it is called, in the order of the tables."""

EXPLAINED = (
    "Fooled: how well the head that was fitted on unedited images still reads the attribute. Any disturbance fools it, so it "
    "says little by itself. Hidden: how well a fresh head does that was fitted on edited images, on rows that no head has seen; "
    "0.5 is hidden. Given the label: what the embedding tells beyond what the label explains, which is what equalized odds asks for. "
    "Rows the edit has not seen: the same by heads fitted crosswise on the measured rows, because an edit may hide more in the "
    "rows it was trained on."
)


def leakage_records(found: Json) -> list[dict[str, Any]]:
    """One record a number: attribute, condition, measure, of (a group, a label, a label's value, or nothing), value, lower, upper, n.

    Args:
        found: what `evenhand.methods.editing.leakage.measure_leakage` gives.
    """
    out: list[dict[str, Any]] = []
    for attribute, record in found["attributes"].items():
        for condition in (name for name in CONDITIONS if name in record):
            fooled, hidden = record[condition]["fooled"], record[condition]["hidden"]
            at = {"attribute": attribute, "condition": condition}
            out.append({**at, "measure": "fooled_accuracy", "of": "", **_plain(fooled["accuracy"], fooled["n"])})
            out.append({**at, "measure": "majority_share", "of": "", **_plain(fooled["majority"], fooled["n"])})
            out += [{**at, "measure": "fooled_auc", "of": group, **_estimate(item)} for group, item in fooled["auc"].items()]
            out.append({**at, "measure": "hidden_auc", "of": "", **_estimate(hidden["overall"])})
            out.append({**at, "measure": "hidden_auc_given_label", "of": "", **_estimate(hidden["given_label"])})
            for label, item in hidden["labels"].items():
                out.append({**at, "measure": "hidden_auc_given_label", "of": label, **_estimate(item["given_label"])})
                within = {f"{label}={value}": part for value, part in item["within"].items()}
                out += [{**at, "measure": "hidden_auc_within", "of": name, **_estimate(part)} for name, part in within.items()]
            if "unseen" in record[condition]:
                out.append({**at, "measure": "unseen_auc", "of": "", **_estimate(record[condition]["unseen"]["overall"])})
                given = record[condition]["unseen"]["given_label"]
                out.append({**at, "measure": "unseen_auc_given_label", "of": "", **_estimate(given)})
        for key, of in (("change", "hidden"), ("change_unseen", "unseen")):
            for name, item in (record.get(key) or {}).items():
                measure = f"{of}_auc_change" if name == "overall" else f"{of}_auc_{name}_change"
                out.append({"attribute": attribute, "condition": "edit", "measure": measure, "of": "", **_estimate(item)})
    for attribute, record in (found.get("pixels") or {}).items():
        for condition in ("none", "edit"):
            at = {"attribute": attribute, "condition": condition, "of": ""}
            out.append({**at, "measure": "pixel_auc", **_estimate(record[condition]["overall"])})
            out.append({**at, "measure": "pixel_auc_given_label", **_estimate(record[condition]["given_label"])})
        for name, item in record["change"].items():
            measure = "pixel_auc_change" if name == "overall" else f"pixel_auc_{name}_change"
            out.append({"attribute": attribute, "condition": "edit", "of": "", "measure": measure, **_estimate(item)})
    return out


def _estimate(item: Json) -> dict[str, Any]:
    """The numbers, and why there are none, or why they are doubtful."""
    return {**{name: item.get(name) for name in ("value", "lower", "upper", "n")}, "reason": item.get("reason") or item.get("note")}


def _plain(value: float | None, n: int) -> dict[str, Any]:
    return {"value": value, "lower": None, "upper": None, "n": n, "reason": None}


def leakage_table(record: Json) -> Table:
    """One attribute's conditions side by side: the old head's accuracy and AUC, the fresh head's AUC overall and given the label."""
    rows = []
    crosswise = "unseen" in record["edit"]
    for condition in (name for name in CONDITIONS if name in record):
        fooled, hidden = record[condition]["fooled"], record[condition]["hidden"]
        share = "" if fooled["majority"] is None else f"most common group {words.number(fooled['majority'])}"
        accuracy = Cell("not estimable", "", "none") if fooled["accuracy"] is None else Cell(words.number(fooled["accuracy"]), share)
        auc = estimate_cell(next(iter(fooled["auc"].values()), None)) if len(fooled["auc"]) == 1 else Cell("–", "several groups", "empty")
        cells = [Cell(words.count(hidden["overall"]["n"]), "", "count"), accuracy, auc]
        cells += [estimate_cell(hidden["overall"]), estimate_cell(hidden["given_label"])]
        if crosswise:
            cells.append(estimate_cell(record[condition]["unseen"]["given_label"]))
        rows.append(Row(CONDITIONS[condition], tuple(cells)))
    change = record.get("change")
    if change:
        cells = [Cell("", "", "empty")] * 3 + [estimate_cell(change["overall"]), estimate_cell(change["given_label"])]
        if crosswise:
            cells.append(estimate_cell(record["change_unseen"]["given_label"]))
        rows.append(Row("edit minus no edit", tuple(cells)))
    columns = ["condition", "images", "old head's accuracy", "old head's AUC", "fresh head's AUC", "… given the label"]
    return Table((*columns, *(["… on rows the edit has not seen"] if crosswise else [])), tuple(rows))


def doubt_words(record: Json) -> str:
    """What is doubtful of a record, as a sentence of its own.

    Example:
        >>> doubt_words({"doubt": "below 0.5 with the whole interval: …"})
        'AUC below 0.5 with the whole interval: ….'
    """
    return f"AUC {record['doubt']}."


def pixel_table(record: Json) -> Table:
    """One attribute: what a classifier trained afresh reads from pixels, without and with the edit."""
    rows = [
        Row(words_of, (estimate_cell(record[name]["overall"]), estimate_cell(record[name]["given_label"])))
        for name, words_of in (("none", CONDITIONS["none"]), ("edit", CONDITIONS["edit"]), ("change", "edit minus no edit"))
    ]
    return Table(("pixels", "AUC", "… given the label"), tuple(rows))


def within_table(record: Json) -> Table:
    """One attribute: the fresh head's AUC within every value of every label."""
    known = [name for name in CONDITIONS if name in record]
    first = record[known[0]]["hidden"]["labels"]
    rows = []
    for label, item in first.items():
        for value in item["within"]:
            cells = [record[name]["hidden"]["labels"][label]["within"].get(value) for name in known]
            n = (cells[0] or {}).get("n", 0)
            rows.append(Row(f"{label} = {value}", (Cell(words.count(n), "", "count"), *(estimate_cell(cell) for cell in cells))))
    return Table(("among", "images", *(CONDITIONS[name] for name in known)), tuple(rows))


def table_lines(table: Table) -> list[str]:
    """A table as aligned text: the value and, where there is one, its interval in brackets; what a row says once, unaligned.

    Example:
        >>> table_lines(Table(("condition", "AUC"), (Row("edit", (Cell("0.612", "0.580 to 0.644"),)),)))
        ['condition  AUC', 'edit       0.612 [0.580 to 0.644]']
    """
    lines = [list(table.columns)]
    for row in table.rows:
        lines.append([row.name, *(cell.text + (f" [{cell.small}]" if cell.small and " to " in cell.small else "") for cell in row.cells)])
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(len(table.columns))]
    ends = ["", *(row.merged for row in table.rows)]
    shown = [[*(text.ljust(width) for text, width in zip(line, widths, strict=False)), end] for line, end in zip(lines, ends, strict=True)]
    return ["  ".join(line).rstrip() for line in shown]
