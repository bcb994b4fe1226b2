"""Asking an encoder about an edit: which images, as which requests, at what price, and never more than were allowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.config.editing import GeZOConfig
from evenhand.edits.base import Edit
from evenhand.errors import BudgetError, MethodError, NotFiniteError
from evenhand.methods.base import Embedder, Images, Task
from evenhand.methods.editing.objectives import edit_norm
from evenhand.methods.editing.strategies import Array
from evenhand.random import generator

Rows = npt.NDArray[np.int64]
LEVELS = {"none": 0, "16bit": 65536, "8bit": 256}


@dataclass(frozen=True)
class Price:
    """What an encoder's answers cost.

    Attributes:
        per_1000: of 1000 images.
        per_request: of one request, beside its images.
    """

    per_1000: float = 0.0
    per_request: float = 0.0

    @classmethod
    def asked(cls, config: GeZOConfig) -> Price:
        """The prices in the options."""
        return cls(config.price, config.price_per_request)

    @property
    def known(self) -> bool:
        """Whether anything has a price."""
        return self.per_1000 > 0 or self.per_request > 0

    def of(self, images: int, requests: int) -> float:
        """What so many images in so many requests cost."""
        return images * self.per_1000 / 1000 + requests * self.per_request

    def counted(self, requests: int, about: str = "") -> str:
        """" in N requests" where these cost something, else nothing."""
        return f" in {about}{requests} requests" if self.per_request else ""

    def words(self, images: int, requests: int) -> str:
        """The cost and the prices, to be put after the images; nothing where nothing has a price.

        Example:
            >>> Price(1.5, 0.01).words(2000, 40)
            ', 3.40 at 1.5 per 1000 images and 0.01 per request'
        """
        if not self.known:
            return ""
        prices = [f"{self.per_1000:g} per 1000" + (" images" if self.per_request else "")] if self.per_1000 else []
        prices += [f"{self.per_request:g} per request"] if self.per_request else []
        return f", {self.of(images, requests):.2f} at {' and '.join(prices)}"


def innermost(embedder: Any, name: str, default: int) -> int:
    """A number that an encoder says of itself, or the one that it wraps does."""
    while not hasattr(embedder, name) and hasattr(embedder, "embedder"):
        embedder = embedder.embedder
    return int(getattr(embedder, name, default))


def requests_for(embedder: Any, n: int, batch: int) -> int:
    """Requests for n images that are handed to an encoder in equal batches of at most ``batch``; it may take fewer at once."""
    if n < 1:
        return 0
    most = innermost(embedder, "most_images", n)
    size, larger = divmod(n, chunks := -(-n // max(batch, 1)))
    return larger * -(-(size + 1) // most) + (chunks - larger) * -(-size // most)


@dataclass(frozen=True)
class Plan:
    """How many images a search sends, and in how many requests.

    Attributes:
        budget: most images ever.
        round: of one round, at most.
        check: of one check: reference images for the heads, and validation images for the held-out objective.
        every: rounds between checks.
        rounds: most rounds, 0 = as the budget allows.
        price: of images and requests.
        gone: images of the budget that the encoder no longer sends for this search: it was asked for its width, or requests were lost.
        again: images that the encoder is sent each time a process starts, before the search.
        round_requests, check_requests: requests of a round and of a check.
    """

    budget: int
    round: int
    check: int
    every: int
    rounds: int
    price: Price
    gone: int = 0
    again: int = 0
    round_requests: int = 0
    check_requests: int = 0

    @property
    def smallest(self) -> int:
        """The least budget that a search can do anything with: a check, a round, a check."""
        return self.round + 2 * self.check

    @property
    def affordable(self) -> int:
        """Rounds that the budget allows, or that are asked for, where that is less."""
        allowed, spent = 0, self.check
        while spent + self.round + self.check <= self.budget - self.gone:
            allowed += 1
            spent += self.round + (self.check if allowed % self.every == 0 else 0)
            if self.rounds and allowed == self.rounds:
                break
        return allowed

    def require(self) -> None:
        """Refuse a budget that is too small, before anything is sent.

        Raises:
            MethodError: the smallest budget that does is in the text.
        """
        if self.budget - self.gone < self.smallest:
            gone = f", {self.gone} of which the encoder does not give to the search (sent before it, lost, or above its own budget)"
            raise MethodError(
                f"budget is {self.budget} images{gone if self.gone else ''}, but one round needs {self.smallest} ({self.round} for the "
                f"candidates and twice {self.check} to measure the edit before and after); set "
                f"method.budget={self.smallest + self.gone + self.again} or more, or make method.query_images, draws, population, "
                "reference_images or validation_images smaller"
            )

    @property
    def most(self) -> int:
        """Images that are sent where nothing but the budget or the number of rounds ends the search."""
        rounds = self.affordable
        return min(self.budget - self.gone, self.check + rounds * self.round + -(-rounds // self.every) * self.check)

    @property
    def most_requests(self) -> int:
        """Requests for `most` images; repeats are beside them."""
        rounds = self.affordable
        return self.check_requests + rounds * self.round_requests + -(-rounds // self.every) * self.check_requests

    def describe(self) -> str:
        """One line for the user before anything is sent."""
        text = f"up to {self.affordable} rounds of {self.round} images and a check of {self.check} every {self.every}"
        requests = self.most_requests
        return f"{text}: at most {self.most} images{self.price.counted(requests)}{self.price.words(self.most, requests)}"


@dataclass(frozen=True)
class QueryRows:
    """Which images are asked about.

    Attributes:
        reference: training rows that heads are re-fitted on.
        pool: the other training rows; query batches are drawn from them.
        held_out: positions in ``held_out_split`` of the images that decide which edit is kept.
        held_out_is_val: whether these are validation rows; else they are training rows that are in neither of the others.
    """

    reference: Rows
    pool: Rows
    held_out: Rows
    held_out_is_val: bool

    @property
    def known(self) -> Rows:
        """Training rows that do not decide which edit is kept, sorted."""
        return np.sort(np.concatenate([self.reference, self.pool]))

    @classmethod
    def draw(cls, task: Task, config: GeZOConfig, needs_heads: bool) -> QueryRows:
        """Disjoint rows; small data sets give every part at most what leaves half of the rows to query.

        Raises:
            MethodError: fewer than four training rows.
        """
        n = len(task.train)
        if n < 4:
            raise MethodError(f"{n} training images arrived, but a search needs at least 4; add images")
        order = generator(task.seed, "query rows").permutation(n)
        n_held = 0 if len(task.val) else min(config.validation_images, n // 4)
        n_reference = min(config.reference_images, (n - n_held) // 2) if needs_heads else 0
        held, reference, pool = np.split(order, [n_held, n_held + n_reference])
        if len(task.val):
            held = generator(task.seed, "validation rows").permutation(len(task.val))[: config.validation_images]
        return cls(np.sort(reference), np.sort(pool), np.sort(held), bool(len(task.val)))

    def batch(self, seed: int, number: int, part: int, size: int) -> Rows:
        """The training rows of one round's query batch, sorted."""
        return np.sort(generator(seed, "queries", number, part).choice(self.pool, min(size, len(self.pool)), replace=False))


def withheld(embedder: Embedder | None, budget: int) -> tuple[int, int]:
    """Images of a search's budget that the encoder will not send for it, and how many more every new process costs.

    An encoder that is paid for (`evenhand.models.PaidEmbedder`) counts against one budget what the search asks and what it does not: a
    question for the width of an embedding, and requests that were lost. Answers that it keeps cost nothing when they are asked again.
    """
    left: int | None = getattr(embedder, "left", None)
    if left is None:
        return 0, 0
    gone = max(budget - left - int(getattr(embedder, "n_answers", 0)), 0)
    return gone, int(getattr(embedder, "n_opening", 0)) if gone else 0


def seen_rounding(edit: Edit, embedder: Embedder) -> tuple[str, str | None]:
    """The rounding that queries must have, and a note where that is the encoder's own, stricter than the edit's.

    An encoder that is sent image files has ``levels``: 256 for 8-bit files.
    """
    inner: Any = embedder
    while not hasattr(inner, "levels") and hasattr(inner, "embedder"):
        inner = inner.embedder
    levels = getattr(inner, "levels", None)
    own = LEVELS[edit.bounds.rounding]
    if levels is None or 0 < own <= levels:
        return edit.bounds.rounding, None
    name = "8bit" if levels <= 256 else "16bit"
    return name, f"the encoder is sent image files with {levels} levels, so the edit was searched and stored with rounding={name}"


class Querier:
    """Embeddings of images under an edit at a point, without gradients, in requests of limited size.

    Args:
        task: whose encoder is asked.
        edit: set to whatever point is asked about.
        config: the options.

    Attributes:
        n_images: images asked about so far, whether or not a log of paid answers had them.
        n_requests: requests for them, each of one batch under one edit.
        n_stored: answers that the encoder kept when the search last stored its state; those since are of what was cut short.
    """

    def __init__(self, task: Task, edit: Edit, config: GeZOConfig) -> None:
        if task.embedder is None:
            raise MethodError("a search asks the encoder itself, but the task has none; give task.embedder")
        self.task, self.edit, self.config = task, edit, config
        self.embedder: Embedder = task.embedder
        self.origin = edit.vector().double()
        self.scale = edit.natural_steps().double().cpu() if config.natural_steps else torch.ones(edit.n_parameters, dtype=torch.float64)
        self.needs_norm = config.norm_weight > 0
        self.n_images = self.n_requests = 0
        self.n_stored = 0

    @property
    def n_answers(self) -> int:
        """Answers that the encoder keeps, 0 where it keeps none."""
        return int(getattr(self.embedder, "n_answers", 0))

    def affords(self, n: int) -> bool:
        """Whether the encoder's own budget has n images of what comes next; answers that it has from before a kill cost nothing.

        An encoder that is paid for counts repeats, lost requests and a question for its width too, so it may have less than
        `n_images` says.
        """
        left: int | None = getattr(self.embedder, "left", None)
        return left is None or n - max(self.n_answers - self.n_stored, 0) <= left

    def require(self, n: int) -> None:
        """Refuse n images that the encoder's own budget does not have, before the first is sent.

        Raises:
            BudgetError: see `affords`.
        """
        if not self.affords(n):
            left, budget = getattr(self.embedder, "left", None), getattr(self.embedder, "budget", None)
            said = f"{n} images are needed to measure the edit, but {left} of the encoder's budget of {budget} left"
            raise BudgetError(f"{said}; nothing of it was sent, what was answered is kept: raise the budget and go on")

    def place(self, point: Array) -> None:
        """Set the edit to a point (p,) in natural steps from where it began."""
        self.edit.load_vector((self.origin.cpu() + torch.from_numpy(point) * self.scale).float().to(self.origin.device))

    def embed(
        self, images: Images, rows: Rows, points: Sequence[Array], *, strict: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Embeddings (b, d) and the norm of the edit, for every point on the same images.

        Args:
            images: where rows are looked up.
            rows: b positions.
            points: edits to try.
            strict: an encoder that refuses embeddings that are not finite raises its error, and does not keep them; else they are NaN
                here, and paid for once.

        Raises:
            BudgetError: the encoder's own budget ended.
            RunError: the encoder failed.
        """
        chunks = np.array_split(rows, -(-len(rows) // max(self.task.batch_size, 1)))
        found: list[list[Tensor]] = [[] for _ in points]
        squares: list[list[Tensor]] = [[] for _ in points]
        answers = self._answers(self._edited(images, chunks, points, squares), strict)
        for number, z in enumerate(answers):
            found[number % len(points)].append(z)
        self.n_images += len(rows) * len(points)
        self.n_requests += len(chunks) * len(points)
        sizes = torch.tensor([len(chunk) for chunk in chunks], dtype=torch.float64)
        return [(torch.cat(parts), self._norm(squares[k], sizes)) for k, parts in enumerate(found)]

    def _edited(
        self, images: Images, chunks: list[Rows], points: Sequence[Array], squares: list[list[Tensor]]
    ) -> Iterator[Tensor]:
        """Edited images request by request: for every chunk of images all points, so that each image is read once."""
        for chunk in chunks:
            plain = images.batch(chunk).to(self.task.device)
            for number, point in enumerate(points):
                self.place(point)
                with torch.no_grad():
                    edited = self.edit(plain)
                    if self.needs_norm:
                        squares[number].append(edit_norm(self.edit, plain, edited).square())
                yield edited

    def _norm(self, squares: list[Tensor], sizes: Tensor) -> Tensor | None:
        if not squares:
            return None
        stacked = torch.stack(squares).double().cpu()
        return ((stacked * sizes).sum() / sizes.sum()).sqrt().float().to(self.task.device)

    def _answers(self, requests: Iterator[Tensor], strict: bool) -> Iterator[Tensor]:
        """Embeddings on the task's device, in order; several requests at once where the encoder can take them."""
        many: Any = getattr(self.embedder, "many", None)
        if many is not None and not strict:
            many = getattr(self.embedder, "many_as_answered", many)
        at_once = max(1, self.config.concurrency) if many is not None else 1
        waiting: list[Tensor] = []
        with torch.no_grad():
            for request in requests:
                waiting.append(request)
                if len(waiting) == 2 * at_once or many is None:
                    yield from self._send(many, waiting, strict)
                    waiting = []
            if waiting:
                yield from self._send(many, waiting, strict)

    def _send(self, many: Any, requests: list[Tensor], strict: bool) -> Iterator[Tensor]:
        answers = many(requests) if many is not None else [self._one(request, strict) for request in requests]
        for z in answers:
            yield z.detach().float().to(self.task.device)

    def _one(self, request: Tensor, strict: bool) -> Tensor:
        """The answer of an encoder without ``many``; NaN where it refuses its own answer for not being finite."""
        try:
            return self.embedder(request)
        except NotFiniteError:
            if strict:
                raise
            return torch.full((len(request), self.embedder.dim), torch.nan)

    def stricter(self) -> str | None:
        """Give the edit the encoder's own rounding where that is stricter; what was done, as a note."""
        rounding, note = seen_rounding(self.edit, self.embedder)
        if note is not None:
            set_rounding(self.edit, rounding)
        return note


def set_rounding(edit: Edit, rounding: str) -> None:
    """Change the rounding of an edit, and of the parts of a composition."""
    for module in edit.modules():
        if isinstance(module, Edit):
            module.bounds = replace(module.bounds, rounding=rounding)
