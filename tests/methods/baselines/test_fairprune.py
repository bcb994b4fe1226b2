"""FairPrune: the curvature is the Hessian's where it must be, what matters to one group only goes first, and the rest is bit-identical."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from evenhand.config.methods import FairPruneConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Split
from evenhand.methods.baselines.erm import Finetune
from evenhand.methods.baselines.fairprune import FairPrune, GroupAUCs, Pruner, choose_round, curvature, prunable
from evenhand.training.losses import MaskedLoss

OUTPUTS = {"binary": 1, "multilabel": 3, "multiclass": 3}


class Tensors:
    """Images by position."""

    def __init__(self, x):
        self.x, self.shape, self.fingerprint = x, tuple(x.shape[1:]), "tensors"

    def __len__(self):
        return len(self.x)

    def batch(self, positions):
        return self.x[positions]


def relu_net(n_outputs, seed=0):
    torch.manual_seed(seed)
    parts = [
        torch.nn.Flatten(),
        torch.nn.Linear(6, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 4),
        torch.nn.ReLU(),
        torch.nn.Linear(4, n_outputs),
    ]
    return torch.nn.Sequential(*parts).double()


def labels_of(kind, n, rng):
    """Labels as a split has them, some missing, and which are there (n, L)."""
    if kind == "multiclass":
        y = rng.integers(0, 3, n)
        y[:2] = -1
        return torch.from_numpy(y), (y >= 0)[:, None]
    y = (rng.random((n, OUTPUTS[kind])) < 0.5).astype(np.float32)
    y[:2, 0] = np.nan
    return torch.from_numpy(y), ~np.isnan(y)


def hessian_diagonal(model, x, y, kind):
    """By differentiating the mean cross-entropy twice."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [value.numel() for value in model.parameters()]
    flat = torch.cat([value.detach().flatten() for value in model.parameters()])

    def loss(theta):
        parts = {n: part.view_as(dict(model.named_parameters())[n]) for n, part in zip(names, theta.split(sizes), strict=True)}
        return MaskedLoss(kind)(torch.func.functional_call(model, parts, (x,)), y, None, None)

    return torch.autograd.functional.hessian(loss, flat).diagonal()


@pytest.fixture
def rows():
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.standard_normal((14, 1, 2, 3))), rng


@pytest.mark.parametrize("kind", OUTPUTS)
def test_one_image_at_a_time_it_is_the_hessians_diagonal_of_a_relu_network(kind, rows):
    x, rng = rows
    y, labelled = labels_of(kind, len(x), rng)
    model = relu_net(OUTPUTS[kind])
    known = np.flatnonzero(labelled.any(axis=1))
    found = curvature(model, Tensors(x.float().double()), known, labelled, kind, list(model.parameters()), 1, 0)
    expected = hessian_diagonal(model, x, y.double() if kind != "multiclass" else y, kind)
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), expected, rtol=1e-5, atol=1e-9)


def test_random_signs_estimate_it_without_bias(rows):
    x, rng = rows
    _, labelled = labels_of("multiclass", len(x), rng)
    model = relu_net(3)
    known, weights = np.flatnonzero(labelled[:, 0]), list(model.parameters())
    exact = torch.cat([part.flatten() for part in curvature(model, Tensors(x), known, labelled, "multiclass", weights, 1, 0)])
    draws = []
    for seed in range(200):
        found = curvature(model, Tensors(x), known, labelled, "multiclass", weights, 4, seed)
        draws.append(torch.cat([part.flatten() for part in found]))
    stacked = torch.stack(draws)
    error = (stacked.mean(dim=0) - exact).abs()
    assert (error <= 5 * stacked.std(dim=0) / 14 + 1e-9).all()
    assert float(error.sum() / exact.sum()) < 0.07


def test_by_hand_on_one_logit():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1, bias=False)).double()
    torch.nn.init.constant_(model[1].weight, np.log(3.0))
    x = torch.tensor([1.0, 0.0, -1.0, 2.0]).double().view(4, 1, 1, 1)
    found = curvature(model, Tensors(x), np.array([0, 1, 2]), np.ones((4, 1), bool), "binary", list(model.parameters()), 1, 0)
    # p = 3/4, 1/2, 1/4: (3/16 * 1 + 1/4 * 0 + 3/16 * 1) / 3
    assert float(found[0]) == pytest.approx(0.125)


def test_weights_go_by_rounds_and_come_back_bit_for_bit():
    weights = [torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.nn.Parameter(torch.tensor([[5.0, -6.0]]))]
    pruner = Pruner(weights)
    pruner.prune([torch.tensor([[4.0, -1.0], [2.0, 3.0]]), torch.tensor([[-2.0, 9.0]])], 2, 1)
    assert weights[0].tolist() == [[1, 0], [3, 4]]
    assert weights[1].tolist() == [[0, -6]]
    # what is zero already is not counted again, however small its saliency
    pruner.prune([torch.tensor([[4.0, -9.0], [2.0, 3.0]]), torch.tensor([[-9.0, 9.0]])], 3, 2)
    assert weights[0].tolist() == [[1, 0], [0, 4]]
    assert pruner.share(1) == pytest.approx(2 / 6)
    assert pruner.share(2) == pytest.approx(3 / 6)
    pruner.restore(1)
    assert weights[0].tolist() == [[1, 0], [3, 4]]
    pruner.restore(0)
    assert torch.equal(torch.cat([w.detach().flatten() for w in weights]), pruner.original)


def test_group_aucs_are_those_of_scikit_learn_and_small_groups_have_none():
    rng = np.random.default_rng(0)
    n = 300
    codes = np.where(np.arange(n) < 12, 2, rng.integers(-1, 2, n))
    y = (rng.random((n, 2)) < 0.4).astype(np.float32)
    y[:20, 1] = np.nan
    scores = rng.random((n, 2))
    split = Split(Tensors(torch.zeros(n, 1, 1, 1)), y, {}, np.arange(n), np.arange(n))
    found = GroupAUCs.of(split, scores, Groups("site", ("a", "b", "c"), codes), "multilabel")
    assert np.isnan(found.values[2]).all()  # 12 patients are not 10 with the label and 10 without it
    for group in (0, 1):
        for label in (0, 1):
            rows = (codes == group) & ~np.isnan(y[:, label])
            assert found.values[group, label] == pytest.approx(roc_auc_score(y[rows, label], scores[rows, label]))
    assert found.gap == pytest.approx(np.abs(found.values[0] - found.values[1]).mean())
    assert np.isnan(found.advantage[2])
    assert found.advantage[0] == pytest.approx(-found.advantage[1])


def test_one_patients_images_are_one_patient():
    n = 60
    split = Split(
        Tensors(torch.zeros(n, 1, 1, 1)), np.tile([[0.0], [1.0]], (30, 1)).astype(np.float32), {}, np.arange(n) // 20, np.arange(n)
    )
    groups = Groups("site", ("a", "b"), np.repeat([0, 1], 30))
    assert not GroupAUCs.of(split, np.zeros((n, 1)), groups, "binary").estimable


def test_the_smallest_gap_within_the_tolerance_and_the_earliest_of_equals():
    assert choose_round([0.80, 0.79, 0.79], [0.1, 0.05, 0.05], 0.02) == 1
    assert choose_round([0.80, 0.70, 0.60], [0.1, 0.01, 0.00], 0.02) == 0  # a collapsed network has no gap and is not chosen
    assert choose_round([0.80, 0.90], [0.1, 0.1], 0.02) == 0


class TwoFeatures(torch.nn.Module):
    """One logit of two numbers, the second of which only the images of group a have."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Module()
        self.network.head = torch.nn.Linear(2, 1)
        self.network.pretrained_cfg = {"classifier": "head"}
        self.network.get_classifier = lambda: self.network.head
        with torch.no_grad():
            self.network.head.weight.copy_(torch.tensor([[0.5, 3.0]]))

    def forward(self, images):
        return self.network.head(images.flatten(1))


def test_the_weight_that_only_the_privileged_group_needs_goes_first(make_task):
    rng = np.random.default_rng(0)
    n = 200
    codes = rng.integers(0, 2, n)
    y = (rng.random((n, 1)) < 0.5).astype(np.float32)
    x = np.stack([rng.standard_normal(n), np.where(codes == 0, y[:, 0] + rng.standard_normal(n), 0.0)], axis=1).astype(np.float32)
    split = Split(Tensors(torch.from_numpy(x).view(n, 1, 1, 2)), y, {"site": Groups("site", ("a", "b"), codes)}, np.arange(n), np.arange(n))
    task = make_task(train=split, val=split, attributes=("site",), build_model=lambda n_outputs, **_: TwoFeatures())
    task.trainer.max_epochs = 0
    options = {"share": 0.5, "rounds": 1, "pick": "last"}

    def weights(**more):
        result = FairPrune(FairPruneConfig(**options, **more)).fit(task)
        return result.predictor.model.network.head.weight[0].tolist(), result

    left, result = weights(beta=1.0)
    assert left == [0.5, 0.0]  # b does not need the large weight: h_b is 0 there
    assert any("a is privileged (highest AUC), against b" in note for note in result.notes)
    left, _ = weights(beta=0.0, privileged="b")
    assert left == [0.0, 3.0]  # plain second-order pruning for a: the small weight matters less


@pytest.mark.parametrize("kind", OUTPUTS)
def test_all_of_the_share_is_pruned_and_nothing_else_is_touched(make_task, kind):
    trained = Finetune().fit(make_task(kind, 3)).predictor.model.state_dict()
    result = FairPrune(FairPruneConfig(share=0.4, rounds=3, pick="last", images=60)).fit(make_task(kind, 3))
    pruned = result.predictor.model.state_dict()
    weights = prunable(result.predictor.model)
    assert set(weights) == {"body.weight", "head.weight"}
    total = sum(value.numel() for value in weights.values())
    assert sum(int((value == 0).sum()) for value in weights.values()) == round(0.4 * total)
    for name, before in trained.items():
        after = pruned[name]
        assert torch.equal(after[after != 0], before[after != 0])
        if name.removeprefix("network.") not in weights:
            assert torch.equal(after, before)
    shares = [record["pruned_share"] for record in result.history if "round" in record]
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.4], abs=0.5 / total + 1e-6)


def test_without_a_better_round_the_network_is_as_trained(make_task):
    trained = Finetune().fit(make_task()).predictor.model.state_dict()
    result = FairPrune(FairPruneConfig(share=0.95, rounds=1, images=40, tolerance=0.0)).fit(make_task())
    assert any("so the network is as trained" in note for note in result.notes)
    for name, value in result.predictor.model.state_dict().items():
        assert torch.equal(value, trained[name])


def test_three_groups_are_the_best_against_the_worst_or_all_others(make_task):
    said = {}
    for pairs in ("max", "mean"):
        config = FairPruneConfig(pairs=pairs, rounds=1, images=40, privileged="b")
        said[pairs] = next(n for n in FairPrune(config).fit(make_task(n_groups=3)).notes if "privileged" in n)
    assert "b is privileged (named), against a, c;" in said["mean"]
    assert "against a;" in said["max"] or "against c;" in said["max"]


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ({"privileged": "c"}, {}, r"method.privileged is 'c', but 'site' has a, b; name one of them"),
        ({"share": 1.0}, {}, "method.share is 1, which leaves no weight"),
        ({}, {"val": 0}, "there are none; set method.pick=last"),
        ({}, {"val": 20}, r"cannot be estimated on 20 validation rows: each needs 10 patients"),
        ({"pick": "last"}, {"val": 20}, r"set method.pick=last and method.privileged"),
    ],
)
def test_refusals_come_before_any_training(make_task, make_split, config, fields, message):
    def never(n_outputs, **options):
        raise AssertionError("a network was built")

    if "val" in fields:
        fields = {"val": make_split("binary", 2, fields["val"], 1)}
    with pytest.raises(MethodError, match=message):
        FairPrune(FairPruneConfig(**config)).fit(make_task(build_model=never, **fields))


def test_two_groups_with_a_named_one_need_no_validation_rows(make_task, make_split):
    task = make_task(val=make_split("binary", 2, 0, 1))
    result = FairPrune(FairPruneConfig(privileged="b", pick="last", rounds=1, images=40)).fit(task)
    assert any("b is privileged (named), against a; 35" in note for note in result.notes)
    assert not any("validation" in note for note in result.notes if "privileged" in note)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_timm_networks_lose_weights_and_keep_norms_tokens_and_positions(name):
    import timm

    options = {"vit_tiny_patch16_224": {"img_size": 32, "depth": 1}, "swin_tiny_patch4_window7_224": {"img_size": 32, "depths": (1, 1)}}
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1, **options.get(name, {"pretrained": False})).eval()
    weights = prunable(network)
    assert not [key for key in weights if any(word in key for word in ("pos_embed", "cls_token", "bias_table", "norm"))]
    x = torch.rand(4, 3, 32, 32)
    found = curvature(network, Tensors(x), np.arange(4), np.ones((4, 1), bool), "binary", list(weights.values()), 2, 0)
    assert all(float(part.min()) >= 0 for part in found)
    assert float(torch.cat([part.flatten() for part in found]).sum()) > 0
