"""MobileNet v1 at width 0.75, a small encoder that timm has only at other widths; importing this registers it with timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import register_model
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn

from evenhand.errors import CheckpointError

__all__: list[str] = []

_CFG = {
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "conv_stem",
    "classifier": "classifier",
}


@register_model
def mobilenetv1_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNet v1 of width 0.75 with TensorFlow's padding and batch-norm epsilon; embedding width 768."""
    if pretrained:
        raise CheckpointError("mobilenetv1_075 has no published timm weights; give them with model.checkpoint=FILE")
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        if kwargs.get(key) is None:
            kwargs.pop(key, None)
    kwargs.setdefault("pretrained_cfg", dict(_CFG))
    make: Callable[..., nn.Module] = _gen_mobilenet_v1
    network = make("mobilenetv1_075", 0.75, pad_type="same", bn_eps=1e-3, **kwargs)
    return network
