"""Image classifiers on timm networks: images in [0, 1] go in, normalisation and weights stay together."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import nn

from evenhand.config.schema import ModelConfig
from evenhand.edits.base import Edit
from evenhand.errors import CheckpointError, InputError
from evenhand.models.checkpoints import WeightSource, architecture_of, find_weights, load_weights
from evenhand.models.networks import (
    NoSuchOption,
    check_input_size,
    check_name,
    create_network,
    create_published,
    forked,
    initialise_head,
    network_options,
    register_architectures,
)
from evenhand.models.parameters import hold_frozen_norms

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BUNDLED_NAME = "evenhand_demo_vit"
AUTO_NAME = "auto"


class ImageClassifier(nn.Module):
    """A timm network that takes images in [0, 1] and normalises them itself.

    ``logits = network((resize(repeat(images)) - mean) / std)``. One channel is repeated to the network's three, images
    of another size are resized (bilinear, antialiased) to ``input_size``.

    - images: float (n, 1 or c, h, w) in [0, 1]
    - logits: (n, n_outputs); embeddings: (n, dim), what the head sees

    An image edit can be its first step (`with_edit`): ``logits = network((resize(repeat(edit(images))) - mean) / std)``. The
    edit comes after augmentation, so that it stays where it was trained to be, and it is never trained here.

    Args:
        network: a timm classifier with its head.
        mean: normalisation mean, one number a channel.
        std: normalisation standard deviation, one number a channel.
        input_size: (height, width) the network sees.
        name: the architecture's timm name.
        source: where the weights came from, in words.
        notes: what a user should know of how it was built.

    Attributes:
        edit: the frozen edit in front, None where there is none.

    Raises:
        InputError: mean and std do not have one number a channel, or std is not positive.

    Example:
        >>> from timm import create_model
        >>> network = create_model("resnet18", num_classes=2)
        >>> model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet18")
        >>> model(torch.rand(4, 1, 64, 64)).shape, model.dim
        (torch.Size([4, 2]), 512)
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        name: str,
        source: str = "given network",
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise InputError(f"mean is {list(mean)} and std {list(std)}, but both need one number a channel and std must be positive")
        self.network = network
        self.name = name
        self.source = source
        self.notes = tuple(notes)
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.channels = len(mean)
        self.edit: Edit | None = None
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1))

    @property
    def dim(self) -> int:
        """Width of an embedding, the input of the head."""
        width = getattr(self.network, "head_hidden_size", None) or self.network.num_features
        return int(width)  # type: ignore[arg-type]

    @property
    def n_outputs(self) -> int:
        """Number of logits."""
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def with_edit(self, edit: Edit | None) -> Self:
        """This classifier with a copy of an edit as its frozen first step, in place of the one it had; None takes it away."""
        self.edit = None if edit is None else copy.deepcopy(edit).to(self.mean.device).requires_grad_(False).eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """As every module, but batch norms whose parameters are frozen stay in evaluation mode, and so does the edit."""
        super().train(mode)
        hold_frozen_norms(self)
        if self.edit is not None:
            self.edit.eval()
        return self

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], (n, 1 or c, h, w) -> what the network sees, (n, c, *input_size); differentiable.

        Raises:
            InputError: the images are not a float batch of one or ``channels`` channels, or not on the grid of the edit.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                f"images arrived as {images.dtype} of shape {tuple(images.shape)}, but must be float (n, c, h, w) in [0, 1]; "
                "add the batch dimension, or divide integers by their full scale"
            )
        if images.shape[1] not in (1, self.channels):
            raise InputError(
                f"images have {images.shape[1]} channels, but {self.name} takes 1 or {self.channels}; prepare them with {self.channels}"
            )
        if self.edit is not None:
            images = self.edit.edited(images)
        if tuple(images.shape[2:]) != self.input_size:
            images = nn.functional.interpolate(images, size=self.input_size, mode="bilinear", antialias=True, align_corners=False)
        return (images - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, n_outputs) of images in [0, 1]."""
        logits: torch.Tensor = self.network(self.normalise(images))
        return logits

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, dim) of images in [0, 1]: the features the head sees."""
        return self.features(self.normalise(images))

    def features(self, normalised: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, dim) of images that were normalised already."""
        network: Any = self.network
        pooled: torch.Tensor = network.forward_head(network.forward_features(normalised), pre_logits=True)
        return pooled


def bundled_folder() -> Path:
    """The folder of the bundled demo encoder's weights and config.json."""
    return Path(__file__).parent / "demo_encoder"


def starts_random(config: ModelConfig) -> bool:
    """Whether a network would start from random weights: there is neither a checkpoint nor are published weights asked for.

    Example:
        >>> from evenhand.config.schema import ModelConfig
        >>> starts_random(ModelConfig(name="resnet18")), starts_random(ModelConfig(name="resnet18", pretrained=True))
        (True, False)
    """
    return not config.pretrained and _locate(config, resolve_name(config)) is None


def _locate(config: ModelConfig, name: str) -> WeightSource | None:
    """Where the weights are, or None when nothing was given."""
    if config.checkpoint:
        return find_weights(config.checkpoint)
    if name.split(".", 1)[0] == BUNDLED_NAME and not config.pretrained:
        return find_weights(str(bundled_folder()))
    return None


def resolve_name(config: ModelConfig) -> str:
    """The architecture: ``model.name``, or with ``auto`` the one that the checkpoint states, else the one its keys look like.

    Raises:
        CheckpointError: ``auto``, but there is no checkpoint or it is not recognised.
        InputError: timm does not know the name.
    """
    register_architectures()
    name = config.name
    if name == AUTO_NAME:
        if not config.checkpoint:
            raise CheckpointError("model.name is 'auto', but there is no checkpoint to tell the architecture; set model.name")
        stored = find_weights(config.checkpoint)
        found = architecture_of(stored)
        if found is None or (stored.architecture is None and not timm.is_model(found)):
            like = f"its keys look like {found}" if found else "its keys do not tell"
            raise CheckpointError(f"checkpoint {stored.label} does not say what architecture it is ({like}); set model.name=… (timm's)")
        name = found
    check_name(name)
    return name


def choose_normalisation(
    config: ModelConfig, stored: WeightSource | None, layout_imagenet: bool, published: dict[str, Any]
) -> tuple[Any, Any]:
    """Mean and std: the user's, else those stored with the weights, else the layout's, else timm's for this name."""
    mean, std = published.get("mean", IMAGENET_MEAN), published.get("std", IMAGENET_STD)
    if layout_imagenet:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if stored is not None and stored.mean and stored.std:
        mean, std = stored.mean, stored.std
    elif stored is not None and not (config.mean and config.std):
        logger.info("the checkpoint stores no normalisation; mean %s and std %s are used (model.mean, model.std change them)", mean, std)
    return config.mean or mean, config.std or std


def _bare_network(
    config: ModelConfig, name: str, n_outputs: int, seed: int, stored: WeightSource | None, use_published: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """timm's network, and what had to be left out of its options."""
    try:
        with forked(seed, "network"):
            if use_published:
                return create_published(name, n_outputs, config), ()
            return create_network(name, n_outputs, network_options(config, stored)), ()
    except NoSuchOption as error:
        if error.option != "drop_path" or not config.drop_path_optional:
            raise
        note = f"{name} has no stochastic depth, so the recipe's model.drop_path={config.drop_path:g} is left out"
    return _bare_network(replace(config, drop_path=0.0), name, n_outputs, seed, stored, use_published)[0], (note,)


def build_classifier(
    config: ModelConfig, n_outputs: int, seed: int, *, keep_head: bool = False, from_scratch: bool = False
) -> ImageClassifier:
    """Build any timm classifier from its name, with weights from a checkpoint, from timm, or bundled.

    Args:
        config: name, weights, sizes, normalisation.
        n_outputs: number of logits.
        seed: seeds the head (and, without weights, the whole network); the global generator is left alone.
        keep_head: load the head too, for a finished classifier; its size must be ``n_outputs``.
        from_scratch: the same architecture, size and normalisation, but every weight at random.

    Returns:
        The classifier in evaluation mode, in float32 on the CPU; every parameter requires a gradient.

    Raises:
        InputError: timm does not know the name, or an option does not suit the architecture.
        CheckpointError: the weights are missing, unsafe, truncated, or do not fit.

    Example:
        >>> from evenhand.config.schema import ModelConfig
        >>> model = build_classifier(ModelConfig(name="mobilenetv1_075", input_size=[32, 32]), n_outputs=1, seed=0)
        >>> model(torch.rand(2, 3, 32, 32)).shape, model.dim
        (torch.Size([2, 1]), 768)
    """
    name = resolve_name(config)
    stored = _locate(config, name)
    if stored is not None and stored.architecture and name.split(".")[0] != stored.architecture.split(".")[0]:
        raise CheckpointError(
            f"{stored.label} is a {stored.architecture}, but model.name is {name}; set model.name={stored.architecture} or model.name=auto"
        )
    use_published = config.pretrained and stored is None and not from_scratch
    network, notes = _bare_network(config, name, n_outputs, seed, stored, use_published)
    published: dict[str, Any] = dict(getattr(network, "pretrained_cfg", None) or {})
    imagenet = False
    if stored is not None and not from_scratch:
        imagenet = load_weights(network, stored, name=name, keep_head=keep_head).imagenet_normalisation and "." not in name
    elif not use_published and not from_scratch:
        logger.warning("%s starts from random weights: neither model.checkpoint nor model.pretrained was given", name)
    if not keep_head:
        initialise_head(network, seed)
    mean, std = choose_normalisation(config, stored, imagenet, published)
    source = stored.label if stored and not from_scratch else ("timm's published weights" if use_published else "random weights")
    size = config.input_size or (stored.input_size if stored else None) or published.get("input_size", (3, 224, 224))[-2:]
    check_input_size(network, name, size)
    return ImageClassifier(network, mean=mean, std=std, input_size=(size[0], size[1]), name=name, source=source, notes=notes).eval()
