"""Parameter groups against MAE's layer-wise decay, and the optimisers' updates against torch's."""

import pytest
import timm
import torch
from torch import nn

from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError
from evenhand.training.optim import make_optimizer, optimizer_groups, set_learning_rate


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.extra = network, nn.Linear(2, 2)


def scales(groups, model):
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def test_layer_decay_is_maes_on_a_vision_transformer():
    """MAE: stem 0, block k is k + 1, everything after the blocks depth + 1; rate decay ** (depth + 1 - layer)."""
    depth, decay = 3, 0.55
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=depth, num_classes=1, global_pool="avg")
    got = scales(optimizer_groups(Wrapper(model).network, 0.05, decay), model)
    for name, (scale, weight_decay) in got.items():
        layer = 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else depth + 1
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks") else layer
        plain = name.endswith(("bias", "cls_token", "pos_embed")) or "norm" in name
        assert weight_decay == (0.0 if plain else 0.05), name
        assert scale == pytest.approx(decay ** (depth + 1 - layer)), name


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Wrapper(timm.create_model("resnet10t", num_classes=2))
    model.network.conv1.requires_grad_(False)
    for layer_decay in (1.0, 0.7):
        grouped = [id(p) for group in optimizer_groups(model, 0.1, layer_decay) for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_plain_module_decays_matrices_only():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    by_decay = {group["weight_decay"]: [p.ndim for p in group["params"]] for group in optimizer_groups(model, 0.1)}
    assert by_decay == {0.0: [1, 1, 1], 0.1: [2]}


def test_layer_decay_of_a_plain_module_and_nothing_trainable_are_refused():
    with pytest.raises(ConfigError, match="layer_decay=1"):
        optimizer_groups(nn.Linear(2, 2), 0.1, 0.5)
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        optimizer_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"optimizer": "adamw"}, lambda w: torch.optim.AdamW([w], lr=0.1, weight_decay=0.5)),
        ({"optimizer": "adam"}, lambda w: torch.optim.Adam([w], lr=0.1, weight_decay=0.5)),
        ({"optimizer": "sgd", "momentum": 0.8}, lambda w: torch.optim.SGD([w], lr=0.1, weight_decay=0.5, momentum=0.8)),
    ],
)
def test_optimisers_are_torchs(options, reference):
    ours, theirs = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    pair = [(ours, make_optimizer(ours, TrainerConfig(weight_decay=0.5, **options), 0.1)), (theirs, reference(theirs.weight))]
    for model, optimizer in pair:
        for _ in range(3):
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)


def test_rates_are_scaled_by_group():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.25}], lr=1.0)
    set_learning_rate(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
