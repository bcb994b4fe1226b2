"""Splits: patients stay together, shares hold in every stratum, the test split survives a re-draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.data.splits import content_codes, find_leaks, fold_validation, join_units, make_splits, redraw_validation
from evenhand.errors import InputError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=120), st.integers(0, 5))
def test_no_patient_is_in_two_splits_and_the_whole_keeps_its_shares(rows: list[tuple[int, int]], seed: int) -> None:
    patients, strata = np.array(rows).T
    split = make_splits(patients, strata, (0.5, 0.2, 0.3), seed)
    assert not find_leaks(split, patients)
    n = len(np.unique(patients))
    for name, share in zip(("train", "val", "test"), (0.5, 0.2, 0.3), strict=True):
        assert abs(len(np.unique(patients[split == name])) - share * n) <= 1.0 + 1e-6
    assert (split == make_splits(patients, strata, (0.5, 0.2, 0.3), seed)).all()


def test_every_stratum_is_spread() -> None:
    strata = np.repeat([0, 1, 2], [700, 200, 100])
    split = make_splits(np.arange(1000), strata, (0.7, 0.1, 0.2), seed=1)
    for stratum, size in ((0, 700), (1, 200), (2, 100)):
        counts = [int((split[strata == stratum] == name).sum()) for name in ("train", "val", "test")]
        assert np.abs(np.array(counts) - np.array([0.7, 0.1, 0.2]) * size).max() <= 1
    assert (split != make_splits(np.arange(1000), strata, (0.7, 0.1, 0.2), seed=2)).any()


def test_redraw_leaves_the_test_rows() -> None:
    rng = np.random.default_rng(0)
    patients, strata = rng.integers(0, 60, 300), rng.integers(0, 4, 300)
    split = make_splits(patients, strata, seed=0)
    drawn = redraw_validation(split, patients, strata, 0.25, seed=3)
    assert ((drawn == "test") == (split == "test")).all()
    assert not find_leaks(drawn, patients)
    n_val, n_rest = (len(np.unique(patients[rows])) for rows in (drawn == "val", drawn != "test"))
    assert abs(n_val - 0.25 * n_rest) <= 1
    assert (redraw_validation(split, patients, strata, 0.25, seed=4) != drawn).any()


def test_leaks_of_patients_and_of_equal_images() -> None:
    split = np.array(["train", "test", "val", "train"])
    hashes = np.array([[1, 1], [2, 2], [1, 1], [3, 3]], np.uint8)
    leaks = find_leaks(split, np.array([0, 0, 1, 2]), hashes)
    assert leaks.patients == ((0, 1),)
    assert leaks.images == ((0, 2),)
    assert "rows 1, 2" in leaks.sentences()[0]
    assert not find_leaks(split, np.arange(4), np.arange(8, dtype=np.uint8).reshape(4, 2))


def test_patients_that_share_an_image_are_one_unit() -> None:
    hashes = np.array([[0], [1], [1], [2], [2], [9]], np.uint8)
    units = join_units(np.array([4, 4, 7, 7, 5, 6]), content_codes(hashes))
    assert len(set(units[:5])) == 1
    assert units[5] != units[0]


def test_shares_must_be_shares() -> None:
    with pytest.raises(InputError):
        make_splits(np.arange(3), np.zeros(3, int), (0.5, 0.5, 0.5))
    with pytest.raises(InputError):
        redraw_validation(np.array(["train"]), np.arange(1), np.zeros(1, int), 1.0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=100), st.integers(2, 5), st.integers(0, 3))
def test_every_patient_outside_test_is_validation_of_one_fold(rows: list[tuple[int, int]], folds: int, seed: int) -> None:
    patients, strata = np.array(rows).T
    split = np.where(patients % 5 == 0, "test", "train")
    known = len(np.unique(patients[split != "test"]))
    if known < folds:
        with pytest.raises(InputError, match="at most the"):
            fold_validation(split, patients, strata, folds, 0, seed)
        return
    drawn = [fold_validation(split, patients, strata, folds, fold, seed) for fold in range(folds)]
    judged = sum((part == "val").astype(int) for part in drawn)
    assert (judged == (split != "test")).all()
    for part in drawn:
        assert not find_leaks(part, patients)
        assert abs(len(np.unique(patients[part == "val"])) - known / folds) <= 1.0 + 1e-6


def test_one_fold_is_none() -> None:
    with pytest.raises(InputError, match="at least 2"):
        fold_validation(np.array(["train"] * 4), np.arange(4), np.zeros(4, int), 1, 0, 0)
