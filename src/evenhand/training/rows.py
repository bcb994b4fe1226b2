"""The training rows' labels, cells and weights as tensors; which rows may be drawn; and a process's share of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from evenhand.data.augment import Augmenter
from evenhand.errors import InputError
from evenhand.training.sampling import balanced_order, epoch_order

if TYPE_CHECKING:
    from evenhand.methods.base import Split


@dataclass(frozen=True)
class Batch:
    """Images, labels, cells and weights of some rows; any field may be one process's share of it.

    Attributes:
        x: images (b, c, h, w); for gathered batches the logits (b, K).
        y: labels as in `evenhand.training.losses`.
        cells: int64 (b,) or (b, L), or None.
        weight: float32 (b,) or (b, L), or None.
    """

    x: Tensor
    y: Tensor
    cells: Tensor | None = None
    weight: Tensor | None = None

    def mixed(self, augmenter: Augmenter, n_outputs: int, epoch: int, slot: int) -> Batch:
        """The batch after mixup or cutmix: multi-class labels become probabilities, weights are mixed like labels."""
        if not augmenter.mixes:
            return self
        y = self.y
        if y.ndim == 1:
            y = torch.where(y[:, None] < 0, torch.nan, F.one_hot(y.clamp(min=0), n_outputs).float())
        weight = self.weight if self.weight is None or self.weight.ndim == 2 else self.weight[:, None]
        x, target = augmenter.mix(self.x, y if weight is None else torch.cat([y, weight], dim=1), epoch, slot)
        if self.weight is None or weight is None:
            return Batch(x, target, self.cells)
        mixed_weight = target[:, y.shape[1] :]
        return Batch(x, target[:, : y.shape[1]], self.cells, mixed_weight[:, 0] if self.weight.ndim == 1 else mixed_weight)


@dataclass(frozen=True)
class TrainingRows:
    """Everything the loss needs to know of every training row, in memory."""

    y: Tensor
    cells: Tensor | None
    weight: Tensor | None
    eligible: npt.NDArray[np.int64]
    balance: bool

    @staticmethod
    def of(train: Split, cells: npt.NDArray[Any] | None, weight: npt.NDArray[Any] | None, balance: bool) -> TrainingRows:
        """Check and convert; rows without any label are not eligible.

        Raises:
            InputError: no labelled row, or arrays that do not fit the rows.
        """
        y = np.asarray(train.y)
        labelled = y >= 0 if y.ndim == 1 else (~np.isnan(y)).any(axis=1)
        if not labelled.any():
            raise InputError(f"none of the {len(y)} training rows has a label; check the label column and the split")
        for name, array in (("cells", cells), ("sample_weight", weight)):
            if array is not None and len(array) != len(y):
                raise InputError(f"{name} has {len(array)} entries, but there are {len(y)} training rows; give one a row")
        if balance and (cells is None or cells.ndim != 1):
            raise InputError("balanced sampling needs one cell a row; pass cells of shape (n,)")
        return TrainingRows(
            torch.from_numpy(y.astype(np.int64) if y.ndim == 1 else y.astype(np.float32)),
            None if cells is None else torch.from_numpy(np.asarray(cells, dtype=np.int64)),
            None if weight is None else torch.from_numpy(np.asarray(weight, dtype=np.float32)),
            np.flatnonzero(labelled),
            balance,
        )

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Row positions in the order of one epoch."""
        if self.balance and self.cells is not None:
            return balanced_order(self.eligible, self.cells.numpy()[self.eligible], seed, epoch)
        return epoch_order(self.eligible, seed, epoch)

    def batch(self, images: Tensor, positions: npt.NDArray[np.int64], device: torch.device) -> Batch:
        """The given images with the labels, cells and weights of their rows, on a device."""
        rows = torch.from_numpy(positions)
        cells, weight = (None if part is None else part[rows].to(device) for part in (self.cells, self.weight))
        return Batch(images.to(device, non_blocking=True), self.y[rows].to(device), cells, weight)


def share_of(batch: slice, rank: int, world: int) -> npt.NDArray[np.int64]:
    """One process's slots of a batch: equally many for each, the last processes' filled up with slots of the batch's start.

    Example:
        >>> [share_of(slice(4, 9), rank, 2).tolist() for rank in (0, 1)]
        [[4, 5, 6], [7, 8, 4]]
    """
    slots = np.arange(batch.start, batch.stop)
    size = -(-len(slots) // world)
    return np.resize(slots, size * world)[rank * size : (rank + 1) * size]
