"""Heads that follow an edit: against scikit-learn, and hand cases of what they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evenhand.methods.editing.facts import RowFacts, label_dummies
from evenhand.methods.editing.refitted import Reader, fit_affine


def rows(n=300, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    z = rng.standard_normal((n, 4)) * [1, 5, 0.2, 1] + codes[:, None] * [0.5, 0, 0.1, 0] + 3
    return torch.from_numpy(z.astype(np.float32)), torch.from_numpy(codes)


@pytest.mark.parametrize("k", [2, 3])
def test_the_head_is_that_of_scikit_learn(k):
    z, codes = rows(k=k)
    found = fit_affine(z, codes, k, 0.05)(z).softmax(dim=1).numpy()
    x = StandardScaler().fit_transform(z.numpy().astype(np.float64))
    # two classes: softmax with a penalty on both rows is the logistic regression with half of it
    penalty = 0.05 * len(x) / (2 if k == 2 else 1)
    expected = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(x, codes.numpy()).predict_proba(x)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_row_weights_are_repeats():
    z, codes = rows(90, 2)
    weight = torch.arange(90) % 3
    again = torch.arange(90).repeat_interleave(weight)
    # standardisation counts rows, not weights; the penalty is too small for that to matter
    weighted = fit_affine(z, codes, 1, 1e-7, weight=weight)
    repeated = fit_affine(z[again], codes[again], 1, 1e-7)
    torch.testing.assert_close(weighted(z), repeated(z), atol=2e-2, rtol=1e-2)


def test_one_class_gives_a_constant():
    head = fit_affine(torch.rand(20, 3), torch.ones(20, dtype=torch.long), 1, 0.1)
    assert not head.weight.any()
    assert float(head(torch.rand(1, 3))) > 2


def reader(z, codes, y, k=2, l2=1e-3):
    facts = RowFacts(codes[None], y[:, None].float())
    dummies = label_dummies(facts, 2, torch.float32)
    return Reader.fit(z, codes, dummies, k, l2), dummies


def test_the_base_is_the_entropy_given_the_label():
    y, codes = torch.tensor([0] * 40 + [1] * 60), torch.tensor([0] * 10 + [1] * 30 + [0] * 30 + [1] * 30)
    found, _ = reader(torch.randn(100, 2), codes, y)
    expected = 0.4 * -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) + 0.6 * np.log(2)
    assert found.entropy == pytest.approx(expected, abs=1e-4)


def test_advantage_is_the_share_of_entropy_that_embeddings_take_away():
    rng = np.random.default_rng(0)
    codes, y = torch.from_numpy(rng.integers(0, 2, 2000)), torch.from_numpy(rng.integers(0, 2, 2000))
    noise = torch.from_numpy(rng.standard_normal((2000, 2)).astype(np.float32))
    told = torch.cat([noise, codes[:, None] * 2.0 - 1], dim=1)
    for z, low, high in ((told, 0.95, 1.0), (noise, -0.01, 0.01)):
        found, dummies = reader(z, codes, y)
        assert low <= float(found.advantage(z, codes, dummies)) <= high


def test_an_attribute_that_the_label_says_leaves_nothing_to_read():
    y = torch.arange(100) % 2
    z = y[:, None] + 0.1 * torch.randn(100, 2)
    found, dummies = reader(z, y, y)
    z.requires_grad_()
    value = found.advantage(z, y, dummies)
    value.backward()
    assert value.item() == 0
    assert not z.grad.any()


def test_gradient_against_finite_differences():
    z, codes = rows(40, 3)
    found, dummies = reader(z, codes, torch.arange(40) % 2, k=3)

    def value(x):
        return found.advantage(x, codes[:9], dummies[:9].double())

    assert torch.autograd.gradcheck(value, (z[:9].double().requires_grad_(),), atol=1e-6)
