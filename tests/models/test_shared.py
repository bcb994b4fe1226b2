"""Real gloo processes around one encoder: the embeddings of one process, and nobody waits for a process that failed or is gone."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evenhand.errors import InputError
from evenhand.models import LocalEmbedder
from evenhand.models.shared import Relay

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("shared_worker", HERE / "shared_worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(case, folder, n=3):
    """The exit codes of all processes of a case, and what those that lived saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    command = [sys.executable, str(HERE / "shared_worker.py"), str(folder), case]
    running = [subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in range(n)]
    errors = [process.communicate(timeout=280)[1] for process in running]
    saved = [folder / f"out{rank}.pt" for rank in range(n)]
    codes = [process.returncode for process in running]
    return codes, [torch.load(path, weights_only=True) if path.exists() else None for path in saved], errors


def test_a_relay_needs_processes():
    with pytest.raises(InputError, match="use torchrun"):
        Relay(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.slow_sample
def test_three_processes_embed_as_one_and_an_error_ends_a_request_in_all(worker, tmp_path):
    codes, (first, *others), errors = started("works", tmp_path)
    assert codes == [0, 0, 0], errors
    alone = LocalEmbedder(worker.model(), "fp32")
    for n in worker.SIZES:
        torch.testing.assert_close(first["calls"][n], alone(worker.pictures(n)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["whole"], alone(worker.pictures(13)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["alone"], alone(worker.pictures(3)), rtol=1e-5, atol=1e-6)
    assert first["n"] == sum(worker.SIZES) + 13
    one, two, own, after = first["refused"]
    assert one.startswith("RunError: some processes could not embed their images (process 1: ValueError: a black image came first)")
    assert "(process 2: ValueError: a black image came first)" in two
    assert own == "ValueError: the first cannot"
    torch.testing.assert_close(after, alone(worker.pictures(6)), rtol=1e-5, atol=1e-6)
    assert all(f"process {rank}: its encoder has other weights" in first["weights"] for rank in (1, 2))
    assert "(process 2: precision is 'fp64'" in first["unbuilt"]
    assert first["failed"] == "ValueError: the first cannot"
    assert [other["helped"] for other in others] == [["nothing"] * 5] * 2


@pytest.mark.slow
def test_processes_that_help_end_where_the_first_is_gone(tmp_path):
    codes, (_, *others), errors = started("first_dies", tmp_path)
    assert codes == [-9, 0, 0], errors
    assert all(other["helped"].startswith("RunError: the first process is gone") for other in others)


@pytest.mark.slow
def test_the_first_ends_where_another_is_gone(tmp_path):
    codes, (first, _), errors = started("other_dies", tmp_path, 2)
    assert codes == [0, -9], errors
    assert first["said"].startswith("RunError: a process that embeds images is gone")
