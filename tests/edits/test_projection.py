"""Every bound holds after projection, together with every other; projecting twice changes nothing; gradients flow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.edits import Bounds, PixelEdit, project, ssim
from evenhand.edits import projection as module

LEVELS = {"none": None, "8bit": 255, "16bit": 65535}
SOME = settings(max_examples=80, deadline=None, derandomize=True)


def draw(seed: int, levels: int | None, size: float, side: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    original = torch.rand(3, 2, side, side, generator=generator) * 1.2 - 0.1
    original = original.clamp(0, 1)  # some pixels black or white
    if levels:
        original = torch.round(original * levels) / levels
    return original, original + size * torch.randn(original.shape, generator=generator)


bounds = st.builds(
    Bounds,
    clamp=st.booleans(),
    linf=st.none() | st.floats(0, 0.5),
    l2=st.none() | st.floats(0, 10),
    min_ssim=st.none() | st.floats(0, 1),
    rounding=st.sampled_from(["none", "8bit", "16bit"]),
)


@SOME
@given(seed=st.integers(0, 10_000), bounds=bounds, size=st.sampled_from([0.0, 0.002, 0.05, 1.0]))
def test_every_bound_holds_and_projecting_again_changes_nothing(seed, bounds, size) -> None:
    levels = LEVELS[bounds.rounding]
    original, edited = draw(seed, levels, size)
    result = project(edited, original, bounds)
    change = (result - original).abs()
    if bounds.clamp:
        assert float(result.min()) >= 0
        assert float(result.max()) <= 1
    if bounds.linf is not None:
        assert float(change.max()) <= bounds.linf + 5e-6
    if bounds.l2 is not None:
        assert bool((change.flatten(1).norm(dim=1) <= bounds.l2 * (1 + 1e-5) + 1e-5).all())
    if bounds.min_ssim is not None:
        assert bool((ssim(result, original) >= bounds.min_ssim - 1e-5).all())
    if levels:
        assert torch.allclose(result * levels, torch.round(result * levels), atol=0.02)
    assert torch.equal(project(result, original, bounds), result)


@SOME
@given(seed=st.integers(0, 10_000), bounds=bounds, size=st.sampled_from([0.002, 0.05, 1.0]))
def test_originals_between_the_levels(seed, bounds, size) -> None:
    """A rounded image cannot meet an original between its levels: bounds hold within half a level a pixel."""
    original, edited = draw(seed, None, size)
    result = project(edited, original, bounds)
    half = 0.5 / LEVELS[bounds.rounding] if bounds.rounding != "none" else 0.0
    change = (result - original).abs()
    if bounds.linf is not None:
        assert float(change.max()) <= bounds.linf + half + 5e-6
    if bounds.l2 is not None:
        assert bool((change.flatten(1).norm(dim=1) <= bounds.l2 * (1 + 1e-5) + 1e-5 + half * original[0].numel() ** 0.5).all())
    if bounds.min_ssim is not None and half == 0:
        assert bool((ssim(result, original) >= bounds.min_ssim - 1e-5).all())


@SOME
@given(seed=st.integers(0, 10_000), bounds=bounds)
def test_what_keeps_to_the_bounds_stays(seed, bounds) -> None:
    original, _ = draw(seed, LEVELS[bounds.rounding], 0)
    assert torch.equal(project(original, original, bounds), original)


def test_nothing_bounded_costs_nothing() -> None:
    edited, original = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    assert project(edited, original, Bounds(clamp=False)) is edited


def test_similarity_is_only_computed_where_it_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(module, "ssim", lambda a, b: pytest.fail("similarity computed"))
    original, edited = draw(0, 255, 0.1)
    project(edited, original, Bounds(True, 0.05, 1.0, None, "8bit"))


def test_projections_keep_most_of_the_change() -> None:
    """The bound is nearly reached, not just kept."""
    original, edited = draw(1, 255, 0.3, side=32)
    by_norm = project(edited, original, Bounds(l2=2.0))
    assert torch.allclose((by_norm - original).flatten(1).norm(dim=1), torch.full((3,), 2.0), atol=1e-4)
    rounded = project(edited, original, Bounds(l2=2.0, rounding="8bit"))
    assert float((rounded - original).flatten(1).norm(dim=1).min()) > 1.95
    for rounding in ("none", "8bit"):
        likeness = ssim(project(edited, original, Bounds(min_ssim=0.9, rounding=rounding)), original)
        assert float(likeness.max()) < 0.902


def test_images_of_a_batch_are_projected_by_themselves() -> None:
    original, edited = draw(2, 255, 0.3)
    edited[1] = original[1] + 0.001
    together = project(edited, original, Bounds(l2=1.0, min_ssim=0.8, rounding="8bit"))
    for k in range(3):
        alone = project(edited[k : k + 1], original[k : k + 1], Bounds(l2=1.0, min_ssim=0.8, rounding="8bit"))
        assert torch.equal(together[k], alone[0])


def test_rounding_passes_gradients_straight_through() -> None:
    original = torch.full((1, 1, 12, 12), 0.5)
    edited = (original + 0.1).requires_grad_()
    result = project(edited, original, Bounds(rounding="8bit"))
    assert torch.equal(result.detach(), torch.full_like(original, 153 / 255))
    result.sum().backward()
    assert torch.equal(edited.grad, torch.ones_like(original))


@pytest.mark.parametrize("bound", [Bounds(l2=0.5), Bounds(min_ssim=0.95), Bounds(l2=0.5, min_ssim=0.9, rounding="8bit")])
def test_gradients_through_a_scaled_change_are_scaled(bound, natural) -> None:
    original = natural(2, 1, 16)
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    edited = ((original * 0.5 + 0.25 + 0.2 * noise).clamp(0, 1)).requires_grad_()
    result = project(edited, original, bound)
    assert result.requires_grad
    result.sum().backward()
    factor = edited.grad.amax((1, 2, 3))
    assert bool(((factor > 0) & (factor < 1)).all())
    assert torch.allclose(edited.grad, factor[:, None, None, None].expand_as(edited))


def test_a_gradient_leads_back_into_the_box_and_never_further_out() -> None:
    original = torch.full((1, 1, 1, 4), 0.5)
    bounds = Bounds(linf=0.1)
    edited = torch.tensor([0.7, 0.7, 0.3, 0.3]).view(1, 1, 1, 4).requires_grad_()
    (project(edited, original, bounds) * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum().backward()
    assert edited.grad.flatten().tolist() == [1.0, 0.0, 0.0, -1.0]


def test_training_sees_the_very_pixels_that_are_sent(make, natural, moved) -> None:
    edit, images = moved(make(["tone", "spectral"], rounding="8bit", linf=0.05), size=3), natural(2)
    with torch.no_grad():
        sent = edit(images)
    assert torch.equal(edit(images), sent)
    assert torch.equal(sent, torch.round(sent * 255) / 255)


def test_a_pixel_at_its_bound_can_be_turned_round() -> None:
    edit = PixelEdit((1, 4, 4), Bounds(linf=0.1))
    images = torch.full((1, 1, 4, 4), 0.5)
    optimiser = torch.optim.SGD(edit.parameters(), lr=0.3)
    for target in (0.9, 0.45):
        for _ in range(50):
            optimiser.zero_grad()
            (edit(images) - target).square().sum().backward()
            optimiser.step()
    assert float((edit(images) - 0.45).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("rounding", ["none", "8bit", "16bit"])
@pytest.mark.parametrize("clamp", [True, False])
def test_overwriting_gives_the_same_image_and_leaves_the_original(rounding, clamp):
    bounds = Bounds(rounding=rounding, clamp=clamp)
    original = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    edited = original + torch.randn(original.shape, generator=torch.Generator().manual_seed(1)) / 3
    expected, kept = project(edited.clone(), original, bounds), original.clone()
    assert torch.equal(project(edited, original, bounds, in_place=True), expected)
    assert torch.equal(original, kept)
    wanted = edited.clone().requires_grad_()
    assert torch.equal(project(wanted + 0, original, bounds, in_place=True).detach(), expected)
