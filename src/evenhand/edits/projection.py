"""From a changed image to a valid one: range, L-inf, L2, structural similarity, and the levels of an image file.

In this order, each step keeping what the ones before it made sure of:

1. Every pixel goes into the box [x - linf, x + linf], cut to [0, 1]. The original lies in its box, so no later step that moves
   towards the original can leave it.
2. The change of an image whose L2 norm is too large is scaled back, by one factor an image.
3. Rounding, to the nearest level; where the nearest level leaves the L-inf bound, to the next one towards the original.
4. Where an image still breaks the L2 or the similarity bound (rounding can lengthen a change by half a level a pixel), its change is scaled
   back further, the factor found by bisection on the rounded image.

All bounds hold for the image as it is sent, and projecting twice changes nothing. Originals that do not lie on the levels themselves (a
16-bit source, an edit rounded to 8 bits) cannot be met by any rounded image: there L-inf and L2 bounds hold within half a
level a pixel, and similarity as far as rounding the original itself allows.

Gradients: factors are constants (detached) and rounding passes gradients straight through. At the faces of the box a gradient passes only
if descending it moves the pixel back inside, so that no parameter gets stuck outside, or runs away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from evenhand.edits.base import Bounds
from evenhand.edits.quality import ssim

LEVELS = {"none": 0, "8bit": 255, "16bit": 65535}
_STEPS = 12
_SLACK = 1e-6


def project(edited: torch.Tensor, original: torch.Tensor, bounds: Bounds, *, in_place: bool = False) -> torch.Tensor:
    """The edited images, moved as little as the bounds ask for.

    Args:
        edited: (n, c, h, w), any values.
        original: the same shape, in [0, 1].
        bounds: what must hold; see the module for order, interplay and gradients.
        in_place: ``edited`` may be overwritten, where no gradient is wanted; saves memory and, with it, half of the time.

    Returns:
        (n, c, h, w); ``edited`` itself where nothing is bounded.
    """
    simple = bounds.linf is None and bounds.l2 is None and bounds.min_ssim is None
    if in_place and simple and not (torch.is_grad_enabled() and edited.requires_grad):
        return _to_levels_in_place(edited, bounds)
    boxed = _to_box(edited, original, bounds)
    levels = LEVELS[bounds.rounding]
    if bounds.l2 is None and bounds.min_ssim is None:
        return boxed if not levels else _straight_through(boxed, _rounded(boxed.detach(), original, bounds, levels))
    factor = _factor(boxed.detach(), original, bounds, levels)
    scaled = torch.where(_per_image(factor == 1), boxed, original + _per_image(factor) * (boxed - original))
    return scaled if not levels else _straight_through(scaled, _rounded(scaled.detach(), original, bounds, levels))


def _to_levels_in_place(edited: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Range and rounding of every image while it is still in the processor's cache."""
    levels = LEVELS[bounds.rounding]
    for image in edited if edited.device.type == "cpu" else (edited,):
        if bounds.clamp:
            image.clamp_(0.0, 1.0)
        if levels:
            image.mul_(levels).round_().div_(levels)
    return edited


def _to_box(edited: torch.Tensor, original: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    low: torch.Tensor | float = 0.0
    high: torch.Tensor | float = 1.0
    if bounds.linf is not None:
        low, high = original - bounds.linf, original + bounds.linf
        if bounds.clamp:
            low, high = low.clamp_min_(0.0), high.clamp_max_(1.0)
    elif not bounds.clamp:
        return edited
    boxed: torch.Tensor = _Box.apply(edited, low, high)
    return boxed


class _Box(torch.autograd.Function):
    """clamp(values, low, high) whose gradient also passes where descent leads back into the box."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        boxed = torch.clamp(values, low, high)
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            ctx.save_for_backward(boxed - values)
        return boxed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inward,) = ctx.saved_tensors
        return gradient.masked_fill(inward * gradient > 0, 0.0), None, None


class _StraightThrough(torch.autograd.Function):
    """The rounded values, with the gradient of the values."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _straight_through(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    passed: torch.Tensor = _StraightThrough.apply(values, rounded) if values.requires_grad else rounded
    return passed


def _rounded(values: torch.Tensor, original: torch.Tensor, bounds: Bounds, levels: int) -> torch.Tensor:
    nearest = (values * levels).round_()
    if bounds.linf is not None:
        slack = _tolerance(levels)
        start, wanted = original * levels, values * levels
        breaks = (nearest - start).abs() > bounds.linf * levels + slack
        own = torch.round(start)
        up = torch.maximum(torch.floor(wanted + slack), own)
        down = torch.minimum(torch.ceil(wanted - slack), own)
        nearest = torch.where(breaks, torch.where(wanted >= start, up, down), nearest)
    return nearest.div_(levels)


def _tolerance(levels: int) -> float:
    """What float32 leaves open when a value in [0, 1] is multiplied with the number of levels, as a part of a level."""
    return 0.001 if levels <= 255 else 0.02


def _factor(boxed: torch.Tensor, original: torch.Tensor, bounds: Bounds, levels: int) -> torch.Tensor:
    """(n,): the largest factor found for each image's change under which the image that is sent keeps L2 and similarity."""

    def sent(change: torch.Tensor, start: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        image = torch.where(_per_image(factor == 1), start + change, start + _per_image(factor) * change)
        return _rounded(image, start, bounds, levels) if levels else image

    change = boxed - original
    factor = torch.ones(len(change), dtype=change.dtype, device=change.device)
    if bounds.l2 is not None:
        norms = change.flatten(1).norm(dim=1)
        factor = torch.where(norms > bounds.l2 * (1 + _SLACK), bounds.l2 / norms.clamp_min(1e-30), factor)
    if bounds.min_ssim is None and not levels:
        return factor
    broken = ~_holds(sent(change, original, factor), original, bounds)
    rows = broken.nonzero()[:, 0]
    if len(rows):
        part, start = change[rows], original[rows]
        factor[rows] = _bisect(lambda tried: _holds(sent(part, start, tried), start, bounds), factor[rows])
    return factor


def _holds(image: torch.Tensor, original: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    fine = torch.ones(len(image), dtype=torch.bool, device=image.device)
    if bounds.l2 is not None:
        fine &= (image - original).flatten(1).norm(dim=1) <= bounds.l2 * (1 + _SLACK) + _SLACK
    if bounds.min_ssim is not None:
        fine &= ssim(image, original) >= bounds.min_ssim - _SLACK
    return fine


def _bisect(holds: Callable[[torch.Tensor], torch.Tensor], most: torch.Tensor) -> torch.Tensor:
    """Per image, a factor below ``most`` that holds; 0 where none was found."""
    low, high = torch.zeros_like(most), most.clone()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fine = holds(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return low


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
