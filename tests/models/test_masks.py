"""Masks: what is frozen stays bit-identical, the file holds all, and a mask of another network is refused."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import create_model

from evenhand.errors import InputError, MethodError, RunError
from evenhand.models.backbones import ImageClassifier
from evenhand.models.fixed_masks import FIXED_MASKS, fixed_mask
from evenhand.models.masks import Mask, PartChoice, apply_mask, check_mask, make_mask, network_hash, read_mask, write_mask
from evenhand.models.parameters import hold_frozen_norms, parameter_groups
from evenhand.models.parts import make_parts

SPACE = "norms|attention|mlp"


def make_vit(depth=2, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=depth, embed_dim=24, num_heads=2)


def make_resnet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("resnet10t", num_classes=2)


def mask_of(model, bits, space=SPACE, **options):
    return make_mask(model, space, make_parts(model, space), bits, **({"lr": 1e-3} | options))


@pytest.fixture(scope="module")
def vit():
    return make_vit()


# what is trained


@pytest.mark.parametrize("bits", [(1, 0, 0, 1, 0, 1, 0, 0), (0,) * 8])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_weights_and_their_statistics_stay_bit_identical(bits, optimizer):
    """The released BMFT masked gradients and let the optimiser's decay move masked weights; here nothing frozen moves."""
    model = ImageClassifier(make_resnet(), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet10t")
    mask = mask_of(model, bits, "conv|norm")
    trained = mask.trained(model)
    before = copy.deepcopy(model.network.state_dict())
    assert set(apply_mask(model, mask)) == trained
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(parameter_groups(model, weight_decay=0.1), lr=0.05, **options)
    model.train()
    for k in range(3):
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(k))
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
        steps.step()
        steps.zero_grad()
    moved = {key for key, value in model.network.state_dict().items() if not torch.equal(value, before[key])}
    # the statistics of a batch norm move with its weights
    norms = {f"{key.removesuffix('.weight')}.{name}" for key in trained for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == trained | (norms & set(before))


def test_trained_parts_are_those_of_the_bits_and_the_head():
    model = make_vit()
    names = apply_mask(model, mask_of(model, [0, 1, 0, 1, 0, 0]))
    layers = {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.norm1", "blocks.1.norm2", "head"}
    assert {name.rsplit(".", 1)[0] for name in names} == layers
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_share_counts_by_hand(vit):
    d, total = 24, sum(parameter.numel() for parameter in vit.parameters())
    attention, norms, head = 4 * d * d + 4 * d, 4 * d, 2 * d + 2
    assert mask_of(vit, [1, 1, 0, 0, 0, 0]).share(vit) == pytest.approx((attention + norms + head) / total)
    assert mask_of(vit, [0] * 6).share(vit) == pytest.approx(head / total)


def test_a_later_mask_replaces_the_one_before():
    model = make_vit()
    apply_mask(model, mask_of(model, [1] * 6, lr_scales=[0.1] * 6))
    apply_mask(model, mask_of(model, [0] * 6))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {"head.weight", "head.bias"}
    assert {group["lr_scale"] for group in parameter_groups(model, weight_decay=0.1)} == {1.0}


def test_scales_reach_the_groups_and_multiply_layer_decay():
    model = make_vit()
    apply_mask(model, mask_of(model, [0, 1, 0, 0, 0, 1], lr_scales=[1, 0.5, 1, 1, 1, 0.25]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def scales(**options):
        groups = parameter_groups(model, weight_decay=0.1, **options)
        return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}

    flat = scales()
    assert flat["blocks.0.attn.qkv.weight"] == flat["blocks.0.attn.proj.bias"] == 0.5
    assert (flat["blocks.1.mlp.fc1.weight"], flat["head.weight"]) == (0.25, 1.0)
    decayed = scales(layer_decay=0.5)
    assert decayed["blocks.0.attn.qkv.weight"] == pytest.approx(0.5 * 0.5**2)
    assert decayed["blocks.1.mlp.fc1.weight"] == pytest.approx(0.25 * 0.5)


def test_a_scaled_part_moves_by_its_share():
    """One step of plain gradient descent: delta = lr * scale * gradient."""
    deltas = []
    for scale in (1.0, 0.25):
        model = make_vit()
        apply_mask(model, mask_of(model, [0, 0, 1, 0, 0, 0], lr_scales=[1, 1, scale, 1, 1, 1]))
        groups = parameter_groups(model, weight_decay=0.0)
        steps = torch.optim.SGD([{**group, "lr": 0.1 * group["lr_scale"]} for group in groups], lr=0.1)
        before = model.blocks[0].mlp.fc1.weight.detach().clone()
        model.eval()(torch.ones(2, 3, 32, 32)).sum().backward()
        steps.step()
        deltas.append(model.blocks[0].mlp.fc1.weight.detach() - before)
    torch.testing.assert_close(deltas[1], 0.25 * deltas[0], rtol=1e-4, atol=1e-7)


def test_batch_norms_are_held_in_a_bare_network_too():
    model = make_resnet()
    apply_mask(model, mask_of(model, [1, 0] * 4, "conv|norm"))
    assert hold_frozen_norms(model.train()) == len([m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])


# keys


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=6, max_size=6), st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_keys_are_equal_exactly_where_trainings_are(vit, one, other):
    a, b = mask_of(vit, one, lr=1e-3, seed=1), mask_of(vit, other, lr=1e-4, seed=2)
    assert (a.key == b.key) == (one == other) == (a.trained(vit) == b.trained(vit))


def test_masks_of_two_spaces_that_train_the_same_have_one_key(vit):
    assert mask_of(vit, [0, 1, 0, 0, 1, 0]).key == mask_of(vit, [1, 1], "attention").key
    assert mask_of(vit, [1, 1, 1, 0, 0, 0]).key == mask_of(vit, [1, 0], "blocks").key


def test_scales_and_ranks_make_other_keys_but_not_on_frozen_parts(vit):
    plain = mask_of(vit, [1, 1], "attention")
    assert mask_of(vit, [1, 1], "attention", lr_scales=[1, 0.1]).key != plain.key
    assert len({plain.key, *(mask_of(vit, [1, 1], "attention", lora_ranks=[rank, 4]).key for rank in (4, 8))}) == 3
    assert mask_of(vit, [1, 0], "attention", lr_scales=[1, 0.1], lora_ranks=[0, 4]).key == mask_of(vit, [1, 0], "attention").key


# files


def test_the_file_gives_back_the_mask(vit, tmp_path):
    mask = mask_of(
        vit, [1, 0, 1, 0, 1, 0], lr=2.5e-4, seed=3, lora_ranks=[0, 0, 8, 0, 0, 0], lr_scales=[0.1, 1, 1, 1, 1, 1], data_hash="abc"
    )
    mask = replace(mask, study="s", trial=7)
    write_mask(tmp_path / "mask.json", mask)
    assert read_mask(tmp_path / "mask.json", vit) == mask == Mask.from_json(mask.to_json())
    record = json.loads((tmp_path / "mask.json").read_text())
    assert set(record) >= {"schema", "space", "parts", "lr", "seed", "model_hash", "data_hash", "study", "trial"}
    assert set(record["parts"][0]) == {"name", "parameters", "train", "lora_rank", "lr_scale"}


def test_a_failed_write_leaves_the_older_file(vit, tmp_path, monkeypatch):
    path = tmp_path / "mask.json"
    write_mask(path, mask_of(vit, [1] * 6))
    older = path.read_bytes()

    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("evenhand.files.os.replace", refuse)
    with pytest.raises(RunError, match="cannot be written"):
        write_mask(path, mask_of(vit, [0] * 6))
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", [None, "absent"])
def test_a_mask_without_a_learning_rate_is_refused_not_defaulted(vit, tmp_path, missing):
    record = json.loads(mask_of(vit, [1] * 6).to_json())
    record["lr"] = None
    if missing:
        del record["lr"]
    (tmp_path / "mask.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"no learning rate, and none is assumed.*method\.mask_lr"):
        read_mask(tmp_path / "mask.json", vit)
    assert read_mask(tmp_path / "mask.json", vit, lr=3e-4).lr == 3e-4


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), "0.001", True])
def test_a_learning_rate_that_is_no_rate_is_refused(vit, lr):
    with pytest.raises(InputError, match=r"learning rate is .* must be a number above 0"):
        mask_of(vit, [1] * 6, lr=lr)


def test_a_given_rate_goes_before_the_files(vit, tmp_path):
    write_mask(tmp_path / "mask.json", mask_of(vit, [1] * 6, lr=1e-3))
    assert read_mask(tmp_path / "mask.json", vit, lr=5e-5).lr == 5e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "schema is 'list'"),
        ('{"schema": "other/1"}', "schema is 'other/1'"),
        ('{"schema": "evenhand.mask/1", "lr": 1e-3}', "not a complete mask"),
        ('{"schema": "evenhand.mask/1", "lr": 1e-3, "parts": [{"name": "a"}]}', "not a complete mask"),
        ('{"schema": "evenhand.mask/1", "lr": 1e-3, "parts": 3}', "not a complete mask"),
    ],
)
def test_a_file_that_is_no_mask_is_refused(vit, tmp_path, text, said):
    (tmp_path / "mask.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_mask(tmp_path / "mask.json", vit)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("train", "false", "'false', but must be true or false"),
        ("train", 1, "1, but must be true or false"),
        ("lora_rank", 4.5, r"4\.5, but must be a whole number"),
        ("lora_rank", True, "True, but must be a whole number"),
        ("lr_scale", "1", "'1', but must be a number"),
        ("lr_scale", None, "None, but must be a number"),
        ("name", [1], r"\[1\], but must be text"),
        ("parameters", "ab", "'ab', but must be a list of parameters' names"),
        ("parameters", [[1]], r"\[\[1\]\], but must be a list of parameters' names"),
    ],
)
def test_a_part_of_other_types_is_refused_not_guessed(vit, tmp_path, field, value, said):
    record = json.loads(mask_of(vit, [1] * 6).to_json())
    record["parts"][2][field] = value
    (tmp_path / "mask.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"mask\.json is not a complete mask: parts\[2\]\.{field} is {said}; give a mask\.json"):
        read_mask(tmp_path / "mask.json", vit)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("space", 5, "text, the name of its search space"),
        ("parts", {"name": "a"}, "a list with an object a part"),
        ("parts", ["block0"], "a list with an object a part"),
        ("seed", "a", "a whole number"),
        ("seed", None, "a whole number"),
        ("seed", True, "a whole number"),
        ("model_hash", 5, "text, empty where the network is not known"),
        ("model_hash", None, "text, empty where the network is not known"),
        ("data_hash", ["d"], "text, empty where it was searched on no data"),
        ("study", 1, "text or null"),
        ("trial", 1.5, "a whole number or null"),
        ("architecture", {}, "text or null"),
    ],
)
def test_a_field_of_another_type_is_refused_not_guessed(vit, tmp_path, field, value, rule):
    record = json.loads(mask_of(vit, [1] * 6).to_json())
    (tmp_path / "mask.json").write_text(json.dumps(record | {field: value}))
    said = re.escape(f"mask.json is not a complete mask: {field} is {value!r}, but must be {rule}; give a mask.json that a search wrote")
    with pytest.raises(InputError, match=said):
        read_mask(tmp_path / "mask.json", vit)
    with pytest.raises(InputError, match=re.escape(f"{field} is {value!r}, but must be {rule}")):
        Mask.from_json((tmp_path / "mask.json").read_text())


def test_the_share_of_another_network_is_refused(vit):
    with pytest.raises(MethodError, match="lacks"):
        mask_of(make_resnet(), [1] * 4, "blocks").share(vit)


def test_a_missing_or_binary_file_is_said(vit, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_mask(tmp_path / "none.json", vit)
    (tmp_path / "mask.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read"):
        read_mask(tmp_path / "mask.json", vit)


def test_a_mask_of_another_network_is_refused(vit, tmp_path):
    for name, model in {"resnet": make_resnet(), "shallow": make_vit(1), "deep": make_vit(3)}.items():
        space = "blocks"
        write_mask(tmp_path / f"{name}.json", mask_of(model, [1] * len(make_parts(model, space)), space))
    with pytest.raises(MethodError, match=r"a mask of resnet10t has parameters that this network \(vit_tiny.* lacks"):
        read_mask(tmp_path / "resnet.json", vit)
    with pytest.raises(MethodError, match="lacks"):
        read_mask(tmp_path / "deep.json", vit)
    with pytest.raises(MethodError, match="1 parts of 'blocks', which are not the 2 of this network"):
        read_mask(tmp_path / "shallow.json", vit, other_weights=True)


@pytest.mark.parametrize("name", ["full", "attention", "bitfit"])
def test_a_fixed_mask_of_a_shallower_network_is_refused_too(vit, name):
    with pytest.raises(MethodError, match=f"parts of 'fixed:{name}'"):
        apply_mask(make_vit(3), fixed_mask(vit, name, lr=1e-3, seed=0))


def test_other_weights_are_refused_unless_asked_for(vit, tmp_path):
    path = tmp_path / "mask.json"
    write_mask(path, mask_of(make_vit(seed=5), [1] * 6))
    with pytest.raises(MethodError, match=r"other weights.*method\.mask_other_weights=true"):
        read_mask(path, vit)
    assert read_mask(path, vit, other_weights=True).bits == (1,) * 6


def test_another_head_is_no_other_network(vit):
    model = make_vit()
    torch.nn.init.ones_(model.head.weight)
    assert network_hash(model) == network_hash(vit)
    torch.nn.init.ones_(model.blocks[0].norm1.bias)
    assert network_hash(model) != network_hash(vit)


def test_the_head_can_be_in_no_part(vit):
    mask = Mask("own", (PartChoice("a", ("head.weight",), True),), 1e-3, 0, "", "")
    with pytest.raises(MethodError, match="its head"):
        check_mask(vit, mask)


def test_a_mask_of_a_space_of_its_own_needs_only_known_parameters(vit):
    mask = Mask("own", (PartChoice("a", ("blocks.0.norm1.bias", "pos_embed"), True),), 1e-3, 0, "", "")
    check_mask(vit, mask)
    assert mask.trained(vit) == {"blocks.0.norm1.bias", "pos_embed", "head.weight", "head.bias"}


def test_choices_that_contradict_are_refused(vit):
    with pytest.raises(InputError, match="lora_rank 4 and train=False"):
        PartChoice("a", (), False, 4)
    with pytest.raises(InputError, match="lr_scale 0"):
        PartChoice("a", (), True, 0, 0.0)
    with pytest.raises(InputError, match="must not overlap"):
        Mask("own", (PartChoice("a", ("x",), True), PartChoice("b", ("x",), False)), 1e-3, 0, "", "")
    with pytest.raises(InputError, match="has 6 parts in this network, but 5 bits"):
        mask_of(vit, [1] * 5)


# published vectors


def test_a_published_vector_trains_what_it_trained(vit, tmp_path):
    bits = np.array([1, 0, 0, 0, 1, 1], dtype=np.int8)
    np.save(tmp_path / "best_mask.npy", bits)
    mask = read_mask(tmp_path / "best_mask.npy", vit, lr=1e-4)
    assert (mask.space, mask.bits, mask.lr) == (SPACE, tuple(bits), 1e-4)
    assert mask == mask_of(vit, bits, lr=1e-4)


def test_a_published_vector_needs_a_learning_rate(vit, tmp_path):
    np.save(tmp_path / "m.npy", np.ones(6, dtype=np.int8))
    with pytest.raises(InputError, match=r"holds no learning rate.*method\.mask_lr"):
        read_mask(tmp_path / "m.npy", vit)


def test_a_published_vector_of_another_length_names_the_lengths(vit, tmp_path):
    np.save(tmp_path / "m.npy", np.ones(36, dtype=np.int8))
    with pytest.raises(MethodError, match=r"has 36 bits, but .*blocks 2.*norms\|attention\|mlp 6"):
        read_mask(tmp_path / "m.npy", vit, lr=1e-4)
    with pytest.raises(MethodError, match=r"has 36 bits, but .*\(blocks 2\)"):
        read_mask(tmp_path / "m.npy", vit, lr=1e-4, space="blocks")


def test_a_length_of_two_spaces_must_say_which(vit, tmp_path):
    np.save(tmp_path / "m.npy", np.ones(8, dtype=np.int8))
    with pytest.raises(
        InputError, match=r"fits the spaces norm1\|attention\|norm2\|mlp, attention_tensors; say which with method\.mask_space"
    ):
        read_mask(tmp_path / "m.npy", vit, lr=1e-4)
    assert read_mask(tmp_path / "m.npy", vit, lr=1e-4, space="attention_tensors").space == "attention_tensors"


@pytest.mark.parametrize("values", [np.array([0, 2, 1, 0, 0, 1]), np.ones((2, 3)), np.array(["0"] * 6), np.full(6, np.nan)])
def test_an_array_that_is_no_vector_of_bits_is_refused(vit, tmp_path, values):
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(InputError, match="no vector of zeros and ones"):
        read_mask(tmp_path / "m.npy", vit, lr=1e-4)


def test_a_pickle_or_a_broken_file_is_refused(vit, tmp_path):
    np.save(tmp_path / "m.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    for name in ("m.npy", "b.npy", "absent.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            read_mask(tmp_path / name, vit, lr=1e-4)


# fixed masks


@pytest.mark.parametrize("name", [name for name in FIXED_MASKS if name not in ("random", "lora")])
def test_a_fixed_mask_trains_what_its_name_says(vit, name):
    all_names = {key for key, _ in vit.named_parameters()}
    rules = {
        "full": lambda key: True,
        "head": lambda key: False,
        "attention": lambda key: ".attn." in key,
        "norms": lambda key: "norm" in key,
        "bitfit": lambda key: key.endswith(".bias"),
    }
    mask = fixed_mask(vit, name, lr=1e-3, seed=0)
    assert mask.trained(vit) == {key for key in all_names if rules[name](key) or key.startswith("head.")}
    model = make_vit()
    assert set(apply_mask(model, mask)) == mask.trained(vit)
    assert {key for part in mask.parts for key in part.parameters} == all_names - {"head.weight", "head.bias"}
    assert Mask.from_json(mask.to_json()) == mask


def test_fixed_masks_of_a_convolutional_network():
    model = make_resnet()
    with pytest.raises(MethodError, match="no parts in ResNet"):
        fixed_mask(model, "attention", lr=1e-3, seed=0)
    norms = fixed_mask(model, "norms", lr=1e-3, seed=0).trained(model)
    assert len(norms) == 2 * sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) + 2
    assert fixed_mask(model, "random", lr=1e-3, seed=0).space == "conv|norm"


def test_random_masks_have_the_size_asked_and_follow_the_seed(vit):
    masks = [fixed_mask(vit, "random", lr=1e-3, seed=seed, n=2) for seed in range(8)]
    assert {sum(mask.bits) for mask in masks} == {2}
    assert len({mask.bits for mask in masks}) > 3
    assert fixed_mask(vit, "random", lr=1e-3, seed=3, n=2) == masks[3]
    assert sum(fixed_mask(vit, "random", lr=1e-3, seed=0).bits) == 3
    assert len(fixed_mask(vit, "random", lr=1e-3, seed=0, space="blocks").bits) == 2


def test_a_random_mask_like_another_trains_as_many_parameters():
    deep = make_vit(depth=4)
    like = mask_of(deep, [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], lr_scales=[0.1, *[1] * 11])
    drawn = [fixed_mask(deep, "random", lr=1e-4, seed=seed, like=like) for seed in range(6)]
    assert {mask.share(deep) for mask in drawn} == {like.share(deep)}
    assert {tuple(sum(mask.bits[role::3]) for role in range(3)) for mask in drawn} == {(1, 2, 1)}
    assert all(sorted(part.lr_scale for part in mask.parts) == [0.1, *[1] * 11] for mask in drawn)
    assert len({mask.key for mask in drawn}) > 3
    assert all((mask.lr, mask.study, mask.data_hash) == (1e-4, None, "") for mask in drawn)


def test_a_random_mask_like_another_is_near_in_size_where_blocks_differ():
    model = make_resnet()
    like = mask_of(model, [1, 0, 0, 1, 1, 0, 1, 0], "conv|norm")
    sizes = [fixed_mask(model, "random", lr=1e-3, seed=seed, like=like).share(model) / like.share(model) for seed in range(5)]
    assert all(0.9 <= size <= 1.1 for size in sizes)


def test_a_random_mask_like_another_is_another(vit):
    like = mask_of(vit, [1, 0, 1, 0, 0, 1])
    drawn = {fixed_mask(vit, "random", lr=1e-3, seed=seed, like=like).bits for seed in range(20)}
    assert drawn == {(0, 0, 1, 1, 0, 1)}  # norms of the other block; MLPs are both trained, attention in neither
    with pytest.raises(MethodError, match="no other mask of this one's size"):
        fixed_mask(vit, "random", lr=1e-3, seed=0, like=mask_of(vit, [0, 1, 1, 0, 1, 1]))


def test_options_of_other_fixed_masks_are_refused(vit):
    with pytest.raises(InputError, match=r"'atention' is not known; did you mean 'attention'\?"):
        fixed_mask(vit, "atention", lr=1e-3, seed=0)
    with pytest.raises(InputError, match="'full' has no size"):
        fixed_mask(vit, "full", lr=1e-3, seed=0, n=3)
    with pytest.raises(InputError, match=r"random mask of 7 parts was asked for, but space .* has 6"):
        fixed_mask(vit, "random", lr=1e-3, seed=0, n=7)
    with pytest.raises(MethodError, match="'fixed:full' cannot be drawn"):
        fixed_mask(vit, "random", lr=1e-3, seed=0, like=fixed_mask(vit, "full", lr=1e-3, seed=0))
