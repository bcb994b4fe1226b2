"""A gap, explained: how much of it goes with case mix, and how much with prevalence.

Words matter here. "Goes with" is what standardisation can show; it is not "is caused by", and a gap that goes with case
mix is still a gap for the patients of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.evaluation.case_columns import CaseMix, case_mix, mix_json
from evenhand.evaluation.case_plans import Plan, Values, compile_groups, effective_patients, merged, plan_of, strata_of
from evenhand.evaluation.cohort import Cohort, Question
from evenhand.metrics.bootstrap import bootstrap_blocks, percentile_interval
from evenhand.metrics.standardise import standard_weights

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BY_CASE_MIX = ("auc", "accuracy", "balanced_accuracy", "f1", "tpr", "fpr", "tnr", "fnr", "ppv", "npv", "positive_rate", "brier", "log_loss")
"""Metrics that are standardised over the case-mix columns."""

BY_PREVALENCE = ("average_precision", "accuracy", "f1", "ppv", "npv", "positive_rate", "brier", "log_loss", "net_benefit")
"""Metrics that depend on prevalence, compared at the overall one; average precision, which takes long, only where
``config.metrics`` names it."""

_MOST_LISTED = 10


def explain(
    cohort: Cohort,
    groups: Groups,
    config: AuditConfig,
    *,
    seed: int = 0,
    threads: int = 1,
    bins: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, dict[str, Any]]:
    r"""Standardised and prevalence-matched gaps of one attribute, for every label or class.

    Each group's metric is taken under the pooled mix over the cells of ``config.adjust`` (`evenhand.metrics.standardise`):
    TPR over the mix of positives, FPR over that of negatives, AUC over both, the rest over the mix of all rows. Cells that a
    group lacks are left out for all; the raw gap is then taken over the same cells, so that raw and standardised gap
    differ by the mix alone. The gap is signed: high minus low, where low and high are the two groups that are furthest
    apart before standardising. With more than two groups this choice makes the raw gap the largest of many.

    *Prevalence-matched*: positives and negatives of each group are weighted to the overall prevalence; a group needs
    ``config.min_patients`` patients of either class.

    Not estimable where fewer than two groups keep at least half of the pooled mix in common and an effective number
    (Kish) of at least ``config.min_patients`` patients. Intervals: percentiles of the patient-clustered bootstrap, mixes
    and weights made anew in each replicate.

    Args:
        cohort: the judged rows.
        groups: of the attribute.
        config: ``adjust``, ``metrics``, ``bootstrap``, ``confidence``, ``min_patients``.
        seed: of the audit; the replicates are those of the attribute's own table.
        threads: blocks of replicates at a time; does not change the result.
        bins: numeric column -> edges.

    Returns:
        Label -> ``{columns, skipped, cuts, n_cells, n_left_out, metrics, prevalence_matched}``. ``metrics`` and
        ``prevalence_matched`` hold, for each metric::

            {"groups_apart": [low, high],
             "gap": {value, lower, upper, n},                # raw, on the common support
             "standardised": {value, lower, upper, n},       # the same two groups under the pooled mix
             "difference": {value, lower, upper, n},         # gap - standardised: what goes with the mix
             "explained_share": {value, lower, upper, n} or {value: null, …, reason},
             "largest_standardised": number,                 # max - min over all groups, no interval
             "coverage": number,                             # pooled rows on the common support
             "lacking": [{"cell", "groups": […], "share"}],  # largest first, at most 10
             "n_lacking": int,
             "groups": {g: {value, lower, upper, n, n_effective, raw: {value, lower, upper, n}}},
             "excluded": [{group, reason, n}]}

        or ``{"gap": {value: null, lower: null, upper: null, reason, n, n_positive}, "excluded": […]}``. ``metrics`` is
        empty without columns.

    Raises:
        TableError: there is no such column.
    """
    mix = case_mix(cohort, config.adjust, groups.attribute, bins or {})
    plans = {question.name: _plans(question, cohort, groups, mix, config) for question in cohort.questions}
    by_question = [[plan for found in by_kind.values() for plan in found if not plan.reason] for by_kind in plans.values()]
    flat = [plan for found in by_question for plan in found]
    ones = np.ones((int(cohort.patient.max()) + 1, 1))
    strata = np.full(len(ones), np.iinfo(np.int64).max)
    np.minimum.at(strata, cohort.patient, groups.codes)

    def statistic(weights: FloatArray) -> list[list[tuple[Values, Values]]]:
        found = []
        for asked in by_question:
            every = {id(group): group for plan in asked for group in plan.groups}
            draws = {key: group.draw(weights) for key, group in every.items()}
            found += [plan.values([draws[id(group)] for group in plan.groups]) for plan in asked]
        return found

    drawn = bootstrap_blocks(statistic, strata, config.bootstrap, seed, groups.attribute, threads=threads) if config.bootstrap else ()
    blocks = list(drawn) if flat else []
    observed = statistic(ones)
    numbers = {id(plan): (observed[k], [block[k] for block in blocks]) for k, plan in enumerate(flat)}
    return {
        name: {
            **mix_json(mix),
            **{kind: _kind_json(found, numbers, ones, config) for kind, found in by_kind.items()},
        }
        for name, by_kind in plans.items()
    }


def _plans(question: Question, cohort: Cohort, groups: Groups, mix: CaseMix, config: AuditConfig) -> dict[str, list[Plan]]:
    """Plans of one question: by case mix, and by prevalence."""
    chosen = set(config.metrics) or {*BY_CASE_MIX, *BY_PREVALENCE} - {"average_precision"}
    found: dict[str, list[Plan]] = {"metrics": [], "prevalence_matched": []}
    n_cells = len(mix.keys)
    if n_cells:
        compiled = compile_groups(question, cohort, groups, mix.codes, max(n_cells, 1))
        for metric in BY_CASE_MIX:
            if metric in chosen:
                found["metrics"].append(plan_of(metric, compiled, *strata_of(metric, mix.keys), config.min_patients))
    compiled = compile_groups(question, cohort, groups, np.zeros(len(cohort.patient), np.int64), 1)
    for metric in BY_PREVALENCE:
        if metric in chosen and not (metric == "net_benefit" and question.threshold["value"] is None):
            by_label = np.array([0, 1]), np.zeros(2, np.int64), ("negative", "positive")
            found["prevalence_matched"].append(plan_of(metric, compiled, *by_label, config.min_patients, both_classes=True))
    return {kind: merged(plans) for kind, plans in found.items()}


def _kind_json(
    plans: Sequence[Plan], numbers: Mapping[int, tuple[Any, list[Any]]], ones: FloatArray, config: AuditConfig
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for plan in plans:
        if plan.reason:
            n, n_positive = sum(group.cell.n for group in plan.groups), sum(group.cell.n_positive for group in plan.groups)
            gap = {"value": None, "lower": None, "upper": None, "reason": plan.reason, "n": n, "n_positive": n_positive}
            found.update({metric: {"gap": gap, "excluded": list(plan.excluded)} for metric in plan.metrics})
            continue
        values, blocks = numbers[id(plan)]
        support = _support_json(plan, ones)
        for metric in plan.metrics:
            found[metric] = {**_metric_json(metric, plan, values, blocks, config.confidence), **support}
    return found


def _support_json(plan: Plan, ones: FloatArray) -> dict[str, Any]:
    counts = plan.counts(plan.draws(ones))
    pooled = counts.sum(axis=0)[:, 0]
    block_total = np.bincount(plan.block, pooled)[plan.block]
    lacking = [
        {
            "cell": plan.names[s],
            "groups": [group.key for group, own in zip(plan.groups, counts[:, s, 0], strict=True) if own == 0],
            "share": float(pooled[s] / block_total[s]),
        }
        for s in np.argsort(-pooled, kind="stable")
        if pooled[s] > 0 and (counts[:, s, 0] == 0).any()
    ]
    coverage = float(standard_weights(counts, plan.block).coverage.min())
    return {"coverage": coverage, "lacking": lacking[:_MOST_LISTED], "n_lacking": len(lacking), "excluded": list(plan.excluded)}


def _metric_json(
    metric: str, plan: Plan, values: list[tuple[Values, Values]], blocks: Sequence[Sequence[tuple[Values, Values]]], confidence: float
) -> dict[str, Any]:
    raw, standard = (np.array([float(pair[side][metric][0]) for pair in values]) for side in (0, 1))
    draws = [
        np.stack([np.concatenate([block[g][side][metric] for block in blocks]) if blocks else np.zeros(0) for g in range(len(values))])
        for side in (0, 1)
    ]
    low, high = int(np.argmin(raw)), int(np.argmax(raw))
    apart = [side[high] - side[low] for side in (raw, standard)]
    moved = [side[high] - side[low] for side in draws]
    rows = [group.by_patient.denominator(metric)[0] for group in plan.groups]
    n, effective = rows[low] + rows[high], effective_patients(plan)
    gap = _estimate(apart[0], moved[0], confidence, n)
    groups = {
        group.key: {
            **_estimate(standard[g], draws[1][g], confidence, rows[g]),
            "n_effective": round(effective[g], 1),
            "raw": _estimate(raw[g], draws[0][g], confidence, rows[g]),
        }
        for g, group in enumerate(plan.groups)
    }
    return {
        "groups_apart": [plan.groups[low].key, plan.groups[high].key],
        "gap": gap,
        "standardised": _estimate(apart[1], moved[1], confidence, n),
        "difference": _estimate(apart[0] - apart[1], moved[0] - moved[1], confidence, n),
        "explained_share": _share(apart, moved, gap, confidence),
        "largest_standardised": float(np.ptp(standard)),
        "groups": groups,
    }


def _estimate(value: float, draws: FloatArray, confidence: float, n: int) -> dict[str, Any]:
    lower, upper, _ = percentile_interval(draws, confidence)
    known = bool(np.isfinite(lower))
    return {
        "value": float(value),
        "lower": min(lower, float(value)) if known else None,
        "upper": max(upper, float(value)) if known else None,
        "n": n,
    }


def _share(apart: list[float], moved: list[FloatArray], gap: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """(gap - standardised) / gap, where the gap is clearly above 0; else the ratio means nothing."""
    if gap["lower"] is None or gap["lower"] <= 0:
        reason = "the gap itself is not clearly above 0" if gap["lower"] is not None else "there are no bootstrap replicates"
        return {"value": None, "lower": None, "upper": None, "reason": reason, "n": gap["n"]}
    raw, standard = moved
    shares = np.divide(raw - standard, raw, out=np.full(len(raw), np.nan), where=raw > 0)
    return _estimate((apart[0] - apart[1]) / apart[0], shares, confidence, gap["n"])
