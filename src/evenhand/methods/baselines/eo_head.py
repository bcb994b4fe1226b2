"""A linear head with a smooth equalized-odds penalty.

    J = mean loss + l2 / 2 ||W||^2 + strength * P

    t_g = mean of p over rows of group g with label 1,   f_g = the same with label 0     (p the soft score)
    v_ab = s(t_a - t_b) + s(f_a - f_b),                  s(x) = sqrt(x^2 + eps) - sqrt(eps)
    P = tau log mean_ab exp(v_ab / tau)  (pairs=max, a smooth worst pair), or mean_ab v_ab  (pairs=mean)

Absolute gaps are summed, so opposite gaps of TPR and FPR cannot cancel. Rates are over all training rows at once, never
per batch. Any number of groups: over all pairs a < b; a rate that a group has no rows for enters no pair. Rows whose
attribute is missing count in the loss and not in P. Multi-label: one head, and one penalty, per label. Multi-class: each
class against the rest, summed. P is not convex: the search starts at the plain head, so the result is never worse in J.

References:
    The equalized-odds criterion: Hardt, Price, Srebro, NeurIPS 2016, arXiv 1610.02413. Soft-score penalties of this kind:
    Bechavod, Ligett, "Penalizing unfairness in binary classification", arXiv 1707.00044; the smooth absolute value,
    the worst pair and the search are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.methods import EOHeadConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import choose_attribute, groups_of, missing_note
from evenhand.methods.fitting import fit_head, label_columns
from evenhand.methods.heads import Array, LogisticProblem
from evenhand.methods.predictors import probabilities
from evenhand.methods.registry import register

EPS = 1e-4
TAU = 0.02


@dataclass
class OddsPenalty:
    """strength * P as a function of all logits, with its exact gradient.

    Attributes:
        groups: int64 (n,), -1 where missing.
        y: label or class codes (n,).
        labelled: (n,).
        n_groups: K.
        n_classes: 1, or the number of classes.
        strength: weight of the penalty.
        pairs: "max" or "mean".
    """

    groups: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.bool_]
    n_groups: int
    n_classes: int = 1
    strength: float = 1.0
    pairs: str = "max"
    _cells: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = self.labelled & (self.groups >= 0)
        for wanted in range(self.n_classes) if self.n_classes > 1 else (1,):
            cell = self.groups * 2 + (self.y == wanted)
            self._cells.append(np.where(known, cell, 2 * self.n_groups))

    @property
    def estimable(self) -> bool:
        """Whether any rate can be compared between two groups."""
        return any(self._comparable(np.bincount(c, minlength=2 * self.n_groups + 1)[:-1]).any() for c in self._cells)

    def _comparable(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(pairs, 2): both groups of a pair have rows with label 0, and with label 1."""
        first, second = np.triu_indices(self.n_groups, 1)
        present = counts.reshape(self.n_groups, 2) > 0
        return np.asarray(present[first] & present[second])

    def gap(self, z: Array) -> float:
        """P itself, without its strength."""
        p = probabilities(z, "multiclass" if self.n_classes > 1 else "binary")
        return sum(self._column(p[:, c], cells)[0] for c, cells in enumerate(self._cells))

    def __call__(self, z: Array) -> tuple[float, Array]:
        """Value, and gradient (n, K) with respect to the logits."""
        p = probabilities(z, "multiclass" if self.n_classes > 1 else "binary")
        value, slope = 0.0, np.empty_like(p)
        for column, cells in enumerate(self._cells):
            part, slope[:, column] = self._column(p[:, column], cells)
            value += part
        if self.n_classes > 1:
            slope = p * (slope - (slope * p).sum(axis=1, keepdims=True))
        else:
            slope *= p * (1.0 - p)
        return self.strength * value, self.strength * slope

    def _column(self, p: Array, cells: npt.NDArray[np.int64]) -> tuple[float, Array]:
        """P of one score column and its gradient with respect to the scores."""
        size = 2 * self.n_groups
        counts = np.bincount(cells, minlength=size + 1)[:size]
        means = np.bincount(cells, p, minlength=size + 1)[:size] / np.maximum(counts, 1)
        first, second = np.triu_indices(self.n_groups, 1)
        comparable = self._comparable(counts)
        usable = comparable.any(axis=1)
        if not usable.any():
            return 0.0, np.zeros_like(p)
        first, second, comparable = first[usable], second[usable], comparable[usable]
        rates = means.reshape(self.n_groups, 2)
        difference = (rates[first] - rates[second]) * comparable
        root = np.sqrt(difference**2 + EPS)
        value, share = self._over_pairs((root - np.sqrt(EPS)).sum(axis=1))
        pull = share[:, None] * difference / root
        slope = np.zeros((self.n_groups, 2))
        np.add.at(slope, first, pull)
        np.add.at(slope, second, -pull)
        per_row = np.append(slope.ravel() / np.maximum(counts, 1), 0.0)
        return value, per_row[cells]

    def _over_pairs(self, v: Array) -> tuple[float, Array]:
        if self.pairs == "mean":
            return float(v.mean()), np.full(len(v), 1.0 / len(v))
        e = np.exp((v - v.max()) / TAU)
        return float(v.max() + TAU * np.log(e.mean())), e / e.sum()


@register("eo_head")
class EOHead:
    """Logistic regression on frozen embeddings with an equalized-odds penalty.

    Args:
        config: its options; see `EOHeadConfig`.
    """

    def __init__(self, config: EOHeadConfig | None = None) -> None:
        self.config = config or EOHeadConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows; deterministic, the seed is not used.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups, or no label has a rate that two groups share.
        """
        config = self.config
        attribute = choose_attribute(task, config.attribute)
        groups = groups_of(task.train, attribute)
        spec = head_spec(task, config, max_iter=config.max_iter)
        penalties = [
            OddsPenalty(groups.codes, codes, labelled, len(groups.keys), spec.n_classes, config.strength, config.pairs)
            for codes, labelled in label_columns(task.train.y, task.kind)
        ]
        if not any(penalty.estimable for penalty in penalties):
            raise MethodError(f"no two groups of '{attribute}' have training rows of the same label; use reweight or linear_probe")

        def solve(problem: LogisticProblem, label: int) -> tuple[Array, dict[str, Any]]:
            return _penalised(problem, penalties[label], config)

        head = fit_head(task.embed(task.train.x), task.train.y, spec, solve=solve)
        notes = missing_note(groups, "count in the loss and in no gap")
        without = [name for name, penalty in zip(task.labels, penalties, strict=True) if not penalty.estimable]
        if without:
            notes += (f"no two groups of '{attribute}' share a rate for {', '.join(without)}; these heads have no penalty",)
        return head_result(task, head, notes)


def _penalised(problem: LogisticProblem, penalty: OddsPenalty, config: EOHeadConfig) -> tuple[Array, dict[str, Any]]:
    plain = problem.solve(max_iter=config.max_iter, tol=1e-6)
    problem.term = penalty
    found = problem.solve(max_iter=config.max_iter, tol=1e-6, theta=plain.theta)
    before, after = penalty.gap(problem.logits(plain.theta)), penalty.gap(problem.logits(found.theta))
    record = {"objective": found.value, "iterations": found.n_iter, "converged": found.converged}
    return found.theta, {**record, "soft_gap_plain": before, "soft_gap": after}
