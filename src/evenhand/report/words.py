"""The words of a report: what each measure means, what each verdict says, and the summary in plain sentences.

A report assesses; it never certifies. Words that promise more than an audit can show do not occur here, and a test
keeps it so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One measure: how it is called, what it means in plain words, and in probability notation.

    Attributes:
        title: the name in headings.
        plain: one sentence for a reader without statistics.
        formal: the definition. Y is the truth, S the score, D the decision, A the group.
        kind: 'performance' (of one group), 'gap' (between groups; 0 is no difference) or 'ratio' (1 is no difference).
    """

    title: str
    plain: str
    formal: str
    kind: str = "performance"


MEASURES: dict[str, Measure] = {
    "auc": Measure(
        "AUC",
        "Take one positive and one negative case at random: how often does the positive "
        "one get the higher score? 0.5 is a coin toss, 1 is always.",
        "P(S₁ > S₀) + ½ P(S₁ = S₀), S₁ a score given Y = 1, S₀ a score given Y = 0",
    ),
    "average_precision": Measure(
        "average precision",
        "The positive predictive value, averaged over all thresholds as more positive cases are found.",
        "Σₖ (Rₖ − Rₖ₋₁) Pₖ, R recall, P precision",
    ),
    "accuracy": Measure("accuracy", "Of all cases, the share that is classified as it truly is.", "P(D = Y)"),
    "balanced_accuracy": Measure(
        "balanced accuracy",
        "The mean of the share found among positive cases and the share left alone among negative ones.",
        "½ [P(D = 1 | Y = 1) + P(D = 0 | Y = 0)]",
    ),
    "f1": Measure("F1", "The harmonic mean of sensitivity and positive predictive value.", "2 TP / (2 TP + FP + FN)"),
    "tpr": Measure("TPR (sensitivity)", "Of the truly positive cases, the share that the model calls positive.", "P(D = 1 | Y = 1)"),
    "fpr": Measure(
        "FPR (false alarms)", "Of the truly negative cases, the share that the model calls positive all the same.", "P(D = 1 | Y = 0)"
    ),
    "tnr": Measure("TNR (specificity)", "Of the truly negative cases, the share that the model calls negative.", "P(D = 0 | Y = 0)"),
    "fnr": Measure("FNR (missed)", "Of the truly positive cases, the share that the model misses.", "P(D = 0 | Y = 1)"),
    "ppv": Measure("PPV", "Of the cases the model calls positive, the share that truly is.", "P(Y = 1 | D = 1)"),
    "npv": Measure("NPV", "Of the cases the model calls negative, the share that truly is.", "P(Y = 0 | D = 0)"),
    "positive_rate": Measure("positive rate", "Of all cases, the share that the model calls positive.", "P(D = 1)"),
    "prevalence": Measure("prevalence", "Of all cases, the share that truly is positive.", "P(Y = 1)"),
    "brier": Measure("Brier score", "The mean squared distance between score and truth; 0 is best.", "E[(S − Y)²]"),
    "ece": Measure(
        "calibration error (ECE)",
        "How far, on average, scores lie from the share of positive cases among cases with such scores.",
        "Σ_b P(b) |E[Y | b] − E[S | b]|",
    ),
    "ece_corrected": Measure(
        "calibration error, bias-corrected",
        "The calibration error after taking off what chance alone adds in small samples.",
        "Σ_b P(b) (2 |m_b| − E|X_b|), m_b = E[Y − S | b], X_b normal with mean m_b and the standard error of m_b; 0 if negative",
    ),
    "calibration_slope": Measure(
        "calibration slope", "1 is right; below 1 the scores are too extreme.", "b in logit P(Y = 1 | S) = a + b · logit S"
    ),
    "calibration_intercept": Measure(
        "calibration intercept", "0 is right; below 0 the scores are too high on average.", "a in logit P(Y = 1 | S) = a + logit S"
    ),
    "log_loss": Measure(
        "log loss", "The mean penalty for confident scores on the wrong side; 0 is best.", "−E[Y log S + (1 − Y) log(1 − S)]"
    ),
    "net_benefit": Measure(
        "net benefit",
        "Cases found, less false alarms weighted by the odds of the threshold, per case.",
        "P(D = 1, Y = 1) − P(D = 1, Y = 0) · t/(1 − t), t the threshold",
    ),
    "equalized_odds": Measure(
        "equalized odds difference",
        "The larger of two gaps: that in the share of positive cases found (TPR) and "
        "that in the share of false alarms (FPR). 0 is no difference.",
        "max over y of [max_a P(D = 1 | Y = y, A = a) − min_a P(D = 1 | Y = y, A = a)]",
        "gap",
    ),
    "equalized_odds_mean": Measure(
        "equalized odds, mean",
        "The mean of the TPR gap and the FPR gap. 0 is no difference.",
        "½ Σ_y [max_a P(D = 1 | Y = y, A = a) − min_a …]",
        "gap",
    ),
    "equal_opportunity": Measure(
        "equal opportunity difference",
        "The gap in the share of positive cases found. 0 is no difference.",
        "max_a P(D = 1 | Y = 1, A = a) − min_a …",
        "gap",
    ),
    "demographic_parity": Measure(
        "demographic parity difference",
        "The gap in the share of all cases called positive. It is expected to differ "
        "from 0 where groups truly differ in how often they are ill.",
        "max_a P(D = 1 | A = a) − min_a P(D = 1 | A = a)",
        "gap",
    ),
    "demographic_parity_ratio": Measure(
        "demographic parity ratio",
        "The lowest share called positive divided by the highest. 1 is no difference.",
        "min_a P(D = 1 | A = a) / max_a P(D = 1 | A = a)",
        "ratio",
    ),
    "disparate_impact": Measure(
        "disparate impact",
        "The share called positive in the other groups, at its lowest, divided by that in the reference group (without one: "
        "the lowest share divided by the highest). 1 is no difference.",
        "min_{a≠r} P(D = 1 | A = a) / P(D = 1 | A = r), r the reference group; without one min_a P(D = 1 | A = a) / max_a …",
        "ratio",
    ),
    "disparate_impact_distance": Measure(
        "distance of disparate impact from 1",
        "How far the disparate impact lies from 1, as some published work reports it. 0 is no difference.",
        "|1 − disparate impact|",
        "gap",
    ),
    "underdiagnosis": Measure(
        "under-diagnosis gap",
        "The gap in the share of ill patients whose finding is missed; for a label that means health, in the share of ill "
        "patients who are called healthy. 0 is no difference.",
        "max_a P(D = 0 | Y = 1, A = a) − min_a …; for 'no finding' max_a P(D = 1 | Y = 0, A = a) − min_a …",
        "gap",
    ),
    "mean": Measure("mean", "The average of the value over all images of a group.", "E[X | A = a]"),
    "median": Measure("median", "Half of the images of a group lie below this value, half above.", "inf {x : P(X ≤ x | A = a) ≥ ½}"),
}

VERDICTS: dict[str, tuple[str, str, str]] = {
    "gap": ("Gap", "warn", "▲"),
    "levelling_down": ("Levelling down", "warn", "▼"),
    "collapsed": ("Collapsed", "stop", "■"),
    "insufficient_evidence": ("Insufficient evidence", "open", "○"),
    "threshold_on_test": ("No validation rows", "warn", "▲"),
}

REASONS: dict[str, str] = {
    "too_few_positives": "too few positive cases",
    "too_few_negatives": "too few negative cases",
    "too_few_patients": "too few patients",
    "one_class": "only one class",
    "no_rows": "no rows",
}


def measure(name: str) -> Measure:
    """The measure of that name; a name this page does not know keeps its own words.

    Example:
        >>> measure("fpr").formal
        'P(D = 1 | Y = 0)'
        >>> measure("dice").title
        'dice'
    """
    return MEASURES.get(name) or Measure(name.replace("_", " "), "", "")


def gap_title(name: str) -> str:
    """How a gap is called: 'AUC gap', but 'equalized odds difference'."""
    known = measure(name)
    return known.title if known.kind != "performance" else f"{known.title.split(' (')[0]} gap"


def reason(text: str | None) -> str:
    """Why an estimate could not be made, in words."""
    return REASONS.get(text or "", (text or "").replace("_", " "))


def brief_reason(text: str | None) -> str:
    """A reason short enough for a cell of a wide table; one of another form is kept whole.

    Example:
        >>> brief_reason("8 patients of the smaller class, at least 10 are needed")
        '8 patients, needs 10'
    """
    said = reason(text)
    found = re.fullmatch(r"(\d+ patients?) (?:of|in) [^,]*, at least (\d+) are needed", said)
    return f"{found[1]}, needs {found[2]}" if found else said


def group_label(attribute: str, key: str) -> str:
    """A group's key for reading: the parts of a joint key are set apart.

    Example:
        >>> group_label("sex*age", "female*[0,60)")
        'female × [0,60)'
        >>> group_label("site", "a*b")
        'a*b'
    """
    return key.replace("*", " × ") if key.count("*") == attribute.count("*") > 0 else key


def joint_names(labels: Mapping[str, Any]) -> dict[str, str]:
    """Joint attributes and their groups, as the audit writes them and as the page does.

    Example:
        >>> joint_names({"y": {"attributes": {"sex*age": {"groups": {"f*[0,60)": {}}}}}})
        {'f*[0,60)': 'f × [0,60)', 'sex*age': 'sex × age'}
    """
    found = {}
    for block in labels.values():
        for name, attribute in block["attributes"].items():
            if "*" in name:
                found[name] = group_label(name, name)
                found.update({key: group_label(name, key) for key in attribute.get("groups", {})})
    return {key: found[key] for key in sorted(found, key=lambda key: (-len(key), key)) if found[key] != key}


def crossed(text: str, names: Mapping[str, str]) -> str:
    """A sentence of the audit with its joint attributes and groups written as on the page; ``names`` from `joint_names`."""
    if "*" not in text:
        return text
    for key, shown in names.items():
        text = text.replace(key, shown)
    return text


def sentence(text: str) -> str:
    """A note as a sentence.

    Example:
        >>> sentence("there are no validation rows, so the threshold is 0.5")
        'There are no validation rows, so the threshold is 0.5.'
    """
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def number(value: Any, digits: int = 3) -> str:
    """A number for a table; empty where there is none.

    Example:
        >>> number(0.12345), number(-0.0001), number(None)
        ('0.123', '0.000', '')
    """
    if value is None or value != value:
        return ""
    text = f"{value:.{digits}f}"
    return text[1:].replace("-", "") if text.startswith("-") and float(text) == 0 else text.replace("-", "−")


def count(value: Any) -> str:
    """A count with thin spaces between thousands; an en dash where it is not known."""
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def plural(n: int, one: str, many: str = "") -> str:
    """'1 image', '2 images'."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def p_value(p: Any) -> str:
    """A p-value as it is usually printed.

    Example:
        >>> p_value(0.00001), p_value(0.0312)
        ('< 0.001', '0.031')
    """
    if p is None or p != p:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def listing(words: Sequence[str], most: int = 4) -> str:
    """Words as an enumeration: 'a, b and c', and how many more.

    Example:
        >>> listing(["a", "b", "c"]), listing(list("abcdef"), 3)
        ('a, b and c', 'a, b, c and 3 more')
    """
    shown = list(words[:most])
    if len(words) > most:
        shown.append(f"{len(words) - most} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else ""


def estimable(estimate: Mapping[str, Any] | None) -> bool:
    """Whether an estimate holds a value."""
    return bool(estimate) and estimate.get("value") is not None  # type: ignore[union-attr]


def with_interval(estimate: Mapping[str, Any], confidence: str, digits: int = 2) -> str:
    """'0.89 (95% interval 0.86 to 0.92)'."""
    text = number(estimate["value"], digits)
    if estimate.get("lower") is None or estimate.get("upper") is None:
        return text
    return f"{text} ({confidence} interval {number(estimate['lower'], digits)} to {number(estimate['upper'], digits)})"
