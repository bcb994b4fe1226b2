"""The commands around edits as functions: heads, training (also a killed one, and over a real server), measuring, files, pages."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evenhand.config import compose
from evenhand.config.editing import DNEConfig
from evenhand.data.datasets import PreparedData
from evenhand.edits import build_edit
from evenhand.edits.artifact import load_edit, save_edit
from evenhand.errors import CheckpointError, ConfigError, InputError, MethodError, RunError
from evenhand.methods.editing.group_auc import BELOW_HALF, doubt
from evenhand.runs import edit_measure as measuring
from evenhand.runs.edit import edit_head, edit_train, head_lines, read_heads
from evenhand.runs.edit_files import edit_apply, edit_inspect, radial_gain, tone_curve
from evenhand.runs.edit_measure import edit_measure, measure_lines
from evenhand.runs.folder import RunFolder
from evenhand.runs.predict import predict
from evenhand.runs.train import train
from tests.report.test_html import read
from tests.runs.conftest import TINY
from tests.runs.test_edited import make_edit

MODEL = [word for word in TINY if not word.startswith("audit.")]
QUICK = ["method.family=[spectral]", "method.reference_images=60", "method.controls=false", "method.utility=0"]
DNE = ["method=dne", "method.epochs=2", "method.batch_size=64", "method.lr=0.5", *QUICK]
LEARNS = ["method.surrogate_steps=10", "method.surrogate_width=4", "method.edit_steps=2", "method.draws=4"]
GEZO = ["method=gezo", "method.query_images=16", "method.validation_images=20", *LEARNS, *QUICK]


@pytest.fixture(scope="module")
def words(prepared):
    return [f"data={prepared}", "data.attributes=[group,age]", *MODEL]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    return edit_train(compose("edit train", [*words, *DNE, f"out={tmp_path_factory.mktemp('edit') / 'run'}"]))


@pytest.fixture(scope="module")
def heads(words, tmp_path_factory):
    return edit_head(compose("edit head", [*words, f"out={tmp_path_factory.mktemp('head') / 'head'}"]))


def test_heads_are_tested_on_rows_they_have_not_seen(heads, prepared):
    said = json.loads((heads / "attribute_head.json").read_text())
    data = PreparedData.open(prepared)
    assert [head["attribute"] for head in said["heads"]] == ["group", "age"]
    for head in said["heads"]:
        assert head["test"]["n"] + head["test"]["n_missing"] == len(data.rows("test"))
        auc = next(iter(head["test"]["auc"].values()))
        assert auc["lower"] <= auc["value"] <= auc["upper"]
    lines = head_lines(heads)
    assert lines[0].split()[:2] == ["attribute", "images"]
    assert lines[1].startswith("group")
    notes = [head["note"] for head in said["heads"] if head["note"]]
    assert lines[3:] == notes


def test_given_heads_are_used_and_those_of_another_encoder_refused(heads, words, tmp_path):
    encoder = json.loads((heads / "attribute_head.json").read_text())["model_hash"]
    stored = read_heads(heads, encoder)
    run = edit_train(compose("edit train", [*words, *DNE, f"attribute_head={heads}", f"out={tmp_path / 'run'}"]))
    report = json.loads((run.root / "edit.json").read_text())
    assert report["attributes"]["group"]["val"] == stored["group"].report["val"]
    other = [*words, *DNE, "model.input_size=[16,16]", f"attribute_head={heads}", f"out={tmp_path / 'other'}"]
    with pytest.raises(InputError, match="another encoder"):
        edit_train(compose("edit train", other))
    assert not (tmp_path / "other").exists()
    broken = tmp_path / "broken"
    shutil.copytree(heads, broken)
    (broken / "attribute_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        read_heads(broken, encoder)
    with pytest.raises(InputError, match="holds no attribute head"):
        read_heads(tmp_path, encoder)


def test_a_trained_edit_tells_what_it_is(trained, prepared):
    stored = load_edit(trained.root)
    info = trained.info
    assert (info["status"], info["edit"]["hash"]) == ("done", stored.fingerprint)
    assert stored.facts["encoder"] == info["model_hash"]
    assert stored.facts["attributes"] == ["group"]
    assert stored.edit.vector().abs().max() > 0
    records = [json.loads(line) for line in (trained.root / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    report = json.loads((trained.root / "edit.json").read_text())
    assert {"attributes", "leakage", "notes"} <= set(report)
    text, _ = read(trained.root / "report.html")
    assert "What an image edit hides" in text


def test_the_folder_of_an_edit_scores_nothing_but_is_an_edit(trained, prepared, tmp_path, config):
    with pytest.raises(InputError, match="scores nothing by itself"):
        predict(compose("predict", [f"model={trained.root}", f"data={prepared}", f"out={tmp_path / 'p'}"]))
    run = train(config("method=linear_probe", "method.l2=0.1", f"edit={trained.root}", f"out={tmp_path / 'run'}"))
    assert run.info["edit"]["hash"] == load_edit(trained.root).fingerprint
    assert run.info["edit"]["transfer"] is None


class _Killed(BaseException):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("method", ["dne", "gezo"])
def test_a_killed_training_goes_on_to_the_same_edit(method, words, tmp_path, monkeypatch):
    options = DNE if method == "dne" else [*GEZO, "method.budget=1000", "method.rounds=3"]
    whole = edit_train(compose("edit train", [*words, *options, f"out={tmp_path / 'whole'}"]))
    from evenhand.runs.folder import FileStore

    put, calls = FileStore.put, []

    def put_then_die(self, key, value):
        put(self, key, value)
        calls.append(key)
        if len(calls) == 1:
            raise _Killed

    monkeypatch.setattr(FileStore, "put", put_then_die)
    with pytest.raises(_Killed):
        edit_train(compose("edit train", [*words, *options, f"out={tmp_path / 'cut'}"]))
    monkeypatch.setattr(FileStore, "put", put)
    assert RunFolder(tmp_path / "cut").info["status"] == "running"
    resumed = edit_train(compose("edit train", [*words, *options, f"out={tmp_path / 'cut'}"]))
    assert load_edit(resumed.root).fingerprint == load_edit(whole.root).fingerprint
    when = (resumed.root / "edit.safetensors").stat().st_mtime_ns
    assert edit_train(compose("edit train", [*words, *options, f"out={tmp_path / 'cut'}"])).done
    assert (resumed.root / "edit.safetensors").stat().st_mtime_ns == when


def test_a_search_goes_on_where_it_is_given_a_larger_budget(words, tmp_path):
    out = f"out={tmp_path / 'run'}"
    first = edit_train(compose("edit train", [*words, *GEZO, "method.budget=300", out]))
    spent = json.loads((first.root / "edit.json").read_text())["search"]["images"]
    assert spent <= 300
    second = edit_train(compose("edit train", [*words, *GEZO, "method.budget=600", out]))
    more = json.loads((second.root / "edit.json").read_text())["search"]["images"]
    assert spent < more <= 600
    assert second.info["config"]["method"]["budget"] == 600


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        (["method=linear_probe"], ConfigError, "method=dne .* or method=gezo"),
        ([*GEZO, "method.budget=10"], MethodError, "budget is 10 images"),
        ([*DNE, "method.attributes=[grup]"], MethodError, "did you mean 'group'"),
        ([*DNE, "method.resolution=99", "method.family=[dct]"], InputError, "resolution is 99"),
        ([*DNE, "attribute_head=nowhere"], InputError, "holds no attribute head"),
    ],
    ids=["method", "budget", "attribute", "family", "head"],
)
def test_a_refused_training_leaves_nothing(more, error, text, words, tmp_path):
    with pytest.raises(error, match=text):
        edit_train(compose("edit train", [*words, *more, f"out={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_an_attribute_with_one_value_is_refused(cohort_folder, tmp_path):
    from evenhand.data.sources.csv import prepare_csv

    table = pd.read_csv(cohort_folder / "metadata.csv")
    table["site"] = "north"
    table.to_csv(tmp_path / "table.csv", index=False)
    prepare_csv(tmp_path / "table.csv", tmp_path / "data", images=cohort_folder, labels=["label"], attributes=["site"], size=32)
    for command, run in (("edit head", edit_head), ("edit train", edit_train)):
        options = DNE if command == "edit train" else []
        with pytest.raises(MethodError, match="only 'north'"):
            run(compose(command, [f"data={tmp_path / 'data'}", *MODEL, *options, f"out={tmp_path / 'out'}"]))
        assert not (tmp_path / "out").exists()


def test_measuring_puts_edit_and_controls_side_by_side(trained, words, prepared, tmp_path):
    out = edit_measure(compose("edit measure", [f"edit={trained.root}", *words, "bootstrap=30", f"out={tmp_path / 'm'}"]))
    found = json.loads((out / "measure.json").read_text())
    assert set(found["attributes"]) == {"group", "age"}
    assert found["transfer"] == {"encoder": None, "labels": None, "data": None}
    assert found["n"] == len(PreparedData.open(prepared).rows("test"))
    table = pd.read_csv(out / "measure.csv")
    for measure in ("fooled_accuracy", "hidden_auc", "hidden_auc_given_label"):
        rows = table[(table["measure"] == measure) & (table["attribute"] == "group") & (table["of"].isna())]
        assert set(rows["condition"]) == {"none", "edit", "noise"}
    read(out / "report.html")
    lines = measure_lines(out)
    assert [line.strip().split("  ")[0] for line in lines[2:6]] == ["no edit", "noise of the same size", "edit", "edit minus no edit"]


def test_a_reader_of_pixels_is_reported_where_it_is_asked_for(trained, words, tmp_path):
    options = [f"edit={trained.root}", *words, "data.attributes=[group]", "bootstrap=30"]
    plain = edit_measure(compose("edit measure", [*options, f"out={tmp_path / 'plain'}"]))
    out = edit_measure(compose("edit measure", [*options, "pixel_reader=true", f"out={tmp_path / 'm'}"]))
    found = json.loads((out / "measure.json").read_text())
    record = found["pixels"]["group"]
    assert list(found["pixels"]) == ["group"]
    assert found["attributes"] == json.loads((plain / "measure.json").read_text())["attributes"]
    table = pd.read_csv(out / "measure.csv").set_index(["condition", "measure"])["value"]
    for condition in ("none", "edit"):
        assert table[condition, "pixel_auc"] == pytest.approx(record[condition]["overall"]["value"])
        assert table[condition, "pixel_auc_given_label"] == pytest.approx(record[condition]["given_label"]["value"])
    assert table["edit", "pixel_auc_change"] == pytest.approx(table["edit", "pixel_auc"] - table["none", "pixel_auc"])
    assert not pd.read_csv(plain / "measure.csv")["measure"].str.startswith("pixel").any()
    lines = measure_lines(out)
    start = lines.index("group, read from pixels by a classifier trained afresh:")
    assert [line.strip().split("  ")[0] for line in lines[start + 1 : start + 5]] == ["pixels", "no edit", "edit", "edit minus no edit"]
    for number, condition in ((2, "none"), (3, "edit")):
        shown = record[condition]["overall"]
        assert f"{shown['value']:.3f} [{shown['lower']:.3f} to {shown['upper']:.3f}]" in lines[start + number]
    assert not any("read from pixels" in line for line in measure_lines(plain))
    text, _ = read(out / "report.html")
    assert "From pixels" in text
    assert f"{record['edit']['overall']['value']:.3f}" in text
    assert "From pixels" not in (plain / "report.html").read_text()


def test_a_doubt_about_pixels_is_said(trained, words, tmp_path, monkeypatch):
    low = {"value": 0.3, "lower": 0.2, "upper": 0.4, "n": 50, "note": BELOW_HALF}
    each = {"overall": low, "given_label": low}
    record = {"none": each, "edit": each, "change": each, "doubt": doubt({"edit, overall": low})}
    monkeypatch.setattr(measuring, "read_pixels", lambda *arguments, **options: record)
    options = [f"edit={trained.root}", *words, "data.attributes=[group]", "bootstrap=0", "split=val", "pixel_reader=true"]
    out = edit_measure(compose("edit measure", [*options, f"out={tmp_path / 'm'}"]))
    assert sum(f"AUC {record['doubt']}." in line for line in measure_lines(out)) == 1
    assert f"AUC {record['doubt']}." in read(out / "report.html")[0]


def test_the_old_head_is_the_one_that_the_edit_was_trained_against(heads, words, tmp_path):
    """An Adam head of few epochs reads less than one at its optimum; an edit trained against it is measured with it."""
    hasty = edit_head(compose("edit head", [*words, "method.head=adam", "method.head_epochs=1", f"out={tmp_path / 'hasty'}"]))
    run = edit_train(compose("edit train", [*words, *DNE, f"attribute_head={hasty}", f"out={tmp_path / 'run'}"]))
    stored = read_heads(run.root, run.info["model_hash"])["group"]
    assert (stored.weight == read_heads(hasty, run.info["model_hash"])["group"].weight).all()
    options = [*words, "data.attributes=[group,age]", "bootstrap=0", "split=val"]
    trained = json.loads((run.root / "edit.json").read_text())["leakage"]["attributes"]["group"]
    found = {}
    for name, more in (("own", [f"edit={run.root}"]), ("asked for", [f"edit={run.root}", f"attribute_head={heads}"])):
        out = edit_measure(compose("edit measure", [*options, *more, f"out={tmp_path / name}"]))
        content = json.loads((out / "measure.json").read_text())
        found[name] = content["attributes"]["group"]
        assert content["old_heads"] == {"group": "given", "age": "given" if name == "asked for" else "fitted here"}
        assert any(line.startswith("old head of age: fitted here") for line in measure_lines(out)) == (name == "own")
    assert found["own"]["edit"]["fooled"]["accuracy"] == trained["edit"]["fooled"]["accuracy"]
    assert found["asked for"]["none"]["fooled"] != found["own"]["none"]["fooled"]
    with pytest.raises(InputError, match="another encoder"):
        edit_measure(compose("edit measure", [f"edit={run.root}", *options, f"attribute_head={heads}", "model.input_size=[16,16]"]))
    (run.root / "attribute_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        edit_measure(compose("edit measure", [f"edit={run.root}", *options, f"out={tmp_path / 'broken'}"]))


@pytest.mark.parametrize("method", ["dne", "gezo"])
def test_a_run_that_trains_an_edit_keeps_the_heads_too(method, config, words, tmp_path):
    options = DNE if method == "dne" else [*GEZO, "method.budget=300"]
    run = train(config(*options, "data.attributes=[group]", "method.attributes=[group]", f"out={tmp_path / 'run'}"))
    out = edit_measure(compose("edit measure", [f"edit={run.root}", *words, "split=val", "bootstrap=0", f"out={tmp_path / 'm'}"]))
    found = json.loads((out / "measure.json").read_text())
    assert found["old_heads"] == {"group": "given", "age": "fitted here"}
    trained = json.loads((run.root / "edit.json").read_text())["leakage"]["attributes"]["group"]
    assert found["attributes"]["group"]["edit"]["fooled"] == trained["edit"]["fooled"]
    again = [*words, *DNE, f"attribute_head={run.root}", "method.measure=false", f"out={tmp_path / 'again'}"]
    assert edit_train(compose("edit train", again)).done


def test_another_encoder_is_a_transfer_and_no_edit_has_no_effect(words, tmp_path):
    """The identity hides nothing: edit and no edit agree to the last digit."""
    edit = build_edit(DNEConfig(family=["spectral"]), (1, 32, 32))
    facts = {"encoder": "0" * 64, "attributes": ["group"], "labels": ["other"], "data": "1" * 64}
    (tmp_path / "edit.safetensors").write_bytes(save_edit(edit, facts))
    options = [f"edit={tmp_path / 'edit.safetensors'}", words[0], *MODEL, "bootstrap=20", f"out={tmp_path / 'm'}"]
    out = edit_measure(compose("edit measure", options))
    found = json.loads((out / "measure.json").read_text())
    assert "trained against encoder 000000000000" in found["transfer"]["encoder"]
    assert found["transfer"]["labels"] == ["other"]
    record = found["attributes"]["group"]
    assert list(found["attributes"]) == ["group"]
    assert record["edit"] == record["none"]
    said = [line for line in measure_lines(out) if line.startswith("transfer: ")]
    assert len(said) == 3
    page = (out / "report.html").read_text()
    assert "Measured elsewhere than it was trained" in page
    assert "the edit was trained on other images" in page


def test_inspecting_without_data_gives_the_pattern_itself(tmp_path):
    path = make_edit(tmp_path / "edit.safetensors", scale=3.0, history=[{"epoch": 1, "objective": 0.5}])
    record = edit_inspect(compose("edit inspect", [f"edit={path}", f"out={tmp_path / 'out'}"]))
    plane = load_edit(path).edit.plane().detach().numpy()
    assert record["own"]["max_grey"] == pytest.approx(255 * np.abs(plane).max(), rel=1e-5)
    assert record["own"]["l2"] == pytest.approx(np.sqrt((plane.astype(float) ** 2).sum()), rel=1e-5)
    assert record["visibility"] is None
    text, page = read(tmp_path / "out" / "inspect.html")
    assert "Added pattern (lowres)" in text
    assert all(address.startswith("data:image/png") for address in page.loads)


def test_inspecting_on_data_counts_grey_levels_and_shows_images_only_when_asked(prepared, tmp_path):
    path = make_edit(tmp_path / "edit.safetensors", family="residual", scale=4.0)
    words = [f"edit={path}", f"data={prepared}", "n_images=40"]
    record = edit_inspect(compose("edit inspect", [*words, f"out={tmp_path / 'plain'}"]))
    images = PreparedData.open(prepared).images()
    rows = np.unique(np.linspace(0, len(images) - 1, 40).astype(int))
    before = images.batch(rows)
    with torch.no_grad():
        change = (load_edit(path).edit(before) - before).abs()
    assert record["visibility"]["max_grey"] == pytest.approx(255 * float(change.max()), rel=1e-5)
    assert record["visibility"]["n"] == 40
    plain, _ = read(tmp_path / "plain" / "inspect.html")
    assert "Where images change" in plain
    assert "Image 1" not in plain
    edit_inspect(compose("edit inspect", [*words, "show_images=true", f"out={tmp_path / 'shown'}"]))
    assert "Image 1" in (tmp_path / "shown" / "inspect.html").read_text()
    with pytest.raises(InputError, match="show_images"):
        edit_inspect(compose("edit inspect", [f"edit={path}", "show_images=true"]))


def test_curves_of_a_page_are_the_functions_that_are_applied():
    edit = build_edit(DNEConfig(family=["tone"]), (1, 32, 32))
    edit.load_vector(torch.randn(edit.n_parameters, generator=torch.Generator().manual_seed(0)) * 0.05)
    levels, curve = tone_curve(edit, 11)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    expected = np.interp(image.numpy().ravel(), levels, curve[0])
    with torch.no_grad():
        np.testing.assert_allclose(edit.change(image).numpy().ravel(), expected, atol=2e-2)
    spectral = build_edit(DNEConfig(family=["spectral"]), (1, 64, 64))
    frequency, gain = radial_gain(spectral)
    np.testing.assert_allclose(gain, 1.0, atol=1e-6)
    assert 0 < frequency[0] < frequency[-1] <= 0.5


def test_copies_are_edited_and_failures_are_listed(trained, cohort_folder, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    names = sorted(path.name for path in (cohort_folder / "images").glob("*.png"))[:3]
    for name in names:
        shutil.copy(cohort_folder / "images" / name, source / name)
    said = edit_apply(compose("edit apply", [f"edit={trained.root}", f"images={source}", f"out={tmp_path / 'out'}"]))
    assert "3 edited copies" in said
    edit = load_edit(trained.root).edit
    for name in names:
        before = torch.from_numpy(np.array(Image.open(source / name), dtype=np.float32) / 255)[None, None]
        with torch.no_grad():
            expected = edit(before)[0, 0].numpy() * 255
        np.testing.assert_allclose(np.array(Image.open(tmp_path / "out" / name), dtype=float), expected, atol=0.51)
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(RunError, match="1 of 4 files could not be edited; 0 edited copies in") as caught:
        edit_apply(compose("edit apply", [f"edit={trained.root}", f"images={source}", f"out={tmp_path / 'out'}"]))
    assert caught.value.exit_code == 4
    assert "left as they are (3)" in caught.value.summary
    assert caught.value.details[0].startswith("broken.png: ")
