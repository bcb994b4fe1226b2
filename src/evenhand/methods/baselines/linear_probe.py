"""Linear probe: L2-regularised logistic regression on frozen embeddings, folded into one affine map.

    min_{W,b}  mean_i w_i * loss(W x~_i + b, y_i) + l2 / 2 * ||W||^2,      x~ = (x - mean) / sd of the training rows

Binary and multi-label: one logit per label, each label on its own labelled rows. Multi-class: softmax. The attribute is
not used, so any number of groups is as good as none.

References:
    G. Alain, Y. Bengio, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from evenhand.config.methods import LinearProbeConfig
from evenhand.methods.base import Result, Task
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head, ridge_solve
from evenhand.methods.predictors import HeadPredictor
from evenhand.methods.registry import register
from evenhand.methods.regularisation import choose_l2


class HeadOptions(Protocol):
    """A method's configuration that has an L2 strength, None to choose it."""

    @property
    def l2(self) -> float | None: ...


def head_spec(task: Task, config: HeadOptions, **options: Any) -> HeadSpec:
    """The head a task asks for; without ``config.l2`` the strength is chosen on the validation rows (`choose_l2`)."""
    spec = HeadSpec(task.kind, task.labels, task.classes, **options)
    if config.l2 is not None:
        return replace(spec, l2=config.l2)
    strength, said = choose_l2(task, spec)
    return replace(spec, l2=strength, notes=(said,))


def head_result(task: Task, head: FittedHead, notes: tuple[str, ...] = ()) -> Result:
    """A fitted head as a method's result."""
    return Result(HeadPredictor(head.weight, head.bias, task.kind, task.embed), history=head.history, notes=(*head.notes, *notes))


@register("linear_probe")
class LinearProbe:
    """Logistic (or ridge) regression on the run's frozen embeddings.

    Args:
        config: its options; see `LinearProbeConfig`.
    """

    def __init__(self, config: LinearProbeConfig | None = None) -> None:
        self.config = config or LinearProbeConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows; deterministic, the seed is not used.

        Raises:
            MethodError: a label (of several: every label) has one class in the training rows.
        """
        config = self.config
        options = {"standardize": config.standardize, "class_weights": config.class_weights}
        spec = head_spec(task, config, max_iter=config.max_iter, tol=config.tol, **options)
        solve = ridge_solve if config.solver == "ridge" else None
        head = fit_head(task.embed(task.train.x), task.train.y, spec, solve=solve)
        task.report(f"linear probe: {len(head.history)} of {len(task.labels)} labels fitted")
        return head_result(task, head)
