"""The attribute head g: a linear probe that reads a sensitive attribute from embeddings of unedited images.

    g(z) = softmax(W z + b),  K groups;  rows whose attribute is missing are left out

By L-BFGS to convergence (``head=lbfgs``), the L2 strength chosen by log loss on validation rows, or as published
(``head=adam``): Adam on raw embeddings, learning rate 1e-4, 50 epochs, batches of 64, no penalty.

Where its AUC on rows it has not seen cannot be told from 0.5 for any group, there is nothing to hide from a linear head,
and that is said; of a head that was not fitted to convergence (``head=adam``) only that it reads nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.config.editing import EditMethodConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Split
from evenhand.methods.editing.refitted import Affine
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head
from evenhand.methods.predictors import probabilities
from evenhand.methods.regularisation import FALL_BACK, GRID, MIN_ROWS, log_loss
from evenhand.metrics.paired import AucEstimate, delong
from evenhand.random import derive_seed, generator

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

LEAST = 10
"""Fewest patients of a class for an AUC."""
HEAD_SCHEMA = "evenhand.attribute_head/1"
HEAD_FILES = ("attribute_head.safetensors", "attribute_head.json")
"""The files of the heads that an edit is trained against: tensors, and what they are."""


@dataclass(frozen=True)
class AttributeHead:
    """A fitted attribute head.

    Attributes:
        attribute: its name.
        keys: the K groups, in order of the codes.
        weight: float64 (K, d), on raw embeddings.
        bias: float64 (K,).
        l2: the strength it was fitted with; heads that follow an edit use it too.
        report: how it was fitted and how well it reads, JSON; see `measure_head`.
    """

    attribute: str
    keys: tuple[str, ...]
    weight: Array
    bias: Array
    l2: float = FALL_BACK
    report: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, z: Embeddings) -> Array:
        """(n, K)."""
        return probabilities(z.astype(np.float64) @ self.weight.T + self.bias, "multiclass")

    def affine(self, device: torch.device | str) -> Affine:
        """The same map on tensors, float32, constant."""
        weight, bias = (torch.from_numpy(part).float().to(device) for part in (self.weight, self.bias))
        return Affine(weight, weight[:, :0], bias)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON description and tensors."""
        meta = {"attribute": self.attribute, "keys": list(self.keys), "l2": self.l2, "report": self.report}
        return meta, {"weight": torch.from_numpy(self.weight.copy()), "bias": torch.from_numpy(self.bias.copy())}

    @classmethod
    def from_state(cls, meta: dict[str, Any], tensors: dict[str, Tensor]) -> AttributeHead:
        """From `state`."""
        weight, bias = tensors["weight"].double().numpy(), tensors["bias"].double().numpy()
        return cls(meta["attribute"], tuple(meta["keys"]), weight, bias, float(meta["l2"]), dict(meta.get("report", {})))


def needs_two_groups(split: Split, attribute: str) -> None:
    """Refuse an attribute with one value, before images are embedded for it.

    Raises:
        MethodError: fewer than two groups occur among the rows.
    """
    codes, keys = split.groups[attribute].codes, split.groups[attribute].keys
    present = np.unique(codes[codes >= 0])
    if len(present) < 2:
        only = f"only '{keys[present[0]]}'" if len(present) else "no group"
        raise MethodError(
            f"attribute '{attribute}' has {only} among the {len(codes)} training rows, but a head needs two groups to tell apart; "
            "choose another attribute"
        )


def fit_attribute_head(
    train: tuple[Embeddings, Split],
    val: tuple[Embeddings, Split],
    attribute: str,
    config: EditMethodConfig,
    seed: int = 0,
) -> AttributeHead:
    """Fit the head of one attribute and measure it on the validation rows.

    Args:
        train: embeddings (n, d) of unedited images, and their rows.
        val: rows to choose the L2 strength on and to measure with; may be empty.
        attribute: which one.
        config: ``head`` and the options of ``head=adam``.
        seed: initialises and shuffles ``head=adam``.

    Raises:
        MethodError: fewer than two groups occur among the training rows.
    """
    z, split = train
    needs_two_groups(split, attribute)
    codes, keys = split.groups[attribute].codes, split.groups[attribute].keys
    known = codes >= 0
    val_codes = val[1].groups[attribute].codes
    if config.head == "adam":
        fitted, l2 = _fit_adam(z[known], codes[known], len(keys), config, seed), FALL_BACK
    else:
        fitted, l2 = fit_reader(z[known], codes[known], len(keys), (val[0], val_codes))
    head = AttributeHead(attribute, keys, fitted.weight, fitted.bias, l2)
    report: dict[str, Any] = {"fitted_by": config.head, "l2": None if config.head == "adam" else l2, "n_train": int(known.sum())}
    report |= {"n_missing": int((~known).sum()), "groups": list(keys)}
    head.report.update(report, val=measure_head(head, val[0], val_codes, val[1].patient))
    return head


def fit_reader(
    z: Embeddings, codes: Codes, n_groups: int, val: tuple[Embeddings, Codes], *, standardize: bool = True
) -> tuple[FittedHead, float]:
    """A softmax head whose L2 strength has the lowest log loss on validation rows, and that strength.

    The grid falls from 10 and is left after two strengths in a row that do worse; with fewer than 10 validation rows of
    known group 0.1 is taken.

    Args:
        z: (n, d).
        codes: (n,), none missing.
        n_groups: K.
        val: embeddings and codes, -1 where missing.
        standardize: standardise the columns; off for columns that were.
    """
    spec = HeadSpec("multiclass", ("group",), tuple(map(str, range(n_groups))), standardize=standardize)
    z_val, codes_val = val
    if (codes_val >= 0).sum() < MIN_ROWS:
        return fit_head(z, codes, replace(spec, l2=FALL_BACK)), FALL_BACK
    best: tuple[float, FittedHead, float] | None = None
    worse = 0
    for strength in GRID:
        head = fit_head(z, codes, replace(spec, l2=strength))
        loss = log_loss(head, z_val, codes_val, "multiclass")
        if best is None or loss < best[0]:
            best, worse = (loss, head, strength), 0
        else:
            worse += 1
            if worse == 2:
                break
    assert best is not None
    return best[1], best[2]


def _fit_adam(z: Embeddings, codes: Codes, n_groups: int, config: EditMethodConfig, seed: int) -> FittedHead:
    """The published fit: a linear layer as torch initialises it, Adam, shuffled batches, no penalty."""
    x, y = torch.from_numpy(z), torch.from_numpy(codes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "attribute head"))
        layer = torch.nn.Linear(z.shape[1], n_groups)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.head_lr)
    for epoch in range(config.head_epochs):
        order = torch.from_numpy(generator(seed, "attribute head", epoch).permutation(len(y)))
        for rows in torch.split(order, config.head_batch_size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(layer(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return FittedHead(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())


def measure_head(head: AttributeHead, z: Embeddings, codes: Codes, patient: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
    """How well a head reads rows, JSON: accuracy, the most common group's share, AUC of each group against the rest and of
    each pair (patient-clustered intervals), n; two groups have one AUC.

    AUCs of fewer than 10 patients of a class are null, with the reason.
    """
    known = codes >= 0
    p, truth, who = head.probabilities(z[known]), codes[known], patient[known]
    out: dict[str, Any] = {"n": int(known.sum()), "n_missing": int((~known).sum())}
    if not known.any():
        return {**out, "accuracy": None, "majority": None, "auc": {}, "pairs": {}, "reads": None}
    out["accuracy"] = float((p.argmax(axis=1) == truth).mean())
    out["majority"] = float(np.bincount(truth).max() / len(truth))
    groups = range(1, 2) if len(head.keys) == 2 else range(len(head.keys))
    out["auc"] = {head.keys[g]: auc_record(truth == g, p[:, g], who) for g in groups}
    out["pairs"] = {}
    if len(head.keys) > 2:
        for a, b in combinations(range(len(head.keys)), 2):
            rows = (truth == a) | (truth == b)
            score = p[rows, b] / np.maximum(p[rows, a] + p[rows, b], 1e-300)
            out["pairs"][f"{head.keys[a]} | {head.keys[b]}"] = auc_record(truth[rows] == b, score, who[rows])
    lowers = [item["lower"] for item in out["auc"].values() if item["value"] is not None]
    # several groups are several tries: the level of each is divided by their number
    out["reads"] = None if not lowers else bool(max(_lower(head, p, truth, who, groups)) > 0.5)
    return out


def _lower(head: AttributeHead, p: Array, truth: Codes, who: npt.NDArray[np.integer[Any]], groups: range) -> list[float]:
    confidence = 1 - 0.05 / len(groups)
    found = [delong(truth == g, p[:, g], who, confidence) for g in groups if _enough(truth == g, who)]
    return [item.lower for item in found if np.isfinite(item.lower)] or [0.0]


def _enough(positive: npt.NDArray[np.bool_], who: npt.NDArray[np.integer[Any]]) -> bool:
    return min(len(np.unique(who[positive])), len(np.unique(who[~positive]))) >= LEAST


def auc_record(positive: npt.NDArray[np.bool_], score: Array, patient: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
    """One AUC with DeLong's (patient-clustered) interval, JSON; null with a reason where a class has under 10 patients."""
    n, n_positive = len(positive), int(positive.sum())
    if not _enough(positive, patient):
        reason = f"fewer than {LEAST} patients in a class"
        return {"value": None, "lower": None, "upper": None, "n": n, "n_positive": n_positive, "reason": reason}
    found: AucEstimate = delong(positive.astype(np.int64), score, patient)
    return {"value": found.value, "lower": found.lower, "upper": found.upper, "n": n, "n_positive": n_positive}


def nothing_to_hide(head: AttributeHead) -> str | None:
    """A sentence where the head reads no better than chance on the validation rows, or cannot be tested; else None."""
    val = head.report.get("val", {})
    if val.get("reads") is None:
        return f"whether '{head.attribute}' can be read at all was not tested: too few validation rows with a known group"
    if val["reads"]:
        return None
    found = ", ".join(f"{key} {item['value']:.3f}" for key, item in val["auc"].items() if item["value"] is not None)
    said = f"the head of '{head.attribute}' reads no better than chance (AUC {found} on {val['n']} validation rows, the interval holds 0.5)"
    if head.report.get("fitted_by") == "lbfgs":
        return f"{said}: there is nothing to hide from a linear head on this encoder"
    return (
        f"{said}, but it was fitted by method.head={head.report.get('fitted_by', 'unknown')}, which stops before it converges: try "
        "method.head=lbfgs, fitted to convergence, before believing that there is nothing to hide"
    )


def heads_files(heads: Sequence[AttributeHead], test: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The contents of `HEAD_FILES` by name.

    Args:
        heads: in the order in which they are kept.
        test: attribute -> what `measure_head` found on test rows, where it was asked.
        facts: JSON; ``model_hash``, the encoder that they read, must be among them.
    """
    from safetensors.torch import save

    states = [head.state() for head in heads]
    tensors = {f"{k}.{name}": tensor.contiguous() for k, (_, parts) in enumerate(states) for name, tensor in parts.items()}
    notes = [nothing_to_hide(head) for head in heads]
    metas = [{**meta, "test": test.get(meta["attribute"]), "note": note} for (meta, _), note in zip(states, notes, strict=True)]
    said = json.dumps({"schema": HEAD_SCHEMA, "heads": metas, **facts}, indent=1, ensure_ascii=False, allow_nan=False)
    return {HEAD_FILES[0]: save(tensors), HEAD_FILES[1]: f"{said}\n".encode()}
