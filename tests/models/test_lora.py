"""Low-rank updates: nothing changes before training, only they change in it, and folded in they leave a plain network."""

from __future__ import annotations

import sys

import pytest
import torch
from timm import create_model

from evenhand.errors import DependencyError, MethodError
from evenhand.models.backbones import ImageClassifier
from evenhand.models.fixed_masks import fixed_mask
from evenhand.models.lora import lora_matrices, merge_lora
from evenhand.models.masks import apply_mask, make_mask
from evenhand.models.parameters import parameter_groups
from evenhand.models.parts import make_parts

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NETWORKS = ("vit_tiny_patch16_224", "resnet10t")


def make_network(name="vit_tiny_patch16_224"):
    options = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2} if name.startswith("vit") else {"zero_init_last": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(name, num_classes=2, **options).eval()


def lora_mask(model, ranks, scales=None):
    parts = make_parts(model, "blocks")
    bits = [rank is not None for rank in ranks]
    return make_mask(model, "blocks", parts, bits, lr=1e-2, lora_ranks=[rank or 0 for rank in ranks], lr_scales=scales)


def train(model, steps=3):
    optimizer = torch.optim.AdamW([{**group, "lr": 0.05} for group in parameter_groups(model, weight_decay=0.1)])
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_changes_the_matrices_by_a_product_of_that_rank_and_nothing_else(name):
    model = make_network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mask = lora_mask(model, [4, *[None] * (len(make_parts(model, "blocks")) - 1)])
    expected, scores = mask.trained(model), model(IMAGES)
    apply_mask(model, mask)
    torch.testing.assert_close(model(IMAGES), scores, rtol=0, atol=0)
    train(model)
    adapted = model(IMAGES)
    updates = {key.split(".lora_A")[0]: value.clone() for key, value in model.state_dict().items() if ".lora_A" in key}
    products = {}
    for key, a in updates.items():
        b = model.state_dict()[f"{key}.lora_B.default.weight"]
        products[f"{key}.weight"] = (b.flatten(1) @ a.flatten(1)).reshape(before[f"{key}.weight"].shape)
    assert merge_lora(model) is model
    torch.testing.assert_close(model(IMAGES), adapted, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == expected == set(products) | {key for key in before if key.startswith(("head.", "fc."))}
    for key, product in products.items():
        torch.testing.assert_close(after[key], before[key] + product, rtol=1e-5, atol=1e-6)
        assert torch.linalg.matrix_rank(product.flatten(1)) <= 4


def test_share_counts_the_updates():
    model = make_network()
    mask = lora_mask(model, [4, 8])
    total = sum(parameter.numel() for parameter in model.parameters())
    sides = (24 + 72) + (24 + 24) + (24 + 96) + (96 + 24)
    share = mask.share(model)
    assert share == pytest.approx((4 * sides + 8 * sides + 2 * 24 + 2) / total)
    names = apply_mask(model, mask)
    assert share == pytest.approx(sum(parameter.numel() for name, parameter in model.named_parameters() if name in names) / total)


def test_ranks_and_scales_are_those_of_the_part():
    model = make_network()
    apply_mask(model, lora_mask(model, [4, 8], scales=[0.5, 0.1]))
    ranks = {name.split(".")[1]: parameter.shape[0] for name, parameter in model.named_parameters() if "lora_A" in name}
    assert ranks == {"0": 4, "1": 8}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)].split(".")[1]: group["lr_scale"]
        for group in parameter_groups(model, weight_decay=0.1)
        for parameter in group["params"]
        if "lora" in names[id(parameter)]
    }
    assert scales == {"0": 0.5, "1": 0.1}


def test_a_part_in_full_beside_one_of_low_rank():
    model = make_network()
    names = apply_mask(model, lora_mask(model, [0, 4]))
    assert {name for name in names if name.startswith("blocks.0.")} == {name for name, _ in model.named_parameters() if ".0." in name}
    assert {name.split(".lora_")[0] for name in names if name.startswith("blocks.1.")} == {
        f"blocks.1.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_the_seed_draws_them_and_the_global_generator_is_left_alone():
    drawn, state = [], torch.random.get_rng_state()
    for seed in (1, 1, 2):
        model = make_network()
        apply_mask(model, lora_mask(model, [4, 4]), seed=seed)
        drawn.append(model.blocks[0].attn.qkv.lora_A["default"].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_flags_stay_as_they_were():
    model = make_network().train()
    model.blocks[0].eval()
    apply_mask(model, lora_mask(model, [4, None]))
    assert model.training
    assert model.blocks[1].training
    assert not model.blocks[0].training


def test_the_fixed_mask_updates_the_attention_or_what_there_is():
    vit, resnet = make_network(), make_network("resnet10t")
    assert {name.split(".")[-2] for name in fixed_mask(vit, "lora", lr=1e-3, seed=0).trained(vit)} == {"qkv", "proj", "head"}
    mask = fixed_mask(resnet, "lora", lr=1e-3, seed=0, n=2)
    assert {part.lora_rank for part in mask.parts if part.train} == {2}
    assert all("conv" in name or "downsample" in name or name.startswith("fc") for name in mask.trained(resnet))


def test_depthwise_and_same_padded_convolutions_take_no_update():
    from evenhand.models.networks import register_architectures

    register_architectures()
    model = create_model("mobilenetv1_075", num_classes=1)
    matrices = [name for part in make_parts(model, "blocks") for name in lora_matrices(model, part.parameters)]
    assert matrices
    assert all("conv_pw" in name for name in matrices)
    assert lora_matrices(model, ["conv_stem.weight"]) == ()


def test_a_network_that_reads_weights_past_their_layers_is_refused():
    """Swin v2 computes with qkv.weight itself: an update of the layer would train and never be used."""
    model = create_model("swinv2_tiny_window8_256", num_classes=2, img_size=64, window_size=4, depths=(1, 1, 1, 1), embed_dim=12)
    model = ImageClassifier(model, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(64, 64), name="swinv2")
    before = list(model.state_dict())
    with pytest.raises(MethodError, match=r"reads layers\.0\.blocks\.0\.attn\.qkv\.weight without calling its layer"):
        apply_mask(model, lora_mask(model, [4, None, None, None]))
    assert list(model.state_dict()) == before


def test_parts_say_which_matrices_they_have():
    parts = {part.name: part.matrices for part in make_parts(make_network(), "norms|attention|mlp")}
    assert parts["block0.norms"] == ()
    assert parts["block0.attention"] == ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight")


def test_a_rank_for_a_part_without_matrices_is_refused():
    model = make_network()
    parts = make_parts(model, "norms")
    mask = make_mask(model, "norms", parts, [1, 0], lr=1e-3, lora_ranks=[4, 0])
    with pytest.raises(MethodError, match=r"part 'block0\.norms' has lora_rank 4, but no matrix"):
        apply_mask(model, mask)


def test_a_second_mask_on_low_rank_layers_is_refused():
    model = make_network()
    mask = lora_mask(model, [4, None])
    apply_mask(model, mask)
    with pytest.raises(MethodError, match="merge_lora"):
        apply_mask(model, mask)
    apply_mask(merge_lora(model), mask)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = make_network()
    with pytest.raises(DependencyError, match=r"a mask with LoRA ranks needs the package 'peft'.*evenhand\[lora\]"):
        apply_mask(model, lora_mask(model, [4, None]))
    apply_mask(model, lora_mask(model, [0, None]))


def test_the_fixed_mask_leaves_out_matrices_that_are_read_past_their_layers():
    model = create_model("swinv2_tiny_window8_256", num_classes=2, img_size=64, window_size=4, depths=(1, 1, 1, 1), embed_dim=12)
    model = ImageClassifier(model, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(64, 64), name="swinv2")
    mask = fixed_mask(model, "lora", lr=1e-3, seed=0)
    names = {name for part in mask.parts if part.train for name in part.parameters}
    assert {f"layers.{k}.blocks.0.attn.proj.weight" for k in range(4)} <= names
    assert not any("qkv" in name for name in names)
    apply_mask(model, mask)
