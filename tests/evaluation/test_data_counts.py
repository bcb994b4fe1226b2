"""Counts, prevalences and odds ratios of a data card: by hand and against statsmodels."""

from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from evenhand.data.groups import Groups
from evenhand.evaluation.card_findings import card_findings, private_notes
from evenhand.evaluation.data_counts import (
    CardRows,
    LabelColumn,
    ages,
    association_table,
    label_columns,
    odds_ratio,
    prevalence_table,
    share,
    size_table,
)
from evenhand.evaluation.small_cells import withhold


def clustered(n_patients=120, seed=0):
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    group = (rng.random(n_patients) < 0.4)[patients]
    own = rng.normal(size=n_patients)[patients]
    y = rng.random(len(patients)) < 1 / (1 + np.exp(-(own + 0.9 * group - 0.5)))
    return patients, group, y


def test_share_against_statsmodels():
    patients, _, y = clustered()
    found = share(y, patients)
    fit = sm.OLS(y.astype(float), np.ones(len(y))).fit(cov_type="cluster", cov_kwds={"groups": patients})
    # statsmodels scales by (n - 1) / (n - k) too, which is 1 for a constant
    p, variance = y.mean(), fit.bse[0] ** 2
    effective = p * (1 - p) / variance
    alpha = 2 * stats.norm.sf(stats.t.ppf(0.975, len(np.unique(patients)) - 1))
    low, high = proportion_confint(p * effective, effective, alpha, method="wilson")
    assert (found["value"], found["lower"], found["upper"]) == pytest.approx((p, low, high), rel=1e-6)


def test_odds_ratio_against_a_logistic_regression_with_clustered_errors():
    patients, group, y = clustered()
    found = odds_ratio(y, group, ~group, patients)
    design = sm.add_constant(group.astype(float))
    units, n = len(np.unique(patients)), len(y)
    fit = sm.Logit(y.astype(float), design).fit(disp=0, cov_type="cluster", cov_kwds={"groups": patients})
    error = fit.bse[1] / np.sqrt((n - 1) / (n - 2))  # its further small-sample factor
    half = stats.t.ppf(0.975, units - 1) * error
    expected = np.exp([fit.params[1], fit.params[1] - half, fit.params[1] + half])
    assert (found["value"], found["lower"], found["upper"]) == pytest.approx(expected, rel=1e-5)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(fit.params[1]) / error, units - 1), rel=1e-4)


def test_odds_ratio_with_an_empty_cell_says_so_and_few_patients_have_none():
    y = np.r_[np.ones(20), np.zeros(30)].astype(bool)
    found = odds_ratio(y, np.arange(50) < 20, np.arange(50) >= 20, np.arange(50))
    assert found["value"] == pytest.approx(20.5 * 30.5 / (0.5 * 0.5))
    assert "half a patient" in found["note"]
    assert odds_ratio(y, np.arange(50) < 9, np.arange(50) >= 9, np.arange(50))["value"] is None


def rows_of(codes, split, patients=None, least=5, keys=("f", "m")):
    codes = np.asarray(codes)
    people = np.arange(len(codes)) if patients is None else np.asarray(patients)
    return CardRows(np.asarray(split), people, {"sex": Groups("sex", keys, codes)}, least)


def test_counts_by_hand():
    rows = rows_of([0, 0, 0, 1, 1, -1], ["train", "train", "test", "train", "test", "test"], [0, 0, 1, 2, 3, 4], least=1)
    table = size_table(rows, "sex")
    assert table["f"] == {"train": {"n": 2, "n_patients": 1}, "test": {"n": 1, "n_patients": 1}, "all": {"n": 3, "n_patients": 2}}
    assert table["(missing)"]["test"] == {"n": 1, "n_patients": 1}
    assert table["(everyone)"]["all"] == {"n": 6, "n_patients": 5}


def test_prevalence_by_hand():
    y = np.array([1, 0, 0, 1, 1, 0] * 20, bool)
    rows = rows_of([0, 0, 0, 1, 1, 1] * 20, ["train"] * 120)
    table = prevalence_table(rows, LabelColumn("y", y, np.ones(120, bool)), "sex")
    assert list(table["f"]) == ["train"]
    assert (table["f"]["train"]["n_positive"], table["f"]["train"]["n"], table["m"]["train"]["value"]) == (20, 60, pytest.approx(2 / 3))
    found = association_table(rows, LabelColumn("y", y, np.ones(120, bool)), "sex", table)
    assert list(found) == ["f"]
    assert found["f"]["train"]["value"] == pytest.approx((20 / 40) / (40 / 20))


def test_small_counts_are_not_shown_and_do_not_follow_from_others():
    codes = np.r_[np.zeros(40), np.ones(30), np.full(3, 2)].astype(int)
    rows = rows_of(codes, np.where(np.arange(73) % 3, "train", "test"), keys=("a", "b", "c"))
    table = size_table(rows, "sex")
    assert table["c"]["all"] == {"n": "<5", "n_patients": "<5"}
    assert table["b"]["all"]["n"] == "withheld"
    shown = [cell["n_patients"] for groups in table.values() for cell in groups.values()]
    assert all(not isinstance(value, int) or value == 0 or value >= 5 for value in shown)


def test_patients_without_the_attribute_do_not_hide_a_large_group():
    rows = rows_of(np.r_[np.zeros(40), np.ones(30), -np.ones(3)].astype(int), ["train"] * 73)
    table = size_table(rows, "sex")
    assert (table["(missing)"]["train"]["n"], table["f"]["train"]["n"], table["m"]["train"]["n"]) == ("<5", 40, 30)


@pytest.mark.parametrize("seed", range(20))
def test_no_line_has_a_single_hidden_cell(seed):
    rng = np.random.default_rng(seed)
    inner = rng.integers(0, 30, (rng.integers(2, 6), rng.integers(2, 4)))
    sizes = np.vstack([inner, inner.sum(axis=0)])
    sizes = np.hstack([sizes, sizes.sum(axis=1, keepdims=True)])
    hidden = withhold(sizes, (sizes > 0) & (sizes < 5))
    assert hidden[(sizes > 0) & (sizes < 5)].all()
    for own, size in [*zip(hidden, sizes, strict=True), *zip(hidden.T, sizes.T, strict=True)]:
        assert own.sum() != 1 or (size > 0).sum() == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_small_count_is_the_only_one_that_fits_its_line(seed):
    """By trying all values: a small cell is 1 to 4, a withheld one 5 or more, and they add up to what the total leaves for them."""
    rng = np.random.default_rng(seed)
    inner = rng.integers(1, 9, (6, 3))
    sizes = np.vstack([inner, inner.sum(axis=0)])
    sizes = np.hstack([sizes, sizes.sum(axis=1, keepdims=True)])
    hidden = withhold(sizes, (sizes > 0) & (sizes < 5), least=5)
    for own, size in [*zip(hidden, sizes, strict=True), *zip(hidden.T, sizes.T, strict=True)]:
        cells = size[:-1][own[:-1]]
        if own[-1] or not len(cells) or own.all():
            continue
        left = int(size[-1] - size[:-1][~own[:-1]].sum())
        values = [range(1, 5) if cell < 5 else range(5, left + 1) for cell in cells]
        solutions = sum(sum(chosen) == left for chosen in product(*values[:5])) if len(cells) < 6 else 2
        assert solutions > 1 or own[:-1].all()


def test_two_groups_of_one_patient_are_not_told_by_their_sum():
    codes = np.r_[np.zeros(40), np.ones(30), np.full(9, 2), 3, 4].astype(int)
    people = CardRows(np.full(81, "train"), np.arange(81), {"sex": Groups("sex", tuple("abcde"), codes)}, 5)
    cells = {key: splits["train"]["n"] for key, splits in size_table(people, "sex").items()}
    assert cells == {"(everyone)": 81, "a": 40, "b": 30, "c": "withheld", "d": "<5", "e": "<5"}


def test_label_columns_of_every_kind():
    several = label_columns(np.array([[1, np.nan], [0, 1]], np.float32), "multilabel", ["a", "b"], [])
    assert [column.name for column in several] == ["a", "b"]
    assert several[1].known.tolist() == [False, True]
    classes = label_columns(np.array([0, 2, -1]), "multiclass", ["dx"], ["u", "v", "w"])
    assert [column.name for column in classes] == ["dx = u", "dx = v", "dx = w"]
    assert classes[2].values.tolist() == [False, True, False]
    assert classes[0].known.tolist() == [True, True, False]


def test_ages_count_patients_once_and_join_small_bins():
    found = ages(np.r_[np.full(20, 31.0), np.full(8, 42.0), 51.0, np.nan], np.r_[np.arange(20), np.arange(20, 30)], 5)
    assert found["edges"] == [30.0, 35.0, 55.0]
    assert (found["patients"], found["n_patients"], found["n_missing"]) == ([20, 9], 29, "<5")
    assert ages(np.full(30, np.nan), np.arange(30), 5) is None


def test_notes_lose_small_counts_alone():
    notes = ["attribute 'sex' is missing in 3 of 48 rows (own_group)", "2 patients are in more than one group of 'age'", "seed 0, cut at 3"]
    shown = private_notes(notes, 5)
    assert shown == [
        "attribute 'sex' is missing in <5 of 48 rows (own_group)",
        "<5 patients are in more than one group of 'age'",
        "seed 0, cut at 3",
    ]
    assert private_notes(notes, 1) == notes


def test_a_count_of_one_is_not_given_away_by_its_grammar():
    notes = [
        "1 row was left out: its image is not in the raw folder (excluded.csv)",
        "1 of 24 images is not there (addresses that no longer answer are usual in this set)",
        "sex: 1 value is neither female nor male ('X' 1) and counts as missing",
        "race: 7 values are none that the provider describes ('a' 4, 'b' 3) and count as missing",
        "1 row of clinical_data.csv has no slice and 1 slice no row: both are left out",
        "2,003 rows were left out: a group that the task leaves out (excluded.csv)",
        "race: 1 patient has entries that differ; it is missing there",
        "no split is given: drawn by patient with seed 0 (train 33, val 2, test 9 rows)",
    ]
    assert private_notes(notes, 5) == [
        "<5 rows were left out: its image is not in the raw folder (excluded.csv)",
        "<5 of 24 images are not there (addresses that no longer answer are usual in this set)",
        "sex: <5 values are neither female nor male ('X' <5) and count as missing",
        "race: 7 values are none that the provider describes ('a' <5, 'b' <5) and count as missing",
        "<5 rows of clinical_data.csv have no slice and <5 slices no row: both are left out",
        "2,003 rows were left out: a group that the task leaves out (excluded.csv)",
        "race: <5 patients have entries that differ; it is missing there",
        "no split is given: drawn by patient with seed 0 (train 33, val 2, test 9 rows)",
    ]


def test_counts_that_are_not_the_published_ones_are_said():
    expected = [
        {"what": "images", "count": 10, "origin": "paper", "found": 9},
        {"what": "images", "count": 12, "origin": "site", "found": 9},
    ]
    card = {
        "leaks": {"patients": 1, "images": 0, "equal_across_patients": 2},
        "near_duplicates": {"across_splits": 0, "across_patients": 0},
        "labels": {},
        "probe": None,
        "attributes": {},
        "splits": {"train": {}},
        "source": {"expected": expected},
        "data": {"n": 9},
    }
    found = card_findings(card)
    assert [item["code"] for item in found] == ["no_groups", "leak", "leak", "counts"]
    assert found[0]["text"].startswith("No attribute was prepared: nothing could be looked at by group")
    group = {"train": {"n": 9, "n_patients": 9}, "all": {"n": 9, "n_patients": 9}}
    attributes = {"sex": {"(everyone)": group, "f": group}, "age": {"(everyone)": group, "a": group, "b": group}}
    one = card_findings({**card, "attributes": attributes})
    assert [item["text"] for item in one if item["code"] == "no_groups"] == ["sex has one group alone: nothing could be compared by it."]
    assert "9 were found, the provider says 10 (paper) or 12 (site)" in found[-1]["text"]
