"""Optimisers and their parameter groups: weight decay where it belongs, learning rates that shrink towards the input."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError
from evenhand.models.parameters import parameter_groups


def optimizer_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups with ``weight_decay`` and ``lr_scale``.

    A timm network is grouped by `evenhand.models.parameters.parameter_groups`: no weight decay on biases, norms,
    position embeddings and tokens; with layer decay d, a parameter of layer i out of D (stem 0, head D) has
    ``lr_scale`` d ** (D - i). In any other module everything of more than one dimension is decayed.

    Args:
        model: a module, or a wrapper whose ``network`` is the timm model.
        weight_decay: decay of the groups that have one.
        layer_decay: d in (0, 1]; 1 = off.

    Raises:
        ConfigError: layer decay for a network that does not say what its layers are, or nothing is trainable.
    """
    inner = getattr(model, "network", model)
    if layer_decay != 1.0 and not hasattr(inner, "group_matcher"):
        what = f"trainer.layer_decay={layer_decay}, but {type(inner).__name__} does not say what its layers are"
        raise ConfigError(f"{what}; use a timm model, or trainer.layer_decay=1")
    inside: list[nn.Parameter] = []
    groups: list[dict[str, Any]] = []
    if hasattr(inner, "group_matcher"):
        inside = list(inner.parameters())
        if any(parameter.requires_grad for parameter in inside):
            groups = parameter_groups(inner, weight_decay=weight_decay, layer_decay=layer_decay)
    known = {id(parameter) for parameter in inside}
    groups += _plain_groups([parameter for parameter in model.parameters() if id(parameter) not in known], weight_decay)
    if not groups:
        raise ConfigError("no parameter of the model is trainable; unfreeze a part of it (method.freeze) or use a linear probe")
    return groups


def _plain_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [([p for p in trainable if p.ndim <= 1], 0.0), ([p for p in trainable if p.ndim > 1], weight_decay)]
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for params, decay in groups if params]


def make_optimizer(model: nn.Module, trainer: TrainerConfig, lr: float) -> optim.Optimizer:
    """AdamW (decoupled decay), Adam or SGD (decay added to the gradient) over `optimizer_groups`."""
    groups = optimizer_groups(model, trainer.weight_decay, trainer.layer_decay)
    if trainer.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=trainer.momentum)
    if trainer.optimizer == "adam":
        return optim.Adam(groups, lr=lr)
    return optim.AdamW(groups, lr=lr)


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
