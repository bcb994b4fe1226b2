"""Step two: the head of a body that stands still, fitted again on features that are made once.

    min over W, b of   mean_i w_i loss(W phi_i + b, y_i)  +  beta B(W phi + b)  +  l2 / 2 ||W S||^2

to convergence (L-BFGS; w makes every group x label cell count equally, B is over all rows, S are the features' standard
deviations), or by passes of an optimiser over batches, as published. phi is what the last layer sees; the body in
evaluation mode gives the same phi in every pass, so that it is run once an image and the result is that of running it
every time. The released code runs it in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evenhand.errors import MethodError
from evenhand.methods.base import Images, Split, Task
from evenhand.methods.cells import equal_weights
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head, label_columns
from evenhand.methods.heads import Array, LogisticProblem
from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.outcome import Cost
from evenhand.methods.patching.rows import PatchRows
from evenhand.methods.regularisation import FALL_BACK, GRID, MIN_ROWS, log_loss
from evenhand.models.parameters import _unwrap, head_prefixes
from evenhand.models.prefix import NetworkSplit, split_network
from evenhand.training.predicting import read_ahead

Features = npt.NDArray[np.float32]
TERM_ITERATIONS, TERM_DECREASE = 50, 1e-5
"""Most iterations with a bias term, and the share of the objective below which a promised decrease is not worth another one."""


class FeatureImages:
    """Features by position, in place of the images they were made of (`evenhand.methods.base.Images`).

    Args:
        values: (n, …) float32 on the CPU.
    """

    def __init__(self, values: Tensor) -> None:
        first, second, third = (*values.shape[1:], 1, 1)[:3]
        self.shape: tuple[int, int, int] = (first, second, third)
        self.fingerprint, self.values = "features", values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, positions: Any) -> Tensor:
        """Features (b, …) at positions."""
        return self.values[positions if isinstance(positions, slice) else torch.from_numpy(np.asarray(positions))]


@dataclass(frozen=True)
class Body:
    """A classifier with its body standing still: what comes before the head, and the head.

    Attributes:
        model: the classifier.
        split: the cut; None where the network has none, so that the body must be run in every pass.
    """

    model: nn.Module
    split: NetworkSplit | None

    @classmethod
    def of(cls, model: nn.Module) -> Body:
        """Freeze all but the head, and cut before it."""
        names = head_names(model)
        for name, parameter in _unwrap(model).named_parameters():
            parameter.requires_grad_(name in names)
        with _without_dropping(model.eval()):
            return cls(model, split_network(model, names))

    @property
    def linear(self) -> nn.Linear | None:
        """The head where it is one linear layer, with an intercept, on what the body gives."""
        if self.split is None or self.split.before != "classifier":
            return None
        head = _unwrap(self.model).get_submodule(head_prefixes(self.model)[0].rstrip("."))
        return head if isinstance(head, nn.Linear) and head.bias is not None else None

    @torch.no_grad()
    def features(self, images: Images, batch_size: int, device: torch.device, cost: Cost | None = None) -> Tensor:
        """What the head is given for every image, on the CPU; needs the cut.

        Raises:
            MethodError: there is no cut, or a feature is NaN or infinite.
        """
        if self.split is None:
            raise MethodError(f"{type(_unwrap(self.model)).__name__} cannot be cut before its head, so its features cannot be kept")
        prefix = self.split.prefix.eval()
        parts = [np.arange(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
        found = torch.cat([prefix(batch.to(device)).float().cpu() for batch in read_ahead(images, parts, pin=device.type == "cuda")])
        if not bool(torch.isfinite(found).all()):
            bad = int((~torch.isfinite(found).flatten(1).all(dim=1)).sum())
            raise MethodError(f"the body gives NaN or infinite features for {bad} of {len(found)} images; lower method.impair_lr")
        if cost is not None:
            cost.add(forward=len(images))
        return found


@contextmanager
def _without_dropping(model: nn.Module) -> Iterator[None]:
    """Rates of dropout and stochastic depth at 0: a body that stands still is in evaluation mode, where they do nothing."""
    rates = [
        (module, name, rate)
        for module in model.modules()
        for name in ("p", "drop_prob", "drop_rate")
        if (name != "p" or "Drop" in type(module).__name__) and isinstance(rate := vars(module).get(name), int | float) and rate > 0
    ]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def head_names(model: nn.Module) -> set[str]:
    """Names of the head's parameters in the timm network."""
    prefixes = head_prefixes(model)
    return {name for name, _ in _unwrap(model).named_parameters() if name.startswith(prefixes)}


@torch.no_grad()
def reinitialise(model: nn.Module, rule: str, mask: Mapping[str, Tensor]) -> int:
    """Set head weights to zero; how many were.

    Args:
        model: the classifier.
        rule: "all"; "masked": those whose mask is above the mean of their tensor's mask (SWiFT); "none".
        mask: masks of the head's tensors, for "masked"; one without a mask is set to zero whole.
    """
    if rule == "none":
        return 0
    count = 0
    for name, parameter in _unwrap(model).named_parameters():
        if name not in head_names(model):
            continue
        own = mask.get(name) if rule == "masked" else None
        where = torch.ones_like(parameter, dtype=torch.bool) if own is None else (own.float() > own.float().mean()).to(parameter.device)
        parameter.masked_fill_(where, 0.0)
        count += int(where.sum())
    return count


@dataclass(frozen=True)
class HeadFit:
    """How a head is fitted to convergence.

    Attributes:
        task: gives kind and names.
        rows: the rows to fit on.
        balanced: every group x label cell counts equally; rows in none are left out.
        term: the bias term.
        max_iter: most iterations of L-BFGS.
    """

    task: Task
    rows: PatchRows
    balanced: bool
    term: BiasTerm | None
    max_iter: int = 300

    def spec(self, l2: float) -> HeadSpec:
        """The head that the task asks for."""
        return HeadSpec(self.task.kind, self.task.labels, self.task.classes, l2=l2, max_iter=self.max_iter, tol=1e-6)

    def weights(self) -> list[Array]:
        """Row weights of every label: 0 for rows in no cell."""
        if not self.balanced:
            return [np.ones(len(self.rows)) for _ in self.rows.labels]
        return [np.where(cells.codes >= 0, equal_weights(cells), 0.0) for cells in self.rows.label_cells()]

    def fit(self, features: Features, l2: float, beta: float) -> FittedHead:
        """The head at one strength of the bias term.

        Raises:
            MethodError: no label has two classes among the rows.
        """
        solve = None if beta == 0 or self.term is None else lambda problem, label: self._solve(problem, label, beta)
        return fit_head(features, np.asarray(self.rows.split.y), self.spec(l2), weights=self.weights(), solve=solve)

    def _solve(self, problem: LogisticProblem, label: int, beta: float) -> tuple[Array, dict[str, Any]]:
        """From the head without the bias term, so that the result is never worse in the sum of both."""
        assert self.term is not None
        y = self.rows.y if self.task.kind == "multiclass" else self.rows.y[:, label : label + 1]
        plain = problem.solve(max_iter=self.max_iter, tol=1e-6)

        def term(z: Array) -> tuple[float, Array]:
            leaf = torch.from_numpy(z).requires_grad_()
            value = beta * self.term(leaf, y, self.rows.groups)  # type: ignore[misc]
            (slope,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), slope.numpy()

        problem.term = term
        # near a gap of 0 the term is all but kinked, where the last digits of the sum take most of the iterations
        found = problem.solve(max_iter=TERM_ITERATIONS, tol=1e-6, theta=plain.theta, decrease=TERM_DECREASE)
        return found.theta, {"objective": found.value, "iterations": found.n_iter, "beta": beta}

    def choose_l2(self, features: Features, val: Split, val_features: Features) -> tuple[float, str]:
        """The strength whose plain head has the lowest log loss on validation rows, each cell of them counting equally in training."""
        if len(val) < MIN_ROWS:
            return FALL_BACK, f"L2 strength of the head {FALL_BACK:g}: {len(val)} validation rows are too few to choose one"
        best, lowest, worse = FALL_BACK, np.inf, 0
        for strength in GRID:
            loss = log_loss(self.fit(features, strength, 0.0), val_features, np.asarray(val.y), self.task.kind)
            best, lowest, worse = (strength, loss, 0) if loss < lowest else (best, lowest, worse + 1)
            if worse == 2:
                break
        return best, f"L2 strength {best:g} of the head was chosen by log loss on {len(val)} validation rows"


@torch.no_grad()
def write_head(layer: nn.Linear, head: FittedHead) -> None:
    """Put a fitted head into the last layer."""
    layer.weight.copy_(torch.from_numpy(head.weight))
    layer.bias.copy_(torch.from_numpy(head.bias))


def check_labels(task: Task, rows: PatchRows) -> None:
    """Refuse rows from which no head can be learnt.

    Raises:
        MethodError: every label has one class.
    """
    columns = label_columns(np.asarray(rows.split.y), task.kind)
    if all(len(np.unique(codes[known])) < 2 for codes, known in columns):
        raise MethodError("each label has one class in the external set, so no head can be learnt from it; give rows of both")


