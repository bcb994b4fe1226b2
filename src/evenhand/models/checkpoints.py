"""Finding and loading weights: safely (no code in a file is ever run) and strictly (leftovers are an error).

A file is read with safetensors or ``torch.load(weights_only=True)``; its layout is recognised and brought to timm's
keys (`evenhand.models.layouts`); position embeddings are interpolated by timm; then every key must be used and every
parameter filled, except the head and what a layout is known to carry along.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from evenhand.errors import CheckpointError
from evenhand.models.hub import hub_folder, is_hub_id
from evenhand.models.layouts import Layout, guess_architecture, recognise
from evenhand.models.parameters import head_prefixes

logger = logging.getLogger(__name__)

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


class _Inert:
    """Stands in for an object of a training state (an optimiser, its scheduler, how they are made); it does and holds nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


_STAND_INS: tuple[tuple[type, str], ...] = tuple(
    (type(name.rsplit(".", 1)[1], (_Inert,), {}), name)
    for name in (
        "functools.partial", "torch.optim.sgd.SGD", "torch.optim.adam.Adam", "torch.optim.adamw.AdamW",
        "torch.optim.lr_scheduler.ReduceLROnPlateau", "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.optim.lr_scheduler.StepLR",
    )
)
"""Lightning writes these names into its checkpoints beside the tensors. None of them is imported or called: each is read as an
empty object."""


@dataclass(frozen=True)
class WeightSource:
    """Where weights are and what their folder or file says about them; everything but the file may be unknown.

    Attributes:
        file: the file with the tensors.
        label: how messages name it (no absolute path).
        architecture: timm name.
        input_size: (height, width).
        mean: normalisation mean, one number a channel.
        std: normalisation standard deviation.
        global_pool: timm's pooling name.
        model_args: further arguments of timm's factory.
    """

    file: Path
    label: str
    architecture: str | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    global_pool: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)


def find_weights(checkpoint: str) -> WeightSource:
    """Find weights: an existing file or folder first, then a hub id.

    Args:
        checkpoint: a file, a folder with config.json and model.safetensors, ``hf-hub:org/name`` or ``org/name``.

    Raises:
        CheckpointError: nothing is there, or the folder's description cannot be read.
        EvenhandError: the hub cannot be reached.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return _describe_folder(path, path.name)
    if path.is_file():
        return _describe_file(path)
    if is_hub_id(checkpoint):
        return _describe_folder(hub_folder(checkpoint), checkpoint)
    raise CheckpointError(f"checkpoint '{checkpoint}' is not a file, a folder or a hub id (org/name); check the path")


def _describe_folder(folder: Path, label: str) -> WeightSource:
    files = [folder / name for name in _FOLDER_FILES if (folder / name).is_file()] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"folder '{label}' holds none of {', '.join(_FOLDER_FILES)}; give the file itself as model.checkpoint")
    if files[0].name not in _FOLDER_FILES and len(files) > 1:
        raise CheckpointError(f"folder '{label}' holds {len(files)} safetensors files; give one of them as model.checkpoint")
    config = folder / "config.json"
    if not config.is_file():
        return _describe_file(files[0])
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"config.json of '{label}' cannot be read ({error}); restore it or give the weights file itself") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"config.json of '{label}' is not a JSON object; restore it or give the weights file itself")
    return _from_config(files[0], label, said)


def _from_config(file: Path, label: str, said: dict[str, Any]) -> WeightSource:
    """What timm's config.json (``save_for_hf``) says; normalisation and size may also stand at the top level."""
    cfg = {**said, **(said.get("pretrained_cfg") or {})}
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in (said.get("model_args") or {}).items()}
    for key in ("num_classes", "in_chans", "pretrained"):
        args.pop(key, None)
    pool = said.get("global_pool") or args.get("global_pool")
    args.pop("global_pool", None)
    size = cfg.get("input_size")
    architecture = said.get("architecture")
    if architecture is None and "architectures" in said:
        raise CheckpointError(f"'{label}' is a transformers model ({said['architectures']}), not timm's; convert it to timm's keys first")
    return WeightSource(
        file=file,
        label=label,
        architecture=architecture,
        input_size=(int(size[-2]), int(size[-1])) if size else None,
        mean=tuple(cfg["mean"]) if cfg.get("mean") else None,
        std=tuple(cfg["std"]) if cfg.get("std") else None,
        global_pool=str(pool) if pool else None,
        model_args=args,
    )


def _describe_file(path: Path) -> WeightSource:
    """A single file; a safetensors header may carry ``mean``, ``std``, ``architecture``, ``input_size`` as JSON texts."""
    if path.suffix != ".safetensors":
        return WeightSource(path, path.name)
    try:
        with safe_open(str(path), framework="pt") as opened:
            said = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path.name} is truncated or is not safetensors ({error}); copy or download it again") from error
    parsed: dict[str, Any] = {}
    for key in ("mean", "std", "input_size"):
        if key in said:
            try:
                parsed[key] = tuple(json.loads(said[key]))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"the header of {path.name} has {key}={said[key]!r}, which is not a JSON list") from error
    size = parsed.get("input_size")
    return WeightSource(
        path,
        path.name,
        architecture=said.get("architecture"),
        input_size=(int(size[-2]), int(size[-1])) if size else None,
        mean=parsed.get("mean"),
        std=parsed.get("std"),
        global_pool=said.get("global_pool"),
    )


def read_checkpoint(path: Path | str) -> Any:
    """Read a file of tensors without running anything in it.

    Args:
        path: safetensors, or a torch file (zip or the older pickle form). Only tensors, plain containers,
            ``argparse.Namespace`` (MAE's files hold one) and empty stand-ins for optimisers are allowed inside.

    Returns:
        What the file holds, mostly nested dictionaries of tensors, on the CPU.

    Raises:
        CheckpointError: the file holds code or other objects (which are not run), is truncated, or is something else.
    """
    path = Path(path)
    again = "copy or download it again"
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        with torch.serialization.safe_globals([argparse.Namespace, *_STAND_INS]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path.name} is truncated or is not safetensors ({error}); {again}") from error
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [repr(error)])[0][:160]
        raise CheckpointError(f"checkpoint {path.name} is truncated or is not a torch file ({first}); {again}") from error


def _refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """Say which object was refused, or that the file is broken."""
    text = str(error)
    for marker in ("GLOBAL ", "global ", "instantiate "):
        if marker in text:
            name = text.split(marker, 1)[1].split()[0].strip(".,'\"`")
            return CheckpointError(
                f"checkpoint {path.name} holds the Python object '{name}', and loading it could run code; it was refused, nothing was run; "
                "save only the tensors (safetensors, or torch.save of a state dictionary) and give that file"
            )
    reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), repr(error))[:160]
    return CheckpointError(
        f"checkpoint {path.name} is truncated, or holds something other than tensors, which is not run ({reason}); "
        "copy it again, or save only its tensors as safetensors"
    )


def architecture_of(source: WeightSource) -> str | None:
    """The architecture of weights: the one their folder or header states, else the one their keys look like; None if neither.

    Raises:
        CheckpointError: the file cannot be read safely.
    """
    if source.architecture is not None:
        return source.architecture
    found = guess_architecture(recognise(read_checkpoint(source.file), source.label).state)
    if found is not None:
        logger.info("%s: its keys look like %s (model.name changes it)", source.label, found)
    return found


@dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Attributes:
        layout: the layout that was recognised.
        imagenet_normalisation: whether that layout's published recipes normalise by ImageNet's mean and std.
        fresh: parameters that keep their initial values (the head, sometimes the final norm).
        dropped: keys of the file that were not used, all of known kinds.
    """

    layout: str
    imagenet_normalisation: bool
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def load_weights(network: nn.Module, source: WeightSource, *, name: str, keep_head: bool = False) -> Loaded:
    """Load weights into a timm network, strictly.

    Args:
        network: built with the wanted head.
        source: from `find_weights`.
        name: the architecture's name, for messages.
        keep_head: also load the head.

    Returns:
        What was recognised, left fresh and dropped; also logged.

    Raises:
        CheckpointError: unsafe, truncated, no state dictionary inside, or keys or shapes do not fit; ``details`` holds all.
    """
    layout = recognise(read_checkpoint(source.file), source.label)
    return load_layout(network, layout, name=name, label=source.label, keep_head=keep_head)


def load_layout(network: nn.Module, layout: Layout, *, name: str, label: str, keep_head: bool = False) -> Loaded:
    """As `load_weights`, of a checkpoint that was read and brought to timm's keys already."""
    state = _to_network(network, layout, name, label)
    heads = head_prefixes(network)
    dropped = list(layout.dropped)
    if not keep_head:
        dropped += [key for key in state if key.startswith(heads)]
        state = {key: value for key, value in state.items() if not key.startswith(heads)}
    state, more = _drop_other_norm(network, state, name, label)
    fresh = _check(network, state, () if keep_head else heads, name, label)
    network.load_state_dict(state, strict=False)
    logger.info(
        "%s: %s layout, %d tensors loaded into %s, %d known leftovers dropped, fresh: %s",
        label, layout.name, len(state), name, len(dropped) + len(more), ", ".join(fresh) or "nothing",
    )
    return Loaded(layout.name, layout.imagenet_normalisation, tuple(fresh), tuple(dropped + more))


def _to_network(network: nn.Module, layout: Layout, name: str, label: str) -> dict[str, torch.Tensor]:
    """The architecture's own filter of timm: interpolates position embeddings, renames old keys."""
    module = sys.modules[type(network).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return dict(layout.state)
    try:
        converted: dict[str, torch.Tensor] = dict(convert(dict(layout.state), network))
    except (RuntimeError, KeyError, AttributeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise _does_not_fit(network, layout.state, name, label, [f"timm's converter stopped: {error!r}"]) from error
    return converted


def _drop_other_norm(
    network: nn.Module, state: dict[str, torch.Tensor], name: str, label: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A ViT has ``norm`` before its pooling, or ``fc_norm`` after it; MAE files have the first, average pooling the second.

    As in MAE's own fine-tuning, ``norm`` is dropped and ``fc_norm`` starts fresh. The reverse would leave a fresh norm
    in the middle of the network, so it is refused.
    """
    own = network.state_dict()
    if "fc_norm.weight" in own and "norm.weight" not in own and "fc_norm.weight" not in state:
        extra = [key for key in state if key.startswith("norm.")]
        return {key: value for key, value in state.items() if key not in extra}, extra
    if "norm.weight" in own and "fc_norm.weight" not in own and "fc_norm.weight" in state and "norm.weight" not in state:
        raise CheckpointError(
            f"{label} was trained with average pooling (it has fc_norm), but {name} was built without; set model.global_pool=avg"
        )
    return state, []


def _check(network: nn.Module, state: Mapping[str, torch.Tensor], heads: tuple[str, ...], name: str, label: str) -> list[str]:
    """Every key used, every parameter filled, every shape equal; returns what stays fresh."""
    own = network.state_dict()
    fresh = [k for k in own if k.startswith(heads or ("\0",))]
    if "norm.weight" not in own and "fc_norm.weight" not in state:
        fresh += [k for k in own if k.startswith("fc_norm.")]
    missing = [k for k in own if k not in state and k not in fresh and not k.endswith("num_batches_tracked") and not _derived(k)]
    unexpected = [k for k in state if k not in own and not k.endswith("num_batches_tracked") and not _derived(k)]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    if missing or unexpected or shapes:
        problems = [f"shape: {k} is {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in {name}" for k in shapes]
        problems += [f"missing in the file: {k}" for k in missing] + [f"unknown to {name}: {k}" for k in unexpected]
        raise _does_not_fit(network, state, name, label, problems)
    return fresh


def _derived(key: str) -> bool:
    """Buffers that are computed from the input size, not learned."""
    return key.endswith(("relative_position_index", "attn_mask", "relative_coords_table"))


def _does_not_fit(
    network: nn.Module, state: Mapping[str, torch.Tensor], name: str, label: str, problems: list[str]
) -> CheckpointError:
    guess = guess_architecture(state)
    hint = f"it looks like {guess}; set model.name" if guess else "set model.name to the architecture it was made with"
    return CheckpointError(f"checkpoint {label} does not fit {name}: {len(problems)} keys differ; {hint}", problems)
