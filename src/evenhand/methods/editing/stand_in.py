"""The network that stands in for an encoder, and the answers that it learns from; see `evenhand.methods.editing.surrogate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evenhand.methods.base import Images
from evenhand.methods.editing.strategies import Array
from evenhand.random import derive_seed

CHUNK = 16
BATCH = 64


class StandIn(nn.Module):
    """Images (n, c, h, w) in [0, 1] -> embeddings (n, d): four convolutions, then mean and maximum of every map.

    The first convolution's stride grows with the image, so that the others see about 32 x 32 positions of any size.

    Args:
        grid: (c, h, w).
        mean, spread: (d,) of the embeddings.
        directions: (d, m) in standardised embeddings: what has to be right above all.
        width: maps of the first layer.
        seed: of the initial weights.
    """

    differentiable = True

    def __init__(
        self, grid: tuple[int, int, int], mean: Tensor, spread: Tensor, directions: Tensor, width: int, seed: int
    ) -> None:
        super().__init__()
        c, h, w = grid
        stride = 2 * max(1, round(min(h, w) / 64))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "surrogate"))
            layers: list[nn.Module] = []
            sizes = [(c, width, 2 * stride + 1, stride), (width, 2 * width, 3, 2), (2 * width, 4 * width, 3, 2)]
            for before, after, kernel, step in [*sizes, (4 * width, 4 * width, 3, 1)]:
                layers += [nn.Conv2d(before, after, kernel, step, kernel // 2), nn.GroupNorm(4, after), nn.GELU()]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(8 * width, len(mean))
        self.mean: Tensor
        self.spread: Tensor
        self.directions: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("spread", spread.clone())
        self.register_buffer("directions", directions.clone())
        self.channels, self.input_size, self.dim = c, (h, w), len(mean)
        self.fingerprint = f"surrogate {seed}"
        self.n_images = 0

    def standardised(self, images: Tensor) -> Tensor:
        """(n, d) in standard deviations of the unedited embeddings."""
        maps = self.body((images - 0.5) * 4)
        out: Tensor = self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return out

    def loss(self, images: Tensor, wanted: Tensor) -> Tensor:
        """What training lowers, for standardised embeddings (n, d) that are wanted."""
        missed = self.standardised(images) - wanted
        return missed.square().mean() + (missed @ self.directions).square().mean()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings."""
        self.n_images += len(images)
        return self.standardised(images) * self.spread + self.mean

    @torch.no_grad()
    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """(n, d) of all images."""
        cuts = [np.arange(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
        parts = [self(images.batch(cut).to(self.mean.device)).cpu().numpy() for cut in cuts]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


@dataclass(frozen=True)
class Answers:
    """What the encoder said of training images under one edit.

    Attributes:
        point: (p,) the edit, None: unedited.
        rows: (m,) positions of the images.
        z: (m, d) float32 on the CPU, finite.
        checked: whether heads were fitted on them.
    """

    point: Array | None
    rows: npt.NDArray[np.int64]
    z: Tensor
    checked: bool = False


def batches(known: Sequence[Answers], rng: np.random.Generator | None) -> Iterator[list[Answers]]:
    """Answers in batches of `BATCH` images, each of a few edits, so that an edit is put on several images at once.

    With ``rng`` in random order: images among those of one edit, then pieces of `CHUNK` among all.
    """
    pieces = []
    for part in known:
        order = np.arange(len(part.rows)) if rng is None else rng.permutation(len(part.rows))
        for start in range(0, len(order), CHUNK):
            chosen = np.sort(order[start : start + CHUNK])
            pieces.append(Answers(part.point, part.rows[chosen], part.z[torch.from_numpy(chosen)]))
    ranked = range(len(pieces)) if rng is None else rng.permutation(len(pieces))
    batch: list[Answers] = []
    for k in ranked:
        batch.append(pieces[k])
        if len(batch) == BATCH // CHUNK:
            yield batch
            batch = []
    if batch:
        yield batch
