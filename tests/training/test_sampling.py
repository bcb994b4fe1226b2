"""Orders are permutations, balanced ones see cells equally often, batches lose no row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenhand.errors import InputError
from evenhand.training.sampling import balanced_order, epoch_order, even_batches


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own():
    rows = np.array([3, 5, 8, 13, 21, 34, 55, 89])
    first, second = epoch_order(rows, 0, 1), epoch_order(rows, 0, 2)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(rows, 0, 1).tolist()


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60).filter(lambda cells: max(cells) >= 0), st.integers(0, 5))
def test_balanced_orders_are_balanced(cells, epoch):
    codes = np.array(cells)
    order = balanced_order(np.arange(len(codes)), codes, 0, epoch)
    seen = np.bincount(codes[order], minlength=5)[np.unique(codes[codes >= 0])]
    assert len(order) == (codes >= 0).sum()
    assert seen.max() - seen.min() <= 1
    for cell in np.unique(codes[order]):
        times = np.bincount(order[codes[order] == cell], minlength=len(codes))[codes == cell]
        assert times.max() - times.min() <= 1


def test_balancing_without_any_cell_is_refused():
    with pytest.raises(InputError, match="no training row has a group and a label"):
        balanced_order(np.arange(3), np.full(3, -1), 0, 1)


@given(st.integers(0, 300), st.integers(1, 70))
def test_batches_cover_all_rows_and_are_even(n, size):
    batches = even_batches(n, size)
    sizes = [batch.stop - batch.start for batch in batches]
    assert [k for batch in batches for k in range(batch.start, batch.stop)] == list(range(n))
    assert len(batches) == -(-n // size)
    assert not sizes or (max(sizes) - min(sizes) <= 1 and max(sizes) <= size)
