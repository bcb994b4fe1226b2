"""Training a network of which the first part is frozen: that part is run once an image, not once an epoch.

    train_frozen(model, train, val, setup)         what requires a gradient is trained
    train_masked(model, mask, train, val, setup)   as a mask says: what is trained, at what rate

Both give what `train_model` gives. With ``prefix`` the activations before the first trained step are computed once, kept
(`evenhand.training.activations`) and read in every epoch and by every later run with the same frozen weights: same rows,
same order, same random numbers, same arithmetic, so the same result up to the rounding of sums over other batches. Where
that is not possible or not worth it, the whole network is run, and it is said why:

- images are augmented anew every epoch, or mixed; ``views=k`` gives every image k views, which can be kept;
- nothing is frozen before the first trained or random step (`evenhand.models.prefix`);
- reading activations would take longer than computing them;
- there is no room for them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evenhand.errors import DiskFullError
from evenhand.models.lora import merge_lora
from evenhand.models.masks import Mask, apply_mask
from evenhand.models.parameters import _unwrap
from evenhand.models.prefix import NetworkSplit, split_network
from evenhand.training.activations import ActivationCache, Arithmetic
from evenhand.training.loop import TrainOutcome, train_model
from evenhand.training.settings import Setup, resolve_precision
from evenhand.training.views import ActivationViews, FixedViews
from evenhand.training.watching import Watch

if TYPE_CHECKING:
    from evenhand.methods.base import Split

log = logging.getLogger(__name__)

FLOPS_PER_BYTE = {"cpu": 20.0, "cuda": 2000.0}
"""Operations that a device does in the time that one byte of activations takes to read and move there. A prefix of fewer
operations for each byte of its activations is run again instead."""
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_masked(
    model: nn.Module,
    mask: Mask,
    train: Split,
    val: Split,
    setup: Setup,
    *,
    prefix: bool = True,
    views: int = 0,
    cache: ActivationCache | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> TrainOutcome:
    """Train a network as a mask says: its parts, its learning rate, its LoRA ranks and learning-rate scales.

    Args:
        model: an `ImageClassifier`; changed in place.
        mask: of this network; its ``lr`` takes the place of the trainer's.
        train: rows to learn from.
        val: rows that pick the epoch.
        setup: as `train_model` takes it; its seed also starts LoRA layers.
        prefix: keep the activations of what is frozen.
        views: augmented views of every training image; 0: augmented anew in every epoch.
        cache: where activations are kept; default: the memory of this call.
        watch: told of every epoch.
        options: ``loss, cells, balance, sample_weight`` of `train_model`.

    Returns:
        What `train_model` returns, of the whole model, its LoRA layers folded into plain ones.

    Raises:
        MethodError: the mask is of another network.

    Example:
        >>> mask = read_mask("runs/search/mask.json", model)  # doctest: +SKIP
        >>> train_masked(model, mask, task.train, task.val, task).best_epoch  # doctest: +SKIP
        7
    """
    apply_mask(model, mask, seed=setup.seed)
    setup = _with(setup, trainer=replace(setup.trainer, lr=mask.lr))
    outcome = train_frozen(model, train, val, setup, prefix=prefix, views=views, cache=cache, watch=watch, **options)
    merge_lora(model)
    return outcome


def train_frozen(
    model: nn.Module,
    train: Split,
    val: Split,
    setup: Setup,
    *,
    prefix: bool = True,
    views: int = 0,
    cache: ActivationCache | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> TrainOutcome:
    """Train the parameters that require a gradient, the frozen part before them run once an image.

    A run that was killed goes on with or without ``prefix``: its checkpoint is the whole model's.

    Args:
        model: an `ImageClassifier` with its frozen parameters switched off; changed in place.
        train: rows to learn from.
        val: rows that pick the epoch.
        setup: as `train_model` takes it.
        prefix: keep the activations of what is frozen.
        views: augmented views of every training image; 0: augmented anew in every epoch.
        cache: where activations are kept; default: the memory of this call.
        watch: told of every epoch.
        options: ``loss, cells, balance, sample_weight`` of `train_model`.

    Returns:
        What `train_model` returns, of the whole model; a note where there was no room for the activations.
    """
    if views and _augments(setup):
        train = replace(train, x=FixedViews(train.x, setup, views))
        trainer = replace(setup.trainer, rand_augment="", random_erasing=0.0)
        setup = _with(setup, augment="none", trainer=trainer)

    def run(network: nn.Module, train: Split, val: Split) -> TrainOutcome:
        return train_model(network, train, val, setup, watch=watch, **options)

    why = _reason(setup) if prefix else "activations are not wanted"
    split = None if why else split_network(model.to(setup.device), _trained(model))
    if split is None or not worthwhile(split, setup.device):
        log.debug("the whole network is run: %s", why or "no frozen part comes first, or it runs as fast as its activations are read")
        return run(model, train, val)
    try:
        kept_train, kept_val = _activations(split, train, val, setup, cache or ActivationCache())
    except DiskFullError as error:
        log.warning("the whole network is run in every epoch: %s", error)
        outcome = run(model, train, val)
        return replace(outcome, notes=(*outcome.notes, f"the whole network was run in every epoch: {error}"))
    log.info("activations before %s are read in place of %d steps of the network", split.before, len(split.prefix.steps))
    outcome = run(split.suffix, kept_train, kept_val)
    model.eval()
    return replace(outcome, model=model)


def worthwhile(split: NetworkSplit, device: torch.device) -> bool:
    """Whether a frozen part takes longer to run than its activations take to read; see `FLOPS_PER_BYTE`."""
    return split.flops() > FLOPS_PER_BYTE.get(device.type, FLOPS_PER_BYTE["cuda"]) * split.n_bytes


def _activations(split: NetworkSplit, train: Split, val: Split, setup: Setup, cache: ActivationCache) -> tuple[Split, Split]:
    """The splits with activations in place of images."""
    trainer = setup.trainer
    name = resolve_precision(trainer.precision, setup.device)
    arithmetic = Arithmetic(channels_last=trainer.channels_last)
    if name in _TYPES:
        autocast = functools.partial(torch.autocast, setup.device.type, dtype=_TYPES[name])
        arithmetic = Arithmetic(name, autocast, trainer.channels_last)
    if trainer.channels_last:
        split.suffix.to(memory_format=torch.channels_last)
    get = functools.partial(cache.get, split, batch_size=setup.batch_size, device=setup.device, arithmetic=arithmetic)
    images: Any = train.x
    if isinstance(images, FixedViews):
        kept: Any = ActivationViews(tuple(get(images=view) for view in images.views), images.fingerprint)
    else:
        kept = get(images=images)
    return replace(train, x=kept), replace(val, x=get(images=val.x)) if len(val) else val


def _trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in _unwrap(model).named_parameters() if parameter.requires_grad]


def _augments(setup: Setup) -> bool:
    """Whether images are changed one by one, at random."""
    return setup.augment != "none" or bool(setup.trainer.rand_augment) or setup.trainer.random_erasing > 0


def _reason(setup: Setup) -> str:
    """Why activations cannot be kept under these options; empty where they can."""
    if _augments(setup):
        return "images are augmented anew in every epoch (views=0)"
    if setup.trainer.mixup > 0 or setup.trainer.cutmix > 0:
        return "mixup and cutmix give other images in every epoch"
    return ""


def _with(setup: Setup, **changes: Any) -> Setup:
    """A setup with other options; `Task` and `TrainSetup` are dataclasses."""
    changed: Setup = dataclasses.replace(setup, **changes)  # type: ignore[type-var]
    return changed
