"""GroupDRO where the answer is known: by hand, and by a general-purpose solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from evenhand.config.methods import GroupDROConfig
from evenhand.methods.baselines.group_dro import GroupDRO, solve_worst_cell
from evenhand.methods.cells import Cells
from evenhand.methods.heads import LogisticProblem


def cells_of(codes):
    codes = np.asarray(codes)
    return Cells(codes, tuple(f"c{c}" for c in range(codes.max() + 1)), np.full(codes.max() + 1, -1))


def test_intercept_only_by_hand():
    """Features are 0, so p is one number: the cell with labels 1 costs -log p, that with labels 0 costs -log(1 - p).

    Nine rows against one: the plain fit says p = 0.9, the worst cell's loss is least at p = 0.5 with q = (1/2, 1/2).
    """
    y = np.array([1] * 9 + [0])
    problem = LogisticProblem(np.zeros((10, 1), np.float32), y, np.full(10, 0.1), 1e-3)
    theta, record = solve_worst_cell(problem, cells_of([0] * 9 + [1]), GroupDROConfig(gap_tol=1e-8))
    assert theta[0, -1] == pytest.approx(0, abs=1e-3)
    assert record["objective"] == pytest.approx(np.log(2), abs=1e-4)
    assert list(record["cell_weights"].values()) == pytest.approx([0.5, 0.5], abs=1e-3)


def test_adjustment_favours_the_small_cell_by_hand():
    """With C: -log p + C/3 = -log(1 - p) + C, so the log odds are -2C/3 (cells of 9 and 1 rows)."""
    y = np.array([1] * 9 + [0])
    problem = LogisticProblem(np.zeros((10, 1), np.float32), y, np.full(10, 0.1), 1e-3)
    config = GroupDROConfig(gap_tol=1e-8, adjustment=0.6)
    theta, _ = solve_worst_cell(problem, cells_of([0] * 9 + [1]), config)
    assert theta[0, -1] == pytest.approx(-0.4, abs=1e-3)


def test_agrees_with_a_general_solver():
    rng = np.random.default_rng(5)
    n, d, l2 = 240, 3, 0.05
    codes = rng.integers(0, 3, n)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = (x[:, 0] * np.array([2.0, -0.5, 0.3])[codes] + rng.standard_normal(n) > 0).astype(int)
    problem = LogisticProblem(x, y, np.full(n, 1 / n), l2)
    _, record = solve_worst_cell(problem, cells_of(codes), GroupDROConfig(gap_tol=1e-5, tol=1e-8))

    def losses(v):
        z = x.astype(float) @ v[:d] + v[d]
        rows = np.logaddexp(0, z) - y * z
        return np.array([rows[codes == c].mean() for c in range(3)])

    # epigraph form: minimise t + penalty with t >= every cell's loss
    limits = [{"type": "ineq", "fun": lambda v: v[-1] - losses(v[:-1])}]
    start = np.append(np.zeros(d + 1), 2.0)
    peer = minimize(lambda v: v[-1] + l2 / 2 * (v[:d] ** 2).sum(), start, constraints=limits, method="SLSQP", tol=1e-12)
    assert record["converged"]
    assert record["objective"] == pytest.approx(peer.fun, abs=1e-5)


def test_worst_cell_is_better_than_that_of_the_plain_fit(make_task):
    from evenhand.config.methods import LinearProbeConfig
    from evenhand.methods.baselines.linear_probe import LinearProbe
    from evenhand.methods.cells import split_cells

    task = make_task("binary", 3)
    cells = split_cells(task.train, task, "site")[0]

    def worst(result):
        p = result.predict(task.train.x)[0][:, 0]
        rows = -np.log(np.where(task.train.y[:, 0] == 1, p, 1 - p))
        return max(rows[cells.codes == c].mean() for c in range(len(cells.names)))

    assert worst(GroupDRO(GroupDROConfig()).fit(task)) < worst(LinearProbe(LinearProbeConfig()).fit(task)) - 0.05
