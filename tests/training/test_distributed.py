"""Two gloo processes give the evaluation and, where nothing is random, the training of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evenhand.training import predict_model
from evenhand.training.selection import pooled_auc

pytestmark = [pytest.mark.slow, pytest.mark.slow_sample]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes saved, and the folder they worked in."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(HERE / "distributed_worker.py"), str(folder)]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"out{rank}.pt", weights_only=True) for rank in (0, 1)], folder


@pytest.fixture
def one_thread():
    """Sums in the order of the workers, which have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(300)
def test_two_processes_score_the_same_rows_with_the_same_bits(lab, two, one_thread):
    split = lab.split(23)
    alone = predict_model(lab.model(), split.x, 4, torch.device("cpu"), "binary")
    for part in two[0]:
        assert np.array_equal(part["scores"].numpy(), alone)
        assert pooled_auc(split.y, part["scores"].numpy(), "binary") == pooled_auc(split.y, alone, "binary")


@pytest.mark.timeout(300)
def test_two_processes_train_like_one(lab, two, monkeypatch, one_thread):
    monkeypatch.syspath_prepend(str(HERE))
    from distributed_worker import exact

    outcome, loss = exact(lab.MemoryStore())
    for part in two[0]:
        for name, value in outcome.model.state_dict().items():
            assert torch.allclose(part["exact"][name], value, atol=1e-6)
        assert torch.allclose(part["q"], loss.q, atol=1e-6)
        for ours, theirs in zip(part["history"], outcome.history, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_processes_agree_and_only_the_first_writes(two):
    (first, second), folder = two
    for name in ("exact", "noisy", "again"):
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key])
    assert first["noisy_history"] == second["noisy_history"]
    assert all(torch.equal(first["again"][key], value) for key, value in first["noisy"].items())
    assert [(folder / f"noisy{rank}" / "checkpoint.pt").exists() for rank in (0, 1)] == [True, False]
