"""What a checkpoint holds, and whether it belongs to the call that found it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from evenhand.errors import InputError
from evenhand.training.settings import Setup

if TYPE_CHECKING:
    from evenhand.methods.base import Split

SCHEMA = "evenhand.checkpoint/1"
KEY = "checkpoint"
# options that change what is shown or where it runs, not what is computed
_COSMETIC = ("progress", "accelerator", "profile")
# options that came later: they count where they are set, so that a run begun before them goes on
_LATER = {"plateau_monitor": "monitor", "overfit_batches": 0, "limit_batches": 0}


def to_cpu(value: Any) -> Any:
    """A deep copy with every tensor on the CPU, so that training on does not change what was stored."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value


def run_digest(model: nn.Module, train: Split, val: Split, setup: Setup, extras: dict[str, npt.NDArray[Any] | None]) -> str:
    """sha256 over everything that decides the result: options, seed, rows, images, labels, weights' names and shapes.

    Args:
        model: the model.
        train: training rows.
        val: validation rows.
        setup: options and seed.
        extras: further arrays, for example cells and row weights.
    """
    trainer = {key: value for key, value in dataclasses.asdict(setup.trainer).items() if key not in _COSMETIC}
    trainer = {key: value for key, value in trainer.items() if key not in _LATER or value != _LATER[key]}
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    scales = {name: scale for name, value in model.named_parameters() if (scale := getattr(value, "lr_scale", 1.0)) != 1.0}
    digest = hashlib.sha256()
    # activations stand for the images they were made of, so that a run may go on with or without them
    images = [getattr(split.x, "source_fingerprint", split.x.fingerprint) for split in (train, val)]
    options = [setup.kind, trainer, setup.batch_size, setup.seed, setup.augment, *images, shapes, frozen]
    digest.update(json.dumps(options + ([scales] if scales else [])).encode())
    arrays = {"train": train.index, "train_y": train.y, "val": val.index, "val_y": val.y, **extras}
    for name, array in arrays.items():
        digest.update(name.encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_digest(state: dict[str, Any], digest: str) -> None:
    """Refuse a checkpoint of other data, options or architecture.

    Raises:
        InputError: the checkpoint is of another run.
    """
    if state.get("schema") != SCHEMA or state.get("digest") != digest:
        raise InputError(
            "the checkpoint found here belongs to a training run with other data, options or architecture; "
            "choose another out= folder or delete this one"
        )
