"""References into files: the grammar, parquet rows, TIFF pages, and what is said where a reference does not fit."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from evenhand.data import parquet_cells
from evenhand.data.building import files_key
from evenhand.data.cache import build_cache
from evenhand.data.images import Header, probe_image, read_image
from evenhand.data.references import Reference, file_behind, find_reference, is_there, with_window
from evenhand.errors import ImageError, InputError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (7, 12, 9, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """As Hugging Face writes it: a struct of bytes and path, three rows a group; and a column of plain bytes."""
    cells = [{"bytes": png(picture), "path": f"{k}.png"} for k, picture in enumerate(PICTURES)]
    cells[5] = {"bytes": None, "path": "5.png"}
    cells[6] = {"bytes": None, "path": "gone.png"}
    (tmp_path / "5.png").write_bytes(png(PICTURES[5]))
    columns = {"image": cells, "photo": [png(picture[..., 0]) for picture in PICTURES], "label": [0, 1, 0, 1, 0, 1, 0]}
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=3)
    return tmp_path / "train.parquet"


def test_a_reference_is_split_at_its_last_hash(tmp_path: Path) -> None:
    assert find_reference("a/b.h5#array=g/x&row=3") == Reference("a/b.h5", {"array": "g/x", "row": "3"})
    assert find_reference("case #7/b.npy#row=3") == Reference("case #7/b.npy", {"row": "3"})
    for plain in ("a.png", "case #7.png", "a#b/c.png"):
        assert find_reference(plain) is None
        assert file_behind(plain) == plain
    odd = tmp_path / "scan#row=1.png"
    odd.write_bytes(png(PICTURES[0]))
    assert find_reference(odd) is None
    assert np.array_equal(read_image(odd), PICTURES[0])
    assert find_reference("a.nii.gz") == Reference("a.nii.gz", {})


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("ax=0", "unknown key 'ax'; did you mean 'axis'"),
        ("axis=", "one value, once"),
        ("row=1&row=2", "one value, once"),
        ("row=1&2", "unknown key '2'"),
    ],
)
def test_what_is_no_reference_is_said(tail: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        find_reference(f"a.npz#{tail}")


def test_is_there_looks_behind_the_reference(tmp_path: Path, table: Path) -> None:
    (tmp_path / "series").mkdir()
    assert is_there(f"{table}#row=0")
    assert is_there(f"{tmp_path}/series/#axis=0&slice=middle")
    assert not is_there(tmp_path / "series")
    assert not is_there(f"{tmp_path}/none.npz#row=0")


def test_rows_of_a_parquet_file(table: Path) -> None:
    for k in range(6):
        assert np.array_equal(read_image(f"{table}#row={k}"), PICTURES[k])
        assert np.array_equal(read_image(f"{table}#row={k}&column=photo"), PICTURES[k, ..., 0])
    assert probe_image(f"{table}#row=4&column=image") == Header(8, 3)
    assert probe_image(f"{table}#row=4&column=photo") == Header(8, 1)


def test_a_row_group_is_read_once_for_consecutive_rows(table: Path) -> None:
    parquet_cells._row_group.cache_clear()
    for k in range(6):
        probe_image(f"{table}#row={k}")
    assert parquet_cells._row_group.cache_info().misses == 2
    assert parquet_cells._row_group.cache_info().hits == 4


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("", "must give its row"),
        ("#row=7", "row 7 is out of range, the parquet file has 7 rows"),
        ("#row=0&column=imag", "no column 'imag'; did you mean 'image'"),
        ("#row=0&column=label", "holds int"),
        ("#row=6", "only a file name"),
        ("#row=x", "whole number"),
        ("#row=0&axis=1&slice=0", "'axis' is not a key for a parquet file; its keys are row, column"),
    ],
)
def test_what_is_wrong_in_a_parquet_reference_is_said(table: Path, tail: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        probe_image(f"{table}{tail}")


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture) for picture in PICTURES[:3]]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    for k in range(3):
        assert np.array_equal(read_image(f"{tmp_path}/a.tiff#frame={k}"), PICTURES[k])
    assert probe_image(f"{tmp_path}/a.tiff#frame=2") == Header(8, 3)
    with pytest.raises(ImageError, match="frame 3 is out of range, the TIFF file has 3 pages"):
        read_image(f"{tmp_path}/a.tiff#frame=3")
    with pytest.raises(ImageError, match="'row' is not a key for an image file; its keys are frame"):
        read_image(f"{tmp_path}/a.tiff#row=3")


def test_a_window_goes_to_dicom_images_only(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes").write_bytes(b"text")
    cells = ["IM0001", "IM0001#frame=2", "IM0001#window=1,2", "IM0001#axis=0&slice=1&scale=0,1", "notes", "gone", "a.png"]
    expected = ["IM0001#window_index=1", "IM0001#frame=2&window_index=1", *cells[2:]]
    assert with_window(cells, tmp_path, "1") == expected
    for bad in ("x", "1,", "40,0", "-1", "1,2,3"):
        with pytest.raises(InputError, match="must be the number of a window in the header, from 0, or CENTRE,WIDTH"):
            with_window(cells, tmp_path, bad)


def test_a_missing_or_empty_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="file is missing"):
        probe_image(f"{tmp_path}/none.npz#row=1")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ImageError, match="0 bytes"):
        probe_image(f"{tmp_path}/a.npz#row=1")


def test_a_cache_is_built_of_references(tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (5, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "stack.npy", stack)
    rows = [f"{tmp_path}/stack.npy#row={k}" for k in (4, 0, 2)]
    key = files_key(rows)
    cache, excluded = build_cache([*rows, f"{tmp_path}/stack.npy#row=9"], tmp_path / "cache", size=16, keep_going=True)
    assert np.array_equal(cache.raw(slice(None))[:, 0], stack[[4, 0, 2]])
    assert list(excluded) == [3]
    assert "row 9 is out of range" in excluded[3]
    assert files_key(rows[:2]) != key
    os.utime(tmp_path / "stack.npy", ns=(0, 0))
    assert files_key(rows) != key


def test_the_key_sees_a_file_that_is_written_over_in_a_folder_and_the_values_of_a_header(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    names = [f"{tmp_path}/series/#axis=0&slice={k}" for k in range(3)]
    slices = [tmp_path / "series" / f"{k}.dcm" for k in range(3)]
    for file in slices:
        file.write_bytes(b"first")
    before, folder = files_key(names), os.stat(tmp_path / "series")
    assert files_key(names) == before
    slices[1].write_bytes(b"second")
    assert os.stat(tmp_path / "series").st_mtime_ns == folder.st_mtime_ns  # a folder's time says nothing of its files
    assert files_key(names) != before
    for suffix in ("hdr", "img"):
        (tmp_path / f"a.{suffix}").write_bytes(b"first")
    before = files_key([f"{tmp_path}/a.hdr#axis=0&slice=1"])
    (tmp_path / "a.img").write_bytes(b"second")
    assert files_key([f"{tmp_path}/a.hdr#axis=0&slice=1"]) != before
