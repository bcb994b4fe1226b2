"""Limits of gaps: Newcombe's for two groups, coverage by simulation, and what does not depend on order or scale."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics.gap_limits import Side, gap_limits, nearest
from evenhand.metrics.intervals import newcombe, score_limits

Z = NormalDist().inv_cdf(0.975)


def _side(values: object, error: object) -> Side:
    errors = np.broadcast_to(np.asarray(error, float), np.shape(values)).copy()
    return Side(np.asarray(values, float), errors, errors)


def test_two_shares_have_newcombes_limits() -> None:
    shares, sizes = (0.9, 0.55), (40, 60)
    limits = [score_limits(share, n, Z) for share, n in zip(shares, sizes, strict=True)]
    down, up = np.array([[v - low, high - v] for v, (low, high) in zip(shares, limits, strict=True)]).T / Z
    found = gap_limits([Side(np.array(shares), down, up)], 3.0, 0.95, 1.0)
    assert found == pytest.approx(newcombe(shares[0], sizes[0], shares[1], sizes[1]), abs=0.004)


def test_a_group_in_the_middle_changes_nothing_when_the_gap_is_large() -> None:
    two, three = (gap_limits([_side(values, 0.03)], 5.0, 0.95, 1.0) for values in ([0.9, 0.4], [0.9, 0.65, 0.4]))
    assert three == pytest.approx(two, abs=0.004)


def test_many_contenders_for_an_end_lower_the_lower_limit_only() -> None:
    alone, crowded = (gap_limits([_side(values, 0.03)], 5.0, 0.95, 1.0) for values in ([0.9, 0.5], [0.9, 0.9, 0.9, 0.9, 0.5]))
    assert crowded[0] < alone[0] - 0.005
    assert crowded[1] == pytest.approx(alone[1])


@given(st.integers(0, 10_000), st.integers(2, 7), st.floats(0.2, 4.0))
@settings(max_examples=15, deadline=None)
def test_invariants(seed: int, k: int, excess: float) -> None:
    rng = np.random.default_rng(seed)
    values, error = rng.normal(size=k), rng.uniform(0.1, 1.0, k)
    lower, upper = gap_limits([_side(values, error)], excess, 0.95, np.inf)
    assert 0 <= lower <= np.ptp(values) <= upper
    assert (lower > 0) == (excess > 1)
    assert gap_limits([_side(10 + 3 * values, 3 * error)], excess, 0.95, np.inf) == pytest.approx((3 * lower, 3 * upper), abs=1e-8)
    wider = gap_limits([_side(values, error)], excess, 0.99, np.inf)
    assert wider[1] > upper
    assert wider[0] <= lower + 0.02 * np.ptp(values)


def test_limits_are_cut_to_the_scale_and_open_where_a_side_is() -> None:
    assert gap_limits([_side([0.9, 0.1], 0.3)], 1.5, 0.95, 1.0)[1] == 1.0
    side = Side(np.array([0.0, -3.0]), np.array([0.2, np.inf]), np.array([0.2, 1.0]))
    lower, upper = gap_limits([side], 1.4, 0.95, np.inf)
    assert upper == np.inf
    assert 0 < lower < 3


def test_nearest_values_have_the_gap_asked_for() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        side = _side(rng.normal(size=6), rng.uniform(0.05, 0.4, 6))
        delta = side.span * rng.uniform(0.05, 0.95)
        placed, top = nearest(side, delta)
        assert np.ptp(placed) == pytest.approx(delta, rel=1e-6)
        assert placed[top].min() >= placed[~top].max()


def test_the_larger_of_two_gaps_leaves_the_upper_limits_share_to_the_lower() -> None:
    """Each of two equal gaps may miss at 2.5% below, as neither upper limit alone can miss for both."""
    one, other = _side([0.9, 0.6], 0.04), _side([0.5, 0.24], 0.04)
    both, alone = gap_limits([one, other], 3.0, 0.95, 1.0), gap_limits([one], 3.0, 0.95, 1.0)
    assert both[0] == pytest.approx(alone[0], abs=0.004)
    assert both[1] == alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["one", "half", "ladder"])
@pytest.mark.parametrize("k", [2, 4, 8])
def test_limits_of_true_gaps_cover_in_93_to_97_of_100(k: int, shape: str) -> None:
    """Over gaps of 1 to 5 standard errors and group sizes that differ tenfold; the bars leave room for 400 draws."""
    place = {"one": np.eye(k)[0], "half": np.arange(k) % 2, "ladder": np.linspace(0, 1, k)}[shape]
    error, rng, covered, runs = np.exp(np.linspace(0, np.log(3), k)) / 3, np.random.default_rng(5), 0, 400
    pairs = np.hypot(error[:, None], error[None, :])
    noise = rng.normal(size=(k, 4000)) * error[:, None]
    critical = np.quantile((np.abs(noise[:, None] - noise[None, :]) / pairs[:, :, None]).max(axis=(0, 1)), 0.95)
    for run in range(runs):
        delta = (1.0, 2.0, 3.0, 5.0)[run % 4]
        values = delta * place + error * rng.normal(size=k)
        excess = float((np.abs(values[:, None] - values[None, :]) / pairs).max() / critical)
        lower, upper = gap_limits([_side(values, error)], excess, 0.95, np.inf)
        covered += lower <= delta <= upper
    assert 0.92 <= covered / runs <= 0.987
