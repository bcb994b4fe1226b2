"""A run that was killed ends with the very bits of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from evenhand.errors import InputError
from evenhand.training import GroupDROLoss, train_model

EVERYTHING = {"max_epochs": 4, "ema_decay": 0.6, "mixup": 0.3, "random_erasing": 0.5, "accumulate": 2}
EVERYTHING |= {"schedule": "plateau", "plateau_patience": 0}
CASES = {
    "everything": EVERYTHING,
    "sgd and early stopping": {"max_epochs": 6, "optimizer": "sgd", "early_stopping": 3, "lr": 0.05, "warmup_epochs": 1},
    "last": {"max_epochs": 4, "monitor": "last", "clip_norm": 0.1, "precision": "bf16"},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run(lab, store, options, report=lambda text: None, fail_at=None, model=None):
    train, val = lab.split(40, channels=3, fail_at=fail_at), lab.split(20, seed=1, channels=3)
    cells = np.arange(40) % 3
    loss = None if options.get("mixup") else GroupDROLoss("binary", np.bincount(cells), step_size=0.2)
    setup = lab.setup(store=store, augment="photograph", report=report, **options)
    return train_model(model or lab.model(channels=3), train, val, setup, loss=loss, cells=cells, balance=True), loss


@pytest.mark.parametrize(
    ("name", "kill"),
    [("everything", "after epoch 1"), ("everything", "in epoch 3"), ("sgd and early stopping", "in epoch 1"), ("last", "after epoch 3")],
)
def test_killed_and_continued_is_bit_identical(lab, name, kill):
    whole, broken = lab.MemoryStore(), lab.MemoryStore()
    expected, expected_loss = run(lab, whole, CASES[name])
    epoch = int(kill[-1])

    def report(text):
        if kill.startswith("after") and text.startswith(f"epoch {epoch}/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lab, broken, CASES[name], report, fail_at=3 * epoch if kill.startswith("in") else None)
    done = epoch if kill.startswith("after") else epoch - 1
    assert (broken.get("checkpoint") or {"epoch": 0})["epoch"] == done
    got, got_loss = run(lab, broken, CASES[name])
    assert got.history == expected.history
    assert (got.best_epoch, got.stopped_epoch) == (expected.best_epoch, expected.stopped_epoch)
    assert same(got.model.state_dict(), expected.model.state_dict())
    assert same(broken.get("checkpoint"), whole.get("checkpoint"))
    assert expected_loss is None or torch.equal(got_loss.q, expected_loss.q)


def test_a_finished_run_is_not_trained_again(lab):
    store = lab.MemoryStore()
    first, _ = run(lab, store, {})
    puts = store.puts
    second, _ = run(lab, store, {}, fail_at=2)
    assert store.puts == puts
    assert second.history == first.history
    assert same(second.model.state_dict(), first.model.state_dict())


def test_a_checkpoint_of_another_run_is_refused(lab):
    store = lab.MemoryStore()
    run(lab, store, {})
    with pytest.raises(InputError, match="belongs to a training run with other data, options or architecture"):
        run(lab, store, {"lr": 0.02})
    run(lab, store, {"progress": True})


@pytest.mark.slow
@pytest.mark.slow_sample
@pytest.mark.timeout(300)
def test_kill_9_in_the_middle_of_an_epoch(lab, tmp_path, monkeypatch):
    """A real process, killed while it reads its third epoch; this one goes on, and trains another that was never disturbed."""
    here = Path(__file__).parent
    monkeypatch.syspath_prepend(str(here))
    from resume_worker import work

    command = [sys.executable, str(here / "resume_worker.py"), str(tmp_path / "broken"), "0.3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as victim:
        while not (line := victim.stdout.readline()).startswith("epoch 2/"):
            assert line, "the process ended by itself"
        time.sleep(0.4)
        victim.send_signal(signal.SIGKILL)
    assert lab.FolderStore(tmp_path / "broken").get("checkpoint")["epoch"] == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, undisturbed = [], []
        work(tmp_path / "broken", 0, resumed.append)
        work(tmp_path / "whole", 0, undisturbed.append)
    finally:
        torch.set_num_threads(threads)
    assert resumed == undisturbed[2:]
    assert same(*[lab.FolderStore(tmp_path / store).get("checkpoint") for store in ("broken", "whole")])
