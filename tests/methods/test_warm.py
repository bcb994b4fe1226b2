"""A head fitted beforehand is scikit-learn's on the embeddings, and it is where fine-tuning starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from evenhand.config.schema import TrainerConfig
from evenhand.errors import MethodError
from evenhand.methods.warm import warm_head
from evenhand.models import ImageClassifier
from evenhand.training.predicting import predict_logits

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


class Pixels:
    shape, fingerprint = (3, 16, 16), "pixels"

    def __init__(self, n):
        self.pixels = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        return self.pixels[positions]


def build(outputs, name="vit_tiny_patch16_224"):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=outputs, **VIT)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(16, 16), name=name).eval()


def make_task(model, kind, n=60, **trainer):
    images = Pixels(n)
    with torch.no_grad():
        x = model.embed(images.pixels).numpy()
    scores = x[:, :3] - np.median(x[:, :3], axis=0) + np.random.default_rng(0).normal(0, 0.3, (n, 3))
    if kind == "multiclass":
        y = scores.argmax(axis=1)
        y[::10] = -1
    else:
        y = (scores[:, : 2 if kind == "multilabel" else 1] > 0).astype(np.float32)
        y[::10] = np.nan
    labels = ("ill", "worse")[: y.shape[1]] if y.ndim == 2 else ("kind",)
    classes = ("a", "b", "c") if kind == "multiclass" else ()
    split = SimpleNamespace(x=images, y=y)
    return SimpleNamespace(
        kind=kind, labels=labels, classes=classes, trainer=TrainerConfig(**trainer), train=split, embed=lambda given: x
    ), x


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize(("kind", "outputs"), [("binary", 1), ("multilabel", 2), ("multiclass", 3)])
def test_the_head_is_scikit_learns_logistic_regression_on_embeddings(kind, outputs, weights):
    model = build(outputs)
    task, x = make_task(model, kind, class_weights=weights)
    body = {name: value.clone() for name, value in model.state_dict().items() if "head" not in name}
    assert warm_head(model, task, l2=1e-2) == ()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in body.items())
    logits = predict_logits(model, task.train.x, 16, torch.device("cpu"))
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    columns = [task.train.y] if kind == "multiclass" else list(task.train.y.T)
    for k, column in enumerate(columns):
        known = column >= 0
        reference = LogisticRegression(
            C=1 / (1e-2 * known.sum()), tol=1e-10, max_iter=10_000, class_weight=None if weights == "none" else weights
        )
        reference.fit(standard[known], column[known])
        expected = reference.decision_function(standard)
        ours = logits if kind == "multiclass" else logits[:, k]
        if kind == "multiclass":
            expected, ours = expected - expected.mean(axis=1, keepdims=True), ours - ours.mean(axis=1, keepdims=True)
        assert np.abs(ours - expected).max() < 5e-3


def test_a_label_with_one_class_is_noted():
    model = build(2)
    task, _ = make_task(model, "multilabel")
    task.train.y[:, 1] = 0.0
    assert "label 'worse' has one class" in warm_head(model, task)[0]


def test_a_head_that_is_not_one_linear_layer_is_refused(caplog):
    caplog.set_level(logging.ERROR)
    model = build(1, "deit_tiny_distilled_patch16_224")
    task, _ = make_task(build(1), "binary")
    with pytest.raises(MethodError, match=r"head is 2 heads, but only one linear layer on embeddings of width 16.*warm_head=false"):
        warm_head(model, task)
