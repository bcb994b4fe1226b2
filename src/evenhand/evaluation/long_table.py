"""The audit as one long table: a row an estimate."""

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
]


def long_table(labels: Mapping[str, Any]) -> pd.DataFrame:
    """One row an estimate: label, attribute, group (empty: overall), metric, kind (value or gap) and the numbers.

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
                low, high = gap["groups"] or (None, None)
                yield {
                    "label": label,
                    "attribute": attribute,
                    "group": "",
                    "kind": "gap",
                    "metric": metric,
                    **gap,
                    "low_group": low,
                    "high_group": high,
                }


def _estimate_rows(where: dict[str, str], row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, found in row.items():
        if isinstance(found, Mapping) and "value" in found:
            yield {**where, "kind": "value", "metric": metric, "n_positive": row.get("n_positive"), **found}
