"""Operating points: chosen on validation rows, applied to test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.errors import ConfigError

NAMED_RULES = ("youden", "f1", "prevalence")
TARGET_RULES = ("sensitivity", "specificity")


def parse_rule(rule: str) -> tuple[str, float | None]:
    """A threshold rule as (name, number).

    Args:
        rule: ``youden``, ``f1``, ``prevalence``, ``sensitivity=0.9``, ``specificity=0.9``, or a number in [0, 1].

    Raises:
        ConfigError: none of these.

    Example:
        >>> parse_rule("sensitivity=0.9"), parse_rule("0.5"), parse_rule("f1")
        (('sensitivity', 0.9), ('fixed', 0.5), ('f1', None))
    """
    text = str(rule).strip().lower()
    if text in NAMED_RULES:
        return text, None
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if (name in TARGET_RULES or not name) and 0 <= value <= 1:
        return name or "fixed", value
    raise ConfigError(f"threshold '{rule}' is not one of youden, f1, prevalence, sensitivity=0.9, specificity=0.9, or a number in [0, 1]")


def choose_threshold(y_true: npt.ArrayLike, y_score: npt.ArrayLike, rule: str) -> float:
    """The threshold t of the decision ``score >= t``, over the observed scores.

    ``youden`` maximises TPR - FPR, ``f1`` maximises F1 (the highest such threshold is taken), ``sensitivity=x`` is the
    highest threshold with TPR >= x, ``specificity=x`` the lowest with TNR >= x, ``prevalence`` flags as large a share
    as is positive. Chosen thresholds lie half-way to the next lower score, so that rounding of a score changes nothing.

    Args:
        y_true: (n,) in {0, 1}, both classes present.
        y_score: (n,) finite.
        rule: see `parse_rule`.

    Returns:
        The threshold.

    Example:
        >>> choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.8], "youden")
        0.4
    """
    name, target = parse_rule(rule)
    if name == "fixed" and target is not None:
        return target
    truth, score = np.asarray(y_true) == 1, np.asarray(y_score, float)
    levels = np.unique(score)[::-1]
    flagged = np.searchsorted(np.sort(-score), -levels, side="right")
    hits = np.searchsorted(np.sort(-score[truth]), -levels, side="right")
    return _between(levels, _pick(name, target or 0.0, flagged, hits, len(truth), int(truth.sum())))


def _pick(name: str, target: float, flagged: npt.NDArray[Any], hits: npt.NDArray[Any], n: int, n_positive: int) -> int:
    """Index of the chosen level (levels descend); len(levels) never occurs, -1 means above every score."""
    tpr, fpr = hits / n_positive, (flagged - hits) / (n - n_positive)
    if name == "youden":
        return int(np.argmax(tpr - fpr))
    if name == "f1":
        return int(np.argmax(2 * hits / (flagged + n_positive)))
    if name == "sensitivity":
        return int(np.argmax(tpr >= target - 1e-12))
    if name == "specificity":
        return int(np.count_nonzero(1 - fpr >= target - 1e-12)) - 1
    return int(np.argmin(np.abs(flagged - n_positive)))


def _between(levels: npt.NDArray[np.float64], index: int) -> float:
    if index < 0:
        return float(np.nextafter(levels[0], np.inf))
    low = levels[index + 1] if index + 1 < len(levels) else levels[index]
    middle = float((levels[index] + low) / 2)
    return middle if middle > low else float(levels[index])
