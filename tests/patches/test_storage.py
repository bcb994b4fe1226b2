"""The patch file: there and back, readable by safetensors alone, and refused after any damage."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from evenhand.errors import CheckpointError, InputError
from evenhand.patches import FILE, apply_patch, load_patch, make_patch, save_patch
from evenhand.patches.storage import _checksum, patch_bytes

from .conftest import same_bits

SMALL = ({"conv.weight": torch.zeros(40), "fc.bias": torch.zeros(2)}, {"conv.weight": torch.eye(40)[3], "fc.bias": torch.ones(2)})


def test_there_and_back(before, after, tmp_path) -> None:
    history = {"method": "bmft", "records": [{"epoch": 1, "bias": 0.25}]}
    patch = make_patch(before, after, data_hash="d" * 64, history=history)
    save_patch(tmp_path, patch)
    save_patch(tmp_path / "named.safetensors", patch)
    for path in (tmp_path, tmp_path / FILE, str(tmp_path / "named.safetensors")):
        loaded = load_patch(path)
        assert (loaded.base_hash, loaded.result_hash, loaded.data_hash) == (patch.base_hash, patch.result_hash, "d" * 64)
        assert loaded.tensors == patch.tensors
        assert list(loaded.tensors) == list(before)
        assert {name: loaded.history[name] for name in history} == history
        assert loaded.history["package"]
        assert loaded.history["written"].startswith("20")
        assert same_bits(apply_patch(before, loaded), after)


def test_the_file_holds_changed_entries_only_and_anyone_can_read_it(tmp_path) -> None:
    """With safetensors and numpy alone: the entries, the positions, and the values they lead to."""
    old, new = SMALL
    save_patch(tmp_path / "p.safetensors", make_patch(old, new))
    with safe_open(tmp_path / "p.safetensors", "np") as file:
        assert sorted(file.keys()) == ["index/conv.weight", "xor/conv.weight", "xor/fc.bias"]
        assert file.get_tensor("index/conv.weight").tolist() == [3]
        bits = old["conv.weight"].numpy().view(np.int32).copy()
        bits[file.get_tensor("index/conv.weight")] ^= file.get_tensor("xor/conv.weight")
        assert bits.view(np.float32).tolist() == new["conv.weight"].tolist()
        assert file.metadata()["schema"] == "evenhand.patch/1"


def test_half_of_the_entries_take_a_bit_each_for_their_positions(tmp_path) -> None:
    old = {"w": torch.zeros(64)}
    new = {"w": (torch.arange(64) % 2).float()}
    save_patch(tmp_path / "p.safetensors", make_patch(old, new))
    with safe_open(tmp_path / "p.safetensors", "np") as file:
        assert np.unpackbits(file.get_tensor("bits/w"), bitorder="little").tolist() == [0, 1] * 32
        assert file.get_tensor("xor/w").shape == (32,)


def test_every_flipped_byte_and_every_cut_is_refused(tmp_path) -> None:
    data = patch_bytes(make_patch(*SMALL, history={"written": "2026", "package": "1"}))
    file = tmp_path / "p.safetensors"
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"p\.safetensors"):
            load_patch(file)
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"p\.safetensors"):
            load_patch(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        load_patch(file)


def forged(said: dict | None = None, **tensors: torch.Tensor | None) -> bytes:
    """A file whose checksum fits what was changed in it."""
    data = patch_bytes(make_patch(*SMALL))
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    held = {**load(data), **{name.replace("__", "/").replace("_w", ".w").replace("_b", ".b"): value for name, value in tensors.items()}}
    kept = {name: value for name, value in held.items() if value is not None}
    text = json.dumps({**json.loads(header["patch"]), **(said or {})})
    return save(kept, metadata={"schema": header["schema"], "patch": text, "checksum": _checksum(text, kept)})


@pytest.mark.parametrize(
    "data",
    [
        forged(index__conv_weight=torch.tensor([40], dtype=torch.int32)),
        forged(index__conv_weight=torch.tensor([-1], dtype=torch.int32)),
        forged(index__conv_weight=torch.tensor([3], dtype=torch.int64)),
        forged(index__conv_weight=torch.tensor([3, 4], dtype=torch.int32)),
        forged(index__conv_weight=torch.tensor([4, 3], dtype=torch.int32), xor__conv_weight=torch.ones(2, dtype=torch.int32)),
        forged(index__conv_weight=torch.tensor([3, 3], dtype=torch.int32), xor__conv_weight=torch.ones(2, dtype=torch.int32)),
        forged(index__conv_weight=None),
        forged(bits__conv_weight=torch.zeros(6, dtype=torch.uint8)),
        forged(bits__conv_weight=torch.zeros(5, dtype=torch.uint8)),
        forged(xor__conv_weight=None),
        forged(xor__fc_bias=torch.ones(2)),
        forged(xor__other=torch.ones(2, dtype=torch.int32)),
        forged({"tensors": [["conv.weight", "float32", [40]]]}),
        forged({"tensors": [["conv.weight", "float33", [40]], ["fc.bias", "float32", [2]]]}),
        forged({"tensors": [["conv.weight", "float32", [2**62, 2]], ["fc.bias", "float32", [2]]]}),
        forged({"tensors": [["conv.weight", "float32", [10**15]], ["fc.bias", "float32", [2]]]}, index__conv_weight=None),
        forged({"tensors": [["conv.weight", "float32", [-40]], ["fc.bias", "float32", [2]]]}, index__conv_weight=None),
        forged({"tensors": "no"}),
        forged({"history": 3}),
        forged({"history": {"thresholds": [0.5]}}),
        forged({"history": {"thresholds": {"ill": "high"}}}),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_although_its_checksum_fits(data: bytes, tmp_path) -> None:
    (tmp_path / "p.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        load_patch(tmp_path / "p.safetensors")
    (tmp_path / "p.safetensors").write_bytes(forged())
    load_patch(tmp_path / "p.safetensors")


def test_what_is_no_patch_is_said(tmp_path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="it is no patch"):
        load_patch(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        load_patch(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"without patch\.safetensors"):
        load_patch(tmp_path)
    (tmp_path / "seed=1").mkdir()
    save_patch(tmp_path / "seed=1", make_patch(*SMALL))
    with pytest.raises(InputError, match=r"name one, as patch=.*seed=1"):
        load_patch(tmp_path)
    with pytest.raises(InputError, match="does not fit JSON"):
        patch_bytes(make_patch(*SMALL, history={"loss": float("nan")}))
