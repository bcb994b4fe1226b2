"""Heads that an objective fits anew on edited embeddings, as constant affine maps that gradients pass through.

A reader is a softmax regression of the groups on [z, label indicators]; its base is the same on the label indicators
alone. The difference of their cross-entropies is what the embedding adds to the label:

    advantage = CE(base) - CE(reader),  as a share of CE(base);  0 where nothing is read, 1 where all is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evenhand.methods.heads import Array, LogisticProblem, Standardizer

MAX_ITER = 200
TOL = 1e-5
DUMMY_SCALE = 10.0
"""Indicators enter this much larger than standardised embeddings, so that the L2 penalty hardly touches them."""


@dataclass(frozen=True)
class Affine:
    """logits = z weight' + dummies extra' + bias, constants on the embeddings' device.

    Attributes:
        weight: (K, d).
        extra: (K, q), (K, 0) where there are no indicators.
        bias: (K,).
    """

    weight: Tensor
    extra: Tensor
    bias: Tensor

    def __call__(self, z: Tensor, dummies: Tensor | None = None) -> Tensor:
        out = z @ self.weight.to(z.dtype).T + self.bias.to(z.dtype)
        return out if dummies is None or not self.extra.numel() else out + dummies @ self.extra.to(z.dtype).T


def fit_affine(
    z: Tensor, codes: Tensor, n_classes: int, l2: float, *, dummies: Tensor | None = None, weight: Tensor | None = None
) -> Affine:
    """L2-regularised logistic (n_classes 1) or softmax regression on standardised z, by L-BFGS from zero.

    Args:
        z: (n, d); d may be 0.
        codes: (n,) classes, none missing.
        n_classes: 1 for one logit of a 0/1 label, else K.
        l2: strength on standardised embeddings.
        dummies: (n, q) further columns that are hardly penalised.
        weight: (n,) row weights; default 1.

    Returns:
        The map on raw z. With one class among rows of positive weight it is constant.
    """
    x: Any = z.detach().float().cpu().numpy()
    y = codes.cpu().numpy()
    w: Array = np.ones(len(y)) if weight is None else weight.detach().double().cpu().numpy()
    k, d, q = n_classes, x.shape[1], 0 if dummies is None else dummies.shape[1]
    standard = Standardizer.fit(x) if d else Standardizer(np.zeros(0), np.ones(0))
    columns = standard.apply(x) if d else x
    if dummies is not None:
        columns = np.hstack([columns, DUMMY_SCALE * dummies.float().cpu().numpy()])
    problem = LogisticProblem(np.ascontiguousarray(columns), y, w / max(float(w.sum()), 1e-12), l2, k)
    theta = problem.start() if w.sum() > 0 else np.zeros((k, d + q + 1))
    if len(np.unique(y[w > 0])) > 1:
        theta = problem.solve(max_iter=MAX_ITER, tol=TOL, theta=theta).theta
    own, bias = standard.fold(np.hstack([theta[:, :d], theta[:, -1:]]))
    parts = (own, DUMMY_SCALE * theta[:, d : d + q], bias)
    return Affine(*(torch.from_numpy(np.ascontiguousarray(part)).float().to(z.device) for part in parts))


@dataclass(frozen=True)
class Reader:
    """A re-fitted head for one attribute and its base, which sees the labels only.

    Attributes:
        head: on embeddings and label indicators.
        base: on label indicators.
        entropy: the base's cross-entropy on the rows it was fitted on.
    """

    head: Affine
    base: Affine
    entropy: float

    @classmethod
    def fit(cls, z: Tensor, codes: Tensor, dummies: Tensor, n_groups: int, l2: float) -> Reader:
        """On rows whose group is known."""
        head = fit_affine(z, codes, n_groups, l2, dummies=dummies)
        base = fit_affine(z[:, :0], codes, n_groups, 1e-6, dummies=dummies)
        entropy = functional.cross_entropy(base(z[:, :0], dummies.to(z.dtype)), codes)
        return cls(head, base, float(entropy))

    def advantage(self, z: Tensor, codes: Tensor, dummies: Tensor) -> Tensor:
        """The share of the base's cross-entropy that the embeddings take away, at most 1; differentiable in z."""
        if self.entropy <= 1e-3 or not len(codes):
            return z.sum() * 0.0
        base = functional.cross_entropy(self.base(z[:, :0], dummies), codes)
        return (base - functional.cross_entropy(self.head(z, dummies), codes)) / self.entropy
