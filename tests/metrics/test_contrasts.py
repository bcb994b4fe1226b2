"""Permuted tests of many groups: the draws are real permutations, and the adjustment is Westfall and Young's."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.metrics.contrasts import Contrast, null_p_values, parts_of, step_down
from evenhand.metrics.influence import Rows, difference_variance, influences, t_test
from evenhand.metrics.permutation import permute_groups


def _case(n_patients: int = 60, k: int = 3, seed: int = 0) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n_patients), rng.integers(1, 4, n_patients))
    y = rng.integers(0, 2, len(unit))
    score = np.round(np.clip(0.3 * y + 0.7 * rng.random(len(unit)), 0.01, 0.99), 2)
    return Rows(y, score, (score > 0.5).astype(float), unit), rng.integers(0, k, n_patients)


def _membership(codes: np.ndarray, k: int) -> np.ndarray:
    return np.vstack([codes[None] == np.arange(k)[:, None], codes[None] >= 0])


@pytest.mark.parametrize("metric", ["tpr", "balanced_accuracy", "accuracy", "f1"])
def test_one_draw_is_the_test_of_the_shuffled_groups(metric: str) -> None:
    """With a single test and the draw's own order, the p is that of the observed formula on shuffled groups."""
    rows, codes = _case()
    tests = [Contrast(metric, 1, 3)]
    null = null_p_values(parts_of(rows, [metric]), _membership(codes, 3), tests, 200, np.random.default_rng(1))[0]
    rng, expected = np.random.default_rng(1).spawn(1)[0], []
    if metric in ("accuracy", "f1"):
        strata = np.zeros(len(codes), int)
    else:
        parts = parts_of(rows, [metric])[metric]
        strata = np.unique(np.stack([part.bottom > 0 for part in parts]), axis=1, return_inverse=True)[1].ravel()
    # kinds of units are numbered by their memberships as binary numbers, in which the first group is the leading digit
    for moved in 2 - permute_groups(2 - codes, strata, 200, rng).T:
        one, other = (influences(rows, use, (metric,))[metric] for use in ((moved == 1)[rows.unit], (moved != 1)[rows.unit]))
        variance, free = difference_variance(one, other)
        expected.append(t_test(one.value - other.value, variance, free, 0.95)[2])
    assert null == pytest.approx(np.array(expected), abs=1e-9)


def test_the_linearised_auc_is_close_to_the_auc() -> None:
    rows, codes = _case(400, 2, 3)
    null = null_p_values(parts_of(rows, ["auc"]), _membership(codes, 2), [Contrast("auc", 0, 2)], 400, np.random.default_rng(0))[0]
    assert abs((null < 0.05).mean() - 0.05) < 0.04
    assert abs(null.mean() - 0.5) < 0.06


def test_step_down_by_hand() -> None:
    null = np.array([[0.01, 0.5, 0.5, 0.5], [0.5, 0.02, 0.5, 0.5], [0.5, 0.5, 0.001, 0.5]])
    single, adjusted = step_down(np.array([0.005, 0.02, 0.9]), null)
    assert single == pytest.approx([1 / 5, 2 / 5, 5 / 5])
    assert adjusted == pytest.approx([2 / 5, 3 / 5, 5 / 5])
    assert (adjusted >= single - 1e-12).all()


def test_draws_depend_on_the_generator_only() -> None:
    rows, codes = _case()
    run = [
        null_p_values(parts_of(rows, ["tpr"]), _membership(codes, 3), [Contrast("tpr", 0, 3)], 50, np.random.default_rng(s))
        for s in (1, 1, 2)
    ]
    assert (run[0] == run[1]).all()
    assert (run[0] != run[2]).any()


@pytest.mark.slow
def test_a_false_claim_is_rare_with_small_groups() -> None:
    """Eight groups of 40 patients, no true difference: at most 7% of audits claim one (5% plus the binomial limit)."""
    claims = 0
    for seed in range(300):
        rows, _ = _case(320, 8, seed)
        codes = np.repeat(np.arange(8), 40)
        tests, observed = [], []
        for group in range(8):
            here, there = (influences(rows, use[rows.unit], ("auc", "tpr", "fpr")) for use in (codes == group, codes != group))
            for name in here:
                variance, free = difference_variance(here[name], there[name])
                tests.append(Contrast(name, group, 8))
                observed.append(t_test(here[name].value - there[name].value, variance, free, 0.95)[2])
        null = null_p_values(parts_of(rows, ["auc", "tpr", "fpr"]), _membership(codes, 8), tests, 300, np.random.default_rng(seed))
        claims += step_down(np.array(observed), null)[1].min() < 0.05
    assert claims / 300 <= 0.07 + 0.015
