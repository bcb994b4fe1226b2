"""Optimisers and their parameter groups: weight decay where it belongs, learning rates that shrink towards the input."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn, optim

from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups with ``weight_decay`` and ``lr_scale``.

    No weight decay on biases, norms and whatever else has one dimension, nor on what the network lists in
    ``no_weight_decay()`` (position embeddings, class token). With layer decay d, a parameter of layer i out of D (stem 0,
    head D) has ``lr_scale`` d ** (D - i); layers are timm's (``group_matcher``), and a final norm counts as part of the
    last block.

    Args:
        model: a module, or a wrapper whose ``network`` is the timm model.
        weight_decay: decay of the groups that have one.
        layer_decay: d in (0, 1]; 1 = off.

    Raises:
        ConfigError: nothing is trainable, or layer decay for a network that does not say what its layers are.
    """
    network: Any = getattr(model, "network", model)
    if layer_decay != 1.0 and not hasattr(network, "group_matcher"):
        raise ConfigError(
            f"trainer.layer_decay={layer_decay}, but {type(network).__name__} does not say what its layers are; "
            "use a timm model or layer_decay=1"
        )
    if layer_decay != 1.0:
        groups = _layer_groups(network, weight_decay, layer_decay)
    else:
        skip = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
        groups = _plain_groups(list(network.named_parameters()), weight_decay, skip)
    inside = {id(parameter) for parameter in network.parameters()}
    outside = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in inside]
    groups += _plain_groups(outside, weight_decay, set())
    if not groups:
        raise ConfigError("no parameter of the model is trainable; unfreeze a part of it (method.freeze) or use a linear probe")
    return groups


def _layer_groups(network: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    skip = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups: list[dict[str, Any]] = param_groups_layer_decay(network, weight_decay, skip, layer_decay=layer_decay)
    return groups


def _plain_groups(named: list[tuple[str, nn.Parameter]], weight_decay: float, skip: set[str]) -> list[dict[str, Any]]:
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    plain = [parameter for name, parameter in trainable if parameter.ndim <= 1 or name in skip]
    decayed = [parameter for name, parameter in trainable if not (parameter.ndim <= 1 or name in skip)]
    groups = [(plain, 0.0), (decayed, weight_decay)]
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for params, decay in groups if params]


def make_optimizer(model: nn.Module, trainer: TrainerConfig, lr: float) -> optim.Optimizer:
    """AdamW (decoupled decay), Adam or SGD (decay added to the gradient) over `parameter_groups`."""
    groups = parameter_groups(model, trainer.weight_decay, trainer.layer_decay)
    if trainer.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=trainer.momentum)
    if trainer.optimizer == "adam":
        return optim.Adam(groups, lr=lr)
    return optim.AdamW(groups, lr=lr)


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
