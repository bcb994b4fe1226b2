"""MobileNet v1 at width 0.75, a small encoder that timm has only at other widths; importing this registers it with timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import register_model
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn

from evenhand.errors import CheckpointError

__all__: list[str] = []


@register_model
def mobilenetv1_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNet v1 of width 0.75 with TensorFlow's padding and batch-norm epsilon; embedding width 768."""
    if pretrained:
        raise CheckpointError("mobilenetv1_075 has no published timm weights; give them with model.checkpoint=FILE")
    overlay = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    make: Callable[..., nn.Module] = _gen_mobilenet_v1
    network = make("mobilenetv1_100", 0.75, pad_type="same", bn_eps=1e-3, pretrained_cfg_overlay=overlay, **kwargs)
    return network
