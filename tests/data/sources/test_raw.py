"""The raw folder: links between folders, and file names that look like references."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evenhand.data.sources.base import Found
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
