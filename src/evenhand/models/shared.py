"""An encoder on several processes: the first asks, and each of them embeds its share of every batch.

    first     sends the shares of a batch, embeds its own, and puts the embeddings together in the order of the images
    others    `Relay.serve`: embed what comes, until the first closes the relay

The first alone decides, counts, keeps and writes, so the others hold nothing that could drift from it. An error in one process ends the
request in all of them; a process that is gone breaks the relay, and nobody waits for it.

torch.distributed is started by whoever runs the command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

from evenhand.errors import EvenhandError, InputError, RunError
from evenhand.models.backbones import ImageClassifier
from evenhand.models.embedder import LocalEmbedder

T = TypeVar("T")
Order = tuple[tuple[int, ...], str, str]
"""Shape of a batch, precision, fingerprint of the encoder."""

PATIENCE = timedelta(days=30)
"""Longest that processes wait for the first, which fits heads and surrogates between requests; one that is gone is noticed at once."""


class Relay:
    """The line between the first of several processes, which asks, and the others, which embed; made on all of them together.

    Images travel between GPUs by NCCL where torch.distributed was started with it, else between processors by gloo.

    Args:
        device: where this process embeds.

    Attributes:
        rank, world: this process's position, and how many there are.
        open: whether the first can ask.
        n_images: images that the first has asked about.

    Raises:
        InputError: torch.distributed was not started.
        RunError: another process is gone.
    """

    def __init__(self, device: torch.device) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InputError("images can be shared out over processes only where torch.distributed has been started; use torchrun")
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.device = device
        self.n_images = 0
        with _unbroken("another process"):
            self._orders: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
        direct = device.type == "cuda" and distributed.get_backend() == "nccl"
        self._group: Any = None if direct else self._orders
        self._place = device if direct else torch.device("cpu")
        self.open = True

    def ask(self, images: Tensor, precision: str, fingerprint: str, dim: int, own: Callable[[Tensor], Tensor]) -> Tensor:
        """First process: embeddings (n, dim) of images, in their order.

        Args:
            images: float32 (n, c, h, w) in [0, 1], n at least 1.
            precision: fp32 or bf16, for all processes.
            fingerprint: of the encoder, which the others' must have.
            dim: width of an embedding.
            own: embeds this process's share.

        Raises:
            RunError: another process could not embed its share, or is gone.
        """
        shares = _shares(images.detach().float().to(self._place), self.world)
        self.open = False  # until every process has answered
        with _unbroken("a process that embeds images"):
            self._tell((tuple(images.shape), precision, fingerprint))
            distributed.scatter(torch.empty_like(shares[0]), shares, group=self._group)
        found, error = _tried(lambda: own(images[: len(shares[0])]))
        with _unbroken("a process that embeds images"):
            faults = self._faults(error)
            parts = None if any(faults) else self._gathered(found, len(shares[0]), dim)
        self.open = True
        if error is not None:
            raise error
        if parts is None:
            said = "; ".join(f"process {rank}: {fault}" for rank, fault in enumerate(faults) if fault)
            raise RunError(f"some processes could not embed their images ({said}); put that right and run the same command again")
        self.n_images += len(images)
        return torch.cat(parts)[: len(images)].to(self.device)

    def serve(self, make: Callable[[], LocalEmbedder]) -> None:
        """Other processes: embed what the first sends, until it closes the relay.

        Args:
            make: builds this process's encoder; what goes wrong in it is told to the first, when that asks.

        Raises:
            RunError: the first process is gone.
        """
        embedder, fault = _tried(make)
        with torch.inference_mode():
            while (order := self._heard()) is not None:
                shape, precision, fingerprint = order
                size = -(-shape[0] // self.world)
                share = torch.empty(size, *shape[1:], device=self._place)
                with _unbroken("the first process"):
                    distributed.scatter(share, group=self._group)
                found, error = None, fault
                if embedder is not None:
                    n = min(max(shape[0] - self.rank * size, 0), size)
                    found, error = _tried(partial(_answer, embedder, share[:n], precision, fingerprint))
                with _unbroken("the first process"):
                    if not any(self._faults(error)) and embedder is not None:
                        self._gathered(found, size, embedder.dim)
        self._leave()

    def close(self) -> None:
        """First process: let the others go; a second call does nothing."""
        if self.open:
            self.open = False
            with contextlib.suppress(RuntimeError):  # those that are gone need not be told
                self._tell(None)
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _leave(self) -> None:
        if self._orders is not None:
            distributed.destroy_process_group(self._orders)
            self._orders = None

    def _tell(self, order: Order | None) -> None:
        distributed.broadcast_object_list([order], group=self._orders)

    def _heard(self) -> Order | None:
        held: list[Any] = [None]
        with _unbroken("the first process"):
            distributed.broadcast_object_list(held, group=self._orders)
        order: Order | None = held[0]
        return order

    def _faults(self, error: Exception | None) -> list[str | None]:
        """What went wrong in every process; all of them get the same list."""
        said: list[Any] = [None] * self.world
        own = str(error) if isinstance(error, EvenhandError) else f"{type(error).__name__}: {error}"
        distributed.all_gather_object(said, None if error is None else own, group=self._orders)
        return said

    def _gathered(self, own: Tensor | None, size: int, dim: int) -> list[Tensor]:
        """The embeddings of all shares, each padded to ``size``, in the first process; nothing in the others."""
        sent = torch.zeros(size, dim, device=self._place)
        if own is not None:
            sent[: len(own)] = own
        parts = [torch.empty_like(sent) for _ in range(self.world)] if self.rank == 0 else None
        distributed.gather(sent, parts, group=self._group)
        return parts or []


class SharedEmbedder(LocalEmbedder):
    """A `LocalEmbedder` of the first process, whose every batch is shared out over a `Relay`; when that is closed it embeds alone.

    Embeddings have no gradients. Batches of `embed_images` hold ``batch_size`` images a process.

    Args:
        relay: to the processes that embed the other shares: they run `Relay.serve` with an encoder of the same weights.
        classifier, precision, batch_size, device: as of a `LocalEmbedder`.

    Example:
        >>> relay = Relay(torch.device("cuda", local_rank))  # doctest: +SKIP
        >>> if relay.rank > 0:  # doctest: +SKIP
        ...     relay.serve(lambda: LocalEmbedder(model, "fp32"))
        ... else:
        ...     with relay:
        ...         GeZO(config).fit_edit(replace(task, embedder=SharedEmbedder(relay, model, "fp32")))
    """

    differentiable = False

    def __init__(
        self, relay: Relay, classifier: ImageClassifier, precision: str = "auto", batch_size: int = 64,
        device: torch.device | str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(classifier, precision, batch_size * relay.world, device)
        self.relay = relay

    def _embed(self, images: Tensor, precision: str) -> Tensor:
        def own(share: Tensor) -> Tensor:
            return LocalEmbedder._embed(self, share, precision)

        if not self.relay.open or not len(images):
            return own(images)
        return self.relay.ask(images, precision, self.fingerprint, self.dim, own)


def _shares(images: Tensor, world: int) -> list[Tensor]:
    """Consecutive parts of one size, one a process; the last are filled up with black images."""
    size = -(-len(images) // world)
    missing = size * world - len(images)
    filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images.contiguous()
    return list(torch.split(filled, size))


def _answer(embedder: LocalEmbedder, images: Tensor, precision: str, fingerprint: str) -> Tensor:
    """Embeddings of a share, which may be empty."""
    if embedder.fingerprint != fingerprint:
        said = f"its encoder has other weights (sha256 {embedder.fingerprint[:12]}) than the first process's ({fingerprint[:12]})"
        raise InputError(f"{said}; give every process the same model.checkpoint")
    embedder.settled = precision
    return embedder(images) if len(images) else torch.zeros(0, embedder.dim)


def _tried(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What an action gives, or the error that ended it, for every process to hear of."""
    try:
        return action(), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def _unbroken(other: str) -> Iterator[None]:
    """Say plainly that another process is gone.

    Raises:
        RunError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise RunError(f"{other} is gone ({first}); what was finished is kept: run the same command again") from error
