"""Patient groups as small integers: categories, numbers cut into bins, and joint attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.errors import InputError, TableError


@dataclass(frozen=True)
class Groups:
    """One attribute's group of every row.

    Attributes:
        attribute: its name; joint attributes are written ``sex*age``.
        keys: the K group keys, in order: a value, a bin ``[0,60)``, or a joint key ``female*[0,60)``.
        codes: int64 (n,), the position in ``keys``, -1 where the attribute is missing.
    """

    attribute: str
    keys: tuple[str, ...]
    codes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Groups:
        """The same groups for a selection of rows; keys stay as they are."""
        return Groups(self.attribute, self.keys, self.codes[rows])

    def names(self) -> npt.NDArray[np.object_]:
        """The key of every row, None where missing."""
        return np.array([*self.keys, None], dtype=object)[self.codes]


def bin_key(low: float, high: float) -> str:
    """The key of the half-open bin [low, high).

    Example:
        >>> bin_key(0, 60)
        '[0,60)'
    """
    return f"[{low:g},{high:g})"


def bin_groups(values: pd.Series, edges: Sequence[float], attribute: str) -> Groups:
    """Cut numbers into half-open bins [e_0, e_1), [e_1, e_2), …

    Args:
        values: numbers; empty is missing.
        edges: at least two increasing numbers.
        attribute: the column's name, for messages and for the result.

    Raises:
        InputError: the edges do not increase.
        TableError: values that are not numbers or lie outside the edges, each with its row.
    """
    if len(edges) < 2 or any(b <= a for a, b in pairwise(edges)):
        raise InputError(f"bins of '{attribute}' are {list(edges)}, but must be at least two increasing edges, as {attribute}=0,60,200")
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    missing = values.isna().to_numpy() | (values.astype("string").str.strip() == "").fillna(True).to_numpy(bool)
    outside = ~missing & ~((numbers >= edges[0]) & (numbers < edges[-1]))
    if outside.any():
        rows = np.flatnonzero(outside)
        raise TableError(
            f"column '{attribute}' has {len(rows)} values outside its bins [{edges[0]:g}, {edges[-1]:g}); "
            "widen the edges or correct the values",
            [f"row {row + 1}: {attribute} is {values.iloc[row]!r}" for row in rows],
        )
    codes = np.searchsorted(np.asarray(edges[1:-1], float), numbers, side="right").astype(np.int64)
    codes[missing] = -1
    return Groups(attribute, tuple(bin_key(a, b) for a, b in pairwise(edges)), codes)


def category_groups(values: pd.Series, attribute: str) -> Groups:
    """One group per distinct value, in sorted order (numbers as numbers); empty is missing."""
    text = values.astype("string").str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    present = text.notna() & (text != "")
    if present.any() and numbers[present].notna().all():
        text = numbers.map(lambda value: f"{value:g}", na_action="ignore").astype("string")
        keys = [f"{value:g}" for value in sorted(set(numbers[present]))]
    else:
        keys = sorted(set(text[present]))
    position = {key: code for code, key in enumerate(keys)}
    codes = np.array([position[key] if ok else -1 for key, ok in zip(text, present, strict=True)], dtype=np.int64)
    return Groups(attribute, tuple(keys), codes)


def joint_groups(parts: Sequence[Groups]) -> Groups:
    """The intersection of several attributes; a row is missing where any part is. Only combinations that occur get a key.

    Example:
        >>> a = Groups("sex", ("f", "m"), np.array([0, 1, -1]))
        >>> b = Groups("age", ("[0,60)", "[60,200)"), np.array([1, 1, 0]))
        >>> joint_groups([a, b]).keys
        ('f*[60,200)', 'm*[60,200)')
    """
    missing = np.zeros(len(parts[0]), dtype=bool)
    flat = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        missing |= part.codes < 0
        flat = flat * max(len(part.keys), 1) + np.maximum(part.codes, 0)
    present, inverse = np.unique(flat[~missing], return_inverse=True)
    keys = []
    for code in present:
        names: list[str] = []
        for part in reversed(parts):
            code, digit = divmod(int(code), max(len(part.keys), 1))
            names.append(part.keys[digit])
        keys.append("*".join(reversed(names)))
    codes = np.full(len(flat), -1, dtype=np.int64)
    codes[~missing] = inverse
    return Groups("*".join(part.attribute for part in parts), tuple(keys), codes)


def make_groups(frame: pd.DataFrame, attribute: str, bins: Mapping[str, Sequence[float]]) -> Groups:
    """The groups of one attribute of a table, joint ones (``sex*age``) included.

    Args:
        frame: one row an image.
        attribute: a column, or columns joined by ``*``.
        bins: column -> edges for numeric columns.

    Raises:
        TableError: see `bin_groups`.
    """
    parts = [
        bin_groups(frame[name], bins[name], name) if name in bins else category_groups(frame[name], name)
        for name in attribute.split("*")
    ]
    return parts[0] if len(parts) == 1 else joint_groups(parts)
