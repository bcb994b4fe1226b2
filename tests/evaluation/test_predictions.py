"""Reading and writing tables of predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.data.groups import category_groups
from evenhand.errors import InputError, TableError
from evenhand.evaluation import make_predictions, read_predictions, write_predictions
from evenhand.evaluation.predictions import find_labels, outcomes_of


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_table_survives_a_round_trip(tmp_path: Path, make_table: Callable[..., pd.DataFrame], name: str) -> None:
    frame = make_table(20)
    write_predictions(frame, tmp_path / "deep" / name)
    back = read_predictions(tmp_path / "deep" / name)
    assert back.y_score.to_numpy() == pytest.approx(frame.y_score.to_numpy())
    assert list(back.columns) == list(frame.columns)
    assert [item.name for item in (tmp_path / "deep").iterdir()] == [name]


def test_ids_stay_text_and_only_empty_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("patient_id;y_true;y_score;race\n007;1;0.5;NA\n7;0;0.4;\n")
    frame = read_predictions(tmp_path / "a.csv")
    assert list(frame.patient_id) == ["007", "7"]
    assert frame.race.iloc[0] == "NA"
    assert pd.isna(frame.race.iloc[1])


def test_a_run_folder_is_read(tmp_path: Path, make_table: Callable[..., pd.DataFrame]) -> None:
    write_predictions(make_table(10), tmp_path / "predictions.parquet")
    assert len(read_predictions(tmp_path)) == 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"\x00\x01\x02", "not text"),
        (b"a,b\n\xff\xfe,1\n", "cannot be read"),
        (b"a,b\n1,2,3\n4\n5,6,7,8\n", "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_predictions(tmp_path / "a.csv")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path / "a.parquet")


def test_make_predictions_in_the_contracts_columns() -> None:
    rows = {"image": ["a", "b"], "patient": ["p", "q"], "split": ["val", "test"], "seed": 3}
    sex = category_groups(pd.Series(["f", None]), "sex")
    one = make_predictions(
        **rows,
        y_true=np.array([[0.0], [1.0]]),
        y_score=np.array([[0.1], [0.9]]),
        labels=["y"],
        attributes={"sex": ["f", None]},
        groups={"sex": sex},
    )
    assert list(one.columns) == ["image", "patient_id", "split", "seed", "y_true", "y_score", "sex", "sex__group"]
    assert find_labels(one) == (("label",), ())
    many = make_predictions(
        **rows, y_true=np.array([[0, 1], [np.nan, 1]]), y_score=np.full((2, 2), 0.3), labels=["u", "v"], decisions=np.ones((2, 2), int)
    )
    assert find_labels(many) == (("u", "v"), ())
    kind, found = outcomes_of(many, ["u", "v"])
    assert kind == "multilabel"
    assert np.isnan(found[0].y_true[1])
    assert found[1].decision is not None
    classes = make_predictions(
        **rows, y_true=np.array([1, -1]), y_score=np.array([[0.2, 0.8], [0.6, 0.4]]), labels=["dx"], classes=["mel", "nv"]
    )
    assert find_labels(classes) == (("label",), ("mel", "nv"))
    kind, found = outcomes_of(classes, ["dx"], ["mel", "nv"])
    assert (kind, [list(item.decision) for item in found if item.decision is not None]) == ("multiclass", [[0, 1], [1, 0]])
    assert list(found[1].y_true[:1]) == [1.0]
    assert np.isnan(found[1].y_true[1])


def test_unknown_classes_are_refused_with_rows() -> None:
    frame = pd.DataFrame({"y_true": ["a", "x"], "y_score_a": [0.5, 0.5], "y_score_b": [0.5, 0.5]})
    with pytest.raises(TableError, match="none of the classes a, b") as caught:
        outcomes_of(frame, ["dx"], ["a", "b"])
    assert caught.value.details == ("row 2: y_true is 'x'",)


def test_a_table_without_labels_says_what_it_has() -> None:
    with pytest.raises(TableError, match="has no columns y_true and y_score"):
        find_labels(pd.DataFrame({"p": [0.1]}))
