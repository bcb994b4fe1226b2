"""Several processes build one cache in one folder: the same bytes as one process, also after kill -9, and nothing decoded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from evenhand.data import leases, shards
from evenhand.data.cache import ImageCache, build_cache
from evenhand.data.leases import Leases
from evenhand.errors import ImageError, InputError
from tests.data.test_cache import write_images

N = 150
CODE = """
import json, os, sys, time
from evenhand.data import leases, shards
from evenhand.data.cache import build_cache
options = json.loads(sys.argv[1])
shards.LEAST_ROWS, shards.POLL = 32, 0.05
leases.PATIENCE, leases.BEAT = options.get("patience", 60), 0.1
if options.get("strange"):
    leases._machine = lambda: "another machine"
real = shards.decode_chunk
def decode(task):
    with open(options["log"], "a") as log:
        log.write(f"{task[1].start}\\n")
    time.sleep(options.get("sleep", 0.05))
    if task[1].start == options.get("stop_at"):
        open(options["stopped"], "w").close()
        time.sleep(1000)
    return real(task)
shards.decode_chunk = decode
build_cache(options["files"], options["out"], size=8, workers=1, shared=True)
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 32)
    monkeypatch.setattr(shards, "POLL", 0.05)


def start(files: Sequence[Path], out: Path, log: Path, **options: object) -> subprocess.Popen[bytes]:
    every = {"files": [str(file) for file in files], "out": str(out), "log": str(log), **options}
    return subprocess.Popen([sys.executable, "-c", CODE, json.dumps(every)])


def until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def decoded(*logs: Path) -> list[int]:
    return sorted(int(line) for log in logs if log.exists() for line in log.read_text().split())


def same_as_alone(files: list[Path], cache: ImageCache, scratch: Path) -> None:
    alone, _ = build_cache(files, scratch, size=8, workers=1)
    assert cache.fingerprint == alone.fingerprint
    np.testing.assert_array_equal(cache.raw(slice(None)), alone.raw(slice(None)))


def test_three_processes_share_the_work_and_the_result_is_that_of_one(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", N)
    logs = [tmp_path / f"log{k}" for k in range(3)]
    running = [start(files, tmp_path / "c", log) for log in logs]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert decoded(*logs) == [0, 32, 64, 96, 128]  # every chunk once
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["hashes.npy", *(f"images-{k:05d}.bin" for k in range(5)), "manifest.json"]
    same_as_alone(files, ImageCache.open(tmp_path / "c"), tmp_path / "d")


@pytest.mark.parametrize("strange", [False, True])
def test_the_part_of_a_killed_process_is_taken_over(tmp_path: Path, strange: bool) -> None:
    """Strange: the killed one was on another machine, so that only its silence tells."""
    files = write_images(tmp_path / "i", N)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    options = {"stop_at": 64, "stopped": str(tmp_path / "stopped"), "strange": strange}
    with start(files, tmp_path / "c", logs[0], **options) as first:
        until((tmp_path / "stopped").exists)
        with start(files, tmp_path / "c", logs[1], patience=1) as second:
            until(lambda: decoded(logs[1]) == [96, 128])
            time.sleep(0.3)
            assert second.poll() is None  # the first one lives: its part is waited for
            first.send_signal(signal.SIGKILL)
            assert second.wait(60) == 0
        first.wait()
    assert decoded(*logs) == [0, 32, 64, 64, 96, 128]  # only the chunk that was in work is decoded again
    same_as_alone(files, ImageCache.open(tmp_path / "c"), tmp_path / "d")


def test_when_all_are_killed_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "i", N)
    monkeypatch.setattr(shards, "LEAST_ROWS", 96)  # two parts
    running = []
    for k, stop in enumerate((32, 128)):
        code = CODE.replace("LEAST_ROWS, shards.POLL = 32", "LEAST_ROWS, shards.POLL = 96")
        options = {"files": list(map(str, files)), "out": str(tmp_path / "c"), "log": str(tmp_path / f"log{k}"), "stop_at": stop}
        running.append(subprocess.Popen([sys.executable, "-c", code, json.dumps(options | {"stopped": str(tmp_path / f"s{k}")})]))
        until((tmp_path / f"s{k}").exists)
    for process in running:
        process.kill()
        process.wait()
    with pytest.raises(InputError, match="not complete"):
        ImageCache.open(tmp_path / "c")
    with pytest.raises(InputError, match="several machines build"):
        build_cache(files, tmp_path / "c", size=8)
    with pytest.raises(InputError, match=r"size 8 \(asked for: 9\)"):
        build_cache(files, tmp_path / "c", size=9, shared=True)
    seen: list[int] = []
    real = shards.decode_chunk
    monkeypatch.setattr(shards, "decode_chunk", lambda task: (seen.append(task[1].start), real(task))[1])
    journal = next((tmp_path / "c" / "building").glob("00000.*.jsonl"))
    with journal.open("a") as file:
        file.write('{"start": 32, "ha')  # killed in the middle of a line
    cache, _ = build_cache(files, tmp_path / "c", size=8, workers=1, shared=True)
    assert seen == [32, 64, 128]
    same_as_alone(files, cache, tmp_path / "d")


def test_a_holder_that_was_only_asleep_does_no_harm(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", N)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    with start(files, tmp_path / "c", logs[0], strange=True, sleep=0.3) as sleeper:
        until(lambda: 32 in decoded(logs[0]))
        sleeper.send_signal(signal.SIGSTOP)
        with start(files, tmp_path / "c", logs[1], patience=1) as second:
            assert second.wait(60) == 0
        before = (tmp_path / "c" / "images-00001.bin").read_bytes()
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(60) == 0
    assert (tmp_path / "c" / "images-00001.bin").read_bytes() == before
    same_as_alone(files, ImageCache.open(tmp_path / "c"), tmp_path / "d")


def test_unreadable_images_leave_gaps_that_are_not_seen(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", N)
    for bad in (0, 40, 149):
        files[bad].write_bytes(b"no image")  # told by the header
    files[70].write_bytes(files[70].read_bytes()[:-20])  # told by the pixels
    with pytest.raises(ImageError, match="4 of 150 images"):
        build_cache(files, tmp_path / "c", size=8, workers=1, shared=True)
    cache, excluded = build_cache(files, tmp_path / "c", size=8, workers=1, shared=True, keep_going=True)
    assert sorted(excluded) == [0, 40, 70, 149]
    alone, _ = build_cache(files, tmp_path / "d", size=8, workers=1, keep_going=True)
    assert cache.fingerprint == alone.fingerprint
    for rows in (slice(None), slice(20, 60), slice(None, None, -7), [5, 5, 140, 0], [-1, -146], np.arange(146) % 3 == 0):
        np.testing.assert_array_equal(cache.raw(rows), alone.raw(rows))
        np.testing.assert_array_equal(cache.batch(rows).numpy(), alone.batch(rows).numpy())
    with pytest.raises(ImageError, match="none of the 2 images"):
        build_cache(files[:1] + files[40:41], tmp_path / "e", size=8, shared=True, keep_going=True)
    assert list((tmp_path / "e").iterdir()) == []


def test_large_images_are_read_one_by_one_from_several_files(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", 70)
    cache, _ = build_cache(files, tmp_path / "c", size=160, workers=1, shared=True)
    alone, _ = build_cache(files, tmp_path / "d", size=160, workers=1)
    for rows in ([69, 0, 33], slice(28, 36), [31, 32], [-1]):
        np.testing.assert_array_equal(cache.batch(rows).numpy(), alone.batch(rows).numpy())


def test_one_machine_and_several_do_not_mix(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", 40)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "building.json").write_text("{}")
    with pytest.raises(InputError, match="without --shared"):
        build_cache(files, tmp_path / "c", size=8, shared=True)
    finished, _ = build_cache(files, tmp_path / "d", size=8)
    assert build_cache(files, tmp_path / "d", size=8, shared=True)[0].fingerprint == finished.fingerprint


def test_a_claim_is_held_by_one_and_passes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    monkeypatch.setattr(leases, "PATIENCE", 0.2)
    ours, others = Leases(tmp_path), Leases(tmp_path)
    claim = ours.take("plan")
    assert claim is not None
    for _ in range(20):
        assert others.take("plan") is None  # it beats
        time.sleep(0.02)
    claim.give_up()
    claim.give_up()
    second = others.take("plan")
    assert second is not None
    assert second.generation == 2
    second.give_up()
    # a holder elsewhere that has gone silent; one here whose process is gone; one whose number another process now has
    for n, content in ((3, b"elsewhere 1 5 000000000000"), (4, f"{leases._machine()} 999999999 5 0".encode()),
                       (5, f"{leases._machine()} {os.getpid()} 5 0".encode())):
        (tmp_path / f"plan.{n}.lease").write_bytes(content)
        if n == 3:
            assert others.take("plan") is None
            time.sleep(0.25)
        third = others.take("plan")
        assert third is not None
        third.give_up()
        for path in tmp_path.glob("plan.*.lease"):
            path.unlink()


def test_a_folder_that_is_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evenhand.errors import RunError

    files = write_images(tmp_path / "i", 40)
    monkeypatch.setattr(shards, "_GONE", 0.2)
    monkeypatch.setattr(shards, "_work", lambda *args: (_ for _ in ()).throw(FileNotFoundError(2, "gone", "x")))
    with pytest.raises(RunError, match="gone"):
        build_cache(files, tmp_path / "c", size=8, shared=True)


def test_two_processes_prepare_one_data_set(tmp_path: Path) -> None:
    import pandas as pd

    from evenhand.data.datasets import PreparedData
    from evenhand.data.sources.csv import prepare_csv

    write_images(tmp_path / "i", N)
    rows = {"image": [f"{k:03d}.png" for k in range(N)], "y": np.arange(N) % 2, "sex": np.where(np.arange(N) % 3, "f", "m")}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    code = (
        "import sys; from evenhand.data import shards; shards.LEAST_ROWS = 32; from evenhand.data.sources.csv import prepare_csv\n"
        "prepare_csv(sys.argv[1], sys.argv[2], images=sys.argv[3], labels=['y'], attributes=['sex'], size=8, workers=1, shared=True)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "t.csv"), str(tmp_path / "out"), str(tmp_path / "i")]
    running = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    alone = prepare_csv(tmp_path / "t.csv", tmp_path / "alone", images=tmp_path / "i", labels=["y"], attributes=["sex"], size=8)
    assert PreparedData.open(tmp_path / "out").fingerprint == alone.fingerprint
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cache", "dataset.yaml", "table.csv"]
