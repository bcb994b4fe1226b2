"""Exact formulas for gradients of the usual layers, image by image: what `evenhand.methods.patching.sample_gradients` is made of.

With d_it the gradient of image i's output at position t of a layer (a token, a pixel) and x_it what the layer saw there,

    linear          G_i = sum_t d_it x_it'
    convolution     the same with x_it the patch under the kernel, group by group
    norm            G_i = sum_t d_it * x^_it, bias sum_t d_it,  x^ the normalised input
    layer scale     G_i = sum_t d_it * x_it

A formula gives nothing where the shapes are not what it expects; whether it holds for a layer of a network is tried there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

_LIKE_LAYER_SCALE = ("LayerScale", "LayerScale2d")

Chunk = tuple[str, slice, Tensor]
"""Parameter name, the images it is about, and their gradients (m, *shape), in memory that nothing else reads."""


def scaled(delta: Tensor, weight: Tensor) -> Tensor:
    """An output's gradient, (n * k, ...), times the weight (n,) of its image."""
    return delta * weight.repeat_interleave(len(delta) // len(weight)).view(-1, *[1] * (delta.ndim - 1))


def weight_gradient(module: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """Gradient of a weight, summed over images."""
    if isinstance(module, nn.Linear):
        return delta.reshape(-1, delta.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    own: Any = module
    x, padding = _padded(own, x, delta.shape[2:])
    convolved: Callable[..., Tensor] = conv2d_weight
    return convolved(x, own.weight.shape, delta, own.stride, padding, own.dilation, own.groups)


Formula = Callable[[nn.Module, Tensor, Tensor, int, int, set[str]], Iterator[Chunk]]
"""(layer, its input, gradient of its output, images, bytes, wanted parts) -> part, images, gradients."""


def formula_of(module: nn.Module) -> Formula | None:
    """The formula of a layer's type; whether it holds is tried."""
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return _convolution
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
        return _norm
    return _layer_scale if type(module).__name__ in _LIKE_LAYER_SCALE else None


def chunks_of(n: int, row_bytes: int, chunk_bytes: int) -> Iterator[slice]:
    """Rows in chunks of about ``chunk_bytes``, one at least."""
    step = max(1, min(n, chunk_bytes // max(row_bytes, 1)))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _by_image(value: Tensor, n: int) -> Tensor:
    """(n * k, ..., d) -> (n, positions, d): windows of one image lie beside each other."""
    return value.reshape(n, -1, value.shape[-1])


def _linear(module: nn.Module, x: Tensor, delta: Tensor, n: int, chunk_bytes: int, parts: set[str]) -> Iterator[Chunk]:
    if len(x) % n or x.shape[:-1] != delta.shape[:-1]:
        return
    x, delta = _by_image(x, n), _by_image(delta, n)
    if "bias" in parts:
        yield "bias", slice(0, n), delta.sum(dim=1)
    if "weight" in parts:
        size = x.shape[2] * delta.shape[2] * x.element_size()
        for rows in chunks_of(n, size, chunk_bytes):
            yield "weight", rows, torch.bmm(delta[rows].mT, x[rows])


def _convolution(module: nn.Module, x: Tensor, delta: Tensor, n: int, chunk_bytes: int, parts: set[str]) -> Iterator[Chunk]:
    if len(x) != n or not isinstance(module, nn.Conv2d):
        return
    if "bias" in parts:
        yield "bias", slice(0, n), delta.sum(dim=(2, 3))
    if "weight" not in parts:
        return
    groups, shape = module.groups, module.weight.shape
    positions = delta[0, 0].numel()
    row = (shape[1:].numel() * groups * positions + shape.numel()) * x.element_size()
    plain = shape[2:] == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
    for rows in chunks_of(n, row, chunk_bytes):
        own = x[rows].flatten(2) if plain else _unfold(module, x[rows], delta.shape[2:])
        if own.shape[2] != positions:
            return
        patches = own.reshape(len(own) * groups, -1, positions)
        gradient = torch.bmm(delta[rows].reshape(len(patches), -1, positions), patches.mT)
        yield "weight", rows, gradient.view(len(own), *shape)


def _unfold(module: nn.Conv2d, x: Tensor, size: Sequence[int]) -> Tensor:
    """Patches under the kernel, (n, c * kh * kw, positions); ``size`` is the output's."""
    x, padding = _padded(module, x, size)
    return F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)


def _padded(module: nn.Conv2d, x: Tensor, size: Sequence[int]) -> tuple[Tensor, Any]:
    """The input of a convolution and the padding still to be added; ``size`` is the output's."""
    if type(module).__name__ != "Conv2dSame":
        return x, module.padding
    # timm's padding as in TensorFlow: as little as the output size needs, the odd pixel at the end
    sides = zip(size, module.stride, module.kernel_size, module.dilation, x.shape[2:], strict=True)
    needed = [max((o - 1) * s + (k - 1) * d + 1 - i, 0) for o, s, k, d, i in sides]
    return F.pad(x, [needed[1] // 2, needed[1] - needed[1] // 2, needed[0] // 2, needed[0] - needed[0] // 2]), 0


def _norm(module: nn.Module, x: Tensor, delta: Tensor, n: int, chunk_bytes: int, parts: set[str]) -> Iterator[Chunk]:
    if len(x) % n or x.shape != delta.shape:
        return
    own: Any = module
    first = not isinstance(module, nn.LayerNorm)
    if isinstance(module, nn.BatchNorm2d):
        shape = (1, -1, 1, 1)
        if own.running_mean is None or own.training:
            return
        normed = (x - own.running_mean.view(shape)) * (own.running_var.view(shape) + own.eps).rsqrt()
    elif isinstance(module, nn.GroupNorm):
        normed = F.group_norm(x, own.num_groups, None, None, own.eps)
    else:
        if x.ndim == 4 and type(module).__name__.startswith("LayerNorm2d"):
            x, delta = x.permute(0, 2, 3, 1), delta.permute(0, 2, 3, 1)
        if len(own.normalized_shape) != 1 or x.shape[-1] != own.normalized_shape[0]:
            return
        normed = F.layer_norm(x, own.normalized_shape, None, None, own.eps)
    over = (lambda value: value.flatten(2).sum(dim=2)) if first else (lambda value: _by_image(value, n).sum(dim=1))
    if "bias" in parts:
        yield "bias", slice(0, n), over(delta)
    if "weight" in parts:
        yield "weight", slice(0, n), over(normed * delta)


def _layer_scale(module: nn.Module, x: Tensor, delta: Tensor, n: int, chunk_bytes: int, parts: set[str]) -> Iterator[Chunk]:
    if len(x) != n or x.shape != delta.shape:
        return
    product = x * delta
    if type(module).__name__ == "LayerScale2d":
        yield "gamma", slice(0, n), product.flatten(2).sum(dim=2)
    else:
        yield "gamma", slice(0, n), _by_image(product, n).sum(dim=1)
