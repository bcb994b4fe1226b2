"""Judge a table of predictions: how well it works, for whom, and how sure that is. Sees nothing but the table."""

from __future__ import annotations

import difflib
import json
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
from evenhand.evaluation.cells import Measured, average, measure, row_json
from evenhand.evaluation.cohort import Cohort, Question, make_cohort
from evenhand.evaluation.interop import gap_table, group_table
from evenhand.evaluation.long_table import long_table
from evenhand.evaluation.provenance import provenance
from evenhand.evaluation.significance import (
    adjust,
    bootstrap_null,
    members_of,
    permuted_null,
    replicate_variances,
    variances_by_moments,
)
from evenhand.evaluation.verdicts import audit_verdicts
from evenhand.metrics.bootstrap import processors
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED, Gap, all_gaps
from evenhand.metrics.permutation import MIRRORS, REACH
from evenhand.random import generator

SCHEMA = "evenhand.audit/1"
MACRO = "macro"
GAP_NAMES = (*METRICS, *COMBINED)


@dataclass(frozen=True)
class AuditResult:
    """An audit.

    Attributes:
        data: the contract's audit.json as a dict.
        predictions: the table it was made from, all rows.
    """

    data: dict[str, Any]
    predictions: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """The audit in the schema ``evenhand.audit/1``."""
        return self.data

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

    def dumps(self) -> str:
        """audit.json's text."""
        return json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
    overall = _with_macro(cohort, _measure(cohort, np.zeros(len(cohort.patient), np.int64), [0], "overall", config, seed, threads))
    tables = {name: _attribute(cohort, groups, config, seed, threads) for name, groups in cohort.groups.items()}
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
    data["verdicts"] = audit_verdicts(data["labels"], config.primary, config.confidence, cohort.kind)
    failed = sum(item.n_failed for by_label, _ in tables.values() for groups in by_label.values() for item in groups.values())
    data["provenance"] = {
        **provenance(predictions, cohort, config, seed, bins, missing),
        "permutations": n_permutations(cohort, config),
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
    return make_cohort(predictions, classes=classes, config=config, **question)


def _check(config: AuditConfig, classes: Sequence[str]) -> None:
    for name in config.primary:
        if name not in GAP_NAMES:
            near = difflib.get_close_matches(name, GAP_NAMES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(GAP_NAMES)}"
            raise ConfigError(f"primary metric '{name}' is unknown; {hint}")
    if not 0.5 <= config.confidence < 1:
        raise ConfigError(f"confidence is {config.confidence:g}, but must lie in [0.5, 1), as 0.95")
    for option in ("bootstrap", "permutations", "min_patients", "max_groups"):
        if getattr(config, option) < (2 if option in ("min_patients", "max_groups") else 0):
            raise ConfigError(f"{option} is {getattr(config, option)}, which is too small")
    if MACRO in classes:
        raise ConfigError(f"a class is named '{MACRO}', which is the name of the average over classes; rename the class")


def _measure(
    cohort: Cohort, codes: npt.NDArray[np.int64], keys: Sequence[int], name: str, config: AuditConfig, seed: int, threads: int
) -> list[dict[int, Measured]]:
    return measure(cohort, codes, keys, name, n_bootstrap=config.bootstrap, min_patients=config.min_patients, seed=seed, threads=threads)


def _with_macro(cohort: Cohort, measured: list[dict[int, Measured]]) -> dict[str, dict[int, Measured]]:
    found = {question.name: item for question, item in zip(cohort.questions, measured, strict=True)}
    if cohort.kind == "multiclass":
        found[MACRO] = {key: average([item[key] for item in measured], "classes") for key in measured[0]}
    return found


def n_permutations(cohort: Cohort, config: AuditConfig) -> int:
    """Permutations of the family's tests: those asked for, or `REACH` a test, whichever is more; 0 stays 0.

    Other metrics get those asked for.
    """
    family = len(cohort.questions) * len(cohort.groups) * len(config.primary)
    return max(config.permutations, REACH * family) if config.permutations else 0


def _primary_parts(config: AuditConfig) -> set[str]:
    """The metrics that the family's gaps are made of; TPR and FPR, tested jointly in equalized odds, go together."""
    parts = {part for name in config.primary for part in COMBINED.get(name, (name,))}
    parts |= {MIRRORS[name] for name in parts if name in MIRRORS}
    return parts | {"tpr", "fpr"} if parts & {"tpr", "fpr"} else parts


def _attribute(
    cohort: Cohort, groups: Groups, config: AuditConfig, seed: int, threads: int
) -> tuple[dict[str, dict[int, Measured]], dict[str, dict[str, Gap]]]:
    """(label -> group code -> numbers, label -> gaps) of one attribute."""
    codes = [int(code) for code in np.unique(groups.codes)]
    measured = _with_macro(cohort, _measure(cohort, groups.codes, codes, groups.attribute, config, seed, threads))
    gaps = {}
    for question in cohort.questions:
        by_key = {groups.keys[code]: item for code, item in measured[question.name].items() if code >= 0}
        gaps[question.name] = _question_gaps(question, by_key, groups, cohort, config, seed, threads)
    if cohort.kind == "multiclass":
        by_key = {groups.keys[code]: item for code, item in measured[MACRO].items() if code >= 0}
        gaps[MACRO] = _replicate_gaps(by_key, config)
    return measured, gaps


def _question_gaps(
    question: Question, measured: Mapping[str, Measured], groups: Groups, cohort: Cohort, config: AuditConfig, seed: int, threads: int
) -> dict[str, Gap]:
    use = (groups.codes >= 0) & ~np.isnan(question.y_true)
    rows = {
        "y_true": question.y_true[use],
        "y_score": question.y_score[use],
        "decision": question.decision[use],
        "unit": cohort.patient[use],
    }
    codes = groups.codes[use]
    members, excluded = members_of(measured, variances_by_moments(rows, codes, groups.keys), config.confidence)
    wanted = n_permutations(cohort, config)
    if wanted:
        rng = generator(seed, "permutation", groups.attribute, question.name)
        made = {name: wanted if name in _primary_parts(config) else config.permutations for name in METRICS}
        null = permuted_null(rows, codes, members, groups.keys, made, rng, threads)
    else:
        null = bootstrap_null(measured, members)
    return all_gaps(members, excluded, null, config.confidence)


def _replicate_gaps(measured: Mapping[str, Measured], config: AuditConfig) -> dict[str, Gap]:
    """Gaps of averages over classes: variances and the null distribution come from the bootstrap."""
    members, excluded = members_of(measured, replicate_variances(measured), config.confidence)
    return all_gaps(members, excluded, bootstrap_null(measured, members), config.confidence)


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
