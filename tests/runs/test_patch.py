"""`evenhand patch make` on a tiny network: whole folders, the same numbers after a kill, checkpoints, and what is refused."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import evenhand.runs.patch as patch_runs
from evenhand.config import compose
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import CheckpointError, ConfigError, InputError, MethodError
from evenhand.models.parameters import state_fingerprint
from evenhand.patches import apply_patch, load_patch, network_state, patch_file, revert_patch
from evenhand.runs.export import export
from evenhand.runs.folder import RunFolder
from evenhand.runs.patch import make_patch_run, patch_lines
from evenhand.runs.patch_files import patch_apply, patch_revert
from evenhand.runs.patch_start import external_rows, open_delivered, start_of
from evenhand.runs.predict import predict
from evenhand.runs.results import load_predictor
from evenhand.runs.task import read_rows
from evenhand.runs.train import train

QUICK = ("accelerator=cpu", "audit.bootstrap=20", "audit.permutations=19", "audit.details=false", "data.batch_size=32")
SHORT = ("method.impair_epochs=1", "method.importance=batch", "method.impair_lr=0.05", "method.stop=last")


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    folder = tmp_path_factory.mktemp("external")
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=90, signal=2.0, seed=5)), folder / "files")
    prepare_csv(
        folder / "files" / "metadata.csv", folder / "set", images=folder / "files", labels=["label"], attributes=["group", "age"],
        bins={"age": [0, 60, 120]}, size=32,
    )
    return folder / "set"


@pytest.fixture(scope="module")
def delivered(prepared, tmp_path_factory):
    """The run of a network that was trained for one epoch, on another data set than the external one."""
    words = ["model=test_vit", "model.input_size=[32,32]", "method=finetune", "trainer.max_epochs=1", "trainer.accelerator=cpu",
             "trainer.progress=false", "audit.bootstrap=20", "audit.permutations=19", "audit.details=false"]
    return train(compose("train", [f"data={prepared}", *words, f"out={tmp_path_factory.mktemp('runs') / 'delivered'}"]))


@pytest.fixture
def config(external, delivered, tmp_path):
    def made(*words, model=delivered.root, data=external, out="patched"):
        return compose("patch make", [f"data={data}", f"model={model}", *QUICK, *SHORT, *words, f"out={tmp_path / out}"])

    return made


@pytest.fixture(scope="module")
def patched(external, delivered, tmp_path_factory):
    out = tmp_path_factory.mktemp("patched") / "run"
    words = [f"data={external}", f"model={delivered.root}", *QUICK, *SHORT, "comparisons=last_layer", f"out={out}"]
    return make_patch_run(compose("patch make", words))


@pytest.fixture(scope="module")
def lightning(delivered, tmp_path_factory):
    """The delivered network as BMFT's training would have left it: a Lightning checkpoint with net.* and head.*."""
    state = network_state(load_file(delivered.root / "model.safetensors"))
    held = {f"head.layer.{key[5:]}" if key.startswith("head.") else f"net.enet.{key}": value for key, value in state.items()}
    path = tmp_path_factory.mktemp("lightning") / "epoch_003.ckpt"
    recipe = {"optimizer": functools.partial(torch.optim.SGD, lr=0.03), "compile": False}
    torch.save({"state_dict": held, "hyper_parameters": recipe, "epoch": 3}, path)
    return path


def test_the_patch_gives_the_patched_run_and_comes_off_bit_for_bit(patched, delivered):
    patch = load_patch(patched.root / "patch.safetensors")
    before, after = (load_file(run.root / "model.safetensors") for run in (delivered, patched))
    assert patch.n_changed
    assert all(torch.equal(value, after[name]) for name, value in apply_patch(before, patch).items())
    assert all(torch.equal(value, before[name]) for name, value in revert_patch(after, patch).items())
    assert set(patch.history["thresholds"]) == {"label"}


def test_before_and_after_are_of_the_same_rows_and_patients_are_on_one_side(patched, external):
    after = pd.read_parquet(patched.root / "predictions.parquet")
    before = pd.read_parquet(patched.root / "delivered" / "predictions.parquet")
    assert list(before["image"]) == list(after["image"])
    assert set(after["split"]) == {"val", "test"}
    rows, notes = external_rows(compose("patch make", [f"data={external}", *QUICK]), 0, None)
    people = {name: set(rows.data.patients[rows.split == name]) for name in ("train", "val", "test")}
    assert not people["train"] & people["val"]
    assert not people["test"] & (people["train"] | people["val"])
    assert len(people["val"]) / len(people["train"] | people["val"]) == pytest.approx(0.3, abs=0.05)
    assert set(after.loc[after["split"] == "val", "patient_id"].astype(str)) == {
        str(value) for value in rows.data.table["patient_id"][rows.split == "val"]
    }
    assert "70% learnt from" in notes[0]


def test_what_stands_in_the_folder(patched):
    names = ("patch.json", "patch.html", "report.html", "results.csv", "compare/report.html", "delivered/audit.json", "metrics.jsonl",
             "comparisons/last_layer/audit.json")
    assert all((patched.root / name).exists() for name in names)
    record = json.loads((patched.root / "patch.json").read_text())
    assert record["patch"]["result_hash"] == patched.info["patch"]["result_hash"]
    assert record["cost"]["passes"] > 0
    page = (patched.root / "patch.html").read_text()
    assert "Before and after, on test rows" in page
    assert "last_layer" in page
    lines = "\n".join(patch_lines(patched))
    assert "delivered" in lines
    assert "patched" in lines
    assert "undo: evenhand patch revert" in lines


def test_a_patched_run_scores_new_images_as_it_was_tested(patched, external, tmp_path):
    out = predict(compose("predict", [f"model={patched.root}", f"data={external}", "split=test", f"out={tmp_path / 'scores'}"]))
    told = pd.read_parquet(patched.root / "predictions.parquet")
    told = told[told["split"] == "test"].set_index("image")["y_score"]
    now = pd.read_parquet(out / "predictions.parquet").set_index("image")["y_score"]
    np.testing.assert_allclose(now.loc[told.index], told, atol=1e-6)


def test_serving_the_folder_serves_the_patched_network(patched, delivered, external):
    serving = pytest.importorskip("evenhand.serve.encoder")
    images = read_rows(compose("patch make", [f"data={external}"]).data, 0, redraw=False).take("test").x.batch(slice(0, 4))
    found = {}
    for name, root in (("patched", patched.root), ("delivered", delivered.root)):
        served = serving.load_served_model(compose("serve", [f"model={root}", "accelerator=cpu"]))
        network = load_predictor(RunFolder(root)).predictor.model
        found[name] = served.embed(images)
        with torch.inference_mode():
            logits = network(images)
            head = network.network.get_classifier()
            np.testing.assert_allclose(head(torch.from_numpy(found[name])), logits, atol=1e-4)
    assert np.abs(found["patched"] - found["delivered"]).max() > 1e-3
    assert served.parameters["encoder"]


def test_the_same_command_finds_it_finished(patched, monkeypatch):
    monkeypatch.setattr(patch_runs, "make_patched", None)
    config = compose("patch make", [
        f"data={patched.info['config']['data']['path']}", f"model={patched.info['config']['model']['checkpoint']}", *QUICK, *SHORT,
        "comparisons=last_layer", f"out={patched.root}",
    ])
    assert make_patch_run(config).done


def test_a_killed_run_goes_on_and_ends_with_the_same_patch(config, patched, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(patch_runs, "save_patch", killed)
        with pytest.raises(KeyboardInterrupt):
            make_patch_run(config())
    out = RunFolder(config().out)
    assert not out.done
    assert out.started
    again = make_patch_run(config())
    assert again.done
    assert load_patch(again.root / "patch.safetensors").result_hash == load_patch(patched.root / "patch.safetensors").result_hash


def test_a_lightning_checkpoint_of_the_published_training(config, lightning, patched, tmp_path):
    words = ("model.name=test_vit", "model.input_size=[32,32]", "model.mean=[0.485,0.456,0.406]", "model.std=[0.229,0.224,0.225]")
    run = make_patch_run(config(*words, "method.impair_epochs=0", model=lightning))
    patch = load_patch(run.root / "patch.safetensors")
    assert patch.base_hash == load_patch(patched.root / "patch.safetensors").base_hash
    assert any("may end in a sigmoid" in note for note in run.info["notes"])
    patch_file(lightning, tmp_path / "patched.ckpt", patch)
    held = torch.load(tmp_path / "patched.ckpt", weights_only=False)["state_dict"]
    after = network_state(load_file(run.root / "model.safetensors"))
    assert torch.equal(held["head.layer.weight"], after["head.weight"])
    assert torch.equal(held["net.enet.patch_embed.proj.weight"], after["patch_embed.proj.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_a_classifier_of_fewer_bits_comes_back_bit_for_bit_from_the_run_folder_alone(config, delivered, dtype, tmp_path):
    state = network_state(load_file(delivered.root / "model.safetensors"))
    file = tmp_path / "delivered.safetensors"
    save_file({name: value.to(dtype) for name, value in state.items()}, file)
    words = ("model.name=test_vit", "model.input_size=[32,32]")
    run = make_patch_run(config(*words, model=file))
    assert load_patch(run.root / "patch.safetensors").n_changed
    back = patch_revert(compose("patch revert", [f"model={run.root}", f"out={tmp_path / 'back'}"]))
    held, again = load_file(file), network_state(load_file(back / "model.safetensors"))
    assert set(held) == set(again)
    for name, value in held.items():
        assert again[name].dtype == value.dtype == dtype
        assert torch.equal(again[name].view(torch.int16), value.view(torch.int16)), name
    # the folders score as they say, and the file itself goes there and back byte by byte
    for folder, told in ((run.root, run.root), (back, run.root / "delivered")):
        found = load_predictor(RunFolder(folder)).predictor.predict(_test_images(config(), delivered))[0]
        table = pd.read_parquet(told / "predictions.parquet")
        np.testing.assert_allclose(found[:, 0], table[table["split"] == "test"]["y_score"], atol=1e-6)
    there = patch_apply(compose("patch apply", [f"model={file}", f"patch={run.root}", f"out={tmp_path / 'patched.safetensors'}"]))
    home = patch_revert(compose("patch revert", [f"model={there}", f"patch={run.root}", f"out={tmp_path / 'home.safetensors'}"]))
    assert there.read_bytes() != file.read_bytes() == home.read_bytes()
    # a patch on the patched run belongs to it in its own type
    rows, _ = external_rows(config(model=run.root), 0, run)
    assert open_delivered(config(model=run.root), rows, run).hash == run.info["patch"]["result_hash"]


def _test_images(config, start):
    return external_rows(config, 0, start)[0].take("test").x


def test_a_comparison_that_the_rows_do_not_allow_is_told_of(config, monkeypatch):
    def refused(task, model, options):
        raise MethodError(f"{options.kind} needs more rows")

    monkeypatch.setattr(patch_runs, "make_comparison", refused)
    run = make_patch_run(config("comparisons=fairprune", "method.impair_epochs=0"))
    assert run.done
    assert "comparison fairprune could not be made: fairprune needs more rows" in run.info["notes"]
    compared = json.loads((run.root / "compare" / "report.json").read_text())
    assert [one["name"] for one in compared["runs"]] == ["delivered", "patched"]


@pytest.mark.slow
def test_several_seeds_split_the_external_set_anew_and_keep_the_test_rows(config):
    run = make_patch_run(config("seeds=0,1", "method.impair_epochs=0"))
    tables = [pd.read_parquet(one.root / "predictions.parquet") for one in run.seeds]
    tests, vals = ([list(table.loc[table["split"] == name, "image"]) for table in tables] for name in ("test", "val"))
    assert tests[0] == tests[1]
    assert vals[0] != vals[1]
    results = pd.read_csv(run.root / "results.csv")
    assert set(results["classifier"]) == {"delivered", "patched"}
    assert set(results["seed"]) == {0, 1}
    assert json.loads((run.root / "compare" / "report.json").read_text())["runs"][1]["n_seeds"] == 2
    assert sum(line.startswith("seed=") for line in patch_lines(run)) == 2


def test_rows_that_the_classifier_was_trained_on_are_left_out(config, prepared, delivered):
    rows, notes = external_rows(config(data=prepared), 0, delivered)
    own = read_rows(config(data=prepared).data, 0, redraw=False).split
    assert set(np.flatnonzero(np.isin(rows.split, ["train", "val"]))) == set(np.flatnonzero(own == "val"))
    assert any("was trained on this data set" in note for note in notes)
    asked, said = external_rows(config("external=train,val", data=prepared), 0, delivered)
    assert (np.isin(asked.split, ["train", "val"])).sum() > (np.isin(rows.split, ["train", "val"])).sum()
    assert any("gaps may look smaller" in note for note in said)


def test_a_probe_is_joined_to_one_network_with_the_same_scores(config, prepared, tmp_path):
    words = ["model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
             "audit.bootstrap=20", "audit.permutations=19", "audit.details=false", "method=linear_probe", f"out={tmp_path / 'probe'}"]
    probe = train(compose("train", [f"data={prepared}", *words]))
    chosen = config(model=probe.root)
    rows, _ = external_rows(chosen, 0, probe)
    found = open_delivered(chosen, rows, start_of(chosen))
    images = rows.take("test").x
    with torch.no_grad():
        scores = found.model(images.batch(slice(0, 8))).sigmoid().numpy()
    np.testing.assert_allclose(scores, load_predictor(probe).predictor.predict(images)[0][:8], atol=1e-5)
    assert "joined to one network" in found.notes[0]
    exported = export(compose("export", [f"model={probe.root}", f"out={tmp_path / 'exported'}"]))
    assert found.hash == state_fingerprint(load_file(exported / "model.safetensors"))


def _cut(external: Path, out: Path, keep) -> Path:
    """The external set prepared again from some of its rows."""
    table = pd.read_csv(external.parent / "files" / "metadata.csv")
    place = out / "cut.csv"
    table[keep(table)].to_csv(place, index=False)
    prepare_csv(place, out / "cut", images=external.parent / "files", labels=["label"], attributes=["group"], size=32)
    return out / "cut"


def test_an_empty_cell_and_a_single_group_are_refused_before_anything_is_written(config, external, delivered, tmp_path):
    def at_most(table):
        first = table["group"].iloc[0]
        return (table["group"] != first) | (table["label"] == 0)

    lacking = config(data=_cut(external, tmp_path, at_most))
    with pytest.raises(InputError, match="lack 1 cells of 'group' and 'label'") as caught:
        make_patch_run(lacking)
    assert "label=1" in caught.value.details[0]
    other = tmp_path / "one"
    other.mkdir()
    with pytest.raises(MethodError, match="has 1 group among these rows"):
        make_patch_run(config(data=_cut(external, other, lambda table: table["group"] == table["group"].iloc[0])))
    assert not Path(lacking.out).exists()


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("external=test",), ConfigError, "would learn from the rows that the patch is tested on"),
        (("external=vall",), InputError, "did you mean 'val'"),
        (("comparisons=dfr,dfr",), ConfigError, "names one twice"),
        (("comparisons=everything",), ConfigError, "comparisons=everything is not known; known are: none"),
        (("method.attributes=skin",), InputError, "attribute 'skin' is not in the prepared data set"),
        (("data.labels=[]", "model.url=http://localhost:1"), ConfigError, "model.url is a server"),
        (("seeds=1,1",), InputError, "names a seed twice"),
        (("method.rate=0",), MethodError, r"rate is 0, but must be a share of the weights in \(0, 1\]"),
        (("method.convex=true", "method.beta=2"), MethodError, "beta is 2, but must be at most 1 where step two"),
        (("method=swift", "method.mask_scale=layer"), MethodError, "a soft mask is of single weights"),
        (("model.head=fc",), ConfigError, "says where a checkpoint's head is, but .* is a run; leave it out"),
        (("model.name=resnet18",), ConfigError, "model.name=resnet18, but the run .* is a test_vit"),
    ],
    ids=range(12),
)
def test_what_cannot_be_asked_for(config, words, error, says):
    with pytest.raises(error, match=says):
        make_patch_run(config(*words))
    assert not Path(config().out).exists()


def test_a_patch_needs_a_classifier_with_its_head(config, external, lightning, tmp_path):
    words = [f"data={external}", "model.name=test_vit"]
    with pytest.raises(ConfigError, match="needs a finished classifier; give model=RUN"):
        make_patch_run(compose("patch make", words))
    held = torch.load(lightning, weights_only=False)["state_dict"]
    bare = {key.removeprefix("net.enet."): value for key, value in held.items() if not key.startswith("head.")}
    torch.save(bare, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"no head of known name .*looked for: head, head\.layer.*model\.head=…"):
        make_patch_run(config("model.name=test_vit", "model.input_size=[32,32]", model=tmp_path / "encoder.pth"))


def test_weights_that_are_not_finite_are_refused(config, lightning, tmp_path):
    content = torch.load(lightning, weights_only=False)
    content["state_dict"]["net.enet.norm.weight"][0] = float("nan")
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "nan.ckpt")
    chosen = config("model.name=test_vit", "model.input_size=[32,32]", model=tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="entries that are NaN or infinite"):
        make_patch_run(chosen)
    assert not Path(chosen.out).exists()


def test_the_patch_belongs_to_the_network_in_the_file(config, delivered):
    rows, _ = external_rows(config(), 0, delivered)
    found = open_delivered(config(), rows, delivered)
    assert found.hash == state_fingerprint(network_state(load_file(delivered.root / "model.safetensors")))


def test_outputs_like_probabilities_are_warned_of_where_the_training_is_not_known(config, lightning, monkeypatch):
    """A run was trained here, on logits, whatever they look like."""
    monkeypatch.setattr(patch_runs, "look_like_probabilities", lambda logits, kind: True)
    words = ("method=comparison", "method.kind=none")
    given = ("model.name=test_vit", "model.input_size=[32,32]", "model.mean=[0.485,0.456,0.406]", "model.std=[0.229,0.224,0.225]")
    for name, more, said in (("run", {}, False), ("file", {"model": lightning}, True)):
        run = make_patch_run(config(*words, *(given if more else ()), **more, out=name))
        assert any("as if a sigmoid" in note for note in run.info["notes"]) == said


def test_batch_norms_cannot_learn_from_one_image(config, external, tmp_path):
    from timm import create_model

    torch.save(create_model("resnet10t", num_classes=1).state_dict(), tmp_path / "resnet.pth")
    chosen = config("model.name=resnet10t", "model.input_size=[32,32]", model=tmp_path / "resnet.pth")
    chosen = replace(chosen, data=replace(chosen.data, batch_size=1), method=replace(chosen.method, hold_norms=False))
    with pytest.raises(ConfigError, match="batch norms, which need two images"):
        make_patch_run(chosen)
