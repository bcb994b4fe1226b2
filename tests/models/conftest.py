"""Tiny networks and images for this room's tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evenhand.models import ImageClassifier


def _vit(img_size=32, depth=2, dim=32, n_outputs=2, global_pool="token", patch=8):
    """A timm ViT of a few thousand weights."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=img_size, patch_size=patch, embed_dim=dim, depth=depth, num_heads=2, num_classes=n_outputs, global_pool=global_pool
    )
    network.pretrained_cfg = {"classifier": "head", "input_size": (3, img_size, img_size)}
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def _classifier(**options):
    network = _vit(**options)
    size = network.patch_embed.img_size
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=size, name="tiny_vit").eval()


@dataclass
class ArrayImages:
    """Images in memory, as the Images protocol asks; counts what was read."""

    pixels: np.ndarray
    fingerprint: str = "array"
    n_read: int = 0

    @property
    def shape(self):
        return self.pixels.shape[1:]

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        chosen = self.pixels[positions]
        self.n_read += len(chosen)
        return torch.from_numpy(np.ascontiguousarray(chosen))


def _scrambled(**options):
    network = _vit(**options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-0.5)
    return network


@pytest.fixture
def make_vit():
    """Function: options -> a tiny timm ViT, the same weights every time."""
    return _vit


@pytest.fixture
def scrambled():
    """Function: as make_vit, with other weights."""
    return _scrambled


@pytest.fixture
def make_classifier():
    """Function: options -> an ImageClassifier on a tiny ViT."""
    return _classifier


@pytest.fixture
def make_images():
    """Function: pixels (n, c, h, w) -> images in memory."""
    return ArrayImages


@pytest.fixture
def classifier():
    return _classifier()


@pytest.fixture
def images():
    return ArrayImages(np.random.default_rng(0).random((10, 3, 32, 32), dtype=np.float32))
