"""`evenhand patch apply`, `revert` and `inspect` as they are typed: the story on a checkpoint, and every refusal in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evenhand.patches import make_patch, save_patch

from .conftest import contents

OLD = {"blocks.0.mlp.fc1.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}
NEW = {"blocks.0.mlp.fc1.weight": OLD["blocks.0.mlp.fc1.weight"] + torch.eye(2, 3), "head.bias": torch.tensor([-0.0, 1.0])}

Say = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_file(OLD, tmp_path / "given.safetensors", metadata={"architecture": "mine"})
    save_file({**OLD, "head.bias": torch.ones(2)}, tmp_path / "other.safetensors")
    save_patch(tmp_path / "patch.safetensors", make_patch(OLD, NEW, history={"method": "bmft"}))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "patch.safetensors").read_bytes()[:-1])
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_there_and_back(place: Path, say: Say) -> None:
    patch, given, patched, back = (place / f"{name}.safetensors" for name in ("patch", "given", "patched", "back"))
    code, out, err = say("patch", "apply", f"patch={patch}", f"model={given}", f"out={patched}")
    assert (code, out.strip()) == (0, str(patched)), err
    assert torch.equal(load_file(patched)["head.bias"].signbit(), torch.tensor([True, False]))
    code, out, _ = say("patch", "revert", f"patch={patch}", f"model={patched}", f"out={back}")
    assert (code, out.strip()) == (0, str(back))
    assert back.read_bytes() == given.read_bytes()
    code, out, _ = say("patch", "inspect", f"patch={patch}", f"model={patched}", f"out={place / 'seen'}")
    assert code == 0
    assert out.splitlines()[-1] == str(place / "seen" / "inspect.html")
    assert "4 of 8 entries (50.0%) in 2 of 2 layers" in out
    assert "blocks.0  33.3% of 6" in out
    assert (place / "seen" / "inspect.html").is_file()


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "no_patch": (("apply", "model=given", "out=new"), "missing: patch="),
    "no_out": (("apply", "patch=patch", "model=given"), "missing: out="),
    "unknown": (("aply", "patch=patch"), "did you mean 'apply'"),
    "option": (("apply", "pach=patch", "model=given", "out=new"), "did you mean 'patch'"),
    "other": (("apply", "patch=patch", "model=other", "out=new"), "belongs to the model sha256"),
    "same": (("apply", "patch=patch", "model=given", "out=given"), "exists already"),
    "not_a_patch": (("apply", "patch=given", "model=given", "out=new"), "it is no patch"),
    "cut": (("apply", "patch=cut", "model=given", "out=new"), "truncated"),
    "missing": (("apply", "patch=nowhere", "model=given", "out=new"), "does not exist"),
    "no_model": (("apply", "patch=patch", "model=nowhere", "out=new"), "not a file, a folder or a hub id"),
    "nothing_to_revert": (("revert", "patch=patch", "model=given", "out=new"), "does not have this patch"),
    "which": (("revert", "model=given", "out=new"), "which patch to take off"),
    "folder": (("inspect", "patch=patch", "out=."), "is not empty"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_lost(case: str, place: Path, refused: Refused) -> None:
    words, text = CASES[case]
    typed = []
    for word in words[1:]:
        name, _, value = word.partition("=")
        typed.append(f"{name}={place if value == '.' else place / f'{value}.safetensors'}")
    before = contents(place)
    assert text in refused(2, "patch", words[0], *typed)
    assert contents(place) == before
