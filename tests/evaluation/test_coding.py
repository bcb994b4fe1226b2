"""Labels and scores as they come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.coding import PAIRS, code_label, code_scores, sigmoid


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_whose_meaning_nobody_doubts(pair: tuple[str, str]) -> None:
    values, positive = code_label(pd.Series([pair[0].upper(), f" {pair[1]}", None, ""]), "y")
    assert values[:2].tolist() == [1, 0]
    assert np.isnan(values[2:]).all()
    assert positive == pair[0].upper()
    assert code_label(pd.Series([pair[1]]), "y")[0].tolist() == [0]


@pytest.mark.parametrize("values", [[1, 0], ["1", "0"], [1.0, 0.0], [True, False], ["1.0", "0"]])
def test_zero_and_one(values: list[object]) -> None:
    assert code_label(pd.Series(values), "y")[0].tolist() == [1, 0]


def test_the_positive_label_is_named_or_asked_for() -> None:
    assert code_label(pd.Series(["a", "b", None]), "y", "b")[0].tolist()[:2] == [0, 1]
    assert code_label(pd.Series([1, 2]), "y", "2")[0].tolist() == [0, 1]
    assert code_label(pd.Series([1.0, np.nan]), "y", "1")[0].tolist()[:1] == [1]
    with pytest.raises(TableError, match=r"\(mel, nv\); say which is the positive class, as --pos-label mel or --pos-label nv"):
        code_label(pd.Series(["mel", "nv"]), "dx")
    with pytest.raises(ConfigError, match=r"--pos-label x is not among the values of column 'dx' \(mel, nv\)"):
        code_label(pd.Series(["mel", "nv"]), "dx", "x")
    with pytest.raises(TableError, match="has 1 value that is not 0 or 1") as caught:
        code_label(pd.Series([0, 1, 2]), "y")
    assert caught.value.details == ("row 3: y is 2",)


@given(st.lists(st.floats(-800, 800), min_size=1, max_size=20))
def test_sigmoid_and_softmax_are_scipys(values: list[float]) -> None:
    logits = np.array(values)
    assert sigmoid(logits) == pytest.approx(scipy.special.expit(logits), abs=1e-15)
    columns = {"a": pd.Series(logits), "b": pd.Series(-logits), "c": pd.Series(0 * logits)}
    found, said = code_scores(columns, logits=True, guess=False, softmax=True)
    assert np.stack(found, 1) == pytest.approx(scipy.special.softmax(np.stack([logits, -logits, 0 * logits], 1), axis=1), abs=1e-12)
    assert "softmax" in said


def test_logits_are_converted_only_where_nobody_named_the_column() -> None:
    logits = pd.Series([-2.0, 0.5, 3.0])
    found, said = code_scores({"s": logits}, logits=False, guess=True)
    assert found[0] == pytest.approx(scipy.special.expit(logits))
    assert "look like logits; a sigmoid was applied" in said
    with pytest.raises(TableError, match="they look like logits: add --logits"):
        code_scores({"s": logits}, logits=False, guess=False)
    assert code_scores({"s": pd.Series([0.1, 0.9])}, logits=False, guess=True)[1] == ""


def test_a_stray_score_makes_no_logits_of_probabilities() -> None:
    for stray in (-0.2, 1.3):
        with pytest.raises(TableError, match="1 scores outside"):
            code_scores({"p": pd.Series([0.1, 0.9, stray])}, logits=False, guess=True)
    with pytest.raises(TableError, match="'a' has 2 scores outside"):
        code_scores({"a": pd.Series([-2.0, 3.0]), "b": pd.Series([0.1, 0.9])}, logits=False, guess=True)


def test_rounding_errors_of_probabilities_are_moved_to_the_end() -> None:
    found, said = code_scores({"p": pd.Series([-1e-9, 0.5, 1.0000001])}, logits=False, guess=True)
    assert (found[0].tolist(), said) == ([0, 0.5, 1], "")


def test_booleans_take_their_own_words() -> None:
    assert code_label(pd.Series([True, False]), "y", "True")[0].tolist() == [1, 0]
    assert code_label(pd.Series([True, False]), "y", "false")[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([5.0, 99.0], "percentages: divide them by 100"), ([-1.0, -0.2], "log-probabilities"), ([5.0, 101.0], "scale them"),
        ([0.5, np.nan], "not finite"), ([0.5, np.inf], "not finite"), (["a", "b"], "not finite"),
    ],
)
def test_other_scores_are_refused_by_their_name(values: list[object], words: str) -> None:
    with pytest.raises(TableError, match=rf"column 'risk' has .*{words}"):
        code_scores({"risk": pd.Series(values)}, logits=False, guess=True)


def test_a_column_called_logit_that_holds_probabilities_is_asked_about() -> None:
    with pytest.raises(TableError, match="say --logits if it holds logits, or --score logit"):
        code_scores({"logit": pd.Series([0.1, 0.9])}, logits=False, guess=True)
    assert code_scores({"logit": pd.Series([0.1, 4.0])}, logits=False, guess=True)[0][0] == pytest.approx(scipy.special.expit([0.1, 4]))
