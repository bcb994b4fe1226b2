"""A classifier cut in two: what is frozen and comes first, and what is left to train.

    model(x) = suffix(prefix(x)),    no trainable parameter and nothing random in the prefix

so that ``prefix(x)`` is the same in every epoch and of every training run with these frozen weights, and need be computed
once an image. A network is taken as a chain of steps (stem, every block, last norm, pooling, classifier); the cut is before
the first step that trains a parameter, or that in training mode draws random numbers (dropout, stochastic depth) or
updates statistics (a batch norm that is not held).

Chains are known for timm's ViT and DeiT, Swin (v1, v2), ResNet, RegNet, DenseNet, EfficientNet and MobileNet (v1 to v3) and
ConvNeXt. Of any other classifier of timm only the head can be cut off. Every cut is tried on two images before it is given
out: where ``suffix(prefix(x))`` is not ``model(x)``, or the prefix in training mode is not what it is in evaluation mode,
there is none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from evenhand.edits.artifact import edit_fingerprint
from evenhand.models.parameters import _unwrap, head_prefixes, hold_frozen_norms, state_fingerprint

_STEM = ("patch_embed", "pos_embed", "cls_token", "reg_token", "dist_token", "pos_drop", "patch_drop", "norm_pre")
_TRANSFORMER = ("_stem", "blocks", "norm")
_SWIN = ("patch_embed", "layers", "norm")
_FAMILIES: dict[str, tuple[str, ...]] = {
    "VisionTransformer": _TRANSFORMER,
    "VisionTransformerDistilled": _TRANSFORMER,
    "SwinTransformer": _SWIN,
    "SwinTransformerV2": _SWIN,
    "ResNet": ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "RegNet": ("stem", "s1", "s2", "s3", "s4", "final_conv"),
    "DenseNet": ("features",),
    "EfficientNet": ("conv_stem", "bn1", "blocks", "conv_head", "bn2"),
    "MobileNetV3": ("conv_stem", "bn1", "blocks"),
    "ConvNeXt": ("stem", "stages", "norm_pre"),
}
"""Class of timm -> the modules that its ``forward_features`` applies one after another; ``_stem`` is a ViT's embedding."""
_POOL = ("global_pool", "attn_pool", "fc_norm", "conv_head", "norm_head", "act2", "head_drop", "head")
_STAGES = ("SwinTransformerStage", "SwinTransformerV2Stage", "ConvNeXtStage")
_RANDOM = re.compile(r"Drop(out|Path|Block)?")
_RATES = ("p", "drop_prob", "prob", "drop_rate")


@dataclass(frozen=True)
class Step:
    """A link of the chain.

    Attributes:
        name: the module's path in the network, or ``stem, features, pool, classifier, head``.
        owns: prefixes of the names of its modules and parameters.
        run: the network and the step's input -> its output.
    """

    name: str
    owns: tuple[str, ...]
    run: Callable[[Any, Tensor], Tensor]


class _Part(nn.Module):
    """Some steps of a model, under the model's own names: a part's state dictionary is the model's."""

    def __init__(self, model: nn.Module, steps: Sequence[Step]) -> None:
        super().__init__()
        if _unwrap(model) is model:
            self.network = model
        else:
            for name, module in model.named_children():
                self.add_module(name, module)
            for name, buffer in model.named_buffers(recurse=False):
                self.register_buffer(name, buffer)
        self.steps = tuple(steps)

    def train(self, mode: bool = True) -> Self:
        """As the model: frozen batch norms stay in evaluation mode, and so does an edit."""
        super().train(mode)
        hold_frozen_norms(self)
        edit = getattr(self, "edit", None)
        if isinstance(edit, nn.Module):
            edit.eval()
        return self

    def _apply_steps(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step.run(self.network, x)
        return x


class Suffix(_Part):
    """What is left to train: activations (n, …) -> logits (n, K).

    It shares the model's parameters and has its state dictionary, parameter groups and modes, so it trains as the model
    does; a copy of it (a moving average, say) is complete.
    """

    def forward(self, activations: Tensor) -> Tensor:
        """Logits of what the prefix made of the images."""
        return self._apply_steps(activations)


class Prefix(_Part):
    """The frozen part: images (n, c, h, w) in [0, 1] -> activations (n, …), an edit and the normalisation included."""

    def __init__(self, model: nn.Module, steps: Sequence[Step]) -> None:
        super().__init__(model, steps)
        # not as a submodule: the model is the parent of what is registered here
        normalise: Any = getattr(model, "normalise", None)
        self._normalise: list[Callable[[Tensor], Tensor]] = [normalise] if callable(normalise) else []
        self.input_size = getattr(model, "input_size", None)
        self.image_shape = _image_shape(model)

    def probe(self, n: int) -> Tensor:
        """Random images of the size that the model takes, the same ones every time, on its device."""
        return _probe(self.image_shape, n, self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Activations of images; call it in evaluation mode."""
        for normalise in self._normalise:
            images = normalise(images)
        return self._apply_steps(images)


@dataclass(frozen=True)
class NetworkSplit:
    """A model cut in two; both parts share the model's parameters.

    Attributes:
        prefix: images -> activations, frozen.
        suffix: activations -> logits; train this one.
        before: name of the step that the suffix begins with, for example ``blocks.7``.
        shape: of one image's activations.
        dtype: of the activations in fp32 arithmetic.
        share: the prefix's part of all steps, in (0, 1).
    """

    prefix: Prefix
    suffix: Suffix
    before: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    share: float

    @property
    def n_bytes(self) -> int:
        """Size of one image's activations in fp32 arithmetic."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def dtype_under(self, context: Callable[[], AbstractContextManager[Any]]) -> torch.dtype:
        """The type of the activations where a context, autocast for example, is entered around the prefix."""
        with _modes_kept(self.prefix), torch.no_grad(), context():
            activations: Tensor = self.prefix.eval()(self.prefix.probe(1))
        return activations.dtype

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides the activations of an image: weights and buffers of the prefix, its modules and their options.

        Two models with the same one may share activations, whatever their suffixes are.
        """
        network, steps = self.prefix.network, self.prefix.steps
        owned = _owner(self.suffix.steps, first=len(steps)) | _owner(steps)

        def inside(name: str) -> bool:
            return name != "" and _step_of(name, owned) < len(steps)

        state = {f"network.{name}": value for name, value in network.state_dict().items() if inside(name)}
        outside = {name: value for name, value in self.prefix.state_dict().items() if not name.startswith("network.")}
        modules = [(name, _options(module)) for name, module in network.named_modules() if inside(name)]
        edit: Any = getattr(self.prefix, "edit", None)
        before = [None if edit is None else edit_fingerprint(edit), self.prefix.input_size]
        text = json.dumps([type(network).__name__, [step.name for step in steps], modules, before], sort_keys=True)
        return hashlib.sha256(f"{text}\0{state_fingerprint({**state, **outside})}".encode()).hexdigest()

    def flops(self) -> int:
        """Floating-point operations of the prefix on one image, as torch counts them (matrix products and convolutions)."""
        from torch.utils.flop_counter import FlopCounterMode

        counter: Any = FlopCounterMode(display=False)
        with _modes_kept(self.prefix), torch.no_grad(), counter:
            self.prefix.eval()(self.prefix.probe(1))
        return int(counter.get_total_flops())


def split_network(model: nn.Module, trainable: Iterable[str]) -> NetworkSplit | None:
    """Cut a classifier before the first step that is trained.

    Args:
        model: an `ImageClassifier`, or a bare classifier of timm; its modes and weights are left as they are. Which of
            its parameters require a gradient decides which batch norms are held, so freeze it first.
        trainable: names, in the timm network, of the parameters that will be trained.

    Returns:
        The two parts, or None where nothing comes before the first trained step, or the network is no chain of steps.

    Example:
        >>> from timm import create_model
        >>> network = create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=2).eval()
        >>> split = split_network(network, {"blocks.1.norm1.weight", "head.weight", "head.bias"})
        >>> split.before, split.shape
        ('blocks.1', (5, 192))
        >>> images = torch.rand(2, 3, 32, 32)
        >>> torch.equal(split.suffix(split.prefix(images)), network(images))
        True
    """
    network = _unwrap(model)
    with _modes_kept(model), torch.random.fork_rng(devices=_devices(model)):
        model.eval()
        steps = _chain(network, _network_shape(model))
        if not steps:
            return None
        owned = _owner(steps)
        model.train()
        hold_frozen_norms(model)
        busy = {_step_of(name, owned) for name in trainable}
        busy |= {_step_of(name, owned) for name, module in network.named_modules() if name and _is_random(module)}
        if _is_random(network):
            busy.add(next(position for position, step in enumerate(steps) if step.name in ("pool", "head")))
        first = min(busy, default=0)
        if first == 0:
            return None
        return _cut(model, steps, first)


def _cut(model: nn.Module, steps: tuple[Step, ...], first: int) -> NetworkSplit | None:
    """The cut at ``first``, or the last one before it up to which training mode is evaluation mode."""
    with torch.no_grad():
        images = _probe(_image_shape(model), 2, model)
        normalise = getattr(model, "normalise", None)
        network = _unwrap(model)
        model.eval()
        passed = [images if normalise is None else normalise(images)]
        for step in steps[:first]:
            passed.append(step.run(network, passed[-1].clone()))  # some steps write over what they are given
        model.train()
        hold_frozen_norms(model)
        again = [step.run(network, x.clone()) for step, x in zip(steps[:first], passed, strict=False)]
        first = min((position for position, x in enumerate(again) if not torch.equal(x, passed[position + 1])), default=first)
        if first == 0:
            return None
        prefix, suffix = Prefix(model, steps[:first]), Suffix(model, steps[first:])
        model.eval()
        whole, parts = model(images), suffix(prefix(images))
        if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=1e-5, atol=1e-6):
            return None
    return NetworkSplit(prefix, suffix, steps[first].name, tuple(passed[first].shape[1:]), passed[first].dtype, first / len(steps))


def _chain(network: Any, shape: tuple[int, int, int]) -> tuple[Step, ...]:
    """The network's steps; none where it is not a chain."""
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        return ()
    family = _FAMILIES.get(_family(network), ())
    steps: list[Step] = []
    for path in family:
        if path == "_stem":
            steps.append(Step("stem", _STEM, _embed_patches))
        else:
            module = getattr(network, path, None)
            if module is None:
                return _head_only(network, shape)
            steps += _opened(path, module)
    return (*steps, *_head(network, _POOL, shape)) if steps else _head_only(network, shape)


def _family(network: nn.Module) -> str:
    """The class of timm whose forward passes the network has; empty for a class that has its own."""
    for ancestor in type(network).__mro__:
        if ancestor.__name__ in _FAMILIES and ancestor.__module__.startswith("timm."):
            own = all(getattr(type(network), name) is getattr(ancestor, name) for name in ("forward", "forward_features", "forward_head"))
            return ancestor.__name__ if own else ""
    return ""


def _embed_patches(network: Any, x: Tensor) -> Tensor:
    embedded: Tensor = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(x))))
    return embedded


def _opened(path: str, module: nn.Module) -> Iterator[Step]:
    """A module as one step, or what it applies one after another as a step each."""
    kind = type(module)
    if kind.forward is nn.Sequential.forward or kind.__name__ == "RegStage":
        for name, child in module.named_children():
            yield from _opened(f"{path}.{name}", child)
    elif kind.__name__ in _STAGES:
        for name in ("downsample", "blocks"):
            child = getattr(module, name)
            opened = isinstance(child, nn.Sequential | nn.ModuleList)
            inner = child.named_children() if opened else [("", child)]
            for own, part in inner:
                yield from _opened(f"{path}.{name}.{own}".rstrip("."), part)
    elif kind.__name__ == "DenseBlock":
        for name, _ in module.named_children():
            yield _dense(f"{path}.{name}")
    elif isinstance(module, nn.Identity):
        return
    else:
        yield Step(path, (path,), lambda network, x: network.get_submodule(path)(x))


def _dense(path: str) -> Step:
    """A dense layer appends its channels to those it was given."""
    return Step(path, (path,), lambda network, x: torch.cat([x, network.get_submodule(path)(x)], dim=1))


def _head(network: Any, owns: tuple[str, ...], shape: tuple[int, int, int]) -> list[Step]:
    """Pooling and classifier as two steps where the classifier is one module on what is pooled, else as one."""
    heads = tuple(prefix.rstrip(".") for prefix in head_prefixes(network))
    if len(heads) == 1 and isinstance(network.get_submodule(heads[0]), nn.Linear) and _is_linear_on_pooled(network, heads[0], shape):
        pool = Step("pool", tuple(name for name in owns if name not in heads), lambda network, x: network.forward_head(x, pre_logits=True))
        return [pool, Step("classifier", heads, lambda network, x: network.get_submodule(heads[0])(x))]
    return [Step("head", (*owns, *heads), lambda network, x: network.forward_head(x))]


def _is_linear_on_pooled(network: Any, head: str, shape: tuple[int, int, int]) -> bool:
    with torch.no_grad():
        try:
            features = network.forward_features(_probe(shape, 2, network))
            pooled = network.forward_head(features, pre_logits=True)
            return bool(torch.equal(network.get_submodule(head)(pooled), network.forward_head(features)))
        except (TypeError, RuntimeError):
            return False


def _head_only(network: Any, shape: tuple[int, int, int]) -> tuple[Step, ...]:
    """Features as one step that owns all but the classifier."""
    steps = _head(network, (), shape)
    return (Step("features", ("",), lambda network, x: network.forward_features(x)), *steps)


def _owner(steps: Sequence[Step], first: int = 0) -> dict[str, int]:
    """Prefix of a name -> position of the step that owns it; of two, the earlier one."""
    owned: dict[str, int] = {}
    for position, step in enumerate(steps, start=first):
        for name in step.owns:
            owned.setdefault(name, position)
    return owned


def _step_of(name: str, owned: dict[str, int]) -> int:
    """The step of a parameter or module: that of its longest owned prefix; the first one for what nobody owns."""
    while name:
        if name in owned:
            return owned[name]
        name = name.rpartition(".")[0]
    return 0


def _is_random(module: nn.Module) -> bool:
    """Whether a module in training mode draws random numbers or updates statistics."""
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats and module.training:
        return True
    drops = _RANDOM.search(type(module).__name__) is not None
    rates = [getattr(module, name, 0) for name in _RATES if drops or name != "p"]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def _options(module: nn.Module) -> list[Any]:
    """A module's class and its numbers and words, as JSON."""
    plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str) and key != "training"}
    sizes = {key: list(value) for key, value in vars(module).items() if isinstance(value, tuple) and all(isinstance(v, int) for v in value)}
    return [type(module).__name__, plain, sizes]


def _probe(shape: tuple[int, int, int], n: int, model: nn.Module) -> Tensor:
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters()).device)


def _network_shape(model: nn.Module) -> tuple[int, int, int]:
    """(c, h, w) of what the network itself sees."""
    size = getattr(model, "input_size", None)
    return _image_shape(_unwrap(model)) if size is None else (int(getattr(model, "channels", 3)), int(size[0]), int(size[1]))


def _image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(c, h, w) of images that a model takes: its edit's grid, the classifier's size, or what timm says of a bare network."""
    network: Any = _unwrap(model)
    edit = getattr(model, "edit", None)
    if edit is not None:
        channels, height, width = edit.grid
        return channels, height, width
    size = getattr(model, "input_size", None)
    if size is None:
        size = next((module.img_size for module in network.modules() if isinstance(getattr(module, "img_size", None), tuple)), None)
    configured = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 64, 64))
    height, width = size or configured[-2:]
    return int(getattr(model, "channels", None) or configured[0]), int(height), int(width)


def _devices(model: nn.Module) -> list[torch.device]:
    return [device for device in {parameter.device for parameter in model.parameters()} if device.type == "cuda"]


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
