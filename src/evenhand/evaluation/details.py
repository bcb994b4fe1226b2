"""What stands beside the numbers of an audit: bounds over missing attributes, case mix, power, ranked intersections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.evaluation.bounds import gap_bounds
from evenhand.evaluation.casemix import explain
from evenhand.evaluation.cells import Measured
from evenhand.evaluation.cohort import Cohort
from evenhand.evaluation.design import DESIGNED, design_effects
from evenhand.evaluation.intersections import drivers, rank_intersections
from evenhand.evaluation.significance import clustered_variances, members_of
from evenhand.metrics.gaps import Gap
from evenhand.metrics.power import odds_power_block, power_block

POWERED = ("auc", "tpr", "fpr", "positive_rate")
"""Metrics whose power is told."""

Tables = Mapping[str, tuple[Mapping[str, Mapping[int, Measured]], Mapping[str, Mapping[str, Gap]]]]


def add_details(
    data: dict[str, Any],
    cohort: Cohort,
    tables: Tables,
    config: AuditConfig,
    *,
    n_tests: int,
    seed: int,
    threads: int,
    bins: Mapping[str, Sequence[float]],
) -> None:
    """Add ``bounds`` to every gap, ``power`` and ``explained`` to every attribute, ``intersections`` and design effects to every label.

    Macro averages of a multi-class audit have none of them: they are no question about rows.

    Args:
        data: audit.json with its labels; changed in place.
        cohort: the judged rows.
        tables: attribute -> (label -> group code -> numbers, label -> gaps).
        config: how to judge.
        n_tests: tests in the corrected family.
        seed, threads, bins: as in `evenhand.evaluation.evaluate`.
    """
    for name, groups in cohort.groups.items():
        measured, gaps = tables[name]
        explained = explain(cohort, groups, config, seed=seed, threads=threads, bins=bins) if config.details else {}
        for question in cohort.questions:
            place = data["labels"][question.name]["attributes"][name]
            if config.details:
                place["power"] = _power(measured[question.name], groups, config, n_tests)
                place["explained"] = explained[question.name]
            if config.bounds:
                found = gap_bounds(question, groups, cohort.patient, gaps[question.name], reference=config.reference.get(name))
                for metric, bounds in found.items():
                    place["gaps"][metric]["bounds"] = bounds
    for question in cohort.questions:
        overall = data["labels"][question.name]["overall"]
        estimable = [name for name in DESIGNED if overall.get(name, {}).get("value") is not None]
        overall["design_effect"] = design_effects(question, cohort.patient, estimable)
    if config.details and cohort.groups:
        for question in cohort.questions:
            data["labels"][question.name]["intersections"] = rank_intersections(cohort, question, config, seed, threads)
            data["labels"][question.name]["drivers"] = drivers(cohort, question, config)


def _power(measured: Mapping[int, Measured], groups: Groups, config: AuditConfig, n_tests: int) -> dict[str, Any]:
    by_key = {groups.keys[code]: item for code, item in measured.items() if code >= 0}
    members, _ = members_of(by_key, clustered_variances(by_key), config.confidence)
    patients = {key: item.n_patients for key, item in by_key.items()}
    alpha = 1 - config.confidence
    found = {name: power_block(members[name], alpha, max(n_tests, 1), patients=patients) for name in POWERED if name in members}
    if "tpr" in members and "fpr" in members:
        parts = {name: members[name] for name in ("tpr", "fpr")}
        found["equalized_odds"] = odds_power_block(parts, alpha, max(n_tests, 1), patients=patients)
    return found
