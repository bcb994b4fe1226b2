"""Pictures of continuous per-case values by group: how they spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evenhand.report import figures, tables, words
from evenhand.report.page import Part, Picture, Section, picture

if TYPE_CHECKING:
    import pandas as pd

Json = Mapping[str, Any]
FEWEST = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def values_section(key: str, name: str, block: Json, rows: pd.DataFrame, members: Mapping[str, Any]) -> Section | None:
    """The spread of one value in every group of every attribute."""
    import pandas as pd

    if name not in rows:
        return None
    values = pd.to_numeric(rows[name], errors="coerce").to_numpy(float)
    parts = []
    for i, (attribute, found) in enumerate(block["attributes"].items()):
        shown = _spread(f"{key}-{i}", attribute, found, name, block.get("unit"), values, members.get(attribute))
        if shown is not None:
            parts.append(Part(f"By {words.group_label(attribute, attribute)}", figures=(shown,)))
    return Section(f"{key}-curves", "How the values spread", tuple(parts)) if parts else None


def _spread(key: str, name: str, attribute: Json, label: str, unit: str | None, values: Any, member: Any) -> Picture | None:
    if member is None:
        return None
    split = {k: values[(member == k) & np.isfinite(values)] for k in tables.known_groups(attribute)}
    shown = [(words.group_label(name, k), v) for k, v in split.items() if len(v) >= FEWEST]
    if not shown:
        return None
    said = "; ".join(f"{k} median {words.number(float(np.median(v)))}, mean {words.number(float(v.mean()))}" for k, v in shown)
    title = words.group_label(name, name)
    axis = f"{label} ({unit})" if unit else label
    svg = figures.value_ranges(shown, key=f"{key}-spread", summary=f"{label} by {title}. {said}.", axis=axis)
    left_out = len(split) - len(shown)
    how = "Square: median; ring: mean; thick line the middle half, thin line 5% to 95%."
    how += f" Not drawn: {words.plural(left_out, 'group')} with fewer than {FEWEST} images." if left_out else ""
    numbers = tables.Table(("group", *(f"{100 * q:g}%" for q in QUANTILES), "mean"), tuple(_row(k, v) for k, v in shown))
    return picture(f"{label} by {title}", svg, how, numbers)


def _row(name: str, values: Any) -> tables.Row:
    numbers = [*np.quantile(values, QUANTILES), values.mean()]
    return tables.Row(name, tuple(tables.Cell(words.number(float(v))) for v in numbers))
