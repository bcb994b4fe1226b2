"""The raw folder: links between folders, and file names that look like references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from evenhand.data.sources.base import Found
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.sources.inventory import take_stock
from evenhand.data.sources.raw import RawFolder


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_links_to_folders_are_followed_and_end(tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    write(raw, "images/a.png", "images/deep/b.png")
    write(disk, "part/c.png")
    (raw / "images" / "other").symlink_to(disk / "part")
    (raw / "again").symlink_to("images")
    (raw / "images" / "deep" / "self").symlink_to(".")
    (raw / "images" / "deep" / "up").symlink_to("../..")
    (raw / "images" / "deep" / "above").symlink_to(tmp_path)
    (disk / "part" / "back").symlink_to(raw / "images")
    (disk / "part" / "gone").symlink_to("nowhere")
    below = ["a.png", "deep/b.png", "other/c.png"]
    assert RawFolder(raw).walk("images") == [f"images/{name}" for name in below]
    assert RawFolder(raw).walk() == [f"{folder}/{name}" for folder in ("again", "images") for name in below]
    (tmp_path / "linked").symlink_to(raw)
    assert RawFolder(tmp_path / "linked").walk("images") == [f"images/{name}" for name in below]


def test_a_file_whose_name_looks_like_a_reference_is_there(tmp_path: Path) -> None:
    write(tmp_path, "case#row=1.png", "images/case #2=b.png", "images/scans.npz")
    names = ["case#row=1.png", "images/case #2=b.png", "images/scans.npz#row=3"]
    found = Found(pd.DataFrame({"image": names}))
    take_stock(RawFolder(tmp_path), found, keep_going=False)
    assert found.notes == []


def test_paths_written_by_windows_are_read_with_slashes(tmp_path: Path) -> None:
    names = [f"part {k % 2}\\deep\\{k}.png" for k in range(12)]
    names[3] = "odd\\name.png"
    for k, name in enumerate(names):
        file = tmp_path / "i" / (name if k == 3 else name.replace("\\", "/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(file)
    rows = {"image": names, "y": [0, 1] * 6, "split": ["train"] * 4 + ["val"] * 4 + ["test"] * 4}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    data = prepare_csv(tmp_path / "t.csv", tmp_path / "out", images=tmp_path / "i", labels=["y"], size=4, workers=1)
    assert data.images().raw([0, 3, 11])[:, 0, 0, 0].tolist() == [0, 3, 11]
    assert data.table["image"].tolist()[2:4] == ["part 0/deep/2.png", "odd\\name.png"]
    assert any(note.startswith("11 image paths are written with backslashes") for note in data.description["notes"])
