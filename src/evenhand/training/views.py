"""A fixed number of augmented views of every image, the same ones in every run with this seed, taken in turn by epochs.

Fresh augmentation gives every epoch other images, so nothing that is computed on one can be kept. With k views epoch e sees
view (e - 1) mod k of every image: k times the images, each seen every k-th epoch. A view depends on the seed, its number and
the image's row in the whole data set, so that a row has the same views in every split.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from evenhand.data.augment import Augmenter
from evenhand.errors import ConfigError
from evenhand.training.activations import ActivationImages, locate
from evenhand.training.settings import Setup

if TYPE_CHECKING:
    from evenhand.methods.base import Images, IntArray


class ViewedImages:
    """One view of every image (`evenhand.methods.base.Images`).

    Args:
        source: the images as they are.
        augmenter: makes the views.
        number: of the view, from 1.
        recipe: what the augmenter does, in words.

    Attributes:
        view_key: identifies view and recipe.
    """

    def __init__(self, source: Images, augmenter: Augmenter, number: int, recipe: str) -> None:
        self.source, self.number = source, number
        self.shape = source.shape
        self.view_key = f"view {number} of {recipe}"
        self.fingerprint = hashlib.sha256(f"{source.fingerprint} {self.view_key}".encode()).hexdigest()
        self._augmenter = augmenter
        self._rows = locate(source)[2]

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, positions: IntArray | slice) -> torch.Tensor:
        """The view of images at positions, float32 in [0, 1], (n, c, h, w)."""
        return self._augmenter.images(self.source.batch(positions), self.number, self._rows[positions].tolist())


class FixedViews:
    """Images of which an epoch sees one of k views.

    Args:
        source: the images as they are.
        setup: seed, recipe and the trainer's options that augment an image by itself.
        k: number of views.

    Attributes:
        views: the k views.

    Raises:
        ConfigError: k is below 1.

    Example:
        >>> FixedViews(images, setup, 4).at_epoch(5).number  # doctest: +SKIP
        1
    """

    def __init__(self, source: Images, setup: Setup, k: int) -> None:
        if k < 1:
            raise ConfigError(f"views is {k}, but must be at least 1; without views images are augmented anew in every epoch")
        trainer = setup.trainer
        options: dict[str, Any] = {"rand_augment": trainer.rand_augment, "random_erasing": trainer.random_erasing}
        augmenter = Augmenter(setup.augment, source.shape, setup.seed, **options)
        recipe = json.dumps([setup.augment, options, setup.seed])
        self.source = source
        self.shape = source.shape
        self.views = tuple(ViewedImages(source, augmenter, number, recipe) for number in range(1, k + 1))
        self.fingerprint = hashlib.sha256(" ".join(view.fingerprint for view in self.views).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def at_epoch(self, epoch: int) -> ViewedImages:
        """The images of an epoch, counted from 1."""
        return self.views[(epoch - 1) % len(self.views)]

    def batch(self, positions: IntArray | slice) -> torch.Tensor:
        """Images of the first view."""
        return self.views[0].batch(positions)


class ActivationViews:
    """Activations of which an epoch sees those of one of k views.

    Args:
        views: the activations of each view.
        source_fingerprint: of the `FixedViews` they stand for.
    """

    def __init__(self, views: tuple[ActivationImages, ...], source_fingerprint: str) -> None:
        self.views = views
        self.shape = views[0].shape
        self.source_fingerprint = source_fingerprint
        self.fingerprint = hashlib.sha256(" ".join(view.fingerprint for view in views).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.views[0])

    def at_epoch(self, epoch: int) -> ActivationImages:
        """The activations of an epoch, counted from 1."""
        return self.views[(epoch - 1) % len(self.views)]

    def batch(self, positions: IntArray | slice) -> torch.Tensor:
        """Activations of the first view."""
        return self.views[0].batch(positions)
