"""The attribute head: against scikit-learn, as published, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scenes import scene_split
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from evenhand.config.editing import DNEConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.editing.attribute_head import AttributeHead, fit_attribute_head, nothing_to_hide


def rows(n=200, k=3, seed=0, strength=1.5, missing=0.1):
    split = scene_split(n, seed, n_groups=k, missing=missing)
    rng = np.random.default_rng(seed + 50)
    z = rng.standard_normal((n, 4)) + strength * np.maximum(split.groups["site"].codes, 0)[:, None] * [1, 0, 0.3, 0]
    return z.astype(np.float32), split


def fit(train, val, **options):
    return fit_attribute_head(train, val, "site", DNEConfig(**options), seed=0)


def test_it_is_scikit_learns_softmax_at_the_chosen_strength():
    train, val = rows(), rows(seed=1)
    head = fit(train, val)
    known = train[1].groups["site"].codes >= 0
    scaler = StandardScaler().fit(train[0][known].astype(np.float64))
    model = LogisticRegression(C=1 / (head.l2 * known.sum()), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(train[0][known]), train[1].groups["site"].codes[known])
    np.testing.assert_allclose(head.probabilities(val[0]), model.predict_proba(scaler.transform(val[0])), atol=1e-3)


def test_its_report_counts_and_measures():
    train, val = rows(), rows(seed=1)
    head = fit(train, val)
    codes = val[1].groups["site"].codes
    known = codes >= 0
    p = head.probabilities(val[0])
    found = json.loads(json.dumps(head.report, allow_nan=False))["val"]
    assert (found["n"], found["n_missing"]) == (known.sum(), (~known).sum())
    assert found["accuracy"] == pytest.approx((p[known].argmax(1) == codes[known]).mean())
    assert found["auc"]["b"]["value"] == pytest.approx(roc_auc_score(codes[known] == 1, p[known, 1]))
    pair = known & (codes != 2)
    assert found["pairs"]["a | b"]["value"] == pytest.approx(roc_auc_score(codes[pair] == 1, p[pair, 1] / p[pair, :2].sum(1)))
    assert found["reads"] is True
    assert nothing_to_hide(head) is None


def test_rows_without_the_attribute_are_left_out():
    (z, split), val = rows(), rows(seed=1)
    changed = np.where(split.groups["site"].codes[:, None] < 0, np.float32(1e3), z)
    np.testing.assert_array_equal(fit((z, split), val).weight, fit((changed, split), val).weight)


@pytest.mark.parametrize("head", ["lbfgs", "adam"])
def test_one_value_is_refused(head):
    z, split = rows(k=1, missing=0)
    with pytest.raises(MethodError, match="has only 'a' among the 200 training rows, but a head needs two groups"):
        fit((z, split), (z, split), head=head)


def test_a_head_no_better_than_chance_has_nothing_to_hide():
    train, val = rows(strength=0.0, k=2), rows(seed=1, strength=0.0, k=2)
    said = nothing_to_hide(fit(train, val))
    assert said is not None
    assert "there is nothing to hide from a linear head on this encoder" in said
    assert "method.head" not in said
    few = replace(val[1], groups={"site": Groups("site", ("a", "b"), np.full(200, -1))})
    assert "was not tested" in (nothing_to_hide(fit(train, (val[0], few))) or "")


def test_the_published_fit_learns_and_repeats():
    train, val = rows(k=2), rows(seed=1, k=2)
    options = {"head": "adam", "head_lr": 1e-2, "head_epochs": 10, "head_batch_size": 32}
    first, second = fit(train, val, **options), fit(train, val, **options)
    np.testing.assert_array_equal(first.weight, second.weight)
    assert first.report["val"]["auc"]["b"]["value"] > 0.8
    none = fit(train, val, **{**options, "head_epochs": 0})
    step = np.abs(fit(train, val, **{**options, "head_epochs": 1, "head_batch_size": 10**6}).weight - none.weight)
    np.testing.assert_allclose(step, 1e-2, rtol=1e-3)  # Adam's first step is its learning rate


def test_a_head_that_did_not_converge_says_nothing_about_the_encoder():
    train, val = rows(k=2, n=400), rows(seed=1, k=2, n=400)
    assert nothing_to_hide(fit(train, val)) is None
    short = fit(train, val, head="adam", head_epochs=0)
    short.report["val"].update(reads=False)
    said = nothing_to_hide(short) or ""
    assert "was fitted by method.head=adam, which stops before it converges: try method.head=lbfgs" in said
    assert "on this encoder" not in said
    assert nothing_to_hide(fit(train, val, head="adam", head_lr=1e-2, head_epochs=20)) is None


def test_it_is_stored_and_restored():
    head = fit(rows(), rows(seed=1))
    meta, tensors = head.state()
    again = AttributeHead.from_state(json.loads(json.dumps(meta)), tensors)
    assert again.keys == head.keys
    np.testing.assert_array_equal(again.weight, head.weight)
