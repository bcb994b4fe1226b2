"""What a method leaves behind to score images: an affine head on embeddings, a whole network, or thresholds per group.

Every predictor is plain tensors plus a small JSON description, never a pickle: `state` gives both, `predictor_from_state`
restores them bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from evenhand.data.groups import Groups
from evenhand.errors import CheckpointError, InputError
from evenhand.methods.base import Images, Kind, Predictor

Embed = Callable[[Images], npt.NDArray[np.float32]]
Scores = npt.NDArray[np.float64]
State = tuple[dict[str, Any], dict[str, torch.Tensor]]

ROWS = 8192


def probabilities(logits: Scores, kind: str) -> Scores:
    """Sigmoid of every logit, or softmax of every row for "multiclass"; float64, in [0, 1].

    Example:
        >>> probabilities(np.array([[0.0, 0.0]]), "multiclass")
        array([[0.5, 0.5]])
    """
    if kind == "multiclass":
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    e = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, e) / (1.0 + e))


@dataclass(frozen=True)
class HeadPredictor:
    """Scores = sigmoid or softmax of ``weight x + bias`` on the raw embedding x of an image.

    Attributes:
        weight: float64 (K, d).
        bias: float64 (K,).
        kind: binary, multilabel or multiclass.
        embed: images -> (n, d) float32.
    """

    weight: Scores
    bias: Scores
    kind: str
    embed: Embed
    needs_groups: ClassVar[bool] = False

    def scores_of(self, embeddings: npt.NDArray[np.float32]) -> Scores:
        """Scores (n, K) of raw embeddings (n, d).

        Raises:
            InputError: the embeddings have another width than the head.
        """
        if embeddings.shape[1] != self.weight.shape[1]:
            widths = f"the encoder gives {embeddings.shape[1]} numbers an image, but this head was fitted on {self.weight.shape[1]}"
            raise InputError(f"{widths}; use the encoder of its run")
        logits = np.empty((len(embeddings), len(self.weight)))
        for start in range(0, len(embeddings), ROWS):
            logits[start : start + ROWS] = embeddings[start : start + ROWS].astype(np.float64) @ self.weight.T
        return probabilities(logits + self.bias, self.kind)

    def predict(self, images: Images, groups: Mapping[str, Groups] | None = None) -> tuple[Scores, None]:
        """Scores (n, K) in [0, 1]; no decisions."""
        return self.scores_of(self.embed(images)), None

    def state(self) -> State:
        """JSON description and tensors."""
        meta = {"type": "head", "kind": self.kind, "n_outputs": len(self.weight)}
        return meta, {"weight": torch.from_numpy(self.weight.copy()), "bias": torch.from_numpy(self.bias.copy())}


@dataclass(frozen=True)
class ModelPredictor:
    """Scores of a whole network that takes images in [0, 1] and returns logits.

    Attributes:
        model: the network, with its trained weights.
        kind: binary, multilabel or multiclass.
        n_outputs: number of logits.
        batch_size: images per forward pass.
        device: where it runs.
    """

    model: torch.nn.Module
    kind: Kind
    n_outputs: int
    batch_size: int
    device: torch.device
    needs_groups: ClassVar[bool] = False

    def predict(self, images: Images, groups: Mapping[str, Groups] | None = None) -> tuple[Scores, None]:
        """Scores (n, K) in [0, 1]; no decisions."""
        from evenhand.training.loop import predict_model

        return predict_model(self.model, images, self.batch_size, self.device, self.kind), None

    def state(self) -> State:
        """JSON description and tensors (the network's state dict, on the CPU)."""
        meta = {"type": "model", "kind": self.kind, "n_outputs": self.n_outputs, "batch_size": self.batch_size}
        return meta, {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}


@dataclass(frozen=True)
class GroupRule:
    """One label's decision rule: per group, thresholds mixed at random; else the overall threshold.

    P(decide 1 | score s, group g) = p_ignore * constant + (1 - p_ignore) * (p0 [s > t0] + p1 [s > t1])

    Attributes:
        overall: threshold for rows whose group is missing, was not seen, or has no rule of its own: 1 where s >= overall.
        groups: group key -> {"p0", "t0", "p1", "t1", "p_ignore", "constant"}; infinite thresholds as "inf" and "-inf".
    """

    overall: float
    groups: Mapping[str, Mapping[str, Any]]

    def probability(self, scores: Scores, names: npt.NDArray[np.object_]) -> Scores:
        """P(decide 1) of every row: scores (n,), group keys (n,) with None where missing."""
        out = (scores >= self.overall).astype(np.float64)
        for key, rule in self.groups.items():
            rows = names == key
            s = scores[rows]
            mixed = rule["p0"] * (s > float(rule["t0"])) + rule["p1"] * (s > float(rule["t1"]))
            out[rows] = rule["p_ignore"] * rule["constant"] + (1.0 - rule["p_ignore"]) * mixed
        return out


def uniform_by_content(embeddings: npt.NDArray[np.float32], seed: int, name: str) -> Scores:
    """A number in [0, 1) per row that depends on the seed and the row's embedding only.

    Randomised decisions made with it do not change with the order, the batch or the number of rows.
    """
    key = f"{seed}/{name}".encode()
    out = np.empty(len(embeddings))
    for row, values in enumerate(np.ascontiguousarray(embeddings, dtype="<f4")):
        digest = hashlib.blake2b(values.tobytes(), key=hashlib.sha256(key).digest(), digest_size=8).digest()
        out[row] = (int.from_bytes(digest, "big") >> 11) / 2.0**53
    return out


@dataclass(frozen=True)
class ThresholdPredictor:
    """The scores of a linear head, and decisions by one `GroupRule` per label.

    Attributes:
        base: the head that scores.
        attribute: the attribute that must be given at use.
        labels: label names.
        rules: one per label.
        seed: of the randomised decisions.
    """

    base: HeadPredictor
    attribute: str
    labels: tuple[str, ...]
    rules: tuple[GroupRule, ...]
    seed: int
    needs_groups: ClassVar[bool] = True

    def predict(self, images: Images, groups: Mapping[str, Groups] | None = None) -> tuple[Scores, npt.NDArray[np.int64]]:
        """Scores (n, L) and decisions (n, L).

        Raises:
            InputError: the attribute of the thresholds was not given.
        """
        if groups is None or self.attribute not in groups:
            raise InputError(f"thresholds per group need the attribute '{self.attribute}' at use; add it to the table, or use linear_probe")
        names = groups[self.attribute].names()
        embeddings = self.base.embed(images)
        scores = self.base.scores_of(embeddings)
        decisions = np.empty(scores.shape, dtype=np.int64)
        for column, (label, rule) in enumerate(zip(self.labels, self.rules, strict=True)):
            draw = uniform_by_content(embeddings, self.seed, label)
            decisions[:, column] = draw < rule.probability(scores[:, column], names)
        return scores, decisions

    def state(self) -> State:
        """JSON description and tensors."""
        meta, tensors = self.base.state()
        rules = [{"overall": rule.overall, "groups": {k: dict(v) for k, v in rule.groups.items()}} for rule in self.rules]
        own = {"type": "thresholds", "attribute": self.attribute, "labels": list(self.labels), "rules": rules, "seed": self.seed}
        return {**own, "base": meta}, tensors


def predictor_from_state(
    meta: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    embed: Embed,
    build_model: Callable[[int], torch.nn.Module],
    device: torch.device,
) -> Predictor:
    """Restore what `state` gave.

    Args:
        meta: the JSON description.
        tensors: the tensors.
        embed: images -> embeddings, of the encoder the head was fitted on.
        build_model: number of outputs -> a network of the same architecture.
        device: where a network goes.

    Raises:
        CheckpointError: the description is of no known type, or tensors are missing or do not fit.
    """
    kind = meta.get("type")
    if kind == "head":
        missing = [name for name in ("weight", "bias") if name not in tensors]
        if missing:
            raise CheckpointError(f"the stored head lacks {', '.join(missing)}; the run folder is damaged, train again")
        return HeadPredictor(tensors["weight"].cpu().numpy().copy(), tensors["bias"].cpu().numpy().copy(), meta["kind"], embed)
    if kind == "model":
        model = build_model(int(meta["n_outputs"]))
        try:
            model.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            raise CheckpointError("the stored network does not fit the architecture of the run's configuration", lines) from error
        return ModelPredictor(model.to(device), meta["kind"], int(meta["n_outputs"]), int(meta["batch_size"]), device)
    if kind == "thresholds":
        base = predictor_from_state(meta["base"], tensors, embed=embed, build_model=build_model, device=device)
        if not isinstance(base, HeadPredictor):
            raise CheckpointError("the stored thresholds do not stand on a head; the run folder is damaged, train again")
        rules = tuple(GroupRule(float(rule["overall"]), rule["groups"]) for rule in meta["rules"])
        return ThresholdPredictor(base, meta["attribute"], tuple(meta["labels"]), rules, int(meta["seed"]))
    raise CheckpointError(f"the stored predictor is of type '{kind}', but must be head, model or thresholds; use the version that wrote it")
