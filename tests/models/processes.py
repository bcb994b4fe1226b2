"""A test module's own ``spend(*arguments)`` in a process of its own, to be killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
