"""The audit as tables: one long table with a row an estimate, and the files of ``tables/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

COLUMNS = [
    "label",
    "attribute",
    "group",
    "kind",
    "metric",
    "value",
    "lower",
    "upper",
    "n",
    "n_positive",
    "p",
    "p_holm",
    "low_group",
    "high_group",
    "reason",
    "n_patients",
    "n_groups",
    "n_excluded",
    "excluded",
    "ratio",
    "worst_group",
    "worst_value",
    "worst_lower",
    "worst_upper",
    "to_overall",
    "to_overall_group",
    "bound_lower",
    "bound_upper",
    "bound_interval_lower",
    "bound_interval_upper",
    "bound_exact",
    "n_missing",
]

TABLES = ("estimates", "gaps", "verdicts", "intersections", "drivers", "explained", "power")
"""The files of ``tables/``, in the order of the report."""

_OF_GAPS = ["p", "p_holm", "low_group", "high_group", *COLUMNS[COLUMNS.index("n_groups") :]]
_OF_VALUES = ["group", "n_positive", "n_patients"]


def long_table(labels: Mapping[str, Any]) -> pd.DataFrame:
    """One row an estimate: label, attribute, group (empty: overall), metric, kind (value or gap) and the numbers.

    Of continuous values the spread and the quantiles are rows too (``sd``, ``q25``), without limits. ``excluded`` lists the
    groups that entered no gap, each with its reason; ``bound_lower`` and ``bound_upper`` enclose the gap whatever groups the rows
    with a missing attribute have, ``bound_interval_lower`` and ``bound_interval_upper`` with chance added.

    Args:
        labels: the ``labels`` part of audit.json.
    """
    return pd.DataFrame(list(_table_rows(labels)), columns=COLUMNS)


def _table_rows(labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for label, item in labels.items():
        yield from _estimate_rows({"label": label, "attribute": "", "group": ""}, item["overall"])
        for attribute, part in item["attributes"].items():
            for group, row in part["groups"].items():
                yield from _estimate_rows({"label": label, "attribute": attribute, "group": group}, row)
            for metric, gap in part["gaps"].items():
                yield {"label": label, "attribute": attribute, "group": "", "kind": "gap", "metric": metric, **_flat_gap(gap)}


def _flat_gap(gap: Mapping[str, Any]) -> dict[str, Any]:
    """A gap of audit.json with plain cells only."""
    low, high = gap["groups"] or (None, None)
    worst, apart, bounds = gap.get("worst") or {}, gap.get("to_overall") or {}, gap.get("bounds") or {}
    inside = bounds.get("interval") or (None, None)
    left_out = gap.get("excluded") or []
    return {
        **gap,
        "low_group": low,
        "high_group": high,
        "n_excluded": len(left_out),
        "excluded": "; ".join(f"{item['group']}: {item['reason']}" for item in left_out),
        **{f"worst_{name}": worst.get(name) for name in ("group", "value", "lower", "upper")},
        "to_overall": apart.get("value"),
        "to_overall_group": apart.get("group"),
        "bound_lower": bounds.get("lower"),
        "bound_upper": bounds.get("upper"),
        "bound_interval_lower": inside[0],
        "bound_interval_upper": inside[1],
        "bound_exact": bounds.get("exact"),
        "n_missing": bounds.get("n_missing"),
    }


def _estimate_rows(where: dict[str, str], row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    counts = {"n_positive": row.get("n_positive"), "n_patients": row.get("n_patients")}
    for metric, found in row.items():
        if isinstance(found, Mapping) and "value" in found:
            yield {**where, "kind": "value", "metric": metric, **counts, **found}
    quantiles = {f"q{100 * float(level):g}": number for level, number in (row.get("quantiles") or {}).items()}
    for metric, number in {"sd": row.get("sd"), **quantiles}.items():
        if number is not None:
            yield {**where, "kind": "value", "metric": metric, "value": number, "n": row["n"], **counts}


def audit_tables(audit: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of an audit by their names in `TABLES`: estimates, gaps and verdicts always, the others where audit.json has them.

    Args:
        audit: audit.json.

    Returns:
        ``estimates``, ``gaps``, ``verdicts``; ``intersections`` and ``drivers`` with a row each; ``explained`` with a row for
        each number (``quantity``: gap, standardised, difference, explained_share, or group; ``by``: case_mix or prevalence);
        ``power`` with a row for each gap.
    """
    labels = audit["labels"]
    table = long_table(labels)
    verdict = ["code", "label", "attribute", "group", "metric", "value", "lower", "upper", "text"]
    found = {
        "estimates": table[table["kind"] == "value"].drop(columns=["kind", *_OF_GAPS]),
        "gaps": table[table["kind"] == "gap"].drop(columns=["kind", *_OF_VALUES]),
        "verdicts": pd.DataFrame(audit["verdicts"], columns=verdict),
    }
    more = {
        "intersections": _records(labels, "intersections"),
        "drivers": _records(labels, "drivers"),
        "explained": list(_explained_rows(labels)),
        "power": list(_power_rows(labels)),
    }
    found |= {name: pd.DataFrame(rows) for name, rows in more.items() if rows}
    return {name: _with_counts(frame) for name, frame in found.items()}


def _with_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers also where some are missing."""
    counts = [name for name in ("n", "n_positive", "n_patients", "n_groups", "n_excluded", "n_missing") if name in frame.columns]
    return frame.astype(dict.fromkeys(counts, "Int64"))


def _records(labels: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of one list of every label, a pair of groups as two cells."""
    rows = []
    for label, item in labels.items():
        for record in item.get(name) or ():
            pair = record.get("groups")
            groups = {"low_group": pair[0], "high_group": pair[1]} if pair else {}
            rows.append({"label": label, **{key: cell for key, cell in record.items() if key != "groups"}, **groups})
    return rows


def _parts(labels: Mapping[str, Any], name: str) -> Iterator[tuple[dict[str, str], Mapping[str, Any]]]:
    for label, item in labels.items():
        for attribute, part in item["attributes"].items():
            if part.get(name):
                yield {"label": label, "attribute": attribute}, part[name]


def _explained_rows(labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for where, part in _parts(labels, "explained"):
        for by, name in (("case_mix", "metrics"), ("prevalence", "prevalence_matched")):
            for metric, found in (part.get(name) or {}).items():
                columns = "*".join(part.get("columns") or ()) if by == "case_mix" else "label"
                start = {**where, "by": by, "columns": columns, "metric": metric, "coverage": found.get("coverage")}
                for quantity in ("gap", "standardised", "difference", "explained_share"):
                    if found.get(quantity):
                        yield {**start, "quantity": quantity, "group": None, **_numbers(found[quantity])}
                for group, row in (found.get("groups") or {}).items():
                    yield {**start, "quantity": "group", "group": group, **_numbers(row), "raw": (row.get("raw") or {}).get("value")}


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found.get(name) for name in ("value", "lower", "upper", "n", "n_effective", "reason")}


def _power_rows(labels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for where, part in _parts(labels, "power"):
        for metric, found in part.items():
            plain = {name: cell for name, cell in found.items() if not isinstance(cell, (Mapping, list, tuple))}
            low, high = found.get("pair") or (None, None)
            needed = {f"{name}_{gap}": number for name in ("needed", "times") for gap, number in (found.get(name) or {}).items()}
            yield {**where, "metric": metric, **plain, "low_group": low, "high_group": high, **needed}
