"""Verdicts on continuous values: gaps that are more than chance, and groups with too few patients to say anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.evaluation.verdicts import verdict


def value_verdicts(labels: Mapping[str, Any], primary: Sequence[str], confidence: float) -> list[dict[str, Any]]:
    """All verdicts of an audit of values, gaps first.

    Args:
        labels: the ``labels`` part of audit.json.
        primary: gaps whose corrected tests count.
        confidence: level of the intervals; a gap is claimed where adjusted p < 1 - confidence.
    """
    found = []
    for name, item in labels.items():
        for attribute, part in item["attributes"].items():
            for metric in primary:
                gap = part["gaps"][metric]
                if gap["value"] is not None and gap["p_holm"] is not None and gap["p_holm"] < 1 - confidence - 1e-12:
                    numbers = {key: gap[key] for key in ("value", "lower", "upper")}
                    text = _gap_text(name, attribute, metric, item, confidence)
                    found.append(verdict("gap", text, label=name, attribute=attribute, metric=metric, **numbers))
    for name, item in labels.items():
        for attribute, part in item["attributes"].items():
            for group, row in part["groups"].items():
                if row["mean"]["value"] is None and not row.get("missing"):
                    text = f"{name}: insufficient evidence on {attribute} = {group} ({row['n']} rows): {row['mean']['reason']}."
                    found.append(verdict("insufficient_evidence", text, label=name, attribute=attribute, group=group, metric="mean"))
    return found


def _gap_text(name: str, attribute: str, metric: str, item: Mapping[str, Any], confidence: float) -> str:
    part = item["attributes"][attribute]
    gap = part["gaps"][metric]
    unit = f" {item['unit']}" if item.get("unit") else ""
    low, high = gap["groups"]
    ends = [f"{group} ({figure(part['groups'][group][metric]['value'])}{unit})" for group in (low, high)]
    better = "lower" if item["lower_is_better"] else "higher"
    return (
        f"{name}: the {metric} differs between groups of {attribute}: gap {value_span(gap, confidence)}{unit}, "
        f"adjusted p = {gap['p_holm']:.3g}; lowest in {ends[0]}, highest in {ends[1]}; {better} is better."
    )


def figure(value: float | None) -> str:
    """A number to three significant figures, and to three decimals where that is more.

    Example:
        >>> [figure(x) for x in (0.8765, 12.3456, 1234.56, 0.00012345, 0.0, None)]
        ['0.876', '12.346', '1234.560', '0.000123', '0.000', '']
    """
    if value is None:
        return ""
    return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def value_span(estimate: Mapping[str, Any], confidence: float) -> str:
    """``0.12 (95% interval 0.03 to 0.21)``; where there is no upper limit, ``at least 0.03``."""
    lower, upper = estimate["lower"], estimate["upper"]
    if lower is None:
        return figure(estimate["value"])
    if upper is None:
        return f"{figure(estimate['value'])} ({confidence:.0%} interval from {figure(lower)} up)"
    return f"{figure(estimate['value'])} ({confidence:.0%} interval {figure(lower)} to {figure(upper)})"
