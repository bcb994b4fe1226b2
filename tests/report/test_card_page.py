"""The page of a data card: what it shows of a dictionary, names escaped, one file without scripts."""

import copy
import re

import numpy as np
import pytest

from evenhand.report.card_page import NOTHING, write_card_page

NASTY = '<b>&"$x_$</b>'


def estimate(value=0.6, n=100, **more):
    return {"value": value, "lower": value - 0.05, "upper": value + 0.05, "n": n, "n_patients": n, **more}


def cell(n=50):
    return {"n": n, "n_patients": n}


def prevalence(n=50, value=0.3):
    return {**estimate(value, n), "n_positive": 15}


SMALL = {"n": 9, "n_patients": 9, "n_positive": "<5", "value": None, "lower": None, "upper": None, "reason": "small counts are not shown"}
RATIO = {"value": 3.0, "lower": 2.0, "upper": 4.5, "p": 1e-5}
CHANCE = {"lower": 0.45, "upper": 0.55, "mean": 0.5, "n": 99, "above": True}


def reading(keys):
    given = {"given_label": {"folds": estimate(0.58), "test": estimate(0.57)}, "within": {"0": estimate(0.6), "1": estimate(0.56)}}
    groups = {key: estimate(0.7) for key in keys} if len(keys) > 2 else {}
    return {"folds": estimate(0.8), "test": estimate(0.79), "groups": groups, "chance": CHANCE, "labels": {NASTY: given}}


def card(attribute="sex", keys=("f", "m"), labels=(NASTY,)):
    groups = {key: {"train": cell(), "test": {"n": "<5", "n_patients": "<5"}, "all": cell()} for key in keys}
    groups |= {key: {"train": cell(), "test": cell(), "all": cell()} for key in ("(missing)", "(everyone)")}
    shares = {key: {"train": prevalence(), "test": SMALL, "all": prevalence()} for key in groups}
    none = {"value": None, "lower": None, "upper": None, "reason": "small counts are not shown"}
    block = {"prevalence": shares, "association": {keys[0]: {"train": RATIO, "test": none, "all": {**RATIO, "note": "a cell is empty"}}}}
    grey = {"n_patients": 50, **{name: estimate(100.0) for name in ("brightness", "contrast", "sharpness")}}
    read = {"folds": estimate(), "test": estimate(), "groups": {}, "chance": CHANCE}
    return {
        "schema": "evenhand.card/1",
        "data": {
            "name": NASTY,
            "hash": "ab" * 32,
            "modality": "chest_film",
            "kind": "binary",
            "labels": list(labels),
            "classes": [],
            "attributes": [attribute],
            "bins": {"age": [0.0, 60.0, 200.0]},
            "missing": "own_group",
            "n": 150,
            "n_patients": 120,
            "image": {"channels": 1, "size": 64, "resize": "crop", "dtype": "uint8"},
            "images_per_patient": {"median": 1.0, "most": 3},
        },
        "source": {
            "kind": "public",
            "name": "nih",
            "title": NASTY,
            "version": "v1",
            "verified": False,
            "licence": NASTY,
            "link": "https://x.org",
            "citation": NASTY,
            "task": {"name": "t", "text": NASTY},
            "attributes": {attribute: NASTY},
            "split": {"rule": "published", "text": NASTY},
            "options": {"uncertain": "ones"},
            "expected": [{"what": "images", "count": 10, "origin": NASTY, "found": 9}],
            "traps": [NASTY],
        },
        "excluded": {"unreadable_image": 2},
        "notes": [NASTY],
        "splits": {"train": cell(100), "test": cell(), "all": cell(150)},
        "attributes": {attribute: groups},
        "ages": {
            "age": {"edges": [20.0, 25.0, 60.0], "patients": [20, 40], "quartiles": [21.0, 30.5, 50.0], "n_patients": 60, "n_missing": "<5"}
        },
        "labels": {name: {"everyone": shares["(everyone)"], "n_unlabelled": "<5", "attributes": {attribute: block}} for name in labels},
        "statistics": {"everyone": grey, "spread": {}, "attributes": {attribute: dict.fromkeys(keys, grey)}},
        "leaks": {"patients": 0, "images": 1, "rows": [[3, 9]], "equal_images": 2, "equal_across_patients": 1},
        "near_duplicates": {
            "rule": {"most_bits": 7, "least_cosine": 0.85},
            "across_splits": 1,
            "across_splits_and_patients": 1,
            "across_patients": 0,
            "within": 4,
            "complete": False,
            "random_pairs": 1000,
            "random_hits": 2,
            "random_upper": 0.006,
            "expected_by_chance": 22.4,
            "pairs": [{"rows": [4, 8], "splits": ["train", "test"], "same_patient": False, "cosine": 0.97, "bits": 2}],
        },
        "probe": {
            "n": 100,
            "n_test": 50,
            "sampled": True,
            "encoder": {"name": NASTY, "dim": 8, "fingerprint": "", "input_size": [8, 8]},
            "attributes": {attribute: {"encoder": reading(keys), "statistics": reading(keys)}},
            "labels": {name: {"statistics": read, "attributes": {attribute: read}} for name in labels},
        },
        "findings": [{"code": "shortcut", "text": NASTY}],
        "provenance": {"seed": 0, "min_cell": 5, "permutations": 99, "probe_rows": 100, "images": True, "versions": {"evenhand": "0.1.0"}},
    }


def page_of(found, tmp_path, pictures=None):
    return write_card_page(found, pictures or {}, tmp_path / "card.html").read_text()


@pytest.mark.parametrize("keys", [("f", "m"), (NASTY, "b", "c")])
def test_names_are_escaped_everywhere(tmp_path, keys):
    strip = np.zeros((10, 20), np.uint8)
    pictures = {
        "examples": [{"attribute": NASTY, "group": NASTY, "label": NASTY, "value": True, "pixels": strip}],
        "pairs": [{"pixels": np.zeros((10, 20, 3), np.uint8)}],
    }
    text = page_of(card(NASTY, keys), tmp_path, pictures)
    assert NASTY not in text
    assert text.count("<img") == 2
    assert "<script" not in text
    assert 'http-equiv="Content-Security-Policy"' in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


def test_what_the_page_says(tmp_path):
    text = page_of(card(), tmp_path)
    for said in (
        "Possible shortcut",
        "as documented by the provider, not checked",
        "sex not recorded",
        "&lt;5",
        "withheld",
        "3.00",
        "2.00 to 4.50",
        "0.45 to 0.55",
        "Rows 4 (train) and 8 (test), different patients, cosine 0.97, 2 bits differ",
        "rows 3, 9",
        "Among all pairs of the set",
        "lower limits",
        "a cell is empty",
        "Patients were drawn at random",
        "2 rows (unreadable image)",
        "does not certify",
    ):
        assert (said in text) == (said != "does not certify"), said
    assert "This page describes one set of data" in text


def test_nothing_found_is_said_with_care_and_readers_may_be_absent(tmp_path):
    found = {**card(), "findings": [], "probe": None}
    text = page_of(found, tmp_path)
    assert NOTHING in text
    assert 'id="reading"' not in text


def test_a_set_without_attributes(tmp_path):
    found = copy.deepcopy(card())
    found["data"]["attributes"], found["attributes"], found["statistics"]["attributes"] = [], {}, {}
    found["labels"][NASTY]["attributes"] = {}
    found["probe"]["attributes"], found["probe"]["encoder"] = {}, None
    found["probe"]["labels"][NASTY]["attributes"] = {}
    text = page_of(found, tmp_path)
    assert "No attribute was prepared" in text
    assert "grey levels: AUC" in text


def test_many_labels_are_folded_below_an_overview(tmp_path):
    text = page_of(card(labels=("a", "b", "c", "d", NASTY)), tmp_path)
    assert "Odds ratio (95% interval) and group" in text
    assert text.count("▲ 3.00") == 5
    assert "<summary>a (unlabelled: &lt;5)</summary>" in text


def test_every_figure_has_a_text_and_a_key_of_its_own(tmp_path):
    text = page_of(card(), tmp_path)
    keys = re.findall(r'aria-labelledby="(\S+)-t', text)
    assert len(keys) == len(set(keys)) >= 3
    assert text.count("<desc") == len(keys)


def test_equal_cards_give_equal_pages(tmp_path):
    assert page_of(card(), tmp_path) == page_of(card(), tmp_path)
