"""Optimisers of a function that can only be queried: each asks for points, is told their values, and can be put away and resumed.

Points are float64 vectors (p,) in natural steps of an edit, 0 being the start; one unit changes an image by a few grey levels in
every family, so one first step serves all. Values are losses, smaller is better; NaN is a query that failed and never wins.

    GreedySearch   best of antithetic draws, if it beats the current point (GeZO)
    TwoSided       SPSA: simultaneous two-sided differences, Adam on the estimate
    Evolution      CMA-ES; see `evenhand.methods.editing.evolution`
    Surrogate      a network that learns to answer as the encoder does; see `evenhand.methods.editing.surrogate`

Draws come from ``generator(seed, name, round)``, so a strategy that loads a `Strategy.state` goes on exactly as the first would have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.editing import OPTIMIZERS, GeZOConfig
from evenhand.errors import ConfigError, nearest
from evenhand.random import generator

Array = npt.NDArray[np.float64]

SHRUNK = 1e-2
"""A step below this share of the first one is a search that has ended."""


@dataclass(frozen=True)
class Asked:
    """What a round wants to know.

    Attributes:
        points: the points to evaluate, each (p,).
        batches: for every point the number of the query batch it is to be evaluated on; all 0 where a round has one batch.
    """

    points: list[Array]
    batches: list[int]


@dataclass(frozen=True)
class Told:
    """What a round did.

    Attributes:
        accepted: whether the current point moved.
        value: the round's estimate of the loss near the current point, NaN where it has none.
    """

    accepted: bool
    value: float


class Strategy(ABC):
    """One optimiser: `ask`, evaluate, `tell`, as often as wanted.

    Attributes:
        name: as in ``GeZOConfig.optimizer``.
        start: where it began, (p,).
        seed: of its draws.
        round: rounds told so far.
        step: the present step, in natural steps.
        first_step: the first one.
        current: the point it stands at, (p,): what would be used if the search ended now.
    """

    name: ClassVar[str]
    check_every: ClassVar[int | None] = None
    """Rounds between checks that the strategy needs; None: as asked for."""

    def __init__(self, start: Array, step: float, seed: int) -> None:
        if not step > 0:
            raise ConfigError(f"step is {step:g}, but a search needs a first step above 0; 1 is a few grey levels in every family")
        self.start = np.array(start, np.float64)
        self.current = self.start.copy()
        self.first_step = self.step = float(step)
        self.seed = seed
        self.round = 0

    @property
    @abstractmethod
    def n_points(self) -> int:
        """Most points one round asks for."""

    @abstractmethod
    def ask(self) -> Asked:
        """The points of this round; asking again before telling gives the same."""

    @abstractmethod
    def tell(self, values: Sequence[float]) -> Told:
        """Take the values of the points last asked for, in their order, and move."""

    def learn(  # noqa: B027
        self, rows: npt.NDArray[np.int64], points: Sequence[Array], answers: Sequence[torch.Tensor], *, checked: bool = False
    ) -> None:
        """Take whole answers; most strategies need only losses.

        Args:
            rows: (m,) training images.
            points: edits.
            answers: embeddings (m, d) for every point.
            checked: whether heads are fitted on them.
        """

    def judge(self, better: bool, best: Array) -> None:  # noqa: B027
        """Hear from a check whether ``current`` is the best edit so far, and which one is; most strategies go their own way."""

    def restart(self, point: Array) -> None:
        """Go on from a point with the first step and no memory of directions."""
        self.current, self.step = np.array(point, np.float64), self.first_step

    @property
    def exhausted(self) -> bool:
        """Whether the step has shrunk so far that only a restart helps."""
        return self.step < SHRUNK * self.first_step

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        return ()

    @property
    def report(self) -> dict[str, Any]:
        """JSON: what the strategy adds to the search's report."""
        return {}

    def state(self) -> dict[str, Any]:
        """Numbers and tensors from which `load_state` resumes exactly; holds no code."""
        return {"name": self.name, "round": self.round, "step": self.step, "current": torch.from_numpy(self.current.copy())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, on a strategy made with the same arguments."""
        self.round, self.step = int(state["round"]), float(state["step"])
        self.current = np.array(state["current"].numpy(), np.float64)


class GreedySearch(Strategy):
    """GeZO, greedy zeroth order: draw directions, keep the best one if it beats the current point.

        u_k ~ N(0, s^2 I),  candidates e + u_k and e - u_k,  and e + m v while there is a velocity v
        d = the best candidate's direction, if its loss is below L(e) on the same images
        e <- e + d,  v <- m v + d        (e <- e + m v,  v <- m v  where the velocity's own candidate was best)
        s <- decay * s  where nothing beat L(e)

    The published update adds ``m v + d`` although only ``d`` was evaluated (``coast=False``); here the momentum's step is a
    candidate of its own in the next round, so that every accepted edit was measured. The switches bring back, one by one, what the
    released code does: ``check_incumbent=False`` takes the best direction whatever it costs, ``keep_momentum=False`` and
    ``keep_step=False`` forget velocity and step each round, ``both_signs=False`` looks at +u only (the released code evaluates -u
    too and drops it, so it pays for twice the images), ``same_batch=False`` draws other images for every direction.

    Args:
        start: (p,).
        step: s of the first round.
        seed: of the draws.
        draws: directions a round.
        momentum: m.
        decay: of the step after a round without improvement.
        both_signs, check_incumbent, keep_momentum, keep_step, same_batch, coast: see above.

    References:
        Debiased Noise Editing, MICCAI 2024, arXiv 2403.06104, for the greedy search; antithetic pairs: Nesterov, Spokoiny,
        "Random gradient-free minimization of convex functions", Found. Comput. Math. 17 (2017).

    Example:
        >>> search = GreedySearch(np.ones(2), 0.5, 0)
        >>> for _ in range(60):
        ...     told = search.tell([float(point @ point) for point in search.ask().points])
        >>> bool(search.current @ search.current < 0.01)
        True
    """

    name = "gezo"

    def __init__(
        self,
        start: Array,
        step: float,
        seed: int,
        *,
        draws: int = 10,
        momentum: float = 0.9,
        decay: float = 0.95,
        both_signs: bool = True,
        check_incumbent: bool = True,
        keep_momentum: bool = True,
        keep_step: bool = True,
        same_batch: bool = True,
        coast: bool = True,
    ) -> None:
        super().__init__(start, step, seed)
        self.draws, self.momentum, self.decay = draws, momentum, decay
        self.both_signs, self.check_incumbent, self.same_batch = both_signs, check_incumbent, same_batch
        self.keep_momentum, self.keep_step, self.coast = keep_momentum, keep_step, coast
        self.velocity = np.zeros_like(self.start)

    @property
    def n_points(self) -> int:
        """Directions with their signs, the current point, and the velocity's candidate."""
        return self.draws * (1 + self.both_signs) + self.check_incumbent + (self.coast and self.keep_momentum and self.momentum > 0)

    @property
    def _coasts(self) -> bool:
        """Whether this round has a candidate for the momentum's step."""
        return self.coast and self.keep_momentum and self.momentum > 0 and bool(self.velocity.any())

    def _moves(self) -> tuple[list[Array], list[int]]:
        """The steps from the current point that are tried, and the query batch of each."""
        draws = generator(self.seed, self.name, self.round).standard_normal((self.draws, len(self.start))) * self.step
        moves: list[Array] = []
        batches: list[int] = []
        for number, draw in enumerate(draws):
            signs = (draw, -draw) if self.both_signs else (draw,)
            moves += signs
            batches += [0 if self.same_batch else number] * len(signs)
        if self._coasts:
            moves.append(self.momentum * self.velocity)
            batches.append(0)
        return moves, batches

    def ask(self) -> Asked:
        """The current point (where it is checked), all directions, the momentum's step (where there is one)."""
        moves, batches = self._moves()
        points = [self.current + move for move in moves]
        if self.check_incumbent:
            points, batches = [self.current.copy(), *points], [0, *batches]
        return Asked(points, batches)

    def tell(self, values: Sequence[float]) -> Told:
        """Move to the best candidate, or shrink the step."""
        losses = np.where(np.isfinite(values), values, np.inf)
        own = float(values[0]) if self.check_incumbent else float("nan")
        bar = losses[0] if self.check_incumbent else np.inf
        tried = losses[1:] if self.check_incumbent else losses
        moves, _ = self._moves()
        best, coasts = int(np.argmin(tried)), self._coasts
        accepted = bool(tried[best] < bar)
        if accepted:
            kept = self.momentum * self.velocity if self.keep_momentum else np.zeros_like(self.velocity)
            self.velocity = kept if coasts and best == len(moves) - 1 else kept + moves[best]
            self.current = self.current + (moves[best] if self.coast else self.velocity)
            own = float(tried[best])
        else:
            self.step *= self.decay
        if not self.keep_step:
            self.step = self.first_step
        self.round += 1
        return Told(accepted, own)

    def restart(self, point: Array) -> None:
        """From a point, with the first step and no velocity."""
        super().restart(point)
        self.velocity = np.zeros_like(self.velocity)

    def state(self) -> dict[str, Any]:
        """With the velocity."""
        return {**super().state(), "velocity": torch.from_numpy(self.velocity.copy())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """With the velocity."""
        super().load_state(state)
        self.velocity = np.array(state["velocity"].numpy(), np.float64)


class TwoSided(Strategy):
    """SPSA with Adam: the slope along random signs from two queries each, averaged over draws.

        g = mean_k (L(e + c D_k) - L(e - c D_k)) / (2 c) * D_k,      D_k in {-1, 1}^p
        e <- e - a_t Adam(g),    a_t = lr (1 + t / 20)^-0.602,    c_t = step (1 + t)^-0.101

    E[g] is the gradient up to O(c^2), and exactly the gradient of a quadratic. The exponents are Spall's.

    Args:
        start: (p,).
        step: c of the first round.
        seed: of the signs.
        draws: pairs a round.
        lr: a of the first round.

    References:
        J. Spall, "Implementation of the simultaneous perturbation algorithm for stochastic optimization", IEEE Trans. AES 34 (1998).
        D. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.

    Example:
        >>> search = TwoSided(np.ones(2), 0.1, 0, draws=4, lr=0.2)
        >>> for _ in range(100):
        ...     told = search.tell([float(point @ point) for point in search.ask().points])
        >>> bool(search.current @ search.current < 0.01)
        True
    """

    name = "spsa"
    BETAS = (0.9, 0.99)
    SLOWS_AFTER = 20

    def __init__(self, start: Array, step: float, seed: int, *, draws: int = 10, lr: float = 0.1) -> None:
        super().__init__(start, step, seed)
        self.draws, self.lr = draws, lr
        self.moments = np.zeros((2, len(self.start)))
        self.since = 0

    @property
    def n_points(self) -> int:
        """Two a draw."""
        return 2 * self.draws

    @property
    def exhausted(self) -> bool:
        """Never: gains decay by a schedule."""
        return False

    def _signs(self) -> Array:
        return np.asarray(generator(self.seed, self.name, self.round).integers(0, 2, (self.draws, len(self.start))) * 2.0 - 1.0)

    def ask(self) -> Asked:
        """Both ends of every draw, plus before minus."""
        return Asked([self.current + side * self.step * signs for signs in self._signs() for side in (1, -1)], [0] * self.n_points)

    def estimate(self, values: Sequence[float]) -> Array | None:
        """The slope (p,) from the values of `ask`'s points; pairs with a failed query are left out, None where none is left."""
        pairs = np.asarray(values, np.float64).reshape(-1, 2)
        good = np.isfinite(pairs).all(axis=1)
        if not good.any():
            return None
        slopes = (pairs[good, 0] - pairs[good, 1]) / (2 * self.step)
        return np.asarray(slopes @ self._signs()[good] / good.sum())

    def tell(self, values: Sequence[float]) -> Told:
        """One step of Adam."""
        slope = self.estimate(values)
        if slope is not None:
            first, second = self.BETAS
            rate = self.lr * (1 + self.since / self.SLOWS_AFTER) ** -0.602
            self.since += 1
            self.moments[0] += (1 - first) * (slope - self.moments[0])
            self.moments[1] += (1 - second) * (slope**2 - self.moments[1])
            mean, spread = self.moments[0] / (1 - first**self.since), self.moments[1] / (1 - second**self.since)
            self.current = self.current - rate * mean / (np.sqrt(spread) + 1e-12)
            self.step = self.first_step * (1 + self.since) ** -0.101
        self.round += 1
        return Told(slope is not None, _mean(values))

    def restart(self, point: Array) -> None:
        """From a point, with new moments and gains."""
        super().restart(point)
        self.moments, self.since = np.zeros_like(self.moments), 0

    def state(self) -> dict[str, Any]:
        """With Adam's moments."""
        return {**super().state(), "moments": torch.from_numpy(self.moments.copy()), "since": self.since}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """With Adam's moments."""
        super().load_state(state)
        self.moments, self.since = np.array(state["moments"].numpy(), np.float64), int(state["since"])


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def build_strategy(config: GeZOConfig, start: Array, seed: int) -> Strategy:
    """The strategy that ``config.optimizer`` names, at ``start`` (p,).

    Raises:
        ConfigError: an unknown optimiser, or a first step that is not above 0. A surrogate is made from more than this.
    """
    if config.optimizer == "spsa":
        return TwoSided(start, config.step, seed, draws=config.draws, lr=config.lr)
    if config.optimizer == "cma":
        from evenhand.methods.editing.evolution import Evolution

        return Evolution(start, config.step, seed, population=config.population)
    if config.optimizer != "gezo":
        raise ConfigError(f"optimizer is '{config.optimizer}'; {nearest(config.optimizer, OPTIMIZERS)}")
    return GreedySearch(
        start, config.step, seed, draws=config.draws, momentum=config.momentum, decay=config.step_decay,
        both_signs=config.both_signs, check_incumbent=config.check_incumbent, keep_momentum=config.keep_momentum,
        keep_step=config.keep_step, same_batch=config.same_batch, coast=config.coast,
    )  # fmt: skip
