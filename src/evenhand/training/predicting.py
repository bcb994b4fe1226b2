"""Reading batches ahead of the network, and scoring images with it: on one process or shared out over several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

if TYPE_CHECKING:
    from evenhand.methods.base import Images, Kind


def read_ahead(images: Images, batches: Sequence[npt.NDArray[np.int64]], pin: bool = False) -> Iterator[torch.Tensor]:
    """The images of each batch in turn, the next one read by a background thread while the current one is used.

    Args:
        images: where to read.
        batches: positions of each batch.
        pin: page-lock batches, so that copies to a GPU overlap with its work.
    """

    def read(positions: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = images.batch(positions)
        return batch.pin_memory() if pin else batch

    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(read, batches[0]) if batches else None
        for following in [*batches[1:], None]:
            if pending is None:
                return
            ready = pending.result()
            pending = None if following is None else thread.submit(read, following)
            yield ready


def as_format(batch: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """A batch in the memory format that a network is run in; only images (n, c, h, w) have one."""
    return batch.contiguous(memory_format=torch.channels_last) if channels_last and batch.ndim == 4 else batch


def probabilities(logits: npt.NDArray[Any], kind: Kind) -> npt.NDArray[np.float64]:
    """Sigmoid of each logit, or softmax over classes for multi-class, in float64.

    Example:
        >>> probabilities(np.array([[0.0]]), "binary")
        array([[0.5]])
    """
    scores = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    return (torch.softmax(scores, dim=1) if kind == "multiclass" else torch.sigmoid(scores)).numpy()


def predict_logits(
    model: torch.nn.Module,
    images: Images,
    batch_size: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    channels_last: bool = False,
) -> npt.NDArray[np.float32]:
    """Logits (n, K) of every image, the model in evaluation mode (its modes are restored afterwards).

    In a distributed run each process scores whole batches, every world-size-th one, and every process returns all of
    them: batches are cut as on one process, so the numbers are those of one process, and no row is scored twice.

    Args:
        model: images (n, c, h, w) in [0, 1] -> logits (n, K), on ``device`` already.
        images: what to score, at least one.
        batch_size: images a batch.
        device: where the model is.
        context: entered around the scoring, for example autocast.
        channels_last: give batches in that memory format.
    """
    starts = range(0, len(images), batch_size)
    batches = [np.arange(start, min(start + batch_size, len(images))) for start in starts]
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if _distributed() else (0, 1)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), context():
            feed = read_ahead(images, batches[rank::world], pin=device.type == "cuda")
            own = [model(as_format(batch.to(device, non_blocking=True), channels_last)).float().cpu().numpy() for batch in feed]
    finally:
        for module, training in modes:
            module.training = training
    return np.concatenate(_interleave(own, world, len(batches)))


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _interleave(own: list[npt.NDArray[np.float32]], world: int, n_batches: int) -> list[npt.NDArray[np.float32]]:
    """All processes' batches in their order; batch b was scored by process b % world."""
    if world == 1:
        return own
    shares: list[Any] = [None] * world
    distributed.all_gather_object(shares, own)
    return [shares[b % world][b // world] for b in range(n_batches)]


def predict_model(model: torch.nn.Module, images: Images, batch_size: int, device: torch.device, kind: Kind) -> npt.NDArray[np.float64]:
    """Probabilities of every image in fp32: (n, L) for binary and multi-label, (n, C) for multi-class, float64.

    Args:
        model: images in [0, 1] -> logits; moved to ``device``.
        images: what to score, at least one.
        batch_size: images a batch.
        device: where to compute.
        kind: kind of the task.
    """
    return probabilities(predict_logits(model.to(device), images, batch_size, device), kind)
