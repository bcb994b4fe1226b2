"""Tests that every embedder must pass; inherit them to check your own.

Example:
    ```python
    class TestMyEmbedder(EmbedderConformance):
        def make_embedder(self):
            return MyEmbedder("https://…")
    ```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class EmbedderConformance(ABC):
    """The contract of `evenhand.methods.base.Embedder`, as pytest methods.

    Attributes:
        tolerance: largest difference, relative to the largest entry, allowed between two calls with the same images in
            another order or batch; raise it for encoders in half precision.
    """

    tolerance: float = 1e-4

    @abstractmethod
    def make_embedder(self) -> Any:
        """A new embedder that has not been called yet."""

    def _images(self, n: int, embedder: Any, channels: int | None = None) -> torch.Tensor:
        height, width = embedder.input_size
        drawn = torch.rand(n, channels or embedder.channels, height, width, generator=torch.Generator().manual_seed(0))
        return drawn

    def _close(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        return bool((first - second).abs().max() <= self.tolerance * first.abs().max().clamp_min(1e-12))

    def test_attributes(self) -> None:
        embedder = self.make_embedder()
        assert isinstance(embedder.dim, int)
        assert embedder.dim > 0
        assert embedder.channels in (1, 3)
        assert len(embedder.input_size) == 2
        assert isinstance(embedder.differentiable, bool)
        assert isinstance(embedder.fingerprint, str)
        assert embedder.fingerprint
        assert embedder.n_images == 0

    def test_shape_type_and_count(self) -> None:
        embedder = self.make_embedder()
        out = embedder(self._images(3, embedder))
        assert tuple(out.shape) == (3, embedder.dim)
        assert out.dtype == torch.float32
        assert bool(torch.isfinite(out).all())
        embedder(self._images(2, embedder))
        assert embedder.n_images == 5

    def test_same_images_same_embeddings(self) -> None:
        embedder = self.make_embedder()
        images = self._images(4, embedder)
        together = embedder(images).detach()
        apart = torch.cat([embedder(images[i : i + 1]).detach() for i in range(4)])
        assert self._close(together, apart)
        assert self._close(together.flip(0), embedder(images.flip(0)).detach())

    def test_one_channel_is_repeated(self) -> None:
        embedder = self.make_embedder()
        grey = self._images(2, embedder, channels=1)
        assert self._close(embedder(grey).detach(), embedder(grey.expand(-1, embedder.channels, -1, -1)).detach())

    def test_other_sizes_are_resized(self) -> None:
        embedder = self.make_embedder()
        images = torch.nn.functional.interpolate(self._images(2, embedder), scale_factor=1.5)
        assert tuple(embedder(images).shape) == (2, embedder.dim)

    def test_input_is_left_alone(self) -> None:
        embedder = self.make_embedder()
        images = self._images(2, embedder)
        before = images.clone()
        embedder(images)
        assert torch.equal(images, before)

    def test_gradient_where_promised(self) -> None:
        embedder = self.make_embedder()
        if not embedder.differentiable:
            return
        images = self._images(2, embedder).requires_grad_()
        embedder(images).square().sum().backward()
        assert images.grad is not None
        assert float(images.grad.abs().max()) > 0

    def test_fingerprint_is_stable(self) -> None:
        first = self.make_embedder()
        before = first.fingerprint
        first(self._images(2, first))
        assert first.fingerprint == before
