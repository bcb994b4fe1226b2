"""Net benefit by hand, in a cell, and where it is not defined."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.errors import ConfigError
from evenhand.metrics import make_cell, net_benefit

Y = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
D = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0])


def test_by_hand() -> None:
    assert net_benefit(Y, D, 0.2) == pytest.approx(2 / 10 - 1 / 10 * 0.25)
    assert net_benefit(Y, np.ones(10), 0.3) == pytest.approx(0.3 - 0.7 * 0.3 / 0.7)
    assert net_benefit(Y, np.zeros(10), 0.9) == 0
    assert net_benefit(Y, D, 0.5, weight=[0, 1, 1, 2, 0, 0, 0, 0, 0, 0]) == pytest.approx((1 - 2) / 4)
    assert np.isnan(net_benefit([], [], 0.5))


def test_a_cell_has_value_replicates_and_clustered_variance() -> None:
    unit = np.arange(10) // 2
    cell = make_cell(Y, D.astype(float), D, unit, threshold=0.2)
    weights = np.random.default_rng(0).poisson(1.0, (5, 6)).astype(float)
    found = cell.values(("net_benefit",), weights)["net_benefit"]
    assert found == pytest.approx([net_benefit(Y, D, 0.2, weights[unit, k]) for k in range(6)], nan_ok=True)
    value, variance = cell.moments(("net_benefit",))["net_benefit"]
    gain = np.where(D == 1, np.where(Y == 1, 1.0, -0.25), 0.0) - value[0]
    by_unit = np.bincount(unit, gain)
    assert variance[0] == pytest.approx(5 / 4 * (by_unit**2).sum() / 100)
    assert cell.denominator("net_benefit") == (10, 5)


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_it_is_not_defined_without_odds(threshold: float | None) -> None:
    cell = make_cell(Y, D.astype(float), D, np.arange(10), threshold=threshold)
    assert np.isnan(cell.values(("net_benefit",))["net_benefit"][0])
    assert "threshold" in cell.why_undefined("net_benefit")


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the threshold is 1, but net benefit needs one in \[0, 1\)"):
        net_benefit(Y, D, 1.0)
