"""Checkpoints on disk in the layouts that are published: only the network changes, and taking the patch off gives it back."""

from __future__ import annotations

import argparse
import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm import create_model
from torch import nn

from evenhand.errors import CheckpointError, InputError
from evenhand.models.layouts import recognise
from evenhand.patches import make_patch, patch_file
from evenhand.patches.files import file_state
from evenhand.patches.torch_files import replaced_in_place

from .conftest import State, changed_copy, same_bits

Wrap = Callable[[State], Any]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


LAYOUTS: dict[str, tuple[Wrap, Callable[[Any], State]]] = {
    "plain": (lambda s: s, lambda c: c),
    "ordered": (OrderedDict, dict),
    "parameters": (lambda s: {k: nn.Parameter(v) for k, v in s.items()}, lambda c: {k: v.detach() for k, v in c.items()}),
    "lightning": (
        lambda s: {"state_dict": prefixed("net.", s) | {"criterion.pos_weight": torch.ones(1)}, "epoch": 3, "hyper_parameters": {"lr": 1}},
        lambda c: {k.removeprefix("net."): v for k, v in c["state_dict"].items() if k.startswith("net.")},
    ),
    "parallel": (
        lambda s: {"model": prefixed("module.", s), "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        lambda c: {k.removeprefix("module."): v for k, v in c["model"].items()},
    ),
    "classifier": (
        lambda s: {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)} | prefixed("network.", s),
        lambda c: {k.removeprefix("network."): v for k, v in c.items() if k.startswith("network.")},
    ),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_torch_file_keeps_its_layout(layout: str, before: State, after: State, tmp_path: Path) -> None:
    wrap, unwrap = LAYOUTS[layout]
    source, patched, back = (tmp_path / f"{name}.pt" for name in ("given", "patched", "back"))
    torch.save(wrap({k: v.clone() for k, v in before.items()}), source)
    delivered, patch = source.read_bytes(), make_patch(before, after)
    patch_file(source, patched, patch)
    patch_file(patched, back, patch, revert=True)
    with torch.serialization.safe_globals([argparse.Namespace]):
        contents = [torch.load(path, weights_only=True) for path in (source, patched, back)]
    assert source.read_bytes() == back.read_bytes() == delivered
    for content, state in zip(contents, (before, after, before), strict=True):
        assert type(content) is type(contents[0])
        assert same_bits(unwrap(content), state)
    if layout == "parallel":
        assert contents[1]["args"].lr == 0.1
        assert contents[1]["optimizer"]["state"][0]["m"].tolist() == [1, 1]
    if layout == "lightning":
        assert (contents[1]["epoch"], contents[1]["state_dict"]["criterion.pos_weight"].tolist()) == (3, [1.0])
    if layout == "parameters":
        assert all(isinstance(value, nn.Parameter) for value in contents[1].values())
    assert same_bits(file_state(patched, patch), after)


class Booby:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return open, ("booby-trap", "w")  # type: ignore[return-value]


def test_what_is_not_read_is_kept_and_never_run(before: State, after: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's files hold an optimiser's factory; it comes back as it was, although nobody here unpickles it."""
    monkeypatch.chdir(tmp_path)
    factory = functools.partial(torch.optim.SGD, lr=0.03)
    torch.save({"state_dict": prefixed("net.", before), "hyper_parameters": {"optimizer": factory}}, tmp_path / "last.ckpt")
    delivered = (tmp_path / "last.ckpt").read_bytes()
    patch = make_patch(before, after)
    patch_file(tmp_path / "last.ckpt", tmp_path / "out.ckpt", patch)
    found = torch.load(tmp_path / "out.ckpt", weights_only=False)
    assert (found["hyper_parameters"]["optimizer"].func, found["hyper_parameters"]["optimizer"].keywords) == (torch.optim.SGD, {"lr": 0.03})
    assert same_bits(found["state_dict"], prefixed("net.", after))
    patch_file(tmp_path / "out.ckpt", tmp_path / "back.ckpt", patch, revert=True)
    assert (tmp_path / "back.ckpt").read_bytes() == delivered

    torch.save(torch.load(tmp_path / "out.ckpt", weights_only=False), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="save its state dictionary alone"):
        patch_file(tmp_path / "old.ckpt", tmp_path / "never.ckpt", patch, revert=True)

    torch.save({"state_dict": before, "more": Booby()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="it was refused, nothing was run"):
        patch_file(tmp_path / "bad.pt", tmp_path / "never.pt", patch)
    replaced_in_place((tmp_path / "bad.pt").read_bytes(), {("state_dict", "head.bias"): after["head.bias"]})
    assert not (tmp_path / "booby-trap").exists()


def test_tensors_that_lie_out_of_order_and_older_files_are_written_anew(before: State, after: State, tmp_path: Path) -> None:
    patch = make_patch(before, after)
    turned = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in before.items()}
    together = torch.cat([value.reshape(-1) for value in before.values()])
    parts = dict(zip(before, together.split([value.numel() for value in before.values()]), strict=True))
    views = {name: part.reshape(before[name].shape) for name, part in parts.items()}
    for name, state, options in (
        ("turned", turned, {}), ("old", before, {"_use_new_zipfile_serialization": False}), ("views", views, {}), ("loose", [before], {}),
    ):
        torch.save(state, tmp_path / f"{name}.pt", **options)
        if name == "loose":
            # tensors in a list have no names
            with pytest.raises(CheckpointError, match="holds none of the"):
                patch_file(tmp_path / f"{name}.pt", tmp_path / f"{name}-out.pt", patch)
            continue
        patch_file(tmp_path / f"{name}.pt", tmp_path / f"{name}-out.pt", patch)
        assert same_bits(torch.load(tmp_path / f"{name}-out.pt", weights_only=True), after)


def test_a_safetensors_file_is_given_back_byte_by_byte(before: State, after: State, tmp_path: Path) -> None:
    half = {name: value.bfloat16() for name, value in before.items()}
    moved = {name: value.bfloat16() for name, value in after.items()}
    for old, new in ((before, after), (half, moved)):
        source, patched, back = (tmp_path / f"{name}.safetensors" for name in ("given", "patched", "back"))
        save_file(prefixed("network.", old) | {"mean": torch.zeros(3)}, source, metadata={"architecture": "mine", "mean": "[0.5]"})
        patch = make_patch(old, new)
        patch_file(source, patched, patch)
        patch_file(patched, back, patch, revert=True)
        assert back.read_bytes() == source.read_bytes()
        with safe_open(patched, "pt") as file:
            assert file.metadata() == {"architecture": "mine", "mean": "[0.5]"}
            assert same_bits({name: file.get_tensor(f"network.{name}") for name in new}, new)


def test_every_copy_that_is_the_network_is_patched_and_no_other(before: State, after: State, tmp_path: Path) -> None:
    """Loaders prefer averaged weights: patching only the raw ones would change nothing that is used."""
    raw = changed_copy(before, 0.5, seed=3)
    torch.save({"state_dict": raw, "state_dict_ema": before, "best": prefixed("module.", before)}, tmp_path / "given.pth")
    patch_file(tmp_path / "given.pth", tmp_path / "out.pth", make_patch(before, after))
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert same_bits(found["state_dict"], raw)
    assert same_bits(found["state_dict_ema"], after)
    assert same_bits(found["best"], prefixed("module.", after))


def test_tensors_that_share_memory_are_patched_once(tmp_path: Path) -> None:
    tied = torch.ones(3)
    torch.save({"a.weight": tied, "b.weight": tied}, tmp_path / "given.pt")
    old = {"a.weight": tied, "b.weight": tied}
    patch_file(tmp_path / "given.pt", tmp_path / "both.pt", make_patch(old, {"a.weight": tied + 1, "b.weight": tied + 1}))
    found = torch.load(tmp_path / "both.pt", weights_only=True)
    assert (found["a.weight"][0].item(), found["b.weight"][0].item()) == (2, 2)
    patch = make_patch(old, {"a.weight": tied + 1, "b.weight": tied + 2})
    patch_file(tmp_path / "given.pt", tmp_path / "out.pt", patch)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (found["a.weight"][0].item(), found["b.weight"][0].item()) == (2, 3)


@pytest.mark.parametrize("name", ["my_layer", "head.layer", "classifier.1", "net.out"])
def test_a_head_of_another_name_is_known_by_its_hash(name: str, before: State, after: State, tmp_path: Path) -> None:
    """Two more layers of the head's shape lie beside it; only the head gives the hash that the patch belongs to."""
    ends = ("weight", "bias")

    def called(state: State) -> State:
        body = {f"net.{key}": value for key, value in state.items() if not key.startswith("head.")}
        decoys = {f"{decoy}.{end}": torch.ones_like(state[f"head.{end}"]) for decoy in ("aux", "zzz") for end in ends}
        return body | decoys | {f"{name}.{end}": state[f"head.{end}"] for end in ends}

    torch.save({"state_dict": called(before)}, tmp_path / "given.ckpt")
    patch_file(tmp_path / "given.ckpt", tmp_path / "out.ckpt", make_patch(before, after))
    assert same_bits(torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"], called(after))


def test_the_published_layout_of_encoder_and_head(tmp_path: Path) -> None:
    """BMFT's Lightning checkpoints: the encoder under ``net.enet.``, a linear layer under ``head.layer.``."""
    network = create_model("resnet10t", num_classes=1)
    old = {name: value.clone() for name, value in network.state_dict().items()}
    new = changed_copy(old, 0.1)

    def published(state: State) -> State:
        return {f"head.layer.{name[3:]}" if name.startswith("fc.") else f"net.enet.{name}": value for name, value in state.items()}

    torch.save({"state_dict": published(old), "epoch": 19}, tmp_path / "last.ckpt")
    patch_file(tmp_path / "last.ckpt", tmp_path / "out.ckpt", make_patch(old, new))
    assert same_bits(torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"], published(new))


def test_names_that_a_published_layout_renames_are_found(tmp_path: Path) -> None:
    """torchvision's old DenseNet files say ``norm.1`` where timm says ``norm1``."""
    network = create_model("densenet121", growth_rate=4, block_config=(2, 2), num_classes=2)
    old = {name: value.clone() for name, value in network.state_dict().items()}
    new = changed_copy(old, 0.1)
    given = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): value for name, value in old.items()}
    assert set(given) != set(old)
    assert set(recognise(given, "given").state) == set(old)
    torch.save(given, tmp_path / "given.pth")
    patch_file(tmp_path / "given.pth", tmp_path / "out.pth", make_patch(old, new))
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(found) == list(given)
    assert same_bits(recognise(found, "found").state, {name: new[name] for name in recognise(given, "given").state})


def test_what_is_refused_leaves_nothing_behind(before: State, after: State, tmp_path: Path) -> None:
    patch, source = make_patch(before, after), tmp_path / "given.safetensors"
    save_file(after, source)
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"checkpoint given\.safetensors has this patch already"):
        patch_file(source, out, patch)
    with pytest.raises(InputError, match="is the model itself"):
        patch_file(source, source, patch, revert=True)
    save_file({"fc.weight": torch.zeros(2)}, source)
    with pytest.raises(CheckpointError, match="of another architecture"):
        patch_file(source, out, patch)
    source.write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="truncated"):
        patch_file(source, out, patch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.safetensors"]
