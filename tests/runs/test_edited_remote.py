"""Runs whose encoder is a server: only what is needed is sent, once, and a server that dies costs nothing twice."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evenhand.config import compose
from evenhand.config.editing import ServeConfig
from evenhand.data.datasets import PreparedData
from evenhand.edits.artifact import load_edit
from evenhand.errors import InputError, MethodError, RunError
from evenhand.runs.edit import edit_head, edit_train, read_heads
from evenhand.runs.edit_measure import edit_measure, measure_lines
from evenhand.runs.folder import RunFolder
from evenhand.runs.predict import predict
from evenhand.runs.train import train
from evenhand.serve.app import EmbeddingApp
from evenhand.serve.encoder import load_served_model
from evenhand.serve.limits import Limits
from evenhand.serve.run import serving
from tests.models import faulty_server as faulty
from tests.runs.conftest import TINY
from tests.runs.test_edited import make_edit

OPTIONS = ["trainer.accelerator=cpu", "trainer.progress=false"]
AUDIT = [word for word in TINY if word.startswith("audit.")]
GEZO = [
    "method=gezo", "method.optimizer=cma", "method.query_images=16", "method.population=4", "method.validation_images=20",
    "method.refit_every=2",
    "method.reference_images=40", "method.controls=false", "method.utility=0", "method.rounds=4", "method.concurrency=2", "model.retries=1",
]


def test_a_probe_on_a_server_sends_every_image_once(server, prepared, tmp_path):
    data = PreparedData.open(prepared)
    made = make_edit(tmp_path / "edit.safetensors", scale=3.0)
    words = [f"data={prepared}", f"model={server.url}", *OPTIONS, *AUDIT, "method=linear_probe", "method.l2=0.01"]
    words += [f"embeddings={tmp_path / 'cache'}", f"edit={made}"]
    run = train(compose("train", [*words, f"out={tmp_path / 'run'}"]))
    assert len(server.images) >= 1
    sent = server.n_images
    assert len(data) <= sent <= len(data) + 200  # the rest asks whether the server answers alike
    train(compose("train", [*words, "seed=1", f"out={tmp_path / 'again'}"]))
    assert server.n_images <= sent + 200 < 2 * len(data) + 200
    known = pd.read_parquet(run.root / "predictions.parquet")
    out = predict(compose("predict", [f"model={run.root}", f"data={prepared}", "split=test", f"out={tmp_path / 'p'}"]))
    got = pd.read_parquet(out / "predictions.parquet")["y_score"]
    np.testing.assert_allclose(got, known[known["split"] == "test"]["y_score"], atol=1e-6)


@pytest.fixture(scope="module")
def served(prepared, tmp_path_factory):
    """The demo encoder behind the protocol, an edit, a folder for its embeddings, and how many images were asked for."""
    folder, asked = tmp_path_factory.mktemp("served"), []
    model = load_served_model(ServeConfig(model="evenhand_demo_vit", grid=[32, 32], accelerator="cpu", threads=1))

    def embed(images):
        asked.append(len(images))
        return model.embed(images)

    app = EmbeddingApp(replace(model, embed=embed), Limits())
    with serving(app.gate) as address:
        yield address, make_edit(folder / "edit.safetensors", scale=3.0), folder, asked
    app.close()


BASELINES = {
    "eo_head": [], "leace": [], "reweight": [], "thresholds": [],
    "least_encoding": ["method.given_label=false"],  # 39 validation rows are too few to read it within each label
}


@pytest.mark.parametrize("method", BASELINES)
def test_what_else_a_user_of_an_api_would_take_is_the_same_there_as_here(served, prepared, method, tmp_path):
    """Each baseline, on edited images: the scores and decisions are those of the same encoder in this process."""
    address, made, folder, asked = served
    words = [f"data={prepared}", "model.precision=fp32", *OPTIONS, *AUDIT, f"method={method}", *BASELINES[method], f"edit={made}"]
    there = train(compose("train", [*words, f"model={address}", f"embeddings={folder / 'there'}", f"out={tmp_path / 'there'}"]))
    here = train(compose("train", [*words, "model=evenhand_demo_vit", f"embeddings={folder / 'here'}", f"out={tmp_path / 'here'}"]))
    ours, theirs = (pd.read_parquet(run.root / "predictions.parquet").set_index("image") for run in (here, there))
    np.testing.assert_allclose(theirs.loc[ours.index, "y_score"], ours["y_score"], atol=2e-3)
    assert ours["y_score"].std() > 1e-3
    assert ("y_pred" in ours) == (method == "thresholds")
    if method == "thresholds":
        assert (theirs.loc[ours.index, "y_pred"] == ours["y_pred"]).mean() > 0.98
    assert there.info["edit"]["hash"] == here.info["edit"]["hash"] == load_edit(made).fingerprint
    n = len(PreparedData.open(prepared))
    assert n <= sum(asked) <= n + 200, "every image is sent once, not once a method"


def test_fine_tuning_needs_weights(server, prepared, tmp_path):
    words = [f"data={prepared}", f"model={server.url}", *OPTIONS, *AUDIT, "method=finetune", f"out={tmp_path / 'run'}"]
    with pytest.raises(MethodError, match="gives embeddings only"):
        train(compose("train", words))
    assert not (tmp_path / "run").exists()


def searching(server, prepared, out, *more):
    return [
        f"data={prepared}", f"model={server.url}", "data.attributes=[group]", *OPTIONS, *GEZO, *more,
        f"embeddings={out}-cache", f"out={out}",
    ]


def dying(after=20):
    infer, calls = faulty.Handler.infer, []

    def infer_or_die(self, body, fault):
        calls.append(1)
        if len(calls) > after:
            self.close_connection = True
            self.connection.close()
        else:
            infer(self, body, fault)

    return infer_or_die


def test_a_search_goes_on_where_the_server_has_another_address(server, prepared, tmp_path, monkeypatch):
    out = tmp_path / "moved"
    whole = edit_train(compose("edit train", searching(server, prepared, tmp_path / "whole")))
    with monkeypatch.context() as patched:
        patched.setattr(faulty.Handler, "infer", dying())
        with pytest.raises(RunError):
            edit_train(compose("edit train", searching(server, prepared, out)))
    sent = RunFolder(out).info["config"]["model"]["url"]
    with faulty.serving() as other:
        other.max_batch, other.metadata = 64, {**server.metadata, "versions": ["9"]}
        assert other.url != sent
        with pytest.raises(InputError, match="another configuration"):
            edit_train(compose("edit train", searching(other, prepared, out, "seed=1")))
        with pytest.raises(InputError, match="another"):
            edit_train(compose("edit train", searching(other, prepared, out)))  # another model is behind it
        other.metadata = server.metadata
        moved = edit_train(compose("edit train", searching(other, prepared, out)))
        assert other.n_images > 0
        assert RunFolder(out).info["config"]["model"]["url"] == other.url
    assert load_edit(moved.root).fingerprint == load_edit(whole.root).fingerprint
    with pytest.raises(InputError, match="another configuration"):  # a finished search is of the server that it asked
        edit_train(compose("edit train", searching(server, prepared, out)))


def test_a_price_per_request_is_said_before_and_billed_after(server, prepared, tmp_path, caplog):
    caplog.set_level("INFO", logger="evenhand")
    words = searching(server, prepared, tmp_path / "run", "method.price=2", "method.price_per_request=0.5", "method.measure=false")
    run = edit_train(compose("edit train", words))
    said = json.loads((run.root / "edit.json").read_text())["search"]
    beside = said["beside"]
    assert len(server.images) == said["requests"] + beside["requests"]["plain"] + 4, "the rest asks whether the server answers alike"
    assert said["cost"] == pytest.approx(said["n_sent"] * 0.002 + said["requests"] * 0.5)
    assert beside["cost"] == pytest.approx(beside["images"] * 0.002 + sum(beside["requests"].values()) * 0.5)
    assert any("images to embed, at most" in line and "at 2 per 1000 images and 0.5 per request" in line for line in caplog.messages)
    assert f"{said['n_sent']} images were sent in {said['requests']} requests, {said['cost']:.2f} at 2 per 1000" in caplog.text
    page = (run.root / "report.html").read_text()
    assert "Cost at 2 for 1000 images and 0.5 for a request." in page
    assert f"{said['cost'] + beside['cost']:.2f}" in page


def test_a_server_that_dies_in_a_search_costs_nothing_twice(server, prepared, tmp_path, monkeypatch):
    whole = edit_train(compose("edit train", searching(server, prepared, tmp_path / "whole")))
    spent = server.n_images
    server.n_images = 0
    with monkeypatch.context() as patched:
        patched.setattr(faulty.Handler, "infer", dying())
        with pytest.raises(RunError) as caught:
            edit_train(compose("edit train", searching(server, prepared, tmp_path / "cut")))
    assert caught.value.exit_code == 4
    assert RunFolder(tmp_path / "cut").info["status"] == "failed"
    resumed = edit_train(compose("edit train", searching(server, prepared, tmp_path / "cut")))
    assert load_edit(resumed.root).fingerprint == load_edit(whole.root).fingerprint
    assert server.n_images <= spent + 100  # asking anew whether the server answers alike is all that comes on top


@contextmanager
def demo_server(**options):
    """What ``evenhand serve model=demo`` serves, and its address."""
    model = load_served_model(ServeConfig(model="demo", accelerator="cpu", **options))
    app = EmbeddingApp(model, Limits())
    try:
        with serving(app.gate) as address:
            yield model, address
    finally:
        app.close()


def measured(run, prepared, model, out, *more):
    """What `edit measure` says of the encoder and of the old head of 'group'."""
    words = [f"edit={run.root}", f"data={prepared}", f"model={model}", *OPTIONS, "bootstrap=0", "split=val", f"embeddings={out}-cache"]
    place = edit_measure(compose("edit measure", [*words, *more, f"out={out}"]))
    said = json.loads((place / "measure.json").read_text())
    lines = [line for line in measure_lines(place) if line.startswith(("transfer", "old head"))]
    return said["transfer"]["encoder"], said["old_heads"]["group"], lines


SMALL = ["data.attributes=[group]", "method.family=[tone]", "method.measure=false", "method.utility=0", "method.reference_images=40"]


def test_weights_are_one_encoder_here_and_behind_our_server(prepared, tmp_path):
    dne = ["model=demo", "method=dne", "method.epochs=1", *SMALL, *OPTIONS]
    here = edit_train(compose("edit train", [f"data={prepared}", *dne, f"out={tmp_path / 'here'}"]))
    with demo_server(grid=[32, 32]) as (model, address):
        gezo = [f"model={address}", *OPTIONS, *GEZO, *SMALL, f"embeddings={tmp_path / 'cache'}", f"out={tmp_path / 'there'}"]
        there = edit_train(compose("edit train", [f"data={prepared}", *gezo]))
        heads = edit_head(compose("edit head", [f"data={prepared}", f"model={address}", *OPTIONS, f"out={tmp_path / 'heads'}"]))
        weights = model.parameters["encoder"]
        assert load_edit(here.root).facts["encoder"] == load_edit(there.root).facts["encoder"] == here.info["model_hash"] == weights
        assert there.info["model_hash"] != weights, "a run says what the server said of its model"
        for name, run, used in (("1", here, address), ("2", there, address), ("3", there, "demo"), ("4", here, "demo")):
            assert measured(run, prepared, used, tmp_path / name) == (None, "given", [])
        assert measured(here, prepared, address, tmp_path / "5", f"attribute_head={heads}")[1] == "given"
        probe = ["method=linear_probe", "method.l2=0.01", *AUDIT, *OPTIONS, f"edit={here.root}", f"out={tmp_path / 'probe'}"]
        run = train(compose("train", [f"data={prepared}", f"model={address}", f"embeddings={tmp_path / 'cache'}", *probe]))
        assert run.info["edit"]["transfer"] is None
    assert read_heads(heads, weights)["group"].weight.shape == (2, model.dim)


def test_weights_behind_an_edit_or_a_coarser_grid_are_another_encoder(prepared, tmp_path):
    made = make_edit(tmp_path / "edit.safetensors", scale=3.0)
    dne = ["model=demo", "method=dne", "method.epochs=1", *SMALL, *OPTIONS]
    run = edit_train(compose("edit train", [f"data={prepared}", *dne, f"out={tmp_path / 'run'}"]))
    for options in ({"grid": [16, 16]}, {"edit": str(made)}):
        with demo_server(**options) as (_, address):
            reason, head, lines = measured(run, prepared, address, tmp_path / next(iter(options)))
        assert "trained against encoder" in reason
        assert head == "fitted here"
        assert lines[0].startswith("old head of group: fitted here")
    with demo_server() as (_, address):
        reason = measured(run, prepared, address, tmp_path / "normalised", "model.mean=[0.0]", "model.std=[2.0]")[0]
        assert "trained against encoder" in reason, "what the weights see is normalised twice"
