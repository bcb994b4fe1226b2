"""Real processes: killed, interrupted, and sharing one budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evenhand.search import load_study, records_of
from evenhand.search.storage import close_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).parent / "search_worker.py"


@pytest.fixture
def start(tmp_path):
    """Start the program; what it says comes through ``stdout``."""
    started = []

    def run(**orders):
        orders = {"out": str(tmp_path / "out"), "log": str(tmp_path / "log"), **orders}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(PROGRAM), json.dumps(orders)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def records(storage):
    study = load_study(str(storage))
    found = records_of(study.get_trials())
    close_storage(getattr(study._storage, "_backend", study._storage))
    return found


def wait_for(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["journal", pytest.param("postgresql", marks=pytest.mark.slow_sample)])
def test_kill_9_of_a_worker_loses_at_most_its_trial(start, lab, tmp_path, request, kind):
    """Two workers; the one that runs trial 2 is killed in its second epoch. All eight trials end."""
    storage = str(tmp_path / "study.journal") if kind == "journal" else request.getfixturevalue("postgres").database(f"kill_{os.getpid()}")
    process = start(config={"n_trials": 8, "workers": 2, "storage": storage}, pause=0.1, mishaps={"2": "die"})
    said, _ = process.communicate()
    assert process.returncode == 0, said
    trials = records(storage)
    assert [trial.state for trial in trials].count("complete") == 8
    lost = [trial for trial in trials if trial.state == "lost"]
    assert [trial.number for trial in lost] == [2]
    again = [trial for trial in trials if trial.params == lost[0].params and trial.state == "complete"]
    assert len(again) == 1
    trained, _ = lab.read_log(tmp_path / "log")
    assert len(trained) == 9
    killed = next(line["pid"] for line in trained if line["trial"] == 2)
    assert killed in {line["pid"] for line in trained} - {line["pid"] for line in trained if line["trial"] > 3}
    assert "trial 2: lost, and queued again" in said
    assert json.loads(said.splitlines()[-1])["n"] == 9


def test_a_worker_that_somebody_stops_is_started_again(start, lab, tmp_path):
    """The only worker left with work is asked to stop by another program: the search does not end short of its budget."""
    process = start(config={"n_trials": 4, "workers": 2}, pause=0.3)
    wait_for(lambda: len({line["pid"] for line in lab.read_log(tmp_path / "log")[0]}) == 2)
    for worker in {line["pid"] for line in lab.read_log(tmp_path / "log")[0]}:
        os.kill(worker, signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert [trial.state for trial in records(tmp_path / "out" / "study.journal")].count("complete") == 4
    assert "4 of 4 done" in said


def test_kill_9_of_everything_and_the_same_command_again(start, tmp_path):
    process = start(config={"n_trials": 6}, pause=0.2)
    while "3 of 6 done" not in (line := process.stdout.readline()):
        assert line
    time.sleep(0.3)
    process.kill()
    process.wait()
    said, _ = start(config={"n_trials": 6}).communicate()
    trials = records(tmp_path / "out" / "study.journal")
    assert [trial.state for trial in trials].count("complete") == 6
    assert [trial.state for trial in trials].count("lost") <= 1
    assert "goes on: 3 of 6 trials are done" in said


def test_ctrl_c_stops_all_workers_and_leaves_a_usable_study(start, lab, tmp_path):
    process = start(config={"n_trials": 50, "workers": 2}, pause=0.2)
    wait_for(lambda: len(lab.read_log(tmp_path / "log")[0]) >= 4)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode not in (0, -signal.SIGKILL)
    trials = records(tmp_path / "out" / "study.journal")
    assert not [trial for trial in trials if trial.state == "running"]
    waiting = [trial for trial in trials if trial.state == "waiting"]
    assert len(waiting) == [trial.state for trial in trials].count("lost") == 2
    for worker in {line["pid"] for line in lab.read_log(tmp_path / "log")[0]}:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    done = [trial.state for trial in trials].count("complete")
    start(config={"n_trials": done + 3, "workers": 1}).communicate()
    after = records(tmp_path / "out" / "study.journal")
    assert [trial.state for trial in after].count("complete") == done + 3
    assert all(any(again.params == trial.params and again.state == "complete" for again in after) for trial in waiting)


def test_two_calls_join_one_study_and_keep_to_one_budget(start, lab, tmp_path):
    orders = {"config": {"n_trials": 9, "storage": str(tmp_path / "shared.journal")}, "pause": 0.1}
    first, second = start(**orders), start(**{**orders, "out": str(tmp_path / "other")})
    assert [process.wait() for process in (first, second)] == [0, 0]
    trained, _ = lab.read_log(tmp_path / "log")
    assert len(trained) == 9
    assert len({line["pid"] for line in trained}) == 2
    assert [trial.state for trial in records(tmp_path / "shared.journal")] == ["complete"] * 9


@pytest.mark.parametrize(
    ("mishap", "said"),
    [("broken", "MethodError: peft cannot do this"), ("bug", "RunError: a worker met an error that is not foreseen, KeyError")],
)
def test_an_error_in_a_worker_process_is_the_callers(start, tmp_path, mishap, said):
    process = start(config={"n_trials": 4, "workers": 2}, mishaps={"1": mishap}, pause=0.1)
    _, problem = process.communicate()
    assert process.returncode == 1
    assert said in problem
    assert "running" not in [trial.state for trial in records(tmp_path / "out" / "study.journal")]
