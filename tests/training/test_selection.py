"""The monitored value is pooled; the best epoch is the first best one."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evenhand.training.selection import Best, pooled_auc, resolve_monitor

RNG = np.random.default_rng(0)


def test_pooled_auc_is_scikit_learns_macro_mean():
    y, score = (RNG.random((50, 3)) > 0.5).astype(float), RNG.random((50, 3))
    assert pooled_auc(y, score, "multilabel") == pytest.approx(roc_auc_score(y, score, average="macro"))
    classes, soft = RNG.integers(0, 4, 60), RNG.dirichlet(np.ones(4), 60)
    assert pooled_auc(classes, soft, "multiclass") == pytest.approx(roc_auc_score(classes, soft, multi_class="ovr"))


def test_labels_that_are_not_estimable_are_left_out_and_none_is_none():
    y = np.array([[0, 1], [1, 1], [np.nan, 1]], float)
    assert pooled_auc(y, np.array([[0.1, 0.5], [0.2, 0.1], [0.0, 0.3]]), "multilabel") == 1.0
    assert pooled_auc(y[:, 1:], np.zeros((3, 1)), "binary") is None
    assert pooled_auc(np.array([-1, -1]), np.full((2, 3), 1 / 3), "multiclass") is None


@pytest.mark.parametrize(
    ("y", "kind", "monitor"),
    [
        (np.array([[0.0], [1.0]]), "binary", "val_auc"),
        (np.array([[1.0], [1.0]]), "binary", "val_loss"),
        (np.array([[0.0, 1.0], [0.0, 0.0]]), "multilabel", "val_auc"),
        (np.full((2, 1), np.nan), "binary", "last"),
        (np.zeros((0, 1)), "binary", "last"),
        (np.array([0, 2, -1]), "multiclass", "val_auc"),
        (np.array([2, 2]), "multiclass", "val_loss"),
        (np.array([-1]), "multiclass", "last"),
    ],
)
def test_what_cannot_be_monitored_falls_back_and_says_so(y, kind, monitor):
    got, note = resolve_monitor("val_auc", y, kind)
    assert got == monitor
    assert bool(note) == (monitor != "val_auc")


def test_ties_keep_the_earlier_epoch():
    best = Best("val_auc")
    assert [best.update(epoch, value) for epoch, value in enumerate([0.6, 0.7, 0.7, 0.65], 1)] == [True, True, False, False]
    assert (best.epoch, best.bad_epochs) == (2, 2)
    lowest = Best("val_loss")
    assert [lowest.update(epoch, value) for epoch, value in enumerate([0.6, 0.7, 0.5], 1)] == [True, False, True]
