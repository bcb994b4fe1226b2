"""Influences against the clustered moments of a cell, the bootstrap, and a hand-made case."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evenhand.metrics.bootstrap import draw_weights
from evenhand.metrics.cells import make_cell
from evenhand.metrics.influence import INFLUENCES, Rows, difference_variance, influences, t_test


def _rows(n: int = 300, seed: int = 0, images: int = 3) -> Rows:
    rng = np.random.default_rng(seed)
    unit = np.sort(rng.integers(0, n // images, n))
    y = rng.integers(0, 2, n)
    score = np.round(np.clip(0.3 * y + 0.7 * rng.random(n), 0.01, 0.99), 2)
    return Rows(y, score, (score > 0.5).astype(float), unit)


def test_value_and_variance_are_those_of_a_cell() -> None:
    rows = _rows()
    use = rows.unit % 2 == 0
    found = influences(rows, use, INFLUENCES)
    cell = make_cell(rows.y_true[use], rows.y_score[use], rows.decision[use], rows.unit[use])
    moments = cell.moments(tuple(name for name in INFLUENCES if name != "auc"))
    for name, (value, variance) in moments.items():
        assert found[name].value == pytest.approx(float(value[0]))
        assert found[name].variance == pytest.approx(float(variance[0]))
        assert found[name].units == cell.denominator(name)[1]


@pytest.mark.parametrize("images", [1, 4])
def test_auc_variance_is_the_bootstraps(images: int) -> None:
    rows = _rows(400, 1, images)
    found = influences(rows, np.ones(400, bool), ("auc",))["auc"]
    cell = make_cell(rows.y_true, rows.y_score, rows.decision, rows.unit)
    draws = cell.values(("auc",), draw_weights(np.zeros(rows.n_units, np.int64), 3000, np.random.default_rng(2)))["auc"]
    assert found.value == pytest.approx(float(cell.values(("auc",))["auc"][0]))
    assert found.variance**0.5 == pytest.approx(draws.std(), rel=0.06)


def test_a_difference_with_itself_has_no_variance_and_with_a_part_that_of_the_bootstrap() -> None:
    rows = _rows(600, 3)
    whole, part = np.ones(600, bool), np.arange(600) < 420
    one, other = (influences(rows, use, ("tpr",))["tpr"] for use in (whole, part))
    assert difference_variance(one, one)[0] == pytest.approx(0.0, abs=1e-15)
    cells = [make_cell(rows.y_true[use], rows.y_score[use], rows.decision[use], rows.unit[use]) for use in (whole, part)]
    weights = draw_weights(np.zeros(rows.n_units, np.int64), 3000, np.random.default_rng(4))
    draws = np.subtract(*(cell.values(("tpr",), weights)["tpr"] for cell in cells))
    assert difference_variance(one, other)[0] ** 0.5 == pytest.approx(draws.std(), rel=0.08)


def test_welch() -> None:
    """One image a patient: the t-test of decisions among positives."""
    rows = Rows(np.ones(60, int), np.full(60, 0.5), (np.arange(60) % 3 > 0).astype(float), np.arange(60))
    use = np.arange(60) < 25
    one, other = (influences(rows, part, ("tpr",))["tpr"] for part in (use, ~use))
    variance, free = difference_variance(one, other)
    *_, p = t_test(one.value - other.value, variance, free, 0.95)
    expected = stats.ttest_ind(rows.decision[use], rows.decision[~use], equal_var=False)
    assert p == pytest.approx(expected.pvalue)
    assert free == pytest.approx(expected.df)


def test_undefined_metrics() -> None:
    rows = Rows(np.ones(5, int), np.full(5, 0.5), np.ones(5), np.arange(5))
    found = influences(rows, np.ones(5, bool), ("auc", "fpr"))
    assert np.isnan(found["auc"].value)
    assert np.isnan(found["fpr"].value)
    assert (found["auc"].units, found["fpr"].units) == (0, 0)
    assert t_test(0.0, 0.0, 5, 0.95)[2] == 1.0
