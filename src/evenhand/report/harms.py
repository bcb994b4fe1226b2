"""Sections on two named harms: cases that are missed more often in one group, and scores that mean different things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenhand.report import tables, words
from evenhand.report.page import Part, Section

Json = Mapping[str, Any]
CALIBRATION = ("calibration_intercept", "calibration_slope", "ece", "ece_corrected", "brier")


def underdiagnosis_section(key: str, label: str, block: Json, sure: str) -> Section | None:
    """Who is missed: FNR of each group, or, for a label that means health, the FPR."""
    parts, metric = [], "fnr"
    for name, attribute in block["attributes"].items():
        gap = attribute.get("gaps", {}).get("underdiagnosis")
        metric = str((gap or {}).get("measure") or "fnr")
        groups = {k: g for k, g in tables.known_groups(attribute).items() if words.estimable(g.get(metric))}
        if gap is None or len(groups) < 2:
            continue
        title = words.group_label(name, name)
        table = tables.group_table(name, attribute, block["overall"], (metric,))
        parts.append(Part(f"By {title}", _missed(name, groups, metric, gap, sure, label), table=table, caption=f"Missed cases by {title}"))
    what = (
        f"'{label}' means health, so a patient is under-diagnosed when the model wrongly says it: the false positive rate."
        if metric == "fpr"
        else "A patient is under-diagnosed when the model does not find what is there: the false negative rate."
    )
    return Section(f"{key}-missed", "Under-diagnosis: who is missed", tuple(parts), what) if parts else None


def _missed(name: str, groups: Mapping[str, Json], metric: str, gap: Json, sure: str, label: str) -> str:
    ranked = sorted(groups, key=lambda k: groups[k][metric]["value"])
    low, high = ranked[0], ranked[-1]
    rates = [f"{100 * groups[k][metric]['value']:.0f}% in {words.group_label(name, k)}" for k in (high, low)]
    counts = [groups[k].get("n_positive") for k in (high, low)]
    sizes = [f" ({words.plural(n, 'positive case')})" if n is not None else "" for n in counts]
    said = f"Missed: {rates[0]}{sizes[0]} and {rates[1]}{sizes[1]}"
    if metric == "fpr":
        said = f"Wrongly called '{label}': {rates[0]} and {rates[1]}"
    return f"{said}. Gap {words.with_interval(gap, sure)}." if words.estimable(gap) else f"{said}."


def calibration_section(key: str, block: Json) -> Section | None:
    """Whether a score means the same in every group, in numbers."""
    parts = []
    for name, attribute in block["attributes"].items():
        found = tables.metrics_of([block["overall"], *tables.known_groups(attribute).values()])
        metrics = [m for m in CALIBRATION if m in found]
        if len(metrics) < 2:
            continue
        title = words.group_label(name, name)
        table = tables.group_table(name, attribute, block["overall"], metrics)
        parts.append(Part(table=table, caption=f"Calibration by {title}"))
    hint = "An intercept of 0 and a slope of 1 are right: below 0 scores are too high on average, below 1 too extreme."
    return Section(f"{key}-calibration", "Does a score mean the same in every group?", tuple(parts), hint) if parts else None
