"""Cells and their weights, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.cells import choose_attribute, equal_weights, groups_of, make_cells


def cells_of(groups, labels, labelled=None, by="group_label"):
    codes = np.array(groups)
    known = np.ones(len(codes), dtype=bool) if labelled is None else np.array(labelled)
    return make_cells(Groups("g", tuple("abc"), codes), "y", np.array(labels), known, by)


def test_weights_by_hand():
    cells = cells_of([0, 0, 0, 1, 1, -1, 1], [0, 0, 1, 1, 1, 0, 0], [True] * 6 + [False])
    assert cells.names == ("g=a, y=0", "g=a, y=1", "g=b, y=1")
    np.testing.assert_array_equal(cells.codes, [0, 0, 1, 2, 2, -1, -1])
    # five rows in three cells of 2, 1, 2: 5 / (3 * n_cell); rows in no cell weigh 1
    np.testing.assert_allclose(equal_weights(cells), [5 / 6, 5 / 6, 5 / 3, 5 / 6, 5 / 6, 1, 1])


def test_cells_by_group_alone():
    cells = cells_of([0, 1, 1, -1], [0, 1, 0, 1], by="group")
    assert cells.names == ("g=a", "g=b")
    np.testing.assert_array_equal(cells.codes, [0, 1, 1, -1])


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_every_cell_has_the_same_total_and_the_mean_is_one(rows):
    cells = cells_of([g for g, _ in rows], [y for _, y in rows])
    weights = equal_weights(cells)
    known = cells.codes >= 0
    np.testing.assert_allclose(weights[~known], 1)
    if known.any():
        totals = np.bincount(cells.codes[known], weights[known])
        np.testing.assert_allclose(totals, totals[0])
        assert weights[known].mean() == pytest.approx(1)


def test_one_group_and_no_attribute_are_refused(make_task):
    task = make_task(attributes=())
    with pytest.raises(MethodError, match="has none"):
        choose_attribute(task, None)
    task = make_task()
    task.train.groups["site"].codes[:] = 1
    with pytest.raises(MethodError, match="'site' has 1 group"):
        groups_of(task.train, "site")
