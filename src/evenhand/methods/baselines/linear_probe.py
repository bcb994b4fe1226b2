"""Linear probe: L2-regularised logistic regression on frozen embeddings, folded into one affine map.

    min_{W,b}  mean_i w_i * loss(W x~_i + b, y_i) + l2 / 2 * ||W||^2,      x~ = (x - mean) / sd of the training rows

Binary and multi-label: one logit per label, each label on its own labelled rows. Multi-class: softmax. The attribute is
not used, so any number of groups is as good as none.

References:
    G. Alain, Y. Bengio, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644.
"""

from __future__ import annotations

from evenhand.config.methods import LinearProbeConfig
from evenhand.methods.base import Result, Task
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head, ridge_solve
from evenhand.methods.predictors import HeadPredictor
from evenhand.methods.registry import register


def head_spec(task: Task, *, l2: float, max_iter: int = 1000, tol: float = 1e-6) -> HeadSpec:
    """The head a task asks for, standardised, without class weights."""
    return HeadSpec(task.kind, task.labels, task.classes, l2, max_iter, tol)


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
        spec = HeadSpec(
            task.kind, task.labels, task.classes, config.l2, config.max_iter, config.tol, config.standardize, config.class_weights
        )
        solve = ridge_solve if config.solver == "ridge" else None
        head = fit_head(task.embed(task.train.x), task.train.y, spec, solve=solve)
        task.report(f"linear probe: {len(head.history)} of {len(task.labels)} labels fitted")
        return head_result(task, head)
