"""Bare timm networks by name: options, published weights, a fresh head, and refusals that say what to do."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.models.checkpoints import WeightSource
from evenhand.models.hub import readable_download
from evenhand.models.parameters import head_prefixes
from evenhand.random import derive_seed


def register_architectures() -> None:
    """Make this package's own architectures known to timm: importing them registers them."""
    importlib.import_module("evenhand.models.mobilenet")
    if importlib.util.find_spec("evenhand.models.demo_encoder") is not None:
        importlib.import_module("evenhand.models.demo_encoder.architecture")


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest ones.

    Raises:
        InputError: no such architecture.
    """
    architecture = name.split(".", 1)[0]
    if timm.is_model(architecture):
        return
    near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists all"
    raise InputError(f"model.name is '{name}', which timm does not know; {hint}")


@contextmanager
def forked(seed: int, purpose: str) -> Iterator[None]:
    """Draw from one named stream inside, leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model", purpose))
        yield


_OPTIONS = {"img_size": "input_size", "drop_path_rate": "drop_path", "drop_rate": "drop_rate", "global_pool": "global_pool"}


class NoSuchOption(InputError):
    """An architecture does not have one of the options that were given; ``option``: its name here."""

    def __init__(self, name: str, option: str) -> None:
        super().__init__(f"{name} has no option {option}; leave it at its default")
        self.option = option


def create_network(name: str, n_outputs: int, options: dict[str, Any]) -> nn.Module:
    """timm's factory, without the options of convolutional networks that have no fixed input size."""
    try:
        network: nn.Module = timm.create_model(name, num_classes=n_outputs, **options)
    except TypeError as error:
        refused = [key for key in options if f"'{key}'" in str(error)]
        if not refused:
            raise InputError(f"{name} cannot be built with {options} ({error})") from error
        if refused == ["img_size"]:
            return create_network(name, n_outputs, {key: value for key, value in options.items() if key != "img_size"})
        raise NoSuchOption(name, _OPTIONS.get(refused[0], refused[0])) from error
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with {options} ({str(error).splitlines()[0] if str(error) else error!r})") from error
    return network


def network_options(config: ModelConfig, stored: WeightSource | None) -> dict[str, Any]:
    """Keyword arguments of timm's factory: what the weights' folder says, then what the user says."""
    options: dict[str, Any] = dict(stored.model_args) if stored else {}
    pool = config.global_pool or (stored.global_pool if stored else None)
    size = config.input_size or (stored.input_size if stored else None)
    if pool is not None:
        options["global_pool"] = pool
    if size is not None and len(size) != 2:
        raise InputError(f"model.input_size is {list(size)}, but must be height and width, as model.input_size=[224,224]")
    if size is not None:
        options["img_size"] = tuple(size)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.drop_rate:
        options["drop_rate"] = config.drop_rate
    return options


def initialise_head(network: nn.Module, seed: int) -> None:
    """A fresh head: weights from N(0, 0.01^2), truncated, and zero biases."""
    heads = head_prefixes(network)
    with forked(seed, "head"):
        for name, parameter in sorted(network.named_parameters()):
            if name.startswith(heads):
                if parameter.ndim > 1:
                    nn.init.trunc_normal_(parameter, std=0.01)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)


def create_published(name: str, n_outputs: int, config: ModelConfig) -> nn.Module:
    """A network with timm's published weights.

    Raises:
        CheckpointError: timm publishes none for this name.
        EvenhandError: they cannot be downloaded.
    """
    published = get_pretrained_cfg(name, allow_unregistered=True)
    if published is None or not published.has_weights:
        near = timm.list_pretrained(f"{name.split('.')[0]}*")[:5]
        hint = f"some that have: {', '.join(near)}" if near else "give a file with model.checkpoint"
        raise CheckpointError(f"model.pretrained is true, but there are no published weights of {name} in timm; {hint}")
    options = network_options(config, None)
    with readable_download(f"timm's weights of {name}"):
        return create_network(name, n_outputs, {**options, "pretrained": True})


def check_input_size(network: nn.Module, name: str, size: Sequence[int]) -> None:
    """Refuse an input size that does not divide into the network's patches.

    Raises:
        InputError: height or width is not a positive multiple of the patch size.
    """
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None) or (1, 1)
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if any(side < 1 or side % step for side, step in zip(size, patch, strict=True)):
        raise InputError(f"input size {tuple(size)} does not divide into the {patch} patches of {name}; set model.input_size to a multiple")
