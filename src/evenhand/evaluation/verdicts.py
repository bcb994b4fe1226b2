"""Verdicts: what the numbers say, in plain words. Made from estimates only, never by a method.

Codes: ``gap`` (a primary gap with adjusted p < 1 - confidence), ``levelling_down`` (a group got worse than under the
reference), ``collapsed`` (no better than chance, or nearly everybody gets one answer), ``insufficient_evidence`` (a group
with too few patients), ``threshold_on_test`` (no validation rows to choose a threshold on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {
    "auc": "AUC",
    "tpr": "true positive rate",
    "fpr": "false positive rate",
    "tnr": "true negative rate",
    "fnr": "false negative rate",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "positive_rate": "rate of positive decisions",
    "prevalence": "prevalence",
    "brier": "Brier score",
    "average_precision": "average precision",
    "ece": "calibration error",
    "ece_corrected": "bias-corrected calibration error",
    "calibration_slope": "calibration slope",
    "calibration_intercept": "calibration intercept",
    "log_loss": "log loss",
    "net_benefit": "net benefit",
    "equalized_odds": "equalized odds",
    "equalized_odds_mean": "equalized odds (mean)",
    "equal_opportunity": "equal opportunity",
    "demographic_parity": "demographic parity",
    "demographic_parity_ratio": "demographic parity ratio",
    "disparate_impact": "disparate impact",
    "disparate_impact_distance": "distance of disparate impact from 1",
    "underdiagnosis": "under-diagnosis",
}
"""Metric -> how a sentence calls it."""

EVIDENCE = ("auc", "tpr", "fpr")
_FEW, _MANY = 0.01, 0.99


def verdict(code: str, text: str, **where: Any) -> dict[str, Any]:
    """One verdict record; fields that do not apply are None."""
    blank: dict[str, Any] = dict.fromkeys(("label", "attribute", "group", "metric", "value", "lower", "upper"))
    return {"code": code, **blank, **where, "text": text}


def audit_verdicts(labels: Mapping[str, Any], primary: Sequence[str], confidence: float, kind: str = "binary") -> list[dict[str, Any]]:
    """All verdicts of one audit, the gravest first.

    Args:
        labels: the ``labels`` part of audit.json.
        primary: gaps whose corrected tests count.
        confidence: level of the intervals; a gap is claimed where adjusted p < 1 - confidence.
        kind: binary, multiclass or multilabel.
    """
    found = []
    for label, item in labels.items():
        found += collapsed_verdicts(label, item["overall"], one_of_many=kind == "multiclass")
        found += gap_verdicts(label, item["attributes"], primary, confidence)
        found += evidence_verdicts(label, item["attributes"])
    for label, item in labels.items():
        found += threshold_verdicts(label, item["threshold"])
    order = ("collapsed", "gap", "levelling_down", "threshold_on_test", "insufficient_evidence")
    return sorted(found, key=lambda item: order.index(item["code"]))


def collapsed_verdicts(label: str, overall: Mapping[str, Any], *, one_of_many: bool = False, **where: Any) -> list[dict[str, Any]]:
    """Whether a model tells cases from non-cases at all, and gives more than one answer.

    One class of many (``one_of_many``) may well be rare; there, only a class that nearly everybody gets is a collapse.
    """
    found, prefix = [], f"{where['run']}: " if "run" in where else ""
    nothing: dict[str, Any] = {"value": None}
    auc, rate = overall.get("auc", nothing), overall.get("positive_rate", nothing)
    if auc["value"] is not None and auc["lower"] is not None and auc["lower"] <= 0.5:
        text = (
            f"{prefix}{label}: the scores are not shown to be better than chance: AUC {span(auc)}; small gaps of such a model mean nothing."
        )
        found.append(verdict("collapsed", text, label=label, metric="auc", **_numbers(auc), **where))
    if rate["value"] is not None and not (0 if one_of_many else _FEW) <= rate["value"] <= _MANY:
        text = f"{prefix}{label}: {rate['value']:.1%} of the rows get a positive decision, so nearly everybody gets the same answer; "
        text += "small gaps of such a model mean nothing."
        found.append(verdict("collapsed", text, label=label, metric="positive_rate", **_numbers(rate), **where))
    return found


def gap_verdicts(
    label: str, attributes: Mapping[str, Any], primary: Sequence[str], confidence: float, **where: Any
) -> list[dict[str, Any]]:
    """Primary gaps whose corrected test is significant."""
    found, prefix = [], f"{where['run']}: " if "run" in where else ""
    for attribute, item in attributes.items():
        for metric in primary:
            gap = item["gaps"][metric]
            if gap["value"] is None or gap["p_holm"] is None or gap["p_holm"] >= 1 - confidence - 1e-12:
                continue
            low, high = gap["groups"]
            text = (
                f"{prefix}{label}: {WORDS[metric]} differs between groups of {attribute}: gap {span(gap, confidence)}, "
                f"adjusted p = {gap['p_holm']:.3g}; "
                f"furthest apart are {low} (lower) and {high} (higher)."
            )
            found.append(verdict("gap", text, label=label, attribute=attribute, metric=metric, **_numbers(gap), **where))
    return found


def evidence_verdicts(label: str, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups with too few patients to say anything about AUC, TPR or FPR; the missing are not a group."""
    found = []
    for attribute, item in attributes.items():
        for group, row in item["groups"].items():
            lacking = [metric for metric in EVIDENCE if metric in row and row[metric]["value"] is None]
            if not lacking or row.get("missing"):
                continue
            words = ", ".join(WORDS[metric] for metric in lacking)
            text = (
                f"{label}: insufficient evidence on {words} for {attribute} = {group} "
                f"({row['n_patients']} patients, {row['n']} rows, {row['n_positive']} positive): {row[lacking[0]]['reason']}."
            )
            found.append(verdict("insufficient_evidence", text, label=label, attribute=attribute, group=group, metric=lacking[0]))
    return found


def threshold_verdicts(label: str, threshold: Mapping[str, Any], **where: Any) -> list[dict[str, Any]]:
    """Whether there were no validation rows to choose the threshold on."""
    if threshold["source"] != "default" or threshold["n"] or "no validation rows" not in (threshold["note"] or ""):
        return []
    text = (
        f"{where['run'] + ': ' if 'run' in where else ''}{label}: there are no validation rows to choose a threshold on, "
        f"so decisions are made at {threshold['value']:g}; "
        "rates at this threshold may be far from those at the operating point that would be used."
    )
    return [verdict("threshold_on_test", text, label=label, value=threshold["value"], **where)]


def levelling_down(
    run: str, reference: str, label: str, attribute: str, changes: Mapping[str, Any], lower_is_better: frozenset[str]
) -> list[dict[str, Any]]:
    """Groups that got worse than under the reference: an adverse paired change whose interval excludes 0.

    The rule is of each change alone, so that no harm is overlooked; the text gives the p-value adjusted for their number.

    Args:
        run, reference: names of the two runs.
        label, attribute: where.
        changes: group -> metric -> ``{value, lower, upper, …}``.
        lower_is_better: metrics whose increase is adverse.
    """
    found = []
    for group, metrics in changes.items():
        for metric in EVIDENCE:
            change = metrics.get(metric, {"value": None})
            if change["value"] is None or change["lower"] is None:
                continue
            adverse = change["lower"] > 0 if metric in lower_is_better else change["upper"] < 0
            if adverse:
                text = (
                    f"{run}: {group} ({attribute}) does worse on {label} than under {reference}: {WORDS[metric]} changed by {span(change)}"
                    f"{_among_many(change.get('p_holm'))}."
                )
                found.append(
                    verdict(
                        "levelling_down", text, run=run, label=label, attribute=attribute, group=group, metric=metric, **_numbers(change)
                    )
                )
    return found


def _among_many(p: float | None) -> str:
    """What remains of one change when all groups, attributes and labels that were looked at are counted."""
    if p is None:
        return ""
    return f"; adjusted for all changes looked at, p = {p:.3g}" + (", so it may be chance" if p >= 0.05 else "")


def span(estimate: Mapping[str, Any], confidence: float = 0.95) -> str:
    """``0.12 (95% interval 0.03 to 0.21)``.

    Example:
        >>> span({"value": 0.123, "lower": 0.03, "upper": 0.21})
        '0.123 (95% interval 0.030 to 0.210)'
    """
    if estimate["lower"] is None or estimate["upper"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({confidence:.0%} interval {estimate['lower']:.3f} to {estimate['upper']:.3f})"


def _numbers(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {name: estimate[name] for name in ("value", "lower", "upper")}
