"""Layouts of published checkpoints: unwrap, strip the encoder's prefix, rename to timm's keys, name what is left over."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evenhand.errors import CheckpointError

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

# The order is the order of preference: averaged weights before raw ones, DINO's teacher before its student.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher", "student", "net")


@dataclass(frozen=True)
class Layout:
    """A checkpoint brought to timm's keys.

    Attributes:
        name: which layout it was.
        state: the encoder (and maybe the head) in timm's keys.
        dropped: keys that this layout is known to carry along and the encoder does not need.
        imagenet_normalisation: whether the layout's published recipes normalise by ImageNet's mean and std.
    """

    name: str
    state: State
    dropped: tuple[str, ...]
    imagenet_normalisation: bool


@dataclass(frozen=True)
class _Prefix:
    """An encoder inside a larger training state: its prefix, and companions that may stand beside it."""

    layout: str
    prefix: str
    companions: str
    projection: str = r"(?!)"


# Companions are matched against whole keys, projections against the encoder's own keys after stripping.
_PREFIXES = (
    _Prefix("moco", "encoder_q.", r"(encoder_k|momentum_encoder)\.|queue(_ptr)?$|queue_", r"fc\.\d+\."),
    _Prefix("moco", "base_encoder.", r"(momentum_encoder|predictor)\.", r"(head|fc)\.\d+\."),
    _Prefix("medmae", "model.encoder.", r"model\.(decoder|head|mask_token|segmentation_head|proj\w*)|criterion|loss"),
    _Prefix("dino", "backbone.", r"head\.|projector\.|(dino|ibot)_head\.|predictor\."),
    _Prefix("wrapped", "encoder.", r"decoder\.|mask_token|head\.|proj\w*\."),
    _Prefix("wrapped", "network.", r"mean$|std$"),
    _Prefix("wrapped", "model.", r"criterion|loss"),
    _Prefix("wrapped", "densenet121.", r"(?!)"),
)
_TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
)
_DENSENET_OLD = (r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2")


def recognise(content: Any, label: str) -> Layout:
    """Bring what a file holds to timm's keys.

    Layouts: plain state dictionaries (timm, torchvision), ``{'model': …}`` (MAE, DeiT), ``{'state_dict': …}`` (MoCo's
    ``module.encoder_q.*`` and ``module.base_encoder.*``, ``model.encoder.*``), ``{'teacher': 'backbone.*'}`` (DINO),
    ``{'state_dict': 'net.enet.*', 'head.layer.*'}`` (BMFT and SWiFT).

    Args:
        content: what `read_checkpoint` returned.
        label: the checkpoint's name, for messages.

    Raises:
        CheckpointError: no state dictionary is inside.
    """
    state, wrapper = _unwrap(content, label)
    state = _strip_parallel(state)
    joined = _encoder_and_head(state)
    state, name, dropped = (joined, "bmft", []) if joined is not None else _strip_prefix(state, label)
    if "conv_proj.weight" in state and "encoder.pos_embedding" in state:
        return Layout("torchvision", _rename(state, _TORCHVISION_VIT), tuple(dropped), True)
    if any(key.startswith("decoder_") for key in state) and "patch_embed.proj.weight" in state:
        extra = [key for key in state if key.startswith(("decoder_", "mask_token"))]
        return Layout("mae", _without(state, extra), tuple(dropped + extra), True)
    if any("denselayer" in key for key in state):
        state = _densenet(state)
    if wrapper in ("teacher", "student"):
        name = "dino"
    if name == "plain" and wrapper == "model" and "patch_embed.proj.weight" in state:
        name = "mae"
    torchvision = any(re.match(r"(layer1\.0\.conv1|features\.denseblock1)", key) for key in state)
    return Layout("timm or torchvision" if name == "plain" else name, state, tuple(dropped), name != "plain" or torchvision)


def _unwrap(content: Any, label: str) -> tuple[State, str]:
    """The state dictionary inside, and the key it stood under ('' when it was the file itself)."""
    wrapper = ""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            break
        wrapper, content = inner, content[inner]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        kinds = f"a dictionary with {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(f"checkpoint {label} holds {kinds}, but no state dictionary; save model.state_dict() and give that file")
    return tensors, wrapper


def _strip_parallel(state: State) -> State:
    """Without the prefixes that data-parallel and compiled modules add."""
    for _ in range(3):
        for prefix in ("module.", "_orig_mod."):
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _encoder_and_head(state: State) -> State | None:
    """The network in a state with an encoder under ``net.`` and a linear layer under ``head.`` (BMFT, SWiFT); None for others.

    The layer goes where torchvision's network of those keys has its own.
    """
    body = {key: value for key, value in state.items() if key.startswith("net.")}
    head = {key: value for key, value in state.items() if key.startswith("head.")}
    if not body or not head or len(body) + len(head) < len(state):
        return None
    inner = {re.sub(r"^net\.(enet\.)?", "", key): value for key, value in body.items()}
    own = "fc" if any(re.match(r"(layer1|Mixed_5b)\.", key) for key in inner) else "head"
    own = "classifier" if any(re.match(r"(features\.|conv_stem\.)", key) for key in inner) else own
    return {**inner, **{re.sub(r"^head\.(layer\.)?", f"{own}.", key): value for key, value in head.items()}}


def _strip_prefix(state: State, label: str) -> tuple[State, str, list[str]]:
    """Take the encoder out of a larger training state; what is no known companion stays, under its full key."""
    if "conv_proj.weight" in state:
        return state, "plain", []
    for rule in _PREFIXES:
        inside = {key.removeprefix(rule.prefix): value for key, value in state.items() if key.startswith(rule.prefix)}
        if not inside:
            continue
        beside = [key for key in state if not key.startswith(rule.prefix)]
        known = [key for key in beside if re.match(rule.companions, key)]
        projection = [key for key in inside if re.match(rule.projection, key)]
        logger.info("%s: encoder found under '%s', %d known companions dropped", label, rule.prefix, len(known))
        kept = {key: value for key, value in inside.items() if key not in projection}
        kept.update({key: state[key] for key in beside if key not in known})
        return kept, rule.layout, known + [rule.prefix + key for key in projection]
    return state, "plain", []


def _rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed


def _without(state: State, keys: list[str]) -> State:
    dropped = set(keys)
    return {key: value for key, value in state.items() if key not in dropped}


def _densenet(state: State) -> State:
    """torchvision's old ``norm.1`` names, and encoders saved without ``features.``."""
    state = _rename(state, (_DENSENET_OLD,))
    if any(key.startswith("denseblock1.") for key in state):
        bare = re.compile(r"(conv0|norm0|norm5|denseblock\d|transition\d)\.")
        state = {f"features.{key}" if bare.match(key) else key: value for key, value in state.items()}
    return state


# blocks of each stage -> {(width of the first block's inner convolution, channels a group of it): name}
_RESNETS: dict[tuple[int, ...], dict[tuple[int, int], str]] = {
    (3, 4, 6, 3): {(64, 64): "resnet50", (128, 4): "resnext50_32x4d", (128, 128): "wide_resnet50_2"},
    (3, 4, 23, 3): {(64, 64): "resnet101", (256, 8): "resnext101_32x8d", (128, 128): "wide_resnet101_2"},
    (3, 8, 36, 3): {(64, 64): "resnet152"},
}
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_DENSENETS = {(6, 12, 24, 16): "densenet121", (6, 12, 32, 32): "densenet169", (6, 12, 48, 32): "densenet201",
              (6, 12, 36, 24): "densenet161"}
_VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}


def _count(state: Mapping[str, Any], pattern: str) -> int:
    found = {int(match.group(1)) for key in state if (match := re.match(pattern, key))}
    return len(found)


def _guess_resnet(state: Mapping[str, torch.Tensor]) -> str | None:
    counts = tuple(_count(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    inner = state.get("layer1.0.conv2.weight")
    if "conv1.weight" not in state or "layer1.0.se.fc1.weight" in state or inner is None or inner.ndim != 4:
        return None
    if "layer1.0.conv3.weight" not in state:
        return _BASIC.get(counts)
    return _RESNETS.get(counts, {}).get((inner.shape[0], inner.shape[1]))


def guess_architecture(state: Mapping[str, torch.Tensor]) -> str | None:
    """The timm name that a state dictionary most likely belongs to, or None.

    Example:
        >>> guess_architecture({"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "blocks.11.norm1.weight": torch.zeros(384)})
        'a ViT of width 384, 1 blocks, patch 16'
    """
    patch = state.get("patch_embed.proj.weight")
    blocks = _count(state, r"blocks\.(\d+)\.")
    if patch is not None and blocks and patch.ndim == 4:
        size = _VITS.get((patch.shape[0], blocks))
        kind = f"vit_{size}_patch{patch.shape[-1]}" if size else None
        return f"{kind}_224" if kind else f"a ViT of width {patch.shape[0]}, {blocks} blocks, patch {patch.shape[-1]}"
    if "layer1.0.conv1.weight" in state:
        return _guess_resnet(state)
    if any("denselayer" in key for key in state):
        layers = tuple(_count(state, rf"features\.denseblock{block}\.denselayer(\d+)\.") for block in range(1, 5))
        return _DENSENETS.get(layers)  # type: ignore[arg-type]
    return None
