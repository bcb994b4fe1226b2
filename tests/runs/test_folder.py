"""The run folder: atomic writes, identity of a configuration, the store, and what is refused."""

import errno
import json
import os
import threading

import pytest
import torch

from evenhand.errors import DiskFullError, InputError, RunError
from evenhand.files import write_text
from evenhand.runs.folder import FileStore, RunFolder, identity, write_json


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    target = tmp_path / "results.csv"
    write_text(target, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"results\.csv") as caught:
        write_text(target, "new")
    assert caught.value.exit_code == 4
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.csv"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})
    assert os.listdir(tmp_path) == []


def test_identity_ignores_where_a_run_writes_and_nothing_that_changes_numbers():
    base = {"seed": 0, "out": "a", "trainer": {"progress": True, "lr": 1.0}}
    assert identity(base) == identity({"seed": 0, "out": "b", "trainer": {"progress": False, "lr": 1.0}})
    assert identity(base) != identity({"seed": 1, "out": "a", "trainer": {"progress": True, "lr": 1.0}})
    assert identity(base) != identity({"seed": 0, "out": "a", "trainer": {"progress": True, "lr": 2.0}})


def test_a_mask_counts_by_what_its_file_holds(tmp_path):
    base = {"method": {"name": "finetune", "mask": "a/mask.json"}, "mask": "5f"}
    assert identity(base) == identity({"method": {"name": "finetune", "mask": "b/mask.json"}, "mask": "5f"})
    assert identity(base) != identity({"method": {"name": "finetune", "mask": "a/mask.json"}, "mask": "60"})
    assert identity({"method": {"mask": "full"}}) != identity({"method": {"mask": "head"}})
    RunFolder.begin(tmp_path / "run", base, "")
    with pytest.raises(InputError, match=r"another configuration \(mask was 5f, now 60\)"):
        RunFolder.begin(tmp_path / "run", {"method": {"name": "finetune", "mask": "b/mask.json"}, "mask": "60"}, "")


def test_begin_finds_the_same_run_again_and_refuses_another(tmp_path):
    config = {"seed": 0, "method": {"name": "linear_probe", "l2": 0.1}}
    run = RunFolder.begin(tmp_path / "run", config, "seed: 0\n")
    assert run.info["status"] == "running"
    started = run.info["started"]
    assert RunFolder.begin(tmp_path / "run", config, "").info["started"] == started
    other = {"seed": 0, "method": {"name": "linear_probe", "l2": 0.2}}
    with pytest.raises(InputError, match=r"another configuration \(method\.l2 was 0\.1, now 0\.2\)"):
        RunFolder.begin(tmp_path / "run", other, "")
    assert run.info["config"] == config


def test_begin_refuses_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        RunFolder.begin(tmp_path, {"seed": 0}, "")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_second_process_waits_for_the_first(tmp_path):
    run, order = RunFolder(tmp_path), []

    def second():
        with RunFolder(tmp_path).locked():
            order.append("second")

    with run.locked():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_store_round_trips_tensors_and_survives_a_torn_log_line(tmp_path):
    store = FileStore(tmp_path)
    assert store.get("checkpoint") is None
    value = {"weights": {"w": torch.arange(3.0)}, "epoch": 2, "history": [{"loss": 0.5}]}
    store.put("checkpoint", value)
    loaded = store.get("checkpoint")
    assert torch.equal(loaded["weights"]["w"], value["weights"]["w"])
    assert loaded["epoch"] == 2
    store.append("log", {"epoch": 0})
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"epoch": 1, "lo')
    store.append("log", {"epoch": 1})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0}, {"epoch": 1}]


def test_store_says_which_state_is_broken(tmp_path):
    store = FileStore(tmp_path)
    store.put("checkpoint", {"epoch": 1})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read"):
        store.get("checkpoint")


def test_a_read_only_store_writes_nothing(tmp_path):
    store = FileStore(tmp_path / "ck", read_only=True)
    store.put("a", {"x": 1})
    store.append("log", {"x": 1})
    assert not (tmp_path / "ck").exists()


def test_seeds_are_listed_in_numeric_order(tmp_path):
    for seed in (10, 2):
        RunFolder.begin(tmp_path / f"seed={seed}", {"seed": seed}, "")
    assert [run.root.name for run in RunFolder(tmp_path).seeds] == ["seed=2", "seed=10"]
