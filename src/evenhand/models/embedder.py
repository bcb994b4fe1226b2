"""A frozen encoder on this machine: images in [0, 1] -> embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evenhand.edits.base import ImageBatches
from evenhand.errors import InputError, RunError
from evenhand.models.backbones import ImageClassifier
from evenhand.models.parameters import head_prefixes, model_fingerprint
from evenhand.models.precision import Agreement, arithmetic, check_precision, has_fast_bf16, measure_agreement

logger = logging.getLogger(__name__)

N_AGREEMENT_IMAGES = 32


class LocalEmbedder:
    """A frozen encoder: images (n, c, h, w) float32 in [0, 1] -> embeddings (n, dim) float32, as the head sees them.

    It takes over the classifier: parameters are frozen and the module is put into evaluation mode; do not train it
    afterwards. A gradient with respect to the images is available by calling it with images that require one. Not safe
    for use from several threads.

    Args:
        classifier: the encoder; its head is not used.
        precision: fp32, bf16, or auto: bf16 where the device has bf16 instructions and a sample of images, embedded
            both ways, agrees (see `Agreement`), else fp32. The decision is made once, by `settle`.
        batch_size: images per forward pass in `embed_images`.
        device: where it runs; default: where the classifier is.

    Attributes:
        precision: what was asked for.
        settled: fp32 or bf16 once decided, else None (then fp32 is used).
        agreement: what the check measured, None where none was made.

    Raises:
        InputError: an unknown precision or a batch size below one.

    Example:
        >>> from timm import create_model
        >>> from evenhand.models.backbones import ImageClassifier
        >>> network = create_model("resnet18", num_classes=1)
        >>> model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet18")
        >>> embedder = LocalEmbedder(model, precision="fp32")
        >>> embedder(torch.rand(4, 3, 32, 32)).shape, embedder.n_images
        (torch.Size([4, 512]), 4)
    """

    differentiable = True

    def __init__(
        self, classifier: ImageClassifier, precision: str = "auto", batch_size: int = 64, device: torch.device | str | None = None
    ) -> None:
        check_precision(precision)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, but must be at least 1")
        self.device = torch.device(device) if device is not None else classifier.mean.device
        self.classifier = classifier.to(self.device).eval().requires_grad_(False)
        if _is_convolutional(classifier):
            self.classifier.network.to(memory_format=torch.channels_last)
        self.precision = precision
        self.batch_size = batch_size
        self.settled: str | None = None if precision == "auto" else precision
        self.agreement: Agreement | None = None
        self.n_images = 0
        self.fingerprint = _encoder_fingerprint(classifier)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the network was built."""
        return self.classifier.notes

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.classifier.dim

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) the network sees."""
        return self.classifier.input_size

    @property
    def channels(self) -> int:
        """Channels the network sees; one channel is repeated."""
        return self.classifier.channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, dim) float32 of images (n, c, h, w) in [0, 1]; differentiable with respect to the images."""
        self.n_images += len(images)
        return self._embed(images.to(self.device), self.settled or "fp32")

    def _embed(self, images: torch.Tensor, precision: str) -> torch.Tensor:
        normalised = self.classifier.normalise(images)
        if _is_convolutional(self.classifier):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with arithmetic(precision, self.device):
            return self.classifier.features(normalised).float()

    def settle(self, images: ImageBatches) -> str:
        """Decide between fp32 and bf16 for ``auto``, on at most 32 images spread over ``images``; a second call does nothing.

        Returns:
            The decision; what was measured stands in ``agreement``.
        """
        if self.settled is None and not has_fast_bf16(self.device):
            self.settled = "fp32"
        if self.settled is None and len(images):
            positions = np.unique(np.linspace(0, len(images) - 1, N_AGREEMENT_IMAGES).astype(np.int64))
            sample = images.batch(positions).to(self.device)
            with torch.inference_mode():
                self.agreement = measure_agreement(self._embed(sample, "fp32"), self._embed(sample, "bf16"))
            self.settled = "bf16" if self.agreement.accepted else "fp32"
            logger.info("embedding precision auto: %s (bf16 beside fp32: %s)", self.settled, self.agreement)
        return self.settled or "fp32"

    def describe(self) -> dict[str, Any]:
        """What determines an embedding besides the image, as JSON: the model's part of a cache key."""
        network: Any = self.classifier.network
        return {
            "model": self.fingerprint,
            "name": self.classifier.name,
            "input_size": list(self.input_size),
            "mean": [float(value) for value in self.classifier.mean.flatten().cpu()],
            "std": [float(value) for value in self.classifier.std.flatten().cpu()],
            "pool": str(getattr(network, "global_pool", "") if not isinstance(getattr(network, "global_pool", ""), nn.Module) else ""),
            "dim": self.dim,
        }

    def embed_images(self, images: ImageBatches, batch_size: int | None = None, progress: bool = False) -> npt.NDArray[np.float32]:
        """Embed all images; the next batch is read while the current one is computed.

        Args:
            images: n images by position.
            batch_size: images per forward pass; default: the embedder's.
            progress: show a progress bar.

        Returns:
            float32 (n, dim).

        Raises:
            RunError: an embedding is not finite.
        """
        self.settle(images)
        out = np.empty((len(images), self.dim), dtype=np.float32)
        starts = range(0, len(images), batch_size or self.batch_size)
        with torch.inference_mode():
            for start, batch in _with_progress(_prefetched(images, starts), len(starts), progress):
                out[start : start + len(batch)] = self(batch).cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if len(bad):
            raise RunError(
                f"{len(bad)} of {len(out)} embeddings are not finite (first: image {bad[0]}); check the weights or set precision=fp32"
            )
        return out


def _is_convolutional(classifier: ImageClassifier) -> bool:
    """Whether the network is mostly convolutions, which run faster on channels-last tensors."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in classifier.network.modules())
    linears = sum(isinstance(module, nn.Linear) for module in classifier.network.modules())
    return convolutions > linears


def _encoder_fingerprint(classifier: ImageClassifier) -> str:
    """The classifier's hash without its head, which embeddings do not depend on."""
    heads = tuple(f"network.{prefix}" for prefix in head_prefixes(classifier))
    return model_fingerprint(classifier, without=heads)


def _prefetched(images: ImageBatches, starts: range) -> Iterator[tuple[int, torch.Tensor]]:
    """Batches in order, the next one read by a second thread meanwhile."""
    step = starts.step

    def read(start: int) -> torch.Tensor:
        return images.batch(slice(start, min(start + step, len(images))))

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(read, starts[0]) if len(starts) else None
        for start in starts:
            batch = waiting.result() if waiting is not None else read(start)
            waiting = pool.submit(read, start + step) if start + step < len(images) else None
            yield start, batch


def _with_progress(batches: Iterator[tuple[int, torch.Tensor]], total: int, progress: bool) -> Iterator[tuple[int, torch.Tensor]]:
    if not progress:
        yield from batches
        return
    from rich.progress import track

    yield from track(batches, description="embedding", total=total)
