"""Counts of few patients are not shown, and neither are those from which they could be worked out within one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
WITHHELD = "withheld"


def withhold(sizes: npt.NDArray[np.integer[Any]], sensitive: BoolArray, unguarded: Sequence[int] = (), least: int = 0) -> BoolArray:
    """Which cells of a table with its totals must not be shown.

    The last row and the last column are totals. A cell that is alone in its row or column would follow from the others, so the
    smallest other cell that is not empty goes with it, until no line has a single one. Empty cells are shown. Differences
    between tables (a joint attribute against its parts) are not guarded.

    Args:
        sizes: (r, c) counts, totals included.
        sensitive: (r, c) cells that are too small to show.
        unguarded: rows whose small cells are hidden, but may follow from the others: those of patients without the attribute, who
            are no group, and for whom a large group would else have to be hidden.
        least: where hidden cells are shown as "<least" or as withheld (so from ``least`` on): a line whose rest leaves one solution for
            them, as 2 for two cells that are not empty, gets one more. 0: hidden cells are not told apart.

    Returns:
        (r, c) bool.

    Example:
        >>> sizes = np.array([[3, 40, 43], [9, 50, 59], [20, 60, 80], [32, 150, 182]])
        >>> withhold(sizes, (sizes > 0) & (sizes < 5)).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    """
    hidden = np.array(sensitive, dtype=bool)
    free = np.isin(np.arange(len(sizes)), unguarded)
    changed = True
    while changed:
        changed = False
        lines = [(hidden[row], sizes[row], np.zeros(sizes.shape[1], bool)) for row in np.flatnonzero(~free)]
        lines += [(hidden[:, column], sizes[:, column], free) for column in range(sizes.shape[1])]
        for own, size, excused in lines:
            open_cells = np.flatnonzero(~own & (size > 0) & ~excused)
            alone = own.sum() == 1 and not (own & excused).any() and len(own) > 1
            if (alone or _one_solution(own, size, least)) and len(open_cells):
                own[open_cells[np.argmin(size[open_cells])]] = True
                changed = True
    return hidden


def _one_solution(own: BoolArray, size: npt.NDArray[np.integer[Any]], least: int) -> bool:
    """Whether several hidden cells of a line follow from its total, because each is known to be small or not."""
    hidden = size[own]
    if not least or len(hidden) < 2 or own[-1]:
        return False
    small = hidden < least
    lowest = np.where(small, 1, least).sum()
    return bool(hidden.sum() == lowest or (small.all() and hidden.sum() == len(hidden) * (least - 1)))


def shown_count(count: int, hidden: bool, least: int) -> int | str:
    """A count as the card has it: itself, '<5' where it is small, 'withheld' where it would give away a small one.

    Example:
        >>> shown_count(3, True, 5), shown_count(12, True, 5), shown_count(12, False, 5)
        ('<5', 'withheld', 12)
    """
    if not hidden:
        return int(count)
    return f"<{least}" if 0 < count < least else WITHHELD
