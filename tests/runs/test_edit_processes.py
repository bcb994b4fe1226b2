"""Edits made by commands on two processes: the result of one process, written and told once; kills, errors and servers."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from evenhand.config import compose
from evenhand.data.datasets import PreparedData
from evenhand.edits.artifact import load_edit
from evenhand.errors import ConfigError
from evenhand.runs.edit import edit_head, edit_train, head_lines
from evenhand.runs.folder import RunFolder
from evenhand.runs.train import train
from tests.runs.conftest import TINY
from tests.runs.test_processes import numbers

MODEL = [word for word in TINY if not word.startswith("audit.")]
QUICK = ["method.family=[spectral]", "method.reference_images=60", "method.controls=false", "method.utility=0"]
LAST = ["method.query_images=16", "method.validation_images=0", *QUICK]  # the last edit is kept, and no start is best
METHODS = {
    "dne": ["method=dne", "method.epochs=2", "method.batch_size=64", "method.lr=0.5", *QUICK],
    "cma": ["method=gezo", "method.optimizer=cma", "method.population=4", "method.rounds=3", *LAST],
    "surrogate": ["method=gezo", "method.draws=4", "method.surrogate_steps=10", "method.surrogate_width=4", "method.edit_steps=2",
                  "method.rounds=3", *LAST],
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.timeout(400)


def command(*words):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "evenhand", *map(str, words)]


def on_two(*words):
    return subprocess.run(command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=280)


def options(prepared, folder, *more):
    """With embeddings of its own, so that nothing is read that the other command computed."""
    return [f"data={prepared}", "data.attributes=[group,age]", *MODEL, *more, f"embeddings={folder}-embeddings", f"out={folder}"]


def shared_out(done):
    """How many images the command says that both processes embedded."""
    found = re.findall(r"^(\d+) images were embedded on 2 processes$", done.stderr, re.MULTILINE)
    return int(found[0]) if found else 0


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_same_edit(ours, theirs):
    """The kept edit, and what the run says of it."""
    vectors = [load_edit(root).edit.vector().numpy() for root in (ours, theirs)]
    assert np.abs(vectors[1]).max() > 1e-4
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-5)
    reports = [json.loads((root / "edit.json").read_text()) for root in (ours, theirs)]
    for report in reports:  # a batch of two processes is one request of twice the images
        report.get("search", {}).get("beside", {}).pop("requests", None)
    assert numbers(reports[0]) == pytest.approx(numbers(reports[1]), rel=1e-3, abs=1e-3)
    assert reports[0].get("search", {}).get("n_sent") == reports[1].get("search", {}).get("n_sent")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dne", pytest.param("cma", marks=pytest.mark.slow_sample), "surrogate"])
def test_two_processes_train_the_edit_of_one_and_tell_it_once(method, prepared, tmp_path):
    alone = edit_train(compose("edit train", options(prepared, tmp_path / "one", *METHODS[method])))
    words = options(prepared, tmp_path / "two", *METHODS[method])
    done = on_two("edit", "train", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two'}\n"
    said = [line for line in done.stderr.splitlines() if line]
    assert len(said) == len(set(said)), done.stderr
    assert_same_edit(tmp_path / "two", alone.root)
    assert sorted(files(tmp_path / "two")) == sorted(files(alone.root))
    n_data = len(PreparedData.open(prepared))
    searched = json.loads((alone.root / "edit.json").read_text()).get("search", {"images": 0})["images"]
    assert shared_out(done) == (searched + 2 * n_data if method != "dne" else 0), "queries, and all images unedited and edited"
    if method == "cma":  # a finished run is found finished by both
        written = files(tmp_path / "two")
        again = on_two("edit", "train", *words)
        assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
        assert files(tmp_path / "two") == written


@pytest.mark.slow
def test_a_search_on_two_processes_goes_on_after_kill_9(prepared, tmp_path):
    many = [*METHODS["cma"], "method.rounds=60", "method.measure=false"]
    alone = edit_train(compose("edit train", options(prepared, tmp_path / "one", *many)))
    words = options(prepared, tmp_path / "two", *many)
    running = subprocess.Popen(command("edit", "train", *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while not (tmp_path / "two" / "checkpoints" / "search.pt").exists():
        assert time.monotonic() < end, "it never began"
        time.sleep(0.01)
    family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    running.wait()
    psutil.wait_procs(family[1:], timeout=60)
    assert RunFolder(tmp_path / "two").info["status"] == "running", "it was over before it was killed"
    done = on_two("edit", "train", *words)
    assert done.returncode == 0, done.stderr
    vectors = [load_edit(root).edit.vector().numpy() for root in (tmp_path / "two", alone.root)]
    np.testing.assert_allclose(*vectors, rtol=1e-2, atol=1e-4)
    found, whole = (json.loads((root / "edit.json").read_text())["search"] for root in (tmp_path / "two", alone.root))
    assert found["images"] == whole["images"]
    assert whole["n_sent"] <= found["n_sent"] <= whole["n_sent"] + 16, "one request was in flight, and nothing else is sent again"
    edit_train(compose("edit train", [*words, "method.rounds=62"]))
    longer = json.loads((tmp_path / "two" / "edit.json").read_text())["search"]
    assert longer["rounds"] == 62, "one process goes on with what two began"
    assert longer["n_sent"] - found["n_sent"] == longer["images"] - found["images"] > 0


@pytest.mark.slow
def test_a_run_with_a_probe_on_two_processes_is_audited_as_one(config, prepared, tmp_path):
    words = [*METHODS["cma"], "method.measure=false", "data.attributes=[group,age]"]
    alone = train(config(*words, f"embeddings={tmp_path / 'one-embeddings'}", f"out={tmp_path / 'one'}"))
    own = [f"embeddings={tmp_path / 'two-embeddings'}", f"out={tmp_path / 'two'}"]
    done = on_two("train", f"data={prepared}", *TINY, *words, *own)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Report: {tmp_path / 'two' / 'report.html'}\n{tmp_path / 'two'}\n"
    assert shared_out(done) > 0
    ours, theirs = (numbers(json.loads((root / "audit.json").read_text())) for root in (tmp_path / "two", alone.root))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert sorted(files(tmp_path / "two")) == sorted(files(alone.root))


@pytest.mark.slow
def test_heads_are_fitted_once_and_told_once(prepared, tmp_path):
    alone = edit_head(compose("edit head", options(prepared, tmp_path / "one")))
    done = on_two("edit", "head", *options(prepared, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*head_lines(alone), str(tmp_path / "two")]
    assert shared_out(done) == len(PreparedData.open(prepared))
    ours, theirs = (numbers(json.loads((root / "attribute_head.json").read_text())) for root in (tmp_path / "two", alone))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert sorted(files(tmp_path / "two")) == sorted(files(alone))


@pytest.mark.slow
@pytest.mark.parametrize("words", [("edit", "train", *METHODS["cma"]), ("edit", "head")], ids=["train", "head"])
def test_what_is_refused_on_two_processes_is_told_once_and_nobody_waits(words, prepared, tmp_path):
    done = on_two(*words, *options(prepared, tmp_path / "two", "method.attributes=[grup]"))
    assert done.returncode != 0
    assert (done.stdout, done.stderr.count("did you mean 'group'")) == ("", 1), done.stderr
    assert not (tmp_path / "two").exists()


def test_a_server_is_searched_from_one_process(server, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    words = [*METHODS["cma"], f"model={server.url}", f"out={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"4 were started, which make no server faster; .* \(method.concurrency="):
        edit_train(compose("edit train", [f"data={prepared}", *words]))
    with pytest.raises(ConfigError, match="without torchrun"):
        train(compose("train", [f"data={prepared}", *words]))
    assert not (tmp_path / "run").exists()
    assert server.n_images == 0


def test_heads_of_a_server_are_fitted_by_the_first_process_and_the_others_leave(server, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [f"data={prepared}", f"model={server.url}", "trainer.accelerator=cpu", "trainer.progress=false"]
    words += ["data.attributes=[group]", f"embeddings={tmp_path / 'embeddings'}", f"out={tmp_path / 'head'}"]
    monkeypatch.setenv("RANK", "1")
    edit_head(compose("edit head", words))
    assert (server.n_images, (tmp_path / "head").exists()) == (0, False)
    monkeypatch.setenv("RANK", "0")
    edit_head(compose("edit head", words))
    assert server.n_images > 0
    assert (tmp_path / "head" / "attribute_head.json").exists()
