"""Named parts of a network: what each parameter is for, what can be frozen, which layer it belongs to, and its hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from evenhand.errors import InputError, MethodError

FREEZE_OPTIONS = ("none", "backbone", "norms", "all_but_norms")

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_ROLE_PATTERNS = (
    ("position", r"(^|\.)(pos_embed|relative_position_bias_table|rel_pos\w*|rope\w*)"),
    ("token", r"(^|\.)(cls_token|reg_token|dist_token|mask_token|register_tokens)$"),
    ("attention", r"(^|\.)(attn|attention|self_attn)\."),
    ("se", r"(^|\.)(se|se_module|squeeze_excite)\."),
    ("scale", r"(^|\.)(ls\d?\.gamma|gamma(_\d)?|layer_scale\w*)$"),
    ("mlp", r"(^|\.)(mlp|ffn|conv_mlp)\."),
    ("patch_embed", r"(^|\.)patch_embed\."),
)


def _unwrap(model: nn.Module) -> nn.Module:
    """The timm network of an `ImageClassifier`, or the module itself."""
    inner = getattr(model, "network", None)
    return inner if isinstance(inner, nn.Module) else model


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the head's parameters in the timm network, each with its dot: ``("head.",)``, ``("fc.",)``, …

    Raises:
        InputError: the network does not say which module is its classifier.
    """
    network: Any = _unwrap(model)
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if not names:
        head = network.get_classifier() if hasattr(network, "get_classifier") else None
        names = [name for name, module in network.named_modules() if head is not None and module is head and name]
    if not names:
        raise InputError(f"{type(network).__name__} does not say which module is its classifier; use a timm classifier")
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _norm_parameters(network: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers, whatever class timm made of them."""
    found: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, _NORMS) or re.search(r"(Norm|BatchNorm)\w*$", type(module).__name__):
            found.update(f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False))
    return found


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """What every parameter is for.

    Args:
        model: a timm network or an `ImageClassifier`; names are those of the timm network.

    Returns:
        Parameter name -> one of ``head, norm, position, token, attention, se, scale, mlp, patch_embed, conv, other``.

    Example:
        >>> from timm import create_model
        >>> parameter_roles(create_model("resnet18"))["layer1.0.bn1.weight"]
        'norm'
    """
    network: Any = _unwrap(model)
    heads, norms = head_prefixes(network), _norm_parameters(network)
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    own = {id(p) for p in classifier.parameters()} if isinstance(classifier, nn.Module) else set()
    roles = {}
    for name, parameter in network.named_parameters():
        if id(parameter) in own or name.startswith(heads):
            roles[name] = "head"
        elif name in norms:
            roles[name] = "norm"
        else:
            matched = [role for role, pattern in _ROLE_PATTERNS if re.search(pattern, name)]
            roles[name] = matched[0] if matched else ("conv" if parameter.ndim == 4 or "conv" in name else "other")
    return roles


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, from its name: ``bias``, or a tensor such as ``q_bias``.

    Example:
        >>> is_bias("blocks.0.attn.qkv.bias"), is_bias("attn.relative_position_bias_table")
        (True, False)
    """
    return re.search(r"(^|[._])bias$", name) is not None


def layer_ids(model: nn.Module) -> dict[str, int]:
    """The layer of every parameter, 0 at the stem and highest at the head, from timm's own grouping.

    Returns:
        Parameter name (of the timm network) -> layer; every block of a transformer and every residual, dense or
        inverted block of a convolutional network is a layer, the head is the last.

    Example:
        >>> from timm import create_model
        >>> ids = layer_ids(create_model("vit_tiny_patch16_224", img_size=32, depth=3))
        >>> ids["pos_embed"], ids["blocks.2.norm1.weight"], ids["head.weight"]
        (0, 3, 4)
    """
    network: Any = _unwrap(model)
    if not hasattr(network, "group_matcher"):
        raise MethodError(f"layer-wise decay needs timm's group_matcher, which {type(network).__name__} lacks; set trainer.layer_decay=1")
    ids: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    last = max(ids.values())
    return {name: ids.get(name, last) for name, _ in network.named_parameters()}


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Optimiser groups of the trainable parameters: no weight decay on biases, norms, position embeddings and tokens.

    ``lr_scale = layer_decay ** (last - layer) * own``: multiply the learning rate by it; ``own`` is the parameter's
    attribute ``lr_scale`` where a mask gave it one (`evenhand.models.masks.apply_mask`), else 1. The head has 1.

    Args:
        model: a timm network or an `ImageClassifier`.
        weight_decay: decoupled weight decay of the decayed groups.
        layer_decay: learning-rate factor per layer from the head down; 1 is off.

    Returns:
        Dictionaries with ``params``, ``weight_decay`` and ``lr_scale``.

    Raises:
        MethodError: nothing is trainable, or layer-wise decay is asked of a network without layers.
    """
    network: Any = _unwrap(model)
    undecayed = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
    undecayed |= {name for name, role in parameter_roles(network).items() if role in ("position", "token", "scale")}
    flat: Callable[..., list[dict[str, Any]]] = param_groups_weight_decay
    if layer_decay == 1.0:
        groups = [
            {**group, "lr_scale": 1.0}
            for group in flat(network, weight_decay, no_weight_decay_list=sorted(undecayed))
        ]
    else:
        layer_ids(network)
        split: Callable[..., list[dict[str, Any]]] = param_groups_layer_decay
        groups = split(network, weight_decay, sorted(undecayed), layer_decay=layer_decay)
    if not groups:
        raise MethodError("no parameter is trainable; choose another freeze option")
    return [part for group in groups for part in _by_own_scale(group)]


def _by_own_scale(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group split by the ``lr_scale`` that its parameters carry; one without any stays as it is."""
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        members.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
    return [{**group, "params": params, "lr_scale": group["lr_scale"] * own} for own, params in members.items()]


def trainable_names(model: nn.Module, freeze: str) -> set[str]:
    """Names (of the timm network) that stay trainable under a freeze option; the head always does.

    ``none``: all; ``backbone``: the head only; ``norms``: all but normalisation layers; ``all_but_norms``:
    normalisation layers and the head.

    Raises:
        InputError: an unknown option, or a network without normalisation layers where they are asked for.
    """
    if freeze not in FREEZE_OPTIONS:
        raise InputError(f"freeze is '{freeze}', but must be one of {', '.join(FREEZE_OPTIONS)}")
    roles = parameter_roles(model)
    if freeze in ("norms", "all_but_norms") and "norm" not in roles.values():
        raise InputError(f"freeze is '{freeze}', but the network has no normalisation layers; use none or backbone")
    keep: dict[str, Callable[[str], bool]] = {
        "none": lambda role: True,
        "backbone": lambda role: role == "head",
        "norms": lambda role: role != "norm",
        "all_but_norms": lambda role: role in ("norm", "head"),
    }
    return {name for name, role in roles.items() if keep[freeze](role)}


def freeze_parameters(model: nn.Module, freeze: str) -> list[str]:
    """Switch gradients on and off for a freeze option; returns the trainable names.

    Frozen batch norms also stop updating their statistics: `ImageClassifier.train` leaves them in evaluation mode
    (for a bare network call `hold_frozen_norms` after every ``train()``).

    Raises:
        InputError: see `trainable_names`.
    """
    network = _unwrap(model)
    names = trainable_names(network, freeze)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    hold_frozen_norms(model)
    return sorted(names)


def _frozen_batch_norms(model: nn.Module) -> Iterable[nn.Module]:
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                yield module


def hold_frozen_norms(model: nn.Module) -> int:
    """Put batch norms whose parameters are all frozen into evaluation mode; call after every ``model.train()``.

    An `ImageClassifier` calls it by itself in ``train()``.

    Returns:
        How many were held.
    """
    held = 0
    for module in _frozen_batch_norms(model):
        module.eval()
        held += 1
    return held


def model_fingerprint(model: nn.Module, *, without: tuple[str, ...] = ()) -> str:
    """Hash of a model's state: sha256 over sorted (key, dtype, shape, bytes), without num_batches_tracked.

    Args:
        model: any module; parameters and buffers count.
        without: key prefixes to leave out, for example the head's.

    Returns:
        64 hexadecimal digits; equal on every machine and device.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = model_fingerprint(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> model_fingerprint(layer) == before
        False
    """
    return state_fingerprint({key: value for key, value in model.state_dict().items() if not key.startswith(without or ("\0",))})


def state_fingerprint(state: dict[str, torch.Tensor]) -> str:
    """As `model_fingerprint`, of a state dictionary."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.endswith("num_batches_tracked"):
            continue
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{str(value.dtype).removeprefix('torch.')}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
