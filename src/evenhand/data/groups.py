"""Patient groups as small integers: categories, numbers cut into bins, and joint attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.errors import InputError, TableError

LEADING_ZERO = r"[+-]?0\d"
"""Text that begins so is a code, not a number."""


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
    numbers, missing = _numbers(values)
    outside = ~missing & ~((numbers >= edges[0]) & (numbers < edges[-1]))
    if outside.any():
        rows = np.flatnonzero(outside)
        raise TableError(
            f"column '{attribute}' has {counted(len(rows), 'value', 'values')} outside its bins [{edges[0]:g}, {edges[-1]:g}); "
            "widen the edges or correct the values",
            [f"row {row + 1}: {attribute} is {cell(values.iloc[row])}" for row in rows],
        )
    codes = np.searchsorted(np.asarray(edges[1:-1], float), numbers, side="right").astype(np.int64)
    codes[missing] = -1
    return Groups(attribute, tuple(bin_key(a, b) for a, b in pairwise(edges)), codes)


def category_groups(values: pd.Series, attribute: str) -> Groups:
    """One group per distinct value, in sorted order (numbers as numbers); empty is missing.

    Text that reads as numbers is one group a number ("1" and "1.0" are the same), unless a value has a leading zero:
    then it is a code, and "01" stays "01".

    Example:
        >>> category_groups(pd.Series(["10", "9", None]), "site").keys
        ('9', '10')
        >>> category_groups(pd.Series(["10", "09", None]), "site").keys
        ('09', '10')
    """
    codes, distinct = pd.factorize(values)
    texts = pd.Series(distinct).astype("string").str.strip().fillna("")
    numbers = pd.to_numeric(texts, errors="coerce")
    present = texts != ""
    if present.any() and numbers[present].notna().all() and not texts.str.match(LEADING_ZERO).any():
        order = sorted(set(numbers[present]))
        position: dict[object, int] = {number: code for code, number in enumerate(order)}
        keys = [number_key(number) for number in order]
        table = [position[number] if ok else -1 for number, ok in zip(numbers, present, strict=True)]
    else:
        keys = sorted(set(texts[present]))
        position = {key: code for code, key in enumerate(keys)}
        table = [position.get(text, -1) for text in texts]
    return Groups(attribute, tuple(keys), np.array([*table, -1], dtype=np.int64)[codes])


def cell(value: object) -> str:
    """A cell as a message shows it: text in quotes, numbers bare, emptiness in words.

    Example:
        >>> cell("a"), cell(np.int64(2)), cell(None)
        ("'a'", '2', 'empty')
    """
    if isinstance(value, str):
        return repr(value)
    return "empty" if value is None or value is pd.NA or value != value else str(value)


def number_key(number: float) -> str:
    """A number as a group key: whole numbers in full, others to 15 digits.

    Example:
        >>> number_key(1234567.0), number_key(0.5)
        ('1234567', '0.5')
    """
    return f"{number:.15g}"


def quantile_edges(values: npt.NDArray[np.float64], n_bins: int, attribute: str) -> tuple[float, ...]:
    """The edges of bins that hold about as many values each.

    The k-th inner edge is the k/q quantile (linear interpolation, as numpy and pandas have it). Ties are kept together, so
    that there may be fewer bins than asked for, of unequal size; a last bin of one value, [90,90], is possible.

    Args:
        values: finite numbers, one for each patient and value.
        n_bins: q, at least 2.
        attribute: for messages.

    Raises:
        TableError: no values, or so many ties that one bin is left.

    Example:
        >>> quantile_edges(np.arange(9.0), 4, "age")
        (0.0, 2.0, 4.0, 6.0, 8.0)
    """
    if not len(values):
        raise TableError(f"attribute '{attribute}' has no value in the judged rows, so it has no quantiles; fill it or leave it out")
    edges = np.quantile(values, np.linspace(0, 1, n_bins + 1))
    inner = np.unique(edges[1:-1])
    inner = inner[inner > edges[0]]
    if not len(inner):
        raise TableError(
            f"attribute '{attribute}' is {edges[0]:g} in so many rows that its q{n_bins} bins are one; give edges, as {attribute}=0,60,200"
        )
    return tuple(float(edge) for edge in (edges[0], *inner, edges[-1]))


def quantile_groups(values: pd.Series, edges: Sequence[float], attribute: str) -> Groups:
    """Cut numbers at edges from `quantile_edges`: [e_0, e_1), …, and a last bin closed at the top, [e_(k-1), e_k].

    Rows outside the outermost edges (of other splits than the one that the quantiles are of) fall into the outermost bins.

    Args:
        values: numbers; empty is missing.
        edges: increasing; the last two may be equal.
        attribute: the column's name.

    Raises:
        TableError: values that are not numbers, each with its row.
    """
    numbers = measured(values, attribute)
    codes = np.searchsorted(np.asarray(edges[1:-1], float), numbers, side="right").astype(np.int64)
    codes[np.isnan(numbers)] = -1
    names = [f"{edge:g}" for edge in edges]
    if len(set(names)) < len(set(edges)):
        names = [number_key(edge) for edge in edges]
    last = len(edges) - 2
    return Groups(attribute, tuple(f"[{a},{b}{']' if k == last else ')'}" for k, (a, b) in enumerate(pairwise(names))), codes)


def measured(values: pd.Series, attribute: str) -> npt.NDArray[np.float64]:
    """A column of finite numbers, NaN where empty.

    Raises:
        TableError: values that are not numbers, each with its row.
    """
    numbers, missing = _numbers(values)
    wrong = np.flatnonzero(~missing & ~np.isfinite(numbers))
    if len(wrong):
        values_wrong = counted(len(wrong), "value that is no number", "values that are not numbers")
        raise TableError(
            f"column '{attribute}' has {values_wrong}, so it cannot be cut into quantile bins; correct the column",
            [f"row {row + 1}: {attribute} is {cell(values.iloc[row])}" for row in wrong],
        )
    return numbers


def _numbers(values: pd.Series) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(numbers, NaN where there is none; where the cell is empty)."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if pd.api.types.is_numeric_dtype(values):
        return numbers, values.isna().to_numpy(bool)
    text = values.astype("string").str.strip()
    return numbers, (text.isna() | (text == "")).fillna(True).to_numpy(bool)


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
