"""Bias terms by hand, against a penalty written elsewhere, and as the released code computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from evenhand.errors import MethodError
from evenhand.methods.baselines.eo_head import OddsPenalty
from evenhand.methods.editing.odds import EPS
from evenhand.methods.patching.bias import BiasTerm, WholeSet, bias_term
from evenhand.methods.patching.losses import batch_balanced_loss


def logit(p):
    return torch.logit(torch.tensor(p, dtype=torch.float64))[:, None]


def smooth(gap):
    return np.sqrt(gap**2 + EPS) - EPS**0.5


# TPR 0.9 and 0.7, FPR 0.1 and 0.3: two rows a cell with the rate as their mean
SCORES = logit([0.95, 0.85, 0.15, 0.05, 0.8, 0.6, 0.4, 0.2])
Y = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0]).double()[:, None]
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_opposite_gaps_cancel_in_the_released_term_alone():
    released = bias_term(SCORES, Y, GROUPS, mode="released", raw=False)
    assert float(released) == pytest.approx(0.0, abs=1e-12)
    assert float(bias_term(SCORES, Y, GROUPS, mode="paper")) == pytest.approx(0.2)
    assert float(bias_term(SCORES, Y, GROUPS)) == pytest.approx(2 * smooth(0.2))


@pytest.mark.parametrize(
    ("name", "gap"), [("eopp", 0.2), ("tpr_diff", 0.2), ("fnr_diff", 0.2), ("fpr_diff", 0.2), ("tnr_diff", 0.2), ("spd", 0.0),
                      ("tpr+positive_rate", 0.2)]
)  # fmt: skip
def test_single_rates_by_hand(name, gap):
    assert float(bias_term(SCORES, Y, GROUPS, name=name)) == pytest.approx(smooth(gap), abs=1e-9)


def test_with_two_groups_it_is_the_penalty_of_the_penalised_head():
    rng = np.random.default_rng(1)
    codes, y, labelled = rng.integers(-1, 2, 90), rng.integers(0, 2, 90), rng.random(90) < 0.8
    z = rng.standard_normal((90, 1)) + codes[:, None]
    truth = torch.from_numpy(np.where(labelled, y, np.nan))[:, None]
    found = bias_term(torch.from_numpy(z), truth, torch.from_numpy(codes))
    assert float(found) == pytest.approx(OddsPenalty(codes, y, labelled, 2).gap(z), abs=1e-9)


def released_by_definition(p, y, member, name):
    """Means over empty sets are 0; the 'rates' of rows outside a cell are those of all rows but the cell's."""

    def mean(rows):
        return p[rows].mean() if rows.any() else 0.0

    sides = {"tpr": y == 1, "fpr": y == 0}
    inside = {(g, s): mean((member == g) & rows) for g in (0, 1) for s, rows in sides.items()}
    outside = {(g, s): mean(~((member == g) & rows)) for g in (0, 1) for s, rows in sides.items()}
    return {
        "spd": abs(mean(member == 0) - mean(member == 1)),
        "eodds": 0.5 * abs(inside[0, "fpr"] - inside[1, "fpr"] + inside[0, "tpr"] - inside[1, "tpr"]),
        "eopp": abs(inside[0, "tpr"] - inside[1, "tpr"]),
        "fpr_diff": abs(inside[0, "fpr"] - inside[1, "fpr"]),
        "tnr_diff": abs(outside[0, "tpr"] - outside[1, "tpr"]),
        "fnr_diff": abs(outside[0, "fpr"] - outside[1, "fpr"]),
    }[name]


@pytest.mark.parametrize("name", ["spd", "eodds", "eopp", "fpr_diff", "fnr_diff", "tnr_diff"])
@pytest.mark.parametrize("n", [40, 3, 1])
def test_released_terms_are_the_released_numbers(name, n):
    rng = np.random.default_rng(n)
    z, y, member = rng.standard_normal(n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    truth = torch.from_numpy(y).double()[:, None]
    found = bias_term(torch.from_numpy(z)[:, None], truth, torch.from_numpy(member), name=name, mode="released")
    assert float(found) == pytest.approx(released_by_definition(z, y, member, name), abs=1e-12)


def test_an_empty_cell_counts_as_bias_in_the_released_term_alone():
    z, y, groups = torch.full((6, 1), 2.0), torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert float(bias_term(z, y, groups, mode="released")) == pytest.approx(1.0)
    for mode in ("paper", "corrected"):
        assert float(bias_term(z, y, groups, mode=mode)) == pytest.approx(0.0, abs=1e-6)
    # group 1 has two rows with label 0: one too few
    assert float(bias_term(SCORES, Y, GROUPS, least_rows=3).detach()) == 0.0


problems = st.lists(
    st.tuples(st.floats(-4, 4), st.integers(0, 1), st.integers(-1, 3), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=40)
@given(problems, st.permutations(range(4)))
def test_rows_that_do_not_count_are_left_out_and_names_of_groups_do_not_matter(rows, renamed):
    z = torch.tensor([[row[0]] for row in rows], dtype=torch.float64)
    y = torch.tensor([[float(row[1]) if row[3] else np.nan] for row in rows], dtype=torch.float64)
    groups = torch.tensor([row[2] for row in rows])
    value = float(bias_term(z, y, groups))
    known = ~torch.isnan(y[:, 0]) & (groups >= 0)
    other = torch.tensor([*renamed, -1])[groups]
    assert float(bias_term(z[known], y[known], groups[known])) == pytest.approx(value, abs=1e-9)
    assert float(bias_term(z.flip(0), y.flip(0), other.flip(0))) == pytest.approx(value, abs=1e-9)
    # the smooth worst pair lies below the exact one, which lies at most tau log(pairs) and the size of the smoothing above
    paper = 2 * float(bias_term(z, y, groups, mode="paper", least_rows=2))
    assert paper - 2 * (0.02 * np.log(6) + 0.01) - 1e-9 <= value <= paper + 1e-9


def test_the_worst_pair_of_three_groups():
    z = logit([0.2, 0.2, 0.5, 0.5, 0.9, 0.9])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(bias_term(z, torch.ones(6, 1), groups, name="eopp", mode="paper")) == pytest.approx(0.7)
    v = np.array([smooth(0.3), smooth(0.4), smooth(0.7)]) / 0.02
    assert float(bias_term(z, torch.ones(6, 1), groups, name="eopp")) == pytest.approx(0.02 * np.log(np.exp(v).mean()))


def test_several_attributes_labels_and_classes():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(60, 3, generator=rng, dtype=torch.float64)
    groups = torch.randint(0, 3, (60, 2), generator=rng)
    classes = torch.randint(-1, 3, (60,), generator=rng)
    own = [bias_term(z, classes, groups[:, k], kind="multiclass") for k in (0, 1)]
    assert torch.allclose(bias_term(z, classes, groups, kind="multiclass"), own[0] + own[1])
    assert torch.allclose(bias_term(z, classes, groups, kind="multiclass", attributes="max"), max(own))
    # a class against the rest is a label whose probability is the class's, and the macro mean is over them
    p = torch.softmax(z, dim=1)
    onehot = torch.where(classes[:, None] >= 0, (classes[:, None] == torch.arange(3)).double(), torch.nan)
    each = [bias_term(torch.logit(p[:, [c]]), onehot[:, [c]], groups[:, 0]) for c in range(3)]
    assert torch.allclose(own[0], torch.stack(each).mean())
    # a label that nobody has says nothing of TPR; one that is unlabelled everywhere leaves the mean
    onehot[:, 2] = torch.nan
    multi = bias_term(torch.logit(p), onehot, groups[:, 0], kind="multilabel")
    assert torch.allclose(multi, torch.stack(each[:2]).mean())


def test_a_low_temperature_counts_decisions():
    p = [0.81, 0.62, 0.58, 0.31, 0.9, 0.7, 0.65, 0.61]
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    # at a threshold of 0.6 group 0 has two of four, group 1 four of four
    found = bias_term(logit(p), torch.ones(8, 1), groups, name="eopp", mode="paper", temperature=1e-3, threshold=0.6)
    assert float(found) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("name", ["eodds", "fnr_diff", "spd"])
def test_gradients_against_finite_differences(name):
    rng = torch.Generator().manual_seed(3)
    z = torch.randn(12, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    y, groups = torch.randint(0, 3, (12,), generator=rng), torch.randint(-1, 2, (12, 2), generator=rng)
    term = BiasTerm(name, kind="multiclass")
    assert torch.autograd.gradcheck(lambda value: term(value, y, groups), (z,))
    same = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    level = bias_term(same, torch.ones(4, 1), torch.tensor([0, 0, 1, 1]), name="eodds")
    assert level.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(level, same)[0].abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_the_whole_set_gives_the_exact_gradient_in_two_passes(mode):
    rng = torch.Generator().manual_seed(0)
    network = torch.nn.Linear(4, 2).double()
    x = torch.randn(50, 4, generator=rng, dtype=torch.float64)
    y = (torch.rand(50, 2, generator=rng) < 0.3).double()
    y[::7, 1] = torch.nan
    groups = torch.randint(-1, 3, (50, 2), generator=rng)
    term = BiasTerm(mode=mode, kind="multilabel")
    whole = WholeSet(term, (3, 3), 2)
    batches = torch.arange(50).split(7)
    for rows in batches:
        whole.add(network(x[rows]), y[rows], groups[rows])
    exact = term(network(x), y, groups)
    assert whole.value() == pytest.approx(exact.item())
    total = torch.zeros_like(network.weight)
    for rows in batches:
        value = whole.surrogate(network(x[rows]), y[rows], groups[rows])
        assert value.item() == pytest.approx(exact.item())
        total += torch.autograd.grad(value, network.weight)[0] * len(rows) / 50
    torch.testing.assert_close(total, torch.autograd.grad(exact, network.weight)[0])
    assert total.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "eods"}, "did you mean 'eodds'"),
        ({"mode": "papr"}, "must be one of corrected, paper, released"),
        ({"name": "tpr_diff", "mode": "released"}, "the released code has spd"),
        ({"mode": "released", "kind": "multilabel"}, "one binary label"),
        ({"attributes": "mean"}, "by sum or max"),
        ({"least_rows": 0}, "at least 1"),
        ({"threshold": 1.0}, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_used(options, said):
    with pytest.raises(MethodError, match=said):
        BiasTerm(**options)


def test_inputs_that_cannot_be_used():
    with pytest.raises(MethodError, match="two groups of one attribute by one logit, but got 1 attributes, group codes up to 2"):
        bias_term(torch.zeros(3, 1), torch.ones(3, 1), torch.tensor([0, 1, 2]), mode="released")
    with pytest.raises(MethodError, match="one logit a label"):
        bias_term(torch.zeros(3, 2), torch.ones(3, 1), torch.tensor([0, 1, 0]))
    with pytest.raises(MethodError, match="defined on batches"):
        WholeSet(BiasTerm(mode="released"), (2,), 1)
    with pytest.raises(MethodError, match="no rows were counted"):
        WholeSet(BiasTerm(), (2,), 1).surrogate(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    with pytest.raises(MethodError, match="one logit a label"):
        batch_balanced_loss(torch.zeros(3, 2), torch.ones(3, 1))


@pytest.mark.parametrize("n_positive", [1, 7, 19])
def test_the_prediction_loss_is_the_published_one(n_positive):
    z = torch.randn(20, 1, generator=torch.Generator().manual_seed(n_positive), dtype=torch.float64)
    y = (torch.arange(20) < n_positive).double()[:, None]
    published = n_positive / 20 * F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor((20 - n_positive) / n_positive))
    assert torch.allclose(batch_balanced_loss(z, y), published)
    # two classes are one label: z is the log-odds of class 1
    two = batch_balanced_loss(torch.cat([torch.zeros_like(z), z], dim=1), y[:, 0].long(), "multiclass")
    assert torch.allclose(two, published)
    # an unlabelled row changes nothing
    more = batch_balanced_loss(torch.cat([z, z[:1]]), torch.cat([y, torch.full((1, 1), torch.nan)]))
    assert torch.allclose(more, published)
    assert float(batch_balanced_loss(z, torch.ones_like(z))) == 0.0
    assert float(batch_balanced_loss(z.expand(-1, 2), torch.ones(20, dtype=torch.long), "multiclass")) == 0.0
    labels = batch_balanced_loss(torch.cat([z, z], dim=1), torch.cat([y, torch.ones_like(y)], dim=1), "multilabel")
    assert torch.allclose(labels, published / 2)
