"""The architecture of the bundled demo encoder, registered with timm as ``evenhand_demo_vit``.

A ViT of 64 x 64 pixels in patches of 8: 64 tokens of 128 numbers, 3 blocks, 4 heads, no class token, mean pooling.
Importing this module registers it; its weights come from `evenhand.models.demo_encoder.pretrain`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer

NAME = "evenhand_demo_vit"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
ARGUMENTS: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 3,
    "num_heads": 4,
    "class_token": False,
    "global_pool": "avg",
}


def weights_path() -> Path:
    """The bundled weights file; ``config.json`` with the normalisation lies beside it."""
    return Path(str(files("evenhand.models.demo_encoder") / f"{NAME}.safetensors"))


def pretrained_config() -> dict[str, Any]:
    """timm's pretrained configuration of the demo encoder: input size, normalisation, where the weights are."""
    return {
        "file": str(weights_path()),
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "fixed_input_size": True,
        "mean": MEAN,
        "std": STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


def evenhand_demo_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The demo encoder; ``pretrained=True`` loads the bundled weights (the head, if any, is new).

    Example:
        >>> import timm
        >>> timm.create_model("evenhand_demo_vit", num_classes=2).num_features
        128
    """
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        if kwargs.get(key) is None:
            kwargs.pop(key, None)
    kwargs.setdefault("pretrained_cfg", pretrained_config())
    model: VisionTransformer = build_model_with_cfg(VisionTransformer, NAME, pretrained, **{**ARGUMENTS, **kwargs})
    return model


register_model(evenhand_demo_vit)
