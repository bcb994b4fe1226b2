"""Fine-tuning by empirical risk minimisation, and the one way all full-network baselines go through the training loop.

    min_theta  mean_i w_i * loss(f_theta(x_i), y_i)

with weight decay, schedule and stopping as the trainer's options say; w = 1 here. The attribute is not used. With a mask
the minimum is over the parts that it trains, at its learning rate: stage two of FairTune (ICLR 2024, arXiv:2310.05055),
and the fixed choices that its paper compares with.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evenhand.config.methods import FinetuneConfig
from evenhand.data.subsets import ImageRows
from evenhand.errors import ConfigError, nearest
from evenhand.methods.base import Result, Split, Task
from evenhand.methods.predictors import ModelPredictor
from evenhand.methods.registry import register
from evenhand.methods.warm import warm_head

if TYPE_CHECKING:
    from torch import nn

    from evenhand.models.masks import Mask


def train_network(
    task: Task, train: Split, *, freeze: str = "none", from_scratch: bool = False, warm: bool = False, **options: Any
) -> Result:
    """Build the task's network, train it on some rows, and wrap it as a result.

    Args:
        task: what to train for.
        train: the rows; ``task.train`` or a part of it.
        freeze: parts that stay as they are.
        from_scratch: ignore the checkpoint.
        warm: fit the head on embeddings first (`evenhand.methods.warm.warm_head`).
        options: ``loss, cells, balance, sample_weight`` of `evenhand.training.loop.train_model`.
    """
    from evenhand.models.parameters import freeze_parameters
    from evenhand.training.loop import train_model

    model = build_network(task, from_scratch)
    notes = warm_head(model, task) if warm else ()
    if freeze != "none":
        freeze_parameters(model, freeze)
    outcome = train_model(model, train, task.val, task, **options)
    predictor = ModelPredictor(outcome.model, task.kind, task.n_outputs, task.batch_size, task.device)
    return Result(predictor, history=outcome.history, artifacts=outcome.artifacts, notes=(*notes, *outcome.notes))


def build_network(task: Task, from_scratch: bool = False) -> nn.Module:
    """The task's network with a fresh head, from its checkpoint or at random."""
    return task.build_model(task.n_outputs, from_scratch=True) if from_scratch else task.build_model(task.n_outputs)


def train_with_mask(task: Task, mask: Mask, model: nn.Module, **options: Any) -> Result:
    """Train the parts that a mask names, at its learning rate; the network of the result is a plain one.

    Args:
        task: what to train for; its ``trainer.lr`` is not used.
        mask: of this network.
        model: the task's network, before training.
        options: as `train_network` has them.

    Raises:
        MethodError: the mask is of another network.
    """
    from evenhand.training.prefixed import train_masked

    share = mask.share(model)
    # several processes share the images out, each would keep activations of all of them
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    outcome = train_masked(model, mask, task.train, task.val, task, prefix=alone, **options)
    predictor = ModelPredictor(outcome.model, task.kind, task.n_outputs, task.batch_size, task.device)
    chosen = f"{sum(mask.bits)} of {len(mask.bits)} parts of '{mask.space}'"
    note = f"{share:.1%} of the parameters were trained ({chosen}), at a learning rate of {mask.lr:g}."
    artifacts = {**outcome.artifacts, "mask.json": mask.to_json().encode()}
    return Result(predictor, history=outcome.history, artifacts=artifacts, notes=(*outcome.notes, note))


def take_rows(split: Split, rows: np.ndarray[Any, Any]) -> Split:
    """Some rows of a split, by position."""
    groups = {name: value.take(rows) for name, value in split.groups.items()}
    return Split(ImageRows(split.x, rows), split.y[rows], groups, split.patient[rows], split.index[rows])


@register("finetune")
class Finetune:
    """Fine-tuning (ERM), of the whole network or of the parts that a mask names.

    Args:
        config: its options; see `FinetuneConfig`.

    Raises:
        ConfigError: options of a mask without one, a mask that is no name and no file, a mask beside ``freeze``, or a warm
            head beside ``from_scratch``.
    """

    def __init__(self, config: FinetuneConfig | None = None) -> None:
        self.config = config or FinetuneConfig()
        given = [name for name in ("lr", "space", "n", "like", "seed") if getattr(self.config, f"mask_{name}") is not None]
        if given and self.config.mask is None:
            raise ConfigError(f"method.mask_{given[0]} is given without a mask; add method.mask=… or leave it out")
        if self.config.warm_head and self.config.from_scratch:
            raise ConfigError("method.warm_head fits the head on embeddings of the checkpoint, which from_scratch ignores; choose one")
        if self.config.mask is not None and self.config.freeze != "none":
            raise ConfigError(f"method.mask and method.freeze={self.config.freeze} both say what is trained; leave one of them out")

        self._check_mask_is_there()

    def _check_mask_is_there(self) -> None:
        """Before any work: a mistyped name or path."""
        from evenhand.models.fixed_masks import FIXED_MASKS

        name = self.config.mask
        if name is not None and name not in FIXED_MASKS and not os.path.exists(name):
            hint = nearest(name, FIXED_MASKS, otherwise=f"give a mask.json, a published .npy, or one of {', '.join(FIXED_MASKS)}")
            raise ConfigError(f"method.mask is '{name}', which is no file and no fixed mask; {hint}")

    def fit(self, task: Task) -> Result:
        """Train on the training rows; validation rows pick the epoch.

        Raises:
            InputError: the mask's file cannot be read, or holds no learning rate.
            MethodError: the mask is of another network.
        """
        config = self.config
        if config.mask is None:
            return train_network(task, task.train, freeze=config.freeze, from_scratch=config.from_scratch, warm=config.warm_head)
        model = build_network(task, config.from_scratch)
        mask = self.mask_for(task, model)
        notes = warm_head(model, task) if config.warm_head else ()
        result = train_with_mask(task, mask, model)
        return replace(result, notes=(*notes, *result.notes))

    def mask_for(self, task: Task, model: nn.Module) -> Mask:
        """The mask that the options name, of this network and with its learning rate.

        A fixed mask takes ``mask_lr``, else the trainer's rate. A file has its own, which ``mask_lr`` replaces; a
        ``trainer.lr`` beside it is refused unless it is the same.
        """
        from evenhand.models.fixed_masks import FIXED_MASKS, fixed_mask
        from evenhand.models.masks import read_mask
        from evenhand.training.settings import peak_lr

        config = self.config
        if config.mask not in FIXED_MASKS:
            if config.mask_n is not None or config.mask_like is not None or config.mask_seed is not None:
                raise ConfigError("method.mask_n, method.mask_like and method.mask_seed are of fixed masks; leave them out beside a file")
            mask = read_mask(str(config.mask), model, config.mask_lr, space=config.mask_space, other_weights=config.mask_other_weights)
            if config.mask_lr is None and task.trainer.lr is not None and task.trainer.lr != mask.lr:
                raise ConfigError(
                    f"the mask's learning rate is {mask.lr:g} and trainer.lr is {task.trainer.lr:g}; leave trainer.lr out to train at "
                    f"the mask's, or set method.mask_lr={task.trainer.lr:g}"
                )
            return mask
        lr = peak_lr(task.trainer, task.batch_size) if config.mask_lr is None else config.mask_lr
        like = None if config.mask_like is None else read_mask(config.mask_like, model, lr, other_weights=config.mask_other_weights)
        seed = task.seed if config.mask_seed is None else config.mask_seed
        return fixed_mask(model, config.mask, lr=lr, seed=seed, n=config.mask_n, space=config.mask_space, like=like)
