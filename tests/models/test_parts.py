"""Search spaces: the published ones train what the released code trains, and every family of networks has its own."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from timm import create_model
from torch import nn

from evenhand.errors import InputError, MethodError
from evenhand.models.backbones import ImageClassifier
from evenhand.models.masks import apply_mask, make_mask
from evenhand.models.networks import register_architectures
from evenhand.models.parameters import hold_frozen_norms, parameter_groups, parameter_roles
from evenhand.models.parts import available_spaces, make_parts

VIT = "vit_tiny_patch16_224"
OPTIONS = {
    VIT: {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 2, 1), "embed_dim": 12, "num_heads": (1, 2, 4)},
    "densenet121": {"block_config": (1, 2, 1, 1), "growth_rate": 4},
    "evenhand_demo_vit": {"depth": 2},
}

# network -> blocks, stages; 0 stages: it has none
SIZES = {
    VIT: (3, 0),
    "deit_tiny_distilled_patch16_224": (2, 0),
    "evenhand_demo_vit": (2, 0),
    "swin_tiny_patch4_window7_224": (4, 3),
    "resnet10t": (4, 4),
    "densenet121": (5, 4),
    "efficientnet_b0": (16, 7),
    "convnext_atto": (12, 4),
    "mobilenetv2_035": (17, 7),
    "mobilenetv3_small_050": (12, 6),
    "mobilenetv1_075": (13, 5),
    "regnety_002": (13, 4),
}
TRANSFORMER = ("blocks", "attention", "norms", "mlp", "attention+norms", "attention+mlp", "norms+mlp", "norms|attention|mlp",
               "norm1|attention|norm2|mlp", "attention_tensors", "bitfit")  # fmt: skip
EXPECTED = {
    VIT: TRANSFORMER,
    "deit_tiny_distilled_patch16_224": TRANSFORMER,
    "evenhand_demo_vit": TRANSFORMER,
    "swin_tiny_patch4_window7_224": (*TRANSFORMER[:-1], "stages", "bitfit"),
    "resnet10t": ("blocks", "norms", "stages", "conv|norm", "bitfit"),
    "densenet121": ("blocks", "norms", "stages", "conv|norm", "bitfit"),
    "convnext_atto": ("blocks", "norms", "mlp", "norms+mlp", "stages", "conv|norm", "bitfit"),
    "efficientnet_b0": ("blocks", "norms", "stages", "conv|norm", "conv|norm|se", "bitfit"),
    "mobilenetv2_035": ("blocks", "norms", "stages", "conv|norm", "bitfit"),
    "mobilenetv3_small_050": ("blocks", "norms", "stages", "conv|norm", "conv|norm|se", "bitfit"),
    "mobilenetv1_075": ("blocks", "norms", "stages", "conv|norm", "bitfit"),
    "regnety_002": ("blocks", "norms", "stages", "conv|norm", "conv|norm|se", "bitfit"),
}


@functools.cache
def network(name: str) -> nn.Module:
    """A small network of random weights; not to be changed."""
    register_architectures()
    return create_model(name, num_classes=2, **OPTIONS.get(name, {}))


def enable(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad = True


def released(model: nn.Module, method: str, mask: list[int]) -> set[str]:
    """What the released code trains: its rule for every tuning method, written out from the published order of bits."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    blocks = list(model.blocks)
    segments = {"blocks": ("",), "attention": ("attn",), "norms": ("norm1", "norm2"), "mlp": ("mlp",)}
    per_block = {
        "norms|attention|mlp": (("norm1", "norm2"), ("attn",), ("mlp",)),
        "norm1|attention|norm2|mlp": (("norm1",), ("attn",), ("norm2",), ("mlp",)),
    }
    if method == "attention_tensors":
        tensors = [parameter for name, parameter in model.named_parameters() if ".attn." in name]
        for bit, tensor in zip(mask, tensors, strict=True):
            tensor.requires_grad = bool(bit)
    elif method in per_block:
        kinds = per_block[method]
        for i, bit in enumerate(mask):
            for own in kinds[i % len(kinds)]:
                if bit:
                    enable(getattr(blocks[i // len(kinds)], own))
    else:
        for block, bit in zip(blocks, mask, strict=True):
            for segment in method.split("+"):
                for own in segments[segment]:
                    if bit:
                        enable(getattr(block, own) if own else block)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("space", [space for space in TRANSFORMER if space != "bitfit"])
def test_bits_mean_what_they_mean_in_the_released_code(space):
    model = create_model(VIT, num_classes=2, **OPTIONS[VIT])
    parts = make_parts(model, space)
    rng = np.random.default_rng(7)
    for _ in range(5):
        mask = rng.integers(0, 2, len(parts)).tolist()
        ours = {name for part, bit in zip(parts, mask, strict=True) if bit for name in part.parameters}
        assert ours == released(model, space, mask)


@pytest.mark.parametrize("name", SIZES)
def test_spaces_of_a_family(name):
    model, (blocks, stages) = network(name), SIZES[name]
    assert available_spaces(model) == EXPECTED[name]
    per_bit = {"norms|attention|mlp": 3, "norm1|attention|norm2|mlp": 4, "attention_tensors": 4}
    for space in EXPECTED[name]:
        if space in ("stages", "conv|norm"):
            assert len(make_parts(model, space)) == stages * (space.count("|") + 1)
        elif space != "conv|norm|se":
            assert len(make_parts(model, space)) == blocks * per_bit.get(space, 1)


@pytest.mark.parametrize("name", SIZES)
def test_parts_share_nothing_come_in_order_and_leave_the_head_alone(name):
    model = network(name)
    roles, order = parameter_roles(model), list(dict(model.named_parameters()))
    everything = {key for part in make_parts(model, "blocks") for key in part.parameters}
    for space in available_spaces(model):
        parts = make_parts(model, space)
        members = [key for part in parts for key in part.parameters]
        assert len(members) == len(set(members))
        assert set(members) <= everything
        assert all(roles[key] != "head" for key in members)
        assert all(part.parameters for part in parts)
        assert [part.depth for part in parts] == sorted(part.depth for part in parts)
        assert len({part.name for part in parts}) == len(parts)
        for part in parts:
            assert list(part.parameters) == sorted(part.parameters, key=order.index)


@pytest.mark.parametrize("name", [name for name, (_, stages) in SIZES.items() if stages])
def test_spaces_by_stage_cover_the_same_parameters_as_the_blocks(name):
    model = network(name)
    members = {}
    for space in set(available_spaces(model)) & {"blocks", "stages", "conv|norm", "conv|norm|se"}:
        members[space] = {key for part in make_parts(model, space) for key in part.parameters}
    assert all(found == members["blocks"] for found in members.values())


@pytest.mark.parametrize("name", SIZES)
def test_a_mask_of_any_family_freezes_to_the_bit(name):
    """In the space of most parts that the family has: one step with weight decay, half of the parts trained."""
    model = create_model(name, num_classes=2, **OPTIONS.get(name, {}))
    space = max(available_spaces(model), key=lambda space: len(make_parts(model, space)))
    parts = make_parts(model, space)
    mask = make_mask(model, space, parts, [k % 2 for k in range(len(parts))], lr=1e-3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    names = apply_mask(model, mask)
    hold_frozen_norms(model.train())
    side = {"swin_tiny_patch4_window7_224": 56, "evenhand_demo_vit": 64}.get(name, 32)
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=0.01)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    norms = {key.rsplit(".", 1)[0] for key in names if parameter_roles(model)[key] == "norm"}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key in moved if key.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked")}
    assert {key.rsplit(".", 1)[0] for key in statistics} <= norms
    assert moved - statistics <= set(names)
    assert {key for key in names if key.endswith("weight")} & moved


def test_the_outside_of_a_vit_is_in_no_part():
    model = network(VIT)
    inside = {key for part in make_parts(model, "blocks") for key in part.parameters}
    outside = {key for key, _ in model.named_parameters()} - inside
    assert {key.split(".")[0] for key in outside} == {"cls_token", "pos_embed", "patch_embed", "norm", "head"}


def test_layers_between_stages_belong_to_the_block_beside_them():
    swin = {key: part.name for part in make_parts(network("swin_tiny_patch4_window7_224"), "blocks") for key in part.parameters}
    assert swin["layers.1.downsample.reduction.weight"] == swin["layers.1.blocks.0.mlp.fc1.weight"] == "block1"
    dense = {key: part.name for part in make_parts(network("densenet121"), "blocks") for key in part.parameters}
    assert dense["features.transition2.conv.weight"] == dense["features.denseblock2.denselayer2.conv1.weight"] == "block2"
    assert dense["features.transition2.conv.weight"] != dense["features.denseblock2.denselayer1.conv1.weight"]
    res = {key: part.name for part in make_parts(network("resnet10t"), "conv|norm") for key in part.parameters}
    assert (res["layer2.0.downsample.1.weight"], res["layer2.0.downsample.2.weight"]) == ("stage1.conv", "stage1.norm")


def test_roles_of_a_stage():
    stage = {part.name: part for part in make_parts(network("efficientnet_b0"), "conv|norm|se") if part.depth == 1}
    assert list(stage) == ["stage1.conv", "stage1.norm", "stage1.se"]
    assert all(".se." in key for key in stage["stage1.se"].parameters)
    assert all(".bn" in key for key in stage["stage1.norm"].parameters)
    assert all(".conv_" in key and ".se." not in key for key in stage["stage1.conv"].parameters)


def test_bitfit_is_the_biases():
    for part in make_parts(network(VIT), "bitfit"):
        assert len(part.parameters) == 6  # two norms, qkv, proj, fc1, fc2
        assert all(key.endswith(".bias") for key in part.parameters)


def test_a_wrapped_network_has_the_parts_of_the_network():
    model = ImageClassifier(network(VIT), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name=VIT)
    assert make_parts(model, "blocks") == make_parts(network(VIT), "blocks")


def test_a_network_of_another_family_is_cut_by_timms_layers():
    parts = make_parts(create_model("dla46_c", num_classes=2), "blocks")
    assert [part.depth for part in parts] == list(range(len(parts)))
    assert len(parts) == 10


def test_a_space_without_parts_names_the_spaces_there_are():
    with pytest.raises(
        MethodError, match=r"'attention' .* no parts in ResNet; the spaces it has are blocks, norms, stages, conv\|norm, bitfit"
    ):
        make_parts(network("resnet10t"), "attention")
    with pytest.raises(MethodError, match="no parts in VisionTransformer"):
        make_parts(network(VIT), "stages")


def test_an_unknown_space_names_the_nearest():
    with pytest.raises(InputError, match=r"search space 'block' is not known; did you mean 'blocks'\?"):
        make_parts(network(VIT), "block")
