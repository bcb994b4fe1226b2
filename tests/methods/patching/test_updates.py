"""Masked steps: torch's own optimisers where everything moves, and not a bit elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.errors import MethodError
from evenhand.methods.patching.updates import MaskedUpdate


def parameters(seed=0, n=2):
    generator = torch.Generator().manual_seed(seed)
    return {f"p{k}": torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for k in range(n)}


def walk(update, params, steps=5, lr=0.1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in params.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        update(lr)


def bits(tensor):
    return tensor.detach().view(torch.int32)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 5e-2)])
def test_without_a_mask_it_is_torchs_sgd(momentum, decay):
    ours, theirs = parameters(), parameters()
    reference = torch.optim.SGD(theirs.values(), lr=0.1, momentum=momentum, weight_decay=decay)
    walk(MaskedUpdate(ours, momentum=momentum, weight_decay=decay).step, ours)
    walk(lambda lr: reference.step(), theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_without_a_mask_it_is_torchs_adamw():
    ours, theirs = parameters(), parameters()
    reference = torch.optim.AdamW(theirs.values(), lr=0.1, weight_decay=0.02)
    walk(MaskedUpdate(ours, optimizer="adam", weight_decay=0.02).step, ours)
    walk(lambda lr: reference.step(), theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_inside_the_mask_it_moves_as_if_there_were_no_other_weights(optimizer):
    whole, part = parameters(n=1), parameters(n=1)
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[1:3] = True
    walk(MaskedUpdate(whole, optimizer=optimizer, weight_decay=0.1).step, whole)
    walk(MaskedUpdate(part, {"p0": mask}, optimizer=optimizer, weight_decay=0.1).step, part)
    assert torch.equal(whole["p0"][mask], part["p0"][mask])
    assert torch.equal(part["p0"][~mask], parameters(n=1)["p0"][~mask])


@settings(max_examples=40, deadline=None)
@given(
    optimizer=st.sampled_from(["sgd", "adam"]), l1=st.sampled_from([0.0, 0.3]), l1_on=st.sampled_from(["weights", "change"]),
    soft=st.booleans(), seed=st.integers(0, 10**6),
)
def test_outside_the_mask_not_a_bit_changes(optimizer, l1, l1_on, soft, seed):
    """Negative zeros, infinities and NaN included, whatever momentum, decay and L1 do."""
    generator = torch.Generator().manual_seed(seed)
    params = parameters(seed, 1)
    with torch.no_grad():
        params["p0"].view(-1)[:5] = torch.tensor([-0.0, 0.0, torch.inf, torch.nan, 1e-42])
    before = bits(params["p0"]).clone()
    mask = torch.rand(4, 3, generator=generator) < 0.5
    mask.view(-1)[:5], mask[-1, -1] = False, True
    given_mask = torch.where(mask, torch.rand(4, 3, generator=generator) + 0.1, 0.0) if soft else mask
    update = MaskedUpdate(params, {"p0": given_mask}, optimizer=optimizer, weight_decay=0.1, l1=l1, l1_on=l1_on)
    walk(update.step, params, seed=seed)
    assert torch.equal(bits(params["p0"])[~mask], before[~mask])
    if not (l1 and l1_on == "change"):  # which pulls small changes back to none
        assert not torch.equal(params["p0"][mask], before.view(torch.float32)[mask])


def test_the_released_way_lets_decay_move_what_is_masked():
    """1.0 -> 0.955 in 100 steps at rate 0.1, momentum 0.9 and decay 5e-4, as measured on the released code."""
    params = {"p": torch.nn.Parameter(torch.ones(2))}
    update = MaskedUpdate(params, {"p": torch.tensor([True, False])}, momentum=0.9, weight_decay=5e-4, exact=False)
    for _ in range(100):
        params["p"].grad = torch.zeros(2)
        update.step(0.1)
    assert round(params["p"].tolist()[1], 3) == 0.955


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_soft_mask_scales_steps(optimizer):
    """Also those of Adam, which divides gradients by their size: scaling them instead would change next to nothing."""
    params = {"p": torch.nn.Parameter(torch.zeros(4))}
    update = MaskedUpdate(params, {"p": torch.tensor([0.0, 1e-3, 0.25, 1.0])}, optimizer=optimizer)
    for size in (1.0, 3.0, 0.5):
        params["p"].grad = torch.full((4,), size)
        update.step(0.4)
    moved = params["p"].detach()
    assert moved[3] < -1
    torch.testing.assert_close(moved / moved[3], torch.tensor([0.0, 1e-3, 0.25, 1.0]))


def test_the_released_way_lets_adam_cancel_a_soft_mask():
    params = {"p": torch.nn.Parameter(torch.zeros(3))}
    update = MaskedUpdate(params, {"p": torch.tensor([0.01, 0.25, 1.0])}, optimizer="adam", exact=False)
    for _ in range(5):
        params["p"].grad = torch.ones(3)
        update.step(0.1)
    torch.testing.assert_close(params["p"].detach(), torch.full((3,), -0.5), rtol=1e-4, atol=0.0)


def test_l1_on_the_change_leaves_small_movers_where_they_were():
    params = {"p": torch.nn.Parameter(torch.tensor([1.0, 1.0]))}
    update = MaskedUpdate(params, {"p": torch.tensor([True, True])}, momentum=0.0, l1=0.5, l1_on="change")
    params["p"].grad = torch.tensor([0.4, 2.0])
    update.step(0.1)
    assert params["p"].tolist() == [1.0, pytest.approx(0.85)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_goes_on_where_it_was(optimizer):
    through, cut = parameters(), parameters()
    options = {"optimizer": optimizer, "weight_decay": 0.01, "l1": 0.01, "l1_on": "change"}
    update = MaskedUpdate(through, **options)
    walk(update.step, through, steps=3, seed=1)
    walk(update.step, through, steps=3, seed=2)
    first = MaskedUpdate(cut, **options)
    walk(first.step, cut, steps=3, seed=1)
    second = MaskedUpdate(cut, **options)
    second.load_state_dict(first.state_dict())
    walk(second.step, cut, steps=3, seed=2)
    for name in through:
        assert torch.equal(through[name], cut[name])


def test_masks_that_cannot_be_are_refused():
    params = parameters(n=1)
    with pytest.raises(MethodError, match="no weight to move"):
        MaskedUpdate(params, {"p0": torch.zeros(4, 3, dtype=torch.bool)})
    with pytest.raises(MethodError, match="shape"):
        MaskedUpdate(params, {"p0": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(MethodError, match="NaN"):
        MaskedUpdate(params, {"p0": torch.full((4, 3), torch.nan)})
    with pytest.raises(MethodError, match="sgd or adam"):
        MaskedUpdate(params, optimizer="lion")
