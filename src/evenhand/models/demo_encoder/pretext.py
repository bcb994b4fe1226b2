"""The pretext task of the demo encoder: images with foreign regions blended in, and what a token should say about its patch.

Two self-supervised ideas, neither of which needs a label:

- *Foreign regions* (after Tan et al., "Detecting outliers with foreign patch interpolation", arXiv:2011.04197): in a soft
  oval the image is blended with another one, displaced, or its brightness is shifted; each token says how much its patch
  was changed. Where the published task blends rectangles of the same position of the next volume, ours are ovals of
  displaced images, and the change itself is regressed.
- *Restoration*: each token also says what its patch looked like before (4 x 4 pixels, local contrast, gradient energies).

Half of the tokens are left out at random, which makes the others use context and halves the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

PATCH = 8
N_TARGETS = 2 + 16 + 5


@dataclass(frozen=True)
class Corrupted:
    """A batch of the pretext task.

    Attributes:
        images: float32 (n, 3, h, w) in [0, 1], with foreign regions.
        targets: float32 (n, tokens, `N_TARGETS`): signed and absolute change, 4 x 4 clean pixels, contrast, 4 energies.
    """

    images: torch.Tensor
    targets: torch.Tensor


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """float32 (n, 1, 1, 1), uniform in [low, high)."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images; change contrast and brightness of each. Values stay in [0, 1]."""
    n = len(images)
    mirrored = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)
    return (mirrored * uniform(n, 0.8, 1.2, generator) + uniform(n, -0.08, 0.08, generator)).clamp(0, 1)


def corrupt(clean: torch.Tensor, generator: torch.Generator) -> Corrupted:
    """Blend foreign regions into clean images (n, 3, h, w), and compute each token's targets."""
    changed = _blend(clean, generator)
    change = (changed - clean).mean(1, keepdim=True)
    grey = clean.mean(1, keepdim=True)
    targets = torch.cat([_tokens(change, 1) * 12, _tokens(change.abs(), 1) * 12, _tokens(grey, 4) * 4 - 2, _texture(grey)], 2)
    return Corrupted(changed, targets)


def _blend(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One soft oval an image, in 80% of the images: foreign content, or a brighter or darker spot."""
    n, size = len(images), images.shape[-1]
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    u, v = axis.view(1, 1, 1, -1) - uniform(n, -0.8, 0.8, generator), axis.view(1, 1, -1, 1) - uniform(n, -0.8, 0.8, generator)
    oval = torch.exp(-((u / uniform(n, 0.08, 0.35, generator)) ** 2) - (v / uniform(n, 0.08, 0.35, generator)) ** 2)
    oval = oval * (torch.rand(n, 1, 1, 1, generator=generator) < 0.8)
    down, right = (int(k) for k in torch.randint(-size // 3, size // 3, (2,), generator=generator))
    foreign = images.roll(1, 0).roll((down, right), (2, 3)) - images
    spot = uniform(n, -0.35, 0.35, generator).expand_as(images)
    pick = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return (images + oval * torch.where(pick, foreign * uniform(n, 0.3, 1.0, generator), spot)).clamp(0, 1)


def _tokens(plane: torch.Tensor, cells: int) -> torch.Tensor:
    """(n, 1, h, w) averaged to ``cells`` x ``cells`` values a patch: (n, tokens, cells * cells)."""
    return F.unfold(F.avg_pool2d(plane, PATCH // cells), cells, stride=cells).transpose(1, 2)


def _texture(grey: torch.Tensor) -> torch.Tensor:
    """Contrast and gradient energies in 4 directions of each patch, on a log scale: (n, tokens, 5)."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    middle = padded[..., 1:-1, 1:-1]
    steps = [padded[..., 1:-1, 2:], padded[..., 2:, 1:-1], padded[..., 2:, 2:], padded[..., 2:, :-2]]
    energies = [_tokens((step - middle) ** 2, 1) for step in steps]
    contrast = _tokens((grey - F.avg_pool2d(padded, 3, 1)) ** 2, 1)
    return (torch.cat([contrast, *energies], 2) + 1e-4).log() / 2 + 3
