"""An encoder behind an API: images go out, embeddings come back, whatever happens on the way."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.schema import ModelConfig
from evenhand.errors import InputError, NotFiniteError, RunError, ServerError
from evenhand.models.adapters import CxrFoundation, MedImageInsight
from evenhand.models.connection import Connection
from evenhand.models.image_formats import FORMATS, Values
from evenhand.models.open_inference import Api, OpenInference

if TYPE_CHECKING:
    from evenhand.edits.base import ImageBatches

logger = logging.getLogger(__name__)

APIS = ("v2", "cxr_foundation", "medimageinsight")
SAME = 1e-5
TOO_DIFFERENT = 1e-2
N_PROBE = 4


@dataclass(frozen=True)
class Determinism:
    """How far embeddings of the same images differ between calls: the largest ``|a_i - b_i| / |a_i|`` over images.

    Attributes:
        n_images: images in the sample; each was sent three times.
        repeated: the same request twice.
        recomposed: the images in another order, in two requests.
    """

    n_images: int
    repeated: float
    recomposed: float

    @property
    def largest(self) -> float:
        """The larger of the two."""
        return max(self.repeated, self.recomposed)


class RemoteEmbedder:
    """Embeddings from a server: images (n, c, h, w) float32 in [0, 1] -> (n, dim) float32.

    One channel is repeated; other sizes are resized where the server takes one size only. Repeats after 429, 5xx and lost connections with
    exponential back-off; checks every answer (count, width, finite numbers, the model's version). Safe for several threads. The token is
    read from the environment variable EVENHAND_TOKEN.

    Args:
        url: address of the server; with an adapter, of the prediction itself.
        api: v2 (Open Inference Protocol), cxr_foundation or medimageinsight.
        api_model: v2: the model's name, default: the only one; cxr_foundation: which embedding (general_img_emb).
        api_version: v2: the model's version, default: the server's.
        api_input, api_output: v2: names of the tensors, where the model has several or does not say them.
        api_format: binary or json (floats), binary_uint8, json_uint8, png, or jpeg.
        timeout: seconds for one answer.
        retries: most repeats of a request.
        connections: requests at once.
        ca_file: certificate authorities of a server with a private certificate.
        batch_size: most images a request; the server may ask for less.
        input_size: (height, width) that images are resized to where the server takes any size.
        mean, std: normalise before sending; default: images go as they are.
        lossy: round images to 8 bits where the format needs it and they are not.
        allow_changes: accept a server whose embeddings of one image differ by more than 1%.
        sleep: how waiting is done; for tests.

    Attributes:
        n_images: images that were answered.
        n_answered: requests for embeddings that were answered.
        notes: what a user should know: a lossy format, embeddings that change between calls.
        levels: grey levels that reach the model, None: any float. An edit must be rounded to them before it is judged.

    Raises:
        InputError: settings that contradict each other or the server.
        ServerError: the server cannot be used; exit code 4.

    Example:
        >>> embedder = RemoteEmbedder("https://embeddings.example.org", api_model="cxr")  # doctest: +SKIP
        >>> embedder(torch.rand(4, 1, 224, 224)).shape  # doctest: +SKIP
        torch.Size([4, 768])
    """

    differentiable = False
    thread_safe = True
    agreement: Any = None
    n_settle_images = 3 * N_PROBE

    def __init__(
        self, url: str, *, api: str = "v2", api_model: str | None = None, api_version: str | None = None,
        api_input: str | None = None, api_output: str | None = None, api_format: str = "binary",
        timeout: float = 60.0, retries: int = 5, connections: int = 4, ca_file: str | None = None, batch_size: int = 64,
        input_size: tuple[int, int] | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
        lossy: bool = False, allow_changes: bool = False, sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if api not in APIS or api_format not in FORMATS:
            raise InputError(f"api={api}, api_format={api_format}: known are {', '.join(APIS)} and {', '.join(FORMATS)}")
        if batch_size < 1 or connections < 1 or retries < 0 or timeout <= 0:
            raise InputError("batch_size and connections start at 1, retries at 0, and timeout is above 0")
        self.connection = Connection(url, timeout=timeout, retries=retries, connections=connections, ca_file=ca_file, sleep=sleep)
        self.connections, self.batch_size, self.allow_changes = connections, batch_size, allow_changes
        self.settled: str | None = None
        self.n_images = self.n_answered = 0
        self.notes: list[str] = []
        self._said: dict[str, Any] = {
            "api": api, "format": api_format if api == "v2" else "png", "mean": _listed(mean), "std": _listed(std),
        }
        self._lock = threading.Lock()
        self.api: Api
        try:
            if api == "v2":
                tensors = api_input, api_output
                self.api = OpenInference(self.connection, api_model, api_version, api_format, mean, std, input_size, lossy, tensors)
            else:
                adapter = CxrFoundation if api == "cxr_foundation" else MedImageInsight
                self.api = adapter(api_model, api_version, input_size, lossy)
        except BaseException:
            self.close()
            raise
        facts = self.api.facts
        self.levels = facts.levels
        self._dim = facts.dim
        self._most = min(batch_size, facts.max_batch or batch_size)
        rounds = lossy and facts.levels is not None
        if rounds:
            self._said["lossy"] = True  # said only where it changes answers, so that what is cached without it stays valid
        if self._said["format"] == "jpeg" or rounds:
            self._note(f"images are sent as {self._said['format']} with loss: the server sees other pixels than the ones given")

    @classmethod
    def from_config(cls, config: ModelConfig, **options: Any) -> RemoteEmbedder:
        """The embedder that a configuration with ``url`` asks for; ``options`` override it."""
        given: dict[str, Any] = {
            "api": config.api, "api_model": config.api_model, "api_version": config.api_version,
            "api_input": config.api_input, "api_output": config.api_output, "api_format": config.api_format,
            "timeout": config.timeout, "retries": config.retries, "connections": config.connections, "ca_file": config.ca_file,
            "batch_size": config.embed_batch_size, "input_size": _tuple(config.input_size),
            "mean": _tuple(config.mean), "std": _tuple(config.std), "lossy": config.api_lossy, "allow_changes": config.api_allow_changes,
        }
        if not config.url:
            raise InputError("model.url is empty, but an embedding server is asked for; give its address")
        return cls(config.url, **{**given, **options})

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self.connection.shown!r}, {self._said['api']}, {self.api.facts.name!r})"

    @property
    def dim(self) -> int:
        """Width of an embedding; where the server does not say it, one grey image is sent to find out."""
        if self._dim is None:
            size = self.input_size
            self(torch.full((1, self.channels, *size), 128 / 255))
        return self._dim or 0

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) the model takes; where it takes any, what it is expected to see."""
        return self.api.facts.input_size

    @property
    def channels(self) -> int:
        """Channels the model takes; one channel is repeated."""
        return self.api.facts.channels

    @property
    def fingerprint(self) -> str:
        """Hash of the model's name, version and what the server says of it; the address is not in it."""
        return self.api.facts.fingerprint

    def weights_for(self, size: tuple[int, int]) -> str | None:
        """The fingerprint that a local encoder of the served weights has, where both see images of ``size`` alike.

        None where the server does not name its weights, edits images first, or has them resized to another grid than the weights
        see; or where images are normalised here. An edit or a head made for these weights in this process is then as good here.

        Args:
            size: (height, width) of the images.
        """
        facts = self.api.facts
        resized_twice = facts.fixed and tuple(size) != facts.input_size and facts.weights_size != facts.input_size
        return None if resized_twice else facts.weights

    @property
    def n_requests(self) -> int:
        """Requests sent, repeats and those for metadata included."""
        return self.connection.n_requests

    @property
    def most_images(self) -> int:
        """Most images a request, as far as the server has said; it may still ask for less."""
        return self._most

    @property
    def n_retries(self) -> int:
        """Repeats of requests."""
        return self.connection.n_retries

    def describe(self) -> dict[str, Any]:
        """What determines an embedding besides the image, as JSON: the model's part of a cache key."""
        facts = self.api.facts
        return {
            "model": facts.fingerprint, "name": facts.name, "version": facts.version, "input_size": list(facts.input_size),
            "dim": self.dim, **self._said,
        }

    def close(self) -> None:
        """Close all connections."""
        self.connection.close()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, dim) float32 on the device of the images, without a gradient.

        Raises:
            ServerError: no usable answer after all repeats; images answered before it are counted.
            InputError: images of another kind than the model takes.
        """
        return self.embed_charged(images)

    def embed_charged(
        self, images: torch.Tensor, charge: Callable[[int], None] = lambda n: None,
        answered: Callable[[int, npt.NDArray[np.float32]], None] = lambda start, rows: None,
    ) -> torch.Tensor:
        """As a call, in as many requests as the server's limits ask for.

        Args:
            images: as in a call.
            charge: asked with n before a request of n images is repeated whose first sending may have been billed.
            answered: told where rows begin and what they are as soon as a request is answered.

        Raises:
            ServerError, InputError: as for a call.
        """
        values = self._prepared(images)
        parts, start = [], 0
        while start < len(values):
            rows = self._ask(values[start : start + self._most], charge)
            if rows is not None:
                answered(start, rows)
                parts.append(rows)
                start += len(rows)
        together = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)
        return torch.from_numpy(together).to(images.device)

    def _ask(self, part: Values, charge: Callable[[int], None]) -> npt.NDArray[np.float32] | None:
        """Embeddings of one request; None where the server finds it too large, and the next ones will be smaller."""
        path, message = self.api.encode(part)
        limit, n = self.api.max_bytes, len(part)
        if limit is not None and message.length > limit and n > 1:
            self._shrink(n, f"{message.length} bytes")
            return None
        try:
            found = self.connection.post(path, message, self.api.decode, lambda: charge(n))
        except ServerError as error:
            if error.status != 413 or n == 1:
                raise
            self._shrink(n, error.summary)
            return None
        rows = self._checked(found, n)
        with self._lock:
            self.n_images += n
            self.n_answered += 1
        return rows

    def _shrink(self, n: int, reason: str) -> None:
        with self._lock:
            self._most = min(self._most, max(1, n // 2))
        logger.info("%d images are too much for one request (%s); going on with %d", n, reason, self._most)

    def _checked(self, found: npt.NDArray[Any], n: int) -> npt.NDArray[np.float32]:
        where = self.connection.shown
        if found.dtype.kind not in "fiu" or found.ndim < 2 or len(found) != n:
            text = f"{where} answered {n} images with {found.dtype} of shape {list(found.shape)}, but ({n}, dim) numbers were expected"
            raise ServerError(text, maybe_billed=True)
        with np.errstate(over="ignore"):
            rows = np.array(found.reshape(n, -1), dtype=np.float32)
        n_bad = int((~np.isfinite(rows).all(axis=1)).sum())
        if n_bad:
            text = f"{n_bad} of {n} embeddings from {where} are not finite; nothing of this request is kept, check the server's model"
            raise NotFiniteError(text, maybe_billed=True)
        with self._lock:
            if self._dim is None:
                self._dim = rows.shape[1]
        if rows.shape[1] != self._dim:
            text = f"{where} answered with embeddings of {rows.shape[1]} numbers, but {self._dim} were expected"
            raise ServerError(f"{text}; has its model been exchanged?", maybe_billed=True)
        return rows

    def _prepared(self, images: torch.Tensor) -> Values:
        """Images as the server's model takes them: channels, size, finite."""
        facts = self.api.facts
        if images.ndim != 4 or not images.is_floating_point() or images.shape[1] not in (1, facts.channels):
            raise InputError(
                f"images arrived as {images.dtype} of shape {tuple(images.shape)}, but {facts.name} takes float (n, c, h, w) in [0, 1] "
                f"with c = {' or '.join(str(c) for c in sorted({1, facts.channels}))}"
            )
        images = images.detach().to("cpu", torch.float32).expand(-1, facts.channels, -1, -1)
        if facts.fixed and tuple(images.shape[2:]) != facts.input_size:
            if facts.levels is not None:
                (h, w), (height, width) = images.shape[2:], facts.input_size
                raise InputError(f"images are {h} x {w}, but the server takes {height} x {width} in 8 bits; prepare them in that size")
            images = torch.nn.functional.interpolate(images, size=facts.input_size, mode="bilinear", antialias=True, align_corners=False)
        values: Values = np.ascontiguousarray(images.numpy())
        if not _all_finite(values):
            raise InputError("images hold NaN or infinite values; nothing was sent")
        return values

    def embed_images(
        self, images: ImageBatches, batch_size: int | None = None, progress: bool = False,
        answered: Callable[[int, npt.NDArray[np.float32]], None] = lambda start, rows: None,
    ) -> npt.NDArray[np.float32]:
        """Embed all images, up to ``connections`` requests at once; batches are read while others are on their way.

        Args:
            images: n images by position.
            batch_size: images per request; default: the embedder's.
            progress: show a progress bar.
            answered: told where rows begin and what they are as soon as a request is answered, by several threads.

        Returns:
            float32 (n, dim).

        Raises:
            ServerError: as for a call.
        """
        from rich.progress import track

        self.settle(images)
        step = batch_size or self.batch_size
        out = np.empty((len(images), self.dim), dtype=np.float32)
        starts = range(0, len(images), step)
        with ThreadPoolExecutor(self.connections, "embedding") as pool:

            def work(start: int) -> torch.Tensor:
                batch = images.batch(slice(start, min(start + step, len(images))))
                return self.embed_charged(batch, answered=lambda at, rows: answered(start + at, rows))

            done = _in_order(pool, self.connections + 1, starts, work)
            for start, rows in track(done, "embedding", total=len(starts), disable=not progress):
                out[start : start + len(rows)] = rows.numpy()
        return out

    def settle(self, images: ImageBatches) -> str:
        """Find out, once, whether the server gives the same embeddings again; sends at most 12 images.

        Returns:
            fp32: embeddings are what the server sent.

        Raises:
            RunError: embeddings of one image differ by more than 1% between calls, and ``allow_changes`` is off.
        """
        if self.settled is None and len(images):
            positions = np.unique(np.linspace(0, len(images) - 1, N_PROBE).astype(np.int64))
            found = self.probe_determinism(images.batch(positions))
            if found.largest > SAME:
                text = f"the server gives other embeddings for the same images: {found.repeated:.1e} between two equal requests, "
                text += f"{found.recomposed:.1e} in other batches, relative"
                if found.largest > TOO_DIFFERENT and not self.allow_changes:
                    text += f"; more than {TOO_DIFFERENT:g} makes results meaningless: ask for a deterministic service"
                    raise RunError(f"{text}, or go on all the same with model.api_allow_changes=true")
                self._note(text)
        self.settled = "fp32"
        return self.settled

    def probe_determinism(self, images: torch.Tensor) -> Determinism:
        """Send a batch twice, and once more in another order and in two requests; each image is sent three times."""
        first, second = self(images), self(images)
        half = (len(images) + 1) // 2
        turned = images.flip(0)
        third = torch.cat([self(part) for part in (turned[:half], turned[half:]) if len(part)]).flip(0)
        size = first.norm(dim=1).clamp_min(1e-30)
        return Determinism(
            n_images=len(images), repeated=float(((first - second).norm(dim=1) / size).max()),
            recomposed=float(((first - third).norm(dim=1) / size).max()),
        )

    def _note(self, text: str) -> None:
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)
                logger.warning(text)


def _in_order(
    pool: ThreadPoolExecutor, ahead: int, starts: range, work: Callable[[int], torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Results in order, with at most ``ahead`` under way, so that memory stays flat."""
    waiting = []
    try:
        for position, start in enumerate(starts):
            waiting.append((start, pool.submit(work, start)))
            if position + 1 >= ahead:
                begun, future = waiting.pop(0)
                yield begun, future.result()
        while waiting:
            begun, future = waiting.pop(0)
            yield begun, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _all_finite(values: Values) -> bool:
    """Whether no value is NaN or infinite: a sum says so in one pass, and is itself infinite only for values far from [0, 1]."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _tuple(values: Any) -> Any:
    return None if values is None else tuple(values)
