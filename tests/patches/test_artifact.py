"""A patch goes there and back bit for bit, whatever the bits mean, and refuses every model but its own."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.models import build_classifier
from evenhand.models.parameters import model_fingerprint, state_fingerprint
from evenhand.patches import Patch, apply_patch, make_patch, network_state, revert_patch
from evenhand.patches.bits import Entry, bits_of, restored, stored

from .conftest import changed_copy, same_bits

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
]


def of_bytes(raw: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of any bits: NaN of every payload, both zeros, infinities, subnormal numbers."""
    if dtype == torch.bool:
        return torch.tensor([bool(byte & 1) for byte in raw])
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), n=st.integers(1, 40))
def test_any_bits_there_and_back(data: st.DataObject, dtype: torch.dtype, n: int) -> None:
    size = n * dtype.itemsize
    draw = st.binary(min_size=size, max_size=size)
    old = {"a.weight": of_bytes(data.draw(draw), dtype), "b": torch.zeros(2)}
    new = {"a.weight": of_bytes(data.draw(draw), dtype), "b": torch.zeros(2)}
    patch = make_patch(old, new, allow_nonfinite=True)
    assert same_bits(apply_patch(old, patch), new)
    assert same_bits(revert_patch(new, patch), old)
    differing = np.any(
        np.frombuffer(bits_of(old["a.weight"]).numpy().tobytes(), np.uint8).reshape(n, -1)
        != np.frombuffer(bits_of(new["a.weight"]).numpy().tobytes(), np.uint8).reshape(n, -1), axis=1
    )
    assert patch.n_changed == differing.sum()
    if differing.any():
        assert patch.entries["a.weight"].indices.tolist() == np.flatnonzero(differing).tolist()


def test_the_sign_of_zero_and_the_payload_of_a_nan_are_changes() -> None:
    quiet, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC0BEEF))
    old = {"x": torch.cat([torch.tensor([0.0, 1.0]), quiet])}
    new = {"x": torch.cat([torch.tensor([-0.0, 1.0]), other])}
    patch = make_patch(old, new)
    assert patch.entries["x"].indices.tolist() == [0, 2]
    assert bits_of(apply_patch(old, patch)["x"]).tolist() == [-(2**31), 0x3F800000, 0x7FC0BEEF]
    assert bits_of(revert_patch(new, patch)["x"]).tolist() == [0, 0x3F800000, 0x7FC00000]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70).filter(any), st.sampled_from([torch.float32, torch.float16, torch.float64]))
def test_positions_are_stored_in_the_shortest_form_and_come_back(mask: list[bool], dtype: torch.dtype) -> None:
    n, where = len(mask), torch.tensor(mask).nonzero().reshape(-1).int()
    kind = bits_of(torch.zeros(1, dtype=dtype)).dtype
    entry = Entry(where, torch.ones(len(where), dtype=kind))
    parts = stored(entry, n)
    assert sum(value.nbytes for key, value in parts.items() if key != "xor") == (
        0 if len(where) == n else min(4 * len(where), (n + 7) // 8)
    )
    back = restored(parts, n, dtype)
    assert back.indices.tolist() == where.tolist()
    assert back.xor.tolist() == entry.xor.tolist()


def test_hashes_are_those_of_the_network(before, after) -> None:
    patch = make_patch(before, after, data_hash="d" * 64, history={"method": "bmft", "thresholds": {"ill": 0.3}})
    assert (patch.base_hash, patch.result_hash) == (state_fingerprint(before), state_fingerprint(after))
    assert patch.thresholds == {"ill": 0.3}
    digest = hashlib.sha256()
    for name in sorted(before):
        value = before[name]
        digest.update(f"{name}\0float32\0{tuple(value.shape)}\0".encode() + value.numpy().tobytes())
    assert patch.base_hash == digest.hexdigest()


def test_only_changed_tensors_are_new_and_none_is_written_to(before, after) -> None:
    only = {**before, "head.bias": after["head.bias"]}
    kept = {name: value.clone() for name, value in before.items()}
    patched = apply_patch(before, make_patch(before, only))
    assert [name for name in before if patched[name] is not before[name]] == ["head.bias"]
    assert same_bits(before, kept)


def test_a_classifier_and_its_network_have_one_patch(changed) -> None:
    """What is around the network (normalisation) is no part of a patch; a bare checkpoint of it takes the same one."""
    model = build_classifier(ModelConfig(name="test_vit", input_size=[32, 32]), 1, 0)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    new = {**old, **{f"network.{name}": value for name, value in changed(model.network.state_dict(), 0.2).items()}}
    patch = make_patch(old, new)
    assert patch.base_hash == model_fingerprint(model.network)
    assert set(network_state(model)) == set(patch.tensors)
    assert same_bits(apply_patch(old, patch), new)
    assert same_bits(apply_patch(network_state(old), patch), network_state(new))
    beside = {"criterion.weight": torch.ones(2)}
    given, wanted = ({f"net.{name}": value for name, value in network_state(state).items()} | beside for state in (old, new))
    assert same_bits(apply_patch(given, patch), wanted)
    model.load_state_dict(apply_patch(model.state_dict(), patch))
    assert model_fingerprint(model.network) == patch.result_hash
    with pytest.raises(InputError, match=r"'mean' differs.*outside the network"):
        make_patch(old, {**new, "mean": new["mean"] + 1})


def test_counters_of_batches_are_left_alone() -> None:
    norm = nn.BatchNorm1d(3)
    old = {name: value.clone() for name, value in norm.state_dict().items()}
    new = {**old, "num_batches_tracked": torch.tensor(7), "weight": torch.tensor([1.0, 2.0, 1.0])}
    patch = make_patch(old, new)
    assert "num_batches_tracked" not in patch.tensors
    assert int(apply_patch({**old, "num_batches_tracked": torch.tensor(5)}, patch)["num_batches_tracked"]) == 5


def test_another_model_a_second_time_and_nothing_to_revert_are_each_refused(before, after) -> None:
    patch = make_patch(before, after)
    other = {**before, "head.bias": before["head.bias"] + 1}
    sentences = []
    for call, state, words in (
        (apply_patch, other, "belongs to the model sha256"),
        (apply_patch, after, "has this patch already"),
        (revert_patch, before, "does not have this patch"),
        (revert_patch, other, "changed after the patch was applied"),
    ):
        with pytest.raises(InputError, match=words) as error:
            call(state, patch)
        sentences.append(str(error.value))
        assert "\n" not in sentences[-1]
    assert len(set(sentences)) == 4
    assert patch.base_hash[:12] in sentences[0]
    assert state_fingerprint(other)[:12] in sentences[0]


def test_an_empty_patch_is_one_that_changes_nothing(before) -> None:
    patch = make_patch(before, before)
    assert patch.n_changed == 0
    assert same_bits(apply_patch(before, patch), before)
    assert same_bits(revert_patch(before, patch), before)


def test_what_does_not_fit_is_named(before, after) -> None:
    patch = make_patch(before, after)
    cases = {
        "missing: head.bias": {name: value for name, value in before.items() if name != "head.bias"},
        "shape: head.bias is (3,), in the patch (2,)": {**before, "head.bias": torch.zeros(3)},
        "type: head.bias is float16, in the patch float32": {**before, "head.bias": before["head.bias"].half()},
    }
    for detail, state in cases.items():
        with pytest.raises(CheckpointError, match="tensors that do not fit: 1") as error:
            apply_patch(state, patch)
        assert error.value.details == (detail,)
    with pytest.raises(CheckpointError, match="holds none of the"):
        apply_patch({"layer1.0.conv1.weight": torch.zeros(1)}, patch)
    halves = {name: value.half() for name, value in before.items()}
    with pytest.raises(CheckpointError, match="convert them to the types"):
        apply_patch(halves, patch)


def test_a_patch_that_gives_another_model_than_it_says_is_refused(before, after) -> None:
    patch = make_patch(before, after)
    bent = {**patch.entries, "head.bias": Entry(patch.entries["head.bias"].indices, patch.entries["head.bias"].xor ^ 1)}
    with pytest.raises(CheckpointError, match="another model than it says"):
        apply_patch(before, Patch(patch.base_hash, patch.result_hash, None, bent, patch.tensors))


@pytest.mark.parametrize(
    ("before_after", "words"),
    [
        (({"a": torch.zeros(2)}, {"a": torch.zeros(3)}), "a: torch.float32"),
        (({"a": torch.zeros(2)}, {"a": torch.zeros(2).double()}), "torch.float64"),
        (({"a": torch.zeros(2)}, {"b": torch.zeros(2)}), "only before: a"),
        (({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, float("nan")])}), "entries of 'a' that became NaN or infinite: 1"),
        (({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, float("inf")])}), "smaller learning rate"),
        (({"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(2).to_sparse()}), "sparse"),
        (({"a": torch.zeros(2, dtype=torch.complex128)}, {"a": torch.zeros(2, dtype=torch.complex128)}), "at most 8 bytes"),
    ],
)
def test_no_patch_is_made_of_what_is_wrong(before_after, words: str) -> None:
    with pytest.raises(InputError) as error:
        make_patch(*before_after)
    assert words in str(error.value)


def test_memory_out_of_order_and_devices_do_not_matter(before) -> None:
    """A transposed view has the same values in another order of memory."""
    square = torch.arange(6.0).reshape(2, 3)
    patch = make_patch({"w": square}, {"w": square + 1})
    turned = square.t().contiguous().t()
    assert not turned.is_contiguous()
    assert torch.equal(apply_patch({"w": turned}, patch)["w"], square + 1)
    assert same_bits(changed_copy(before, 0.0), changed_copy(before, 0.0))
