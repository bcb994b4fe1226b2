"""Ranked intersections and what a gap hangs on, with planted answers."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import category_groups, joint_groups
from evenhand.evaluation.cohort import Cohort, Question
from evenhand.evaluation.intersections import drivers, rank_intersections
from evenhand.metrics.auc import auc

CONFIG = AuditConfig(permutations=300, bootstrap=0)


def _cohort(n_patients: int = 1500, seed: int = 0, drop: float = 0.6, images: int = 2, sites: int = 0) -> Cohort:
    """Old women's cases are found less often (``drop`` of their positive scores fall below the threshold)."""
    rng = np.random.default_rng(seed)
    base = pd.DataFrame({"sex": rng.choice(["female", "male"], n_patients), "age": rng.choice(["old", "young"], n_patients)})
    base["site"] = [f"s{k}" for k in rng.integers(0, max(sites, 1), n_patients)]
    base["y"] = (rng.random(n_patients) < 0.4).astype(float)
    frame = base.loc[np.repeat(np.arange(n_patients), images)].reset_index(drop=True)
    patient = np.repeat(np.arange(n_patients), images)
    score = np.clip(0.4 + 0.25 * frame.y + rng.normal(0, 0.15, len(frame)), 0.01, 0.99).to_numpy().copy()
    hit = ((frame.sex == "female") & (frame.age == "old") & (frame.y == 1)).to_numpy() & (rng.random(n_patients) < drop)[patient]
    score[hit] = 0.3
    single = [category_groups(frame[name], name) for name in ("sex", "age", *(["site"] * (sites > 0)))]
    groups = {part.attribute: part for part in (*single, joint_groups(single))}
    question = Question("y", frame.y.to_numpy().copy(), score, (score >= 0.5).astype(float), {"value": 0.5})
    return Cohort("binary", (question,), groups, patient.astype(np.int64), 0, (), frame)


def test_a_planted_intersection_comes_first() -> None:
    cohort = _cohort()
    question = cohort.questions[0]
    found = rank_intersections(cohort, question, CONFIG)
    json.dumps(found, allow_nan=False)
    first = found[0]
    assert (first["attribute"], first["group"], first["rank"]) == ("sex*age", "female*old", 1)
    assert first["metric"] == "tpr"
    assert first["p_adjusted"] == pytest.approx(1 / 301)
    assert first["upper"] < -0.3 < 0
    at = cohort.groups["sex*age"].names() == "female*old"
    by_hand = next(item for item in found if item["group"] == "female*old" and item["metric"] == "auc")
    assert by_hand["value"] == pytest.approx(auc(question.y_true[at], question.y_score[at]))
    assert by_hand["rest"] == pytest.approx(auc(question.y_true[~at], question.y_score[~at]))
    assert by_hand["effect"] == pytest.approx(by_hand["value"] - by_hand["rest"])
    assert (by_hand["n"], by_hand["n_patients"]) == (at.sum(), at.sum() // 2)
    assert [item["p_adjusted"] for item in found] == sorted(item["p_adjusted"] for item in found)
    assert not [item for item in found if item["metric"] == "fpr" and item["p_adjusted"] < 0.02]


def test_two_groups_are_one_test_with_opposite_effects() -> None:
    found = rank_intersections(_cohort(), _cohort().questions[0], CONFIG)
    female, male = (next(item for item in found if item["group"] == key and item["metric"] == "tpr") for key in ("female", "male"))
    assert female["effect"] == pytest.approx(-male["effect"])
    assert (female["p"], female["p_adjusted"]) == (male["p"], male["p_adjusted"])


def test_small_groups_are_last_with_a_reason() -> None:
    cohort = _cohort(300)
    codes = cohort.groups["sex"].codes
    codes[:] = np.where(np.arange(len(codes)) < 6, 2, codes)
    cohort.groups["sex"] = type(cohort.groups["sex"])("sex", ("female", "male", "other"), codes)
    found = rank_intersections(cohort, cohort.questions[0], CONFIG)
    few = [item for item in found if item["group"] == "other"]
    assert found[-3:] == few or {item["metric"] for item in few} == {"auc", "tpr", "fpr"}
    assert all(item["effect"] is None and item["p_adjusted"] is None and "at least 10" in item["reason"] for item in few)
    assert all(item["n_patients"] == 3 for item in few)
    at = [("reason" in item) for item in found]
    assert at == sorted(at)


def test_nothing_to_claim_without_permutations_either() -> None:
    cohort = _cohort(drop=0.0)
    found = rank_intersections(cohort, cohort.questions[0], AuditConfig(permutations=0))
    assert min(item["p_adjusted"] for item in found) > 0.05
    assert all(item["p_adjusted"] >= item["p"] for item in found)


def test_seeded_and_the_metrics_that_were_asked_for() -> None:
    cohort = _cohort(400)
    config = AuditConfig(permutations=100, metrics=["tpr"], primary=["demographic_parity"])
    one, two, other = (rank_intersections(cohort, cohort.questions[0], config, seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert {item["metric"] for item in one} == {"tpr", "positive_rate"}


def test_a_patient_in_two_groups_and_unlabelled_rows() -> None:
    cohort = _cohort(400)
    cohort.groups["age"].codes[::7] = 1 - cohort.groups["age"].codes[::7]
    cohort.groups["sex"].codes[:50] = -1
    cohort.questions[0].y_true[60:90] = np.nan
    found = rank_intersections(cohort, cohort.questions[0], CONFIG)
    assert all(0 < item["p"] <= item["p_adjusted"] <= 1 for item in found if "reason" not in item)


def test_the_gap_of_sex_hangs_on_old_women() -> None:
    cohort = _cohort()
    question = cohort.questions[0]
    found = drivers(cohort, question, CONFIG)
    json.dumps(found, allow_nan=False)
    first = next(item for item in found if item["metric"] == "tpr" and item["attribute"] == "sex")
    assert (first["without"], first["joint"], first["groups"]) == ("female*old", "sex*age", ["female", "male"])
    assert first["share"] > 0.8
    assert first["lower"] > 0.1
    names, y, d = cohort.groups["sex*age"].names(), question.y_true, question.decision
    female, male = (np.array([str(key).startswith(sex) for key in names]) for sex in ("female", "male"))
    without = d[male & (y == 1)].mean() - d[female & (y == 1) & (names != "female*old")].mean()
    assert first["gap_without"] == pytest.approx(without)
    assert first["gap"] - first["change"] == pytest.approx(first["gap_without"])


def test_an_intersection_that_is_the_whole_group_cannot_be_left_out() -> None:
    cohort = _cohort(400)
    frame = cohort.frame
    frame["age"] = np.where(frame.sex == "female", "old", frame.age)
    parts = [category_groups(frame[name], name) for name in ("sex", "age")]
    cohort.groups.update({"sex": parts[0], "age": parts[1], "sex*age": joint_groups(parts)})
    found = [
        item for item in drivers(cohort, cohort.questions[0], CONFIG) if item["without"] == "female*old" and item["attribute"] == "sex"
    ]
    assert found
    assert all(item["change"] is None and "without it: 0 patients" in item["reason"] for item in found)


def test_no_attributes_and_no_joint_attributes() -> None:
    cohort = _cohort(200)
    plain = Cohort("binary", cohort.questions, {"sex": cohort.groups["sex"]}, cohort.patient, 0, (), cohort.frame)
    assert drivers(plain, cohort.questions[0], CONFIG) == []
    empty = Cohort("binary", cohort.questions, {}, cohort.patient, 0, (), cohort.frame)
    assert rank_intersections(empty, cohort.questions[0], CONFIG) == []


@pytest.mark.slow
def test_forty_intersections_are_cheap() -> None:
    cohort = _cohort(5000, sites=10)
    start = time.perf_counter()
    found = rank_intersections(cohort, cohort.questions[0], AuditConfig())
    assert len({item["group"] for item in found if item["attribute"] == "sex*age*site"}) == 40
    assert time.perf_counter() - start < 5
