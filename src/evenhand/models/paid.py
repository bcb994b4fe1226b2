"""An encoder that costs money by the image: a hard budget, and nothing paid for twice."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from evenhand.errors import BudgetError, InputError, NotFiniteError, RunError, ServerError
from evenhand.models.paid_log import ResponseLog

if TYPE_CHECKING:
    from evenhand.edits.base import ImageBatches

Row = npt.NDArray[np.float32]


class PaidEmbedder:
    """An encoder with a budget: an image that was answered before is read from disk, every other one is counted before it is sent.

    - images: float32 (n, c, h, w) in [0, 1]; equal content is equal bytes, over all calls, processes and duplicates in one call
    - embeddings: float32 (n, dim), on the device of the images, without a gradient

    The count is written before a request leaves, the answer before it is used. After ``kill -9`` a new object on the same folder goes on
    with both; only requests that were in flight, whose answers nobody has, are counted and must be sent again. A request that the server
    refused or never received is taken back from the count; one that was lost after it had left is not, and its repeat is counted anew.
    Safe for several threads; one process a folder.

    Args:
        embedder: the encoder. Requests go out at the same time only if it says ``thread_safe``.
        folder: where counts and answers are kept; None: nothing outlives this object.
        budget: most images ever sent, with those of earlier processes on this folder; None: no limit.
        price: of 1000 images.
        price_per_request: of one request, beside its images.
        concurrency: most requests at once in `many`.

    Attributes:
        n_images: images that this object was asked for and has answered.
        n_reused: those of them that were not sent: answered before, or twice in one call.
        n_opening: images that were sent to find out the width; every new object on the folder sends them again.

    Raises:
        InputError: a negative budget or price, a concurrency below one, or a folder of another encoder.
        RunError: another process uses the folder.

    Example:
        >>> from timm import create_model
        >>> from evenhand.models import ImageClassifier, LocalEmbedder
        >>> network = create_model("resnet18", num_classes=1)
        >>> model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet18")
        >>> paid = PaidEmbedder(LocalEmbedder(model, precision="fp32"), folder=None, budget=4, price=2.0)
        >>> images = torch.rand(3, 3, 32, 32)
        >>> _ = paid(images), paid(images)
        >>> paid.n_sent, paid.n_reused, paid.left, paid.cost
        (3, 3, 1, 0.006)
        >>> paid(1 - images)
        Traceback (most recent call last):
        ...
        evenhand.errors.BudgetError: 3 new images, but 1 of the budget of 4 left; nothing was sent, ...
    """

    differentiable = False
    thread_safe = True

    def __init__(
        self, embedder: Any, folder: Path | str | None = None, budget: int | None = None, price: float = 0.0, concurrency: int = 1,
        price_per_request: float = 0.0,
    ) -> None:
        if (budget is not None and budget < 0) or min(price, price_per_request) < 0 or concurrency < 1:
            prices = f"price={price}, price_per_request={price_per_request}"
            raise InputError(f"budget={budget}, {prices}, concurrency={concurrency}: the last starts at 1, the others at 0")
        self.embedder = embedder
        self.budget, self.price, self.price_per_request = budget, price, price_per_request
        self.concurrency = concurrency if getattr(embedder, "thread_safe", False) else 1
        self.n_reused = 0
        self.n_images = 0
        self._lock = threading.Lock()
        self._reserved = 0
        self._waiting: dict[bytes, Future[Row]] = {}
        self._temporary = TemporaryDirectory(prefix="evenhand-paid-") if folder is None else None
        place = Path(self._temporary.name if self._temporary else folder or ".")
        before = embedder.n_images
        self.n_opening = 0
        self._log = ResponseLog(place, _identity(embedder), embedder.dim, durable=folder is not None)
        self._release = weakref.finalize(self, _release, self._log, self._temporary)
        self._pool = ThreadPoolExecutor(self.concurrency, "paid") if self.concurrency > 1 else None
        if embedder.n_images > before:  # it had to ask for its width
            self.n_opening = embedder.n_images - before
            self._log.sending(self.n_opening)
            self._log.requested(1)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.embedder.dim)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) the encoder sees."""
        height, width = self.embedder.input_size
        return int(height), int(width)

    @property
    def channels(self) -> int:
        """Channels the encoder sees."""
        return int(self.embedder.channels)

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return str(self.embedder.fingerprint)

    def weights_for(self, size: tuple[int, int]) -> str | None:
        """The encoder's, None where it has no such name; see `evenhand.models.remote.RemoteEmbedder.weights_for`."""
        name = getattr(self.embedder, "weights_for", None)
        weights: str | None = None if name is None else name(size)
        return weights

    @property
    def levels(self) -> int | None:
        """Grey levels that reach the encoder, None: any float."""
        levels: int | None = getattr(self.embedder, "levels", None)
        return levels

    @property
    def notes(self) -> list[str]:
        """What the encoder says a user should know."""
        return list(getattr(self.embedder, "notes", ()))

    @property
    def settled(self) -> str | None:
        """The encoder's, for `EmbeddingCache`."""
        settled: str | None = getattr(self.embedder, "settled", "fp32")
        return settled

    @settled.setter
    def settled(self, value: str | None) -> None:
        self.embedder.settled = value

    @property
    def agreement(self) -> Any:
        """The encoder's, for `EmbeddingCache`."""
        return getattr(self.embedder, "agreement", None)

    @agreement.setter
    def agreement(self, value: Any) -> None:
        self.embedder.agreement = value

    @property
    def n_sent(self) -> int:
        """Images counted as sent, with those of earlier processes on the same folder."""
        return self._log.n_sent

    @property
    def n_requests(self) -> int:
        """Requests that were sent and may have been billed, repeats among them, with those of earlier processes on the same folder."""
        return self._log.n_requests

    @property
    def n_answers(self) -> int:
        """Images whose answers are kept; `n_sent` less these were lost, repeated, forgotten, or sent to find out the width."""
        return len(self._log)

    @property
    def left(self) -> int | None:
        """Images that may still be sent, None without a budget."""
        return None if self.budget is None else max(self.budget - self.n_sent - self._reserved, 0)

    @property
    def cost(self) -> float:
        """What was sent costs, at ``price`` for a thousand images and ``price_per_request``."""
        return self.estimate(self.n_sent, self.n_requests)

    def estimate(self, n_images: int, n_requests: int = 0) -> float:
        """What sending ``n_images`` in ``n_requests`` costs."""
        return n_images * self.price / 1000 + n_requests * self.price_per_request

    def describe(self) -> dict[str, Any]:
        """The encoder's part of a cache key."""
        described: dict[str, Any] = self.embedder.describe()
        return described

    def settle(self, images: ImageBatches) -> str:
        """The encoder's `settle`; the images that it sends for that are counted."""
        n = int(getattr(self.embedder, "n_settle_images", 0)) if self.settled is None else 0
        self._charge(n, 0)
        before, asked = self.embedder.n_images, getattr(self.embedder, "n_answered", 0)
        try:
            return str(self.embedder.settle(images))
        finally:
            unsent = n - (self.embedder.n_images - before)
            with self._lock:
                if unsent > 0:
                    self._log.taken_back(unsent)
                self._log.requested(getattr(self.embedder, "n_answered", 0) - asked)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, dim) of images (n, c, h, w) in [0, 1].

        Raises:
            BudgetError: more images would have to be sent than the budget allows; nothing was sent.
            RunError: the encoder failed, or an embedding is not finite; other answers are kept.
        """
        return self.many([images])[0]

    def many(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Embeddings of several batches, one request a batch, up to ``concurrency`` of them at once.

        The budget is checked for all of them together, before the first is sent. When a request fails, those already on their way are
        waited for and kept, the others are not sent.

        Raises:
            BudgetError, RunError: as for a call.
        """
        return self._many(batches, strict=True)

    def many_as_answered(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `many`, but embeddings that are not finite are kept and given back, for a search that leaves such a query out.

        They are paid for once, as every other answer. Where the encoder itself refuses an answer for that, it does not say which images
        it was about, so every image of the request that has no answer yet is NaN, and stays counted as sent.

        Raises:
            BudgetError: as for a call.
            RunError: the encoder failed.
        """
        return self._many(batches, strict=False)

    def _many(self, batches: Sequence[torch.Tensor], strict: bool) -> list[torch.Tensor]:
        keys = [_keys(batch) for batch in batches]
        mine, others, answers = self._claim(keys)
        answers.update(self._send([(batches[k], rows, [keys[k][row] for row in rows]) for k, rows in mine], strict))
        answers.update({key: future.result() for key, future in others.items()})
        if strict:
            self._refuse_kept(answers)
        out = []
        for batch, names in zip(batches, keys, strict=True):
            rows = np.array([answers[key] for key in names], dtype=np.float32).reshape(len(names), self.dim)
            out.append(torch.from_numpy(rows).to(batch.device))
        with self._lock:
            n_new = sum(len(rows) for _, rows in mine)
            self.n_images += sum(map(len, keys))
            self.n_reused += sum(map(len, keys)) - n_new
        return out

    def embed_images(self, images: ImageBatches, batch_size: int | None = None, progress: bool = False) -> npt.NDArray[np.float32]:
        """Embed all images; as `LocalEmbedder.embed_images`, and raises what a call raises."""
        from rich.progress import track

        step = batch_size or int(getattr(self.embedder, "batch_size", 64))
        out = np.empty((len(images), self.dim), dtype=np.float32)
        stride = step * self.concurrency
        for start in track(range(0, len(images), stride), "embedding", disable=not progress):
            end = min(start + stride, len(images))
            batches = [images.batch(slice(at, min(at + step, end))) for at in range(start, end, step)]
            out[start:end] = torch.cat(self.many(batches)).cpu().numpy()
        return out

    def forget(self) -> None:
        """Drop the answers kept so far, for a search that has stored its own state; the count of images sent stays."""
        with self._lock:
            self._log.forget()

    def close(self) -> None:
        """Let go of the folder; the object cannot be used afterwards."""
        if self._pool is not None:
            self._pool.shutdown()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _refuse_kept(self, answers: dict[bytes, Row]) -> None:
        """Refuse answers that were kept for a search although they are not finite."""
        n_bad = sum(not np.isfinite(row).all() for row in answers.values())
        if n_bad:
            raise RunError(
                f"{n_bad} of {len(answers)} embeddings are not finite: the encoder answered so when a search asked, which left them out; "
                f"check the encoder, then delete {self._log.folder} to ask and pay again"
            )

    def _claim(self, keys: Sequence[Sequence[bytes]]) -> tuple[list[tuple[int, list[int]]], dict[bytes, Future[Row]], dict[bytes, Row]]:
        """Rows that this call must send, by batch, set aside in the budget; answers another thread will have; answers that are here."""
        with self._lock:
            mine: list[tuple[int, list[int]]] = []
            others: dict[bytes, Future[Row]] = {}
            known: dict[bytes, Row] = {}
            new: dict[bytes, Future[Row]] = {}
            for k, names in enumerate(keys):
                rows = []
                for i, key in enumerate(names):
                    if key in self._waiting:
                        others[key] = self._waiting[key]
                    elif key in self._log:
                        known[key] = self._log.read(key)
                    elif key not in new:
                        new[key] = Future()
                        rows.append(i)
                if rows:
                    mine.append((k, rows))
            self._reserve(len(new))
            self._waiting.update(new)
        return mine, others, known

    def _reserve(self, n: int) -> None:
        """Set n images aside, if the budget and the disk allow them; the lock is held."""
        if not n:
            return
        left = self.left
        if left is not None and n > left:
            said = f"{n} new images, but {left} of the budget of {self.budget} left"
            raise BudgetError(f"{said}; nothing was sent, what was answered is kept: raise the budget and go on")
        self._log.check_space(n)
        self._reserved += n

    def _charge(self, n: int, requests: int = 1) -> None:
        """Count n images as sent, if the budget allows them: a repeat of a request whose first sending may have been billed."""
        if n:
            with self._lock:
                self._reserve(n)
                self._reserved -= n
                self._log.sending(n)
                self._log.requested(requests)

    def _send(self, requests: Sequence[tuple[torch.Tensor, list[int], list[bytes]]], strict: bool) -> dict[bytes, Row]:
        """Send the requests; the answers by key. All that were started are finished before an error is raised."""
        failed = threading.Event()
        if self._pool is None or len(requests) < 2:
            results = [_outcome(self._request, failed, strict, *request) for request in requests]
        else:
            started = [self._pool.submit(_outcome, self._request, failed, strict, *request) for request in requests]
            try:
                results = [one.result() for one in started]
            except BaseException:
                failed.set()
                wait(started)
                raise
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise next((error for error in errors if not isinstance(error, _NotSent)), errors[0])
        return {key: row for result in results if isinstance(result, dict) for key, row in result.items()}

    def _request(
        self, failed: threading.Event, strict: bool, batch: torch.Tensor, rows: list[int], keys: list[bytes]
    ) -> dict[bytes, Row]:
        """Send these rows of a batch, keep the answer, and hand it to the threads that wait for it."""
        counted, parts = False, 0
        out: dict[bytes, Row] = {}

        def answered(start: int, found: Row) -> None:
            nonlocal parts
            parts += 1
            self._another_request(parts > 1)  # the first was counted before it was sent
            self._keep(strict, keys, out, start, found)

        try:
            if failed.is_set():
                raise _NotSent("not sent, because another request failed")
            with self._lock:
                self._reserved -= len(rows)
                counted = True
                self._log.sending(len(rows))
                self._log.requested(1)
            with torch.inference_mode():
                images = batch.detach() if len(rows) == len(batch) else batch.detach()[rows]
                try:
                    self._ask(images, answered)
                except NotFiniteError:
                    if strict:
                        raise
                    self._another_request(parts > 0)
                    self._keep(strict, keys, out, len(out), np.full((len(keys) - len(out), self.dim), np.nan, np.float32))
            if len(out) != len(keys):
                raise RunError(f"the encoder answered {len(out)} of {len(keys)} images")
            return out
        except BaseException as error:
            failed.set()
            self._give_up([key for key in keys if key not in out], error, counted, parts)
            raise

    def _another_request(self, is_another: bool) -> None:
        if is_another:
            with self._lock:
                self._log.requested(1)

    def _ask(self, images: torch.Tensor, answered: Callable[[int, Row], None]) -> None:
        """Send images; ``answered`` is told where rows begin and what they are."""
        if hasattr(self.embedder, "embed_charged"):
            self.embedder.embed_charged(images, self._charge, answered)
        else:
            answered(0, self.embedder(images).float().cpu().numpy())

    def _keep(self, strict: bool, keys: list[bytes], out: dict[bytes, Row], start: int, found: Row) -> None:
        """Keep the answers to ``keys`` from ``start`` on, and hand them to the threads that wait for them."""
        names = keys[start : start + len(found)]
        if found.shape != (len(names), self.dim) or not names:
            raise RunError(f"the encoder answered with shape {found.shape}, but (n, {self.dim}) was expected; the answer is not kept")
        n_bad = int((~np.isfinite(found).all(axis=1)).sum())
        if n_bad and strict:
            said = f"{n_bad} of {len(found)} embeddings are not finite; the answer is not kept"
            raise RunError(f"{said}: check the encoder's weights or set its precision to fp32, then run this again")
        with self._lock:
            self._log.answered(names, found)
            for key, row in zip(names, found, strict=True):
                out[key] = row
                self._waiting.pop(key).set_result(row)

    def _give_up(self, keys: list[bytes], error: BaseException, counted: bool, parts: int) -> None:
        """Take unanswered images back from the count where they were certainly not billed, and tell the threads that wait for them.

        ``parts`` requests were answered before; the first of all was counted before it was sent, this one not, unless it is the first.
        """
        with self._lock:
            if not counted:
                self._reserved -= len(keys)
            elif isinstance(error, InputError) or (isinstance(error, ServerError) and not error.maybe_billed):
                self._log.taken_back(len(keys))
                self._log.requested(-1 if parts == 0 else 0)
            elif isinstance(error, ServerError) and parts:
                self._log.requested(1)
            for key in keys:
                future = self._waiting.pop(key, None)
                if future is not None:
                    future.set_exception(error)


class _NotSent(RunError):
    """A request that was never started."""


def _outcome(request: Any, *arguments: Any) -> dict[bytes, Row] | BaseException:
    try:
        answered: dict[bytes, Row] = request(*arguments)
        return answered
    except BaseException as error:
        return error


def _keys(batch: torch.Tensor) -> list[bytes]:
    """The content of each image: 128 bits of XXH3 over its float32 values, seeded by its shape; nine times as fast as SHA-256.

    Nobody gains from two images with one key, so a hash that only chance can collide (2^-128 a pair) is enough.
    """
    import xxhash

    values = np.ascontiguousarray(batch.detach().to("cpu", torch.float32).numpy())
    seed = xxhash.xxh3_64_intdigest(str(values.shape[1:]).encode())
    return [xxhash.xxh3_128_digest(row, seed) for row in values]


def _identity(embedder: Any) -> str:
    """What determines an answer besides the image."""
    described = embedder.describe() if hasattr(embedder, "describe") else {"model": embedder.fingerprint}
    precision = getattr(embedder, "settled", None) or "fp32"
    return hashlib.sha256(json.dumps({**described, "precision": precision}, sort_keys=True).encode()).hexdigest()


def _release(log: ResponseLog, temporary: TemporaryDirectory[str] | None) -> None:
    log.close()
    if temporary is not None:
        temporary.cleanup()
