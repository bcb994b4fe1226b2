"""Resampling: rows are drawn so that every group x label cell is seen equally often.

Every cell is drawn as often as the largest one has rows: whole passes over the cell, and the remainder without
replacement. scope=head fits the linear head once on that sample; scope=full draws anew every epoch. Any number of groups.
Rows whose attribute is missing belong to no cell and are left out (reweight keeps them). Multi-label: scope=head draws
for every label by itself; scope=full cannot, since one draw serves all labels, and is refused.

References:
    Idrissi et al., "Simple data balancing achieves competitive worst-group-accuracy", CLeaR 2022, arXiv 2110.14503 (RWG,
    SUBG); here the smaller cells are repeated and the larger ones kept whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from evenhand.config.methods import ResampleConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.erm import train_network
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import Cells, choose_attribute, groups_of, missing_note, split_cells
from evenhand.methods.fitting import fit_head
from evenhand.methods.registry import register
from evenhand.random import generator


def draw_counts(cells: Cells, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How often each row is drawn: every cell as often as the largest cell has rows; 0 for rows in no cell.

    Example:
        >>> cells = Cells(np.array([0, 0, 0, 1, -1]), ("a", "b"), np.array([0, 1]))
        >>> draw_counts(cells, np.random.default_rng(0))
        array([1., 1., 1., 3., 0.])
    """
    counts = np.zeros(len(cells.codes))
    largest = int(cells.counts.max(initial=0))
    for cell in range(len(cells.names)):
        rows = np.flatnonzero(cells.codes == cell)
        whole, rest = divmod(largest, len(rows))
        counts[rows] = whole
        counts[rng.choice(rows, rest, replace=False)] += 1
    return counts


@register("resample")
class Resample:
    """Empirical risk on rows drawn equally from every group x label cell.

    Args:
        config: its options; see `ResampleConfig`.
    """

    def __init__(self, config: ResampleConfig | None = None) -> None:
        self.config = config or ResampleConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows; the draw derives from the task's seed.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups; several labels with scope=full.
        """
        config = self.config
        attribute = choose_attribute(task, config.attribute)
        if config.scope == "full" and task.kind == "multilabel":
            raise MethodError("resample with scope=full got several labels, but one draw cannot balance all; use reweight, or scope=head")
        notes = missing_note(groups_of(task.train, attribute), "are in no cell and are left out (reweight keeps them)")
        cells = split_cells(task.train, task, attribute)
        if config.scope == "full":
            result = train_network(task, task.train, cells=cells[0].codes, balance=True)
            return replace(result, notes=(*result.notes, *notes))
        weights = [draw_counts(item, generator(task.seed, "resample", label)) for item, label in zip(cells, task.labels, strict=True)]
        spec = head_spec(task, config, max_iter=config.max_iter, tol=config.tol)
        return head_result(task, fit_head(task.embed(task.train.x), task.train.y, spec, weights=weights), notes)
