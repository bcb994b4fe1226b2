"""Which column is what, by its name."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.errors import ConfigError
from evenhand.evaluation.recognise import (
    ATTRIBUTES,
    LABELS,
    PATIENTS,
    SCORES,
    find_attributes,
    find_outcome,
    find_single,
    is_measured,
    squeeze,
)

N = 12
Y = np.arange(N) % 2
P = np.linspace(0.1, 0.9, N)
DX = np.array(["mel", "nv", "bkl"])[np.arange(N) % 3]


@given(st.sampled_from([name for tier in LABELS for name in tier]), st.sampled_from([name for tier in SCORES for name in tier]))
def test_every_usual_pair_of_names(label: str, score: str) -> None:
    found = find_outcome(pd.DataFrame({label.upper(): Y, "other": P + 1, score.title(): P}))
    assert (found.labels, found.scores, found.classes) == ((label.upper(),), (score.title(),), ())


@given(st.text(), st.sampled_from([" ", "_", "-", ".", ""]))
def test_spelling_does_not_matter(text: str, sign: str) -> None:
    assert squeeze(sign.join(text)) == squeeze(text)
    assert re.fullmatch(r"[a-z0-9]*", squeeze(text))


def test_what_is_named_is_not_guessed_at() -> None:
    frame = pd.DataFrame({"label": Y, "target": Y, "mine": 1 - Y, "score": P, "prob": P})
    assert find_outcome(frame, ["mine"], ["prob"]).labels == ("mine",)
    with pytest.raises(ConfigError, match="'score' and 'prob' could both be the score; say which one with --score"):
        find_outcome(frame, ["mine"])
    with pytest.raises(ConfigError, match="'label' and 'target' could both be the label; say which one with --label"):
        find_outcome(frame, (), ["prob"])


def test_a_better_name_and_a_better_column_win() -> None:
    assert find_outcome(pd.DataFrame({"y_true": Y, "label": Y, "score": P, "pred": P})).labels == ("y_true",)
    assert find_outcome(pd.DataFrame({"label": DX, "y": Y, "score": P})).labels == ("y",)
    assert find_outcome(pd.DataFrame({"y": Y, "prediction": Y, "p": P})).scores == ("p",)


def test_several_labels() -> None:
    two = {"label_a": Y, "label_b": Y, "score_a": P, "score_b": P}
    assert find_outcome(pd.DataFrame(two)).names == ("a", "b")
    assert find_outcome(pd.DataFrame({"a": Y, "b": Y, "prob a": P, "prob b": P, "c": Y})).labels == ("a", "b")
    assert find_outcome(pd.DataFrame({"a_true": Y, "b_true": Y, "a_prob": P, "b_prob": P})).scores == ("a_prob", "b_prob")
    with pytest.raises(ConfigError, match="two ways"):
        find_outcome(pd.DataFrame({**two, "prob_a": P, "prob_b": P}))
    assert find_outcome(pd.DataFrame({**two, "prob_a": P, "prob_b": P}), (), ["prob_a", "prob_b"]).labels == ("label_a", "label_b")
    assert find_outcome(pd.DataFrame({"a": Y, "b": Y, "p_a": P, "p_b": P}), ["b", "a"]).scores == ("p_b", "p_a")


def test_one_score_named_after_the_positive_text() -> None:
    frame = pd.DataFrame({"dx": np.where(Y, "malignant", "benign"), "probability_malignant": P})
    assert find_outcome(frame).scores == ("probability_malignant",)
    with pytest.raises(ConfigError, match="no score column"):
        find_outcome(frame.rename(columns={"probability_malignant": "probability_benign"}))
    names = np.where(Y, "mel", "nv")
    assert find_outcome(pd.DataFrame({"dx": names, "p_mel": P}), pos_label="mel").scores == ("p_mel",)


def test_a_decision_column_is_no_class() -> None:
    frame = pd.DataFrame({"truth": Y, ".pred_1": P, ".pred_0": 1 - P, ".pred_class": Y})
    assert (find_outcome(frame).scores, find_outcome(frame).classes) == ((".pred_1",), ())


@pytest.mark.parametrize("name", ["phase", "Set", "dataset"])
def test_a_split_without_test_rows_is_not_passed_over(name: str) -> None:
    frame = pd.DataFrame({"y": Y, name: np.where(Y, "Train", "Val")})
    assert find_single(frame, ["y"], None, None).split == name
    assert find_single(frame.assign(**{name: "nih"}), ["y"], None, None).split is None


def test_classes() -> None:
    frame = pd.DataFrame({"dx": DX, "p_mel": P, "p_nv": P, "p_bkl": P})
    assert find_outcome(frame).classes == ("mel", "nv", "bkl")
    assert find_outcome(frame.rename(columns=lambda name: name.removeprefix("p_"))).scores == ("mel", "nv", "bkl")
    assert find_outcome(pd.DataFrame({"y": Y, "prob_0": 1 - P, "prob_1": P})).scores == ("prob_1",)
    text = pd.DataFrame({"y": np.where(Y, "malignant", "benign"), "p_benign": 1 - P, "p_malignant": P})
    assert find_outcome(text).scores == ("p_malignant",)
    with pytest.raises(ConfigError, match="the classes 'bkl', 'nv' of the label 'dx' have no score column"):
        find_outcome(frame.drop(columns=["p_nv", "p_bkl"]).assign(pred=DX))
    with pytest.raises(ConfigError, match=r"'p_\*' and 'score_\*' could both"):
        find_outcome(frame.assign(score_mel=P, score_nv=P, score_bkl=P))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": Y, "b": P}, "no label and no score column is recognised among a, b"),
        ({"label": Y, "b": P}, "the label is 'label', but no score column"),
        ({"a": Y, "score": P}, "the score is 'score', but no label column"),
    ],
)
def test_nothing_is_said_with_what_there_is(columns: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_outcome(pd.DataFrame(columns))


@given(st.sampled_from([name for tier in PATIENTS for name in tier]))
def test_patients(name: str) -> None:
    assert find_single(pd.DataFrame({name: Y}), (), None, None).patient == name
    assert find_single(pd.DataFrame({name: Y}), [name], None, None).patient is None


def test_a_fold_is_a_split_only_with_its_words() -> None:
    assert find_single(pd.DataFrame({"fold": [0, 1, 2]}), (), None, None).split is None
    assert find_single(pd.DataFrame({"fold": ["Train", "Testing", "dev"]}), (), None, None).split == "fold"
    with pytest.raises(ConfigError, match="could both be the patient; say which one with --patient"):
        find_single(pd.DataFrame({"subject": Y, "patient": Y}), (), None, None)


@given(st.sampled_from(sorted(ATTRIBUTES)))
def test_attributes(name: str) -> None:
    assert find_attributes(pd.DataFrame({name.upper(): Y}), (), 50).names == (name.upper(),)


def test_attributes_that_say_nothing_are_passed_over() -> None:
    frame = pd.DataFrame({
        "sex": Y, "gender": "f", "race": None, "age": np.arange(N) + 20.0, "age_group": DX, "site": [f"s{k}" for k in range(N)],
        "x__group": Y, "age__group": Y,
    })
    found = find_attributes(frame, (), 10)
    assert found.names == ("x", "age", "sex", "age_group")
    assert set(found.passed) == {"gender", "race", "site"}
    assert "more than --max-groups 10" in found.passed["site"]


def test_codes_are_no_measurements() -> None:
    many = pd.Series(np.arange(20))
    assert is_measured(many, "age")
    assert is_measured(many.astype(object), "bmi")
    assert not is_measured(many, "site")
    assert not is_measured(many.astype(str), "age")
    assert not is_measured(many % 10, "grade")
