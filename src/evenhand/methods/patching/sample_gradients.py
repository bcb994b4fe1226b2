"""Gradients of every image by itself, for a whole batch at once: exact formulas for the layers that hold nearly all weights.

`evenhand.methods.patching.layer_gradients` holds the formulas, from what a layer saw and the gradient d of its output; tokens and
position embeddings are copied for every image, and the gradient of a copy is the image's.

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
from torch.nn.attention import SDPBackend, sdpa_kernel

from evenhand.errors import RunError
from evenhand.methods.patching.layer_gradients import Chunk, formula_of, scaled, weight_gradient
from evenhand.models.parameters import _unwrap, parameter_roles

TOLERANCE = 1e-3
"""Largest difference from autograd, relative to the largest entry of a gradient, at which a formula counts as right."""
TRIED = (1.0, -2.0)
"""Factors on the outputs of the two images that are tried: what mixes images is wrong for both, even if they look alike."""

ASK = "use importance=batch, and report the network"


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
        if own and formula_of(module) is not None:
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
        value = model(pair[row : row + 1])[:, 0].sum() * TRIED[row]
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
    with watched(model, plan, len(pair), strict=False) as watch:
        logits = model(pair)
        cotangent = torch.zeros_like(logits)
        cotangent[:, 0] = logits.new_tensor(TRIED)
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

    def __init__(self, layers: Sequence[_Layer], copies: Mapping[str, Tensor], n: int, strict: bool) -> None:
        self.layers, self.copies, self.n, self.strict = layers, copies, n, strict

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
                for part, rows, gradient in self._gradients(layer, inputs, delta, chunk_bytes, set(layer.names)):
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
                    own = [weight_gradient(layer.module, inputs, scaled(delta, weight)) for weight in weights]
                    yield layer.names["weight"], torch.stack(own)
                for part, rows, gradient in self._gradients(layer, inputs, delta, chunk_bytes, parts):
                    yield layer.names[part], torch.einsum("fn,n...->f...", weights[:, rows], gradient)

    def _gradients(self, layer: _Layer, inputs: Tensor, delta: Tensor, chunk_bytes: int, parts: set[str]) -> Iterator[Chunk]:
        """Gradients of some parameters of a layer, for every image."""
        formula, given = formula_of(layer.module), set()
        if formula is not None and parts:
            for part, rows, gradient in formula(layer.module, inputs, delta, self.n, chunk_bytes, parts):
                given.add(part)
                yield part, rows, gradient
        if self.strict and given != parts:
            name = layer.names[min(parts - given)]
            raise RunError(f"the formula for '{name}' does not hold for a batch of {self.n}, but held when it was tried; {ASK}")

    def _deltas(
        self, logits: Tensor, cotangent: Tensor, retain_graph: bool
    ) -> tuple[list[tuple[str, Tensor]], Iterator[tuple[_Layer, Tensor, Tensor]]]:
        """Gradients of every image's own copies, and of the outputs of layers; the latter are let go one by one."""
        ran = [layer for layer in self.layers if layer.runs == 1 and layer.edge is not None and layer.inputs is not None]
        if self.strict and len(ran) < len(self.layers):
            idle = len(self.layers) - len(ran)
            raise RunError(f"{idle} layers did not run once in a forward pass, as they did when they were tried; {ASK}")
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
def watched(model: nn.Module, plan: Plan, n: int, *, strict: bool = True) -> Iterator[Watch]:
    """Watch the layers of a plan; the forward pass of ``n`` images runs inside, the graph may be used inside only.

    Args:
        model: images -> logits.
        plan: of this network.
        n: images.
        strict: a layer of the plan that does not run as planned is an error, instead of left out.

    Raises:
        RunError: it does not.
    """
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
            yield Watch(layers, copies, n, strict)
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
                yield name, slice(row, row + 1), gradient.clone(memory_format=torch.contiguous_format)[None]


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
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            found = gradients(values, images[part], cotangent[part])
        for name in names:
            yield name, part, found[name].clone(memory_format=torch.contiguous_format)
