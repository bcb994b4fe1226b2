"""From the audit's dictionary to the rows and cells that the templates print; no HTML here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evenhand.metrics.gaps import COMBINED
from evenhand.report import words

MAIN = ("auc", "tpr", "fpr", "positive_rate")
MANY_GROUPS = 12
COUNTS = {"n": "images", "n_patients": "patients", "n_positive": "positive"}
SPREAD = {"sd": "SD", "quantiles": "middle half"}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell: a value with its interval below, or why there is none.

    Attributes:
        text: the value, or 'not estimable'.
        small: the interval, or the reason with its count.
        state: 'ok', 'none' (not estimable), 'empty' (not asked for), 'count', 'text', 'soft', 'up', 'down', 'bar'.
        shade: for heat maps, 0 (best) to 5 (worst); None is no shade.
        bar: the length of a bar below the text, from 0 to 1.
    """

    text: str
    small: str = ""
    state: str = "ok"
    shade: int | None = None
    bar: float | None = None

    @property
    def classes(self) -> str:
        """Its classes in the style sheet."""
        look = {"none": "none", "text": "l", "soft": "soft", "up": "up", "down": "down"}.get(self.state, "")
        return look if self.shade is None else f"{look} h{self.shade}".strip()


@dataclass(frozen=True)
class Row:
    """One row of a table; ``kind`` is 'overall', 'group', 'missing' or 'run'.

    Where every estimate of a row is missing for one reason, ``merged`` says it once and ``cells`` holds the counts only.
    """

    name: str
    cells: tuple[Cell, ...]
    kind: str = "group"
    merged: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its columns and its rows."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def worded(self) -> frozenset[int]:
        """The columns whose cells are words: these are set to the left, headings too."""
        return frozenset(i + 1 for row in self.rows[:3] for i, cell in enumerate(row.cells) if cell.state == "text")


def estimate_cell(estimate: Json | None, digits: int = 3) -> Cell:
    """The cell of an estimate of audit.json.

    Example:
        >>> estimate_cell({"value": 0.8, "lower": 0.7, "upper": 0.9, "n": 50})
        Cell(text='0.800', small='0.700 to 0.900', state='ok', shade=None, bar=None)
        >>> estimate_cell({"value": None, "lower": None, "upper": None, "reason": "too few positives", "n": 4}).small
        'too few positives, n = 4'
    """
    if not estimate:
        return Cell("–", "", "empty")
    if estimate.get("value") is None:
        said = words.brief_reason(estimate.get("reason"))
        size = "" if estimate.get("n") is None or any(ch.isdigit() for ch in said) else f"n = {words.count(estimate['n'])}"
        return Cell("not estimable", ", ".join(part for part in (said, size) if part), "none")
    lower, upper = estimate.get("lower"), estimate.get("upper")
    interval = "no interval" if lower is None or upper is None else f"{words.number(lower, digits)} to {words.number(upper, digits)}"
    return Cell(words.number(estimate["value"], digits), interval)


def count_cell(value: Any) -> Cell:
    """The cell of a count."""
    return Cell(words.count(value), "", "count")


def metrics_of(blocks: Iterable[Json]) -> tuple[str, ...]:
    """The metrics that occur in any of the blocks (overall or group), in the order of the published list."""
    found = {name for block in blocks for name, value in block.items() if isinstance(value, Mapping) and "value" in value}
    known = [name for name in (*MAIN, *words.MEASURES) if name in found]
    return tuple(dict.fromkeys([*known, *sorted(found)]))


def group_table(name: str, attribute: Json, overall: Json, metrics: Sequence[str]) -> Table:
    """Everyone, each group, and those whose attribute is missing, with counts and the metrics asked for."""
    counts = [key for key in COUNTS if key != "n_positive" or any(key in block for block in (overall, *attribute["groups"].values()))]
    more = [key for key in ("sd", "quantiles") if key in overall]
    titles = [words.measure(metric).title for metric in metrics]
    columns = ("group", *(COUNTS[key] for key in counts), *titles, *(SPREAD[key] for key in more))
    rows = [_group_row("everyone", overall, counts, metrics, "overall")]
    rows += [_group_row(words.group_label(name, key), block, counts, metrics, "group") for key, block in known_groups(attribute).items()]
    absent = [block for block in attribute["groups"].values() if block.get("missing")]
    if not absent and attribute.get("n_missing"):
        absent = [{"n": attribute["n_missing"]}]
    rows += [_group_row(f"{words.group_label(name, name)} not recorded", block, counts, metrics, "missing") for block in absent]
    return Table(columns, tuple(rows))


def excluded_key(entry: Any) -> str:
    """The group of an entry of a gap's ``excluded`` list: a key, or a record with its reason."""
    return str(entry["group"]) if isinstance(entry, Mapping) else str(entry)


def known_groups(attribute: Json) -> dict[str, Json]:
    """The groups of an attribute without the rows where it is missing.

    Example:
        >>> list(known_groups({"groups": {"f": {"n": 3}, "(missing)": {"n": 1, "missing": True}}}))
        ['f']
    """
    return {key: block for key, block in attribute.get("groups", {}).items() if not block.get("missing")}


def gap_table(name: str, attribute: Json, chosen: Sequence[str] | None = None, overall: Json | None = None) -> Table:
    """One row a gap: value and interval, everyone's value, p, corrected p, lowest and highest group, groups left out if any are."""
    rows = []
    some_left_out = any(gap.get("excluded") for metric, gap in attribute.get("gaps", {}).items() if chosen is None or metric in chosen)
    for metric, gap in attribute.get("gaps", {}).items():
        if chosen is not None and metric not in chosen:
            continue
        low, high = gap.get("groups") or (None, None)
        between = "" if low is None else f"{words.group_label(name, str(low))} – {words.group_label(name, str(high))}"
        left_out = [words.group_label(name, excluded_key(entry)) for entry in gap.get("excluded") or ()]
        cells = (
            estimate_cell(gap),
            *(() if overall is None else (everyone_cell(metric, gap, overall),)),
            Cell(words.p_value(gap.get("p")) or "–", "", "count"),
            Cell(words.p_value(gap.get("p_holm")) or "–", "", "count"),
            Cell(between or "–", "", "text"),
            *((Cell(words.listing(left_out, 3) or "none", "", "text"),) if some_left_out else ()),
        )
        rows.append(Row(words.gap_title(metric), cells))
    everyone, left = ("everyone",) if overall is not None else (), ("left out",) if some_left_out else ()
    return Table(("gap", "size and interval", *everyone, "p", "p (Holm)", "lowest – highest group", *left), tuple(rows))


def everyone_cell(metric: str, gap: Json, overall: Json) -> Cell:
    """What the gap is a gap of, over everyone: a gap means little without it.

    Example:
        >>> everyone_cell("equalized_odds", {}, {"tpr": {"value": 0.9}, "fpr": {"value": 0.2}}).text
        'TPR 0.900'
    """
    parts = (str(gap["measure"]),) if gap.get("measure") else COMBINED.get(metric, (metric,))
    said = [(words.measure(part).title.split(" (")[0], words.number((overall.get(part) or {}).get("value")) or "–") for part in parts]
    if len(parts) == 1:
        return Cell(said[0][1], "" if parts == (metric,) else said[0][0], "soft")
    first, *others = [f"{title} {number}" for title, number in said]
    return Cell(first, "\n".join(others), "soft")


def overall_table(overall: Json, metrics: Sequence[str], confidence: str = "95%") -> Table:
    """One row a measure, over all audited images: value and interval in columns of their own."""
    rows = []
    for metric in metrics:
        if not overall.get(metric):
            continue
        cell, title = estimate_cell(overall[metric]), words.measure(metric).title
        if cell.state == "none":
            rows.append(Row(title, (), "group", f"not estimable: {cell.small}"))
        else:
            rows.append(Row(title, (Cell(cell.text), Cell(cell.small, "", "soft"))))
    return Table(("measure", "value", f"{confidence} interval"), tuple(rows))


def heat_table(labels: Mapping[str, Json], metric: str = "auc") -> Table:
    """Label x group, one cell an AUC, darker where it is lower; an attribute of many groups shows its lowest, highest and gap."""
    attributes = _attribute_groups(labels)
    columns = ["label", "positive", "everyone"]
    for name, keys in attributes.items():
        columns += [words.group_label(name, key) for key in keys] if len(keys) <= MANY_GROUPS else [f"{name}: lowest", f"{name}: highest"]
        columns.append(f"{name}: gap")
    rows = []
    for label, block in labels.items():
        cells = [count_cell(block["overall"].get("n_positive")), heat_cell(block["overall"].get(metric))]
        for name, keys in attributes.items():
            attribute = block["attributes"].get(name, {"groups": {}})
            cells += _heat_cells(attribute, keys, metric)
            cells.append(replace(heat_cell(attribute.get("gaps", {}).get(metric)), shade=None))
        rows.append(Row(label, tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def heat_cell(estimate: Json | None) -> Cell:
    """An AUC with a shade: 0 from 0.9 up, one step darker per 0.08 below."""
    cell = estimate_cell(estimate, 2)
    if cell.state != "ok" or estimate is None:
        return Cell("n/e" if cell.state == "none" else cell.text, "", cell.state)
    return Cell(cell.text, cell.small.replace(" to ", "–"), cell.state, min(5, max(0, int((0.98 - float(estimate["value"])) / 0.08))))


def spans(labels: Mapping[str, Json]) -> list[tuple[str, int]]:
    """Attribute headings over the heat map's columns, with how many columns each spans."""
    return [(name, (len(keys) if len(keys) <= MANY_GROUPS else 2) + 1) for name, keys in _attribute_groups(labels).items()]


def not_estimable(labels: Mapping[str, Json], metrics: Sequence[str] = MAIN) -> list[tuple[str, str, str, str, str]]:
    """(label, attribute, group, metric, reason) of every group estimate of these metrics that could not be made."""
    return [
        (label, name, key, metric, group[metric].get("reason") or "")
        for label, block in labels.items()
        for name, attribute in block["attributes"].items()
        for key, group in known_groups(attribute).items()
        for metric in metrics
        if metric in group and not words.estimable(group[metric])
    ]


def _attribute_groups(labels: Mapping[str, Json]) -> dict[str, list[str]]:
    """Attributes of all labels with the union of their group keys, in order of appearance."""
    found: dict[str, list[str]] = {}
    for block in labels.values():
        for name, attribute in block["attributes"].items():
            keys = found.setdefault(name, [])
            keys += [key for key in known_groups(attribute) if key not in keys]
    return found


def _heat_cells(attribute: Json, keys: Sequence[str], metric: str) -> list[Cell]:
    groups = known_groups(attribute)
    if len(keys) <= MANY_GROUPS:
        return [heat_cell(groups.get(key, {}).get(metric)) for key in keys]
    ranked = sorted((g[metric]["value"], key) for key, g in groups.items() if words.estimable(g.get(metric)))
    if not ranked:
        return [Cell("n/e", "", "none")] * 2
    picked = [heat_cell(groups[key][metric]) for _, key in (ranked[0], ranked[-1])]
    return [Cell(cell.text, key, cell.state, cell.shade) for cell, (_, key) in zip(picked, (ranked[0], ranked[-1]), strict=True)]


def _group_row(name: str, block: Json, counted: Sequence[str], metrics: Sequence[str], kind: str) -> Row:
    counts = tuple(count_cell(block.get(key)) for key in counted)
    cells = tuple(estimate_cell(block.get(metric)) for metric in metrics)
    said = {words.reason(block[metric].get("reason")) for metric in metrics if block.get(metric)}
    if cells and len(said) == 1 and all(cell.state == "none" for cell in cells):
        return Row(name, counts, kind, f"not estimable: {said.pop()}")
    return Row(name, counts + cells + _spread_cells(block), kind)


def _spread_cells(block: Json) -> tuple[Cell, ...]:
    """Standard deviation and middle half of a continuous value."""
    if "sd" not in block:
        return ()
    quantiles = block.get("quantiles") or {}
    middle = [words.number(quantiles[q]) for q in ("0.25", "0.75") if quantiles.get(q) is not None]
    return Cell(words.number(block["sd"]) or "–"), Cell(" to ".join(middle) or "–")
