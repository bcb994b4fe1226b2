"""Losses with the one signature ``loss(logits, y, cells, weight) -> scalar``: masked cross-entropies and GroupDRO.

- logits: float (n, L), one a label, for binary and multi-label; (n, C), one a class, for multi-class.
- y: float (n, L) in [0, 1], NaN where unlabelled; multi-class int64 (n,), -1 where unlabelled, or float (n, C)
  probabilities (after mixing images), NaN rows where unlabelled.
- cells: int64 (n,) or (n, L), the group x label cell of each row, -1 where there is none; or None.
- weight: float (n,) or (n, L) weight of each row; or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenhand.errors import MethodError

if TYPE_CHECKING:
    from evenhand.methods.base import Kind

Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def balanced_class_weights(y: npt.NDArray[Any], kind: Kind, n_outputs: int) -> Tensor:
    """Weights n / (k * n_c) of the k classes that occur, per label, so that each class counts equally.

    Args:
        y: labels as in `Split`.
        kind: kind of the task.
        n_outputs: number of classes (multi-class); ignored otherwise.

    Returns:
        float32 (2, L): weights of 0 and of 1 for each label; multi-class (C,). Classes that do not occur weigh 1.

    Example:
        >>> balanced_class_weights(np.array([[0.0], [0.0], [0.0], [1.0]]), "binary", 1)
        tensor([[0.6667],
                [2.0000]])
    """
    if kind == "multiclass":
        return torch.from_numpy(_inverse_share(np.bincount(y[y >= 0], minlength=n_outputs)))
    counts = np.stack([(y == 0).sum(axis=0), (y == 1).sum(axis=0)])
    return torch.from_numpy(np.stack([_inverse_share(column) for column in counts.T], axis=1))


def _inverse_share(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    present = counts > 0
    weights = counts.sum() / np.maximum(present.sum() * counts, 1)
    return np.where(present, weights, 1.0).astype(np.float32)


def batch_class_weights(y: Tensor, known: Tensor) -> Tensor:
    """Weights of the classes by the labels of one batch: each class weighs as much as there is of the other.

    With share p of ones among a label's known entries, ones weigh 1 - p and zeros p. For C classes the weights are
    ``(1 / n_c) / sum_k (1 / n_k)`` over the classes that the batch has, which for two is the same. A label with one class in
    the batch weighs 0: nothing is learnt from it there.

    Args:
        y: (n, L) in [0, 1], known entries only count; multi-class (n, C) probabilities.
        known: bool (n, L); multi-class (n, 1).

    Returns:
        (2, L): weights of 0 and of 1 for each label; multi-class (C,).

    Example:
        >>> y = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
        >>> batch_class_weights(y, torch.ones(4, 1, dtype=torch.bool))
        tensor([[0.2500],
                [0.7500]])

    References:
        BMFT's and SWiFT's released code: ``n_pos / n * BCEWithLogits(pos_weight=n_neg / n_pos)``, the same number.
    """
    if known.shape != y.shape:
        counts = (y * known).sum(dim=0)
        present = counts > 0
        inverse = torch.where(present, 1.0 / counts.clamp(min=1e-12), torch.zeros_like(counts))
        return inverse / inverse.sum().clamp(min=1e-12) * (present.sum() > 1)
    share = (y * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    return torch.stack([share, 1.0 - share])


class MaskedLoss(nn.Module):
    """Binary cross-entropy (binary, multi-label) or cross-entropy (multi-class) over the labelled entries.

    ``sum_i w_i * l_i / m`` over the m labelled entries, with w_i the product of row weight and class weight. The sum is
    divided by the count and not by the sum of weights, so that with weights of mean 1 over the training rows the batch
    loss estimates the weighted risk without bias however small the batch is. No labelled entry gives 0.

    Label smoothing s moves targets y to y * (1 - s) + s / 2, for C classes to y * (1 - s) + s / C.

    Args:
        kind: kind of the task.
        class_weights: see `balanced_class_weights`; None for equal weights.
        label_smoothing: s in [0, 1).
        by_batch: class weights anew from the labels of every call (`batch_class_weights`), in place of ``class_weights``.

    Example:
        >>> loss = MaskedLoss("binary")
        >>> round(float(loss(torch.zeros(2, 1), torch.tensor([[1.0], [float("nan")]]), None, None)), 4)
        0.6931
    """

    class_weights: Tensor | None

    def __init__(self, kind: Kind, class_weights: Tensor | None = None, label_smoothing: float = 0.0, by_batch: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.label_smoothing = label_smoothing
        self.by_batch = by_batch
        self.register_buffer("class_weights", class_weights)

    def elements(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every entry, class weights included, and which entries are labelled: both (n, L), multi-class (n, 1)."""
        if self.kind == "multiclass":
            return self._classes(logits, y)
        if y.shape != logits.shape:
            shapes = f"labels of shape {tuple(y.shape)} and logits of shape {tuple(logits.shape)}"
            raise MethodError(f"{shapes}: the model must give one logit a label")
        known = ~torch.isnan(y)
        y = torch.where(known, y, torch.zeros_like(y))
        target = y * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weights = batch_class_weights(y, known) if self.by_batch else self.class_weights
        if weights is not None:
            loss = loss * (weights[0] * (1.0 - y) + weights[1] * y)
        return loss, known

    def _classes(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.ndim == 1:
            known = y >= 0
            y = F.one_hot(y.clamp(min=0), logits.shape[1]).to(logits.dtype)
        else:
            known = ~torch.isnan(y).any(dim=1)
            y = torch.where(known[:, None], y, torch.zeros_like(y))
        target = y * (1.0 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1)
        weights = batch_class_weights(y, known[:, None]) if self.by_batch else self.class_weights
        if weights is not None:
            loss = loss * (y @ weights)
        return loss[:, None], known[:, None]

    def forward(self, logits: Tensor, y: Tensor, cells: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """The weighted mean over labelled entries; ``cells`` is not read."""
        loss, known = self.elements(logits, y)
        return (_weighted(loss, weight) * known).sum() / known.sum().clamp(min=1)


def make_loss(kind: Kind, class_weights: str, y: npt.NDArray[Any], n_outputs: int, label_smoothing: float = 0.0) -> MaskedLoss:
    """The loss that ``trainer.class_weights`` names.

    Args:
        kind: kind of the task.
        class_weights: none, balanced (by the training rows) or batch (by every batch).
        y: labels of the training rows.
        n_outputs: number of classes (multi-class); ignored otherwise.
        label_smoothing: see `MaskedLoss`.
    """
    weights = balanced_class_weights(y, kind, n_outputs) if class_weights == "balanced" else None
    return MaskedLoss(kind, weights, label_smoothing, by_batch=class_weights == "batch")


def _weighted(loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return loss
    return loss * (weight[:, None] if weight.ndim == 1 else weight)


class GroupDROLoss(nn.Module):
    """Group distributionally robust optimisation, online form: the worst cell's loss, by exponentiated weights.

    With l_g the mean loss of cell g in the batch (0 where the batch has none of it) and n_g its training count, each
    training call sets q_g <- q_g * exp(step_size * (l_g + adjustment / sqrt(n_g))), scales q to sum 1, and returns
    sum_g q_g * l_g. In evaluation mode q stays. q is a buffer, so that it is in every checkpoint.

    Args:
        kind: kind of the task.
        counts: training rows of each of the G cells.
        step_size: step of the weights (authors' default 0.01).
        adjustment: the generalisation adjustment C (0 = off).
        base: loss of single entries; default `MaskedLoss(kind)`.

    Raises:
        MethodError: fewer than two cells.

    References:
        Sagawa et al., ICLR 2020, arXiv 1911.08731, algorithm 1; as in the authors' code the weights are updated before
        they are used, and a cell that a batch lacks has loss 0. Multi-label tasks are not in the paper: there each
        label's entry belongs to the cell of its row and label.
    """

    q: Tensor
    counts: Tensor
    needs_cells = True

    def __init__(
        self,
        kind: Kind,
        counts: Sequence[int] | npt.NDArray[Any],
        step_size: float = 0.01,
        adjustment: float = 0.0,
        base: MaskedLoss | None = None,
    ) -> None:
        super().__init__()
        if len(counts) < 2:
            raise MethodError(f"GroupDRO got {len(counts)} cell, but needs at least two; choose another attribute")
        self.base = base or MaskedLoss(kind)
        self.step_size, self.adjustment = step_size, adjustment
        self.register_buffer("counts", torch.as_tensor(np.asarray(counts), dtype=torch.float32))
        self.register_buffer("q", torch.full((len(counts),), 1.0 / len(counts)))

    def cell_losses(self, logits: Tensor, y: Tensor, cells: Tensor, weight: Tensor | None) -> Tensor:
        """(G,) mean loss of every cell in the batch, 0 where it has no labelled entry there."""
        loss, known = self.base.elements(logits, y)
        cells = (cells[:, None] if cells.ndim == 1 else cells).expand(loss.shape)
        keep = known & (cells >= 0)
        member = F.one_hot(cells[keep], len(self.q)).to(loss.dtype)
        totals = (_weighted(loss, weight)[keep][:, None] * member).sum(dim=0)
        return totals / member.sum(dim=0).clamp(min=1)

    def forward(self, logits: Tensor, y: Tensor, cells: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """The q-weighted sum of cell losses; updates q in training mode."""
        if cells is None:
            raise MethodError("GroupDRO needs the cell of every training row; pass cells to train_model")
        losses = self.cell_losses(logits, y, cells, weight)
        if self.training:
            adjusted = losses.detach() + self.adjustment / self.counts.clamp(min=1).sqrt()
            q = self.q * torch.exp(self.step_size * adjusted)
            self.q.copy_(q / q.sum())
        return self.q.clone() @ losses
