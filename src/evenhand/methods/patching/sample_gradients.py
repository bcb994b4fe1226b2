"""Gradients of every image by itself, for a whole batch at once: exact formulas for the layers that hold nearly all weights.

With d_it the gradient of image i's output at position t of a layer (a token, a pixel) and x_it what the layer saw there,

    linear          G_i = sum_t d_it x_it'
    convolution     the same with x_it the patch under the kernel, group by group
    norm            G_i = sum_t d_it * x^_it, bias sum_t d_it,  x^ the normalised input
    layer scale     G_i = sum_t d_it * x_it
    tokens, position embeddings: every image gets a copy of its own, whose gradient is G_i

d comes from one backward pass that computes no weight gradients. A layer counts only if it is of a known type and ran once in the
forward pass; and as networks do unusual things with usual layers (share weights, use a weight without its layer, flatten windows
into the batch), every parameter is compared on two images with what autograd gives for each by itself. Where that differs, and for
every parameter that has no formula, gradients come from a vectorised pass of its own (`torch.func.vmap`), or, where the network
cannot be vectorised, image by image. So the result is exact for any network, and fast for the usual ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_weight

from evenhand.models.parameters import _unwrap, parameter_roles

TOLERANCE = 1e-3
"""Largest difference from autograd, relative to the largest entry of a gradient, at which a formula counts as right."""
_LIKE_LAYER_SCALE = ("LayerScale", "LayerScale2d")

Chunk = tuple[str, slice, Tensor]
"""Parameter name, the images it is about, and their gradients (m, *shape)."""


@dataclass
class _Layer:
    """One run of a layer with a formula."""

    module: nn.Module
    names: dict[str, str]
    inputs: Tensor | None = None
    edge: Any = None
    runs: int = 0


@dataclass(frozen=True)
class Plan:
    """Which way each parameter's gradients are computed; made once for a network by `make_plan`.

    Attributes:
        layers: module name -> own parameter name -> network parameter name, of layers with a formula.
        copied: parameters of which every image gets a copy.
        vectorised: parameters differentiated by vmap.
        single: parameters differentiated image by image.
        n_outputs: logits of an image.
    """

    layers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    vectorised: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    n_outputs: int = 0

    @property
    def fast(self) -> set[str]:
        """Parameters with a formula or a copy."""
        return {*self.copied, *(name for own in self.layers.values() for name in own.values())}


def make_plan(model: nn.Module, names: Sequence[str], images: Tensor) -> Plan:
    """Find out how the gradients of a network's parameters are computed, by trying on two images.

    Args:
        model: images -> logits, in evaluation mode; its wanted parameters require gradients.
        names: the wanted parameters, named as in the timm network.
        images: (n, c, h, w), at least one.
    """
    network = _unwrap(model)
    pair = images[:2] if len(images) > 1 else torch.cat([images, images])
    wanted, roles = set(names), _roles(network)
    layers: dict[str, dict[str, str]] = {}
    for path, module in network.named_modules():
        own = {part: f"{path}.{part}" if path else part for part, _ in module.named_parameters(recurse=False)}
        own = {part: name for part, name in own.items() if name in wanted}
        if own and _formula(module) is not None:
            layers[path] = own
    shapes = {name: value.shape for name, value in network.named_parameters()}
    copied = tuple(n for n in names if roles.get(n) in ("token", "position") and len(shapes[n]) == 3 and shapes[n][0] == 1)
    with torch.no_grad():
        n_outputs = model(pair).shape[1]
    plan = replace(_checked(model, Plan(layers, copied), pair), n_outputs=n_outputs)
    rest = tuple(name for name in names if name not in plan.fast)
    if not rest:
        return plan
    try:
        for _ in _vectorised(model, rest, pair, pair.new_ones(2, n_outputs), rows=2):
            continue
    except RuntimeError:
        return replace(plan, single=rest)
    return replace(plan, vectorised=rest)


def _roles(network: nn.Module) -> Mapping[str, str]:
    return parameter_roles(network) if hasattr(network, "get_classifier") else {}


def _checked(model: nn.Module, plan: Plan, pair: Tensor) -> Plan:
    """The plan without the parameters for which it is not what autograd gives for an image by itself."""
    names = sorted(plan.fast)
    if not names:
        return plan
    try:
        found = _sums(model, plan, pair)
    except RuntimeError:
        # an own copy of a token for every image does not suit this network
        return _checked(model, Plan(plan.layers), pair) if plan.copied else Plan()
    parameters = dict(_unwrap(model).named_parameters())
    right = set(names)
    for row in range(len(pair)):
        value = model(pair[row : row + 1])[:, 0].sum()
        gradients = _grad(value, [parameters[name] for name in names])
        sizes = [float(gradient.abs().max()) for gradient in gradients]
        for name, expected, size in zip(names, gradients, sizes, strict=True):
            got = found.get(name)
            # a gradient that is zero but for rounding has no largest entry to compare with
            if got is None or float((got[row] - expected).abs().max()) > TOLERANCE * max(size, TOLERANCE**2 * max(sizes)):
                right.discard(name)
    kept = {path: {part: name for part, name in own.items() if name in right} for path, own in plan.layers.items()}
    return Plan({path: own for path, own in kept.items() if own}, tuple(name for name in plan.copied if name in right))


def _sums(model: nn.Module, plan: Plan, pair: Tensor) -> dict[str, Tensor]:
    """Gradients (2, *shape) of the first output for two images."""
    with watched(model, plan, len(pair)) as watch:
        logits = model(pair)
        cotangent = torch.zeros_like(logits)
        cotangent[:, 0] = 1.0
        chunks = list(watch.gradients(logits, cotangent, chunk_bytes=2**30))
    found: dict[str, Tensor] = {}
    for name, rows, gradient in chunks:
        found.setdefault(name, gradient.new_zeros([len(pair), *gradient.shape[1:]]))[rows] = gradient
    return found


def _grad(value: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """Gradients, zeros for what the value does not depend on."""
    found = torch.autograd.grad(value, parameters, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(own) if gradient is None else gradient for own, gradient in zip(parameters, found, strict=True)]


class Watch:
    """What the layers with a formula saw in one forward pass."""

    def __init__(self, layers: Sequence[_Layer], copies: Mapping[str, Tensor], n: int) -> None:
        self.layers, self.copies, self.n = layers, copies, n

    def gradients(self, logits: Tensor, cotangent: Tensor, *, chunk_bytes: int, retain_graph: bool = False) -> Iterator[Chunk]:
        """Gradients of ``sum(cotangent * logits)`` for every image and every parameter with a formula.

        Args:
            logits: what the watched forward pass gave, (n, C).
            cotangent: (n, C).
            chunk_bytes: about how much is held at once beside the activations.
            retain_graph: another backward pass follows.
        """
        copies, layers = self._deltas(logits, cotangent, retain_graph)
        for name, delta in copies:
            # its own memory: the gradient of a sum is often that of its terms too
            yield name, slice(0, self.n), delta.clone()[:, None]
        with torch.no_grad():
            for layer, inputs, delta in layers:
                for part, rows, gradient in _gradients(layer, inputs, delta, self.n, chunk_bytes):
                    yield layer.names[part], rows, gradient

    def weighted(self, logits: Tensor, weights: Tensor, *, chunk_bytes: int) -> Iterator[tuple[str, Tensor]]:
        """Sums over images of their gradients of the one logit: ``sum_i w_fi G_i`` for every parameter with a formula, (F, *shape).

        The gradients of single images of linear layers and convolutions are not formed: their d is weighted instead.

        Args:
            logits: (n, 1).
            weights: (F, n).
            chunk_bytes: see `gradients`.
        """
        copies, layers = self._deltas(logits, torch.ones_like(logits), False)
        for name, delta in copies:
            yield name, torch.einsum("fn,n...->f...", weights, delta)[:, None]
        with torch.no_grad():
            for layer, inputs, delta in layers:
                parts = set(layer.names)
                if "weight" in parts and isinstance(layer.module, (nn.Linear, nn.Conv2d)) and len(inputs) % self.n == 0:
                    parts.discard("weight")
                    own = [_weight_gradient(layer.module, inputs, _scaled(delta, weight)) for weight in weights]
                    yield layer.names["weight"], torch.stack(own)
                for part, rows, gradient in _gradients(layer, inputs, delta, self.n, chunk_bytes, parts):
                    yield layer.names[part], torch.einsum("fn,n...->f...", weights[:, rows], gradient)

    def _deltas(
        self, logits: Tensor, cotangent: Tensor, retain_graph: bool
    ) -> tuple[list[tuple[str, Tensor]], Iterator[tuple[_Layer, Tensor, Tensor]]]:
        """Gradients of every image's own copies, and of the outputs of layers; the latter are let go one by one."""
        ran = [layer for layer in self.layers if layer.runs == 1 and layer.edge is not None and layer.inputs is not None]
        targets = [layer.edge for layer in ran] + list(self.copies.values())
        if not targets:
            return [], iter(())
        found: list[Tensor | None] = list(
            torch.autograd.grad(logits, targets, cotangent, retain_graph=retain_graph, allow_unused=True)
        )
        copies = [
            (name, torch.zeros_like(copy) if delta is None else delta)
            for (name, copy), delta in zip(self.copies.items(), found[len(ran) :], strict=True)
        ]
        del found[len(ran) :]

        def layers() -> Iterator[tuple[_Layer, Tensor, Tensor]]:
            for position, layer in enumerate(ran):
                delta, found[position] = found[position], None
                if delta is not None and layer.inputs is not None:
                    yield layer, layer.inputs, delta

        return copies, layers()


@contextmanager
def watched(model: nn.Module, plan: Plan, n: int) -> Iterator[Watch]:
    """Watch the layers of a plan; the forward pass of ``n`` images runs inside, the graph may be used inside only."""
    network = _unwrap(model)
    modules = dict(network.named_modules())
    layers = [_Layer(modules[path], dict(own)) for path, own in plan.layers.items()]
    handles = []
    for layer in layers:
        handles.append(layer.module.register_forward_pre_hook(_before(layer)))
        inner = getattr(layer.module, "drop", None)
        # timm's norms with an activation inside: their affine part ends where their drop layer begins
        if isinstance(layer.module, nn.BatchNorm2d) and isinstance(inner, nn.Module):
            handles.append(inner.register_forward_pre_hook(_inside(layer)))
        else:
            handles.append(layer.module.register_forward_hook(_after(layer)))
    originals = dict(network.named_parameters())
    copies = {}
    for name in plan.copied:
        # as (n, *shape[1:]): it broadcasts over the batch as the original does
        copies[name] = originals[name].detach().expand(n, *originals[name].shape[1:]).clone().requires_grad_()
    try:
        with _swapped(network, copies):
            yield Watch(layers, copies, n)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _swapped(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Tensors in place of parameters, and the parameters back afterwards, in their order."""
    kept = []
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        module = network.get_submodule(path)
        kept.append((module, own, dict(module._parameters)))
        del module._parameters[own]
        object.__setattr__(module, own, value)
    try:
        yield
    finally:
        for module, own, parameters in reversed(kept):
            object.__delattr__(module, own)
            module._parameters.clear()
            module._parameters.update(parameters)


def _before(layer: _Layer) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        layer.runs += 1
        layer.inputs = args[0].detach() if args and isinstance(args[0], Tensor) else None

    return hook


def _edge(value: Any) -> Any:
    # a gradient edge and not the tensor: what follows may change the tensor in place
    return torch.autograd.graph.get_gradient_edge(value) if isinstance(value, Tensor) and value.requires_grad else None


def _after(layer: _Layer) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layer.edge = _edge(output)

    return hook


def _inside(layer: _Layer) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        layer.edge = _edge(args[0])

    return hook


def _gradients(
    layer: _Layer, inputs: Tensor, delta: Tensor, n: int, chunk_bytes: int, parts: set[str] | None = None
) -> Iterator[Chunk]:
    """Gradients of the parameters of a layer, or of some, for every image."""
    formula = _formula(layer.module)
    wanted = set(layer.names) if parts is None else parts
    return iter(()) if formula is None or not wanted else formula(layer.module, inputs, delta, n, chunk_bytes, wanted)


def _scaled(delta: Tensor, weight: Tensor) -> Tensor:
    """An output's gradient, (n * k, ...), times the weight (n,) of its image."""
    return delta * weight.repeat_interleave(len(delta) // len(weight)).view(-1, *[1] * (delta.ndim - 1))


def _weight_gradient(module: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """Gradient of a weight, summed over images."""
    if isinstance(module, nn.Linear):
        return delta.reshape(-1, delta.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    own: Any = module
    x, padding = _padded(own, x, delta.shape[2:])
    convolved: Callable[..., Tensor] = conv2d_weight
    return convolved(x, own.weight.shape, delta, own.stride, padding, own.dilation, own.groups)


Formula = Callable[[nn.Module, Tensor, Tensor, int, int, set[str]], Iterator[Chunk]]
"""(layer, its input, gradient of its output, images, bytes, wanted parts) -> part, images, gradients."""


def _formula(module: nn.Module) -> Formula | None:
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


def remaining(model: nn.Module, plan: Plan, images: Tensor, cotangent: Tensor, *, chunk_bytes: int) -> Iterator[Chunk]:
    """Gradients of the parameters without a formula, for every image; its own forward passes.

    Args:
        model: images -> logits.
        plan: of this network.
        images: (n, c, h, w).
        cotangent: (n, C), weights of the outputs.
        chunk_bytes: about how much is held at once beside activations.
    """
    parameters = dict(_unwrap(model).named_parameters())
    if plan.vectorised:
        size = sum(parameters[name].numel() * parameters[name].element_size() for name in plan.vectorised)
        rows = max(1, min(len(images), chunk_bytes // max(size, 1)))
        yield from _vectorised(model, plan.vectorised, images, cotangent, rows)
    if plan.single:
        wanted = [parameters[name] for name in plan.single]
        for row in range(len(images)):
            value = (model(images[row : row + 1]) * cotangent[row]).sum()
            for name, gradient in zip(plan.single, _grad(value, wanted), strict=True):
                yield name, slice(row, row + 1), gradient[None]


def _vectorised(model: nn.Module, names: Sequence[str], images: Tensor, cotangent: Tensor, rows: int) -> Iterator[Chunk]:
    """By vmap over functional calls, ``rows`` images at a time."""
    network = _unwrap(model)
    prefix = "" if network is model else "network."
    values = {name: value.detach() for name, value in network.named_parameters() if name in set(names)}

    def output(own: dict[str, Tensor], image: Tensor, weight: Tensor) -> Tensor:
        replaced = {prefix + name: value for name, value in own.items()}
        logits: Tensor = torch.func.functional_call(model, replaced, (image[None],))
        return (logits * weight).sum()

    gradients = torch.func.vmap(torch.func.grad(output), in_dims=(None, 0, 0))
    for start in range(0, len(images), rows):
        part = slice(start, min(start + rows, len(images)))
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            found = gradients(values, images[part], cotangent[part])
        for name in names:
            yield name, part, found[name]
