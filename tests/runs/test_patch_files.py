"""Patches on whole runs, exported folders and checkpoints: the patched ones work everywhere, and every file comes back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm import create_model

from evenhand.config import compose
from evenhand.data.datasets import PreparedData
from evenhand.errors import CheckpointError, ConfigError, DiskFullError, InputError, RunError
from evenhand.models.parameters import model_fingerprint
from evenhand.patches import Patch, make_patch, save_patch
from evenhand.runs import patched_run
from evenhand.runs.evaluate import evaluate
from evenhand.runs.export import export
from evenhand.runs.folder import RunFolder
from evenhand.runs.patch_files import inspect_lines, patch_apply, patch_inspect, patch_revert
from evenhand.runs.predict import predict
from evenhand.runs.train import train
from evenhand.serve.encoder import _classifier

QUICK = ["audit.bootstrap=0", "audit.permutations=0", "audit.details=false", "audit.bounds=false"]
THRESHOLD = 0.4321
TRAINED = [
    "model=test_vit", "model.input_size=[32,32]", "trainer.accelerator=cpu", "trainer.progress=false", "trainer.max_epochs=1", *QUICK,
    "method=finetune",
]


def moved(state: dict[str, torch.Tensor], seed: int = 0, share: float = 0.1) -> dict[str, torch.Tensor]:
    """A share of the weights of a classifier's network moved."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.where(torch.rand(value.shape, generator=draw) < share, value + 0.1 * torch.randn(value.shape, generator=draw), value)
        if name.startswith("network.") else value
        for name, value in state.items()
    }


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without_state(folder: Path) -> dict[str, str]:
    """The files of a run but for its last checkpoint of training."""
    return {name: digest for name, digest in contents(folder).items() if not name.startswith("checkpoints/")}


@dataclass(frozen=True)
class Scene:
    """A run that trained a network, a patch of it, and the patched run."""

    run: Path
    patch: Patch
    file: Path
    patched: Path
    before: dict[str, str]


@pytest.fixture(scope="module")
def scene(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("patching")
    run = train(compose("train", [f"data={prepared}", *TRAINED, f"out={root / 'run'}"])).root
    state = load_file(run / "model.safetensors")
    patch = make_patch(state, moved(state), data_hash="d" * 64, history={"method": "bmft", "thresholds": {"label": THRESHOLD}})
    save_patch(root / "patch.safetensors", patch)
    before = contents(run)
    assert apply(root / "patch.safetensors", run, root / "patched") == root / "patched"
    return Scene(run, patch, root / "patch.safetensors", root / "patched", before)


def apply(patch: Path, model: Path, out: Path, *words: str) -> Path:
    return patch_apply(compose("patch apply", [f"patch={patch}", f"model={model}", f"out={out}", *words]))


def revert(model: Path, out: Path, *words: str) -> Path:
    return patch_revert(compose("patch revert", [f"model={model}", f"out={out}", *words]))


def timm_scores(weights: Path, prepared: Path, rows: np.ndarray) -> np.ndarray:
    """Scores of the network in a run, by timm and torch alone."""
    state = load_file(weights)
    network = create_model("test_vit", num_classes=1, img_size=32).eval()
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")})
    images = PreparedData.open(prepared).images(rows).batch(np.arange(len(rows)))
    images = images.expand(-1, 3, -1, -1)
    with torch.no_grad():
        return torch.sigmoid(network((images - state["mean"]) / state["std"]))[:, 0].double().numpy()


def test_a_patched_run_is_a_whole_run(scene: Scene, prepared: Path, tmp_path: Path) -> None:
    assert contents(scene.run) == scene.before
    run = RunFolder(scene.patched)
    assert run.done
    assert (run.info["patch"]["base_hash"], run.info["patch"]["result_hash"]) == (scene.patch.base_hash, scene.patch.result_hash)
    for name in ("audit.json", "results.csv", "report.html", "config.yaml", "patch.safetensors", "delivered/predictions.parquet"):
        assert (scene.patched / name).is_file()
    scored = pd.read_parquet(scene.patched / "predictions.parquet")
    before = pd.read_parquet(scene.run / "predictions.parquet")
    assert list(scored["image"]) == list(before["image"])
    table = PreparedData.open(prepared).table
    rows = np.array([table.index[table["image"] == image][0] for image in scored["image"]])
    np.testing.assert_allclose(scored["y_score"], timm_scores(scene.patched / "model.safetensors", prepared, rows), atol=2e-6)
    np.testing.assert_allclose(before["y_score"], timm_scores(scene.run / "model.safetensors", prepared, rows), atol=2e-6)
    assert np.abs(scored["y_score"] - before["y_score"]).max() > 0.01
    assert json.loads((scene.patched / "audit.json").read_text())["labels"]["label"]["threshold"]["value"] == THRESHOLD

    out = predict(compose("predict", [f"model={scene.patched}", f"data={prepared}", "split=test", f"out={tmp_path / 'predicted'}"]))
    again = pd.read_parquet(out / "predictions.parquet")
    own = scored[scored["split"] == "test"]
    np.testing.assert_allclose(again["y_score"].to_numpy(), own["y_score"].to_numpy(), atol=1e-6)
    assert list(again["y_pred"]) == list((again["y_score"] >= THRESHOLD).astype(int))
    seen = evaluate(compose("evaluate", [f"model={scene.patched}", f"sets.again={prepared}", *QUICK, f"out={tmp_path / 'evaluated'}"]))
    assert (seen / "results.csv").is_file()
    assert model_fingerprint(_classifier(str(scene.patched), None).network) == scene.patch.result_hash


def test_a_training_command_does_not_take_a_patched_run_for_its_own(scene: Scene, prepared: Path) -> None:
    with pytest.raises(InputError, match="holds a run of another configuration"):
        train(compose("train", [f"data={prepared}", *TRAINED, f"out={scene.patched}"]))


def test_taking_the_patch_off_gives_every_file_back(scene: Scene, tmp_path: Path) -> None:
    back = revert(scene.patched, tmp_path / "back")
    assert without_state(back) == {name: digest for name, digest in scene.before.items() if not name.startswith("checkpoints/")}
    with pytest.raises(InputError, match="so say which patch to take off"):
        revert(back, tmp_path / "more")
    with pytest.raises(InputError, match="does not have this patch"):
        revert(back, tmp_path / "more", f"patch={scene.file}")
    assert not (tmp_path / "more").exists()


def test_patches_come_off_in_turn(scene: Scene, tmp_path: Path) -> None:
    state = load_file(scene.patched / "model.safetensors")
    save_patch(tmp_path / "second.safetensors", make_patch(state, moved(state, seed=1)))
    apply(tmp_path / "second.safetensors", scene.patched, tmp_path / "twice", "audit=false")
    with pytest.raises(InputError, match="changed after the patch was applied"):
        revert(tmp_path / "twice", tmp_path / "wrong", f"patch={scene.file}")
    revert(tmp_path / "twice", tmp_path / "once")
    assert contents(tmp_path / "once") == contents(scene.patched)
    revert(tmp_path / "once", tmp_path / "never")
    assert without_state(tmp_path / "never") == without_state(scene.run)


@pytest.mark.parametrize("has_thresholds", [True, False])
def test_a_run_whose_data_are_elsewhere_still_decides(scene: Scene, has_thresholds: bool, prepared: Path, tmp_path: Path, caplog) -> None:
    """A vendor's run folder reaches the hospital without the data that it was made from."""
    run = tmp_path / "run"
    shutil.copytree(scene.run, run)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "data": str(tmp_path / "gone")}))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(prepared), str(tmp_path / "gone")))
    patch = Patch(**{**scene.patch.__dict__, "history": scene.patch.history if has_thresholds else {}})
    save_patch(tmp_path / "patch.safetensors", patch)
    with caplog.at_level("INFO"):
        apply(tmp_path / "patch.safetensors", run, tmp_path / "patched")
    assert "its data set is not at hand" in caplog.text
    assert ("thresholds are those of the patch" in caplog.text) == has_thresholds
    assert not (tmp_path / "patched" / "audit.json").exists()
    words = [f"model={tmp_path / 'patched'}", f"data={prepared}", "split=test", f"out={tmp_path / 'predicted'}"]
    scored = pd.read_parquet(predict(compose("predict", words)) / "predictions.parquet")
    own = json.loads((scene.run / "audit.json").read_text())["labels"]["label"]["threshold"]["value"]
    assert list(scored["y_pred"]) == list((scored["y_score"] >= (THRESHOLD if has_thresholds else own)).astype(int))
    if has_thresholds:
        with pytest.raises(InputError, match="home="):
            evaluate(compose("evaluate", [f"model={tmp_path / 'patched'}", f"sets.here={prepared}", *QUICK, f"out={tmp_path / 'judged'}"]))
        apply(tmp_path / "patch.safetensors", run, tmp_path / "found", f"data={prepared}")
        assert contents(tmp_path / "found")["predictions.parquet"] == contents(scene.patched)["predictions.parquet"]


def test_an_exported_folder_takes_the_patch_of_its_run(scene: Scene, tmp_path: Path) -> None:
    export(compose("export", [f"model={scene.run}", f"out={tmp_path / 'exported'}"]))
    before = contents(tmp_path / "exported")
    own = json.loads((tmp_path / "exported" / "evenhand.json").read_text())
    apply(scene.file, tmp_path / "exported", tmp_path / "patched")
    network = create_model("test_vit", num_classes=1, img_size=32)
    network.load_state_dict(load_file(tmp_path / "patched" / "model.safetensors"))
    assert model_fingerprint(network) == scene.patch.result_hash
    told = json.loads((tmp_path / "patched" / "evenhand.json").read_text())
    assert told["thresholds"] == {"label": THRESHOLD}
    assert told["patch"]["thresholds_before"] == own["thresholds"]
    revert(tmp_path / "patched", tmp_path / "back", f"patch={scene.file}")
    assert contents(tmp_path / "back") == before
    export(compose("export", [f"model={scene.patched}", f"out={tmp_path / 'exported_after'}"]))
    assert load_file(tmp_path / "exported_after" / "model.safetensors").keys() == network.state_dict().keys()


def test_a_checkpoint_takes_the_patch_of_its_run(scene: Scene, tmp_path: Path) -> None:
    state = {name.removeprefix("network."): value for name, value in load_file(scene.run / "model.safetensors").items() if "." in name}
    torch.save({"state_dict": {f"net.{name}": value for name, value in state.items()}, "epoch": 4}, tmp_path / "last.ckpt")
    out = apply(scene.file, tmp_path / "last.ckpt", tmp_path / "patched.ckpt")
    assert out == tmp_path / "patched.ckpt"
    assert apply(scene.file, tmp_path / "last.ckpt", tmp_path / "folder") == tmp_path / "folder" / "last.ckpt"
    found = torch.load(out, weights_only=True)
    patched = load_file(scene.patched / "model.safetensors")
    assert found["epoch"] == 4
    assert all(torch.equal(value, patched[f"network.{name.removeprefix('net.')}"]) for name, value in found["state_dict"].items())
    back = torch.load(revert(out, tmp_path / "back.ckpt", f"patch={scene.patched}"), weights_only=True)
    assert all(torch.equal(value, state[name.removeprefix("net.")]) for name, value in back["state_dict"].items())


def test_what_is_wrong_is_refused_and_leaves_nothing(scene: Scene, prepared: Path, tmp_path: Path, config: Callable) -> None:
    other = tmp_path / "other.safetensors"
    state = load_file(scene.run / "model.safetensors")
    save_patch(other, make_patch(moved(state, seed=7), moved(state, seed=8)))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(scene.file.read_bytes()[:-3])
    probe = train(config("method=linear_probe", *QUICK, f"out={tmp_path / 'probe'}")).root
    (tmp_path / "several" / "seed=0").mkdir(parents=True)
    shutil.copyfile(scene.run / "run.json", tmp_path / "several" / "seed=0" / "run.json")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    inside = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "out"
    for words, error, text in (
        ((other, scene.run, out), InputError, "belongs to the model sha256"),
        ((scene.file, scene.patched, out), InputError, "has this patch already"),
        ((cut, scene.run, out), CheckpointError, "truncated"),
        ((scene.file, probe, out), InputError, "make it one with evenhand export"),
        ((scene.file, tmp_path / "several", out), InputError, "name one of them"),
        ((scene.file, scene.run, tmp_path / "full"), InputError, "is not empty"),
        ((scene.file, scene.run, scene.run), InputError, "is not empty"),
        ((scene.file, tmp_path / "nowhere", out), CheckpointError, "is not a file, a folder or a hub id"),
        ((tmp_path / "nowhere", scene.run, out), InputError, "does not exist"),
        ((scene.file, scene.file, out, f"data={prepared}"), InputError, "leave it out"),
        ((scene.file, scene.file, out), CheckpointError, "holds none of the"),
    ):
        with pytest.raises(error, match=text):
            apply(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == inside
    with pytest.raises(ConfigError, match="missing"):
        compose("patch apply", ["patch=a", "out=b"])


def test_data_that_are_not_the_runs_are_refused(scene: Scene, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    table = tmp_path / "data" / "table.csv"
    frame = pd.read_csv(table)
    frame["extra"] = 1
    frame.to_csv(table, index=False)
    told = tmp_path / "data" / "dataset.yaml"
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (prepared / "table.csv", table)]
    told.write_text(told.read_text().replace(*hashes))
    with pytest.raises(InputError, match="is not the data set that the run"):
        apply(scene.file, scene.run, tmp_path / "out", f"data={tmp_path / 'data'}")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise DiskFullError("no space is left")

    monkeypatch.setattr(patched_run, "save_patch", full)
    with pytest.raises(DiskFullError):
        apply(scene.file, scene.run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    def cut_short(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", cut_short)
    with pytest.raises(RunError, match="No space left on device"):
        apply(scene.file, scene.run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert contents(scene.run) == scene.before


def test_inspecting_a_patch(scene: Scene, tmp_path: Path) -> None:
    alone = patch_inspect(compose("patch inspect", [f"patch={scene.file}"]))
    assert alone["model"] is None
    assert all(item["mean"] is None for item in alone["layers"])
    found = patch_inspect(compose("patch inspect", [f"patch={scene.patched}", f"out={tmp_path / 'seen'}"]))
    same = patch_inspect(compose("patch inspect", [f"patch={scene.file}", f"model={scene.run}", f"out={tmp_path / 'seen'}"]))
    assert (found["model"]["state"], same["model"]["state"]) == ("patched", "as delivered")
    for key in ("layers", "changed", "n", "base_hash", "result_hash", "history"):
        assert found[key] == same[key] or key == "history"
    old, new = (load_file(folder / "model.safetensors") for folder in (scene.run, scene.patched))
    assert found["changed"] == sum(int((old[name] != new[name]).sum()) for name in old)
    assert found["share"] == pytest.approx(0.1, abs=0.01)
    assert [item["rate"] for item in found["at_rates"]] == [0.01, 0.05, 0.1, 0.5]
    assert json.loads((tmp_path / "seen" / "inspect.json").read_text()) == same
    page = (tmp_path / "seen" / "inspect.html").read_text()
    assert "<script" not in page
    assert "patch-layers" in page
    text = "\n".join(inspect_lines(found))
    assert "blocks.5" in text
    assert f"of {found['n']:,}".replace(",", "\u202f") in text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        patch_inspect(compose("patch inspect", [f"patch={scene.file}", f"out={tmp_path / 'full'}"]))
    other = tmp_path / "other.safetensors"
    save_patch(other, make_patch(moved(old, seed=3), moved(old, seed=4)))
    with pytest.raises(InputError, match="belongs to the model"):
        patch_inspect(compose("patch inspect", [f"patch={other}", f"model={scene.run}"]))
