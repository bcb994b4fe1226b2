"""The page of results in and out of distribution: every run on its own test rows and elsewhere, the drops, and for whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evenhand.errors import InputError
from evenhand.report import words
from evenhand.report.changes import change_cell
from evenhand.report.figures import Point, forest
from evenhand.report.html import write_sections
from evenhand.report.page import Part, Picture, Section, picture
from evenhand.report.tables import Cell, Row, Table, count_cell, estimate_cell

Json = Mapping[str, Any]
SCHEMA = "evenhand.transfer/1"
METRICS = ("auc", "tpr", "fpr")
MOST_POINTS = 40

LEAD = (
    "A drop is the number on the other set minus the number on the own test rows: below 0 it is lower there. The two sets hold "
    "different patients, so its interval combines the intervals of both. An interval that holds 0 neither shows a drop nor rules one "
    "out, and of many intervals some exclude 0 by chance."
)
WHY = (
    "Why a number drops cannot be told from it: other scanners, other patients (case mix, share of positive cases) and other labelling "
    "all do it. TPR and FPR are at the threshold that was chosen on the run's validation rows; where both rise or fall together the "
    "threshold does not fit the other set, which AUC leaves out."
)
OWN_TITLE = "own test rows"


def write_transfer_page(result: Json, path: Path) -> Path:
    """Write report.html of `evenhand evaluate`.

    Args:
        result: the dictionary of transfer.json (schema ``evenhand.transfer/1``).
        path: the HTML file.

    Raises:
        InputError: the dictionary is of another schema.
    """
    if result.get("schema") != SCHEMA:
        raise InputError(f"the page needs a dictionary of schema '{SCHEMA}', but got schema {result.get('schema')!r}")
    sections = [Section("findings", "In short", tuple(_finding_parts(result)))]
    for number, (label, runs) in enumerate(result["labels"].items()):
        title = "In and out of distribution" if len(result["labels"]) == 1 else f"{label}: in and out of distribution"
        sections.append(Section(f"label-{number}", title, tuple(_label_parts(f"label-{number}", runs, result))))
    if result.get("changes"):
        sections.append(Section("changes", "Runs side by side", tuple(_change_parts(result))))
    sections.append(Section("made", "How every number was made", (Part(text=LEAD), Part(text=WHY))))
    about = f"{words.listing(result['runs'], 6)} on {words.listing([_titled(name, result) for name in result['sets']], 6)}"
    return write_sections(
        path, title="Results in and out of distribution", eyebrow="Evaluation", about=about, heading="What was judged", lead="",
        facts=transfer_facts(result), sections=sections, version=result.get("provenance", {}).get("version"),
        source="the predictions of runs on several data sets",
    )


def transfer_facts(result: Json) -> list[tuple[str, str]]:
    """(name, value) of the runs, the sets, the attributes and the notes."""
    made = result.get("provenance", {})
    facts = []
    for run in result["runs"]:
        info = made.get("runs", {}).get(run, {})
        seeds = info.get("seeds") or []
        many = f", mean over {len(seeds)} seeds" if len(seeds) > 1 else ""
        on = f", trained on {info['trained_on']}" if info.get("trained_on") else ""
        facts.append((f"run {run}", f"{info.get('method', '')}{on}{many}".strip(", ") or run))
    for name, item in result["sets"].items():
        size = f"{words.plural(item['n'], 'image')} of {words.plural(item['n_patients'], 'patient')}"
        facts.append((_titled(name, result), ": ".join(part for part in (item["data"], size) if part)))
    for name, where in result["attributes"].items():
        if where["unknown"]:
            known = words.listing([_titled(one, result) for one in where["known"]], 6)
            unknown = words.listing([_titled(one, result) for one in where["unknown"]], 6)
            facts.append((f"attribute {words.group_label(name, name)}", f"known in {known} only; not in {unknown}"))
    for name, item in result["sets"].items():
        facts += [(f"note on {_titled(name, result)}", words.sentence(note)) for note in item["notes"]]
    return [*facts, ("intervals", _sure(result))]


def _finding_parts(result: Json) -> Iterator[Part]:
    names = {"worse": "Worse there", "better": "Better there", "open": "Open", "not_estimable": "No drop can be given"}
    for code, title in names.items():
        found = [words.sentence(one["text"]) for one in result["findings"] if one["code"] == code]
        if found:
            yield Part(heading=title, points=tuple(found), fold=f"{len(found)} findings" if len(found) > 12 else "")


def _label_parts(key: str, runs: Json, result: Json) -> Iterator[Part]:
    rows = []
    for run, name, block in _blocks(runs):
        home, overall = name == result["own"], block["overall"]
        cells = [count_cell(overall.get("n")), count_cell(overall.get("n_patients")), _positive(overall)]
        cells += [estimate_cell(overall.get(metric)) for metric in METRICS]
        cells += [Cell("–", "", "empty") if home else drop_cell(metric, overall.get(metric)) for metric in METRICS]
        rows.append(Row(_row_title(run, name, result), tuple(cells), "overall" if home else "run"))
    short = [words.measure(metric).title.split(" (")[0] for metric in METRICS]
    columns = ("rows", "images", "patients", "positive", *short, *(f"drop in {title}" for title in short))
    yield Part(table=Table(columns, tuple(rows)), caption=f"Everyone; below each number its {_sure(result)}")
    for number, attribute in enumerate(dict.fromkeys(name for _, _, block in _blocks(runs) for name in block["attributes"])):
        yield from _attribute_parts(f"{key}-{number}", attribute, runs, result)


def _attribute_parts(key: str, attribute: str, runs: Json, result: Json) -> Iterator[Part]:
    title = words.group_label(attribute, attribute)
    unknown = result["attributes"][attribute]["unknown"]
    said = ""
    if unknown:
        where = words.listing([_titled(name, result) for name in unknown], 6)
        said = f"{title} is not known in {where}: there is no gap there, and no drop of a gap."
    yield Part(heading=f"By {title}", text=said, table=_gap_table(attribute, runs, result), caption="Gaps between groups, and how much "
               "wider (above 0) or narrower they are than on the own test rows")
    yield Part(table=_group_table(attribute, runs, result), caption="AUC of each group, and its drop")
    yield Part(figures=tuple(_pictures(key, attribute, runs, result)))


def _gap_table(attribute: str, runs: Json, result: Json) -> Table:
    gaps = [name for name in dict.fromkeys([*result["provenance"].get("primary", ()), "auc", "tpr", "fpr"])
            if any(name in block["attributes"].get(attribute, {"gaps": {}})["gaps"] for _, _, block in _blocks(runs))]
    columns = ("rows", *(heading for name in gaps for heading in (words.gap_title(name), "drop")))
    rows = []
    for run, name, block in _blocks(runs):
        part = block["attributes"].get(attribute)
        if part is None:
            rows.append(Row(_row_title(run, name, result), (), "run", f"{words.group_label(attribute, attribute)} is not known here"))
            continue
        home = name == result["own"]
        cells = []
        for gap in gaps:
            found = part["gaps"].get(gap)
            cells += [estimate_cell(found), Cell("–", "", "empty") if home else drop_cell(gap, found, gap=True)]
        rows.append(Row(_row_title(run, name, result), tuple(cells), "overall" if home else "run"))
    return Table(columns, tuple(rows))


def _group_table(attribute: str, runs: Json, result: Json) -> Table:
    """One row a group (and run), one pair of columns a set."""
    sets = list(result["sets"])
    columns = ["group"]
    for name in sets:
        columns += [_titled(name, result)] + ([] if name == result["own"] else ["drop"])
    rows = []
    for run, of_run in runs.items():
        keys = dict.fromkeys(key for block in of_run.values() for key, row in
                             block["attributes"].get(attribute, {"groups": {}})["groups"].items() if not row.get("missing"))
        for key in keys:
            cells: list[Cell] = []
            for name in sets:
                row = of_run[name]["attributes"].get(attribute, {"groups": {}})["groups"].get(key)
                cells.append(Cell("not known here", "", "none") if row is None else estimate_cell(row.get("auc")))
                if name != result["own"]:
                    cells.append(Cell("–", "", "empty") if row is None else drop_cell("auc", row.get("auc")))
            lead = f"{run}: " if len(runs) > 1 else ""
            rows.append(Row(f"{lead}{words.group_label(attribute, key)}", tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def _pictures(key: str, attribute: str, runs: Json, result: Json) -> Iterator[Picture]:
    """The drops of AUC, everyone and each group, set by set."""
    points = []
    for run, name, block in _blocks(runs):
        if name == result["own"] or attribute not in block["attributes"]:
            continue
        who = [("everyone", block["overall"])]
        who += [(words.group_label(attribute, group), row) for group, row in block["attributes"][attribute]["groups"].items()
                if not row.get("missing")]
        for title, row in who:
            drop = (row.get("auc") or {}).get("drop") or {"value": None, "lower": None, "upper": None}
            lead = f"{run}, {name}" if len(runs) > 1 else name
            points.append(Point(f"{lead}: {title}", drop["value"], drop["lower"], drop["upper"], title == "everyone"))
    if points and any(point.value is not None for point in points) and len(points) <= MOST_POINTS:
        said = f"Drop in AUC from the own test rows, everyone and each group by {words.group_label(attribute, attribute)}"
        axis, ends = "AUC there minus AUC on own test rows", ("lower there", "higher there")
        svg = forest(points, key=f"drops-{key}", summary=said, axis=axis, ends=ends)
        yield picture("Drop in AUC", svg, f"{said}; lines are {_sure(result)}.")


def _change_parts(result: Json) -> Iterator[Part]:
    """Every further run against the first, on each set, paired by patient."""
    rows, columns = [], ("rows: run", "change in AUC", "change in TPR", "change in FPR", "change in gaps")
    for name, labels in result["changes"].items():
        for label, runs in labels.items():
            for run, change in runs.items():
                lead = f"{label}, " if len(labels) > 1 else ""
                cells = [change_cell(metric, change["overall"].get(metric), False) for metric in METRICS]
                gaps = Cell("\n".join(_gap_changes(change)) or "–", "", "text")
                rows.append(Row(f"{lead}{_titled(name, result)}: {run}", (*cells, gaps), "run"))
    first = result["runs"][0]
    yield Part(
        text=f"Changes are to {first}, on the same patients. A smaller gap is no gain for anyone if it comes from a group that got worse: "
        "the comparison of each set, in its folder, shows every group.",
        table=Table(columns, tuple(rows)), caption="Paired changes on each set",
    )


def _gap_changes(change: Json) -> Iterator[str]:
    for attribute, gaps in change["gaps"].items():
        for gap, found in gaps.items():
            if found.get("value") is not None:
                inside = "" if found.get("lower") is None else f" ({_signed(found['lower'])} to {_signed(found['upper'])})"
                yield f"{words.gap_title(gap)} by {words.group_label(attribute, attribute)} {_signed(found['value'])}{inside}"


def drop_cell(metric: str, estimate: Json | None, *, gap: bool = False) -> Cell:
    """The cell of an estimate's drop: signed, its interval below, marked and named where the interval excludes 0.

    Example:
        >>> cell = drop_cell("auc", {"drop": {"value": -0.1, "lower": -0.2, "upper": -0.01}})
        >>> cell.text, cell.small.splitlines()
        ('▼ −0.100', ['−0.200 to −0.010', 'worse'])
    """
    drop = (estimate or {}).get("drop")
    if not drop:
        return Cell("–", "", "empty")
    if drop["value"] is None:
        return Cell("no drop", str(drop.get("reason") or ""), "none")
    return change_cell(metric, drop, smaller=gap)


def _signed(value: float) -> str:
    text = words.number(abs(value))
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def _blocks(runs: Json) -> Iterator[tuple[str, str, Json]]:
    """(run, set, numbers), run by run."""
    for run, sets in runs.items():
        for name, block in sets.items():
            yield run, name, block


def _row_title(run: str, name: str, result: Json) -> str:
    return _titled(name, result) if len(result["runs"]) == 1 else f"{run}: {_titled(name, result)}"


def _titled(name: str, result: Json) -> str:
    return OWN_TITLE if name == result["own"] else name


def _positive(overall: Json) -> Cell:
    n, positive = overall.get("n"), overall.get("n_positive")
    return Cell("–", "", "empty") if not n or positive is None else Cell(f"{100 * positive / n:.1f}%", "", "count")


def _sure(result: Json) -> str:
    return f"{100 * float(result.get('provenance', {}).get('confidence', 0.95)):g}% interval"
