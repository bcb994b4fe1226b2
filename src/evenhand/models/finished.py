"""Finished classifiers from checkpoints: the network with the head that it was delivered with, whatever that head is called.

`evenhand.models.build_classifier` takes an encoder from a checkpoint and gives it a fresh head; here the head is what counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.models.backbones import AUTO_NAME, ImageClassifier, choose_normalisation
from evenhand.models.checkpoints import WeightSource, find_weights, load_layout, read_checkpoint
from evenhand.models.layouts import Layout, guess_architecture, recognise
from evenhand.models.networks import check_input_size, check_name, create_network, forked, network_options, register_architectures
from evenhand.models.parameters import head_prefixes

HEADS = (
    "head.layer", "head.fc", "head", "fc", "classifier", "classifier.1", "heads.head", "last_linear", "linear", "logits", "output",
    "classification_head", "cls_head", "head.1", "fc.1",
)
"""Names of a last linear layer that are looked for after the network's own."""
PROBABILITY = (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.LogSigmoid)


@dataclass(frozen=True)
class Finished:
    """A finished classifier.

    Attributes:
        model: in evaluation mode, float32, on the CPU; it gives logits.
        config: how its network is built without the file: name, input size, normalisation, pooling.
        dtypes: tensor of the network -> type it has in the file, where that is not float32.
        head: the head's name in the file.
        notes: sentences for the report.
    """

    model: ImageClassifier
    config: ModelConfig
    dtypes: dict[str, torch.dtype]
    head: str
    notes: tuple[str, ...] = ()


def load_finished(config: ModelConfig, n_outputs: int, *, head: str | None = None, seed: int = 0) -> Finished:
    """Load a finished classifier from a checkpoint, its head included.

    The head is the linear layer that timm's network of this name has; where the file has none of that name, the names in `HEADS`
    are looked for, in that order.

    Args:
        config: ``checkpoint``; ``name`` where the file does not tell the architecture.
        n_outputs: logits that the task needs: one a label or class.
        head: the head's name in the file, in front of ``.weight``; default: known names.
        seed: of what the file does not fill (nothing that is trained).

    Raises:
        CheckpointError: unsafe or truncated, another architecture, numbers that float32 cannot hold, or no head found: the names
            looked for are listed.
        InputError: the head has another number of outputs than the task needs.
    """
    register_architectures()
    if not config.checkpoint:
        raise CheckpointError("no classifier was named; give model=RUN, or model=CHECKPOINT with its head")
    source = find_weights(config.checkpoint)
    raw = read_checkpoint(source.file)
    plain = recognise(raw, source.label)
    name = _architecture(config, source, plain)
    network = _network(config, source, name, n_outputs, seed)
    layout, found = _with_head(plain, network, head, source.label, name)
    outputs = int(layout.state[f"{_own_head(network)}.weight"].shape[0])
    if outputs != n_outputs:
        raise _other_outputs(outputs, n_outputs, source.label)
    published: dict[str, Any] = dict(getattr(network, "pretrained_cfg", None) or {})
    loaded = load_layout(network, layout, name=name, label=source.label, keep_head=True)
    mean, std = choose_normalisation(config, source, loaded.imagenet_normalisation and "." not in name, published)
    size = config.input_size or source.input_size or published.get("input_size", (3, 224, 224))[-2:]
    check_input_size(network, name, size)
    model = ImageClassifier(network, mean=mean, std=std, input_size=(size[0], size[1]), name=name, source=source.label).eval()
    refuse_probabilities(model)
    notes = [] if found == _own_head(network) else [f"the head is '{found}' in {source.label}"]
    if layout.name == "bmft":
        notes.append(
            f"{source.label} is a checkpoint of BMFT's or SWiFT's training: its class of head may end in a sigmoid, which no weight tells; "
            "the output of its linear layer is taken as the logit here, and the sigmoid is applied once, by what scores"
        )
    own = network.state_dict()
    _check_digits(layout.state, own, source.label)
    dtypes = {key: value.dtype for key, value in layout.state.items() if key in own and value.dtype != own[key].dtype}
    resolved = replace(
        ModelConfig(**{field: getattr(config, field) for field in ModelConfig.__dataclass_fields__}),
        # arguments of the network that no option can say stand in the folder only
        name=name, checkpoint=config.checkpoint if source.model_args else None, pretrained=False, mean=list(mean), std=list(std),
        input_size=[int(size[0]), int(size[1])], global_pool=config.global_pool or source.global_pool,
    )
    return Finished(model, resolved, dtypes, found, tuple(notes))


def refuse_probabilities(model: nn.Module) -> None:
    """Refuse a classifier whose last module is a sigmoid or a softmax: gradients and gaps would go through two of them.

    Args:
        model: any module that gives scores.

    Raises:
        InputError: the module's last one, in order of definition, turns logits into probabilities.

    Example:
        >>> refuse_probabilities(nn.Sequential(nn.Linear(2, 1), nn.ReLU()))
        >>> try:
        ...     refuse_probabilities(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()))
        ... except InputError as error:
        ...     error.summary.partition(":")[0]
        "the classifier ends in a Sigmoid ('1'), but must give logits"
    """
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    if not leaves or not isinstance(leaves[-1][1], PROBABILITY):
        return
    name, module = leaves[-1]
    raise InputError(
        f"the classifier ends in a {type(module).__name__} ('{name}'), but must give logits: here the scores are their sigmoid or softmax, "
        "and a second one flattens every gradient; take that layer away"
    )


def look_like_probabilities(logits: torch.Tensor, kind: str) -> bool:
    """Whether the outputs of a classifier look as if a sigmoid or softmax had been applied already.

    Args:
        logits: (n, outputs).
        kind: "binary", "multilabel" or "multiclass".

    Returns:
        True where all of at least 16 rows lie in [0, 1], more than one value among them, and, for "multiclass", add to 1.

    Example:
        >>> x = torch.linspace(-3, 3, 32)[:, None]
        >>> look_like_probabilities(x, "binary"), look_like_probabilities(x.sigmoid(), "binary")
        (False, True)
    """
    values = logits.detach().float()
    if len(values) < 16 or not bool(((values >= 0) & (values <= 1)).all()) or float(values.std()) < 1e-6:
        return False
    return kind != "multiclass" or bool((values.sum(dim=1) - 1).abs().max() < 1e-3)


def _architecture(config: ModelConfig, source: WeightSource, layout: Layout) -> str:
    name = config.name
    if name == AUTO_NAME:
        found = source.architecture or guess_architecture(layout.state)
        if found is None or " " in found:
            like = f"its keys look like {found}" if found else "its keys do not tell"
            raise CheckpointError(f"checkpoint {source.label} does not say what architecture it is ({like}); set model.name=… (timm's)")
        name = found
    check_name(name)
    if source.architecture and name.split(".")[0] != source.architecture.split(".")[0]:
        raise CheckpointError(f"{source.label} is a {source.architecture}, but model.name is {name}; set model.name={source.architecture}")
    return name


def _network(config: ModelConfig, source: WeightSource, name: str, n_outputs: int, seed: int) -> nn.Module:
    with forked(seed, "network"):
        return create_network(name, n_outputs, network_options(config, source))


def _own_head(network: nn.Module) -> str:
    return head_prefixes(network)[0].rstrip(".")


def _with_head(layout: Layout, network: nn.Module, asked: str | None, label: str, name: str) -> tuple[Layout, str]:
    """The layout with the head under the network's own name, and the name that it has in the file."""
    own = [prefix.rstrip(".") for prefix in head_prefixes(network)]
    state = layout.state
    wanted = [asked] if asked else list(dict.fromkeys([own[0], *HEADS]))
    width = int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]
    for candidate in wanted:
        weight = state.get(f"{candidate}.weight")
        if weight is None or weight.ndim not in (2, 4) or (weight.shape[1] != width and candidate not in (asked, own[0])):
            continue
        if candidate == own[0]:
            return layout, candidate
        given, taken = f"{candidate}.", f"{own[0]}."
        moved = {taken + key.removeprefix(given) if key.startswith(given) else key: value for key, value in state.items()}
        return replace(layout, state=moved), candidate
    _check_body(network, state, tuple(f"{prefix}." for prefix in own), label, name)
    linear = [key for key, value in state.items() if key.endswith(".weight") and value.ndim == 2 and value.shape[1] == width]
    ends = ", ".join(key.removesuffix(".weight") for key in linear[-5:])
    hint = f"linear layers of its width in the file: {ends}" if ends else "the file has no linear layer of its width: an encoder alone"
    if asked:
        raise CheckpointError(f"model.head={asked}, but {label} has no '{asked}.weight' that fits {name}; {hint}")
    raise CheckpointError(
        f"checkpoint {label} has no head of known name for {name} (looked for: {', '.join(wanted)}); {hint}; "
        "name it with model.head=…, or give a classifier with its head"
    )


def _check_body(network: nn.Module, state: dict[str, torch.Tensor], heads: tuple[str, ...], label: str, name: str) -> None:
    """Refuse a file of another network before its head is missed.

    Raises:
        CheckpointError: most tensors of the body are not in the file.
    """
    body = [key for key in network.state_dict() if not key.startswith(heads)]
    missing = [key for key in body if key not in state]
    if 2 * len(missing) <= len(body):
        return
    guess = guess_architecture(state)
    hint = f"it looks like {guess}: set model.name={guess}" if guess and " " not in guess else "set model.name to its architecture"
    raise CheckpointError(
        f"checkpoint {label} does not fit {name}: {len(missing)} of {len(body)} tensors of its body are not in the file; {hint}",
        [f"missing in the file: {key}" for key in missing],
    )


def _check_digits(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], label: str) -> None:
    """Refuse numbers that the network cannot hold: a patch of it would belong to another model than that of the file.

    Raises:
        CheckpointError: names the first tensor.
    """
    for key, value in state.items():
        if key not in own or value.dtype == own[key].dtype or not value.is_floating_point():
            continue
        if not torch.allclose(value.to(own[key].dtype).to(value.dtype), value, rtol=0.0, atol=0.0, equal_nan=True):
            kind, held = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own[key].dtype))
            raise CheckpointError(
                f"tensor '{key}' of checkpoint {label} is {kind} with digits that {held} cannot hold, so that a patch could not give it "
                f"back bit by bit; save the classifier in {held} (model.float()), and patch that file"
            )


def _other_outputs(outputs: int, n_outputs: int, label: str) -> InputError:
    ways = "prepare the data set with the labels or classes that the classifier was trained for"
    if outputs == 2 and n_outputs == 1:
        ways = "prepare the label as two classes, since the classifier has one output for each"
    return InputError(f"the head of {label} has {outputs} outputs, but the task needs {n_outputs}: one a label or class; {ways}")

