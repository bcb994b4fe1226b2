"""Runs side by side: every run's mean over seeds with a patient bootstrap, and paired changes against the first run.

All runs are resampled with the same draws of patients, so a change between two runs on the same patients is judged
against the spread of that change, not of the two runs. Its interval is ``change ± q`` with q the critical value of the
centred bootstrap changes, so that 0 lies inside exactly when p >= 1 - confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import evenhand
from evenhand.config.schema import AuditConfig
from evenhand.errors import InputError
from evenhand.evaluation.cells import Measured, average, measure
from evenhand.evaluation.cohort import Cohort, make_cohort
from evenhand.evaluation.document import Document
from evenhand.evaluation.selection import check_names, check_reference, chosen_metrics, underdiagnosis_metric
from evenhand.evaluation.significance import bootstrap_null, members_of, replicate_variances
from evenhand.evaluation.verdicts import (
    EVIDENCE,
    collapsed_verdicts,
    evidence_verdicts,
    gap_verdicts,
    levelling_down,
    threshold_verdicts,
)
from evenhand.metrics.gaps import RATIOS, Gap, all_gaps, gap_of_values
from evenhand.metrics.permutation import critical_value, holm, p_value
from evenhand.metrics.rates import LOWER_IS_BETTER, UNBOUNDED

FloatArray = npt.NDArray[np.float64]
SCHEMA = "evenhand.compare/1"


@dataclass(frozen=True)
class CompareResult(Document):
    """A comparison; ``data`` is the JSON document (schema ``evenhand.compare/1``)."""

    def to_table(self) -> pd.DataFrame:
        """One row a number: label, attribute, group, run, kind (value, gap, change, gap_change), metric and the numbers."""
        columns = [
            "label",
            "attribute",
            "group",
            "run",
            "kind",
            "metric",
            "value",
            "lower",
            "upper",
            "sd_over_seeds",
            "p",
            "p_holm",
            "n",
            "reason",
        ]
        return pd.DataFrame(list(_table_rows(self.data["labels"])), columns=columns)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """What the numbers say, in plain words; each names its run."""
        return list(self.data["verdicts"])


@dataclass(frozen=True)
class _Run:
    """One run: its cohorts (one a seed) and, per attribute ('' overall), label and group, the numbers of every seed."""

    name: str
    seeds: tuple[int, ...]
    cohorts: tuple[Cohort, ...]
    measured: dict[str, dict[str, dict[str, list[Measured]]]]

    def mean(self, attribute: str, label: str) -> dict[str, Measured]:
        return {group: average(parts, "seeds") for group, parts in self.measured[attribute][label].items()}


def compare(
    runs: Sequence[tuple[str, Sequence[pd.DataFrame]]],
    *,
    labels: Sequence[str],
    attributes: Sequence[str],
    config: AuditConfig | None = None,
    seed: int = 0,
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    classes: Sequence[str] = (),
    thresholds: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    at_least: int = 2,
) -> CompareResult:
    """Compare two or more runs; the first is the reference.

    Args:
        runs: (name, one table of predictions a seed); all judge the same test rows.
        labels, attributes, config, seed, bins, missing, classes: as in `evenhand.evaluation.evaluate`.
        thresholds: run name -> for each seed label -> threshold that wins over the rule.
        at_least: runs that are needed; with 1 a run of several seeds has its means, and no changes.

    Raises:
        InputError: fewer than two runs, two of one name, or different test rows.
        TableError: a table breaks the contract.
    """
    config = config or AuditConfig()
    check_names(config)
    names = [name for name, _ in runs]
    if len(runs) < at_least or len(set(names)) < len(names):
        raise InputError(f"compare got the runs {', '.join(names) or '(none)'}; give at least two runs with different names")

    def cohort(name: str, number: int, frame: pd.DataFrame) -> Cohort:
        given = (thresholds or {}).get(name)
        return make_cohort(
            frame,
            labels=labels,
            classes=classes,
            attributes=attributes,
            bins=bins or {},
            missing=missing,
            config=config,
            thresholds=given[number] if given else None,
        )

    cohorts = {name: tuple(cohort(name, number, frame) for number, frame in enumerate(frames)) for name, frames in runs}
    _same_rows(cohorts)
    check_reference(config.reference, {name: item.keys for name, item in cohorts[names[0]][0].groups.items()})
    seeds = {name: tuple(_seed_of(frame, number) for number, frame in enumerate(frames)) for name, frames in runs}
    measured = [_measure_run(name, seeds[name], cohorts[name], config, seed) for name in names]
    first = cohorts[names[0]][0]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": first.kind,
        "reference": names[0],
        "n": len(first.patient),
        "n_patients": first.n_patients,
        "runs": [{"name": run.name, "n_seeds": len(run.seeds), "seeds": list(run.seeds)} for run in measured],
        "labels": {},
        "verdicts": [],
    }
    for label in measured[0].measured[""]:
        data["labels"][label] = _label(measured, label, list(first.groups), config)
    _adjust(data, config.primary)
    data["verdicts"] = _verdicts(data, config, {run.name: run.cohorts for run in measured})
    data["provenance"] = {
        "package": "evenhand",
        "version": evenhand.__version__,
        "seed": seed,
        "bootstrap": config.bootstrap,
        "confidence": config.confidence,
        "threshold": config.threshold,
        "min_patients": config.min_patients,
        "missing": missing,
        "bins": {name: [float(edge) for edge in edges] for name, edges in (bins or {}).items()},
        "family": {"metrics": list(config.primary), "method": "holm"},
        "interval": "patient bootstrap of the mean over seeds, the same draws for every run; "
        "gaps: inverted studentised maximum of the bootstrap errors; "
        "changes: symmetric about the estimate",
        "notes": list(first.notes),
    }
    return CompareResult(data)


def _seed_of(frame: pd.DataFrame, number: int) -> int:
    return int(frame["seed"].iloc[0]) if "seed" in frame.columns and len(frame) and pd.notna(frame["seed"].iloc[0]) else number


def _same_rows(cohorts: Mapping[str, Sequence[Cohort]]) -> None:
    """Paired changes need the same patients and images in every run."""
    keys = {}
    for name, items in cohorts.items():
        for item in items:
            column = next((column for column in ("image", "patient_id") if column in item.frame.columns), None)
            keys[name] = tuple(sorted(item.frame[column].astype("string").fillna(""))) if column else (str(len(item.frame)),)
            first = next(iter(keys))
            if keys[name] != keys[first]:
                common = len(set(keys[name]) & set(keys[first]))
                raise InputError(
                    f"run '{name}' judges other test rows than '{first}' ({len(keys[name])} and {len(keys[first])} rows, "
                    f"{common} in common); "
                    "paired changes need the same rows: predict both runs on one test set"
                )
            if column == "image":
                _same_facts(name, item, first, cohorts[first][0])


def _same_facts(name: str, item: Cohort, first: str, reference: Cohort) -> None:
    """Equal rows must have equal truths, patients and groups, or a change would compare different things."""
    here, there = (np.argsort(cohort.frame["image"].astype(str).to_numpy(), kind="stable") for cohort in (item, reference))
    pairs: dict[str, tuple[Any, Any]] = {
        f"truth of {a.name}": (a.y_true, b.y_true) for a, b in zip(item.questions, reference.questions, strict=True)
    }
    pairs["patients"] = (item.patient, reference.patient)
    pairs.update({f"groups of {key}": (item.groups[key].names(), reference.groups[key].names()) for key in item.groups})
    for what, (a, b) in pairs.items():
        differ = int((pd.Series(a[here]).fillna("").to_numpy() != pd.Series(b[there]).fillna("").to_numpy()).sum())
        if differ:
            where = f"{differ} of {len(a)} test rows"
            raise InputError(f"run '{name}' has other {what} than '{first}' in {where}; compare runs on one data set")


def _measure_run(name: str, seeds: tuple[int, ...], cohorts: tuple[Cohort, ...], config: AuditConfig, seed: int) -> _Run:
    found: dict[str, dict[str, dict[str, list[Measured]]]] = {}
    for cohort in cohorts:
        tables = {
            "": (np.zeros(len(cohort.patient), np.int64), ("",)),
            **{key: (item.codes, item.keys) for key, item in cohort.groups.items()},
        }
        for attribute, (codes, keys) in tables.items():
            wanted = [int(code) for code in np.unique(codes) if code >= 0]
            measured = measure(
                cohort,
                codes,
                wanted,
                attribute,
                metrics=chosen_metrics(config),
                n_bootstrap=config.bootstrap,
                min_patients=config.min_patients,
                kind=config.interval,
                seed=seed,
                threads=1,
            )
            for question, by_code in zip(cohort.questions, measured, strict=True):
                for code, numbers in by_code.items():
                    found.setdefault(attribute, {}).setdefault(question.name, {}).setdefault(keys[code], []).append(numbers)
            if cohort.kind == "multiclass":
                for code in wanted:
                    numbers = average([item[code] for item in measured], "classes")
                    found[attribute].setdefault("macro", {}).setdefault(keys[code], []).append(numbers)
    return _Run(name, seeds, cohorts, found)


def _label(runs: Sequence[_Run], label: str, attributes: Sequence[str], config: AuditConfig) -> dict[str, Any]:
    overall = {run.name: _row(run.measured[""][label][""], config.confidence) for run in runs}
    changes = {
        run.name: {
            name: _group_change(run.mean("", label)[""], runs[0].mean("", label)[""], name, config.confidence)
            for name in chosen_metrics(config)
        }
        for run in runs[1:]
    }
    return {
        "overall": overall,
        "overall_changes": changes,
        "attributes": {name: _attribute(runs, label, name, config) for name in attributes},
    }


def _row(parts: Sequence[Measured], confidence: float) -> dict[str, Any]:
    """A group's row: each metric's mean over seeds, its interval, and the seeds' own values."""
    mean = average(parts, "seeds")
    row: dict[str, Any] = {"n": mean.n, "n_positive": mean.n_positive, "n_patients": mean.n_patients}
    for name in mean.values:
        row[name] = {
            **mean.estimate(name, confidence).to_json(),
            **_over_seeds([part.values[name] for part in parts], name not in mean.reasons),
        }
    return row


def _over_seeds(values: Sequence[float], estimable: bool) -> dict[str, Any]:
    if not estimable:
        return {"sd_over_seeds": None, "seeds": []}
    return {"sd_over_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None, "seeds": [float(value) for value in values]}


def _attribute(runs: Sequence[_Run], label: str, attribute: str, config: AuditConfig) -> dict[str, Any]:
    means = {run.name: run.mean(attribute, label) for run in runs}
    reference = means[runs[0].name]
    gaps, draws = {}, {}
    for run in runs:
        gaps[run.name], draws[run.name] = _run_gaps(run, label, attribute, means[run.name], config)
    gap_changes = {
        run.name: {
            name: _gap_change(
                gaps[run.name][name], gaps[runs[0].name][name], draws[run.name].get(name), draws[runs[0].name].get(name), config.confidence
            )
            for name in gaps[run.name]
        }
        for run in runs[1:]
    }
    return {
        "groups": {
            group: {run.name: _row(run.measured[attribute][label][group], config.confidence) for run in runs} for group in reference
        },
        "gaps": gaps,
        "changes": {
            run.name: {
                group: {
                    name: _group_change(means[run.name][group], reference[group], name, config.confidence)
                    for name in reference[group].values
                }
                for group in reference
            }
            for run in runs[1:]
        },
        "gap_changes": gap_changes,
    }


def _run_gaps(
    run: _Run, label: str, attribute: str, mean: Mapping[str, Measured], config: AuditConfig
) -> tuple[dict[str, dict[str, Any]], dict[str, FloatArray]]:
    """(gap JSON with the mean over seeds of each seed's gap, replicates of that mean)."""
    members, excluded = members_of(mean, replicate_variances(mean), config.confidence)
    missed = underdiagnosis_metric(label, config.no_finding)
    named: dict[str, Any] = {"underdiagnosis": missed, "reference": config.reference.get(attribute)}
    everybody = run.mean("", label)[""].values
    of_means = all_gaps(members, excluded, bootstrap_null(mean, members), config.confidence, overall=everybody, **named)
    parts = run.measured[attribute][label]
    inside = {name: [item.group for item in found] for name, found in members.items()}
    found, draws = {}, {}
    for name, gap in of_means.items():
        if gap.value is None:
            found[name] = {**gap.to_json(), "sd_over_seeds": None, "seeds": []}
            continue
        each = [float(_gap_of(name, inside, parts, number, None, **named)[0]) for number in range(len(run.seeds))]
        undefined = sum(not np.isfinite(value) for value in each)
        if undefined:
            reason = f"0 / 0 in {undefined} of {len(each)} seeds: no group has a rate above 0"
            none = Gap(excluded=gap.excluded, n=gap.n, n_groups=gap.n_groups, reason=reason)
            found[name] = {**none.to_json(), "sd_over_seeds": None, "seeds": []}
            continue
        draws[name] = np.mean([_gap_of(name, inside, parts, number, "replicates", **named) for number in range(len(run.seeds))], axis=0)
        found[name] = {**_shifted(gap, float(np.mean(each)), name).to_json(), **_over_seeds(each, True)}
    return found, draws


def _gap_of(
    name: str,
    inside: Mapping[str, Sequence[str]],
    parts: Mapping[str, Sequence[Measured]],
    number: int,
    what: str | None,
    **named: Any,
) -> FloatArray:
    """One seed's gap, of the estimates or of every replicate."""

    def values(metric: str) -> FloatArray:
        rows = [parts[group][number] for group in inside[metric]]
        return np.array([row.replicates[metric] if what else [row.values[metric]] for row in rows])

    return gap_of_values(name, values, inside, **named)


def _shifted(gap: Gap, value: float, name: str) -> Gap:
    """The gap of the seeds' means, re-centred on the mean of the seeds' gaps.

    The limit on the far side moves along. A limit that excludes "no gap" (a difference of 0, a ratio of 1) goes on doing so:
    it moves towards it in proportion.
    """
    if gap.value is None or gap.lower is None:
        return replace(gap, value=value)
    none, shift = float(name in RATIOS), value - gap.value
    nearer = min(1.0, max((value - none) / (gap.value - none), 0.0)) if gap.value != none else 1.0
    lower = none + (gap.lower - none) * nearer if gap.lower > none else gap.lower + min(shift, 0.0)
    if gap.upper is None:
        return replace(gap, value=value, lower=min(max(lower, 0.0), value))
    upper = none - (none - gap.upper) * nearer if gap.upper < none else gap.upper + max(shift, 0.0)
    upper = upper if name in UNBOUNDED or gap.upper > 1 else min(upper, 1.0)
    return replace(gap, value=value, lower=min(max(lower, 0.0), value), upper=max(upper, value))


def _group_change(run: Measured, reference: Measured, metric: str, confidence: float) -> dict[str, Any]:
    n = run.counts[metric][0]
    reason = run.reasons.get(metric) or reference.reasons.get(metric)
    if reason:
        return {"value": None, "lower": None, "upper": None, "p": None, "reason": reason, "n": n, "n_positive": run.n_positive}
    change = run.values[metric] - reference.values[metric]
    return {**_change(change, run.replicates[metric] - reference.replicates[metric], confidence), "n": n}


def _gap_change(
    run: Mapping[str, Any], reference: Mapping[str, Any], draws: FloatArray | None, base: FloatArray | None, confidence: float
) -> dict[str, Any]:
    if draws is None or base is None:
        reason = run.get("reason") or reference.get("reason") or "not estimable"
        return {"value": None, "lower": None, "upper": None, "p": None, "reason": reason, "n": run["n"]}
    return {**_change(run["value"] - reference["value"], draws - base, confidence), "n": run["n"]}


def _change(change: float, draws: FloatArray, confidence: float) -> dict[str, Any]:
    errors = np.abs(draws - change)
    errors = errors[np.isfinite(errors)]
    if not len(errors):
        return {"value": change, "lower": None, "upper": None, "p": None}
    width = critical_value(errors, confidence)
    limits = (change - width, change + width) if np.isfinite(width) else (None, None)
    return {"value": change, "lower": limits[0], "upper": limits[1], "p": p_value(abs(change), errors)}


def _adjust(data: Mapping[str, Any], primary: Sequence[str]) -> None:
    """Holm's correction over each run's families: primary gaps, and the groups' changes that levelling down is judged by."""
    for run in data["runs"]:
        parts = [part for item in data["labels"].values() for part in item["attributes"].values()]
        family = [part["gaps"][run["name"]][name] for part in parts for name in primary]
        tested = [gap for gap in family if gap["p"] is not None]
        for gap, p in zip(tested, holm([gap["p"] for gap in tested]), strict=True):
            gap["p_holm"] = p
        rows = [row for part in parts for row in part["changes"].get(run["name"], {}).values()]
        known = [row[name] for row in rows for name in EVIDENCE if name in row and row[name]["p"] is not None]
        for change, p in zip(known, holm([change["p"] for change in known]), strict=True):
            change["p_holm"] = p


def _verdicts(data: Mapping[str, Any], config: AuditConfig, cohorts: Mapping[str, Sequence[Cohort]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    names = [run["name"] for run in data["runs"]]
    for label, item in data["labels"].items():
        for name in names:
            found += collapsed_verdicts(label, item["overall"][name], one_of_many=data["kind"] == "multiclass", run=name)
            questions = [question for cohort in cohorts[name] for question in cohort.questions if question.name == label]
            found += next((said for question in questions if (said := threshold_verdicts(label, question.threshold, run=name))), [])
            gaps = {attribute: {"gaps": part["gaps"][name]} for attribute, part in item["attributes"].items()}
            found += gap_verdicts(label, gaps, config.primary, config.confidence, run=name)
        for attribute, part in item["attributes"].items():
            for name in names[1:]:
                found += levelling_down(name, names[0], label, attribute, part["changes"][name], LOWER_IS_BETTER)
        sizes = {
            key: {"groups": {group: row[names[0]] for group, row in part["groups"].items()}} for key, part in item["attributes"].items()
        }
        found += evidence_verdicts(label, sizes)
    order = ("collapsed", "levelling_down", "gap", "threshold_on_test", "insufficient_evidence")
    return sorted(found, key=lambda item: order.index(item["code"]))


def _table_rows(labels: Mapping[str, Any]) -> Any:
    for label, item in labels.items():
        yield from _numbers(item["overall"], label, "", "", "value")
        yield from _numbers(item["overall_changes"], label, "", "", "change")
        for attribute, part in item["attributes"].items():
            for group, by_run in part["groups"].items():
                yield from _numbers(by_run, label, attribute, group, "value")
            yield from _numbers(part["gaps"], label, attribute, "", "gap")
            for run, by_group in part["changes"].items():
                for group, metrics in by_group.items():
                    yield from _numbers({run: metrics}, label, attribute, group, "change")
            yield from _numbers(part["gap_changes"], label, attribute, "", "gap_change")


def _numbers(by_run: Mapping[str, Mapping[str, Any]], label: str, attribute: str, group: str, kind: str) -> Any:
    for run, metrics in by_run.items():
        for metric, estimate in metrics.items():
            if isinstance(estimate, Mapping):
                yield {"label": label, "attribute": attribute, "group": group, "run": run, "kind": kind, "metric": metric, **estimate}
