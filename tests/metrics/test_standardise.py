"""Standardisation weights: the groups get the pooled mix, within what they share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics.standardise import effective_units, standard_weights


@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_weighted_groups_have_the_pooled_mix_and_their_own_size(k: int, s: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (k, s, 3)).astype(float)
    block = rng.integers(0, 2, s)
    found = standard_weights(counts, block)
    weighted = found.ratio * counts
    for b in range(3):
        for number in np.unique(block):
            inside = (block == number) & (found.shared[:, b] > 0)
            assert (found.shared[block == number, b] == (counts[:, block == number, b] > 0).all(axis=0)).all()
            if not inside.any():
                assert (weighted[:, block == number, b] == 0).all()
                continue
            pooled = counts[:, inside, b].sum(axis=0)
            for own, new in zip(counts[:, inside, b], weighted[:, inside, b], strict=True):
                assert new == pytest.approx(own.sum() * pooled / pooled.sum())
            total = counts[:, block == number, b].sum()
            assert found.coverage[number, b] == pytest.approx(pooled.sum() / total)


def test_equal_mixes_change_nothing() -> None:
    counts = np.array([[[30.0], [10.0]], [[3.0], [1.0]]])
    assert standard_weights(counts, np.zeros(2, int)).ratio == pytest.approx(1.0)


def test_no_overlap_covers_nothing() -> None:
    found = standard_weights(np.array([[[5.0], [0.0]], [[0.0], [5.0]]]), np.zeros(2, int))
    assert found.coverage.max() == 0
    assert (found.ratio == 0).all()


def test_nobody_has_no_effective_number() -> None:
    assert effective_units(np.zeros(3)) == 0.0
