"""A second table joined by a key: pandas agrees, and nothing is lost or doubled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.metadata import join_metadata

SCORES = pd.DataFrame({"id": ["a", "b", "a", "c"], "p": [0.1, 0.2, 0.3, 0.4], "sex": ["f", "m", "f", "m"]})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.sets(st.integers(0, 9), min_size=1))
def test_it_is_pandas_left_join(ids: list[int], known: set[int]) -> None:
    frame = pd.DataFrame({"id": ids, "row": range(len(ids))})
    other = pd.DataFrame({"id": sorted(known), "age": [10.0 * k for k in sorted(known)]})
    if not set(ids) & known:
        with pytest.raises(TableError, match="none of the"):
            join_metadata(frame, other, "id")
        return
    found = join_metadata(frame, other, "id")
    pd.testing.assert_frame_equal(found.frame, frame.merge(other, on="id", how="left"))
    assert found.record["rows_without"] == sum(k not in known for k in ids)
    assert found.record["keys_unused"] == len(known - set(ids))


def test_keys_are_compared_as_text() -> None:
    frame = pd.DataFrame({"pid": [7, 8]})
    assert join_metadata(frame, pd.DataFrame({"k": ["8", " 7"], "age": [1, 2]}), "pid=k").frame.age.tolist() == [2, 1]
    codes = pd.DataFrame({"pid": ["007", "7"]})
    assert join_metadata(codes, pd.DataFrame({"pid": ["7", "007"], "age": [1, 2]})).frame.age.tolist() == [2, 1]


def test_what_does_not_match_is_said() -> None:
    other = pd.DataFrame({"id": ["a", "b", "d"], "sex": ["x", "x", "x"], "age": [1, 2, 3]})
    found = join_metadata(SCORES, other, "id")
    assert found.frame.sex.tolist() == SCORES.sex.tolist()
    assert np.isnan(found.frame.age.iloc[3])
    assert found.notes == (
        "1 rows (1 values of 'id') have no row in the metadata; their attributes are missing",
        "columns sex are in the table and in the metadata; the table's own were used",
    )


@pytest.mark.parametrize(
    ("other", "on", "error", "words"),
    [
        ({"id": ["a", "a"], "age": [1, 2]}, "id", TableError, "1 values that stand in several rows"),
        ({"id": ["x"], "age": [1]}, "id", TableError, "none of the 3 values of column 'id'"),
        ({"id": ["a"], "age": [1]}, "idd", TableError, "did you mean 'id'"),
        ({"k": ["a"], "age": [1]}, "id=kk", TableError, "there is no column 'kk' .key of the metadata.; did you mean 'k'"),
        ({"k": ["a"], "age": [1]}, None, ConfigError, "no column is in both"),
        ({"id": ["a"], "sex": ["f"]}, None, ConfigError, "2 columns are in both .id, sex."),
    ],
)
def test_bad_keys(other: dict[str, object], on: str | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        join_metadata(SCORES, pd.DataFrame(other), on)
