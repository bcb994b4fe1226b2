"""The cache: exact numbers, resumable, safe against a second writer, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evenhand.data.building as building
import evenhand.data.cache as cache_module
from evenhand.data.cache import ImageCache, build_cache
from evenhand.errors import DiskFullError, ImageError, InputError
from evenhand.methods.base import Images


def write_images(folder: Path, n: int = 70, deep: bool = False) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    files = [folder / f"{k:03d}.png" for k in range(n)]
    for file in files:
        top, dtype = (65536, np.uint16) if deep else (256, np.uint8)
        Image.fromarray(rng.integers(0, top, (10, 8), dtype=dtype)).save(file)
    return files


@pytest.mark.parametrize("deep", [False, True])
def test_batches_are_the_stored_values_over_white(tmp_path: Path, deep: bool) -> None:
    cache, excluded = build_cache(write_images(tmp_path / "i", 5, deep), tmp_path / "c", size=8)
    assert excluded == {}
    assert cache.shape == (1, 8, 8)
    top = np.float32(65535 if deep else 255)
    for positions in (slice(1, 4), np.array([3, 0, 0]), [2], np.array([], dtype=int), slice(None, None, -1)):
        batch = cache.batch(positions)
        assert batch.dtype == torch.float32
        np.testing.assert_array_equal(batch.numpy(), cache.raw(positions).astype(np.float32) / top)
    images = cache.images(np.array([4, 2]))
    assert isinstance(images, Images)
    np.testing.assert_array_equal(images.batch(slice(None)).numpy(), cache.batch([4, 2]).numpy())
    normalised = images.normalized_batch(np.array([1]), [0.5], [0.25]).numpy()
    np.testing.assert_allclose(normalised, (cache.batch([2]).numpy() - 0.5) / 0.25, atol=1e-6)
    out = torch.empty((2, 1, 8, 8))
    assert images.batch([0, 1], out=out) is out


def test_fingerprints_follow_content_and_order(tmp_path: Path) -> None:
    cache, _ = build_cache(write_images(tmp_path / "i", 4), tmp_path / "c", size=8)
    prints = {cache.images(np.array(rows)).fingerprint for rows in ([0, 1], [1, 0], [0, 2], [0, 1, 2])}
    assert len(prints) == 4
    assert cache.images().fingerprint == pickle.loads(pickle.dumps(cache)).images().fingerprint == cache.fingerprint
    with pytest.raises(IndexError):
        cache.images().batch([4])


def test_several_processes_write_what_one_writes(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i")
    one, _ = build_cache(files, tmp_path / "one", size=8, workers=1)
    two, _ = build_cache(files, tmp_path / "two", size=8, workers=2)
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.raw(slice(None)), two.raw(slice(None)))


def test_again_is_a_no_op_and_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "i", 4)
    first, _ = build_cache(files, tmp_path / "c", size=8)
    monkeypatch.setattr(cache_module, "build_alone", lambda *a: pytest.fail("built again"))
    assert build_cache(files, tmp_path / "c", size=8)[0].fingerprint == first.fingerprint
    with pytest.raises(InputError, match=r"size 8 \(asked for: 9\)"):
        build_cache(files, tmp_path / "c", size=9)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(files[0])
    with pytest.raises(InputError, match="changed since"):
        build_cache(files, tmp_path / "c", size=8)


def test_unreadable_images_are_all_listed_and_nothing_is_left(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", 6)
    files[1].write_bytes(b"no image")
    files[3].write_bytes(files[3].read_bytes()[:-20])
    files[4].unlink()
    with pytest.raises(ImageError, match="3 of 6 images") as caught:
        build_cache(files, tmp_path / "c", size=8)
    assert [line.split(":")[0] for line in caught.value.details] == ["row 2", "row 4", "row 5"]
    assert list((tmp_path / "c").iterdir()) == []
    cache, excluded = build_cache(files, tmp_path / "c", size=8, keep_going=True)
    assert sorted(excluded) == [1, 3, 4]
    whole, _ = build_cache([files[0], files[2], files[5]], tmp_path / "d", size=8)
    np.testing.assert_array_equal(cache.raw(slice(None)), whole.raw(slice(None)))
    assert cache.fingerprint == whole.fingerprint
    with pytest.raises(ImageError):
        build_cache(files, tmp_path / "c", size=8)


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "i", 100)
    code = (
        "import os, sys, evenhand.data.building as c\n"
        "real = c.decode_chunk\n"
        "def dies(task):\n"
        "    if task[1].start >= 64: os.kill(os.getpid(), 9)\n"
        "    return real(task)\n"
        "c.decode_chunk = dies\n"
        "from evenhand.data.cache import build_cache\n"
        f"build_cache({[str(f) for f in files]!r}, {str(tmp_path / 'c')!r}, size=8, workers=1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with pytest.raises(InputError, match="not complete"):
        ImageCache.open(tmp_path / "c")
    with pytest.raises(InputError, match="unfinished cache"):
        build_cache(files, tmp_path / "c", size=9)
    journal = tmp_path / "c" / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('{"start": 64, "ha')  # killed in the middle of a line
    seen: list[int] = []
    real = building.decode_chunk
    monkeypatch.setattr(building, "decode_chunk", lambda task: (seen.append(task[1].start), real(task))[1])
    cache, _ = build_cache(files, tmp_path / "c", size=8, workers=1)
    assert seen == [64, 96]
    whole, _ = build_cache(files, tmp_path / "d", size=8, workers=1)
    assert cache.fingerprint == whole.fingerprint
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["hashes.npy", "images.bin", "manifest.json"]


def test_a_second_writer_waits_and_takes_the_first_ones_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_images(tmp_path / "i", 40)
    code = (
        "import time, evenhand.data.building as c\n"
        "real = c.decode_chunk\n"
        f"c.decode_chunk = lambda task: (open({str(tmp_path / 'begun')!r}, 'w').close(), time.sleep(1), real(task))[2]\n"
        "from evenhand.data.cache import build_cache\n"
        f"build_cache({[str(f) for f in files]!r}, {str(tmp_path / 'c')!r}, size=8, workers=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as first:
        while not (tmp_path / "begun").exists() and first.poll() is None:
            time.sleep(0.05)
        cache, _ = build_cache(files, tmp_path / "c", size=8)
    assert first.returncode == 0
    assert "waiting" in caplog.text
    assert len(cache) == 40


def test_a_full_disk_is_found_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "i", 4)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(DiskFullError, match="no space left") as caught:
            build_cache(files, tmp_path / "c", size=8)
    assert caught.value.exit_code == 4
    assert list((tmp_path / "c").iterdir()) == []
    with monkeypatch.context() as patch:  # full in the middle: what is done is kept, and the same call goes on
        patch.setattr(building, "decode_chunk", full)
        with pytest.raises(DiskFullError):
            build_cache(files, tmp_path / "c", size=8)
    assert len(build_cache(files, tmp_path / "c", size=8)[0]) == 4


def test_a_file_limit_counts_as_a_full_disk(tmp_path: Path) -> None:
    files = write_images(tmp_path / "i", 4)
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from evenhand.data.cache import build_cache; from evenhand.errors import DiskFullError\n"
        f"try: build_cache({[str(f) for f in files]!r}, {str(tmp_path / 'c')!r}, size=224)\n"
        "except DiskFullError: raise SystemExit(4)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 4
    assert list((tmp_path / "c").iterdir()) == []


def test_a_damaged_cache_does_not_open(tmp_path: Path) -> None:
    build_cache(write_images(tmp_path / "i", 3), tmp_path / "c", size=8)
    manifest = tmp_path / "c" / "manifest.json"
    good = manifest.read_text()
    for bad in ("{", json.dumps(json.loads(good) | {"schema": "other/1"}), json.dumps(json.loads(good) | {"shape": [2, 1, 8, 8]})):
        manifest.write_text(bad)
        with pytest.raises(InputError):
            ImageCache.open(tmp_path / "c")
    manifest.write_text(good)
    with (tmp_path / "c" / "images.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="does not agree"):
        ImageCache.open(tmp_path / "c")


@pytest.mark.parametrize("options", [{"size": 0}, {"resize": "zoom"}, {"channels": 2}, {"workers": 0}])
def test_wrong_options(tmp_path: Path, options: dict[str, object]) -> None:
    files = write_images(tmp_path / "i", 2)
    with pytest.raises(InputError):
        build_cache(files, tmp_path / "c", **({"size": 8} | options))  # type: ignore[arg-type]
    with pytest.raises(InputError):
        build_cache([], tmp_path / "c")


@pytest.mark.parametrize("shared", [False, True])
def test_images_are_on_the_disk_before_their_line_is_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """A power cut may then cost lines, never images that a line speaks of; one sync a chunk, not an image."""
    from evenhand.data import decoding, shards

    files, events = write_images(tmp_path / "i"), []
    write, sync = decoding._write_at, decoding._sync
    monkeypatch.setattr(decoding, "_write_at", lambda *a: (write(*a), events.append("image"))[0])
    monkeypatch.setattr(decoding, "_sync", lambda file: (sync(file), events.append("sync"))[0])
    for module in (building, shards):
        monkeypatch.setattr(module, "journal_line", lambda done: events.append("line") or "\n")  # type: ignore[func-returns-value]
    build_cache(files, tmp_path / "c", size=8, workers=1, shared=shared)
    sizes = [32, 32, 6]
    assert events == [event for size in sizes for event in (*["image"] * size, "sync", "line")]


def test_a_journal_with_odd_bytes_costs_the_chunks_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut may leave it: zeros where a line was."""
    files = write_images(tmp_path / "i", 100)
    whole, _ = build_cache(files, tmp_path / "whole", size=8, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(building, "_finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_cache(files, tmp_path / "c", size=8, workers=1)
    journal = tmp_path / "c" / "journal.jsonl"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([lines[0], bytes(len(lines[1])), lines[2], b"\xff\xfe[]", b"3", lines[3][:20]]))
    seen: list[int] = []
    real = building.decode_chunk
    monkeypatch.setattr(building, "decode_chunk", lambda task: (seen.append(task[1].start), real(task))[1])
    assert build_cache(files, tmp_path / "c", size=8, workers=1)[0].fingerprint == whole.fingerprint
    assert seen == [32, 96]
