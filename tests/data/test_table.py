"""The table contract: everything wrong is found at once, with its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.data.notes import drop_missing, table_notes
from evenhand.data.table import TableSpec, check_table, class_names, infer_kind, label_array, read_table, validate
from evenhand.errors import InputError, TableError


def table(**columns: list[object]) -> pd.DataFrame:
    base: dict[str, list[object]] = {
        "image": ["a", "b", "c", "d"], "patient_id": ["1", "1", "2", "3"], "split": ["train", "train", "val", "test"],
        "y": ["0", "1", "0", "1"], "sex": ["f", "f", "m", None], "age": ["0", "59", "60", "100"],
    }
    return pd.DataFrame(base | columns)


SPEC = TableSpec(("y",), ("sex", "age", "sex*age"), {"age": (0, 60, 200)})


def test_a_good_table_has_no_problems_and_age_zero_is_an_age() -> None:
    assert validate(table(), SPEC) == []


def test_all_problems_come_at_once_with_their_rows() -> None:
    bad = table(image=["a", "./a", "c", ""], y=["0", "2", "x", "1"], age=["-1", "5", "old", "300"], split=["train", "test", "dev", "test"])
    text = "\n".join(validate(bad, SPEC))
    for words in (
        "image 'a' is listed 2 times (rows 1, 2)", "'image' is empty in row 4", "row 2: y is '2'", "row 3: y is 'x'", "row 1: age is '-1'",
        "row 3: age is 'old'", "row 4: age is '300'", "row 3: split is 'dev'", "one patient is in the splits test, train (rows 1, 2)",
    ):
        assert words in text
    with pytest.raises(TableError, match="problems") as caught:
        check_table(bad, SPEC)
    assert caught.value.exit_code == 2
    assert len(caught.value.details) == len(validate(bad, SPEC))


def test_messages_hold_no_patient_ids() -> None:
    bad = table(patient_id=["SECRET", "SECRET", "b", "c"], split=["train", "test", "val", "test"])
    assert "SECRET" not in "\n".join(validate(bad, SPEC))


@pytest.mark.parametrize(
    ("columns", "spec", "words"),
    [
        ({}, TableSpec(("yy",)), "did you mean 'y'?"),
        ({}, TableSpec(("y",), ("Sex",)), "did you mean 'sex'?"),
        ({}, TableSpec(("y",), ("sex",), {"age": (0, 1)}), "bins were given for 'age'"),
        ({"y": ["1", "1", "1", None]}, TableSpec(("y",)), "one class only"),
        ({"y": [None] * 4}, TableSpec(("y",)), "is empty in every row"),
        ({"sex": [None, "", " ", None]}, TableSpec(("y",), ("sex",)), "missing in all 4 rows"),
        ({}, TableSpec(("y",), ("age",), max_groups=3), "4 groups, more than max_groups = 3; give edges"),
        ({"sex": ["a", "b", "c", "d"]}, TableSpec(("y",), ("sex*age",), {"age": (0, 60, 200)}, max_groups=3), "more than max_groups"),
        ({}, TableSpec(("y",), ("sex",), missing="error"), "missing in row 4"),
        ({"patient_id": ["1", None, "2", "3"]}, TableSpec(("y",)), "'patient_id' is empty in row 2"),
        ({}, TableSpec(("y",), ("age",), {"age": (60, 0)}), "increasing edges"),
    ],
)
def test_each_breach(columns: dict[str, list[object]], spec: TableSpec, words: str) -> None:
    problems = validate(table(**columns), spec)
    assert len(problems) == 1
    assert words in problems[0]


def test_one_class_in_one_label_of_many_is_said_and_goes_on() -> None:
    frame = table(z=["0", "0", "0", "0"])
    spec = TableSpec(("y", "z"), kind="multilabel")
    assert validate(frame, spec) == []
    assert any("'z' has one class in the whole table" in note for note in table_notes(frame, spec))
    assert validate(table(y=["1"] * 4, z=["0"] * 4), spec)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert [problem.split(":")[0] for problem in validate(table(), SPEC, tmp_path)] == ["row 2", "row 3", "row 4"]


def test_labels_as_numbers() -> None:
    labels = label_array(table(y=["0", "1.0", "True", None]), SPEC)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [[0], [1], [1], [np.nan]])
    frame = table(y=["nv", "mel", "", "bcc"])
    spec = TableSpec(("y",), kind="multiclass", classes=class_names(frame, "y"))
    assert spec.classes == ("bcc", "mel", "nv")
    assert label_array(frame, spec).tolist() == [2, 1, -1, 0]
    with pytest.raises(TableError, match="not 0 or 1"):
        label_array(frame, SPEC)


def test_kind_is_told_from_the_labels_but_never_guessed_between_two_words() -> None:
    assert infer_kind(table(), ["y"]) == "binary"
    assert infer_kind(table(), ["y", "sex"]) == "multilabel"
    assert infer_kind(table(y=["a", "b", "c", None]), ["y"]) == "multiclass"
    assert infer_kind(table(y=["0", "1", "2", "1"]), ["y"]) == "binary"  # and validate says which row is not 0/1
    with pytest.raises(InputError, match="write 0 and 1"):
        infer_kind(table(y=["benign", "malignant", "benign", "benign"]), ["y"])


def test_reading_keeps_text_and_finds_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffimage,id,sex\na,007,NA\nb,8,\n", encoding="utf-8")
    frame = read_table(tmp_path / "a.csv")
    assert frame["id"].tolist() == ["007", "8"]
    assert frame["sex"].isna().all()
    (tmp_path / "a.tsv").write_text("image\tid\na\t007\n")
    assert read_table(tmp_path / "a.tsv")["id"].tolist() == ["007"]
    pd.DataFrame({"image": ["a", "b"], "y": [1.0, None], "k": [3, 4]}).to_parquet(tmp_path / "a.parquet")
    frame = read_table(tmp_path / "a.parquet")
    assert frame["y"].tolist()[0] == "1"
    assert frame["y"].isna().tolist() == [False, True]


@pytest.mark.parametrize("content", ["", "image,y\n", "a,b\n1,2,3\n4\n\"x"])
def test_unreadable_tables(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="not a file"):
        read_table(tmp_path)


def test_notes_say_what_is_missing_and_small() -> None:
    text = "\n".join(table_notes(table(age=["10", "70", "60", "100"]), SPEC))
    assert "'sex' is missing in 1 of 4 rows" in text
    assert "groups of one patient: f, m" in text
    assert "1 patient is in more than one group of 'age'" in text


def test_drop_keeps_a_reason() -> None:
    kept, dropped = drop_missing(table(), SPEC)
    assert len(kept) == 3
    assert dropped["reason"].tolist() == ["attribute 'sex' is missing"]


def test_spec_survives_yaml_types_and_refuses_nonsense() -> None:
    assert TableSpec.from_dict(SPEC.to_dict()) == SPEC
    for options in ({"kind": "ternary"}, {"missing": "guess"}, {"labels": ()}, {"labels": ("a", "b")}, {"max_groups": 0}):
        with pytest.raises(InputError):
            TableSpec(**({"labels": ("y",)} | options))  # type: ignore[arg-type]
