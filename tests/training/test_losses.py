"""Losses against torch's own where nothing is masked, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from evenhand.errors import MethodError
from evenhand.training import GroupDROLoss, MaskedLoss, balanced_class_weights, batch_class_weights

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(7, 3, generator=GENERATOR)
LABELS = (torch.rand(7, 3, generator=GENERATOR) > 0.5).float()
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0, 2])
NAN = float("nan")


def test_without_masks_the_losses_are_torchs():
    assert torch.allclose(MaskedLoss("multilabel")(LOGITS, LABELS), F.binary_cross_entropy_with_logits(LOGITS, LABELS))
    assert torch.allclose(MaskedLoss("multiclass")(LOGITS, CLASSES), F.cross_entropy(LOGITS, CLASSES))
    smooth = MaskedLoss("multiclass", label_smoothing=0.1)
    assert torch.allclose(smooth(LOGITS, CLASSES), F.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1))


def test_unlabelled_entries_change_neither_value_nor_gradient():
    y = LABELS.clone()
    y[0, 1] = y[3] = NAN
    logits = LOGITS.clone().requires_grad_()
    loss = MaskedLoss("multilabel")(logits, y)
    loss.backward()
    known = ~torch.isnan(y)
    assert torch.allclose(loss, F.binary_cross_entropy_with_logits(LOGITS[known], y[known]))
    assert (logits.grad[~known] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_unlabelled_classes_are_skipped():
    y = CLASSES.clone()
    y[:3] = -1
    assert torch.allclose(MaskedLoss("multiclass")(LOGITS, y), F.cross_entropy(LOGITS, y, ignore_index=-1))


@pytest.mark.parametrize(("kind", "y"), [("multilabel", torch.full((7, 3), NAN)), ("multiclass", torch.full((7,), -1))])
def test_nothing_labelled_is_zero_with_zero_gradient(kind, y):
    logits = LOGITS.clone().requires_grad_()
    loss = MaskedLoss(kind)(logits, y)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_row_weights_scale_entries_and_the_count_stays_the_divisor():
    weight = torch.tensor([2.0, 0, 1, 1, 1, 1, 1])
    elements = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
    assert torch.allclose(MaskedLoss("multilabel")(LOGITS, LABELS, None, weight), (elements * weight[:, None]).mean())
    by_entry = torch.rand(7, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(MaskedLoss("multilabel")(LOGITS, LABELS, None, by_entry), (elements * by_entry).mean())


def test_balanced_class_weights_are_scikit_learns_per_label():
    y = LABELS.numpy().copy()
    y[0, 0] = NAN
    weights = balanced_class_weights(y, "multilabel", 3).numpy()
    for column in range(3):
        known = y[:, column][~np.isnan(y[:, column])]
        assert weights[:, column] == pytest.approx(compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=known))
    classes = balanced_class_weights(np.array([0, 0, 2, -1]), "multiclass", 3)
    assert classes.tolist() == pytest.approx([0.75, 1.0, 1.5])


def test_class_weights_are_torchs_weighting_of_classes():
    weights = torch.tensor([0.5, 1.0, 2.0])
    expected = F.cross_entropy(LOGITS, CLASSES, weight=weights, reduction="none").mean()
    assert torch.allclose(MaskedLoss("multiclass", weights)(LOGITS, CLASSES), expected)
    pair = torch.tensor([[1.0] * 3, [3.0] * 3])
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS, pos_weight=torch.tensor(3.0))
    assert torch.allclose(MaskedLoss("multilabel", pair)(LOGITS, LABELS), expected)


def test_soft_targets_are_linear_in_the_target():
    a, b = F.one_hot(CLASSES, 3).float(), F.one_hot(CLASSES.flip(0), 3).float()
    loss = MaskedLoss("multiclass", torch.tensor([1.0, 1.0, 1.0]))
    mixed = loss(LOGITS, 0.3 * a + 0.7 * b)
    assert torch.allclose(mixed, 0.3 * loss(LOGITS, CLASSES) + 0.7 * loss(LOGITS, CLASSES.flip(0)))


def test_a_model_with_too_few_outputs_is_refused():
    with pytest.raises(MethodError, match=r"labels of shape \(7, 3\) and logits of shape \(7, 1\)"):
        MaskedLoss("binary")(LOGITS[:, :1], LABELS)


def test_group_dro_step_by_hand():
    """Two cells with losses log(2) and softplus(2): q moves by exp(step * loss), and is used after it has moved."""
    logits, y = torch.tensor([[0.0], [0.0], [2.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    loss = GroupDROLoss("binary", [2, 1], step_size=0.5)
    low, high = np.log(2), np.log1p(np.exp(2.0))
    q = np.exp(0.5 * np.array([low, high]))
    q /= q.sum()
    value = loss(logits, y, torch.tensor([0, 0, 1]), None)
    assert float(value) == pytest.approx(q @ [low, high], rel=1e-6)
    assert loss.q.tolist() == pytest.approx(q.tolist())


def test_group_dro_adjustment_favours_small_cells():
    loss = GroupDROLoss("binary", [100, 4], step_size=1.0, adjustment=2.0)
    loss(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([0, 1]), None)
    expected = np.exp([0.2, 1.0]) / np.exp([0.2, 1.0]).sum()
    assert loss.q.tolist() == pytest.approx(expected.tolist())


def test_group_dro_skips_rows_without_cell_or_label_and_keeps_q_in_evaluation():
    loss = GroupDROLoss("binary", [2, 2]).eval()
    y = torch.tensor([[1.0], [NAN], [0.0]])
    value = loss(torch.zeros(3, 1), y, torch.tensor([0, 1, -1]), None)
    assert float(value) == pytest.approx(0.5 * np.log(2))
    assert loss.q.tolist() == [0.5, 0.5]


def test_group_dro_cells_by_label():
    loss = GroupDROLoss("multilabel", [1, 1, 1, 1]).eval()
    logits, y = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.zeros(2, 2)
    losses = loss.cell_losses(logits, y, torch.tensor([[0, 1], [2, 3]]), None)
    assert torch.allclose(losses, F.softplus(torch.tensor([0.0, 1.0, 2.0, 3.0])))


def test_group_dro_ascends_towards_the_worst_cell():
    loss = GroupDROLoss("binary", [5, 5, 5], step_size=1.0)
    logits, y = torch.tensor([[-3.0], [0.0], [3.0]]), torch.ones(3, 1)
    for _ in range(20):
        loss(logits, y, torch.tensor([0, 1, 2]), None)
    assert loss.q[0] > 0.99


def test_group_dro_refuses_what_it_cannot_use():
    with pytest.raises(MethodError, match="needs at least two"):
        GroupDROLoss("binary", [3])
    with pytest.raises(MethodError, match="pass cells"):
        GroupDROLoss("binary", [3, 3])(torch.zeros(1, 1), torch.ones(1, 1), None)


def _released(logits, y):
    """The loss of BMFT's and SWiFT's released code, from its formula: n_pos / n * BCE with positives times n_neg / n_pos."""
    positives, n = y.sum() + 1e-10, len(y)
    weighted = F.binary_cross_entropy_with_logits(logits, y, pos_weight=(n - y.sum()) / positives)
    return positives / n * weighted


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(0, 100))
def test_weights_by_batch_are_the_released_ones(ones, seed):
    y = torch.tensor([[float(value)] for value in ones], dtype=torch.float64)
    logits = torch.randn(len(y), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss = MaskedLoss("binary", by_batch=True)(logits, y)
    assert float(loss) == pytest.approx(float(_released(logits, y)), abs=1e-8)


def test_weights_by_batch_make_both_classes_count_equally():
    logits = torch.zeros(8, 1, requires_grad=True)
    y = torch.tensor([[1.0]] * 2 + [[0.0]] * 6)
    MaskedLoss("binary", by_batch=True)(logits, y).backward()
    assert float(logits.grad[:2].sum()) == pytest.approx(-float(logits.grad[2:].sum()))


def test_weights_by_batch_are_each_labels_own_and_skip_what_is_unlabelled():
    y = LABELS.clone()
    y[:2, 0] = NAN
    alone = [MaskedLoss("binary", by_batch=True).elements(LOGITS[:, [k]], y[:, [k]])[0] for k in range(3)]
    together, known = MaskedLoss("multilabel", by_batch=True).elements(LOGITS, y)
    assert torch.allclose(together * known, torch.cat(alone, dim=1) * known)


def test_two_classes_weigh_as_one_logit_does():
    y = torch.tensor([0, 0, 0, 1, 1, 0, -1])
    assert batch_class_weights(F.one_hot(y.clamp(min=0), 2).float(), (y >= 0)[:, None]).tolist() == pytest.approx([1 / 3, 2 / 3])
    weights = batch_class_weights(F.one_hot(torch.tensor([0, 0, 0, 2]), 4).float(), torch.ones(4, 1, dtype=torch.bool))
    assert weights.tolist() == pytest.approx([0.25, 0.0, 0.75, 0.0])


@pytest.mark.parametrize(("kind", "y"), [("binary", torch.ones(4, 1)), ("multiclass", torch.tensor([2, 2, 2, -1]))])
def test_a_batch_of_one_class_teaches_nothing(kind, y):
    logits = LOGITS[:4] if kind == "multiclass" else LOGITS[:4, :1]
    assert MaskedLoss(kind, by_batch=True)(logits, y) == 0
