"""The normal limit of the studentised maximum against permutations, and where it may stand in for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate
from evenhand.metrics import critical_value, make_cell, null_maxima
from evenhand.metrics.gaps import GroupValue
from evenhand.metrics.large_groups import EVENTS, LARGE, is_large, normal_maxima, shared_by_rates

GROUPS = 3


def rows(n: int, images: int, seed: int = 0) -> tuple[Any, Any]:
    """(a cell, group of each unit); a patient's images share an effect, and are of either class."""
    rng = np.random.default_rng(seed)
    unit = np.arange(n) // images
    y = (rng.random(n) < 0.4).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * rng.normal(size=n // images)[unit] + 1.5 * y - 0.7)))
    return make_cell(y, score, (score >= 0.5).astype(int), unit), np.arange(n // images) % GROUPS


def members(cell: Any, codes: Any, metrics: tuple[str, ...]) -> dict[str, list[GroupValue]]:
    found: dict[str, list[GroupValue]] = {}
    for group in range(GROUPS):
        for name, (value, variance) in cell.moments(metrics, (codes == group).astype(float)[:, None]).items():
            one = GroupValue(str(group), float(value[0]), float(variance[0]), int((codes == group).sum()), 1, None, None, None, None)
            found.setdefault(name, []).append(one)
    return found


@pytest.mark.parametrize("images", [1, 2])
def test_quantiles_are_those_of_permutations(images: int) -> None:
    cell, codes = rows(6000, images)
    metrics = ("auc", "tpr", "fpr", "positive_rate", "brier")
    every = {name: np.arange(GROUPS) for name in metrics}
    permuted = null_maxima(cell, codes, every, dict.fromkeys(metrics, 600), np.random.default_rng(1))
    shared = shared_by_rates(cell, codes, {str(group): group for group in range(GROUPS)})
    drawn = normal_maxima(members(cell, codes, metrics), dict.fromkeys(metrics, 4000), np.random.default_rng(2), shared=shared)
    for name in (*metrics, "log_positive_rate"):
        assert critical_value(drawn[name], 0.95) == pytest.approx(critical_value(permuted[name], 0.95), abs=0.3), name
    both, other = (np.maximum(null["tpr"], null["fpr"]) for null in (drawn, permuted))
    assert critical_value(both, 0.95) == pytest.approx(critical_value(other, 0.95), abs=0.3)


def test_rates_of_the_same_patients_are_drawn_together() -> None:
    cell, codes = rows(6000, 3)
    shared = shared_by_rates(cell, codes, {"0": 0, "1": 1, "2": 2})
    influence: dict[str, Any] = {}
    tp, fn, fp, tn = cell.sums[codes == 0, :4].T
    influence["tpr"], influence["fpr"] = tp - tp.sum() / (tp + fn).sum() * (tp + fn), fp - fp.sum() / (fp + tn).sum() * (fp + tn)
    by_hand = float(influence["tpr"] @ influence["fpr"] / np.sqrt((influence["tpr"] ** 2).sum() * (influence["fpr"] ** 2).sum()))
    assert shared["0"] == pytest.approx(by_hand, abs=0.01)
    assert by_hand > 0.2
    drawn = normal_maxima(members(cell, codes, ("tpr", "fpr")), {"tpr": 4000, "fpr": 4000}, np.random.default_rng(0), shared=shared)
    assert np.corrcoef(drawn["tpr"], drawn["fpr"])[0, 1] > 0.05


def test_images_of_their_own_patients_share_nothing() -> None:
    cell, codes = rows(600, 1)
    assert shared_by_rates(cell, codes, {"0": 0}) == {}


def test_small_groups_and_rare_events_are_not_large() -> None:
    assert is_large("tpr", 0.5, LARGE)
    assert not is_large("tpr", 0.5, LARGE - 1)
    assert not is_large("tpr", EVENTS / LARGE / 2, LARGE)
    assert not is_large("ece_corrected", 0.1, 10**6)


def test_mirrors_have_the_same_null() -> None:
    cell, codes = rows(600, 1)
    inside = members(cell, codes, ("tpr", "fnr", "tnr"))
    drawn = normal_maxima(inside, dict.fromkeys(inside, 50), np.random.default_rng(0), shared={})
    assert np.array_equal(drawn["tpr"], drawn["fnr"])
    assert set(drawn) == {"tpr", "fnr", "tnr"}


def test_an_audit_says_where_the_limit_was_taken() -> None:
    import pandas as pd

    cell, codes = rows(45_000, 1)
    frame = pd.DataFrame({"patient_id": np.arange(45_000), "y_true": cell.y_true, "y_score": cell.y_score, "sex": codes.astype(str)})
    config = AuditConfig(threshold="0.5", metrics=["auc", "tpr", "fpr", "ece"], bootstrap=0, permutations=19, details=False, bounds=False)
    found = evaluate(frame, labels=["label"], attributes=["sex"], config=config).to_json()
    assert found["provenance"]["tests"]["normal"] == {"label/sex": ["auc", "tpr", "fpr"]}
    gaps = found["labels"]["label"]["attributes"]["sex"]["gaps"]
    assert all((gaps[name]["lower"] == 0) == (gaps[name]["p"] >= 0.05) for name in ("auc", "tpr", "fpr", "equalized_odds"))
