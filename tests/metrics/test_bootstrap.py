"""Bootstrap weights: sizes of groups stay, threads change nothing, spreads are right."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.metrics import bootstrap_blocks, draw_weights, percentile_interval
from evenhand.metrics.bootstrap import in_threads


def test_every_group_keeps_its_size() -> None:
    strata = np.array([0] * 7 + [1] * 3 + [9] * 1)
    weights = draw_weights(strata, 50, np.random.default_rng(0))
    for stratum in (0, 1, 9):
        assert (weights[strata == stratum].sum(axis=0) == (strata == stratum).sum()).all()
    assert weights[:7].std() > 0.5


def test_the_number_of_threads_changes_nothing() -> None:
    strata = np.arange(5000) % 3

    def run(threads: int) -> np.ndarray:
        return np.concatenate(list(bootstrap_blocks(lambda w: np.arange(5000) @ w, strata, 300, 7, "x", threads=threads)))

    assert len(run(1)) == 300
    assert (run(1) == run(4)).all()


def test_another_purpose_has_other_draws() -> None:
    strata = np.zeros(20, int)
    first, second = (next(bootstrap_blocks(lambda w: w, strata, 8, 0, name)) for name in ("sex", "age"))
    assert (first != second).any()


def test_standard_error_of_a_mean() -> None:
    x = np.random.default_rng(0).normal(size=400)
    means = np.concatenate(list(bootstrap_blocks(lambda w: x @ w / w.sum(axis=0), np.zeros(400, int), 2000, 0)))
    assert means.std() == pytest.approx(x.std() / 20, rel=0.06)


def test_failed_replicates_are_counted_and_left_out() -> None:
    low, high, failed = percentile_interval(np.array([np.nan, 1.0, 2.0, 3.0]), 0.9)
    assert (low, high, failed) == (pytest.approx(1.1), pytest.approx(2.9), 1)
    assert percentile_interval(np.array([np.nan]), 0.9)[2] == 1


def test_matrix_products_keep_to_their_thread_and_the_setting_comes_back() -> None:
    from threadpoolctl import threadpool_info

    def blas_threads(_: object) -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = blas_threads(None)
    assert all(set(found) <= {1} for found in in_threads(blas_threads, range(3), 2))
    assert blas_threads(None) == before
