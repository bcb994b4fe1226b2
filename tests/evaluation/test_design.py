"""Design effects: 1 for independent images, the number of copies for copies, and a sentence in the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate
from evenhand.evaluation.cohort import Question
from evenhand.evaluation.design import DESIGNED, design_effects
from evenhand.report.summary import audit_summary


def question(n: int, copies: int, seed: int = 0) -> Question:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    s = np.clip(0.3 * y + 0.7 * rng.random(n), 0, 1)
    y, s = np.repeat(y, copies), np.repeat(s, copies)
    return Question("y", y, s, (s >= 0.5).astype(float), {})


def test_copies_of_an_image_count_once() -> None:
    """k copies of every image: the variance by image is k times too small, up to k (u - 1) / (k u - 1)."""
    found = design_effects(question(400, 3), np.repeat(np.arange(400), 3), DESIGNED)
    assert found == {name: pytest.approx(3, rel=0.03) for name in DESIGNED}


def test_one_image_a_patient_has_no_design_effect() -> None:
    assert design_effects(question(50, 1), np.arange(50), DESIGNED) == {}


def test_patients_given_at_random_change_nothing() -> None:
    patient = np.random.default_rng(1).permutation(np.repeat(np.arange(1000), 4))
    found = design_effects(question(4000, 1), patient, DESIGNED)
    assert found == {name: pytest.approx(1, abs=0.15) for name in DESIGNED}


def test_unlabelled_rows_and_what_is_not_estimable_stay_out() -> None:
    asked = question(100, 2)
    truth = np.where(np.arange(200) % 2 == 0, asked.y_true, np.nan)
    assert design_effects(Question("y", truth, asked.y_score, asked.decision, {}), np.repeat(np.arange(100), 2), DESIGNED) == {}
    found = design_effects(asked, np.repeat(np.arange(100), 2), ["accuracy"])
    assert found["auc"] is None
    assert found["accuracy"] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("images", [1, 4])
def test_the_audit_and_its_report_say_so(make_table: Any, images: int) -> None:
    frame = make_table(240, images=images)
    data = evaluate(frame, labels=["label"], attributes=["sex"], config=AuditConfig(bootstrap=20, permutations=0)).to_json()
    effect = data["labels"]["label"]["overall"]["design_effect"]
    text = str(audit_summary(data, {}))
    assert ("taking every image for a patient of its own" in text) is (images > 1)
    if images > 1:
        assert f"{effect['auc'] ** 0.5:.1f} times as wide for AUC" in text
    else:
        assert effect == {}
