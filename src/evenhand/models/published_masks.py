"""Masks of the released code of FairTune: ``.npy`` vectors of bits, and its fixed comparisons by name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from evenhand.models.masks import Mask


def read_published(path: Path, model: nn.Module, lr: float | None, space: str | None) -> Mask:
    """A published vector of bits as a mask; see `evenhand.models.masks.read_mask`."""
    raise NotImplementedError
