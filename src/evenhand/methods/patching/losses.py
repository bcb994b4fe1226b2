"""The prediction loss of the published procedure: cross-entropy in which every batch balances its own classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evenhand.errors import MethodError
from evenhand.methods.base import Kind


def batch_balanced_loss(logits: Tensor, y: Tensor, kind: Kind = "binary") -> Tensor:
    """Mean cross-entropy of the labelled entries, each weighted so that the classes of the batch count equally.

    For one label, with n_1 of n labelled rows positive: positives weigh n_0 / n and negatives n_1 / n, which is the published
    ``n_1/n * BCE(pos_weight = n_0/n_1)``; a batch of one class has loss 0. Several labels: each so, then their mean. Several classes:
    class c weighs h / n_c, 1 / h = sum of 1 / n_c over the classes that occur, which is the same for two classes; 0 with one.

    Args:
        logits: (b, 1), (b, L) or (b, C).
        y: labels as in `Split`, NaN or -1 where unlabelled.
        kind: kind of the task.

    Returns:
        A scalar.

    Raises:
        MethodError: labels and logits do not fit each other.

    Example:
        >>> y = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
        >>> round(float(batch_balanced_loss(torch.zeros(4, 1), y)), 4)  # log 2 * (1 * 3/4 + 3 * 1/4) / 4
        0.2599
    """
    if kind == "multiclass":
        known = y >= 0
        counts = torch.bincount(y[known], minlength=logits.shape[1]).to(logits.dtype)
        present = counts > 0
        if int(present.sum()) < 2:
            return logits.sum() * 0.0
        weight = torch.where(present, 1.0 / (counts.clamp(min=1) * (1.0 / counts[present]).sum()), 0.0)
        losses = F.cross_entropy(logits, y.clamp(min=0), reduction="none") * weight[y.clamp(min=0)] * known
        return losses.sum() / known.sum()
    if (y[:, None] if y.ndim == 1 else y).shape != logits.shape:
        raise MethodError(f"labels have shape {tuple(y.shape)} and logits {tuple(logits.shape)}; the model must give one logit a label")
    y = y.reshape(logits.shape)
    known = ~torch.isnan(y)
    target = torch.where(known, y, 0.0)
    total = known.sum(dim=0).clamp(min=1)
    share = target.sum(dim=0) / total
    weight = torch.where(target == 1, 1.0 - share, share) * known
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    return (losses.sum(dim=0) / total).mean()
