"""The rows that a patch is learnt from, as tensors: labels, groups of every attribute, cells, and the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.data.augment import Augmenter
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Split, Task
from evenhand.methods.cells import Cells, choose_attribute, groups_of, make_cells
from evenhand.methods.fitting import label_columns
from evenhand.training.predicting import read_ahead
from evenhand.training.sampling import balanced_order, epoch_order, even_batches

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PatchBatch:
    """Some rows.

    Attributes:
        x: images (b, c, h, w) in [0, 1], or what a frozen body makes of them, (b, …).
        y: (b, L) float, NaN where unlabelled; multi-class (b,) int64, -1 where unlabelled.
        groups: int64 (b, A), group of every attribute, -1 where missing.
        positions: int64 (b,), where the rows stand among all rows.
        draws: (b,), how often an epoch draws each row, on average.
        n_drawn: draws of an epoch; fewer than there are rows, where a balanced one leaves out rows without a group.
    """

    x: Tensor
    y: Tensor
    groups: Tensor
    positions: Tensor
    draws: Tensor
    n_drawn: int


@dataclass(frozen=True)
class PatchRows:
    """Rows of one split, as far as a patch needs them.

    Attributes:
        split: the rows.
        kind: kind of the task.
        labels: label names.
        joint: the joint group of the attributes of the bias; missing where one of them is.
        y: as in `PatchBatch`, of all rows, on the CPU.
        groups: int64 (n, A).
        cells: the joint group x label cells. Several labels: a row's label is whether it has any of them.
        eligible: positions of the rows with a label.
    """

    split: Split
    kind: str
    labels: tuple[str, ...]
    joint: Groups
    y: Tensor
    groups: Tensor
    cells: Cells
    eligible: Positions

    @classmethod
    def of(cls, split: Split, task: Task, attributes: tuple[str, ...]) -> PatchRows:
        """Rows of a split of the task.

        Raises:
            MethodError: no row has a label.
        """
        y = np.asarray(split.y)
        columns = label_columns(y, task.kind)
        labelled = np.any([known for _, known in columns], axis=0)
        if not labelled.any():
            raise MethodError(f"none of the {len(y)} rows of the external set has a label; check the label column and the split")
        codes = np.stack([split.groups[name].codes for name in attributes], axis=1)
        joint = _joint([split.groups[name] for name in attributes])
        value = columns[0][0] if len(columns) == 1 else np.any([code > 0 for code, _ in columns], axis=0).astype(np.int64)
        cells = make_cells(joint, task.labels[0] if len(task.labels) == 1 else "any label", value, labelled)
        tensor = torch.from_numpy(y.astype(np.int64) if task.kind == "multiclass" else y.astype(np.float32))
        return cls(split, task.kind, task.labels, joint, tensor, torch.from_numpy(codes.astype(np.int64)), cells, np.flatnonzero(labelled))

    def __len__(self) -> int:
        return len(self.split)

    def only(self, kept: Positions) -> PatchRows:
        """The same rows, but only those at the positions ``kept`` are ever drawn."""
        return replace(self, eligible=np.intersect1d(self.eligible, kept))

    def order(self, seed: int, epoch: int, balanced: bool) -> Positions:
        """Positions in the order of an epoch: all rows once, or every cell equally often, as many draws as rows in a cell."""
        if balanced:
            return balanced_order(self.eligible, self.cells.codes[self.eligible], seed, epoch)
        return epoch_order(self.eligible, seed, epoch)

    def draws(self, balanced: bool) -> npt.NDArray[np.float32]:
        """(n,) how often an epoch draws each row, on average; 0 for rows that it never does."""
        out = np.zeros(len(self), dtype=np.float32)
        out[self.eligible] = 1.0
        if balanced:
            codes = self.cells.codes[self.eligible]
            counts = np.bincount(codes[codes >= 0], minlength=len(self.cells.names))
            share = (codes >= 0).sum() / max(int((counts > 0).sum()), 1) / np.maximum(counts, 1)
            out[self.eligible] = np.where(codes >= 0, share[codes], 0.0)
        return out

    def batches(
        self,
        order: Positions,
        batch_size: int,
        device: torch.device,
        *,
        inputs: Images | None = None,
        epoch: int = 0,
        augmenter: Augmenter | None = None,
        balanced: bool = False,
    ) -> Iterator[PatchBatch]:
        """Batches in the given order, of even sizes, the next one read while one is used.

        Args:
            order: positions.
            batch_size: most rows of a batch.
            device: where they go.
            inputs: what is read in place of the images.
            epoch: number of the epoch, for the augmentation.
            augmenter: changes images; None leaves them.
            balanced: how the order was drawn.
        """
        parts = [order[part] for part in even_batches(len(order), batch_size)]
        source: Images = self.split.x if inputs is None else inputs
        draws = torch.from_numpy(self.draws(balanced))
        slot = 0
        for x, positions in zip(read_ahead(source, parts, pin=device.type == "cuda"), parts, strict=True):
            if augmenter is not None:
                x = augmenter.images(x, epoch, list(range(slot, slot + len(positions))))
            slot += len(positions)
            rows = torch.from_numpy(positions)
            fields = [field.to(device, non_blocking=True) for field in (x, self.y[rows], self.groups[rows], rows, draws[rows])]
            yield PatchBatch(fields[0], fields[1], fields[2], fields[3], fields[4], len(order))

    def label_cells(self) -> list[Cells]:
        """Joint group x label cells of every label by itself."""
        columns = label_columns(np.asarray(self.split.y), self.kind)
        return [make_cells(self.joint, label, codes, known) for label, (codes, known) in zip(self.labels, columns, strict=True)]


def bias_attributes(task: Task, asked: list[str] | None) -> tuple[str, ...]:
    """The attributes that a bias is of: those asked for, else the task's first.

    Raises:
        MethodError: the task has none, or not these, or fewer than two groups of one occur.
    """
    names = tuple(choose_attribute(task, name) for name in asked) if asked else (choose_attribute(task, None),)
    for name in names:
        groups_of(task.train, name)
    return names


def absent_cells(rows: PatchRows) -> list[str]:
    """Names of the cells of a group that occurs and a label value that occurs, which no row is in.

    Example:
        With group m in no row that is ill, ``['sex=m, ill=1']``.
    """
    missing = []
    for cells in [rows.cells] if len(rows.labels) == 1 else rows.label_cells():
        texts = [name.rpartition(", ") for name in cells.names]
        groups, values = dict.fromkeys(group for group, _, _ in texts), dict.fromkeys(value for _, _, value in texts)
        missing += [f"{group}, {value}" for group in groups for value in values if f"{group}, {value}" not in cells.names]
    return missing


def _joint(groups: list[Groups]) -> Groups:
    """One attribute as it is, several as the product of their groups."""
    if len(groups) == 1:
        return groups[0]
    keys, codes = groups[0].keys, groups[0].codes
    for other in groups[1:]:
        known = (codes >= 0) & (other.codes >= 0)
        codes = np.where(known, codes * len(other.keys) + other.codes, -1)
        keys = tuple(f"{a}*{b}" for a in keys for b in other.keys)
    return Groups("*".join(item.attribute for item in groups), keys, codes.astype(np.int64))
