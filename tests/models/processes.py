"""A test module's own ``spend(*arguments)`` in a process of its own, to be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SPEND = """
import importlib.util, sys
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("spending", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.spend(*sys.argv[2:])
"""


def start_spending(file: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start it; a forked process could hang on torch's threads."""
    command = [sys.executable, "-c", _SPEND, file, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def spend_and_kill(file: str, *arguments: object, server: Any, stop_at: int) -> None:
    """Start it, kill it when the server has seen so many images, and wait until the server has answered nobody any more."""
    child = start_spending(file, *arguments)
    while child.poll() is None and server.n_images < stop_at:
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    while server.at_once:
        time.sleep(0.001)
