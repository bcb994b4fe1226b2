"""What an image classifier trained afresh on edited pixels still reads of an attribute, beside unedited pixels.

The published claim is about the embedding *and* the image. The reader is a small convolutional network of about 50,000
weights, trained by the package's loop on edited training images, its epoch picked on validation images. It is no upper
bound: a larger network on more images may read more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evenhand.config.schema import TrainerConfig
from evenhand.edits.base import Edit
from evenhand.edits.images import EditedImages
from evenhand.errors import MethodError
from evenhand.methods.base import MemoryStore, Split, Store
from evenhand.methods.editing.group_auc import GroupAUC, difference, doubt
from evenhand.random import derive_seed
from evenhand.training import TrainSetup, predict_model, train_model

WIDTHS = (16, 32, 48, 64)
READER_TRAINER = TrainerConfig(
    max_epochs=12, lr=3e-3, weight_decay=0.01, warmup_epochs=1.0, early_stopping=4, monitor="val_loss", progress=False
)
"""How the reader is trained unless the caller says otherwise."""


class PixelReader(nn.Module):
    """Images (n, c, h, w) in [0, 1] -> logits (n, K): four strided convolutions, then mean and maximum of every map.

    Args:
        channels: c.
        n_groups: K.
        seed: of the initial weights.
    """

    def __init__(self, channels: int, n_groups: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "pixel reader"))
            layers: list[nn.Module] = []
            before = channels
            for number, width in enumerate(WIDTHS):
                kernel = 5 if number == 0 else 3
                convolution = nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                before = width
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(2 * before, n_groups)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        maps = self.body((images - 0.5) * 4)
        logits: Tensor = self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return logits


def read_pixels(
    train: Split,
    val: Split,
    test: Split,
    attribute: str,
    edit: Edit,
    *,
    kind: str,
    labels: tuple[str, ...],
    classes: tuple[str, ...] = (),
    trainer: TrainerConfig | None = None,
    device: torch.device | None = None,
    batch_size: int = 64,
    seed: int = 0,
    n_bootstrap: int = 1000,
    store: Callable[[str], Store] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train one reader on unedited and one on edited pixels, from the same weights in the same order, and measure both.

    Args:
        train, val, test: rows to learn from, to pick the epoch on, and to measure; rows without the attribute are left out.
        attribute: what is read.
        edit: the edit.
        kind, labels, classes: of the labels, for AUCs within their values.
        trainer: options of the loop; default: `READER_TRAINER`.
        device: where to train; default: the CPU.
        batch_size: images a step.
        seed: of weights, order and bootstrap.
        n_bootstrap: replicates.
        store: condition ("none" or "edit") -> where its checkpoints go; default: nowhere.
        report: progress.

    Returns:
        JSON: ``n_train, n_parameters`` and ``none | edit`` -> ``overall, labels, given_label`` as in `measure_leakage`, and
        ``change``, edit minus none, paired; ``doubt`` as there.

    Raises:
        MethodError: fewer than two groups among the training rows.
    """
    keys, codes = train.groups[attribute].keys, train.groups[attribute].codes
    if len(np.unique(codes[codes >= 0])) < 2:
        raise MethodError(f"attribute '{attribute}' has one group among the training rows; a reader of pixels needs two")
    where = device or torch.device("cpu")
    out: dict[str, Any] = {"n_train": int((codes >= 0).sum()), "groups": list(keys)}
    found: dict[str, GroupAUC] = {}
    for name, used in (("none", None), ("edit", edit)):
        rows = [_rows(split, attribute, used) for split in (train, val, test)]
        model = PixelReader(train.x.shape[0], len(keys), seed).to(where)
        kept: Store = MemoryStore() if store is None else store(name)
        setup = TrainSetup("multiclass", trainer or READER_TRAINER, kept, seed, batch_size, where, report=report)
        outcome = train_model(model, rows[0], rows[1], setup)
        scores = predict_model(outcome.model, rows[2].x, batch_size, where, "multiclass")
        auc = found[name] = GroupAUC(test, attribute, seed, n_bootstrap)
        record: dict[str, Any] = {"epochs": outcome.stopped_epoch, "best_epoch": outcome.best_epoch, "overall": auc.overall(scores)}
        names = classes or ("0", "1")
        record["labels"] = {label: auc.within(scores, kind, column, label, names) for column, label in enumerate(labels)}
        record["given_label"] = auc.over_labels(labels)
        out[name] = record
        out["n_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    out["change"] = {key: difference(found["edit"].draws.get(key), found["none"].draws.get(key)) for key in ("overall", "given_label")}
    said = doubt({
        f"{name}, {words}": out[key][what]
        for key, name in (("none", "no edit"), ("edit", "edit"))
        for what, words in (("overall", "overall"), ("given_label", "given the label"))
    })
    return out | ({"doubt": said} if said else {})


def _rows(split: Split, attribute: str, edit: Edit | None) -> Split:
    """The same rows with the group as the label; the loop leaves out rows without one."""
    images = split.x if edit is None else EditedImages(split.x, edit)
    return Split(images, split.groups[attribute].codes.astype(np.int64), {}, split.patient, split.index)
