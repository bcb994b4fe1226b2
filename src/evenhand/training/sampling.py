"""The order in which an epoch sees its rows: a permutation, or draws balanced over cells (group x label)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.errors import InputError
from evenhand.random import generator

Rows = npt.NDArray[np.int64]


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """A random permutation of ``rows`` for one epoch; depends on (seed, epoch) only."""
    return generator(seed, "order", epoch).permutation(rows)


def balanced_order(rows: Rows, cells: npt.NDArray[Any], seed: int, epoch: int) -> Rows:
    """As many draws as there are rows in a cell, every cell equally often, in random order.

    With K cells present and n rows in one of them, each cell gets n // K draws and the first n % K cells (in a random
    order) one more. A cell's own rows are gone through in random order before any of them comes again, so that a large
    cell has no repeats and a small one repeats evenly.

    Args:
        rows: (n,) row positions that may be drawn.
        cells: (n,) integer cell of each of these rows; rows with a negative cell are left out.
        seed: the run's seed.
        epoch: number of the epoch.

    Raises:
        InputError: no row has a cell.

    Example:
        >>> order = balanced_order(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), seed=0, epoch=1)
        >>> int((order < 5).sum()), int((order == 5).sum())
        (3, 3)
    """
    rng = generator(seed, "order", epoch)
    keep = cells >= 0
    rows, cells = rows[keep], cells[keep]
    if len(rows) == 0:
        raise InputError("balanced sampling was asked for, but no training row has a group and a label; check the attribute")
    present = rng.permutation(np.unique(cells))
    share, extra = divmod(len(rows), len(present))
    drawn = [_draw(rows[cells == cell], share + (k < extra), rng) for k, cell in enumerate(present)]
    return rng.permutation(np.concatenate(drawn))


def _draw(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    rounds = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)] or [rows])[:count]


def even_batches(n: int, batch_size: int) -> list[slice]:
    """Cut n slots into ceil(n / batch_size) batches whose sizes differ by at most one.

    No last batch of a single image is left over, which batch normalisation cannot use, and no row is dropped.

    Example:
        >>> [s.stop - s.start for s in even_batches(65, 64)]
        [33, 32]
    """
    count = -(-n // batch_size)
    if count == 0:
        return []
    size, extra = divmod(n, count)
    edges = [k * size + min(k, extra) for k in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
