"""One command on two processes: the audit of one process, written once."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from evenhand.runs.train import train

WORDS = ["method=finetune", "trainer.max_epochs=2", "trainer.optimizer=sgd", "trainer.lr=0.01", "data.batch_size=32"]


def numbers(value, name=""):
    """Every number of an audit but its provenance, by its place."""
    if isinstance(value, dict):
        return {place: n for key, part in value.items() if key != "provenance" for place, n in numbers(part, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {place: n for key, part in enumerate(value) for place, n in numbers(part, f"{name}/{key}").items()}
    return {name: value} if isinstance(value, (int, float)) else {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_end_with_the_audit_of_one_and_only_the_first_writes(config, prepared, tmp_path):
    from tests.runs.conftest import TINY

    alone = train(config(*WORDS, f"out={tmp_path / 'one'}"))
    out = tmp_path / "two" / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "evenhand", "train"]
    command += [f"data={prepared}", *TINY, *WORDS, f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    written = [{}, {}]
    for attempt in range(2):  # the second finds the run finished, on both processes
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=140, cwd=tmp_path / "one")
        assert done.returncode == 0, done.stderr
        written[attempt] = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert written[0] == written[1]
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == sorted(p.relative_to(alone.root) for p in alone.root.rglob("*"))
    ours, theirs = (numbers(json.loads((root / "audit.json").read_text())) for root in (out, alone.root))
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)  # a calibration slope of scores that differ by 1e-7 may be large
    scores = [pd.read_parquet(root / "predictions.parquet")["y_score"] for root in (out, alone.root)]
    assert (scores[0] - scores[1]).abs().max() < 1e-6
    assert os.listdir(tmp_path / "two") == ["run"]
