"""Large packed files are unpacked once and by blocks: the same cache, little memory, and nothing left over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from PIL import Image
from pyarrow import parquet

from evenhand.data import building, parquet_cells, unpacking, volumes
from evenhand.data.cache import ImageCache, build_cache
from evenhand.data.images import read_image
from evenhand.errors import DiskFullError, ImageError

N, SIDE = 200, 64
Writer = Callable[[Path, np.ndarray], str]


def stack(n: int = N) -> np.ndarray:
    """Images that pack well, each another."""
    rows = np.zeros((n, SIDE, SIDE), np.uint8)
    rows[:, 4:40, 8:50] = np.random.default_rng(0).integers(0, 256, (n, 36, 1), dtype=np.uint8)
    return rows


def npz(path: Path, rows: np.ndarray) -> str:
    np.savez_compressed(path, train=rows, other=rows[:1])
    return f"{path}.npz#array=train&row={{}}"


def npz_fortran(path: Path, rows: np.ndarray) -> str:
    np.savez_compressed(path, train=np.asfortranarray(rows))
    return f"{path}.npz#row={{}}"


def npz_big_endian(path: Path, rows: np.ndarray) -> str:
    np.savez_compressed(path, train=(rows.astype(">u2") * 257))
    return f"{path}.npz#row={{}}"


def matlab(path: Path, rows: np.ndarray) -> str:
    """As MATLAB shows stacks of slices: the last axis counts them."""
    scipy.io.savemat(f"{path}.mat", {"age": 50, "images": rows.transpose(1, 2, 0), "name": "x"}, do_compression=True)
    return f"{path}.mat#axis=2&slice={{}}"


def matlab_rows(path: Path, rows: np.ndarray) -> str:
    scipy.io.savemat(f"{path}.mat", {"images": rows}, do_compression=True)
    return f"{path}.mat#array=images&row={{}}"


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def one_group(path: Path, rows: np.ndarray) -> str:
    """As pandas writes it: one row group; one image lies beside it."""
    cells = [{"bytes": png(row), "path": None} for row in rows]
    path.with_name("beside.png").write_bytes(png(rows[3]))
    cells[3] = {"bytes": None, "path": "beside.png"}
    parquet.write_table(pa.table({"image": cells, "label": np.arange(len(rows))}), f"{path}.parquet")
    return f"{path}.parquet#row={{}}"


WRITERS = [npz, npz_fortran, npz_big_endian, matlab, matlab_rows, one_group]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of half a MiB counts as large, and a block is small against it."""
    monkeypatch.setattr(unpacking, "MANY", 1 << 19)
    monkeypatch.setattr(unpacking, "ONE", 1 << 19)
    monkeypatch.setattr(unpacking, "_BLOCK", 1 << 16)
    monkeypatch.setattr(parquet_cells, "_GROUP", 1 << 15)


def order() -> list[int]:
    return np.random.default_rng(1).permutation(N).tolist()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_cache_is_that_of_files_unpacked_in_memory(
    tmp_path: Path, write: Writer, shared: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    form = write(tmp_path / "a", stack())
    names = [form.format(k) for k in order()]
    before, _ = build_cache(names, tmp_path / "before", size=16, workers=1)
    request.getfixturevalue("small")
    read: list[str] = []
    real = unpacking.placed
    monkeypatch.setattr(unpacking, "placed", lambda *a: (read.extend(found := real(*a)), found)[1])
    after, _ = build_cache(names, tmp_path / "after", size=16, workers=1, shared=shared)
    assert all(f"/{unpacking.FOLDER}/" in name for name in read)
    assert after.fingerprint == before.fingerprint
    assert after.manifest["key"] == before.manifest["key"]
    np.testing.assert_array_equal(after.raw(slice(None)), before.raw(slice(None)))
    assert not [path for path in (tmp_path / "after").rglob("*") if unpacking.FOLDER in path.parts or path.suffix == ".tmp"]
    if Path("/proc/self/maps").exists():  # a removed file takes its space until nobody has it mapped
        assert f"/{unpacking.FOLDER}/" not in Path("/proc/self/maps").read_text()


@pytest.mark.usefixtures("small")
def test_two_workers_share_one_unpacked_file(tmp_path: Path) -> None:
    names = [npz(tmp_path / "a", stack()).format(k) for k in range(N)]
    cache, _ = build_cache(names, tmp_path / "c", size=SIDE, workers=2)
    np.testing.assert_array_equal(cache.raw(slice(None))[:, 0], stack())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("write", [npz, npz_fortran, matlab, matlab_rows])
def test_the_array_is_never_in_memory(tmp_path: Path, write: Writer) -> None:
    rows = np.concatenate([stack()] * 10)  # 8 MiB
    form = write(tmp_path / "a", rows)
    names = [form.format(k) for k in range(0, len(rows), 40)]
    build_cache(names[:2], tmp_path / "warm", size=8, workers=1)  # imports
    n_bytes = rows.nbytes
    del rows
    tracemalloc.start()
    build_cache(names, tmp_path / "c", size=8, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n_bytes / 8


def test_a_large_row_group_is_never_in_memory(tmp_path: Path) -> None:
    """In a process of its own, since the library counts its memory from the start on; a page of the file is the least that it reads."""
    cells = [{"bytes": png(row), "path": None} for row in np.random.default_rng(0).integers(0, 256, (800, 128, 128), dtype=np.uint8)]
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": cells}), file, write_batch_size=8)
    code = (
        "import sys, pyarrow; from evenhand.data import parquet_cells, unpacking; from evenhand.data.cache import build_cache\n"
        "unpacking.MANY, parquet_cells._GROUP = int(sys.argv[3]), 1 << 18\n"
        "build_cache([f'{sys.argv[1]}#row={k}' for k in range(0, 800, 8)], sys.argv[2], size=8, workers=1)\n"
        "print(pyarrow.default_memory_pool().max_memory())\n"
    )
    peaks = {}
    for least in (1 << 20, 1 << 30):
        command = [sys.executable, "-c", code, str(file), str(tmp_path / f"c{least}"), str(least)]
        peaks[least] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peaks[1 << 30] > file.stat().st_size  # as it was: the whole group
    assert peaks[1 << 20] < file.stat().st_size / 2


def test_what_can_be_read_in_place_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stack(20)
    np.savez(tmp_path / "a.npz", train=rows)
    np.save(tmp_path / "a.npy", rows)
    scipy.io.savemat(tmp_path / "a.mat", {"images": rows})
    one_group(tmp_path / "a", rows)
    names = [f"{tmp_path}/a.{ending}#row={k}" for ending in ("npz", "npy", "mat") for k in range(20)]
    monkeypatch.setattr(unpacking, "MANY", 1 << 10)
    assert unpacking.find_large(names, tmp_path / "u") == []
    found = unpacking.find_large([*names, f"{tmp_path}/a.parquet#row=1"], tmp_path / "u")
    assert [(large.path, list(large.rows)) for large in found] == [(f"{tmp_path}/a.parquet", [60])]
    monkeypatch.undo()
    assert unpacking.find_large([f"{tmp_path}/a.parquet#row=1"], tmp_path / "u") == []
    volumes.forget()
    tracemalloc.start()
    for k in range(20):
        assert np.array_equal(read_image(f"{tmp_path}/a.mat#row={k}"), rows[k])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes * 4


def test_values_of_a_class_are_stored_in_smaller_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MATLAB writes whole numbers of class double: as bytes; by hand, since scipy never does."""
    rows = stack(20)
    values = rows.transpose(2, 1, 0).tobytes()  # first axis fastest

    def element(kind: int, data: bytes) -> bytes:
        return np.array([kind, len(data)], "<u4").tobytes() + data + bytes(-len(data) % 8)

    dims = np.array(rows.shape, "<i4").tobytes()
    content = element(6, np.array([6, 0], "<u4").tobytes()) + element(5, dims) + element(1, b"images") + element(2, values)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element(14, content))
    expected = scipy.io.loadmat(tmp_path / "a.mat", mat_dtype=True)["images"]
    assert expected.dtype == np.float64
    assert np.array_equal(expected, rows)
    names = [f"{tmp_path}/a.mat#row={k}&scale=0,255" for k in range(20)]
    before, _ = build_cache(names, tmp_path / "before", size=8)
    monkeypatch.setattr(unpacking, "MANY", 1 << 10)
    assert unpacking.find_large(names, tmp_path)[0].n_bytes == rows.size * 8
    assert build_cache(names, tmp_path / "after", size=8)[0].fingerprint == before.fingerprint


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("write", [npz, matlab])
def test_a_damaged_file_costs_its_own_rows_only(tmp_path: Path, write: Writer) -> None:
    good, bad = write(tmp_path / "good", stack()), write(tmp_path / "bad", stack()[::-1])
    path = Path(bad.partition("#")[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    names = [form.format(k) for form in (good, bad) for k in range(40)]
    with pytest.raises(ImageError, match="40 of 80 images"):
        build_cache(names, tmp_path / "c", size=8, workers=1)
    assert list((tmp_path / "c").iterdir()) == []
    cache, excluded = build_cache(names, tmp_path / "c", size=8, workers=1, keep_going=True)
    assert sorted(excluded) == list(range(40, 80))
    assert len(set(excluded.values())) == 1
    alone, _ = build_cache(names[:40], tmp_path / "d", size=8, workers=1)
    assert cache.fingerprint == alone.fingerprint


@pytest.mark.usefixtures("small")
def test_a_disk_that_is_too_small_is_told_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [npz(tmp_path / "a", stack()).format(k) for k in range(N)]
    usage = namedtuple("usage", "free")
    need = N * SIDE**2 + N * 8**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(need))
    monkeypatch.setattr(unpacking, "unpack", lambda *a: pytest.fail("unpacked"))
    with pytest.raises(DiskFullError, match="large packed files beside it"):
        build_cache(names, tmp_path / "c", size=8, workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(unpacking, "MANY", 1 << 19)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # full in the middle
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="no space left"):
            build_cache(names, tmp_path / "c", size=8, workers=1)
    assert list((tmp_path / "c").iterdir()) == []


CHILD = """
import json, os, sys
from evenhand.data import building, decoding, unpacking
from evenhand.data.cache import build_cache
options = json.loads(sys.argv[1])
unpacking.MANY, unpacking._BLOCK = 1 << 19, 1 << 16
real, decode, seen = unpacking.unpack, building.decode_chunk, []
def unpack(large, advance):
    seen.append(large.path)
    def told(n):
        advance(n)
        if options["stop"] == "unpacking" and len(seen) == 2:
            os.kill(os.getpid(), 9)
    real(large, told)
def decode_chunk(task):
    if options["stop"] == "decoding" and task[1].start == 64:
        os.kill(os.getpid(), 9)
    return decode(task)
unpacking.unpack, building.decode_chunk = unpack, decode_chunk
build_cache(options["names"], options["out"], size=8, workers=1)
print(json.dumps(seen))
"""


def test_after_a_kill_only_what_is_lacking_is_unpacked(tmp_path: Path) -> None:
    first, second = npz(tmp_path / "a", stack()), npz_fortran(tmp_path / "b", stack()[::-1])
    names = [form.format(k) for form in (first, second) for k in range(50)]
    before, _ = build_cache(names, tmp_path / "before", size=8, workers=1)
    out = tmp_path / "c"

    def run(stop: str) -> tuple[int, list[str]]:
        options = json.dumps({"names": names, "out": str(out), "stop": stop})
        done = subprocess.run([sys.executable, "-c", CHILD, options], capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout) if done.returncode == 0 else []

    assert run("unpacking")[0] == -9
    assert sorted(path.suffix for path in (out / unpacking.FOLDER).iterdir()) == [".npy", ".tmp"]
    (out / unpacking.FOLDER / "0123456789abcdef.npy").write_bytes(b"of another call")
    assert run("decoding")[0] == -9
    assert sorted(path.suffix for path in (out / unpacking.FOLDER).iterdir()) == [".npy"] * 3
    assert run("never") == (0, [])
    assert ImageCache.open(out).fingerprint == before.fingerprint
    assert not (out / unpacking.FOLDER).exists()


def test_a_process_that_was_taken_for_dead_goes_on_without_harm(tmp_path: Path) -> None:
    form = npz(tmp_path / "a", stack())
    large = unpacking.Large(form.partition("#")[0], "train", tmp_path / "u" / "x.npy", stack().nbytes)
    unpacking.unpack(large, lambda n: unpacking.sweep(tmp_path / "u"))
    assert list((tmp_path / "u").iterdir()) == []
    unpacking.unpack(large, lambda n: None)
    assert np.array_equal(np.load(large.target), stack())


def test_a_column_may_have_a_point_in_its_name(tmp_path: Path) -> None:
    one_group(tmp_path / "a", stack(5))
    table = parquet.read_table(f"{tmp_path}/a.parquet")
    parquet.write_table(table.rename_columns(["scan.image", "scan"]), f"{tmp_path}/b.parquet")
    sizes = [parquet_cells.column_bytes(f"{tmp_path}/{name}.parquet", column) for name, column in (("a", "image"), ("b", "scan.image"))]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] > 4 * SIDE**2
    assert parquet_cells.files_beside(f"{tmp_path}/b.parquet") == [f"{tmp_path}/beside.png"]


def test_a_changed_image_that_a_parquet_file_only_names_changes_the_key(tmp_path: Path) -> None:
    names = [one_group(tmp_path / "a", stack(5)).format(k) for k in range(5)]
    before = building.files_key(names)
    assert building.files_key(names) == before
    (tmp_path / "beside.png").write_bytes(png(stack(5)[0]) + b"\0")
    assert building.files_key(names) != before
    cells = [{"bytes": png(row), "path": "beside.png"} for row in stack(2)]  # all images in the file: the names mean nothing
    parquet.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    assert parquet_cells.files_beside(f"{tmp_path}/b.parquet") == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what of a file is in a process")
@pytest.mark.parametrize("save", [np.save, np.savez])
def test_a_process_does_not_grow_with_the_file_that_it_maps(tmp_path: Path, save: Callable[..., None]) -> None:
    file = tmp_path / f"a.{'npy' if save is np.save else 'npz'}"
    save(file, np.ones((64, 1024, 512), np.uint8))  # 32 MiB
    for k in range(64):
        assert read_image(f"{file}#row={k}").all()
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.endswith(str(file)))
    resident = next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))
    assert resident < 8 * 1024  # KiB; the system maps some pages around those that are read
