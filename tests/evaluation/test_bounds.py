"""Bounds under missing attributes: patients move together, against every assignment of a small table."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from evenhand.data.groups import Groups
from evenhand.evaluation.bounds import _widened, gap_bounds, settle
from evenhand.evaluation.cohort import Question
from evenhand.metrics.auc import auc
from evenhand.metrics.bounds import GapBounds
from evenhand.metrics.gaps import Gap
from evenhand.metrics.rates import rates

NAMES = ("auc", "tpr", "fpr", "ppv", "accuracy", "balanced_accuracy", "f1", "positive_rate", "brier", "log_loss")
COMBINED = ("equalized_odds", "equalized_odds_mean", "equal_opportunity", "demographic_parity", "demographic_parity_ratio")


def _question(n: int, seed: int) -> Question:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.5).astype(float)
    score = np.clip(np.round(0.3 * y + 0.7 * rng.random(n), 1), 0.05, 0.95)
    return Question("y", y, score, (score >= 0.5).astype(float), {})


def _gaps(question: Question, codes: np.ndarray, k: int) -> dict[str, float]:
    """Every gap of complete groups."""
    by_group = []
    for code in range(k):
        rows = codes == code
        y, s, d = question.y_true[rows], question.y_score[rows], question.decision[rows]
        by_group.append({**rates(y, s, d), "auc": auc(y, s)})
    found = {name: np.ptp([values[name] for values in by_group]) for name in NAMES}
    flagged = [values["positive_rate"] for values in by_group]
    found["equalized_odds"] = max(found["tpr"], found["fpr"])
    found["equalized_odds_mean"] = (found["tpr"] + found["fpr"]) / 2
    found["equal_opportunity"], found["demographic_parity"] = found["tpr"], found["positive_rate"]
    found["demographic_parity_ratio"] = min(flagged) / max(flagged)
    return found


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_against_every_assignment(k: int, images: int) -> None:
    free, n = 7 - k, 40
    question = _question(n, k + images)
    patient = np.arange(n) // images
    codes = (patient % k).astype(np.int64)
    codes[patient < free] = -1
    every = []
    for places in product(range(k), repeat=free):
        full = codes.copy()
        full[patient < free] = np.array(places)[patient[patient < free]]
        every.append(_gaps(question, full, k))
    gaps = {name: Gap(value=0.1, lower=0.02, upper=0.3) for name in (*NAMES, *COMBINED)}
    found = gap_bounds(question, Groups("a", tuple("xyz"[:k]), codes), patient, gaps)
    assert set(found) == set(gaps)
    for name, bounds in found.items():
        values = [item[name] for item in every if np.isfinite(item[name])]
        assert bounds["lower"] <= min(values) + 1e-9, name
        assert bounds["upper"] >= max(values) - 1e-9, name
        if bounds["upper_exact"]:
            assert bounds["upper"] == pytest.approx(max(values), abs=1e-9), name
        if bounds["lower_exact"]:
            assert bounds["lower"] == pytest.approx(min(values), abs=1e-9), name
        assert (bounds["n_missing"], bounds["n_missing_patients"]) == (free * images, free)
    exact = {name for name, bounds in found.items() if bounds["upper_exact"]}
    assert {"tpr", "fpr", "ppv", "accuracy", "f1", "positive_rate", "brier", "equalized_odds"} <= exact
    assert images > 1 or k > 2 or "auc" in exact


def test_a_patient_known_elsewhere_is_not_missing() -> None:
    question = _question(40, 0)
    patient = np.arange(40) // 2
    codes = (patient % 2).astype(np.int64)
    reported = _gaps(question, codes, 2)
    codes[::4] = -1
    found = gap_bounds(question, Groups("a", ("x", "y"), codes), patient, {"tpr": Gap(value=0.1)})
    assert found["tpr"]["lower"] == pytest.approx(reported["tpr"])
    assert found["tpr"]["upper"] == pytest.approx(reported["tpr"])
    assert (found["tpr"]["n_missing"], found["tpr"]["n_resolved"], found["tpr"]["exact"]) == (0, 10, True)
    assert found["tpr"]["interval"] is None


def test_known_in_two_groups_is_free() -> None:
    assert settle(np.array([0, 1, -1]), np.array([0, 0, 0])).tolist() == [0, 1, -1]


def test_nothing_missing_has_no_bounds() -> None:
    question = _question(20, 0)
    assert gap_bounds(question, Groups("a", ("x", "y"), np.arange(20) % 2), np.arange(20), {"tpr": Gap(value=0.1)}) == {}


def test_groups_that_did_not_enter_can_still_receive_patients() -> None:
    question = _question(60, 1)
    codes = (np.arange(60) % 3).astype(np.int64)
    codes[:12] = -1
    groups = Groups("a", ("x", "y", "z"), codes)
    part = Gap(value=0.1, excluded=({"group": "z", "reason": "few", "n": 1},))
    found = gap_bounds(question, groups, np.arange(60), {"tpr": part, "auc": Gap(reason="1 of 3 groups can be estimated")})
    assert set(found["tpr"]["groups"]) == {"x", "y"}
    assert found["auc"]["lower"] is None
    assert "1 of 3" in found["auc"]["reason"]


def test_unlabelled_rows_and_unknown_metrics() -> None:
    question = _question(40, 2)
    question.y_true[:4] = np.nan
    codes = (np.arange(40) % 2).astype(np.int64)
    codes[:10] = -1
    found = gap_bounds(question, Groups("a", ("x", "y"), codes), np.arange(40), {"tpr": Gap(value=0.1), "ece": Gap(value=0.1)})
    assert found["tpr"]["n_missing"] == 6
    assert found["ece"]["upper"] is None
    assert "no bounds" in found["ece"]["reason"]


def test_under_diagnosis_reference_and_net_benefit() -> None:
    question = _question(60, 4)
    codes = (np.arange(60) % 2).astype(np.int64)
    codes[:6] = -1
    groups = Groups("a", ("x", "y"), codes)
    gap = Gap(value=0.2, lower=0.1, upper=0.4)
    gaps = {"fpr": gap, "underdiagnosis": Gap(value=0.2, measure="fpr"), "disparate_impact": gap, "disparate_impact_distance": gap}
    asked = Question("y", question.y_true, question.y_score, question.decision, {"value": 0.2})
    found = gap_bounds(asked, groups, np.arange(60), {**gaps, "net_benefit": gap}, reference="x")
    assert found["underdiagnosis"]["upper"] == found["fpr"]["upper"]
    ratios, benefits = [], []
    for places in product(range(2), repeat=6):
        full = np.append(np.array(places), codes[6:])
        d, y = question.decision, question.y_true
        flagged = [d[full == code].mean() for code in (0, 1)]
        ratios.append(flagged[1] / flagged[0])
        benefits.append(np.ptp([(d * (y - 0.25 * (1 - y)))[full == code].mean() for code in (0, 1)]))
    assert found["disparate_impact"]["lower"] == pytest.approx(min(ratios))
    assert found["disparate_impact"]["upper"] >= max(ratios)
    assert found["disparate_impact"]["interval"][0] <= min(ratios)
    far = found["disparate_impact_distance"]
    assert far["lower"] <= min(abs(1 - r) for r in ratios) <= max(abs(1 - r) for r in ratios) <= far["upper"]
    assert found["net_benefit"]["upper"] == pytest.approx(max(benefits))
    assert gap_bounds(question, groups, np.arange(60), {"net_benefit": gap})["net_benefit"]["upper"] is None


def test_the_interval_is_wider_than_the_bounds() -> None:
    question = _question(60, 3)
    codes = (np.arange(60) % 2).astype(np.int64)
    codes[:10] = -1
    gap = Gap(value=0.2, lower=0.1, upper=0.35)
    found = gap_bounds(question, Groups("a", ("x", "y"), codes), np.arange(60), {"tpr": gap, "demographic_parity_ratio": gap})
    lower, upper = found["tpr"]["interval"]
    assert lower == pytest.approx(max(0.0, found["tpr"]["lower"] - 0.1))
    assert upper == pytest.approx(min(1.0, found["tpr"]["upper"] + 0.15))
    ratio = found["demographic_parity_ratio"]
    assert ratio["interval"][0] <= ratio["lower"] <= ratio["upper"] <= ratio["interval"][1]


def test_a_distance_from_a_reference_has_no_end_at_1() -> None:
    gap, bounds = Gap(value=1.5, lower=0.5, upper=2.5), GapBounds(1.2, 1.9, False, False, (0, 1))
    assert _widened("disparate_impact_distance", gap, bounds) == pytest.approx([0.2, 2.9])
    assert _widened("disparate_impact_distance", gap, GapBounds(1.2, np.inf, False, False, (0, 1))) == [pytest.approx(0.2), None]
    shares = _widened("tpr", Gap(value=0.5, lower=0.1, upper=0.9), GapBounds(0.4, 0.8, True, True, (0, 1)))
    assert shares == pytest.approx([0.0, 1.0])
