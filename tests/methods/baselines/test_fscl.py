"""FSCL: the loss is the paper's definition row by row and the authors' number, the encoder is trained by it, the head is a probe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from evenhand.config.methods import FSCLConfig
from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.errors import ConfigError, MethodError
from evenhand.methods.base import Split
from evenhand.methods.baselines.dfr import features_of
from evenhand.methods.baselines.erm import Finetune
from evenhand.methods.baselines.fscl import FSCL, FSCLLoss, ProjectedEncoder, contrastive_loss
from evenhand.methods.fitting import HeadSpec, fit_head
from evenhand.training.optim import optimizer_groups


def batch(n=24, d=5, classes=3, groups=3, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z, rng.integers(-1, classes, n), rng.integers(-1, groups, n)


def by_loops(z, y, a, temperature, normalise):
    """The definition, one anchor, one positive and one negative at a time."""
    rows = [i for i in range(len(y)) if y[i] >= 0 and a[i] >= 0]
    per_anchor = {}
    for i in rows:
        positives = [j for j in rows if j != i and y[j] == y[i]]
        negatives = [k for k in rows if y[k] != y[i] and a[k] == a[i]]
        if not positives or not negatives:
            continue
        pushed = np.log(sum(np.exp(z[i] @ z[k] / temperature) for k in negatives))
        terms = {j: pushed - z[i] @ z[j] / temperature for j in positives}
        if normalise:
            by_group = [np.mean([terms[j] for j in positives if a[j] == g]) for g in sorted({a[j] for j in positives})]
            per_anchor[i] = np.mean(by_group)
        else:
            per_anchor[i] = np.mean(list(terms.values()))
    if not normalise:
        return np.mean(list(per_anchor.values())), len(per_anchor)
    cells = sorted({(y[i], a[i]) for i in per_anchor})
    return np.mean([np.mean([v for i, v in per_anchor.items() if (y[i], a[i]) == cell]) for cell in cells]), len(per_anchor)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_its_definition_row_by_row(normalise, seed):
    z, y, a = batch(seed=seed)
    found, anchors = contrastive_loss(torch.tensor(z), torch.tensor(y), torch.tensor(a), 0.3, normalise)
    expected, count = by_loops(z, y, a, 0.3, normalise)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert anchors == count


@pytest.mark.parametrize(("temperature", "released"), [(0.1, 3.540725606749876), (0.5, 7.725807920231955)])
def test_without_normalisation_it_is_the_released_codes_number_but_for_its_scale(temperature, released):
    """Numbers of the authors' losses.py (method FSCL, group_norm 0, one view) on these rows; they multiply by temperature / 0.07."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((12, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    found, _ = contrastive_loss(torch.tensor(z), torch.tensor([0, 0, 1, 1] * 3), torch.tensor([0, 1] * 6), temperature, False)
    assert float(found) * temperature / 0.07 == pytest.approx(released, rel=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_own_class_pulls_own_groups_other_class_pushes_and_the_other_groups_does_not(normalise):
    z = torch.eye(4, dtype=torch.float64, requires_grad=True)
    loss, anchors = contrastive_loss(z, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), 0.5, normalise)
    # rows are unit vectors, so entry j of row i's gradient is how the loss moves with their similarity
    pulls = torch.autograd.grad(loss, z)[0]
    assert anchors == 4
    assert float(pulls[0, 1]) < 0
    assert float(pulls[0, 2]) > 0
    assert float(pulls[0, 3]) == 0


def test_rows_without_a_class_or_a_group_change_nothing():
    z, y, a = batch(n=40)
    known = (y >= 0) & (a >= 0)
    leaf = torch.tensor(z, requires_grad=True)
    loss, anchors = contrastive_loss(leaf, torch.tensor(y), torch.tensor(a), 0.2, True)
    alone, same = contrastive_loss(leaf[known], torch.tensor(y[known]), torch.tensor(a[known]), 0.2, True)
    assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-12)
    assert anchors == same
    assert float(torch.autograd.grad(loss, leaf)[0][~torch.tensor(known)].abs().sum()) == 0


def test_a_batch_without_an_anchor_gives_zero_and_a_gradient():
    z = torch.eye(3, requires_grad=True)
    loss, anchors = contrastive_loss(z, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), 0.1, True)
    loss.backward()
    assert (float(loss.detach()), anchors, float(z.grad.abs().sum())) == (0.0, 0, 0.0)


def test_several_labels_are_the_mean_over_those_that_have_an_anchor():
    z, _, a = batch(n=30, d=8, seed=2)
    parts = torch.nn.functional.normalize(torch.tensor(z).view(30, 2, 4), dim=2)
    y = torch.tensor(np.random.default_rng(0).random((30, 3)) < 0.5, dtype=torch.float64)
    y[:5, 0], y[:, 2] = torch.nan, torch.nan
    projections = torch.cat([parts.flatten(1), parts[:, 0]], dim=1)
    loss = FSCLLoss("multilabel", 3, 0.4, True)
    found = loss(projections, y, torch.tensor(a))
    each = [by_loops(parts[:, k].numpy(), np.nan_to_num(y[:, k].numpy(), nan=-1).astype(int), a, 0.4, True) for k in (0, 1)]
    assert float(found) == pytest.approx(np.mean([value for value, _ in each]))
    assert int(loss.seen[0]) == sum(count for _, count in each)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_after_no_epoch_it_is_the_linear_probe_on_the_encoder(make_task, kind):
    task = make_task(kind, 3, trainer=TrainerConfig(max_epochs=0, progress=False, accelerator="cpu"))
    result = FSCL(FSCLConfig(l2=0.01)).fit(task)
    start = task.build_model(task.n_outputs)
    with torch.inference_mode():
        x = start.embed(task.train.x.batch(slice(None))).numpy()
    head = fit_head(x, task.train.y, HeadSpec(kind, task.labels, task.classes, l2=0.01))
    last = result.predictor.model.network.head
    np.testing.assert_allclose(last.weight.detach().numpy(), head.weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.bias.detach().numpy(), head.bias, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_trained_and_the_head_is_the_probe_on_what_it_became(make_task):
    task = make_task(n_groups=3)
    result = FSCL(FSCLConfig(l2=0.01)).fit(task)
    model, start = result.predictor.model, task.build_model(1)
    assert not torch.equal(model.network.body.weight, start.network.body.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())
    head = fit_head(features_of(result.predictor, task.train.x), task.train.y, HeadSpec("binary", task.labels, l2=0.01))
    np.testing.assert_allclose(model.network.head.weight.detach().numpy(), head.weight, rtol=1e-6)
    assert any("of the rows had a positive and a negative of their own group" in note for note in result.notes)
    losses = [record["train_loss"] for record in result.history if "epoch" in record]
    assert losses[-1] < losses[0]


def test_a_killed_run_ends_with_the_same_numbers(make_task):
    whole = FSCL(FSCLConfig(l2=0.1)).fit(make_task())

    class Killed(Exception):
        pass

    def kill(text):
        raise Killed

    task = make_task()
    with pytest.raises(Killed):
        FSCL(FSCLConfig(l2=0.1)).fit(replace(task, report=kill))
    again = FSCL(FSCLConfig(l2=0.1)).fit(task)
    np.testing.assert_array_equal(again.predict(task.val.x)[0], whole.predict(task.val.x)[0])
    assert again.notes == whole.notes


def test_layer_decay_and_undecayed_parameters_reach_a_timm_encoder():
    import timm

    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=1)
    network.head.requires_grad_(False)
    model = torch.nn.Module()
    model.network = network
    encoder = ProjectedEncoder(model, 192, 1, 16)
    groups = optimizer_groups(encoder, 0.05, layer_decay=0.5)
    scale = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert scale[id(network.pos_embed)] == (0.125, 0.0)
    assert scale[id(network.blocks[1].attn.qkv.weight)] == (0.5, 0.05)
    assert scale[id(encoder.projections[0][0].weight)] == (1.0, 0.05)
    assert id(network.head.weight) not in scale


class TestRefusals:
    def test_a_last_layer_that_is_not_linear(self, make_task):
        def build(n_outputs, **options):
            model = original(n_outputs)
            model.network.head = torch.nn.Identity()
            return model

        original = make_task().build_model
        with pytest.raises(MethodError, match="replaces a linear last layer, but this network ends in Identity"):
            FSCL().fit(make_task(build_model=build))

    def test_groups_that_have_one_class_each(self, make_task, make_split):
        split = make_split("binary", 2, 100, 0, missing=False)
        groups = Groups("site", ("a", "b"), np.nan_to_num(split.y[:, 0]).astype(np.int64))
        with pytest.raises(MethodError, match="no group of 'site' has two classes of ill, so no image has a negative"):
            FSCL().fit(make_task(train=replace(split, groups={**split.groups, "site": groups})))

    def test_batches_too_small_for_an_anchor(self, make_task):
        with pytest.raises(MethodError, match=r"no batch of 2 images held two of one class .* raise data\.batch_size"):
            FSCL().fit(make_task(n=40, batch_size=2))

    def test_mixup(self, make_task):
        trainer = TrainerConfig(max_epochs=1, progress=False, accelerator="cpu", mixup=0.5)
        with pytest.raises(ConfigError, match="mixup and cutmix mix groups"):
            FSCL().fit(make_task(trainer=trainer))


def correlated(n, seed, share):
    """Rows whose label is in number 0 and whose group, that of the label in ``share`` of the rows, is twice as plain in number 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    group = np.where(rng.random(n) < share, y, 1 - y)
    x = rng.standard_normal((n, 8)).astype(np.float32)
    x[:, 0] += y
    x[:, 1] += 2.0 * group
    return x, y, group


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_depend_less_on_a_group_that_goes_with_the_label_than_after_plain_training(make_task, seed):
    def split(n, row_seed, share):
        x, y, group = correlated(n, row_seed, share)
        images = replace(make_task(n=2).train.x, features=x)
        return Split(images, y[:, None].astype(np.float32), {"site": Groups("site", ("a", "b"), group)}, np.arange(n), np.arange(n))

    trainer = TrainerConfig(max_epochs=15, progress=False, accelerator="cpu", lr=0.01, weight_decay=0.0, monitor="last")
    fields = {"train": split(600, seed, 0.9), "val": split(300, seed + 100, 0.9), "attributes": ("site",), "seed": seed}
    test = split(4000, seed + 999, 0.5)
    y, group = test.y[:, 0], test.groups["site"].codes
    auc, dependence = {}, {}
    for name, method in (("erm", Finetune()), ("fscl", FSCL())):
        scores = method.fit(make_task(**fields, trainer=trainer, batch_size=100)).predict(test.x)[0][:, 0]
        auc[name] = roc_auc_score(y, scores)
        means = [[scores[(y == label) & (group == g)].mean() for g in (0, 1)] for label in (0, 1)]
        dependence[name] = sum(abs(a - b) for a, b in means)
    assert dependence["fscl"] < 0.7 * dependence["erm"]
    assert auc["fscl"] > auc["erm"] - 0.03
