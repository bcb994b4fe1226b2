"""Importances against loops of single backward passes, for every family of layers, and what must not change meanwhile."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from evenhand.errors import MethodError, NonFiniteLossError
from evenhand.methods.patching.bias import BiasTerm, WholeSet
from evenhand.methods.patching.importance import importances
from evenhand.methods.patching.losses import batch_balanced_loss
from evenhand.methods.patching.sample_gradients import make_plan
from evenhand.models import ImageClassifier

N = 5
Y = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
GROUPS = torch.tensor([0, 0, 1, 1, -1])


class Unusual(nn.Module):
    """What formulas must not be fooled by: shared layers, a weight used beside its layer, groups, depth, layers over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=2)
        self.shared = nn.Linear(8, 8)
        self.borrowed = nn.Linear(8, 8)
        self.table = nn.Linear(2, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.unused = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.norm(self.stem(x)))
        more = self.depthwise(x)
        more += x
        x = self.grouped(more).mean(dim=(2, 3))
        x = self.shared(torch.tanh(self.shared(x)))
        x = x + self.table(x.new_tensor([[1.0, 2.0], [0.5, 1.0]])).mean(dim=0)
        x = nn.functional.linear(torch.sin(x), self.borrowed.weight) * self.scale + self.borrowed(x)
        return self.head(self.dropout(x))


def tiny(name, n_outputs=1, **options):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=n_outputs, **options)
    for parameter in network.parameters():
        # nothing may be zero by its start value: a branch that is switched off would not be tested
        if parameter.numel() and not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)
    return network.double().eval()


FAMILIES = {
    "vit": lambda: tiny("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, init_values=0.1),
    "deit": lambda: tiny("deit_tiny_distilled_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2),
    "swin": lambda: tiny("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(1, 2)),
    "swinv2": lambda: tiny("swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(1, 2)),
    "resnet": lambda: tiny("resnet10t", channels=(8, 8, 16, 16), stem_width=4),
    "resnext": lambda: tiny("resnext50_32x4d", layers=(1, 1, 1, 1)),
    "densenet": lambda: tiny("densenet121", growth_rate=4, block_config=(2, 2)),
    "convnext": lambda: tiny("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "efficientnet": lambda: tiny("tf_efficientnet_lite0"),
    "mobilenet": lambda: tiny("mobilenetv3_small_050"),
    "regnet": lambda: tiny("regnety_002"),
    "unusual": lambda: Unusual().double().eval(),
}
SLOW = ("swinv2", "resnext", "mobilenet", "regnet", "efficientnet", "densenet")


def batch(n_outputs=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    y = Y if n_outputs == 1 else (torch.rand(N, n_outputs, generator=rng) < 0.5).float()
    brightness = torch.linspace(0.2, 2.0, N).view(-1, 1, 1, 1)
    return torch.rand(N, 3, 32, 32, generator=rng).double() * brightness, y.double(), GROUPS


def terms(kind="binary"):
    return [BiasTerm(kind=kind, least_rows=1), lambda z, y, groups: batch_balanced_loss(z, y, kind)]


def loop(network, batches, functions, *, kind, power=2):
    """By definition, one backward pass for every image and term."""
    parameters = dict(network.named_parameters())
    totals = [{name: torch.zeros_like(p) for name, p in parameters.items()} for _ in functions]
    count = 0
    for images, y, groups in batches:
        count += 1 if kind == "batch" else len(images)
        for total, function in zip(totals, functions, strict=True):
            logits = network(images)
            pull = torch.autograd.grad(function(logits, y, groups), logits)[0] * len(images)
            values = [function(network(images), y, groups)]
            if kind == "sample":
                values = [(network(images[i : i + 1]) * pull[i]).sum() for i in range(len(images))]
            for value in values:
                found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        total[name] += gradient.abs() ** power
    return [{name: value / count for name, value in total.items()} for total in totals]


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        assert own.keys() == other.keys()
        largest = max(float(value.max()) for value in other.values())
        assert largest > 0
        for name, value in other.items():
            # relative to the tensor, or to rounding where its gradient is zero in theory
            scale = max(float(value.max()), 1e-12 * largest)
            assert float((own[name] - value).abs().max()) <= 1e-6 * scale, name


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES])
def test_every_image_by_itself_and_batches_as_in_a_loop(family):
    network = FAMILIES[family]()
    batches = [batch()]
    for kind in ("sample", "batch"):
        found = importances(network, batches, terms(), kind=kind)
        assert_same(found, loop(network, batches, terms(), kind=kind))


def test_formulas_are_used_where_they_hold_and_only_there():
    vit = FAMILIES["vit"]()
    assert make_plan(vit, list(dict(vit.named_parameters())), batch()[0]).fast == set(dict(vit.named_parameters()))
    unusual = Unusual().double().eval()
    names = [name for name, _ in unusual.named_parameters()]
    plan = make_plan(unusual, names, batch()[0])
    left = {"shared.weight", "shared.bias", "borrowed.weight", "table.weight", "table.bias", "scale"}
    assert {*plan.vectorised, *plan.single} >= left
    assert plan.fast >= {"stem.weight", "norm.weight", "norm.bias", "depthwise.weight", "grouped.weight", "borrowed.bias", "head.weight"}


def test_an_image_by_itself_after_larger_batches():
    """The batch size of the last batch is another one, and may be that of a layer over something else."""
    network = FAMILIES["unusual"]()
    images, y, groups = batch()
    parts = [(images[rows], y[rows], groups[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))]
    functions = [lambda z, y, groups: ((z - y) ** 2).mean()]
    for kind in ("sample", "batch"):
        assert_same(importances(network, parts, functions, kind=kind), loop(network, parts, functions, kind=kind))


class Branching(nn.Module):
    """Cannot be vectorised: it looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(2, 3))
        return (pooled * 2 if bool((pooled > 2).any()) else pooled) @ self.scale


def test_a_network_that_cannot_be_vectorised_is_run_image_by_image():
    network = Branching().double()
    assert make_plan(network, ["scale"], batch()[0]).single == ("scale",)
    assert_same(importances(network, [batch()], terms()), loop(network, [batch()], terms(), kind="sample"))


@pytest.mark.parametrize("kind", ["sample", "batch"])
@pytest.mark.parametrize("measure", ["fisher", "gradient"])
def test_several_outputs_and_both_measures(kind, measure):
    network = tiny("vit_tiny_patch16_224", 3, img_size=32, depth=1, embed_dim=24, num_heads=2)
    batches = [batch(3, 0), batch(3, 1)]
    found = importances(network, batches, terms("multilabel"), kind=kind, measure=measure)
    expected = loop(network, batches, terms("multilabel"), kind=kind, power=2 if measure == "fisher" else 1)
    assert_same(found, expected)


def test_memory_for_single_images_does_not_change_the_result():
    network = FAMILIES["resnet"]()
    small, large = (importances(network, [batch()], terms(), chunk_bytes=size) for size in (1, 2**30))
    for own, other in zip(small, large, strict=True):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=1e-4, atol=1e-12)


def test_with_the_rates_of_the_whole_set_batches_do_not_matter():
    network = FAMILIES["unusual"]()
    images, y, groups = (torch.cat(parts) for parts in zip(batch(seed=0), batch(seed=1), strict=True))
    found = []
    for size in (10, 3):
        parts = [tuple(value[rows] for value in (images, y, groups)) for rows in torch.arange(10).split(size)]
        whole = WholeSet(BiasTerm(least_rows=1), (2,), 1)
        for own in parts:
            whole.add(network(own[0]), *own[1:])
        found.append(importances(network, parts, [whole.surrogate])[0])
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-10)


def test_nothing_changes_meanwhile():
    """Modes, flags, every bit of the state (batch norms' statistics included), and the global generator."""
    network = FAMILIES["resnet"]()
    model = ImageClassifier(network.float(), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet10t")
    images, y, groups = batch()
    model.train()
    network.layer1.eval()
    network.layer2[0].conv1.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for kind in ("sample", "batch"):
        bias, prediction = importances(model, [(images.float(), y.float(), groups)], terms(), kind=kind)
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert list(model.state_dict()) == list(state)
        assert torch.equal(torch.get_rng_state(), random)
        # a frozen parameter matters all the same, and names are the network's
        assert bias["layer2.0.conv1.weight"].max() > 0
        assert prediction.keys() == dict(network.named_parameters()).keys()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_that_the_logits_do_not_depend_on_have_none():
    network = FAMILIES["unusual"]()
    for kind in ("sample", "batch"):
        for own in importances(network, [batch()], terms(), kind=kind):
            assert not own["unused"].any()
            assert own["head.weight"].any()


def test_a_term_that_says_nothing_and_a_single_image():
    network = FAMILIES["unusual"]()
    images, y, groups = (value[:1] for value in batch())
    for kind in ("sample", "batch"):
        bias, loss = importances(network, [(images, y, groups)], [BiasTerm(), lambda z, y, groups: z.sum()], kind=kind)
        assert not any(value.any() for value in bias.values())
        assert loss["head.weight"].any()
        (constant,) = importances(network, [(images, y, groups)], [lambda z, y, groups: torch.ones(())], kind=kind)
        assert not constant["head.weight"].any()


def test_only_the_named_parameters():
    network = FAMILIES["vit"]()
    (own,) = importances(network, [batch()], terms()[:1], names=["blocks.0.mlp.fc1.weight"])
    every = importances(network, [batch()], terms())[0]
    assert list(own) == ["blocks.0.mlp.fc1.weight"]
    torch.testing.assert_close(own["blocks.0.mlp.fc1.weight"], every["blocks.0.mlp.fc1.weight"])


def test_what_cannot_be_computed_is_said():
    network = FAMILIES["unusual"]()
    with pytest.raises(MethodError, match="kind is 'smaple', but must be one of sample, batch"):
        importances(network, [batch()], terms(), kind="smaple")
    with pytest.raises(MethodError, match="measure is 'hessian'"):
        importances(network, [batch()], terms(), measure="hessian")
    with pytest.raises(MethodError, match=r"'head\.wieght' is not in the network; did you mean 'head\.weight'"):
        importances(network, [batch()], terms(), names=["head.wieght"])
    with pytest.raises(MethodError, match="no images"):
        importances(network, [], terms())
    images, y, groups = batch()
    images[1] = torch.nan
    for kind in ("sample", "batch"):
        with pytest.raises(NonFiniteLossError, match="1 of 5 images have NaN"):
            importances(network, [(images, y, groups)], terms(), kind=kind)
        with pytest.raises(NonFiniteLossError, match="term 1 of 1 is nan"):
            importances(network, [batch()], [lambda z, y, groups: z.sum() * torch.nan], kind=kind)
    # and the network is as it was
    assert all(parameter.requires_grad for parameter in network.parameters())
