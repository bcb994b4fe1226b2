"""Judge a table of predictions: how well it works, for whom, and how sure that is. Sees nothing but the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.errors import ConfigError
from evenhand.evaluation.attributes import MISSING_KEY
from evenhand.evaluation.case_columns import check_columns
from evenhand.evaluation.cells import Measured, average, measure, row_json
from evenhand.evaluation.cohort import Cohort, Question, make_cohort
from evenhand.evaluation.details import add_details
from evenhand.evaluation.document import Document
from evenhand.evaluation.interop import gap_table, group_table
from evenhand.evaluation.long_table import long_table
from evenhand.evaluation.provenance import provenance
from evenhand.evaluation.selection import (
    FEW,
    RESAMPLED,
    SLOW,
    check_names,
    check_numbers,
    check_reference,
    chosen_metrics,
    underdiagnosis_metric,
)
from evenhand.evaluation.significance import (
    Members,
    adjust,
    bootstrap_null,
    clustered_variances,
    large_metrics,
    members_of,
    permuted_null,
    replicate_variances,
)
from evenhand.evaluation.verdicts import audit_verdicts
from evenhand.metrics.bootstrap import processors
from evenhand.metrics.gaps import COMBINED, Gap, all_gaps
from evenhand.metrics.permutation import MIRRORS, REACH
from evenhand.random import generator

SCHEMA = "evenhand.audit/1"
MACRO = "macro"


@dataclass(frozen=True)
class AuditResult(Document):
    """An audit.

    Attributes:
        data: the contract's audit.json as a dict.
        predictions: the table it was made from, all rows.
    """

    predictions: pd.DataFrame

    def to_table(self) -> pd.DataFrame:
        """One row an estimate: label, attribute, group (empty: overall), metric, kind (value or gap) and the numbers."""
        return long_table(self.data["labels"])

    def groups(self, attribute: str | None = None, label: str | None = None) -> pd.DataFrame:
        """Every group's estimates, one row a group and metric; see `evenhand.evaluation.interop.group_table`."""
        return group_table(self.to_table(), attribute, label)

    def gaps(self, attribute: str | None = None, label: str | None = None) -> pd.DataFrame:
        """Every gap, one row a metric; see `evenhand.evaluation.interop.gap_table`."""
        return gap_table(self.to_table(), attribute, label)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """What the numbers say, in plain words; see CONTRACTS."""
        return list(self.data["verdicts"])


def evaluate(
    predictions: pd.DataFrame,
    *,
    labels: Sequence[str],
    attributes: Sequence[str],
    config: AuditConfig | None = None,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    classes: Sequence[str] = (),
    threads: int | None = None,
) -> AuditResult:
    """Audit a table of predictions: test rows are judged, validation rows choose thresholds.

    Args:
        predictions: the contract's columns (see `evenhand.evaluation.make_predictions`).
        labels: label names; several make a multi-label audit.
        attributes: attribute columns; joint ones as ``sex*age``.
        config: how to judge; default: `AuditConfig()`.
        seed: of every random stream.
        thresholds: label -> threshold that wins over the rule (a run's stored ones).
        bins: numeric column -> edges.
        missing: ``own_group`` (a row of its own, in no gap), ``drop`` (rows left out), ``error``.
        classes: class names of a multi-class table: judged one-vs-rest and as ``macro`` averages.
        threads: blocks of replicates at a time; the result is the same for any number. Default: one a processor.

    Raises:
        TableError: the table breaks the contract; nothing was computed.
        ConfigError: an option is wrong.
    """
    config, threads = config or AuditConfig(), threads or processors()
    bins = {name: tuple(float(edge) for edge in edges) for name, edges in (bins or {}).items()}
    cohort = checked_cohort(
        predictions,
        labels=labels,
        classes=classes,
        attributes=attributes,
        bins=bins,
        missing=missing,
        config=config,
        thresholds=thresholds,
    )
    everyone = np.zeros(len(cohort.patient), np.int64)
    overall = _with_macro(cohort, _measure(cohort, everyone, [0], "overall", config, seed, threads, gaps=False))
    everybody = {label: item[0].values for label, item in overall.items()}
    tables = {name: _attribute(cohort, groups, everybody, config, seed, threads) for name, groups in cohort.groups.items()}
    gaps = {(label, name): found for name, (_, by_label) in tables.items() for label, found in by_label.items()}
    n_tests = adjust(gaps, config.primary)
    data: dict[str, Any] = {"schema": SCHEMA, "kind": cohort.kind, "n": len(cohort.patient), "n_patients": cohort.n_patients, "labels": {}}
    for label in overall:
        data["labels"][label] = {
            "threshold": _threshold(cohort, label),
            "overall": row_json(overall[label][0], config.confidence),
            "attributes": {
                name: _attribute_json(cohort.groups[name], tables[name][0][label], gaps[label, name], config) for name in tables
            },
        }
    add_details(data, cohort, tables, config, n_tests=n_tests, seed=seed, threads=threads, bins=bins)
    data["verdicts"] = audit_verdicts(data["labels"], config.primary, config.confidence, cohort.kind)
    failed = sum(item.n_failed for by_label, _ in tables.values() for groups in by_label.values() for item in groups.values())
    data["provenance"] = {
        **provenance(predictions, cohort, config, seed, bins, missing),
        "bootstrap": n_bootstrap(cohort, config),
        "bootstrapped": list(bootstrapped(cohort, config)),
        "permutations": n_permutations(cohort, config),
        "metrics": list(chosen_metrics(config)),
        "tests": {**_kinds_of_test(config), **_drawn_from_the_limit(cohort, tables, config)},
        "reference": dict(config.reference),
        "no_finding": list(config.no_finding),
        "ece_bins": config.ece_bins,
        "failed_replicates": failed,
        "family": {"metrics": list(config.primary), "tests": n_tests, "method": "holm"},
    }
    return AuditResult(data, predictions)


def checked_cohort(predictions: pd.DataFrame, *, classes: Sequence[str], config: AuditConfig, **question: Any) -> Cohort:
    """Everything about an audit that can be refused, before anything is computed; the arguments are those of `evaluate`.

    Raises:
        TableError: the table breaks the contract.
        ConfigError: an option is wrong.
    """
    _check(config, classes)
    check_columns(predictions, config.adjust)
    cohort = make_cohort(predictions, classes=classes, config=config, **question)
    check_reference(config.reference, {name: groups.keys for name, groups in cohort.groups.items()})
    return cohort


def _check(config: AuditConfig, classes: Sequence[str]) -> None:
    check_names(config)
    check_numbers(config)
    if MACRO in classes:
        raise ConfigError(f"a class is named '{MACRO}', which is the name of the average over classes; rename the class")


def _measure(
    cohort: Cohort,
    codes: npt.NDArray[np.int64],
    keys: Sequence[int],
    name: str,
    config: AuditConfig,
    seed: int,
    threads: int,
    *,
    gaps: bool = True,
) -> list[dict[int, Measured]]:
    return measure(
        cohort,
        codes,
        keys,
        name,
        metrics=chosen_metrics(config),
        n_bootstrap=n_bootstrap(cohort, config),
        min_patients=config.min_patients,
        kind=config.interval,
        resampled=bootstrapped(cohort, config, gaps=gaps),
        seed=seed,
        threads=threads,
    )


def bootstrapped(cohort: Cohort, config: AuditConfig, *, gaps: bool = True) -> tuple[str, ...]:
    """The metrics of which bootstrap replicates are made: those whose intervals or tests are read off them.

    All of them with percentile and BCa intervals, with averages over classes, and without permutations; else only those
    that no permutation tests. Everybody together has no gap to test.
    """
    metrics = chosen_metrics(config) if config.bootstrap else ()
    if config.interval != "auto" or cohort.kind == "multiclass" or not config.permutations:
        return metrics
    return tuple(name for name in metrics if name in RESAMPLED and gaps)


def _with_macro(cohort: Cohort, measured: list[dict[int, Measured]]) -> dict[str, dict[int, Measured]]:
    found = {question.name: item for question, item in zip(cohort.questions, measured, strict=True)}
    if cohort.kind == "multiclass":
        found[MACRO] = {key: average([item[key] for item in measured], "classes") for key in measured[0]}
    return found


def n_permutations(cohort: Cohort, config: AuditConfig) -> int:
    """Permutations of the family's tests: those asked for, or `REACH` a test, whichever is more; 0 stays 0.

    Other metrics get those asked for.
    """
    return max(config.permutations, REACH * _family(cohort, config)) if config.permutations else 0


def n_bootstrap(cohort: Cohort, config: AuditConfig) -> int:
    """Bootstrap replicates: those asked for, or `REACH` a test where the family holds tests made by the bootstrap."""
    resampled = not config.permutations or cohort.kind == "multiclass" or RESAMPLED & _primary_parts(config)
    return max(config.bootstrap, REACH * _family(cohort, config)) if config.bootstrap and resampled else config.bootstrap


def _family(cohort: Cohort, config: AuditConfig) -> int:
    return (len(cohort.questions) + (cohort.kind == "multiclass")) * len(cohort.groups) * len(config.primary)


def _kinds_of_test(config: AuditConfig) -> dict[str, list[str]]:
    """Which metrics' gaps are tested by permuting groups, and which by the bootstrap (as are macro averages)."""
    metrics = chosen_metrics(config)
    permuted = [name for name in metrics if name not in RESAMPLED and config.permutations]
    return {"permutation": permuted, "bootstrap": [name for name in metrics if name not in (*permuted, "ece")]}


def _drawn_from_the_limit(
    cohort: Cohort, tables: Mapping[str, tuple[dict[str, dict[int, Measured]], Any]], config: AuditConfig
) -> dict[str, Any]:
    """``normal``: label/attribute -> metrics whose groups are so large that the normal limit stood in for permutations."""
    if not config.permutations:
        return {}
    found = {}
    for attribute, (by_label, _) in tables.items():
        for question in cohort.questions:
            metrics = large_metrics({str(code): item for code, item in by_label[question.name].items() if code >= 0})
            if metrics:
                found[f"{question.name}/{attribute}"] = [name for name in chosen_metrics(config) if name in metrics]
    return {"normal": found} if found else {}


def _primary_parts(config: AuditConfig) -> set[str]:
    """The metrics that the family's gaps are made of; TPR and FPR, tested jointly in equalized odds, go together."""
    parts = {part for name in config.primary for part in COMBINED.get(name, (name,))}
    parts |= {MIRRORS[name] for name in parts if name in MIRRORS}
    return parts | {"tpr", "fpr"} if parts & {"tpr", "fpr"} else parts


def _attribute(
    cohort: Cohort, groups: Groups, everybody: Mapping[str, Mapping[str, float]], config: AuditConfig, seed: int, threads: int
) -> tuple[dict[str, dict[int, Measured]], dict[str, dict[str, Gap]]]:
    """(label -> group code -> numbers, label -> gaps) of one attribute."""
    codes = [int(code) for code in np.unique(groups.codes)]
    measured = _with_macro(cohort, _measure(cohort, groups.codes, codes, groups.attribute, config, seed, threads))
    gaps = {}
    for question in cohort.questions:
        by_key = {groups.keys[code]: item for code, item in measured[question.name].items() if code >= 0}
        members, excluded = members_of(by_key, clustered_variances(by_key), config.confidence)
        null = _null(question, by_key, members, groups, cohort, config, seed, threads)
        gaps[question.name] = _gaps(question.name, groups.attribute, members, excluded, null, everybody, config)
    if cohort.kind == "multiclass":
        by_key = {groups.keys[code]: item for code, item in measured[MACRO].items() if code >= 0}
        members, excluded = members_of(by_key, replicate_variances(by_key), config.confidence)
        gaps[MACRO] = _gaps(MACRO, groups.attribute, members, excluded, bootstrap_null(by_key, members), everybody, config)
    return measured, gaps


def _gaps(
    label: str,
    attribute: str,
    members: Members,
    excluded: Mapping[str, Sequence[dict[str, Any]]],
    null: Mapping[str, npt.NDArray[np.float64]],
    everybody: Mapping[str, Mapping[str, float]],
    config: AuditConfig,
) -> dict[str, Gap]:
    return all_gaps(
        members,
        excluded,
        null,
        config.confidence,
        overall=everybody[label],
        underdiagnosis=underdiagnosis_metric(label, config.no_finding),
        reference=config.reference.get(attribute),
    )


def _null(
    question: Question,
    measured: Mapping[str, Measured],
    members: Members,
    groups: Groups,
    cohort: Cohort,
    config: AuditConfig,
    seed: int,
    threads: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Studentised maxima without a gap: under permuted groups, and where these would cost too much from the bootstrap or, with
    thousands of patients in every group, from the normal limit."""
    wanted = n_permutations(cohort, config)
    if not wanted:
        return bootstrap_null(measured, members)
    use = (groups.codes >= 0) & ~np.isnan(question.y_true)
    rows = {
        "y_true": question.y_true[use],
        "y_score": question.y_score[use],
        "decision": question.decision[use],
        "unit": cohort.patient[use],
        "threshold": question.threshold["value"],
        "ece_bins": question.ece_bins,
    }
    rng = generator(seed, "permutation", groups.attribute, question.name)
    others = {name: min(config.permutations, FEW) if name in SLOW else config.permutations for name in members}
    made = {**others, **dict.fromkeys(_primary_parts(config) & set(members), wanted)}
    null = permuted_null(rows, groups.codes[use], members, groups.keys, made, rng, threads, large_metrics(measured))
    return {**null, **bootstrap_null(measured, {name: inside for name, inside in members.items() if name in RESAMPLED})}


def _attribute_json(groups: Groups, measured: Mapping[int, Measured], gaps: Mapping[str, Gap], config: AuditConfig) -> dict[str, Any]:
    rows = {groups.keys[code]: row_json(item, config.confidence) for code, item in measured.items() if code >= 0}
    if -1 in measured:
        rows[MISSING_KEY] = {**row_json(measured[-1], config.confidence), "missing": True}
    return {"n_missing": int((groups.codes < 0).sum()), "groups": rows, "gaps": {name: gap.to_json() for name, gap in gaps.items()}}


def _threshold(cohort: Cohort, label: str) -> dict[str, Any]:
    for question in cohort.questions:
        if question.name == label:
            return question.threshold
    return cohort.questions[0].threshold
