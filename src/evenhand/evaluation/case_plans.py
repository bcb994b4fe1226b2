"""What can be standardised: which groups share enough of the case mix, metric by metric, and the rows compiled for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.groups import Groups
from evenhand.evaluation.cohort import Cohort, Question
from evenhand.metrics.cells import Cell, make_cell
from evenhand.metrics.net_benefit import threshold_odds
from evenhand.metrics.rates import GIVEN_LABEL, RATES, SUMS, rate
from evenhand.metrics.standardise import effective_units, standard_weights

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEAST_COVERAGE = 0.5
"""Share of the pooled mix that the common support must hold."""

_POSITIVE_ONLY, _NEGATIVE_ONLY = frozenset({"tpr", "fnr"}), frozenset({"fpr", "tnr"})
Values = dict[str, FloatArray]


@dataclass(frozen=True)
class CaseGroup:
    """One group's rows of one question, by (patient, stratum) pair; a stratum is a cell with a label."""

    key: str
    cell: Cell
    patient: IntArray
    stratum: IntArray
    rows: FloatArray
    by_patient: Cell
    table: Any

    def draw(self, weights: FloatArray) -> Draw:
        """The group under weights of the patients: sums by stratum once, whatever is then standardised."""
        own = weights[self.patient]
        return Draw(own, np.asarray(self.table @ own).reshape(-1, len(SUMS), weights.shape[1]))

    def values(self, metrics: tuple[str, ...], draw: Draw, ratio: FloatArray) -> Values:
        """Metrics where a row counts its patient's weight times its stratum's ratio."""
        total = np.einsum("skb,sb->kb", draw.sums, ratio)
        odds, found = threshold_odds(self.cell.threshold), {}
        ranked = tuple(name for name in metrics if name not in (*RATES, "net_benefit"))
        if ranked:
            found = self.cell.values(ranked, draw.weights * ratio[self.stratum])
        return {**found, **{name: rate(name, total, odds) for name in metrics if name not in found}}


@dataclass(frozen=True)
class Draw:
    """One group in one block of bootstrap draws.

    Attributes:
        weights: (pairs, b) of its (patient, stratum) pairs.
        sums: (strata, s, b) weighted `evenhand.metrics.rates.SUMS` of each stratum.
    """

    weights: FloatArray
    sums: FloatArray

    @property
    def counts(self) -> FloatArray:
        """(strata, b) weighted rows."""
        return np.asarray(self.sums[:, :4].sum(axis=1))


@dataclass(frozen=True)
class Plan:
    """Metrics that are standardised alike: over the same strata, for the same groups.

    Attributes:
        metrics: names.
        groups: those that entered.
        level: (2 cells,) stratum of each (cell, label); -1: no part in this metric.
        block: (strata,) block of each stratum.
        names: of the strata.
        excluded: groups that did not enter, as ``{group, reason, n}``.
        reason: why there is no comparison; empty where there is one.
    """

    metrics: tuple[str, ...]
    groups: tuple[CaseGroup, ...]
    level: IntArray
    block: IntArray
    names: tuple[str, ...]
    excluded: tuple[dict[str, Any], ...]
    reason: str = ""

    def draws(self, weights: FloatArray) -> list[Draw]:
        """Every group under weights of the patients."""
        return [group.draw(weights) for group in self.groups]

    def counts(self, draws: Sequence[Draw]) -> FloatArray:
        """(g, strata, b) weighted rows."""
        fine = np.stack([draw.counts for draw in draws])
        part = (self.level[:, None] == np.arange(len(self.block))).astype(float)
        return np.asarray(np.einsum("gsb,st->gtb", fine, part))

    def values(self, draws: Sequence[Draw]) -> list[tuple[Values, Values]]:
        """Of each group (raw on the common support, standardised)."""
        standard = standard_weights(self.counts(draws), self.block)
        pad = np.zeros((1, standard.shared.shape[1]))
        shared = np.vstack([standard.shared, pad])[self.level]
        found = []
        for group, draw, ratio in zip(self.groups, draws, standard.ratio, strict=True):
            full = np.vstack([ratio, pad])[self.level]
            found.append((group.values(self.metrics, draw, shared), group.values(self.metrics, draw, full)))
        return found


def compile_groups(question: Question, cohort: Cohort, groups: Groups, codes: IntArray, n_cells: int) -> list[CaseGroup]:
    """Groups that have labelled rows with a cell; stratum = 2 * cell + label."""
    from scipy.sparse import csr_array

    found = []
    for code, key in enumerate(groups.keys):
        use = (groups.codes == code) & (codes >= 0) & ~np.isnan(question.y_true)
        if not use.any():
            continue
        truth, score, decision, patient = (part[use] for part in (question.y_true, question.y_score, question.decision, cohort.patient))
        pair = patient * (2 * n_cells) + 2 * codes[use] + (truth == 1)
        pairs, local = np.unique(pair, return_inverse=True)
        cell = make_cell(truth, score, decision, local, threshold=question.threshold["value"])
        stratum, rows = pairs % (2 * n_cells), np.bincount(local).astype(float)
        places = (stratum[:, None] * len(SUMS) + np.arange(len(SUMS))).ravel(), np.repeat(np.arange(len(pairs)), len(SUMS))
        table = csr_array((cell.sums.ravel(), places), shape=(2 * n_cells * len(SUMS), len(pairs)))
        table.eliminate_zeros()
        by_patient = make_cell(truth, score, decision, patient)
        found.append(CaseGroup(key, cell, pairs // (2 * n_cells), stratum, rows, by_patient, table))
    return found


def strata_of(metric: str, keys: Sequence[str]) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """(stratum of each (cell, label), block of each stratum, names) of a metric over the case mix."""
    cells = np.arange(len(keys))
    level = np.full((len(keys), 2), -1)
    if metric in _POSITIVE_ONLY or metric in _NEGATIVE_ONLY:
        level[:, int(metric in _POSITIVE_ONLY)] = cells
        return level.ravel(), np.zeros(len(keys), np.int64), tuple(keys)
    if metric in GIVEN_LABEL:
        level = np.stack([cells, len(keys) + cells], axis=1)
        names = (*(f"{key}, negative" for key in keys), *(f"{key}, positive" for key in keys))
        return level.ravel(), np.repeat([0, 1], len(keys)), names
    return np.repeat(cells, 2), np.zeros(len(keys), np.int64), tuple(keys)


def plan_of(
    metric: str,
    groups: Sequence[CaseGroup],
    level: IntArray,
    block: IntArray,
    names: tuple[str, ...],
    least: int,
    *,
    both_classes: bool = False,
) -> Plan:
    """Which groups can be compared: enough patients, half of the mix in common, weights that are not carried by a few.

    With ``both_classes`` a group needs enough patients of either class: at another prevalence its number rests on both.
    """
    inside, excluded = [], []
    for group in groups:
        asked = {"in the denominator": metric, **({"of the smaller class": "balanced_accuracy"} if both_classes else {})}
        found = {where: group.by_patient.denominator(name)[1] for where, name in asked.items()}
        where, units = min(found.items(), key=lambda item: item[1])
        if units >= least:
            inside.append(group)
        else:
            excluded.append(_left_out(group, f"{units} patient{'s' * (units != 1)} {where}, at least {least} are needed"))
    while len(inside) >= 2:
        plan = Plan((metric,), tuple(inside), level, block, names, tuple(excluded))
        unfit, reason = _unfit(plan, least)
        if unfit is None:
            return plan
        inside.remove(unfit)
        excluded.append(_left_out(unfit, reason))
    reason = f"{len(inside)} of {len(groups)} groups can be compared, at least 2 are needed"
    reason += f" ({excluded[-1]['group']}: {excluded[-1]['reason']})" if excluded else ""
    return Plan((metric,), tuple(inside), level, block, names, tuple(excluded), reason)


def _left_out(group: CaseGroup, reason: str) -> dict[str, Any]:
    return {"group": group.key, "reason": reason, "n": group.cell.n}


def _unfit(plan: Plan, least: int) -> tuple[CaseGroup | None, str]:
    """The group whose absence helps most where the support is too small, or whose weights rest on too few patients."""
    covered = _coverage(plan)
    if covered < LEAST_COVERAGE:
        without = [
            (
                -_coverage(Plan(plan.metrics, (*plan.groups[:k], *plan.groups[k + 1 :]), plan.level, plan.block, plan.names, ())),
                group.cell.n,
                k,
            )
            for k, group in enumerate(plan.groups)
        ]
        k = min(without)[2]
        return plan.groups[k], f"the groups share cells that hold {covered:.0%} of the pooled mix, at least {LEAST_COVERAGE:.0%} are needed"
    effective = effective_patients(plan)
    k = int(np.argmin(effective))
    if effective[k] < least - 1e-9:
        return plan.groups[k], f"after weighting it counts as {effective[k]:.1f} patients, at least {least} are needed"
    return _without_value(plan), "not defined on the cells that all groups have"


def _without_value(plan: Plan) -> CaseGroup | None:
    """The first group whose rate is 0 / 0 on the common support."""
    if not set(plan.metrics) <= {*RATES, "net_benefit"}:
        return None
    values = plan.values(plan.draws(_ones(plan)))
    numbers = ([float(found[0]) for side in pair for found in side.values()] for pair in values)
    return next((group for group, own in zip(plan.groups, numbers, strict=True) if not np.isfinite(own).all()), None)


def _ones(plan: Plan) -> FloatArray:
    return np.ones((1 + max(int(group.patient.max()) for group in plan.groups), 1))


def _coverage(plan: Plan) -> float:
    return float(standard_weights(plan.counts(plan.draws(_ones(plan))), plan.block).coverage.min())


def effective_patients(plan: Plan) -> list[float]:
    """Effective number of patients of each group, that of the smaller block where there are several."""
    standard = standard_weights(plan.counts(plan.draws(_ones(plan))), plan.block)
    n_blocks, found = int(plan.block.max()) + 1, []
    for group, ratio in zip(plan.groups, standard.ratio[:, :, 0], strict=True):
        stratum = plan.level[group.stratum]
        weight = np.where(stratum >= 0, group.rows * ratio[stratum], 0.0)
        blocks = np.where(stratum >= 0, plan.block[stratum], -1)
        totals = [np.bincount(group.patient[blocks == b], weight[blocks == b], minlength=1) for b in range(n_blocks)]
        found.append(min(effective_units(total.astype(np.float64)) for total in totals))
    return found


def merged(plans: list[Plan]) -> list[Plan]:
    """Plans over the same strata and groups as one, so that weights are made once."""
    found: dict[Any, Plan] = {}
    for plan in plans:
        where = (plan.level.tobytes(), tuple(group.key for group in plan.groups), plan.names)
        if where in found and not plan.reason and not found[where].reason:
            old = found[where]
            found[where] = Plan((*old.metrics, *plan.metrics), old.groups, old.level, old.block, old.names, old.excluded)
        else:
            found[where if not plan.reason else (plan.metrics, where)] = plan
    return list(found.values())
