"""Group x label cells of the training rows: the unit that balancing, re-weighting and GroupDRO work on.

A row whose attribute is missing (code -1) or that is unlabelled belongs to no cell: an unknown group is not a group, so
nothing is balanced towards it. What a method does with such rows (weigh 1, leave out) is the method's own rule.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Split, Task
from evenhand.methods.fitting import label_columns


@dataclass(frozen=True)
class Cells:
    """The cells of one label.

    Attributes:
        codes: int64 (n,), position in ``names``, -1 for rows without a cell.
        names: one text a cell that occurs: ``site=a, ill=1``.
        label: int64 (G,), the label value of each cell (-1 for cells by group only).
    """

    codes: npt.NDArray[np.int64]
    names: tuple[str, ...]
    label: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows of each cell, (G,)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


def choose_attribute(task: Task, asked: str | None) -> str:
    """The attribute a method works on: the one asked for, else the task's first.

    Raises:
        MethodError: the task has no attribute, or not this one.
    """
    if not task.attributes:
        raise MethodError("this method needs a sensitive attribute, but the data set has none; set data.attributes, or use linear_probe")
    if asked is None:
        return task.attributes[0]
    if asked not in task.attributes:
        near = difflib.get_close_matches(asked, task.attributes, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "; set data.attributes or method.attribute"
        raise MethodError(f"method.attribute is '{asked}', but the task has {', '.join(task.attributes)}{hint}")
    return asked


def groups_of(split: Split, attribute: str) -> Groups:
    """The groups of one attribute in a split.

    Raises:
        MethodError: fewer than two groups occur, so there is nothing to compare.
    """
    groups = split.groups[attribute]
    present = len(np.unique(groups.codes[groups.codes >= 0]))
    if present < 2:
        raise MethodError(f"attribute '{attribute}' has {present} group among these rows, but two are needed; choose another attribute")
    return groups


def make_cells(
    groups: Groups, label: str, codes: npt.NDArray[np.int64], labelled: npt.NDArray[np.bool_], by: str = "group_label"
) -> Cells:
    """Cells of one label.

    Args:
        groups: the attribute of every row.
        label: the label's name.
        codes: label values (n,).
        labelled: which rows are labelled.
        by: "group_label", or "group" for groups alone.

    Example:
        >>> groups = Groups("sex", ("f", "m"), np.array([0, 1, 1, -1]))
        >>> cells = make_cells(groups, "ill", np.array([1, 0, 1, 1]), np.array([True] * 4))
        >>> cells.names, cells.codes
        (('sex=f, ill=1', 'sex=m, ill=0', 'sex=m, ill=1'), array([ 0,  1,  2, -1]))
    """
    known = labelled & (groups.codes >= 0)
    width = int(codes.max(initial=0)) + 1 if by == "group_label" else 1
    flat = groups.codes * width + (codes if by == "group_label" else 0)
    present, inverse = np.unique(flat[known], return_inverse=True)
    out = np.full(len(flat), -1, dtype=np.int64)
    out[known] = inverse
    values = present % width if by == "group_label" else np.full(len(present), -1)
    texts = [f", {label}={value}" if by == "group_label" else "" for value in values]
    names = tuple(f"{groups.attribute}={groups.keys[flat_code // width]}{text}" for flat_code, text in zip(present, texts, strict=True))
    return Cells(out, names, values.astype(np.int64))


def split_cells(split: Split, task: Task, attribute: str, by: str = "group_label") -> list[Cells]:
    """The cells of every label of a split.

    Raises:
        MethodError: fewer than two groups occur.
    """
    groups = groups_of(split, attribute)
    return [
        make_cells(groups, label, codes, labelled, by)
        for label, (codes, labelled) in zip(task.labels, label_columns(split.y, task.kind), strict=True)
    ]


def equal_weights(cells: Cells) -> npt.NDArray[np.float64]:
    """n / (G n_cell) for the n rows in G cells, so that every cell has the same total and the mean is 1; 1 for rows in no cell."""
    counts = cells.counts
    weights = np.ones(len(cells.codes))
    known = cells.codes >= 0
    weights[known] = (counts.sum() / (len(counts) * counts))[cells.codes[known]]
    return weights


def stacked(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One column as (n,), several as (n, L), as the training loop takes them."""
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def missing_note(groups: Groups, rule: str) -> tuple[str, ...]:
    """A sentence on the rows whose attribute is missing, if there are any."""
    count = int((groups.codes < 0).sum())
    return (f"{count} of {len(groups)} training rows have no '{groups.attribute}'; they {rule}",) if count else ()
