"""Two gloo processes train the edit of one, by gradient and by queries."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_worker import CASES, trained
from query_worker import OPTIMIZERS, model, searched

from evenhand.methods.editing.processes import Processes
from evenhand.models import LocalEmbedder

HERE = Path(__file__).parent


def run_two(worker, folder):
    """What each of two processes of a worker saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    common = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(HERE / worker), str(folder)]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return (torch.load(folder / f"out{rank}.pt", weights_only=True) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.slow_sample
def test_two_processes_train_the_edit_of_one(tmp_path):
    first, second = run_two("edit_worker.py", tmp_path)
    for name in CASES:
        alone = trained(name)
        assert torch.equal(first[name]["vector"], second[name]["vector"])
        assert float(alone["vector"].abs().max()) > 1e-3
        torch.testing.assert_close(first[name]["vector"], alone["vector"], rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(first[name]["history"], alone["history"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        assert (first[name]["wrote"], second[name]["wrote"]) == (True, False)


@pytest.mark.slow
@pytest.mark.slow_sample
def test_two_processes_search_the_edit_of_one(tmp_path):
    """Every way of searching: the same images are counted, the same edit is kept, and each process embeds its share."""
    first, second = run_two("query_worker.py", tmp_path)
    for name in OPTIMIZERS:
        alone, ours = searched(name, LocalEmbedder(model(), "fp32")), first[name]
        assert float(alone["vector"].abs().max()) > 1e-3
        torch.testing.assert_close(ours["vector"], alone["vector"], rtol=1e-3, atol=1e-5)
        assert [ours[key] for key in ("images", "n_sent", "kept", "wrote")] == [alone[key] for key in ("images", "n_sent", "kept", "wrote")]
        for one, other in zip(ours["history"], alone["history"], strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert second["n_images"] == pytest.approx(first["n_images"] / 2, rel=0.05)


@pytest.mark.parametrize(("n", "world"), [(5, 2), (1, 3), (8, 4), (7, 3)])
def test_shares_are_the_batch_in_order(n, world):
    rows = np.arange(n)
    assert np.concatenate([Processes(rank, world).share(rows) for rank in range(world)]).tolist() == rows.tolist()
