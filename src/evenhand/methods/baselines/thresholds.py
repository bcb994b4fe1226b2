"""Thresholds per group on a linear probe's scores, chosen on validation rows (fairlearn's ThresholdOptimizer).

For each group the decision is a random mixture of at most two thresholds and a constant,

    P(decide 1 | s, g) = p_ignore * constant + (1 - p_ignore) * (p0 [s > t0] + p1 [s > t1])

such that the chosen rate (or TPR and FPR together) is equal in all groups on the validation rows and the objective is
largest. The rule needs the attribute at use. The random part is a hash of the seed and the image's embedding, so the same
image gets the same decision in any batch or order. Scores stay those of the probe; only decisions change, so AUC does not.

Any number of groups. Multi-label: rules per label. Multi-class is refused. A group that lacks positives or negatives among
its validation rows, a group not seen there, and rows whose attribute is missing use the probe's overall threshold, the one
with the best objective over all validation rows. A label for which fewer than two groups are complete: with several labels
the overall threshold serves all groups and the notes say so, else it is refused.

References:
    Hardt, Price, Srebro, "Equality of opportunity in supervised learning", NeurIPS 2016, arXiv 1610.02413.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin

from evenhand.config.methods import ThresholdsConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.linear_probe import head_spec
from evenhand.methods.cells import choose_attribute
from evenhand.methods.fitting import fit_head, label_columns
from evenhand.methods.predictors import GroupRule, HeadPredictor, Scores, ThresholdPredictor
from evenhand.methods.registry import register
from evenhand.random import derive_seed


class _GivenScores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Scores that exist already, as the estimator that fairlearn asks for."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, scores: npt.NDArray[Any], y: npt.NDArray[Any]) -> _GivenScores:
        return self

    def predict(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return scores[:, 0]


def best_threshold(scores: Scores, y: npt.NDArray[np.int64], objective: str) -> float:
    """The t that maximises the objective of deciding 1 where s >= t; 0.5 when one class is absent.

    Args:
        scores: (n,).
        y: 0/1 (n,).
        objective: "accuracy_score" or "balanced_accuracy_score".

    Example:
        >>> best_threshold(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0, 0, 1, 1]), "accuracy_score")
        0.5
    """
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    if positives == 0 or negatives == 0:
        return 0.5
    order = np.argsort(-scores, kind="stable")
    s, hits = scores[order], np.cumsum(y[order] == 1)
    false = np.arange(1, len(s) + 1) - hits
    gain = hits - false if objective == "accuracy_score" else hits / positives - false / negatives
    gain = np.where(np.append(s[:-1] != s[1:], True), gain, -np.inf)
    last = int(np.argmax(gain))
    if gain[last] < 0:
        return float(np.nextafter(s[0], np.inf))
    return float((s[last] + s[last + 1]) / 2) if last + 1 < len(s) else float(s[last])


def _rule(bunch: Any) -> dict[str, Any]:
    """fairlearn's interpolation of one group as plain numbers."""

    def threshold(operation: Any) -> float | str:
        value = float(operation._threshold)
        return value if np.isfinite(value) else str(value)

    ignore, constant = float(bunch.get("p_ignore", 0.0)), float(bunch.get("prediction_constant", 0.0))
    own = {"p0": float(bunch.p0), "t0": threshold(bunch.operation0), "p1": float(bunch.p1), "t1": threshold(bunch.operation1)}
    return {**own, "p_ignore": ignore, "constant": constant}


def fit_rule(scores: Scores, y: npt.NDArray[np.int64], groups: Groups, constraint: str, objective: str) -> tuple[GroupRule, list[str]]:
    """The rule of one label from labelled validation rows, and the groups that use the overall threshold.

    Args:
        scores: (n,) of the probe.
        y: 0/1 (n,).
        groups: (n,) the attribute.
        constraint: what is equalised; see `ThresholdsConfig`.
        objective: what is maximised.

    Returns:
        The rule, without groups of its own when fewer than two are complete; keys of the incomplete groups.
    """
    overall = best_threshold(scores, y, objective)
    counts = np.stack([np.bincount(groups.codes[(groups.codes >= 0) & (y == v)], minlength=len(groups.keys)) for v in (0, 1)])
    complete = np.flatnonzero((counts > 0).all(axis=0))
    incomplete = [key for code, key in enumerate(groups.keys) if code not in complete]
    if len(complete) < 2:
        return GroupRule(overall, {}), list(groups.keys)
    rows = np.isin(groups.codes, complete)
    optimizer = ThresholdOptimizer(
        estimator=_GivenScores(), constraints=constraint, objective=objective, prefit=True, predict_method="predict"
    )
    optimizer.fit(scores[rows, None], y[rows], sensitive_features=groups.codes[rows])
    found = optimizer.interpolated_thresholder_.interpolation_dict
    return GroupRule(overall, {groups.keys[int(code)]: _rule(bunch) for code, bunch in found.items()}), incomplete


@register("thresholds")
class Thresholds:
    """A linear probe whose decisions have thresholds per group.

    Args:
        config: its options; see `ThresholdsConfig`.
    """

    def __init__(self, config: ThresholdsConfig | None = None) -> None:
        self.config = config or ThresholdsConfig()

    def fit(self, task: Task) -> Result:
        """Fit the probe on the training rows and the rules on the validation rows.

        Raises:
            MethodError: multi-class; no validation rows; or no label with two groups that have both classes there.
        """
        attribute = choose_attribute(task, self.config.attribute)
        if task.kind == "multiclass":
            raise MethodError("thresholds decide yes or no, but the task has several classes; use reweight, group_dro or eo_head")
        if len(task.val) == 0:
            raise MethodError("thresholds are chosen on validation rows, but there are none; make a val split, or use linear_probe")
        head = fit_head(task.embed(task.train.x), task.train.y, head_spec(task, self.config))
        probe = HeadPredictor(head.weight, head.bias, task.kind, task.embed)
        scores = probe.scores_of(task.embed(task.val.x))
        rules, notes = [], list(head.notes)
        for column, (label, (codes, labelled)) in enumerate(zip(task.labels, label_columns(task.val.y, task.kind), strict=True)):
            groups = task.val.groups[attribute].take(labelled)
            rule, incomplete = fit_rule(scores[labelled, column], codes[labelled], groups, self.config.constraint, self.config.objective)
            rules.append(rule)
            if incomplete:
                which = ", ".join(incomplete)
                notes.append(f"'{label}': groups without both classes in validation use the overall threshold {rule.overall:.4g}: {which}")
        if not any(rule.groups for rule in rules):
            few = f"fewer than two groups of '{attribute}' have both classes among the validation rows"
            raise MethodError(f"{few}; use a larger val split, or reweight")
        notes.append(f"rows whose '{attribute}' is missing or was not seen in validation use the overall threshold")
        notes.append("validation rows chose the thresholds of the groups")
        seed = derive_seed(task.seed, "thresholds")
        predictor = ThresholdPredictor(probe, attribute, task.labels, tuple(rules), seed)
        return Result(predictor, history=head.history, notes=tuple(notes))
