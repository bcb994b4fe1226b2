"""From the options to a mask: importances of bias and prediction on the external set, their ratio, and what it selects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.errors import MethodError
from evenhand.methods.patching.heads import Body, head_names
from evenhand.methods.patching.setting import Setting, network_parameters


@dataclass(frozen=True)
class MadeMask:
    """A mask.

    Attributes:
        masks: name -> bool or float tensor, of every weight of the body; a soft mask also of the head's.
        facts: ``selected, total, share`` and ``layers``, name -> share selected; of the body.
    """

    masks: dict[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_mask(setting: Setting, body: Body) -> MadeMask:
    """The mask that the options ask for, of the model as it is."""
    heads = head_names(setting.model)
    if setting.config.mask_type != "all":
        raise MethodError(f"method.mask_type={setting.config.mask_type} is not there yet; set method.mask_type=all")
    found = network_parameters(setting.model)
    ones = {name: torch.ones_like(value, dtype=torch.bool) for name, value in found.items() if name not in heads}
    return MadeMask(ones, mask_facts(ones, heads))


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
