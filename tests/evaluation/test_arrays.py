"""Arrays of every kind are the same audit as a table of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import evenhand as eh
from evenhand.errors import ConfigError
from evenhand.evaluation.arrays import as_column, frame_of_arrays, is_array, table_of

FEW: dict[str, Any] = {"threshold": 0.5, "bootstrap": 20, "permutations": 0, "metrics": ["auc", "tpr", "fpr"]}
N = 120
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, N)
P = 0.3 * Y + 0.7 * RNG.random(N)
SEX = np.tile(["f", "f", "m", "m"], N // 4)
WHO = np.arange(N) // 2
DX = np.arange(N) % 3
SCORES = RNG.dirichlet(np.ones(3), N)


def _labels(result: eh.evaluation.AuditResult) -> Any:
    return result.to_json()["labels"]


def test_every_kind_of_array_is_the_table() -> None:
    frame = pd.DataFrame({"label": Y, "score": P, "sex": SEX, "patient_id": WHO})
    wanted = _labels(eh.audit(frame, "label", "score", ["sex"], patient="patient_id", **FEW))
    tensor = torch.tensor(P, dtype=torch.float64, requires_grad=True)
    for label, score, sex in (
        (Y, P, SEX), (Y.tolist(), P.tolist(), SEX.tolist()), (pd.Series(Y, index=range(5, N + 5)), pd.Series(P), pd.Categorical(SEX)),
        (torch.tensor(Y), tensor, SEX), (Y[:, None], tensor[:, None], pd.Series(SEX, dtype="string")), (Y, np.stack([1 - P, P], 1), SEX),
        (np.where(Y, "yes", "no").tolist(), P, SEX),
    ):  # fmt: skip
        assert _labels(eh.audit(label=label, score=score, groups={"sex": sex}, patient=WHO, **FEW)) == wanted
    assert _labels(eh.audit({"label": Y, "score": tensor, "sex": SEX, "patient_id": torch.tensor(WHO)}, **FEW)) == wanted


def test_several_labels_and_classes() -> None:
    frame = pd.DataFrame({"a": Y, "b": 1 - Y, "p_a": P, "p_b": SCORES[:, 0], "sex": SEX})
    wanted = _labels(eh.audit(frame, ["a", "b"], ["p_a", "p_b"], "sex", **FEW))
    scores = torch.tensor(np.stack([P, SCORES[:, 0]], 1))
    many = eh.audit(label=np.stack([Y, 1 - Y], 1), score=scores, groups={"sex": SEX}, label_names=["a", "b"], **FEW)
    assert _labels(many) == wanted
    names = np.array(["mel", "nv", "bkl"])
    frame = pd.DataFrame({"dx": names[DX], "sex": SEX, **{f"p_{name}": SCORES[:, k] for k, name in enumerate(names)}})
    wanted = _labels(eh.audit(frame, "dx", [f"p_{name}" for name in names], "sex", **FEW))
    for label in (DX, names[DX], torch.tensor(DX)):
        assert _labels(eh.audit(label=label, score=SCORES, groups={"sex": SEX}, classes=names, **FEW)) == wanted
    logits = eh.audit(label=DX, score=np.log(SCORES), groups={"sex": SEX}, classes=names, logits=True, **FEW)
    assert _labels(logits)["mel"]["overall"]["auc"]["value"] == pytest.approx(wanted["mel"]["overall"]["auc"]["value"])


def test_tensors_of_kinds_that_numpy_does_not_know() -> None:
    assert as_column(torch.tensor([0.5, 1.0], dtype=torch.bfloat16), "score").tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": Y}, "score is missing"), ({"label": Y, "score": P[:5]}, "differ in length .label 120, score 5."),
        ({"label": Y, "score": P, "groups": ["sex"]}, "differ in length"), ({"label": Y, "score": P, "groups": "sex"}, "give a mapping"),
        ({"label": DX, "score": SCORES[:, :2]}, "3 classes .0, 1, 2.; give classes"),
        ({"label": Y, "score": P, "classes": ["a"]}, "classes are given"),
        ({"label": np.stack([Y, Y], 1), "score": SCORES}, "do not fit"),
        ({"label": np.stack([Y, Y], 1), "score": np.stack([P, P], 1), "label_names": ["a"]}, "1 label names are given for 2 labels"),
        ({"label": np.zeros((N, 2, 2)), "score": P}, "label has 3 dimensions"),
        ({"label": Y, "score": P, "groups": {"label": SEX}}, "an attribute is named 'label'"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        eh.audit(**options, **FEW)


def test_names_and_values_are_told_apart() -> None:
    assert not is_array(None)
    assert not is_array([])
    assert is_array((0.5, None))
    frame = pd.DataFrame({"y": Y, "p": P})
    with pytest.raises(ConfigError, match="score holds values, but there is a table"):
        eh.audit(frame, "y", P, **FEW)
    with pytest.raises(ConfigError, match="label_names and classes are for arrays"):
        eh.audit(frame, classes=["a"], **FEW)
    with pytest.raises(ConfigError, match="column 'p' has two dimensions"):
        table_of({"y": Y, "p": SCORES})
    made, named = frame_of_arrays(Y, P, groups=SEX, split=np.repeat("test", N))
    assert named["groups"] == ("group",)
    assert list(made.columns) == ["label", "score_label", "split", "group"]
