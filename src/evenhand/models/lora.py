"""Low-rank updates of a network's matrices with the peft library: added before training, folded in after it.

    W' = W + (alpha / r) B A      A: (r, columns), B: (rows, r), B = 0 at the start, alpha = r

Matrices are the weights of linear layers and of ungrouped convolutions with plain padding.

References:
    Hu et al. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022, arXiv:2106.09685.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from evenhand.errors import MethodError
from evenhand.models.parameters import _unwrap
from evenhand.optional import require
from evenhand.random import derive_seed


def lora_matrices(model: nn.Module, parameters: Sequence[str]) -> tuple[str, ...]:
    """Those of some parameters that can have a low-rank update.

    Args:
        model: a timm network or an `ImageClassifier`.
        parameters: names in the timm network.
    """
    modules = dict(_unwrap(model).named_modules())
    return tuple(name for name in parameters if name.endswith(".weight") and _takes_lora(modules[name.removesuffix(".weight")]))


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (type(module) is nn.Conv2d and module.groups == 1)


def lora_size(model: nn.Module, ranks: Mapping[str, int]) -> int:
    """Number of parameters of the updates: r (rows + columns) a matrix, a kernel's width and height among the columns."""
    parameters = dict(_unwrap(model).named_parameters())
    return sum(rank * (parameters[name].shape[0] + parameters[name][0].numel()) for name, rank in ranks.items())


def add_lora(model: nn.Module, ranks: Mapping[str, int], scales: Mapping[str, float], seed: int) -> None:
    """Put a trainable low-rank update on some matrices of a network, in place; its other parameters keep their gradients' switches.

    At the start the network computes what it did before. The updates carry their ``lr_scale`` as `parameter_groups` reads it.

    Args:
        model: a timm network or an `ImageClassifier`.
        ranks: weight's name -> rank, above 0.
        scales: weight's name -> factor on the learning rate.
        seed: seeds A; the global generator is left alone.

    Raises:
        DependencyError: peft is not installed.
        MethodError: the network reads a matrix without calling its layer, so that an update would do nothing.
    """
    require("peft", "lora", "a mask with LoRA ranks")
    peft: Any = importlib.import_module("peft")
    network = _unwrap(model)
    _check_called(model, ranks)
    patterns = {f"^{re.escape(name.removesuffix('.weight'))}": rank for name, rank in ranks.items()}
    config = peft.LoraConfig(
        target_modules="|".join(re.escape(name.removesuffix(".weight")) for name in ranks),
        r=1,
        lora_alpha=1,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        lora_dropout=0.0,
        bias="none",
    )
    switches = {id(parameter): parameter.requires_grad for parameter in network.parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model", "lora"))
        peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(switches.get(id(parameter), True))
        if id(parameter) not in switches:
            parameter.lr_scale = scales[f"{name.split('.lora_')[0]}.weight"]  # type: ignore[attr-defined]


def read_past_layers(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Those of some matrices that a network reads without calling their layer: an update there would train and do nothing.

    Swin v2 and BEiT compute with their ``qkv.weight`` so. Found by one forward pass on an empty image; the network stays as it is.

    Args:
        model: a timm network or an `ImageClassifier`.
        names: weights' names in the timm network.
    """
    network: Any = _unwrap(model)
    modules = {name: network.get_submodule(name.removesuffix(".weight")) for name in names}
    called: set[str] = set()
    handles = [module.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, module in modules.items()]
    size = getattr(model, "input_size", None) or getattr(getattr(network, "patch_embed", None), "img_size", None)
    size = size or (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
    channels = next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 3)
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros((1, channels, *size), device=next(network.parameters()).device))
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    return tuple(name for name in modules if name not in called)


def _check_called(model: nn.Module, ranks: Mapping[str, int]) -> None:
    missed = read_past_layers(model, ranks)
    if missed:
        raise MethodError(
            f"{type(_unwrap(model)).__name__} reads {missed[0]} without calling its layer ({len(missed)} of {len(ranks)} matrices), so "
            "that a low-rank update would do nothing; use rank 0 for its part"
        )


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every low-rank update into its matrix and take the layers away, so that the network is a plain one again.

    Args:
        model: changed in place; without low-rank updates it stays as it is.

    Returns:
        The same model.
    """
    network: Any = _unwrap(model)
    if not hasattr(network, "peft_config"):
        return model
    for name, module in list(network.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, module.get_base_layer())
    del network.peft_config
    return model
