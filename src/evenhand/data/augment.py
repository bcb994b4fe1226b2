"""Augmentation recipes per modality, on image tensors in [0, 1]; every draw is a function of (seed, epoch, slot).

A slot is an image's place in the epoch's order. Seeding by slot makes a picture's augmentation independent of how the
epoch is cut into batches or shared out over processes, and a resumed run repeats it exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from evenhand.errors import ConfigError
from evenhand.random import derive_seed

Transform = Callable[[Tensor], Tensor]


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators inside the block, and restore their states after it.

    Library transforms and dropout draw from the global generators; this keeps that from reaching the caller's stream.

    Args:
        seed: any non-negative integer below 2**63.
        devices: GPUs whose generators are seeded too.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = [device for device in devices if device.type == "cuda"]
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _chest_film(size: tuple[int, int]) -> list[Transform]:
    """Small shifts, turns and zooms and exposure changes; no mirror, since left and right are anatomy on a chest film."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.92, 1.08), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.15, contrast=0.15),
    ]


def _dermoscopy(size: tuple[int, int]) -> list[Transform]:
    """Any turn and mirror (a lesion has no up), zoom, and mild colour changes (colour is diagnostic)."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomAffine(degrees=180, scale=(1.0, 1.2), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    ]


def _photograph(size: tuple[int, int]) -> list[Transform]:
    """Crops of at least 60% of the area, mirror, and the colour changes of an uncontrolled camera."""
    from torchvision.transforms import v2

    return [
        v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03),
    ]


def _fundus(size: tuple[int, int]) -> list[Transform]:
    """Mirrors (the other eye, the other hemisphere), turns of up to 30 degrees, zoom, illumination."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomAffine(degrees=30, scale=(0.95, 1.1), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.1),
    ]


def _oct(size: tuple[int, int]) -> list[Transform]:
    """The mirror of the other eye, small shifts, turns and zooms, brightness and contrast; never upside down: layers have an order."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.92, 1.08), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.15, contrast=0.15),
    ]


def _ct(size: tuple[int, int]) -> list[Transform]:
    """Small shifts, turns and zooms; grey levels hardly change, since they are Hounsfield units; no mirror: left and right are anatomy."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.92, 1.08), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.05, contrast=0.05),
    ]


def _mri(size: tuple[int, int]) -> list[Transform]:
    """Small shifts, turns and zooms, and marked changes of brightness and contrast, since MR has no units; no mirror."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.92, 1.08), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.25, contrast=0.25),
    ]


def _published_dne(size: tuple[int, int]) -> list[Transform]:
    """The fine-tuning transform of masked autoencoders (crop of 8-100%, mirror); its RandAugment follows it."""
    from torchvision.transforms import InterpolationMode, v2

    return [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
    ]


def _published_fairtune(size: tuple[int, int]) -> list[Transform]:
    """FairTune's transform, which is torchvision's reference for classification: crop of 8-100%, mirror."""
    from torchvision.transforms import v2

    return [v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()]


RECIPES: dict[str, Callable[[tuple[int, int]], list[Transform]]] = {
    "none": lambda size: [],
    "chest_film": _chest_film,
    "dermoscopy": _dermoscopy,
    "photograph": _photograph,
    "fundus": _fundus,
    "oct": _oct,
    "ct": _ct,
    "mri": _mri,
    "published_dne": _published_dne,
    "published_fairtune": _published_fairtune,
}
# recipes that come with a RandAugment string unless another one is given
_RAND_AUGMENT = {"published_dne": "rand-m6-mstd0.5-inc1"}


def rand_augment(config: str) -> Transform:
    """timm's RandAugment for a tensor in [0, 1]: through 8 bits and three channels, and back to the channels that came.

    Args:
        config: timm's string, for example ``rand-m6-mstd0.5-inc1``.

    Raises:
        ConfigError: timm does not understand the string.
    """
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms.v2 import functional as F

    try:
        transform = rand_augment_transform(config, {"img_mean": (128, 128, 128)})
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"trainer.rand_augment={config!r} is not a RandAugment string; write it as rand-m6-mstd0.5-inc1") from error

    def apply(image: Tensor) -> Tensor:
        picture = F.to_pil_image((image * 255).round().to(torch.uint8).expand(3, -1, -1))
        out: Tensor = F.pil_to_tensor(transform(picture)).float() / 255
        return out.mean(dim=0, keepdim=True) if image.shape[0] == 1 else out

    return apply


def random_erasing(probability: float) -> Transform:
    """timm's RandomErasing in its per-pixel mode: a rectangle of 2-33% of the area becomes noise.

    timm draws standard normal noise for normalised images; here it is mapped to 0.5 + 0.25 * noise, cut to [0, 1].
    """
    from timm.data.random_erasing import RandomErasing

    eraser = RandomErasing(probability, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]

    def apply(image: Tensor) -> Tensor:
        erased: Tensor = eraser(torch.full_like(image, float("nan")))
        return torch.where(torch.isnan(erased), image, (0.5 + 0.25 * erased).clamp(0.0, 1.0))

    return apply


class Augmenter:
    """One recipe with the trainer's extras, applied image by image, then mixed batch-wise.

    Args:
        recipe: a name of `RECIPES`.
        shape: (c, h, w) of the images.
        seed: the run's seed.
        rand_augment: timm's RandAugment string; empty = the recipe's own, if any.
        random_erasing: probability of erasing.
        mixup: alpha of mixup; 0 = off.
        cutmix: alpha of cutmix; 0 = off. With both, each batch takes one of the two with equal chance.

    Raises:
        ConfigError: unknown recipe or RandAugment string.

    Example:
        >>> augmenter = Augmenter("chest_film", (1, 8, 8), seed=0)
        >>> batch = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> bool((augmenter.images(batch, 1, [0, 1]) == augmenter.images(batch, 1, [0, 1])).all())
        True
    """

    def __init__(
        self,
        recipe: str,
        shape: tuple[int, int, int],
        seed: int,
        *,
        rand_augment: str = "",
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        if recipe not in RECIPES:
            raise ConfigError(f"data.augment is {recipe!r}, but must be one of {', '.join(RECIPES)}")
        self.seed = seed
        self._transforms = _chain(recipe, (shape[1], shape[2]), rand_augment, random_erasing)
        self._mixers = _mixers(mixup, cutmix)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self._mixers)

    def images(self, batch: Tensor, epoch: int, slots: Sequence[int]) -> Tensor:
        """Augmented copies of a batch (n, c, h, w) on the CPU, float32 in [0, 1].

        Args:
            batch: images in [0, 1].
            epoch: number of the epoch.
            slots: each image's place in the epoch's order.
        """
        if not self._transforms:
            return batch
        seeds = [derive_seed(self.seed, "augment", epoch, slot) for slot in slots]
        return torch.stack([self._one(image, seed) for image, seed in zip(batch, seeds, strict=True)])

    def _one(self, image: Tensor, seed: int) -> Tensor:
        with seeded(seed):
            for transform in self._transforms:
                image = transform(image)
        return image.clamp(0.0, 1.0)

    def mix(self, batch: Tensor, targets: Tensor, epoch: int, slot: int) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix of each image with its neighbour in the batch; targets (n, K) are mixed in the same share.

        A target that is NaN in one of the two is NaN in the mix.
        """
        if not self._mixers:
            return batch, targets
        with seeded(derive_seed(self.seed, "mix", epoch, slot)):
            mixer = random.choice(self._mixers)
            mixed, mixed_targets = mixer(batch, targets)
        return mixed, mixed_targets


def _chain(recipe: str, size: tuple[int, int], rand_string: str, erasing: float) -> list[Transform]:
    transforms = RECIPES[recipe](size)
    rand_string = rand_string or _RAND_AUGMENT.get(recipe, "")
    if rand_string:
        transforms.append(rand_augment(rand_string))
    if erasing > 0:
        transforms.append(random_erasing(erasing))
    return transforms


def _mixers(mixup: float, cutmix: float) -> list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    from torchvision.transforms import v2

    chosen = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    return [maker(alpha=alpha) for maker, alpha in chosen if alpha > 0]
