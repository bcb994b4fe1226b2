"""Values that may mean "missing", and splits that nobody took for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.errors import TableError
from evenhand.evaluation.doubts import WORDS, doubtful, emptied, unused_splits
from evenhand.evaluation.intake import Request, take_in
from evenhand.evaluation.reading import read_predictions


@pytest.mark.parametrize("word", sorted(WORDS))
def test_words(word: str) -> None:
    frame = pd.DataFrame({"sex": ["f", "m", f" {word.upper()} ", word]})
    said = doubtful(frame, ["sex", "sex*age"], {}, (), None)
    assert len(said) == 1
    assert "is a group like any other" in said[0]


def test_codes_of_groups_and_numbers_of_measurements() -> None:
    frame = pd.DataFrame({"race": [1, 2, 9, -1, 99.0], "age": [30, 99, -1, 999, 9]})
    found = doubtful(frame, ["race"], {}, (), None)[0]
    assert ("'-1' (1 row)" in found, "'99' (1 row)" in found, "'9' " in found) == (True, True, False)
    found = doubtful(frame, ["age"], {}, {"age"}, None)[0]
    assert "'-1' (1 row)" in found
    assert "'999' (1 row)" in found
    assert "'99' " not in found
    assert doubtful(frame, ["age"], {"age": (0, 60, 1000)}, (), None) == []


def test_stored_groups_and_patients() -> None:
    frame = pd.DataFrame({"age": ["unknown", "30"], "age__group": ["[0,60)", "[0,60)"], "pid": ["unknown", "7"]})
    assert doubtful(frame, ["age"], {}, (), None) == []
    assert "may stand for an unknown patient" in doubtful(frame, [], {}, (), "pid")[0]
    assert doubtful(frame.assign(pid=[98, 99], site=[98, 99]), ["site"], {}, (), "pid") == []
    assert doubtful(frame.assign(pid=[1, 99]), [], {}, (), "pid") == []


def test_splits_under_other_names() -> None:
    frame = pd.DataFrame({"part_of": np.tile(["Train", "test"], 3), "view": "AP", "n": 1})
    assert [line[:16] for line in unused_splits(frame, ["part_of", "view", "n"])] == ["column 'part_of'"]


def test_words_for_empty_among_numbers_are_empty() -> None:
    frame = pd.DataFrame(
        {
            "age": ["61", " NA ", ".", "", None],
            "grade": pd.Categorical(["1", "2", "NULL", "2", "1"]),
            "race": ["NA", "white", "black", "white", "NA"],
            "site": ["01", "02", "NA", "02", "01"],
            "patient_id": ["1", "2", "NA", "4", "5"],
            "who": ["1", "2", "NA", "4", "5"],
            "void": ["NA"] * 5,
            "parts": [[1], [2], [3], [4], [5]],
            "mixed": [1, 2.5, "nan", None, 3],
        }
    )
    found, said = emptied(frame, ("who", None))
    assert found["age"].tolist()[:1] == [61.0]
    assert found["age"].isna().tolist() == [False, True, True, True, True]
    assert found["grade"].isna().sum() == 1
    assert found["mixed"].dropna().tolist() == [1.0, 2.5, 3.0]
    for name in ("race", "site", "patient_id", "who", "void", "parts"):
        pd.testing.assert_series_equal(found[name], frame[name])
    assert said == [
        "'.', 'NA', 'NULL', 'nan' count as empty in columns where all other cells are numbers: 'age' (2 cells), 'grade' (1 cell), "
        "'mixed' (1 cell)"
    ]
    assert emptied(frame[["race", "site"]])[1] == []


def test_missing_of_r_reaches_the_audit_as_missing(tmp_path: Path) -> None:
    """A table as R's write.csv and write.csv2 write it: ages cut, a label unlabelled, a score refused."""
    rows = [f"{k},{k % 2},0.{10 + k},{'NA' if k % 9 == 0 else 20.5 + k},{'NA' if k == 7 else k % 2}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["patient_id,y,p,age,z", *rows]))
    swapped = [row.replace(",", ";").replace(".", ",") for row in rows]
    (tmp_path / "b.csv").write_text("\n".join(["patient_id;y;p;age;z", *swapped]))
    for name in ("a.csv", "b.csv"):
        frame = read_predictions(tmp_path / name)
        taken = take_in(frame, Request(label=("z",), score=("p",), groups=("age",)))
        assert taken.frame["age"].isna().sum() == 7
        assert taken.frame["age"].dropna().iloc[0] == 21.5
        assert np.isnan(taken.frame["y_true"].to_numpy(float)).sum() == 1
        assert any("'age' (7 cells), 'z' (1 cell)" in note for note in taken.notes)
    with pytest.raises(TableError, match="1 scores that are empty"):
        take_in(frame.assign(p=["NA", *frame["p"].astype(str)[1:]]), Request(label=("y",), score=("p",), groups=()))
