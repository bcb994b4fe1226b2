"""Percentiles against numpy, what a ratio may not depend on, and what a mask takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenhand.errors import MethodError
from evenhand.methods.patching import selection
from evenhand.methods.patching.selection import CHUNK, make_mask, percentile


class Small(nn.Module):
    """Two blocks and a head that says that it is one."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "head"}
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 4)
        self.head = nn.Linear(4, 1)


NAMES = ("first.weight", "first.bias", "second.weight", "second.bias")


def draw(seed, network=None):
    rng = torch.Generator().manual_seed(seed)
    parameters = (network or Small()).named_parameters()
    return {name: torch.rand(p.shape, generator=rng) ** 4 for name, p in parameters}


def flat(mask):
    return torch.cat([mask.values[name].flatten() for name in NAMES])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 2.0**100, width=32) | st.sampled_from([0.0, 1.0, 1.0]), min_size=1, max_size=50),
    st.floats(0, 100) | st.sampled_from([0.0, 50.0, 100.0]),
    st.integers(1, 7),
)
def test_the_percentile_is_numpys(values, q, chunk):
    numbers = torch.tensor(values, dtype=torch.float32)
    found = percentile(lambda: iter(numbers.split(chunk)), len(values), q)
    assert found == pytest.approx(np.percentile(numbers.double().numpy(), q), rel=1e-9, abs=1e-37)


def test_the_percentile_of_what_is_no_number():
    numbers = torch.tensor([1.0, float("nan"), 2.0])
    assert np.isnan(percentile(lambda: iter([numbers]), 3, 50))
    assert percentile(lambda: iter([torch.tensor([1.0, torch.inf])]), 2, 100) == np.inf


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_a_rate_is_the_share_that_may_move(rate):
    mask = make_mask(Small(), draw(0), draw(1), rate=rate)
    n = sum(value.numel() for value in mask.values.values())
    assert mask.total == n == 64
    assert mask.selected == int(flat(mask).sum())
    # a percentile between two ratios: those above it
    assert abs(mask.selected - rate * n) <= 1
    assert mask.share == mask.selected / n
    assert set(mask.values) == set(NAMES)


def by_definition(bias, prediction, rate):
    """The published mask, in numpy."""

    def unit(x):
        return (x - x.min()) / (x.max() - x.min())

    ratios = {name: unit(bias[name].numpy()) / (unit(prediction[name].numpy()) + np.float32(1e-10)) for name in NAMES}
    every = np.concatenate([ratios[name].ravel() for name in NAMES])
    threshold = every.mean(dtype=np.float64) if rate is None else np.percentile(every, 100 * (1 - rate))
    return {name: ratios[name] > threshold for name in NAMES}


@pytest.mark.parametrize("rate", [0.5, 0.2, None])
@pytest.mark.parametrize("ratio", ["minmax", "released"])
def test_the_published_ratio_selects_what_the_published_code_selects(rate, ratio):
    bias, prediction = draw(2), draw(3)
    mask = make_mask(Small(), bias, prediction, rate=rate, ratio=ratio)
    for name, expected in by_definition(bias, prediction, rate).items():
        np.testing.assert_array_equal(mask.values[name].numpy(), expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(-8, 8), st.floats(-8, 8), st.floats(-4, 4))
def test_the_safe_ratio_does_not_depend_on_scales(seed, bias_scale, prediction_scale, tensor_scale):
    bias, prediction = draw(seed), draw(seed + 1)
    mask = flat(make_mask(Small(), bias, prediction, rate=0.3))
    scaled = [
        {name: value * 10.0**exponent for name, value in given_.items()}
        for given_, exponent in ((bias, bias_scale), (prediction, prediction_scale))
    ]
    assert int((flat(make_mask(Small(), *scaled, rate=0.3)) ^ mask).sum()) <= 1
    # a tensor written in other units: both of its importances grow
    own = [{**given_, "first.weight": given_["first.weight"] * 10.0**tensor_scale} for given_ in (bias, prediction)]
    assert int((flat(make_mask(Small(), *own, rate=0.3)) ^ mask).sum()) <= 1


def test_constant_tensors_zeros_and_what_is_no_number():
    bias, prediction = draw(4), draw(5)
    prediction["first.bias"][:] = 0.25  # constant
    prediction["second.bias"][:] = 0.0  # matters to bias alone
    bias["second.bias"][:] = 1.0
    bias["second.weight"][0] = 0.0
    bias["first.weight"][0, 0] = torch.nan
    bias["first.weight"][0, 1] = torch.inf
    prediction["first.weight"][0, 2] = torch.nan
    mask = make_mask(Small(), bias, prediction, rate=0.4)
    assert np.isfinite(mask.threshold)
    assert abs(mask.share - 0.4) < 0.05
    assert not mask.values["first.weight"][0, :3].any()
    assert not mask.values["second.weight"][0].any()
    assert mask.values["second.bias"].all()
    everywhere_zero = {name: torch.zeros_like(value) for name, value in prediction.items()}
    assert abs(make_mask(Small(), draw(4), everywhere_zero, rate=0.4).share - 0.4) < 0.05
    tiny = {name: value * 1e-30 for name, value in draw(5).items()}
    assert abs(make_mask(Small(), draw(4), tiny, rate=0.4).share - 0.4) < 0.05


def test_a_constant_tensor_empties_the_released_mask_alone():
    bias, prediction = draw(6), draw(7)
    prediction["first.bias"][:] = 0.5
    with pytest.raises(MethodError, match="ratio=released is NaN for a tensor whose importances are all equal"):
        make_mask(Small(), bias, prediction, ratio="released")
    empty = make_mask(Small(), bias, prediction, ratio="released", allow_empty=True)
    assert empty.selected == 0
    assert np.isnan(empty.threshold)
    assert make_mask(Small(), bias, prediction, ratio="minmax").selected == 32


def released_swift(bias, prediction):
    """The soft mask of SWiFT's released code, line by line."""

    def scaled(x):
        return x if x.max() - x.min() == 0 else (x - x.min()) / (x.max() - x.min() + 1e-10)

    return {name: torch.tanh(scaled(bias[name]) / (scaled(prediction[name]) + 1e-10)) for name in bias}


def test_the_released_soft_ratio_is_that_of_swifts_code():
    """There constant tensors stay as they are, and a range of importances about 1e-10 is scaled to half of [0, 1]."""
    bias, prediction = ({name: value * size for name, value in draw(seed).items()} for seed, size in ((6, 1e-10), (7, 3e-10)))
    prediction["first.bias"][:] = 0.5
    found = make_mask(Small(), bias, prediction, ratio="released", soft=True).values
    expected = released_swift(bias, prediction)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    paper = make_mask(Small(), bias, prediction, ratio="minmax", soft=True).values
    assert float((paper["first.weight"] - found["first.weight"]).abs().max()) > 0.01


def test_no_bias_at_all_selects_nothing():
    zero = {name: torch.zeros_like(value) for name, value in draw(0).items()}
    for scale in ("weight", "layer", "block"):
        with pytest.raises(MethodError, match="the bias has no gradient"):
            make_mask(Small(), zero, draw(1), scale=scale)
    with pytest.raises(MethodError, match="no weight has a ratio above 1e"):
        make_mask(Small(), draw(0), draw(1), ratio_threshold=1e20)


def test_a_given_threshold_and_the_mean():
    ones = {name: torch.ones_like(value) for name, value in draw(0).items()}
    bias = {name: value.clone() for name, value in ones.items()}
    bias["second.bias"][:] = 11.0
    # means over the body: (60 * 1 + 4 * 11) / 64 = 1.625; ratios 1 / 1.625 / 1.01 and 11 / 1.625 / 1.01
    low, high = 1 / 1.625 / 1.01, 11 / 1.625 / 1.01
    mask = make_mask(Small(), bias, ones, ratio_threshold=high * 0.999)
    assert [name for name in NAMES if mask.values[name].any()] == ["second.bias"]
    assert make_mask(Small(), bias, ones, ratio_threshold=low * 0.999).share == 1.0
    with pytest.raises(MethodError, match=r"above 6\.709"):
        make_mask(Small(), bias, ones, ratio_threshold=high * 1.001)
    mean = make_mask(Small(), bias, ones, rate=None)
    assert mean.threshold == pytest.approx((60 * low + 4 * high) / 64, rel=1e-6)
    assert mean.selected == 4
    soft = make_mask(Small(), bias, ones, soft=True)
    assert soft.values["second.bias"].tolist() == pytest.approx([np.tanh(high)] * 4)
    assert soft.values["head.weight"].flatten().tolist() == pytest.approx([np.tanh(low)] * 4)
    assert soft.share == 1.0


def test_layers_and_blocks_are_taken_whole():
    from timm import create_model

    ones = {name: torch.ones_like(value) for name, value in draw(0).items()}
    bias = {**ones, "second.weight": ones["second.weight"] * 5, "first.bias": ones["first.bias"] * 3}
    layers = make_mask(Small(), bias, ones, scale="layer", rate=0.5)
    assert {name for name in NAMES if layers.values[name].all()} == {"second.weight", "first.bias"}
    assert layers.selected == 24 + 6
    assert layers.units["second.weight"] == pytest.approx(5 / 1.01 / ((24 * 5 + 6 * 3 + 34) / 64))
    # without known blocks: by module; second has mean (24 * 5 + 4) / 28, first (30 + 6 * 3) / 36
    blocks = make_mask(Small(), bias, ones, scale="block", rate=0.5)
    assert {name for name in NAMES if blocks.values[name].all()} == {"second.weight", "second.bias"}
    published = make_mask(Small(), bias, ones, scale="layer", ratio="minmax", ratio_threshold=2.9)
    assert {name for name in NAMES if published.values[name].all()} == {"second.weight", "first.bias"}

    network = create_model("vit_tiny_patch16_224", num_classes=1, img_size=32, depth=3, embed_dim=12, num_heads=2)
    flat_ones = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    raised = {name: value * (4 if name.startswith("blocks.1.") else 1) for name, value in flat_ones.items()}
    mask = make_mask(network, raised, flat_ones, scale="block", rate=None)
    assert {name for name, value in mask.values.items() if value.all()} == {n for n in flat_ones if n.startswith("blocks.1.")}
    assert set(mask.units) == {"block0", "block1", "block2", "cls_token", "pos_embed", "patch_embed", "norm"}
    assert not any(name.startswith("head.") for name in mask.values)


def test_random_masks_are_of_the_same_size_and_come_from_the_seed():
    network = nn.Sequential(nn.Linear(700, 800), nn.Linear(800, 10))
    assert network[0].weight.numel() > selection.DRAWN
    first, again, other = (make_mask(network, mask_type="random", rate=0.3, seed=seed) for seed in (1, 1, 2))
    for name in first.values:
        assert torch.equal(first.values[name], again.values[name])
    assert abs(first.share - 0.3) < 1e-5
    same = (first.values["0.weight"] == other.values["0.weight"]).float().mean()
    assert float(same) == pytest.approx(0.3**2 + 0.7**2, abs=0.01)
    every = make_mask(network, mask_type="all")
    assert every.share == 1.0
    assert every.threshold is None


@pytest.mark.parametrize("options", [{}, {"mask_type": "random"}, {"ratio": "minmax"}, {"rate": None}, {"soft": True}], ids=str)
def test_parts_do_not_show(options, monkeypatch):
    network = nn.Sequential(nn.Linear(300, 1000))
    found = []
    for entries in (2**16, 1000, 2**20):
        monkeypatch.setattr(selection, "CHUNK", entries)
        found.append(make_mask(network, draw(0, network), draw(1, network), **options).values["0.weight"].float())
    assert all(float((other - found[0]).abs().max()) < 1e-6 for other in found[1:])


def test_nothing_but_the_mask_is_as_large_as_the_weights():
    """Every tensor that is made on the way, by its storage."""
    network = nn.Sequential(nn.Linear(1500, 1500, bias=False))
    given_ = [draw(seed, network) for seed in (0, 1)]
    known = {value.untyped_storage().data_ptr() for own in (*given_, network.state_dict()) for value in own.values()}
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in known:
                    sizes.append(value.untyped_storage().nbytes())
            return out

    with Watch():
        mask = make_mask(network, *given_, rate=0.1)
    whole = mask.values["0.weight"].untyped_storage().nbytes()
    assert whole == mask.total == 1500 * 1500
    assert len(sizes) > 100
    assert max(size for size in sizes if size != whole) <= 8 * CHUNK


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_type": "hessian"}, "must be one of fisher, gradient, random, all"),
        ({"scale": "stage"}, "must be one of weight, layer, block"),
        ({"ratio": "log"}, "must be one of safe, minmax, released"),
        ({"rate": 0.0}, "share of the weights"),
        ({"rate": 50}, "share of the weights"),
        ({"ratio_threshold": -1.0}, "at least 0"),
        ({"soft": True, "scale": "layer"}, "single weights"),
    ],
)
def test_options_that_cannot_be_used(options, said):
    with pytest.raises(MethodError, match=said):
        make_mask(Small(), draw(0), draw(1), **options)


def test_importances_of_another_network():
    with pytest.raises(MethodError, match="needs the importances for prediction"):
        make_mask(Small(), draw(0))
    with pytest.raises(MethodError, match=r"'first\.weight' for bias is missing"):
        make_mask(Small(), {}, draw(0))
    wrong = {**draw(0), "second.bias": torch.ones(3)}
    with pytest.raises(MethodError, match=r"of shape \(3,\), but it must have the parameter's shape \(4,\)"):
        make_mask(Small(), draw(0), wrong)
