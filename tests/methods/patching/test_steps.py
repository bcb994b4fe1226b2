"""Passes: the gradient of a bias over the whole set from batches, draws, learning rates, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.errors import MethodError, NonFiniteLossError
from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.judging import Judgement, judge, pick, rank_bias
from evenhand.methods.patching.outcome import Cost
from evenhand.methods.patching.rows import PatchRows, absent_cells
from evenhand.methods.patching.steps import Objective, Passes, all_logits, run_epoch
from evenhand.methods.patching.updates import MaskedUpdate

from .scenes import make_task, scene, tiny

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Scores(torch.nn.Module):
    """Two means of an image -> a logit."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1).double()

    def forward(self, x):
        x = x.double()
        return self.linear(torch.stack([x[:, 0, :4].mean(dim=(1, 2)), x[:, 0, 12:20, 12:20].mean(dim=(1, 2))], dim=1))


def rows_of(split, attributes=("sex",), **fields):
    return PatchRows.of(split, make_task(split, **fields), attributes)


def summed_gradient(rows, balanced, batch_size):
    """Sum over an epoch's batches of (rows in the batch / rows drawn) times the batch's gradient of B over the whole set."""
    model, term = Scores(), BiasTerm("eodds")
    objective = Objective(term, "binary", 1.0, 0.0, "set", logits=all_logits(model, rows, 16, CPU))
    order = rows.order(0, 1, balanced)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for batch in rows.batches(order, batch_size, CPU, balanced=balanced):
        value, _, _ = objective(model(batch.x), batch, rows)
        found = torch.autograd.grad(value, list(model.parameters()))
        for entry, gradient in zip(total, found, strict=True):
            entry += gradient * len(batch.x) / len(order)
    x = rows.split.x.batch(slice(None))
    expected = torch.autograd.grad(term(model(x), rows.y, rows.groups), list(model.parameters()))
    return total, expected


@pytest.mark.parametrize("batch_size", [7, 16, 64])
def test_batches_add_up_to_the_gradient_of_the_bias_on_all_rows(batch_size):
    total, expected = summed_gradient(rows_of(scene(48, 3)), False, batch_size)
    for entry, gradient in zip(total, expected, strict=True):
        torch.testing.assert_close(entry, gradient, rtol=1e-4, atol=1e-7)


def test_also_where_small_cells_are_drawn_more_often():
    """With cells of 4, 8, 12 and 24 rows an epoch of 48 draws has each row 3, 1.5, 1 and 0.5 times on average."""
    split = scene(48, 3)
    sizes = np.repeat([0, 1, 2, 3], [4, 8, 12, 24])
    groups = {"sex": replace(split.groups["sex"], codes=sizes // 2)}
    split = replace(split, y=(sizes % 2)[:, None].astype(np.float32), groups=groups)
    rows = rows_of(split)
    assert np.unique(rows.draws(True)).tolist() == [0.5, 1.0, 1.5, 3.0]
    model, term = Scores(), BiasTerm("eodds")
    total = [torch.zeros_like(p) for p in model.parameters()]
    epochs = 40
    for epoch in range(1, epochs + 1):
        objective = Objective(term, "binary", 1.0, 0.0, "set", logits=all_logits(model, rows, 16, CPU))
        order = rows.order(0, epoch, True)
        for batch in rows.batches(order, 12, CPU, balanced=True):
            found = torch.autograd.grad(objective(model(batch.x), batch, rows)[0], list(model.parameters()))
            for entry, gradient in zip(total, found, strict=True):
                entry += gradient * len(batch.x) / len(order) / epochs
    expected = torch.autograd.grad(term(model(split.x.batch(slice(None))), rows.y, rows.groups), list(model.parameters()))
    # rows of the largest cell are in half of the epochs
    for entry, gradient in zip(total, expected, strict=True):
        torch.testing.assert_close(entry, gradient, rtol=0.1, atol=0.02)


def test_rows_without_a_group_do_not_make_the_bias_count_more():
    """A balanced epoch leaves them out: here 24 of 48 rows are drawn, once each, as every cell has six."""
    split = scene(48, 3)
    cell = np.tile([0, 1, 2, 3], 12)
    codes = np.where(np.arange(48) < 24, -1, cell // 2)
    groups = {"sex": replace(split.groups["sex"], codes=codes)}
    rows = rows_of(replace(split, y=(cell % 2)[:, None].astype(np.float32), groups=groups))
    assert sorted(rows.order(0, 1, True)) == list(range(24, 48))
    total, expected = summed_gradient(rows, True, 8)
    for entry, gradient in zip(total, expected, strict=True):
        torch.testing.assert_close(entry, gradient, rtol=1e-4, atol=1e-7)


def test_a_pass_is_torchs_own_loop_where_nothing_is_masked():
    rows, ours, theirs = rows_of(scene(40, 5)), tiny("resnet"), tiny("resnet")
    objective = Objective(None, "binary", 0.0, 1.0)
    passes = Passes("impair", 1, 0.05, "constant", 16, False, True, 0, CPU)
    run_epoch(1, ours, ours, rows, objective, MaskedUpdate(dict(ours.network.named_parameters())), passes, cost := Cost(rows=40))
    assert (cost.forward, cost.backward, cost.passes) == (40, 40, 3.0)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    from evenhand.random import derive_seed

    for batch in rows.batches(rows.order(derive_seed(0, "patch", "impair"), 1, False), 16, CPU):
        optimizer.zero_grad()
        objective(theirs(batch.x), batch, rows)[0].backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_batch_statistics_are_held_unless_they_are_released():
    rows = rows_of(scene(24, 5))
    for hold in (True, False):
        model = tiny("resnet")
        before = {name: value.clone() for name, value in model.named_buffers()}
        update = MaskedUpdate(dict(model.network.named_parameters()))
        passes = Passes("impair", 1, 0.1, "constant", 8, False, hold, 0, CPU)
        run_epoch(1, model, model, rows, Objective(None, "binary"), update, passes, Cost())
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers()) == hold
        assert not model.training


def test_a_batch_of_one_cannot_have_statistics():
    model, rows = tiny("resnet"), rows_of(scene(4, 5))
    passes = Passes("impair", 1, 0.1, "constant", 1, False, False, 0, CPU)
    with pytest.raises(MethodError, match=r"batch norms .*batch_size to 2"):
        run_epoch(1, model, model, rows, Objective(None, "binary"), MaskedUpdate(dict(model.network.named_parameters())), passes, Cost())
    run_epoch(
        1, model, model, rows, Objective(None, "binary"), MaskedUpdate(dict(model.network.named_parameters())),
        replace(passes, hold_norms=True), Cost(),
    )


def test_a_loss_that_is_not_finite_stops_with_what_to_do():
    model, rows = tiny("resnet"), rows_of(scene(24, 5))
    update = MaskedUpdate(dict(model.network.named_parameters()))
    with torch.no_grad():
        model.network.fc.bias.fill_(torch.inf)
    passes = Passes("impair", 9, 1e-3, "constant", 8, False, True, 0, CPU)
    with pytest.raises(NonFiniteLossError, match=r"epoch 4; lower method.impair_lr"):
        run_epoch(4, model, model, rows, Objective(None, "binary"), update, passes, Cost())


def test_cells_without_rows_are_named():
    split = scene(40, 1)
    y = np.where(split.groups["sex"].codes == 1, 0.0, split.y[:, 0])[:, None].astype(np.float32)
    assert absent_cells(rows_of(replace(split, y=y))) == ["sex=m, ill=1"]
    assert absent_cells(rows_of(split)) == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 10), shift=st.floats(-3, 3))
def test_the_judged_gap_reads_the_order_of_scores_only(seed, scale, shift):
    rng = np.random.default_rng(seed)
    n = 120
    z, y, codes = rng.standard_normal(n), rng.integers(0, 2, n), rng.integers(-1, 3, n)
    assert rank_bias(z, y, codes, (1, 0)) == pytest.approx(rank_bias(np.tanh(scale * z / 10) + shift, y, codes, (1, 0)), abs=0.02)
    assert 0.0 <= rank_bias(z, y, codes, (1, 0)) <= 2.0


def test_the_judged_gap_by_hand():
    """Group 1 always scores above group 0 among the ill: at a share t of rows above the cut, rates are min(1, 2t) and max(0, 2t - 1)."""
    score, codes = np.arange(40.0), np.repeat([0, 1], 20)
    expected = np.mean([min(1.0, 2 * t) - max(0.0, 2 * t - 1) for t in np.linspace(0.05, 0.95, 19)])
    assert rank_bias(score, np.ones(40, int), codes, (1, 0)) == pytest.approx(expected, abs=0.02)
    assert np.isnan(rank_bias(score[:25], np.ones(25, int), codes[:25], (1,)))  # five rows are too few


def test_a_collapsed_state_is_never_kept():
    delivered = Judgement(0.4, 0.8)
    assert pick([Judgement(0.4, 0.8), Judgement(0.0, 0.5)], delivered, 0.01) == 0
    assert pick([Judgement(0.0, 0.5), Judgement(0.1, 0.7)], delivered, 0.01) == 1  # none is good enough: the highest AUC
    assert pick([Judgement(0.2, 0.8), Judgement(0.2, 0.9)], delivered, 0.01) == 0  # the earliest of equals
    assert pick([Judgement(None, None)] * 3, delivered, 0.01) == 2


@pytest.mark.parametrize(("kind", "outputs"), [("binary", 1), ("multilabel", 2), ("multiclass", 3)])
def test_every_kind_is_judged(kind, outputs):
    split = scene(200, 4, kind=kind)
    logits = np.random.default_rng(0).standard_normal((200, outputs))
    found = judge(logits, split, ("sex", "site"), kind, "eodds", "sum")
    largest = judge(logits, split, ("sex", "site"), kind, "eodds", "max")
    assert found.bias > largest.bias > 0
    assert 0.3 < found.auc < 0.7
    assert judge(logits[:0], replace(split, index=split.index[:0]), ("sex",), kind, "eodds") == Judgement(None, None)
