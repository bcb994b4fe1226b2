"""GroupDRO: minimise the loss of the worst group x label cell.

    min_theta  max_g [ L_g(theta) + C / sqrt(n_g) ]  +  l2 / 2 * ||W||^2,        L_g the mean loss of cell g

scope=head solves this convex problem on its dual. With theta(q) the minimiser of sum_g q_g L_g + penalty, the dual
D(q) = min_theta sum_g q_g (L_g + C / sqrt(n_g)) + penalty is concave in q with gradient L_g(theta(q)), and exponentiated
gradient climbs it on the simplex:

    q_g <- q_g exp(eta L_g) / sum_h q_h exp(eta L_h)

from uniform q; eta starts at ``step_size``, doubles after a step that does not lower D and shrinks by four after one
that does, which is undone. It ends when the worst cell's loss is within ``gap_tol`` of the q-weighted mean, a bound on
what is left to gain. Full batch, no randomness. scope=full is the published online algorithm in the training loop.

Any number of groups. Rows whose attribute is missing are in no cell and do not train. Multi-label: with scope=head every
label has a problem of its own; with scope=full all labels' cells compete together.

References:
    Sagawa et al., "Distributionally robust neural networks for group shifts", ICLR 2020, arXiv 1911.08731 (algorithm 1
    is the minibatch form; the full-batch dual ascent reaches the same optimum for a convex head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.methods import GroupDROConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.erm import train_network
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import Cells, choose_attribute, groups_of, missing_note, split_cells, stacked
from evenhand.methods.fitting import Solve, fit_head
from evenhand.methods.heads import Array, LogisticProblem
from evenhand.methods.registry import register

INNER_ITERATIONS = 200
INNER_SHARE = 1e-5
"""Inner problems are solved to this share of ``gap_tol``: tighter only walks on the noise of single-precision products."""


@dataclass(frozen=True)
class _Point:
    q: Array
    theta: Array
    losses: Array
    dual: float
    primal: float


@dataclass
class _Dual:
    """D(q) of one label."""

    problem: LogisticProblem
    cells: Cells
    adjustment: float
    tol: float
    decrease: float

    def at(self, q: Array, theta: Array | None) -> _Point:
        """Solve for theta(q) and look at every cell's loss."""
        counts, codes = self.cells.counts, self.cells.codes
        known = codes >= 0
        self.problem.weight = np.where(known, (q / counts)[codes], 0.0)
        found = self.problem.solve(max_iter=INNER_ITERATIONS, tol=self.tol, theta=theta, decrease=self.decrease)
        rows = self.problem.losses(found.theta)
        losses = np.bincount(codes[known], rows[known], minlength=len(counts)) / counts + self.adjustment / np.sqrt(counts)
        penalty = 0.5 * self.problem.l2 * float(np.vdot(found.theta[:, :-1], found.theta[:, :-1]))
        return _Point(q, found.theta, losses, float(q @ losses) + penalty, float(losses.max()) + penalty)


def solve_worst_cell(problem: LogisticProblem, cells: Cells, config: GroupDROConfig) -> tuple[Array, dict[str, Any]]:
    """Dual ascent on the cells' weights.

    Args:
        problem: the label's rows; its weights are overwritten.
        cells: the cells of the label.
        config: step size, adjustment, tolerances.

    Returns:
        The parameters with the smallest worst-cell objective met, and a record with q, losses and rounds.
    """
    dual = _Dual(problem, cells, config.adjustment, config.tol, INNER_SHARE * config.gap_tol)
    point = best = dual.at(np.full(len(cells.names), 1.0 / len(cells.names)), None)
    step, rounds = config.step_size, 0
    while rounds < config.max_iter and best.primal - point.dual > config.gap_tol and step > 1e-9:
        rounds += 1
        q = point.q * np.exp(step * (point.losses - point.losses.max()))
        trial = dual.at(q / q.sum(), point.theta)
        best = min(best, trial, key=lambda p: p.primal)
        if trial.dual >= point.dual - 1e-9 * abs(point.dual):
            point, step = trial, step * 2.0
        else:
            step /= 4.0
    bound = best.primal - point.dual
    record = {"objective": best.primal, "bound": bound, "iterations": rounds, "converged": bound <= config.gap_tol}
    weights = {name: float(value) for name, value in zip(cells.names, point.q, strict=True)}
    losses = {name: float(value) for name, value in zip(cells.names, best.losses, strict=True)}
    return best.theta, {**record, "cell_weights": weights, "cell_losses": losses}


def _joint_codes(cells: Sequence[Cells]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Cells of all labels numbered together, as the loop takes them, and their counts."""
    shifted, offset = [], 0
    for item in cells:
        shifted.append(np.where(item.codes >= 0, item.codes + offset, -1))
        offset += len(item.names)
    return stacked(shifted), np.concatenate([item.counts for item in cells])


@register("group_dro")
class GroupDRO:
    """Distributionally robust optimisation over group x label cells, or over groups.

    Args:
        config: its options; see `GroupDROConfig`.
    """

    def __init__(self, config: GroupDROConfig | None = None) -> None:
        self.config = config or GroupDROConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups.
        """
        attribute = choose_attribute(task, self.config.attribute)
        notes = missing_note(groups_of(task.train, attribute), "are in no cell and do not train")
        cells = split_cells(task.train, task, attribute, self.config.cells)
        if self.config.scope == "full":
            result = self._full(task, cells)
            return replace(result, notes=(*result.notes, *notes))
        spec = head_spec(task, self.config, max_iter=self.config.max_iter, tol=self.config.tol)
        # rows without a cell must not count when it is asked whether a label has two classes
        weights = [(item.codes >= 0).astype(np.float64) for item in cells]
        head = fit_head(task.embed(task.train.x), task.train.y, spec, weights=weights, solve=self._solve(cells))
        return head_result(task, head, notes)

    def _solve(self, cells: Sequence[Cells]) -> Solve:
        return lambda problem, label: solve_worst_cell(problem, cells[label], self.config)

    def _full(self, task: Task, cells: Sequence[Cells]) -> Result:
        from evenhand.training.losses import GroupDROLoss

        codes, counts = _joint_codes(cells)
        if len(counts) < 2:
            raise MethodError(f"group_dro found {len(counts)} cell, but needs two; choose another attribute")
        loss = GroupDROLoss(task.kind, counts, self.config.step_size, self.config.adjustment)
        return train_network(task, task.train, cells=codes, loss=loss)
