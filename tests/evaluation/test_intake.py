"""From anybody's table to the contract's: columns, quantile bins, what is said, and errors in the user's words."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.attributes import audit_groups
from evenhand.evaluation.intake import Request, take_in

N = 40
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({
    "Patient ID": np.arange(N) // 2, "Label": np.where(np.arange(N) % 4 < 2, "yes", "no"), "prob": RNG.random(N),
    "Sex": np.tile(["f", "m"], N // 2), "Age": np.repeat(np.arange(N // 2) + 30, 2), "fold": np.where(np.arange(N) % 8 < 2, "Dev", "Test"),
    "view": "AP",
})  # fmt: skip


def test_everything_is_recognised_and_said() -> None:
    found = take_in(FRAME, Request())
    assert found.labels == ("Label",)
    assert found.attributes == ("Sex", "Age")
    assert set(found.frame["split"]) == {"val", "test"}
    assert found.frame["y_true"].tolist() == (FRAME["Label"] == "yes").astype(float).tolist()
    assert found.frame["patient_id"].tolist() == FRAME["Patient ID"].tolist()
    roles = {name: item["columns"] for name, item in found.record["roles"].items()}
    assert roles == {"label": ["Label"], "score": ["prob"], "patient": ["Patient ID"], "split": ["fold"], "groups": ["Sex", "Age"]}
    assert found.record["unused"] == ["view"]
    for line in ("  label:    Label", "  patient:  Patient ID", "  not used: view", "  label 'Label': 'yes' is the positive class"):
        assert line in found.said
    assert any("Age is cut into q4 bins" in line for line in found.said)


def test_of_what_was_named_nothing_is_said_but_the_rest_that_was_recognised() -> None:
    asked = Request(("Label",), ("prob",), groups=("Sex",), pos_label="yes")
    done = "label 'Label': 'yes' is the positive class"
    assert take_in(FRAME, asked).said == ("recognised by name: patient is 'Patient ID', split is 'fold'", done)
    assert take_in(FRAME, replace(asked, patient="Patient ID", split="fold")).said == (done,)
    assert take_in(FRAME, Request(groups=())).attributes == ()


def test_columns_without_text_names_and_twice() -> None:
    numbered = FRAME.rename(columns={"Label": 0, "prob": 1, "Sex": 2})
    assert take_in(numbered, Request(("0",), ("1",), groups=("2",))).attributes == ("2",)
    with pytest.raises(TableError, match="has 2 columns named 'Sex'"):
        take_in(pd.concat([FRAME, FRAME[["Sex"]]], axis=1), Request())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Request(("y",), ("y",)), "'y' is given as the label and as its own score"),
        (Request(("y",), ("p",), groups=("sex*y",)), "'y' is among the groups, but is the label or the score"),
        (Request(("y",), ("p",), groups=("age",), bins={"age": 4}), "must be edges, as 0,60,200, or quantiles"),  # type: ignore[dict-item]
    ],
)
def test_one_column_has_one_role(asked: Request, words: str) -> None:
    frame = pd.DataFrame({"y": [0, 1] * 5, "p": 0.5, "sex": "f", "age": range(10)})
    with pytest.raises(ConfigError, match=re.escape(words)):
        take_in(frame, asked)


def test_values_that_may_mean_missing_are_named() -> None:
    frame = FRAME.assign(Sex=np.where(np.arange(N) < 3, "Unknown", FRAME["Sex"]), Age=np.where(np.arange(N) < 4, -1, FRAME["Age"]))
    found = take_in(frame, Request())
    assert any("attribute 'Sex': 'Unknown' (3 rows) may stand for a missing value" in line for line in found.said)
    assert any("attribute 'Age': '-1' (4 rows) may stand for a missing value, but is cut into bins" in line for line in found.notes)
    assert not any("may stand for" in line for line in take_in(FRAME, Request()).said)


def test_quantiles_are_of_the_judged_patients() -> None:
    """Ages of the 30 test rows' 15 patients, each once, whatever the number of their images and the ages of others."""
    more = pd.concat([FRAME, FRAME[FRAME["fold"] == "Test"].head(2)], ignore_index=True)
    more.loc[more["fold"] == "Dev", "Age"] += 500
    found = take_in(more, Request(groups=("Age=q3", "Sex*Age")))
    ages = FRAME[FRAME["fold"] == "Test"].drop_duplicates("Patient ID")["Age"]
    edges = found.record["quantile_bins"]["Age"]["edges"]
    assert edges == pytest.approx(pd.qcut(ages, 3, retbins=True)[1])
    groups = audit_groups(found.frame, found.attributes, found.bins, 50)
    assert groups["Age"].keys == (f"[{edges[0]:g},{edges[1]:g})", f"[{edges[1]:g},{edges[2]:g})", f"[{edges[2]:g},{edges[3]:g}]")
    assert (groups["Age"].codes[(more["fold"] == "Dev").to_numpy()] == 2).all()
    assert len(groups["Sex*Age"].keys) == 6


def test_edges_win_over_quantiles_and_stored_groups() -> None:
    found = take_in(FRAME.assign(Age__group="all"), Request(bins={"Age": (0, 40, 100)}))
    assert audit_groups(found.frame, ["Age"], found.bins, 50)["Age"].keys == ("[0,40)", "[40,100)")
    assert take_in(FRAME.assign(Age__group="all"), Request()).record["quantile_bins"] == {}


def test_evenhands_own_columns_keep_their_decisions() -> None:
    own = pd.DataFrame({"y_true_a": [0, 1], "y_true_b": [1, 0], "y_score_a": [0.1, 0.9], "y_score_b": [0.2, 0.8], "y_pred_b": [1, 1]})
    found = take_in(own, Request())
    assert found.labels == ("a", "b")
    assert "y_pred_b" in found.frame
    assert "y_pred_a" not in found.frame
    classes = pd.DataFrame({"y_true": ["u", "v"], "y_score_u": [0.4, 0.2], "y_score_v": [0.6, 0.8], "y_pred": ["u", "v"]})
    assert take_in(classes, Request()).classes == ("u", "v")
    assert take_in(classes, Request()).frame["y_pred"].tolist() == ["u", "v"]


def test_class_names_of_numbers_with_gaps() -> None:
    frame = pd.DataFrame({"dx": [0, 1, np.nan, 2], "s_0": [0.5] * 4, "s_1": [0.3] * 4, "s_2": [0.2] * 4})
    found = take_in(frame, Request(("dx",), ("s_0", "s_1", "s_2")))
    assert found.classes == ("0", "1", "2")
    assert found.frame["y_true"].tolist()[:2] == ["0", "1"]
    assert pd.isna(found.frame["y_true"].iloc[2])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Request(("Lable",), ("prob",)), "there is no column 'Lable' .label.; did you mean 'Label'"),
        (Request(("Label",), ("proba",)), "there is no column 'proba' .score.; did you mean 'prob'"),
        (Request(("Label",), ("Age",)), "column 'Age' has 40 scores outside .0, 1. .*percentages"),
        (Request(("view",), ("prob",)), "column 'view' has 40 values that are not 0 or 1 .AP."),
        (Request(split="Sex"), "column 'Sex' has no row 'test' but 'f', 'm'"),
        (Request(groups=("Age=4",)), "write age=q4"), (Request(groups=("Sex*Age=q4",)), "write age=q4"),
        (Request(bins={"Age": "quartiles"}), "or quantiles, as q4"), (Request(bins={"view": "q4"}), "not among the groups"),
        (Request(groups=("Sex=q4",)), "column 'Sex' has 40 values that are not numbers"),
        (Request(("Label", "Sex"), ("prob",)), "2 labels, 1 scores and 0 decisions do not fit"),
        (Request(("Label",), ("prob",), ("view", "Sex")), "do not fit"),
    ],
)  # fmt: skip
def test_errors_use_the_users_names(asked: Request, words: str) -> None:
    with pytest.raises((TableError, ConfigError), match=words) as caught:
        take_in(FRAME, asked)
    assert "y_score" not in caught.value.summary
    assert "y_true" not in caught.value.summary


def test_a_positive_class_needs_one_score_column() -> None:
    frame = pd.DataFrame({"dx": ["mel", "nev", "bcc"] * 4, "p_mel": 0.5, "p_nev": 0.3, "p_bcc": 0.2})
    with pytest.raises(ConfigError, match=r"works with one --score column, .* as --label dx --score p_mel"):
        take_in(frame, Request(pos_label="mel"))
    assert take_in(frame, Request(label=("dx",), score=("p_mel",), pos_label="mel")).frame["y_true"].sum() == 4


@pytest.mark.parametrize(
    "columns",
    [
        {"y": [-1, 0, 1] * 4, "p": [0.5] * 12},
        {"y": [-1.0, 1, None] * 4, "p": [0.5] * 12},
        {"Edema": [-1, 0, 1] * 4, "Mass": [0, 1, 1] * 4, "score_Edema": [0.5] * 12, "score_Mass": [0.5] * 12},
        {"label_a": [-1, 0, 1] * 4, "label_b": [0, 1, 1] * 4, "score_a": [0.5] * 12, "score_b": [0.5] * 12},
        {"label": ["-1", "0", "1"] * 4, "prob_0": [0.5] * 12, "prob_1": [0.5] * 12},
    ],
)
def test_uncertain_labels_are_named_as_such(columns: dict[str, list[float]]) -> None:
    """Labels of -1, as CheXpert has them, with and without --label."""
    frame, name = pd.DataFrame(columns), next(iter(columns))
    for label in ((), (name,)):
        with pytest.raises(TableError, match=rf"column '{name}' is -1 in 4 rows, which CheXpert .* uncertain") as caught:
            take_in(frame, Request(label=label))
        assert caught.value.details[0] == f"row 1: {name} is -1"


def test_minus_one_may_be_the_negative_class() -> None:
    frame = pd.DataFrame({"y": [-1, 1] * 4, "p": 0.5})
    assert take_in(frame, Request(pos_label="1")).frame["y_true"].tolist() == [0.0, 1.0] * 4


@pytest.mark.parametrize("marks", [[True, False] * 6, [1, 0] * 6, ["True", "False"] * 6, ["1", "0"] * 6])
def test_a_flag_of_test_rows_is_a_split_where_nothing_else_can_be_meant(marks: list[object]) -> None:
    frame = pd.DataFrame({"y": [0, 1, 1] * 4, "p": 0.5, "is_test": marks})
    taken = take_in(frame, Request())
    assert taken.frame["split"].tolist() == ["test", "train"] * 6
    assert taken.record["roles"]["split"] == {"columns": ["is_test"], "how": "recognised"}
    for other in (frame.rename(columns={"is_test": "test"}), frame.assign(is_val=0), frame.assign(in_test=marks)):
        name = "test" if "test" in other else "is_test"
        taken = take_in(other, Request())
        assert "split" not in taken.frame
        assert any(f"column '{name}' may mark the test rows, but is not used" in note for note in taken.notes)
        assert take_in(other, Request(split=name)).frame["split"].tolist() == ["test", "train"] * 6
    # a split wins, and what is empty somewhere is no mark
    assert take_in(frame.assign(split="test"), Request()).record["roles"]["split"]["columns"] == ["split"]
    assert "split" not in take_in(frame.assign(is_test=[None, *marks[1:]]), Request()).frame
