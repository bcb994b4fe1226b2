"""The head's fit against scikit-learn, by hand, and by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from evenhand.errors import MethodError, NonFiniteLossError
from evenhand.methods.fitting import HeadSpec, fit_head
from evenhand.methods.heads import LogisticProblem, Standardizer

RNG = np.random.default_rng(3)
N, D, L2 = 400, 12, 1e-2
X = (RNG.standard_normal((N, D)) @ RNG.standard_normal((D, D)) + RNG.standard_normal(D) * 5).astype(np.float32)
BINARY = (X[:, 0] - X[:, 1] + RNG.standard_normal(N) * 2 > np.median(X[:, 0] - X[:, 1]) + 1).astype(np.float32)
CLASSES = np.digitize(X[:, 0] + RNG.standard_normal(N) * 2, np.quantile(X[:, 0], [0.3, 0.7]))


def objective(theta, x, y, weight, n_classes, l2=L2):
    """The written definition, in float64 and with no shared code."""
    z = x.astype(np.float64) @ theta[:, :-1].T + theta[:, -1]
    losses = np.logaddexp(0, z[:, 0]) - y * z[:, 0] if n_classes == 1 else np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), y]
    return float(losses @ weight / weight.sum() + l2 / 2 * (theta[:, :-1] ** 2).sum())


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_reaches_the_objective_of_scikit_learn(n_classes, weighted):
    x = Standardizer.fit(X).apply(X)
    y = BINARY if n_classes == 1 else CLASSES
    weight = RNG.random(N) * 3 if weighted else np.ones(N)
    found = LogisticProblem(x, y, weight / weight.sum(), L2, n_classes).solve(max_iter=500, tol=1e-8)
    peer = LogisticRegression(C=1 / (L2 * weight.sum()), tol=1e-12, max_iter=5000).fit(x.astype(np.float64), y, sample_weight=weight)
    theirs = np.hstack([peer.coef_, peer.intercept_[:, None]])
    ours = objective(found.theta, x, y.astype(int), weight, n_classes)
    assert found.converged
    assert ours == pytest.approx(objective(theirs, x, y.astype(int), weight, n_classes), rel=1e-6)
    np.testing.assert_allclose(found.theta[:, :-1], theirs[:, :-1], atol=2e-3)


def test_balanced_class_weights_are_those_of_scikit_learn():
    spec = HeadSpec("binary", ("y",), l2=L2, class_weights="balanced", tol=1e-8)
    head = fit_head(X, BINARY[:, None], spec)
    standard = Standardizer.fit(X)
    peer = LogisticRegression(C=1 / (L2 * N), class_weight="balanced", tol=1e-12, max_iter=5000)  # these weights sum to n
    peer.fit((X - standard.mean) / standard.scale, BINARY)
    np.testing.assert_allclose(head.weight * standard.scale, peer.coef_, atol=1e-3)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_gradient_is_that_of_finite_differences(n_classes):
    x = Standardizer.fit(X).apply(X)
    y = BINARY if n_classes == 1 else CLASSES
    problem = LogisticProblem(x, y, np.full(N, 1 / N), L2, n_classes)
    theta = RNG.standard_normal((n_classes, D + 1)) * 0.3
    _, gradient = problem.value_grad(theta)
    for position in [(0, 0), (0, 3), (n_classes - 1, D)]:
        step = np.zeros_like(theta)
        step[position] = 1e-5
        up, down = (objective(theta + s * step, x, y.astype(int), np.ones(N), n_classes) for s in (1, -1))
        assert gradient[position] == pytest.approx((up - down) / 2e-5, abs=1e-6)


def test_standardisation_is_folded_into_the_map():
    spec = HeadSpec("binary", ("y",), l2=L2)
    head = fit_head(X, BINARY[:, None], spec)
    moved = fit_head(X * 7 + 100, BINARY[:, None], spec)
    np.testing.assert_allclose(X @ head.weight.T + head.bias, (X.astype(float) * 7 + 100) @ moved.weight.T + moved.bias, atol=2e-3)


def test_far_off_means_cost_no_accuracy():
    x = (RNG.standard_normal((200, 3)) + 1e4).astype(np.float32)
    standard = Standardizer.fit(x)
    np.testing.assert_allclose(standard.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(standard.scale, x.astype(np.float64).std(axis=0), rtol=1e-4)


def test_constant_columns_get_no_weight():
    x = np.hstack([X, np.full((N, 1), 3.7, np.float32)])
    head = fit_head(x, BINARY[:, None], HeadSpec("binary", ("y",), l2=L2))
    assert abs(head.weight[0, -1]) < 1e-4
    assert np.isfinite(head.weight).all()


def test_multilabel_is_one_fit_per_label_on_its_labelled_rows():
    y = np.stack([BINARY, (CLASSES == 0).astype(np.float32)], axis=1)
    y[:50, 1] = np.nan
    spec = HeadSpec("multilabel", ("a", "b"), l2=L2, tol=1e-8)
    both = fit_head(X, y, spec)
    alone = fit_head(X[50:], y[50:, 1:], HeadSpec("binary", ("b",), l2=L2, tol=1e-8), standardizer=Standardizer.fit(X))
    np.testing.assert_allclose(both.weight[1:], alone.weight, atol=1e-4)
    np.testing.assert_array_equal(both.weight[:1], fit_head(X, y[:, :1], HeadSpec("binary", ("a",), l2=L2, tol=1e-8)).weight)


def test_a_label_with_one_class_is_constant_and_noted():
    y = np.stack([BINARY, np.zeros(N, np.float32), np.full(N, np.nan, np.float32)], axis=1)
    head = fit_head(X, y, HeadSpec("multilabel", ("a", "none", "unread")))
    np.testing.assert_array_equal(head.weight[1:], 0)
    assert 1 / (1 + np.exp(-head.bias[1])) == pytest.approx(1 / (N + 2))
    assert head.bias[2] == 0
    assert [("none" in note, "unread" in note) for note in head.notes] == [(True, False), (False, True)]


def test_one_class_everywhere_is_refused():
    with pytest.raises(MethodError, match="one class"):
        fit_head(X, np.ones((N, 1), np.float32), HeadSpec("binary", ("y",)))
    with pytest.raises(MethodError, match="nothing to learn"):
        fit_head(X, np.ones((N, 2), np.float32), HeadSpec("multilabel", ("a", "b")))


def test_ridge_direction_is_that_of_scikit_learn():
    from evenhand.methods.fitting import ridge_solve

    x = Standardizer.fit(X).apply(X)
    problem = LogisticProblem(x, BINARY, np.full(N, 1 / N), L2)
    theta, _ = ridge_solve(problem, 0)
    peer = Ridge(alpha=L2 * N).fit(x.astype(np.float64), BINARY).coef_
    cosine = theta[0, :-1] @ peer / np.linalg.norm(theta[0, :-1]) / np.linalg.norm(peer)
    assert cosine == pytest.approx(1, abs=1e-6)
    p = 1 / (1 + np.exp(-problem.logits(theta)[:, 0]))
    assert p.mean() == pytest.approx(BINARY.mean(), abs=1e-3)  # calibrated in the large


def test_separable_rows_without_penalty_end_quietly():
    y = (X[:, 0] > np.median(X[:, 0])).astype(np.float32)
    head = fit_head(X, y[:, None], HeadSpec("binary", ("y",), l2=0.0, max_iter=50))
    assert np.isfinite(head.weight).all()


def test_nan_embeddings_are_an_error():
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(NonFiniteLossError, match="embeddings"):
        fit_head(x, BINARY[:, None], HeadSpec("binary", ("y",)))
