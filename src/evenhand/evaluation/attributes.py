"""The groups of the rows of a table of predictions, and what happens to rows whose attribute is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import Groups, bin_groups, category_groups, joint_groups
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.predictions import GROUP_SUFFIX, need_column

MISSING_KEY = "(missing)"
"""The row of an audit that holds the patients whose attribute is unknown; it enters no gap."""

POLICIES = ("own_group", "drop", "error")


def audit_groups(frame: pd.DataFrame, attributes: Sequence[str], bins: Mapping[str, Sequence[float]], max_groups: int) -> dict[str, Groups]:
    """The groups of every attribute, joint ones included.

    A column with bins is cut by them; otherwise ``<attribute>__group`` is taken where the table has it, else the values
    of the column are the groups.

    Args:
        frame: one row an image.
        attributes: columns, or columns joined by ``*``.
        bins: column -> edges.
        max_groups: most groups one attribute may have.

    Raises:
        TableError: an unknown column, no value at all, or too many groups.
    """
    single = {part: _one(frame, part, bins) for name in attributes for part in name.split("*")}
    found = {}
    for name in attributes:
        parts = [single[part] for part in name.split("*")]
        groups = parts[0] if len(parts) == 1 else joint_groups(parts)
        if (groups.codes < 0).all():
            raise TableError(f"attribute '{name}' is missing in all {len(frame)} rows; fill the column or leave the attribute out")
        n_groups = len(np.unique(groups.codes[groups.codes >= 0]))
        if n_groups > max_groups:
            hint = _fewer(frame, name, bins)
            raise TableError(
                f"attribute '{name}' has {n_groups} groups, but at most {max_groups} are allowed; {hint}, or raise --max-groups"
            )
        found[name] = groups
    return found


def _fewer(frame: pd.DataFrame, name: str, bins: Mapping[str, Sequence[float]]) -> str:
    """How an attribute gets fewer groups."""
    if "*" in name or name in bins:
        return "use wider bins or fewer attributes"
    numeric = name in frame.columns and pd.to_numeric(frame[name], errors="coerce").notna().any()
    return f"give bins, as {name}=0,60,200" if numeric else "merge values"


def _one(frame: pd.DataFrame, name: str, bins: Mapping[str, Sequence[float]]) -> Groups:
    if name not in bins and f"{name}{GROUP_SUFFIX}" in frame.columns:
        groups = category_groups(frame[f"{name}{GROUP_SUFFIX}"], name)
        return _in_order_of_bins(groups)
    column = need_column(frame, name, "attribute")
    return bin_groups(column, bins[name], name) if name in bins else category_groups(column, name)


def _in_order_of_bins(groups: Groups) -> Groups:
    """Bin keys by their lower edge, not alphabetically ([100,200) after [60,100))."""
    try:
        edges = [float(key.removeprefix("[").split(",")[0]) for key in groups.keys]
    except ValueError:
        return groups
    order = np.argsort(edges, kind="stable")
    position = np.append(np.argsort(order), -1)
    return Groups(groups.attribute, tuple(groups.keys[i] for i in order), position[groups.codes])


def rows_kept(groups: Mapping[str, Groups], missing: str, n_rows: int) -> npt.NDArray[np.bool_]:
    """Which rows stay under a missing policy.

    Args:
        groups: attribute -> groups of every row.
        missing: ``own_group`` keeps all rows, ``drop`` leaves out those with any missing attribute, ``error`` refuses.
        n_rows: rows of the table.

    Raises:
        ConfigError: an unknown policy.
        TableError: rows with a missing attribute under ``error``.
    """
    if missing not in POLICIES:
        raise ConfigError(f"missing='{missing}' is not one of {', '.join(POLICIES)}")
    absent = np.zeros(n_rows, dtype=bool)
    for item in groups.values():
        absent |= item.codes < 0
    if missing == "error" and absent.any():
        lines = [f"row {row + 1}: {name} is empty" for name, item in groups.items() for row in np.flatnonzero(item.codes < 0)]
        raise TableError(
            f"{int(absent.sum())} rows have a missing attribute, and missing=error refuses them; fill them in or use own_group or drop",
            lines,
        )
    return ~absent if missing == "drop" else np.ones(n_rows, dtype=bool)
