"""The closed forms against simulation, and against cases that can be solved by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evenhand.data.synthetic import SyntheticConfig, dependence, make_table
from evenhand.data.synthetic_theory import ExpectedPerformance, expected_performance, joint_distribution

NOISY = SyntheticConfig(
    n_patients=60_000,
    images_per_patient=(1, 1),
    prevalence={"a": 0.6, "b": 0.2, "c": 0.1},
    group_shares={"a": 0.3, "b": 0.5, "c": 0.2},
    traced_groups=("a", "c"),
    fidelity=0.85,
    label_noise={"a": 0.25, "b": 0.05},
    fractions=(0.4, 0.2, 0.4),
)


def simulated(table: pd.DataFrame, score: np.ndarray, twin: np.ndarray, threshold: float) -> ExpectedPerformance:
    """What sklearn and counting say of scores on a drawn table."""
    y, group = table["label"].to_numpy(), table["group"].to_numpy()
    rates = {g: [float((score[(group == g) & (y == v)] >= threshold).mean()) for v in (0, 1)] for g in sorted(set(group))}
    values = np.array(list(rates.values()))
    shift = dependence(score, twin, threshold)
    return ExpectedPerformance(
        auc=roc_auc_score(y, score),
        group_auc={g: roc_auc_score(y[group == g], score[group == g]) for g in rates},
        tpr={g: r[1] for g, r in rates.items()},
        fpr={g: r[0] for g, r in rates.items()},
        equalized_odds=float((values.max(0) - values.min(0)).max()),
        flip_rate=shift.flip_rate,
        score_shift=shift.score_shift,
    )


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("model", ["perfect", "optimal", "shortcut"])
def test_closed_form_agrees_with_simulation(model: str, balanced: bool) -> None:
    config = dataclasses.replace(NOISY, balanced_test=balanced)
    table = make_table(config)
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    keys = {"perfect": ["disease"], "optimal": ["disease", "trace"], "shortcut": ["trace"]}[model]
    risk = train.groupby(keys)["label"].mean()  # learned from the drawn rows, not from the formula

    def score(rows: pd.DataFrame) -> np.ndarray:
        if model == "perfect":
            return rows["disease"].to_numpy(float)
        return np.array([risk[key if len(keys) > 1 else key[0]] for key in rows[keys].itertuples(index=False, name=None)])

    threshold = float(risk.max()) if model == "shortcut" else 0.5
    found = simulated(test, score(test), score(test.assign(trace=1 - test["trace"])), threshold)
    expected = expected_performance(config)[model]
    for field in dataclasses.fields(ExpectedPerformance):
        assert getattr(found, field.name) == pytest.approx(getattr(expected, field.name), abs=0.03), field.name


@given(
    prevalence=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)),
    fidelity=st.floats(0.5, 1.0),
    noise=st.floats(0.0, 0.4),
)
@settings(max_examples=15, deadline=None)
def test_by_hand_in_a_balanced_test(prevalence: tuple[float, float], fidelity: float, noise: float) -> None:
    config = SyntheticConfig(
        prevalence={"A": prevalence[0], "B": prevalence[1]}, fidelity=fidelity, label_noise={"A": noise, "B": noise}
    )
    assert joint_distribution(config, "test").sum() == pytest.approx(1)
    found = expected_performance(config)
    # Label noise alone keeps the perfect model from 1: AUC = (1 + TPR - FPR) / 2.
    p = sum(prevalence) / 2
    tpr = p * (1 - noise) / (p * (1 - noise) + (1 - p) * noise)
    fpr = p * noise / (p * noise + (1 - p) * (1 - noise))
    assert found["perfect"].auc == pytest.approx((1 + tpr - fpr) / 2)
    assert found["perfect"].equalized_odds == pytest.approx(0, abs=1e-9)
    assert found["perfect"].flip_rate == 0
    assert found["shortcut"].auc == pytest.approx(0.5)
    if abs(prevalence[0] - prevalence[1]) > 1e-3 and fidelity > 0.51 and noise < 0.39:
        assert found["shortcut"].equalized_odds == pytest.approx(2 * fidelity - 1)
        assert found["shortcut"].flip_rate == pytest.approx(1)


def test_a_class_that_never_occurs_is_nan_not_zero() -> None:
    found = expected_performance(SyntheticConfig(prevalence={"A": 0.0, "B": 0.0}))["perfect"]
    assert np.isnan(found.auc)
    assert np.isnan(found.tpr["A"])


def test_without_a_correlation_the_shortcut_is_worth_nothing_anywhere() -> None:
    config = SyntheticConfig(prevalence={"A": 0.3, "B": 0.3}, balanced_test=False)
    for split in ("train", "val", "test"):
        found = expected_performance(config, split)["shortcut"]
        assert found.auc == pytest.approx(0.5)
        assert found.score_shift == pytest.approx(0, abs=1e-12)
