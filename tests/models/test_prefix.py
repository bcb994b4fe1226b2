"""A classifier cut in two: the parts together are the whole, the first is frozen and not random, and the fingerprint tells."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from evenhand.edits import PixelEdit
from evenhand.models import ImageClassifier, freeze_parameters, parameter_roles
from evenhand.models.networks import register_architectures
from evenhand.models.prefix import split_network

VIT = {"embed_dim": 24, "num_heads": 2, "depth": 3, "img_size": 32}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 2), "drop_path_rate": 0.0}
NETWORKS = {
    "vit_tiny_patch16_224": (VIT, "blocks.2.mlp.fc1.weight", "blocks.2"),
    "deit_tiny_distilled_patch16_224": (VIT, "blocks.1.norm1.weight", "blocks.1"),
    "evenhand_demo_vit": ({}, "blocks.1.attn.qkv.bias", "blocks.1"),
    "swin_tiny_patch4_window7_224": (SWIN, "layers.1.blocks.1.attn.relative_position_bias_table", "layers.1.blocks.1"),
    "swinv2_tiny_window8_256": ({**SWIN, "window_size": 4}, "layers.1.downsample.norm.weight", "layers.1.downsample"),
    "resnet10t": ({}, "layer3.0.conv1.weight", "layer3.0"),
    "regnetx_002": ({}, "s4.b2.conv1.conv.weight", "s4.b2"),
    "densenet121": (
        {"growth_rate": 4, "block_config": (2, 2, 2, 2)},
        "features.denseblock3.denselayer2.conv1.weight",
        "features.denseblock3.denselayer2",
    ),
    "efficientnet_b0": ({}, "blocks.4.1.se.conv_reduce.weight", "blocks.4.1"),
    "mobilenetv2_035": ({}, "conv_head.weight", "conv_head"),
    "mobilenetv3_small_050": ({}, "conv_head.weight", "pool"),
    "mobilenetv1_075": ({}, "blocks.3.0.conv_dw.weight", "blocks.3.0"),
    "convnext_atto": ({"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, "stages.2.blocks.1.norm.weight", "stages.2.blocks.1"),
}


def build(name, **options):
    """A classifier of random weights, its batch norms with statistics of their own."""
    register_architectures()
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, **options)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    size = options.get("img_size", 64 if "demo" in name else 32)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(size, size), name=name).eval()


def train_only(model, names):
    """Freeze all but these parameters and the head; the names that are trained."""
    kept = {name for name, role in parameter_roles(model).items() if role == "head"} | set(names)
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(name in kept)
    return kept


def images_for(model, n=3):
    return torch.rand(n, 3, *model.input_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_are_the_whole_and_have_its_gradients(name):
    options, trained, before = NETWORKS[name]
    model = build(name, **options)
    names = train_only(model, [trained])
    split = split_network(model, names)
    assert split.before == before
    images = images_for(model)
    activations = split.prefix.eval()(images)
    assert tuple(activations.shape[1:]) == split.shape
    assert torch.equal(split.suffix.eval()(activations), model(images))
    split.suffix.train()(activations.detach()).square().sum().backward()
    own = {key: parameter.grad.clone() for key, parameter in model.network.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    model.train()(images).square().sum().backward()
    whole = {key: parameter.grad for key, parameter in model.network.named_parameters() if parameter.grad is not None}
    assert own.keys() == whole.keys() == names
    assert all(torch.equal(own[key], whole[key]) for key in names)


@pytest.mark.parametrize("name", NETWORKS)
def test_with_a_frozen_body_only_the_head_is_left(name):
    model = build(name, **NETWORKS[name][0])
    freeze_parameters(model, "backbone")
    split = split_network(model, {key for key, parameter in model.network.named_parameters() if parameter.requires_grad})
    assert split.before == ("head" if "distilled" in name else "classifier")
    if "distilled" not in name:
        images = images_for(model)
        assert torch.allclose(split.prefix.eval()(images), model.embed(images), atol=1e-6)


def test_any_parameter_of_a_network_is_left_to_the_suffix_when_it_is_trained():
    """Every fourth, one at a time: the prefix does not hold it, and the suffix gives it, and it alone, a gradient."""
    for name in ("vit_tiny_patch16_224", "resnet10t", "convnext_atto"):
        model = build(name, **NETWORKS[name][0])
        images = images_for(model, 2)
        for trained in [name for name, _ in model.network.named_parameters()][::4]:
            names = train_only(model, [trained])
            split = split_network(model, names)
            if split is None:
                assert trained.startswith(("patch_embed", "pos_embed", "cls_token", "conv1", "stem"))
                continue
            assert not split.prefix.eval()(images).requires_grad
            split.suffix.train()(split.prefix.eval()(images)).sum().backward()
            grads = {key for key, parameter in model.network.named_parameters() if parameter.grad is not None}
            assert grads == names
            model.zero_grad(set_to_none=True)


def test_nothing_to_cut_where_the_first_step_is_trained():
    model = build("vit_tiny_patch16_224", **VIT)
    assert split_network(model, train_only(model, ["pos_embed"])) is None
    model = build("resnet10t")
    assert split_network(model, [name for name, _ in model.network.named_parameters()]) is None


def test_what_is_random_in_training_is_left_to_the_suffix():
    head = lambda model: train_only(model, [])  # noqa: E731
    dropped = build("vit_tiny_patch16_224", **VIT, drop_path_rate=0.3)
    assert split_network(dropped, head(dropped)).before == "blocks.1"
    embedded = build("vit_tiny_patch16_224", **VIT, pos_drop_rate=0.1)
    assert split_network(embedded, head(embedded)) is None
    functional = build("mobilenetv1_075", drop_rate=0.2)
    assert split_network(functional, head(functional)).before == "pool"
    dense = build("densenet121", growth_rate=4, block_config=(2, 2, 2, 2))
    dense.network.features.denseblock3.denselayer1.drop_rate = 0.1
    assert split_network(dense, head(dense)).before == "features.denseblock3.denselayer1"


def test_randomness_that_no_option_tells_of_is_found_by_trying():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    model = build("vit_tiny_patch16_224", **VIT)
    model.network.blocks[1] = nn.Sequential(model.network.blocks[1], Noisy())
    state = torch.get_rng_state()
    assert split_network(model, train_only(model, [])).before == "blocks.1.1"
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norms_that_still_learn_statistics_are_left_to_the_suffix():
    """A norm without affine parameters has nothing to freeze, so nothing holds its statistics."""
    model = build("resnet10t")
    model.network.layer2[0].bn1 = nn.BatchNorm2d(128, affine=False)
    before = copy.deepcopy(model.state_dict())
    assert split_network(model, train_only(model, [])).before == "layer2.0"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_cutting_leaves_modes_and_weights_alone():
    model = build("resnet10t")
    names = train_only(model, ["layer4.0.bn1.weight"])
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    split_network(model, names)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_suffix_has_the_models_state_and_holds_its_frozen_norms():
    model = build("resnet10t")
    split = split_network(model, train_only(model, ["layer4.0.bn1.weight", "layer4.0.bn1.bias"]))
    assert split.suffix.state_dict().keys() == model.state_dict().keys()
    split.suffix.train()
    held = {name for name, module in model.network.named_modules() if isinstance(module, nn.BatchNorm2d) and module.training}
    assert held == {"layer4.0.bn1"}
    twin = copy.deepcopy(split.suffix)
    with torch.no_grad():
        twin.network.fc.bias.add_(1.0)
    activations = split.prefix.eval()(images_for(model))
    assert torch.allclose(twin.eval()(activations), split.suffix.eval()(activations) + 1.0, atol=1e-6)


def test_an_unknown_network_is_cut_before_its_head_or_not_at_all():
    model = build("ghostnet_050", drop_rate=0.0)
    assert split_network(model, train_only(model, [])).before == "classifier"
    assert split_network(model, train_only(model, ["conv_head.weight"])) is None

    class Own(timm.models.vision_transformer.VisionTransformer):
        def forward_features(self, x, **options):
            return super().forward_features(x, **options) * 2.0

    torch.manual_seed(0)
    model = ImageClassifier(Own(**VIT, num_classes=2), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="own").eval()
    model.network.pretrained_cfg = {"classifier": "head"}
    assert split_network(model, train_only(model, ["blocks.2.norm1.weight"])) is None
    assert split_network(model, train_only(model, [])).before == "classifier"

    class Parallel(timm.models.vision_transformer.VisionTransformer):
        def forward(self, x, **options):
            return super().forward(x, **options) + x.mean()

    torch.manual_seed(0)
    model = ImageClassifier(Parallel(**VIT, num_classes=2), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="own").eval()
    model.network.pretrained_cfg = {"classifier": "head"}
    assert split_network(model, train_only(model, [])) is None


def test_an_edit_is_part_of_the_prefix():
    model = build("vit_tiny_patch16_224", **VIT)
    names = train_only(model, ["blocks.2.norm1.weight"])
    plain = split_network(model, names).fingerprint
    edit = PixelEdit((3, 48, 48))
    with torch.no_grad():
        next(edit.parameters()).fill_(0.1)
    model.with_edit(edit)
    split = split_network(model, names)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(split.suffix.eval()(split.prefix.eval()(images)), model.eval()(images))
    assert split.fingerprint != plain


def test_the_fingerprint_is_of_the_prefix_alone():
    def fingerprint(change=lambda model: None, trained="blocks.2.norm1.weight", **options):
        model = build("vit_tiny_patch16_224", **{**VIT, **options})
        with torch.no_grad():
            change(model)
        return split_network(model, train_only(model, [trained])).fingerprint

    one = fingerprint()
    assert fingerprint() == one
    assert fingerprint(lambda model: model.network.head.weight.add_(1.0)) == one
    assert fingerprint(lambda model: model.network.blocks[2].norm1.weight.add_(1.0)) == one
    assert fingerprint(trained="blocks.2.mlp.fc2.bias") == one
    assert fingerprint(lambda model: model.network.blocks[1].norm1.weight.add_(1.0)) != one
    assert fingerprint(lambda model: model.network.cls_token.add_(1.0)) != one
    assert fingerprint(lambda model: model.mean.add_(0.1)) != one
    assert fingerprint(trained="blocks.1.norm1.weight") != one
    assert fingerprint(num_heads=3) != one


def test_bare_networks_are_cut_too():
    network = build("resnet10t").network
    network.requires_grad_(False)
    network.fc.requires_grad_(True)
    split = split_network(network, {"fc.weight", "fc.bias"})
    images = torch.rand(2, 3, 32, 32)
    assert (split.before, split.shape, split.n_bytes) == ("classifier", (512,), 2048)
    assert torch.equal(split.suffix.eval()(split.prefix.eval()(images)), network.eval()(images))


def test_operations_are_counted_and_types_follow_the_arithmetic():
    model = build("vit_tiny_patch16_224", **VIT)
    split = split_network(model, train_only(model, ["blocks.1.norm1.weight"]))
    tokens, width = 5, 24
    patches = 2 * 4 * width * 3 * 16 * 16
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 2 * 2 * tokens * tokens * width
    assert split.flops() == patches + block
    assert split.dtype_under(torch.no_grad) == torch.float32
    cnn = build("resnet10t")
    autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    assert split_network(cnn, train_only(cnn, ["layer3.0.conv1.weight"])).dtype_under(autocast) == torch.bfloat16
