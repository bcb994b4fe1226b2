"""The residual filter: a small convolutional network whose output is added to the image."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from evenhand.edits.base import STEP_RMS, Bounds, Edit
from evenhand.errors import InputError

_HIDDEN_POWER = 0.17
_HIDDEN_STEP = 0.1
_PIECE = 2**17
"""Pixels that go through the layers together on a processor: features of more do not stay in its cache."""


class ResidualEdit(Edit):
    """``x + f(x, i, j)``: ``depth`` convolutions of ``width`` channels, kernel x kernel, GELU between, dilated 1, 2, 4, 1, …

    f sees the image, moved to [-1, 1], and the pixel's own coordinates in [-1, 1]: without coordinates a convolution does the
    same in every place, with them it can act on a corner where a marker sits and leave the same texture alone elsewhere.
    Dilation widens the view to 29 pixels at the default size (kernel 5, depth 3), enough to see round a marker and fill in what
    belongs there. Edges are mirrored.

    Hidden weights start at random by ``seed`` (normal, variance 2 / fan-in), the last layer at 0: a new edit is the identity.
    At the default size it has 6,027 parameters on colour images. Since its output depends on the image it can remove what an
    attribute is written in (a texture, a marker), not only write over it; like any filter it can also remove what the label is
    written in, which the utility term of the objective has to watch.

    Natural steps: the last layer is linear, so independent signs change a pixel by s sqrt(sum of its squared inputs + 1). At the
    start these are ``width kernel²`` features of mean square about 0.17 (GELU of these initial layers); s = `STEP_RMS` over that
    root. Hidden layers do nothing while the last is 0; their steps are a tenth of the spread of their initial weights, which
    moves every feature by a tenth of its spread (biases: a tenth).

    Args:
        width: feature channels.
        depth: convolutions, at least 2.
        kernel: odd height and width of a kernel.
        seed: of the initial hidden weights.
    """

    kind: ClassVar[str] = "residual"
    coordinates: torch.Tensor

    def __init__(
        self, grid: tuple[int, int, int], bounds: Bounds | None = None, *, width: int = 12, depth: int = 3, kernel: int = 5, seed: int = 0
    ) -> None:
        super().__init__(grid, bounds)
        channels, height, columns = grid
        if not (1 <= width <= 1024 and 2 <= depth <= 64):
            raise InputError(f"width is {width} and depth {depth}, but must be 1 to 1024 and 2 to 64")
        if kernel < 1 or kernel % 2 == 0 or kernel // 2 >= min(height, columns):
            raise InputError(f"kernel is {kernel}, but must be odd and smaller than twice the shorter side of the images")
        self.width, self.depth, self.kernel = int(width), int(depth), int(kernel)
        reach = kernel // 2
        most = (min(height, columns) - 1) // reach if reach else 1  # mirrored padding must be smaller than the image
        sizes = [channels + 2, *[width] * (depth - 1), channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(sizes[k], sizes[k + 1], kernel, dilation=(dilation := min(2 ** (k % 3), most)), padding=dilation * reach,
                      padding_mode="reflect")
            for k in range(depth)
        )
        self._start(seed)
        rows, across = torch.linspace(-1, 1, height), torch.linspace(-1, 1, columns)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(rows, across, indexing="ij"))[None], persistent=False)

    def _start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        *hidden, last = self.convolutions
        if last.weight.is_meta:  # only shapes are asked for
            return
        with torch.no_grad():
            last.weight.zero_()
            for layer in (*hidden, last):
                if layer.bias is not None:
                    layer.bias.zero_()
            for layer in hidden:
                draws = torch.randn(tuple(layer.weight.shape), generator=generator, device="cpu")
                layer.weight.copy_(draws * _spread(layer))

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]

    def change(self, images: torch.Tensor) -> torch.Tensor:
        """x + f(x, i, j)."""
        if images.device.type != "cpu":
            return self._change(images)
        size = max(1, _PIECE // (images.shape[2] * images.shape[3]))
        return torch.cat([self._change(images[start : start + size]) for start in range(0, max(len(images), 1), size)])

    def _change(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.cat([2.0 * images - 1.0, self.coordinates.expand(len(images), -1, -1, -1)], dim=1)
        # on a processor these convolutions are about three times as fast with the channels last
        features = features.contiguous(memory_format=torch.channels_last)
        *hidden, last = self.convolutions
        for layer in hidden:
            features = nn.functional.gelu(layer(features))
        added: torch.Tensor = last(features)
        return images + added.contiguous()

    def natural_steps(self) -> torch.Tensor:
        """See the class."""
        steps = []
        *hidden, last = self.convolutions
        for layer in hidden:
            steps += [torch.full((layer.weight.numel(),), _HIDDEN_STEP * _spread(layer)), torch.full((self.width,), _HIDDEN_STEP)]
        size = STEP_RMS / math.sqrt(_HIDDEN_POWER * self.width * self.kernel**2 + 1.0)
        steps.append(torch.full((last.weight.numel() + self.grid[0],), size))
        return torch.cat([part.cpu() for part in steps])

    def options(self) -> dict[str, Any]:
        """width, depth and kernel; the seed lives on in the parameters."""
        return {"width": self.width, "depth": self.depth, "kernel": self.kernel}


def _spread(layer: nn.Conv2d) -> float:
    """Standard deviation of a hidden layer's initial weights."""
    return math.sqrt(2.0 / (layer.weight.numel() // layer.weight.shape[0]))
