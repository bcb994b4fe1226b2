"""What an edit is: a small stored function from image to image, and the bounds that keep its result a valid image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evenhand.errors import InputError

GREY = 1.0 / 255.0
"""One grey level of an 8-bit image, in [0, 1] units."""

VALUE_RANGE = (0.0, 1.0)
LOOSE_RANGE = (-1.0, 2.0)
"""What images may lie in: some that were resized, augmented or edited without a clamp overshoot [0, 1] a little; what lies beyond is
surely not scaled to [0, 1]."""

STEP_RMS = 2.0 * GREY
"""What natural steps are scaled to: a step of every parameter at once, each in a random direction, changes an image by
this root mean square over its pixels."""


class ImageBatches(Protocol):
    """Images by position: the part of `evenhand.methods.base.Images` that edits and encoders need."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, positions: npt.NDArray[np.integer[Any]] | slice) -> torch.Tensor: ...


@dataclass(frozen=True)
class Bounds:
    """What an edited image must keep to; see `evenhand.edits.projection.project`.

    Attributes:
        clamp: pixels in [0, 1].
        linf: largest change of a pixel, None = unbounded.
        l2: largest Euclidean norm of one image's change, None = unbounded.
        min_ssim: least structural similarity to the original, None = unbounded.
        rounding: "none", "8bit" or "16bit": the levels of the file that the encoder will get.
    """

    clamp: bool = True
    linf: float | None = None
    l2: float | None = None
    min_ssim: float | None = None
    rounding: str = "none"

    def __post_init__(self) -> None:
        for name, value in (("linf", self.linf), ("l2", self.l2)):
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}, but must be a finite number of at least 0, or None for unbounded")
        if self.min_ssim is not None and not 0 <= self.min_ssim <= 1:
            raise InputError(f"min_ssim is {self.min_ssim}, but must be in [0, 1], or None for unbounded")
        if self.rounding not in ("none", "8bit", "16bit"):
            raise InputError(f"rounding is '{self.rounding}', but must be none, 8bit or 16bit")


class Edit(nn.Module, ABC):
    """An edit of images on one pixel grid: ``project(change(x), x)``; new edits are the identity.

    - images: float (n, c, h, w) in [0, 1], where (c, h, w) is ``grid``
    - edited: the same shape, in [0, 1] where ``bounds.clamp``

    Attributes:
        kind: the family's name, as `evenhand.edits.build_edit` takes it.
        grid: (channels, height, width) of the images it is made for.
        bounds: what the result must keep to.
        any_channels: the edit does the same to every channel, so that it takes grey and colour images alike.
    """

    kind: ClassVar[str]

    def __init__(self, grid: tuple[int, int, int], bounds: Bounds | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.bounds = bounds or Bounds()
        self.any_channels = False

    @abstractmethod
    def change(self, images: torch.Tensor) -> torch.Tensor:
        """Edited images before they are projected, same shape; differentiable in the parameters."""

    @abstractmethod
    def natural_steps(self) -> torch.Tensor:
        """(p,) float32, positive, in `vector` order: for every parameter its natural step, a constant of the family.

        A step of all parameters at once, each up or down at random, changes a typical image by about two grey levels root
        mean square over its pixels (`STEP_RMS`), so that one setting of an optimiser serves every family.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON: what besides grid, bounds and parameters rebuilds this edit."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Edited images, valid by ``bounds``; differentiable (rounding passes gradients straight through).

        Raises:
            InputError: images of another grid or type, or in other units than [0, 1]: outside `LOOSE_RANGE`, or not finite.
        """
        self.check(images)
        check_range(images, LOOSE_RANGE)
        return self.edited(images)

    def edited(self, images: torch.Tensor) -> torch.Tensor:
        """As a call, for images that are known to be in range: no value is looked at, so an accelerator need not be waited for."""
        from evenhand.edits.projection import project

        self.check(images)
        with torch.autocast(images.device.type, enabled=False):  # an encoder may run in bf16; what is sent to it may not
            images = images.float()
            changed = self.change(images)
            own = changed.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()
            return project(changed, images, self.bounds, in_place=own)

    def check(self, images: torch.Tensor) -> None:
        """Refuse images of another grid.

        Raises:
            InputError: shape or type differs from the edit's.
        """
        if images.ndim != 4 or not self.takes(tuple(images.shape[1:])) or not images.is_floating_point():
            c, h, w = self.grid
            raise InputError(
                f"images arrived as {images.dtype} of shape {tuple(images.shape)}, but this edit is for float (n, {c}, {h}, {w}); "
                f"prepare the data with size={h} and {c} channel{'s' if c > 1 else ''}, or train an edit on this grid"
            )

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether images of (c, h, w) can be edited."""
        if self.any_channels and len(shape) == 3:
            return shape[0] in (1, 3) and shape[1:] == self.grid[1:]
        return shape == self.grid

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def n_parameters(self) -> int:
        """Number of free parameters, p."""
        return sum(parameter.numel() for parameter in self.parameters())

    def vector(self) -> torch.Tensor:
        """A copy of all parameters, float32 (p,)."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()]).clone()

    def load_vector(self, values: torch.Tensor) -> None:
        """Set all parameters from one vector (p,).

        Raises:
            InputError: another length.
        """
        if values.shape != (self.n_parameters,):
            raise InputError(f"{tuple(values.shape)} numbers arrived, but this edit has {self.n_parameters} parameters")
        start = 0
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(values[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()


def check_range(images: torch.Tensor, allowed: tuple[float, float] = VALUE_RANGE) -> None:
    """Refuse images outside the value range that edits are made for.

    Args:
        images: any shape.
        allowed: least and largest value; every call of an edit allows `LOOSE_RANGE`, which tells other units.

    Raises:
        InputError: a value is not finite, or outside.

    Example:
        >>> check_range(torch.rand(2, 3, 8, 8))
    """
    if not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= allowed[0] and high <= allowed[1]):
        raise InputError(
            f"pixels run from {low:g} to {high:g}, but an edit is made for images in [0, 1] before any normalisation; "
            "divide 8-bit values by 255, and leave the normalisation to the encoder"
        )
