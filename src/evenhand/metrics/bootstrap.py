"""Patient-clustered bootstrap: patients are drawn with replacement within their group, all images of a patient together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from evenhand.random import generator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Block = TypeVar("Block")
Item = TypeVar("Item")

_BLOCK_ENTRIES = 1_000_000


def processors() -> int:
    """Processors this process may use: the default number of threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def block_sizes(n_replicates: int, n_units: int) -> list[int]:
    """Replicates per block: a function of the data's size only, so that results do not depend on threads or memory."""
    size = int(np.clip(_BLOCK_ENTRIES // max(n_units, 1), 8, 128))
    return [min(size, n_replicates - start) for start in range(0, n_replicates, size)]


def draw_weights(strata: IntArray, n_replicates: int, rng: np.random.Generator) -> FloatArray:
    """How often each unit is drawn: in every stratum as many draws with replacement as it has units.

    Args:
        strata: (u,) stratum of each unit. Drawing within the groups keeps every group's size, so that a small group
            stays estimable in every replicate.
        n_replicates: number of columns.
        rng: source of randomness.

    Returns:
        (u, n_replicates) float64; every stratum's columns sum to its size.
    """
    weights = np.zeros((len(strata), n_replicates))
    for stratum in np.unique(strata):
        units = np.flatnonzero(strata == stratum)
        # One replicate after another: a replicate's counts stay in the processor's cache while they are made.
        draws = rng.integers(0, len(units), (n_replicates, len(units)))
        draws += np.arange(n_replicates)[:, None] * len(units)
        counts = np.bincount(draws.ravel(), minlength=len(units) * n_replicates)
        weights[units] = counts.reshape(n_replicates, len(units)).T
    return weights


def bootstrap_blocks(
    statistic: Callable[[FloatArray], Block], strata: IntArray, n_replicates: int, seed: int, *names: str | int, threads: int = 1
) -> Iterator[Block]:
    """Apply a statistic to blocks of bootstrap weights, in order.

    Every block has its own generator derived from the seed, so the result is the same whatever the number of threads.

    Args:
        statistic: weights (u, b) -> anything; called once a block.
        strata: (u,) stratum of each unit.
        n_replicates: bootstrap replicates in all.
        seed: the audit's seed.
        names: what the stream is for.
        threads: blocks computed at a time.

    Yields:
        The statistic of each block.
    """

    def one(block: tuple[int, int]) -> Block:
        number, size = block
        return statistic(draw_weights(strata, size, generator(seed, "bootstrap", *names, number)))

    yield from in_threads(one, enumerate(block_sizes(n_replicates, len(strata))), threads)


def in_threads(function: Callable[[Item], Block], items: Iterable[Item], threads: int) -> Iterator[Block]:
    """``map`` on several threads, in order; NumPy and SciPy let go of the interpreter while they compute.

    Meanwhile matrix products keep to the thread that asks for them: threads of their own would get into the way of ours
    (several times the processor time), and would make the last digits depend on their number.
    """
    with _blas().limit(limits=1, user_api="blas"):
        if threads <= 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(function, items)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def percentile_interval(replicates: FloatArray, confidence: float) -> tuple[float, float, int]:
    """(lower, upper, failed): the percentiles of the finite replicates, and how many were not finite.

    Example:
        >>> percentile_interval(np.array([0.1, 0.2, 0.3, np.nan]), 0.5)
        (0.15000000000000002, 0.25, 1)
    """
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return float("nan"), float("nan"), len(replicates)
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), len(replicates) - len(finite)
