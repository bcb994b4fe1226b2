"""Small images with a planted shortcut: a spot that is the label, and a bright frame that goes with the label in the training rows of
one group; and tiny classifiers of every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg

from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.methods.base import Split, Task
from evenhand.models.backbones import ImageClassifier

SIZE = 32


def _efficientnet(n_outputs: int, kind: Any = EfficientNet) -> torch.nn.Module:
    blocks = decode_arch_def([["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r1_k3_s2_e2_c16_se0.25"]])
    return kind(blocks, num_classes=n_outputs, stem_size=8, num_features=16)


def _regnet(n_outputs: int) -> torch.nn.Module:
    return RegNet(RegNetCfg(depth=4, w0=8, wa=12.0, wm=1.5, group_size=4, stem_width=8, se_ratio=0.25), num_classes=n_outputs)


def _named(name: str, **options: Any) -> Callable[[int], torch.nn.Module]:
    return lambda n_outputs: timm.create_model(name, num_classes=n_outputs, **options)


def _maxvit(n_outputs: int) -> torch.nn.Module:
    attention = MaxxVitTransformerCfg(dim_head=8, window_size=4, grid_size=4)
    config = MaxxVitCfg(embed_dim=(8, 16), depths=(1, 1), block_type=("M", "M"), stem_width=8, transformer_cfg=attention)
    return MaxxVit(config, img_size=SIZE, num_classes=n_outputs)


_VIT = {"img_size": SIZE, "depth": 2, "embed_dim": 24, "num_heads": 2}
FAMILIES: dict[str, Callable[[int], torch.nn.Module]] = {
    "vit": _named("vit_tiny_patch16_224", **_VIT),
    "deit": _named("deit_tiny_patch16_224", **_VIT),
    "swin": _named(
        "swin_tiny_patch4_window7_224", img_size=SIZE, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4
    ),
    "swinv2": _named(
        "swinv2_tiny_window8_256", img_size=SIZE, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4
    ),
    "resnet": _named("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)),
    "densenet": _named("densenet121", growth_rate=4, block_config=(1, 1, 1, 1)),
    "efficientnet": _efficientnet,
    "convnext": _named("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "mobilenet": lambda n_outputs: _efficientnet(n_outputs, MobileNetV3),
    "regnet": _regnet,
    "maxvit": _maxvit,
    "inception": _named("inception_v3"),
}
"""Every backbone family that is supported, as small as its class allows: number of logits -> network."""
LEAST_SIZE = {"inception": 75}
"""Pixels that a family cannot do with fewer of; it has one width alone, 22 million weights."""


@dataclass
class Pictures:
    """Images in memory."""

    values: torch.Tensor
    fingerprint: str = "pictures"

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.values.shape[1:])  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, positions: Any) -> torch.Tensor:
        return self.values[positions if isinstance(positions, slice) else torch.from_numpy(np.asarray(positions))]


class MemoryStore:
    """A store that keeps what it is given, and can fail after some writes as a killed process does."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.values: dict[str, Any] = {}
        self.left = fail_after

    def get(self, key: str) -> Any | None:
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.values[key] = value

    def append(self, key: str, record: Any) -> None:
        pass


def tiny(family: str = "resnet", n_outputs: int = 1, seed: int = 0) -> ImageClassifier:
    """A classifier at random, its batch statistics included; of another seed in another state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FAMILIES[family](n_outputs)
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    size = LEAST_SIZE.get(family, SIZE)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(size, size), name=family).eval()


def scene(n: int, seed: int, agreement: float = 0.5, kind: str = "binary", missing: float = 0.0, size: int = SIZE) -> Split:
    """n images, two groups; the frame tells the label in ``agreement`` of the rows of the second group, at random in the first."""
    rng = np.random.default_rng(seed)
    group, y = rng.integers(0, 2, n), rng.integers(0, 2, n)
    follows = rng.random(n) < agreement
    frame = np.where(group == 1, np.where(follows, y, 1 - y), rng.integers(0, 2, n))
    x = rng.uniform(0.3, 0.5, (n, 1, size, size)).astype(np.float32)
    middle = slice(size // 2 - 4, size // 2 + 4)
    x[:, 0, middle, middle] += 0.15 * (y * 2 - 1)[:, None, None] * rng.uniform(0.0, 1.5, n)[:, None, None]
    x[:, 0, :4, :] += 0.3 * frame[:, None, None]
    codes = np.where(rng.random(n) < missing, -1, group).astype(np.int64)
    groups = {
        "sex": Groups("sex", ("f", "m"), codes),
        "site": Groups("site", ("a", "b", "c"), rng.integers(0, 3, n).astype(np.int64)),
    }
    labels: Any = y[:, None].astype(np.float32)
    if kind == "multilabel":
        labels = np.stack([y, rng.integers(0, 2, n)], axis=1).astype(np.float32)
        labels[:3, 0] = np.nan
    elif kind == "multiclass":
        labels = y + (rng.random(n) < 0.3).astype(np.int64)
    return Split(Pictures(torch.from_numpy(np.clip(x, 0, 1)), f"{n}/{seed}/{agreement}/{kind}"), labels, groups, np.arange(n), np.arange(n))


def make_task(train: Split | None = None, val: Split | None = None, kind: str = "binary", **fields: Any) -> Task:
    """A task on these rows."""
    values: dict[str, Any] = {
        "train": scene(96, 1, kind=kind) if train is None else train,
        "val": scene(96, 2, kind=kind) if val is None else val,
        "kind": kind,
        "labels": ("one", "two") if kind == "multilabel" else ("ill",),
        "classes": ("low", "mid", "high") if kind == "multiclass" else (),
        "attributes": ("sex", "site"),
        "seed": 0,
        "device": torch.device("cpu"),
        "store": MemoryStore(),
        "embed": lambda images: np.zeros((len(images), 1), np.float32),
        "build_model": lambda n_outputs, **options: tiny(n_outputs=n_outputs),
        "trainer": TrainerConfig(progress=False),
        "batch_size": 32,
    }
    return Task(**(values | fields))
