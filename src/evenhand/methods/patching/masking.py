"""From the options to a mask: importances of bias and prediction on the external set, their ratio, and what it selects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.methods.patching.bias import WholeSet
from evenhand.methods.patching.heads import Body, head_names
from evenhand.methods.patching.importance import importances
from evenhand.methods.patching.losses import batch_balanced_loss
from evenhand.methods.patching.selection import make_mask as select
from evenhand.methods.patching.setting import Setting
from evenhand.random import derive_seed


@dataclass(frozen=True)
class MadeMask:
    """A mask.

    Attributes:
        masks: name -> bool or float tensor, of every weight of the body; a soft mask also of the head's.
        facts: ``selected, total, share`` and ``layers``, name -> share selected; of the body.
    """

    masks: dict[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_mask(setting: Setting) -> MadeMask:
    """The mask that the options ask for, of the model as it is.

    Importances are taken over the external set in an order of its own, without augmentation; with ``bias_over="set"`` a pass
    before them gives the rates of the whole set.

    Raises:
        MethodError: the options do not suit each other, or nothing is selected.
    """
    config, model = setting.config, setting.model
    found: tuple[dict[str, Tensor], ...] = ({}, {})
    if config.mask_type in ("fisher", "gradient"):
        found = _importances(setting)
    made = select(
        model, found[0], found[1], mask_type=config.mask_type, scale=config.mask_scale, rate=config.rate,
        ratio_threshold=config.ratio_threshold, ratio=config.ratio, soft=config.soft_mask, seed=setting.task.seed,
        # the released code goes on with an empty mask: its optimiser moves every weight all the same
        allow_empty=config.ratio == "released" and not config.exact,
    )
    masks = dict(made.values)
    units = {name: _number(value) for name, value in made.units.items()}
    return MadeMask(masks, {**mask_facts(masks, head_names(model)), "threshold": _number(made.threshold), "units": units})


def _number(value: float | None) -> float | None:
    """As JSON has it: None for NaN."""
    return None if value is None or math.isnan(value) else value


def _importances(setting: Setting) -> tuple[dict[str, Tensor], ...]:
    """For bias and for prediction, from one forward pass."""
    config, task, rows, term = setting.config, setting.task, setting.rows, setting.term
    order = rows.order(derive_seed(task.seed, "patch", "importance"), 0, balanced=False)
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] = term
    if config.bias_over == "set" and term.mode != "released":
        whole = WholeSet(term, [len(task.train.groups[name].keys) for name in setting.attributes], task.n_outputs)
        with torch.no_grad():
            for batch in rows.batches(order, task.batch_size, task.device):
                whole.add(setting.model(batch.x).float(), batch.y, batch.groups)
        setting.cost.add(forward=len(order))
        bias = whole.surrogate
    # images of one logit have one gradient for both
    shared = config.importance == "sample" and task.n_outputs == 1
    setting.cost.add(forward=len(order), backward=len(order) * (1 if shared else 2))
    return importances(
        setting.model,
        ((batch.x, batch.y, batch.groups) for batch in rows.batches(order, task.batch_size, task.device)),
        (bias, lambda logits, y, groups: batch_balanced_loss(logits, y, task.kind)),
        kind=config.importance,
        measure="gradient" if config.mask_type == "gradient" else "fisher",
    )


def mask_facts(masks: Mapping[str, Tensor], heads: set[str]) -> dict[str, Any]:
    """How many weights of the body a mask lets move, in all and of every tensor."""
    body = {name: value for name, value in masks.items() if name not in heads}
    counts = {name: int((value != 0).sum()) for name, value in body.items()}
    total = sum(value.numel() for value in body.values())
    layers = {name: counts[name] / max(value.numel(), 1) for name, value in body.items()}
    return {"selected": sum(counts.values()), "total": total, "share": sum(counts.values()) / max(total, 1), "layers": layers}


def least_alike(setting: Setting, body: Body) -> npt.NDArray[np.int64]:
    """Positions of the rows that step one keeps: ``subset_ratio`` of them are left out, those most alike the groups' difference.

    Alike is the cosine of a row's features and |mean of a group - mean of another|, the largest over pairs of groups, as in
    the released code for two.
    """
    task = setting.task
    features = body.features(task.train.x, task.batch_size, task.device, setting.cost).flatten(1).double().numpy()
    codes = setting.rows.joint.codes
    means = [features[codes == group].mean(axis=0) for group in np.unique(codes[codes >= 0])]
    alike = np.full(len(features), -np.inf)
    norms = np.maximum(np.linalg.norm(features, axis=1), 1e-12)
    for first in range(len(means)):
        for second in range(first):
            direction = np.abs(means[first] - means[second])
            alike = np.maximum(alike, features @ direction / (norms * max(float(np.linalg.norm(direction)), 1e-12)))
    cut = np.quantile(alike, 1.0 - setting.config.subset_ratio)
    return np.flatnonzero(alike <= cut)
