"""The edit file: bit for bit there and back, refusals with reasons, the published noise, fitness for encoder, grid and range."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from evenhand.config.editing import FAMILIES
from evenhand.edits import Composition, PixelEdit, check_encoder, check_grid, check_range, edit_fingerprint, load_edit, save_edit
from evenhand.edits.artifact import FACTS
from evenhand.edits.images import EditedImages
from evenhand.errors import CheckpointError, InputError

ALL = [[family] for family in FAMILIES] + [["tone", "spectral", "residual"]]
SOME_FACTS = {"encoder": "e" * 64, "data": "d" * 64, "attributes": ["sex"], "method": "dne", "history": [{"loss": 0.5}], "mine": 1}


def parts_of(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    (length,) = struct.unpack("<Q", data[:8])
    return load(data), json.loads(data[8 : 8 + length])["__metadata__"]


@pytest.mark.parametrize("family", ALL, ids="+".join)
def test_there_and_back_bit_for_bit(make, natural, moved, family, tmp_path) -> None:
    edit = moved(make(family, rounding="8bit", linf=0.1, per_channel=True, seed=5), size=3)
    (tmp_path / "edit.safetensors").write_bytes(save_edit(edit, SOME_FACTS))
    for path in (tmp_path, tmp_path / "edit.safetensors", str(tmp_path)):
        stored = load_edit(path)
        assert torch.equal(stored.edit(natural(3)), edit(natural(3)))
        assert stored.fingerprint == edit_fingerprint(edit)
        assert stored.edit.bounds == edit.bounds
        assert stored.edit.options() == edit.options()
        assert not any(parameter.requires_grad for parameter in stored.edit.parameters())
    assert set(FACTS) <= set(stored.facts)
    assert {name: stored.facts[name] for name in SOME_FACTS} == SOME_FACTS
    assert stored.facts["visibility"] is None
    assert stored.facts["package"]
    assert stored.facts["written"].startswith("20")


def test_a_fingerprint_tells_edits_apart_and_only_edits(make, moved, tmp_path) -> None:
    edit = moved(make(["tone"]))
    seen = {
        edit_fingerprint(edit), edit_fingerprint(moved(make(["tone"], linf=0.1))), edit_fingerprint(moved(make(["tone"], clamp=False))),
        edit_fingerprint(make(["tone"])), edit_fingerprint(moved(make(["tone"], (3, 32, 31)))), edit_fingerprint(Composition([edit])),
    }
    assert len(seen) == 6
    for k, facts in enumerate(({"seed": 1}, {"seed": 2})):
        (tmp_path / f"{k}.safetensors").write_bytes(save_edit(edit, facts))
    assert load_edit(tmp_path / "0.safetensors").fingerprint == load_edit(tmp_path / "1.safetensors").fingerprint == edit_fingerprint(edit)


def changed(edit: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, schema: str = "evenhand.edit/1") -> bytes:
    values, header = parts_of(save_edit(PixelEdit((1, 8, 8)), SOME_FACTS))
    said = {**json.loads(header["edit"]), **(edit or {})}
    return save({**values, **(tensors or {})}, metadata={**header, "schema": schema, "edit": json.dumps(said)})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(schema="evenhand.edit/9"), r"schema 'evenhand\.edit/9'"),
        (changed({"kind": "blur"}), "family 'blur' is unknown"),
        (changed({"kind": 3}), "unknown"),
        (changed({"grid": [1, 8, 9]}), r"\(1, 8, 8\).*asks for"),
        (changed({"grid": [1, 8]}), "grid is"),
        (changed({"grid": [1, 0, 8]}), "grid is"),
        (changed({"grid": [1, 8000, 8000]}), "asks for"),
        (changed({"kind": "residual", "options": {"width": 1024, "depth": 64, "kernel": 7}}), "lacks tensor"),
        (changed({"options": {"per_channel": False, "strength": 2}}), "option 'strength'"),
        (changed({"options": {"seed": 2}}), "option 'seed'"),
        (changed({"bounds": {"linf": -1}}), "linf is -1"),
        (changed({"bounds": {"sharp": 1}}), "sharp"),
        (changed({"value_range": [0, 255]}), "value range"),
        (changed({"kind": "composition", "options": {"parts": []}}), "at least one edit"),
        (changed({"kind": "composition", "options": {}}), "parts"),
        (changed(tensors={"values": torch.zeros(1, 8, 7)}), r"\(1, 8, 7\)"),
        (changed(tensors={"values": torch.zeros(1, 8, 8, dtype=torch.float16)}), "float16"),
        (changed(tensors={"values": torch.full((1, 8, 8), float("nan"))}), "not finite"),
        (changed(tensors={"more": torch.zeros(1)}), "unknown tensor 'more'"),
        (save({"values": torch.zeros(1)}), "schema None"),
        (save({"values": torch.zeros(1)}, metadata={"schema": "evenhand.edit/1", "edit": "{", "facts": "{}"}), "cannot be used"),
        (save({"values": torch.zeros(1)}, metadata={"schema": "evenhand.edit/1", "edit": "{}", "facts": "[]"}), "cannot be used"),
        (b"", "truncated"),
        (b"not an edit at all", "truncated"),
        (b"\x80\x04junk", "truncated"),
    ],
    ids=range(25),
)
def test_files_that_are_no_edit_are_refused(data, words, tmp_path) -> None:
    (tmp_path / "edit.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        load_edit(tmp_path)


def test_every_truncation_is_refused(make, tmp_path) -> None:
    data = save_edit(make(["tone"]), SOME_FACTS)
    for keep in range(0, len(data), 37):
        (tmp_path / "edit.safetensors").write_bytes(data[:keep])
        with pytest.raises(CheckpointError, match="truncated"):
            load_edit(tmp_path)


def test_what_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot be read.*noise_layer\.pt"):
        load_edit(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"holds no edit\.safetensors"):
        load_edit(tmp_path)


def test_what_cannot_be_saved(make) -> None:
    edit = make(["tone"])
    with pytest.raises(InputError, match="do not fit JSON"):
        save_edit(edit, {"history": [float("nan")]})
    with pytest.raises(InputError, match="do not fit JSON"):
        save_edit(edit, {"data": Path})
    edit.load_vector(torch.full((8,), float("inf")))
    with pytest.raises(InputError, match="not finite"):
        save_edit(edit, {})


@pytest.mark.parametrize("key", ["noise", "module.noise"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_the_published_noise_is_imported_as_it_is(key, zipped, natural, tmp_path) -> None:
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    torch.save({key: noise}, tmp_path / "noise_layer.pt", _use_new_zipfile_serialization=zipped)
    stored = load_edit(tmp_path / "noise_layer.pt")
    for channels in (1, 3):
        images = natural(2, channels)
        assert torch.equal(stored.edit(images), images + noise)
    assert "neither clamped" in stored.facts["note"]
    assert stored.facts["encoder"] is None
    (tmp_path / "edit.safetensors").write_bytes(save_edit(stored.edit, stored.facts))
    assert load_edit(tmp_path).fingerprint == stored.fingerprint


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("bomb-went-off",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Bomb(), "other objects than tensors"), ({"noise": Bomb()}, "other objects"), ({"weight": torch.zeros(8, 8)}, "weight"),
        ({"noise": torch.zeros(3, 8, 8)}, "noise"), ({"noise": torch.full((8, 8), float("nan"))}, "not finite"),
        (torch.zeros(8, 8), "Tensor"), ({"noise": torch.zeros(8, 8), "module.noise": torch.zeros(8, 8)}, "noise"),
        ({"noise": torch.zeros(0, 8)}, "noise"),
    ],
    ids=range(8),
)
def test_other_torch_files_are_refused_and_never_run(content, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "noise_layer.pt")
    with pytest.raises(CheckpointError, match=words):
        load_edit(tmp_path / "noise_layer.pt")
    data = (tmp_path / "noise_layer.pt").read_bytes()
    (tmp_path / "noise_layer.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"noise_layer\.pt"):
        load_edit(tmp_path / "noise_layer.pt")
    assert not (tmp_path / "bomb-went-off").exists()


def test_fitness_for_an_encoder(make, tmp_path) -> None:
    (tmp_path / "edit.safetensors").write_bytes(save_edit(make(["tone"]), SOME_FACTS))
    stored = load_edit(tmp_path)
    assert check_encoder(stored, "e" * 64, strict=True) is None
    assert "trained against encoder eeeeeeeeeeee, but this one is ffff" in (check_encoder(stored, "f" * 64) or "")
    with pytest.raises(InputError, match="use the encoder it was made for"):
        check_encoder(stored, "f" * 64, strict=True)
    (tmp_path / "edit.safetensors").write_bytes(save_edit(make(["tone"]), {}))
    assert "does not say" in (check_encoder(load_edit(tmp_path), "f" * 64, strict=True) or "")


def test_fitness_for_a_grid_and_a_range(make) -> None:
    edit = make(["residual"], (3, 32, 32))
    check_grid(edit, (3, 32, 32))
    check_grid(make(["tone"], (3, 32, 32)), (1, 32, 32))
    with pytest.raises(InputError, match=r"images are 1 x 32 x 32 .*made for 3 x 32 x 32.*--size 32 and 3 channels"):
        check_grid(edit, (1, 32, 32))
    check_range(torch.rand(2, 3, 4, 4))
    for wrong in (255 * torch.rand(2, 3, 4, 4), torch.full((1, 1, 2, 2), float("nan")), torch.full((1, 1, 2, 2), -0.1)):
        with pytest.raises(InputError, match=r"in \[0, 1\] before any normalisation"):
            check_range(wrong)


@pytest.mark.parametrize("family", [["pixel"], ["tone", "spectral"], ["residual"]], ids="+".join)
def test_images_in_other_units_are_refused_by_every_edit(make, natural, family) -> None:
    images = natural(2, 1, 32)
    edit = make(family, (1, 32, 32), rounding="8bit")
    normalised = (images - 0.5) / 0.1
    hole = images.clone()
    hole[1, 0, 3, 3] = float("nan")
    for wrong in (255 * images, normalised, hole):
        with pytest.raises(InputError, match=r"pixels run from .* in \[0, 1\] before any normalisation; divide 8-bit values by 255"):
            edit(wrong)
    overshot = 1.2 * images - 0.1
    assert edit(overshot).shape == images.shape, "resizing and edits without a clamp overshoot a little"
    assert edit(images[:0]).shape == (0, 1, 32, 32)


def test_a_data_set_in_other_units_is_refused_before_an_edit_is_put_on_it(make, natural) -> None:
    class Levels:
        shape, fingerprint = (1, 32, 32), "levels"

        def __len__(self) -> int:
            return 4

        def batch(self, positions) -> torch.Tensor:
            return (255 * natural(4, 1, 32)).round()[positions]

    with pytest.raises(InputError, match="divide 8-bit values by 255"):
        EditedImages(Levels(), make(["tone"], (1, 32, 32))).batch(slice(0, 2))
