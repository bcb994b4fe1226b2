"""Groups: codes stay codes, and quantile bins hold what pandas says they hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.data.groups import category_groups, quantile_edges, quantile_groups
from evenhand.errors import TableError


def test_codes_keep_their_zeros_and_long_numbers_their_digits() -> None:
    assert category_groups(pd.Series(["01", "1", "10"]), "site").keys == ("01", "1", "10")
    assert category_groups(pd.Series(["1", "1.0", "10", "9"]), "site").keys == ("1", "9", "10")
    assert category_groups(pd.Series([1234567, 1234568]), "site").keys == ("1234567", "1234568")


@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", " a", "b", "", "1", "02"]), st.integers(0, 3)), max_size=30))
def test_categories_are_the_distinct_texts(values: list[object]) -> None:
    found = category_groups(pd.Series(values, dtype=object), "x")
    names = found.names()
    assert [name is None for name in names] == [value is None or str(value).strip() == "" for value in values]
    assert all(name == str(value).strip() for name, value in zip(names, values, strict=True) if name is not None)
    assert sorted(set(found.codes[found.codes >= 0])) == list(range(len(found.keys)))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=60, unique=True), st.integers(2, 5))
def test_quantile_bins_are_those_of_pandas(values: list[float], n_bins: int) -> None:
    """pandas closes bins on the right; the bins are the same where no value lies on an inner edge."""
    series = pd.Series(values)
    edges = quantile_edges(series.to_numpy(), n_bins, "x")
    theirs, their_edges = pd.qcut(series, n_bins, labels=False, retbins=True)
    assert np.asarray(edges) == pytest.approx(their_edges)
    inside = ~series.isin(edges[1:-1]).to_numpy()
    assert (quantile_groups(series, edges, "x").codes[inside] == theirs.to_numpy()[inside]).all()


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(2, 6))
def test_ties_stay_together_and_every_row_has_a_bin(values: list[int], n_bins: int) -> None:
    series = pd.Series(values, dtype=float)
    if np.quantile(series, (n_bins - 1) / n_bins) == series.min():
        with pytest.raises(TableError, match="give edges"):
            quantile_edges(series.to_numpy(), n_bins, "x")
        return
    edges = quantile_edges(series.to_numpy(), n_bins, "x")
    found = quantile_groups(series, edges, "x")
    assert (found.codes >= 0).all()
    assert len(set(found.keys)) == len(found.keys)
    assert found.keys[-1].endswith("]")
    assert pd.Series(found.codes).groupby(series).nunique().eq(1).all()
    assert list(found.codes[np.argsort(series)]) == sorted(found.codes)


def test_rows_outside_the_edges_fall_into_the_outermost_bins() -> None:
    assert list(quantile_groups(pd.Series([-5, 1, 99, None]), (0, 1, 2), "x").codes) == [0, 1, 1, -1]
    with pytest.raises(TableError, match="1 value that is no number") as caught:
        quantile_groups(pd.Series(["1", "old"]), (0, 1, 2), "age")
    assert caught.value.details == ("row 2: age is 'old'",)
