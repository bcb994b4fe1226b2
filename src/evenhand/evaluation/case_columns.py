"""Case-mix columns: which cell of age, view, site, severity, … every judged row lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import Groups, bin_groups, category_groups, joint_groups, quantile_edges, quantile_groups
from evenhand.errors import ConfigError
from evenhand.evaluation.cohort import Cohort
from evenhand.evaluation.predictions import need_column

IntArray = npt.NDArray[np.int64]

MOST_VALUES = 10
"""A numeric column with more distinct values than this is cut at its quintiles."""


@dataclass(frozen=True)
class CaseMix:
    """The cells of the case-mix columns.

    Attributes:
        columns: the columns that were used.
        keys: the cells, as ``[40,60)*PA``; only those that occur.
        codes: (n,) cell of each judged row, -1 where a column is empty.
        cuts: column -> edges, of numeric columns.
        skipped: columns left out because they are the attribute itself.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...]
    codes: IntArray
    cuts: dict[str, list[float]]
    skipped: tuple[str, ...]


def check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse case-mix columns that the table does not have, or that are named twice.

    Raises:
        TableError: there is no such column; the nearest name is offered.
        ConfigError: a column is named twice.
    """
    for name in columns:
        need_column(frame, name, "case-mix column")
        if list(columns).count(name) > 1:
            raise ConfigError(f"case-mix column '{name}' is named twice; name each column once")


def case_mix(cohort: Cohort, columns: Sequence[str], attribute: str, bins: Mapping[str, Sequence[float]]) -> CaseMix:
    """Cut the columns into cells.

    A column that is audited as an attribute has that attribute's groups; else one with bins is cut by them; else a numeric
    column of more than `MOST_VALUES` values is cut at the quintiles of the judged rows; else its values are the categories.
    A column that is (part of) the attribute itself is left out: its groups never share a cell.

    Args:
        cohort: the judged rows.
        columns: names of columns.
        attribute: whose gaps are to be standardised.
        bins: numeric column -> edges.

    Raises:
        TableError: there is no such column.
    """
    own = attribute.split("*")
    skipped = tuple(name for name in columns if name in own)
    used = tuple(name for name in columns if name not in own)
    cuts: dict[str, list[float]] = {}
    parts = [_column(cohort, name, bins, cuts) for name in used]
    if not parts:
        return CaseMix((), (), np.full(len(cohort.patient), -1, dtype=np.int64), {}, skipped)
    groups = parts[0] if len(parts) == 1 else joint_groups(parts)
    return CaseMix(used, groups.keys, groups.codes, cuts, skipped)


def _column(cohort: Cohort, name: str, bins: Mapping[str, Sequence[float]], cuts: dict[str, list[float]]) -> Groups:
    if name in cohort.groups:
        return cohort.groups[name]
    column = need_column(cohort.frame, name, "case-mix column")
    if name in bins:
        cuts[name] = [float(edge) for edge in bins[name]]
        return bin_groups(column, bins[name], name)
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.nunique() <= MOST_VALUES or (numbers.isna() & column.notna()).any():
        return category_groups(column, name)
    edges = quantile_edges(numbers[np.isfinite(numbers)].to_numpy(float), 5, name)
    cuts[name] = list(edges)
    return quantile_groups(column, edges, name)


def mix_json(mix: CaseMix) -> dict[str, Any]:
    """What the report says about the columns."""
    return {
        "columns": list(mix.columns),
        "skipped": list(mix.skipped),
        "cuts": mix.cuts,
        "n_cells": len(mix.keys),
        "n_left_out": int((mix.codes < 0).sum()),
    }
