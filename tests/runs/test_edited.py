"""Runs on edited images: every image of every split goes through the edit, and wherever the run is used again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from evenhand.config import compose
from evenhand.config.editing import DNEConfig
from evenhand.data.datasets import PreparedData
from evenhand.edits import build_edit
from evenhand.edits.artifact import load_edit, save_edit
from evenhand.errors import CheckpointError, ConfigError, InputError
from evenhand.runs.evaluate import evaluate
from evenhand.runs.export import export
from evenhand.runs.folder import RunFolder
from evenhand.runs.predict import predict
from evenhand.runs.results import load_predictor
from evenhand.runs.train import train
from tests.runs.conftest import TINY


def make_edit(path: Path, family: str = "lowres", size: int = 32, seed: int = 0, scale: float = 8.0, **facts) -> Path:
    """A random edit of a family, some grey levels strong."""
    edit = build_edit(DNEConfig(family=[family], resolution=4, rounding="8bit"), (1, size, size))
    draw = torch.randn(edit.n_parameters, generator=torch.Generator().manual_seed(seed))
    edit.load_vector(scale * draw * edit.natural_steps())
    path.write_bytes(save_edit(edit, {"method": "dne", "attributes": ["group"], **facts}))
    return path


@pytest.fixture(scope="module")
def edit_file(tmp_path_factory):
    return make_edit(tmp_path_factory.mktemp("edit") / "edit.safetensors")


@pytest.fixture(scope="module")
def module_config(prepared):
    return lambda *words: compose("train", [f"data={prepared}", *TINY, *words])


WORDS = {"probe": ["method=linear_probe"], "tuned": ["method=finetune", "trainer.max_epochs=1", "data.augment=chest_film"]}


@pytest.fixture(scope="module", params=sorted(WORDS))
def run(request, module_config, edit_file, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    return train(module_config(*WORDS[request.param], f"edit={edit_file}", f"out={out}"))


def test_scores_are_those_of_an_encoder_fed_with_edited_pixels(module_config, prepared, edit_file, tmp_path):
    """The head, fitted by hand on embeddings of edited batches."""
    from evenhand.models import LocalEmbedder, build_classifier

    run = train(module_config("method=linear_probe", "method.l2=0.01", f"edit={edit_file}", f"out={tmp_path / 'run'}"))
    config = module_config("method=linear_probe")
    data, edit = PreparedData.open(prepared), load_edit(edit_file).edit
    embedder = LocalEmbedder(build_classifier(config.model, 0, config.seed), "fp32")
    with torch.no_grad():
        z = embedder(edit(data.images().batch(slice(None)))).numpy()
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, y = data.rows("train"), data.labels()[:, 0]
    scaler = StandardScaler().fit(z[rows])
    head = LogisticRegression(C=1 / (0.01 * len(rows)), tol=1e-10, max_iter=5000).fit(scaler.transform(z[rows]), y[rows])
    known = pd.read_parquet(run.root / "predictions.parquet")
    test = data.rows("test")
    scores = known[known["split"] == "test"]["y_score"]
    np.testing.assert_allclose(head.predict_proba(scaler.transform(z[test]))[:, 1], scores, atol=2e-3)
    with torch.no_grad():
        unedited = embedder(data.images().batch(test)).numpy()
    assert np.abs(head.predict_proba(scaler.transform(unedited))[:, 1] - scores).max() > 0.05


def test_a_run_keeps_its_edit_and_says_how_visible_it_is(run, edit_file):
    stored = load_edit(edit_file)
    kept = load_edit(run.root / "edit.safetensors")
    assert kept.fingerprint == stored.fingerprint
    said = run.info["edit"]
    assert (said["hash"], said["kind"], said["facts"]["attributes"]) == (stored.fingerprint, "lowres", ["group"])
    assert said["visibility"]["max_grey"] > 1
    assert "edited images" in (run.root / "report.html").read_text()
    assert json.loads((run.root / "audit.json").read_text())["provenance"]["edit_hash"] == stored.fingerprint


def test_predict_puts_the_runs_own_edit_on_images_or_the_one_given(run, prepared, cohort_folder, tmp_path):
    def scores(name, *words):
        out = predict(compose("predict", [f"model={run.root}", f"out={tmp_path / name}", *words]))
        return pd.read_parquet(out / "predictions.parquet").set_index("image")["y_score"], json.loads((out / "predict.json").read_text())

    known = pd.read_parquet(run.root / "predictions.parquet")
    known = known[known["split"] == "test"].set_index("image")["y_score"]
    own, facts = scores("own", f"data={prepared}", "split=test")
    np.testing.assert_allclose(own, known, atol=1e-6)
    assert facts["edit_hash"] == run.info["edit"]["hash"]
    files, _ = scores("files", f"data={cohort_folder / 'images'}")
    np.testing.assert_allclose(files.reindex(known.index.str.removeprefix("images/")), known, atol=1e-6)
    other_file = make_edit(tmp_path / "other.safetensors", seed=1, scale=30.0)
    other, facts = scores("other", f"data={prepared}", "split=test", f"edit={other_file}")
    assert facts["edit_hash"] == load_edit(other_file).fingerprint
    assert np.abs(other - known).max() > 1e-4


def test_evaluate_puts_the_edit_on_other_sets(run, prepared, tmp_path):
    words = [f"model={run.root}", f"sets.same={prepared}", "split=test", f"out={tmp_path / 'e'}", "audit.bootstrap=20"]
    out = evaluate(compose("evaluate", words))
    got = pd.read_parquet(out / "same" / "predictions.parquet").set_index("image")["y_score"]
    known = pd.read_parquet(run.root / "predictions.parquet").set_index("image")["y_score"]
    np.testing.assert_allclose(got, known.reindex(got.index), atol=1e-6)


def test_an_exported_run_brings_its_edit_and_says_that_timm_does_not_apply_it(run, prepared, tmp_path):
    folder = export(compose("export", [f"model={run.root}", f"out={tmp_path / 'e'}"]))
    assert "does not apply" in (folder / "README.md").read_text()
    facts = json.loads((folder / "evenhand.json").read_text())
    edit = load_edit(folder / facts["edit"]["file"])
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert not any("edit" in name for name in network.state_dict())
    data, config = PreparedData.open(prepared), network.pretrained_cfg
    with torch.inference_mode():
        images = edit.edit(data.images().batch(data.rows("test"))).expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        scores = torch.sigmoid(network((images - mean) / std))[:, 0].numpy()
    known = pd.read_parquet(run.root / "predictions.parquet")
    np.testing.assert_allclose(scores, known[known["split"] == "test"]["y_score"], atol=2e-5)


def test_fine_tuning_never_trains_the_edit_and_puts_it_after_augmentation(module_config, edit_file, tmp_path, monkeypatch):
    """Every batch that reaches the network's first layer is an edited one, whatever augmentation did to it before."""
    from evenhand.models.backbones import ImageClassifier

    run = train(module_config(*WORDS["tuned"], f"edit={edit_file}", f"out={tmp_path / 'run'}"))
    loaded = load_predictor(run)
    model = loaded.predictor.model
    stored = load_edit(edit_file)
    assert torch.equal(model.edit.vector(), stored.edit.vector())
    assert not any(parameter.requires_grad for parameter in model.edit.parameters())
    images = torch.rand(2, 1, 32, 32)
    own = model.normalise(images)
    bare = ImageClassifier.normalise(model.with_edit(None), stored.edit(images))
    torch.testing.assert_close(own, bare)


def published_checkpoint(kind, folder):
    """A file in a published layout, random weights, and the words that name it."""
    torch.manual_seed(0)
    if kind == "mae_vit":
        network = timm.create_model("test_vit", img_size=32, num_classes=0)
        torch.save({"model": network.state_dict(), "epoch": 1}, folder / "mae.pth")
        return [f"model={folder / 'mae.pth'}", "model.name=test_vit", "model.global_pool=avg"]
    state = {f"model.encoder.{name}": value for name, value in timm.create_model("densenet121", num_classes=0).state_dict().items()}
    torch.save({"state_dict": state}, folder / "dense.ckpt")
    if kind == "named_densenet":
        return ["model=chest_densenet121", f"model.checkpoint={folder / 'dense.ckpt'}"]
    return [f"model={folder / 'dense.ckpt'}"]


@pytest.mark.parametrize("kind", ["mae_vit", "named_densenet", "densenet"])
def test_the_published_recipe_on_published_layouts_with_the_edit_on(kind, prepared, edit_file, tmp_path):
    words = [
        f"data={prepared}", *TINY[1:], *published_checkpoint(kind, tmp_path), "experiment=dne_finetune", f"edit={edit_file}",
        "trainer.max_epochs=1", "trainer.limit_batches=1", "data.batch_size=16", f"out={tmp_path / 'run'}",
    ]
    run = train(compose("train", words))
    assert run.done
    model = load_predictor(run).predictor.model
    assert torch.equal(model.edit.vector(), load_edit(edit_file).edit.vector())
    left_out = [note for note in run.info["notes"] if "stochastic depth" in note]
    assert bool(left_out) == (kind != "mae_vit")
    if kind == "mae_vit":
        assert (run.info["config"]["model"]["global_pool"], model.network.global_pool) == ("avg", "avg")
        return
    with pytest.raises(InputError, match="densenet121 has no option drop_path"):
        train(compose("train", [*words[:-1], "model.drop_path=0.2", f"out={tmp_path / 'typed'}"]))


def test_the_edit_is_part_of_what_a_run_is_but_not_its_path(module_config, edit_file, tmp_path):
    words = ["method=linear_probe", "method.l2=0.1", f"out={tmp_path / 'run'}"]
    run = train(module_config(*words, f"edit={edit_file}"))
    when = (run.root / "predictions.parquet").stat().st_mtime_ns
    shutil.copy(edit_file, tmp_path / "moved.safetensors")
    assert train(module_config(*words, f"edit={tmp_path / 'moved.safetensors'}")).done
    assert (run.root / "predictions.parquet").stat().st_mtime_ns == when
    other = make_edit(tmp_path / "other.safetensors", seed=3)
    with pytest.raises(InputError, match="another configuration"):
        train(module_config(*words, f"edit={other}"))
    with pytest.raises(InputError, match="another configuration"):
        train(module_config(*words))


def test_a_run_whose_edit_is_gone_or_another_is_refused(run, prepared, tmp_path):
    shutil.copytree(run.root, tmp_path / "run")
    words = [f"model={tmp_path / 'run'}", f"data={prepared}", f"out={tmp_path / 'p'}"]
    make_edit(tmp_path / "run" / "edit.safetensors", seed=5)
    with pytest.raises(CheckpointError, match="is not the edit that run was trained with"):
        predict(compose("predict", words))
    (tmp_path / "run" / "edit.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        predict(compose("predict", words))
    assert not (tmp_path / "p").exists()


def test_an_edit_of_another_encoder_is_a_transfer_and_said(module_config, tmp_path, caplog):
    made = make_edit(tmp_path / "edit.safetensors", encoder="0" * 64)
    run = train(module_config("method=linear_probe", "method.l2=0.1", f"edit={made}", f"out={tmp_path / 'run'}"))
    assert "trained against encoder 000000000000" in caplog.text
    assert "trained against encoder 000000000000" in run.info["edit"]["transfer"]


def test_a_run_folder_is_as_good_as_its_edit(module_config, run, edit_file, tmp_path):
    again = train(module_config("method=linear_probe", "method.l2=0.1", f"edit={run.root}", f"out={tmp_path / 'run'}"))
    assert again.info["edit"]["hash"] == load_edit(edit_file).fingerprint


def refuse(case: str, config, folder: Path):
    """A command with an edit that does not suit."""
    made = folder / "edit.safetensors"
    make_edit(made, size=64 if case == "grid" else 32)
    words = ["method=dne"] if case == "two" else ["method=linear_probe"]
    if case == "damaged":
        made.write_bytes(made.read_bytes()[:200])
    if case == "absent":
        made.unlink()
    if case == "range":
        made.write_bytes(made.read_bytes().replace(b'value_range\\": [0.0, 1.0]', b'value_range\\": [0.0, 2.0]'))
    path = folder if case == "folder" else made
    if case == "folder":
        made.rename(folder / "mine.safetensors")
    train(config(*words, f"edit={path}", f"out={folder / 'run'}"))


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        ("grid", InputError, "--size 64"),
        ("two", ConfigError, "method=dne trains one"),
        ("damaged", CheckpointError, "truncated"),
        ("absent", InputError, "does not exist"),
        ("range", CheckpointError, "value range"),
        ("folder", InputError, "without edit.safetensors"),
    ],
)
def test_an_edit_that_does_not_suit_is_refused_and_nothing_is_left(case, error, text, config, tmp_path):
    with pytest.raises(error, match=text):
        refuse(case, config, tmp_path)
    assert not (tmp_path / "run").exists()


def test_channels_that_differ_are_refused(config, tmp_path):
    edit = build_edit(DNEConfig(family=["residual"]), (3, 32, 32))
    (tmp_path / "edit.safetensors").write_bytes(save_edit(edit, {}))
    with pytest.raises(InputError, match="3 channels"):
        train(config("method=linear_probe", f"edit={tmp_path / 'edit.safetensors'}", f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_white_box_methods_and_fine_tuning_need_weights(config, tmp_path):
    with pytest.raises(ConfigError, match="use method=gezo"):
        train(config("method=dne", "model=http://127.0.0.1:9/none", f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_an_address_is_a_server():
    assert compose("train", ["data.path=x", "model=https://host/models/a"]).model.url == "https://host/models/a"


def test_a_run_without_an_edit_has_none(module_config, tmp_path):
    run = train(module_config("method=linear_probe", "method.l2=0.1", f"out={tmp_path / 'run'}"))
    assert load_predictor(run).edit is None
    assert not (run.root / "edit.safetensors").exists()
    assert "edit" not in RunFolder(run.root).info
