"""Tables of a data card, from its dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.evaluation.card_findings import learning_split, strongest, sure_associations
from evenhand.evaluation.data_counts import MISSING, OVERALL, SMALL
from evenhand.evaluation.small_cells import WITHHELD
from evenhand.report import words
from evenhand.report.page import Part
from evenhand.report.tables import Cell, Row, Table, estimate_cell

Json = Mapping[str, Any]
STATISTICS = ("brightness", "contrast", "sharpness")


def group_name(attribute: str, key: str) -> str:
    """A group's key for reading."""
    if key == OVERALL:
        return "everyone"
    return f"{words.group_label(attribute, attribute)} not recorded" if key == MISSING else words.group_label(attribute, key)


def kind_of(key: str) -> str:
    """The look of a group's row."""
    return {OVERALL: "overall", MISSING: "missing"}.get(key, "group")


def ordered(groups: Mapping[str, Any]) -> list[str]:
    """Group keys as they are shown: everyone first, those without the attribute last."""
    rank = {OVERALL: 0, MISSING: 2}
    return sorted(groups, key=lambda key: rank.get(key, 1))


def _count(value: Any) -> str:
    return value if isinstance(value, str) else words.count(value)


def size_table(attribute: str, groups: Json) -> Table:
    """Images and patients of every group and split."""
    splits = list(next(iter(groups.values())))
    rows = [
        Row(
            group_name(attribute, key),
            tuple(Cell(_count(groups[key][split]["n"]), _patients(groups[key][split]["n_patients"]), "count") for split in splits),
            kind_of(key),
        )
        for key in ordered(groups)
    ]
    return Table(("group", *splits), tuple(rows))


def _patients(n: Any) -> str:
    return "patients withheld" if n == WITHHELD else f"{_count(n)} {'patient' if n == 1 else 'patients'}"


def prevalence_table(attribute: str, groups: Json) -> Table:
    """Positive images of all, their share and its interval, of every group and split."""
    splits = list(next(iter(groups.values())))
    rows = [
        Row(group_name(attribute, key), tuple(cell for split in splits for cell in prevalence_cells(groups[key][split])), kind_of(key))
        for key in ordered(groups)
    ]
    return Table(("group", *(column for split in splits for column in (f"{split}: positive / images", f"{split}: share"))), tuple(rows))


def prevalence_cells(found: Json) -> tuple[Cell, Cell]:
    """(positive of all, share with its interval)."""
    if found["n"] == 0:
        return Cell("0 / 0", "", "count"), Cell("–", "", "empty")
    counts = Cell(f"{_count(found['n_positive'])} / {_count(found['n'])}", _patients(found["n_patients"]), "count")
    if found["value"] is None:
        return counts, Cell("withheld", "small counts", "none")
    return counts, estimate_cell(found)


def association_part(attribute: str, found: Json, splits: Sequence[str]) -> tuple[Part, ...]:
    """Odds ratios of every group by split."""
    if not found["association"]:
        return ()
    order = [name for name in splits if all(name in own for own in found["association"].values())]
    rows = [
        Row(f"{group_name(attribute, key)} against the others", tuple(ratio_cell(own[split]) for split in order))
        for key, own in found["association"].items()
    ]
    return (Part(table=Table(("odds ratio of the label", *order), tuple(rows))),)


def ratio_cell(estimate: Json) -> Cell:
    """An odds ratio with its interval.

    Example:
        >>> ratio_cell({"value": 2.0, "lower": 1.5, "upper": 2.667}).small
        '1.50 to 2.67'
    """
    if estimate["value"] is None:
        small = estimate.get("reason") == SMALL
        return Cell("withheld" if small else "not estimable", "small counts" if small else str(estimate.get("reason") or ""), "none")
    text, low, high = (_ratio(estimate[name]) for name in ("value", "lower", "upper"))
    return Cell(text, f"{low} to {high}" + (" (a cell is empty)" if estimate.get("note") else ""))


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def overview_table(card: Json) -> Table:
    """One row a label, one column an attribute: the odds ratio least likely by chance, where a model learns."""
    split, sure, names = learning_split(card), sure_associations(card), list(card["attributes"])
    rows = []
    for label, block in card["labels"].items():
        cells = []
        for name in names:
            best = strongest(block["attributes"][name]["association"], split)
            if best is None:
                cells.append(Cell("–", "not estimable", "none"))
            else:
                own, mark = ratio_cell(best[1]), "▲ " if (label, name, best[0]) in sure else ""
                cells.append(Cell(f"{mark}{own.text}", f"{own.small}, {group_name(name, best[0])}"))
        rows.append(Row(label, tuple(cells)))
    return Table((f"label ({split})", *(words.group_label(name, name) for name in names)), tuple(rows))


def statistics_table(attribute: str, groups: Json, everyone: Json) -> Table:
    """Grey level, contrast and sharpness of everyone and of every group."""
    blocks = {OVERALL: everyone, **groups}
    rows = [
        Row(
            group_name(attribute, key),
            (Cell(_count(block["n_patients"]), "", "count"), *(estimate_cell(block.get(n), 1) for n in STATISTICS)),
            kind_of(key),
        )
        for key, block in blocks.items()
    ]
    return Table(("group", "patients", *STATISTICS), tuple(rows))


def expected_table(expected: Sequence[Json]) -> Table:
    """Published counts beside those found."""
    rows = [
        Row(
            item["what"],
            (
                Cell(words.count(item["count"]), "", "count"),
                Cell(words.count(item["found"]) if item["found"] is not None else "not recorded", "", "count"),
                Cell(item["origin"], "", "text"),
            ),
        )
        for item in expected
    ]
    return Table(("count", "published", "found", "where published"), tuple(rows))


def chance_cell(chance: Json | None) -> Cell:
    """The middle 95% under permuted groups."""
    return (
        Cell(f"{words.number(chance['lower'], 2)} to {words.number(chance['upper'], 2)}", f"{chance['n']} permutations")
        if chance
        else Cell("–", "", "empty")
    )


def reading_table(probe: Json) -> Table:
    """Every attribute: cross-validated, beside chance, given the (first) label, on test rows, and from grey levels alone."""
    rows = []
    for name, found in probe["attributes"].items():
        own, plain = found["encoder"], found["statistics"]
        given = next(iter(own["labels"].values()), None)
        rows.append(
            Row(
                words.group_label(name, name),
                (
                    estimate_cell(own["folds"]),
                    chance_cell(own["chance"]),
                    estimate_cell(given["given_label"]["folds"] if given else None),
                    estimate_cell(own["test"]),
                    estimate_cell(plain["folds"]),
                    chance_cell(plain["chance"]),
                    estimate_cell(plain["test"]),
                ),
            )
        )
    first = next(iter(next(iter(probe["attributes"].values()))["encoder"]["labels"]), "the label")
    columns = (
        "attribute",
        "AUC",
        "chance",
        f"given {first}",
        "test AUC",
        "grey levels: AUC",
        "grey levels: chance",
        "grey levels: test AUC",
    )
    return Table(columns, tuple(rows))


def given_table(probe: Json) -> Table:
    """AUC of every attribute given each label, and within each of its values."""
    rows = []
    for name, found in probe["attributes"].items():
        for label, own in found["encoder"]["labels"].items():
            title = f"{words.group_label(name, name)}, given {label}"
            rows.append(Row(title, (estimate_cell(own["given_label"]["folds"]), estimate_cell(own["given_label"]["test"])), "overall"))
            rows += [
                Row(f"within {label} = {value}", (estimate_cell(inner), Cell("–", "", "empty"))) for value, inner in own["within"].items()
            ]
    return Table(("attribute and label", "AUC", "test AUC"), tuple(rows))


def group_reading_table(probe: Json) -> Table:
    """AUC of each group against the rest, of attributes of more than two."""
    rows = [
        Row(f"{words.group_label(name, name)}: {words.group_label(name, key)}", (estimate_cell(own),))
        for name, found in probe["attributes"].items()
        for key, own in found["encoder"]["groups"].items()
    ]
    return Table(("group against the rest", "AUC"), tuple(rows))


def label_reading_table(probe: Json) -> Table:
    """Every label from grey levels alone, and from each attribute alone."""
    names = list(probe["attributes"])
    rows = [
        Row(
            label,
            (
                estimate_cell(found["statistics"]["folds"]),
                chance_cell(found["statistics"]["chance"]),
                estimate_cell(found["statistics"]["test"]),
                *(
                    cell
                    for name in names
                    for cell in (estimate_cell(found["attributes"][name]["folds"]), estimate_cell(found["attributes"][name]["test"]))
                ),
            ),
        )
        for label, found in probe["labels"].items()
    ]
    columns = ["label", "grey levels: AUC", "chance", "test AUC"]
    columns += [column for name in names for column in (f"{words.group_label(name, name)} alone: AUC", "test AUC")]
    return Table(tuple(columns), tuple(rows))
