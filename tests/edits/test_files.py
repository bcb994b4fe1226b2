"""Edited copies of image files: read again they give the edited image; nothing is lost, replaced or half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from evenhand.data.images import fit_grid, read_image, resize_image
from evenhand.edits import Edit, StoredEdit, edit_fingerprint, save_edit
from evenhand.edits import files as module
from evenhand.edits.files import apply_edit
from evenhand.edits.raster import encode_raster
from evenhand.errors import DiskFullError, InputError

SIZE = 24


def kept(edit: Edit) -> StoredEdit:
    return StoredEdit(edit.requires_grad_(False), {}, edit_fingerprint(edit))


def grey(height: int, width: int, top: int = 255, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.linspace(0, 0.7, height), np.linspace(0, 0.3, width)) + 0.05 * rng.standard_normal((height, width))
    return np.rint(smooth.clip(0, 1) * top).astype(np.uint8 if top == 255 else np.uint16)


def colour(height: int, width: int, top: int = 255) -> np.ndarray:
    return np.dstack([grey(height, width, top, seed) for seed in range(3)])


def expected(edit: Edit, file: Path, resize: Any = "crop") -> np.ndarray:
    """The edited grid image as `prepare` would cache the file, (c, h, w) in the file's own levels."""
    pixels = read_image(file)
    top = np.iinfo(pixels.dtype).max
    channels = (3 if pixels.ndim == 3 else 1) if edit.any_channels else edit.grid[0]
    cached = fit_grid(resize_image(pixels, edit.grid[1], resize), channels, 16 if top > 255 else 8)
    with torch.no_grad():
        edited = edit(torch.from_numpy(cached.astype(np.float32) / top)[None])[0].clamp(0, 1)
    return np.rint(edited.double().numpy() * top).astype(pixels.dtype)


def read(file: Path) -> np.ndarray:
    pixels = read_image(file)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


WAYS = {
    "8-bit-grey.png": lambda path: Image.fromarray(grey(30, 40)).save(path),
    "8-bit-colour.png": lambda path: Image.fromarray(colour(40, 30)).save(path),
    "16-bit-grey.png": lambda path: Image.fromarray(grey(30, 40, 65535)).save(path),
    "16-bit-colour.png": lambda path: path.write_bytes(encode_raster(colour(30, 40, 65535), "PNG")),
    "palette.png": lambda path: Image.fromarray(colour(30, 40)).quantize(16).save(path),
    "transparent.png": lambda path: Image.fromarray(np.dstack([colour(30, 40), grey(30, 40)])).save(path),
    "one-bit.png": lambda path: Image.fromarray(grey(30, 40) > 99).save(path),
    "8-bit.tif": lambda path: Image.fromarray(colour(30, 40)).save(path),
    "16-bit.tiff": lambda path: Image.fromarray(grey(30, 40, 65535)).save(path),
    "float.tif": lambda path: Image.fromarray(grey(30, 40).astype(np.float32) / 255).save(path),
    "plain.bmp": lambda path: Image.fromarray(grey(30, 40)).save(path),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_copy_read_again_is_the_edited_image(name, resize, make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    WAYS[name](tmp_path / "in" / name)
    edit = moved(make(["tone", "spectral"], (3, SIZE, SIZE)), size=5)
    report = apply_edit(kept(edit), tmp_path / "in", tmp_path / "out", resize=resize)
    assert (report.written, report.failed) == ([name], {})
    copy = read(tmp_path / "out" / name)
    wanted = expected(edit, tmp_path / "in" / name, resize)
    assert copy.dtype == wanted.dtype
    assert np.array_equal(copy, wanted)
    with Image.open(tmp_path / "out" / name) as image:
        assert image.format == {"png": "PNG", "tif": "TIFF", "iff": "TIFF", "bmp": "BMP"}[name[-3:]]


@pytest.mark.parametrize(("quality", "most"), [(95, 4.0), (100, 1.5)])
def test_a_jpeg_is_the_edited_image_to_its_loss(quality, most, make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(colour(30, 40)).save(tmp_path / "in" / "a.jpg", quality=95)
    edit = moved(make(["tone"], (3, SIZE, SIZE)), size=5)
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out", quality=quality)
    difference = read(tmp_path / "out" / "a.jpg").astype(float) - expected(edit, tmp_path / "in" / "a.jpg")
    assert float(np.abs(difference).mean()) < most
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.format == "JPEG"


def test_an_edit_of_colours_makes_colour_of_grey_files(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    WAYS["8-bit-grey.png"](tmp_path / "in" / "a.png")
    edit = moved(make(["pixel"], (3, SIZE, SIZE), per_channel=True), size=5)
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out" / "a.png").shape == (3, SIZE, SIZE)
    assert np.array_equal(read(tmp_path / "out" / "a.png"), expected(edit, tmp_path / "in" / "a.png"))


def test_colours_that_a_grey_edit_takes_away_are_said(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for name, pixels in (("colour.png", colour(30, 40)), ("same.png", np.dstack([grey(30, 40)] * 3)), ("grey.png", grey(30, 40))):
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    edit = kept(moved(make(["residual"], (1, SIZE, SIZE)), size=5))
    said = apply_edit(edit, tmp_path / "in", tmp_path / "out")
    assert sum("1 colour files became grey" in note for note in said.notes) == 1
    assert read(tmp_path / "out" / "colour.png").shape == (1, SIZE, SIZE)
    native = apply_edit(edit, tmp_path / "in", tmp_path / "native", native=True)
    assert not any("became grey" in note for note in native.notes)
    assert read(tmp_path / "native" / "colour.png").shape[0] == 3
    anything = apply_edit(kept(make(["residual"], (3, SIZE, SIZE))), tmp_path / "in", tmp_path / "three")
    assert not any("became grey" in note for note in anything.notes)


def test_orientation_is_applied_once_and_the_colour_profile_stays(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colour(SIZE, SIZE)).save(tmp_path / "in" / "a.tif", exif=exif, icc_profile=profile)
    edit = moved(make(["tone"], (3, SIZE, SIZE)), size=5)
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out" / "a.tif"), expected(edit, tmp_path / "in" / "a.tif"))
    with Image.open(tmp_path / "out" / "a.tif") as image:
        assert image.info["icc_profile"] == profile


def test_folders_are_kept_and_other_files_are_counted(make, tmp_path) -> None:
    for name in ("a.png", "deep/er/b.PNG", "deep/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey(30, 40)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / ".hidden.png").write_text("no image")
    seen = []
    stored = kept(make(["tone"], (1, SIZE, SIZE)))
    report = apply_edit(stored, tmp_path / "in", tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert report.written == ["a.png", "deep/c.png", "deep/er/b.PNG"]
    assert report.skipped == 1
    assert seen == [(1, 3), (2, 3), (3, 3)]
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["a.png", "deep/c.png", "deep/er/b.PNG", "edited.json"]
    assert apply_edit(stored, tmp_path / "in" / "a.png", tmp_path / "one").written == ["a.png"]


def test_bad_files_are_said_and_the_others_go_on(make, tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(grey(30, 40)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:-40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    np.save(folder / "array.npy", grey(30, 40))
    os.rename(folder / "array.npy", folder / "array.png")
    report = apply_edit(kept(make(["tone"], (1, SIZE, SIZE))), folder, tmp_path / "out")
    assert report.written == ["good.png"]
    assert sorted(report.failed) == ["array.png", "cut.png", "empty.jpg", "text.png"]
    assert "NumPy files are read but not written" in report.failed["array.png"]
    assert all(report.failed.values())
    json.dumps(report.to_json())


def test_an_edit_that_makes_nonsense_of_an_image_is_said(make, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(grey(30, 40)).save(tmp_path / "in" / "a.png")
    edit = make(["pixel"], (1, SIZE, SIZE), clamp=False)
    with torch.no_grad():
        edit.values[0, 0, 0] = float("nan")
    assert "not finite" in apply_edit(kept(edit), tmp_path / "in", tmp_path / "out").failed["a.png"]


def test_nothing_is_replaced_unless_asked(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(grey(30, 40)).save(tmp_path / "in" / name)
    first, second = kept(moved(make(["tone"], (1, SIZE, SIZE)))), kept(moved(make(["tone"], (1, SIZE, SIZE)), 1))
    apply_edit(first, tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "b.png").write_text("mine")
    report = apply_edit(first, tmp_path / "in", tmp_path / "out")
    assert (report.written, report.existing) == ([], ["a.png", "b.png"])
    assert any("left as they are" in note for note in report.notes)
    assert (tmp_path / "out" / "b.png").read_text() == "mine"
    for other, options in ((second, {}), (first, {"resize": "pad"})):
        with pytest.raises(InputError, match="another edit or other settings"):
            apply_edit(other, tmp_path / "in", tmp_path / "out", **options)
    assert apply_edit(second, tmp_path / "in", tmp_path / "out", overwrite=True).written == ["a.png", "b.png"]
    assert np.array_equal(read(tmp_path / "out" / "b.png"), expected(second.edit, tmp_path / "in" / "b.png"))


def test_originals_are_safe(make, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(grey(30, 40)).save(tmp_path / "in" / "a.png")
    before = (tmp_path / "in" / "a.png").read_bytes()
    stored = kept(make(["tone"], (1, SIZE, SIZE)))
    for images, out in (("in", "in"), ("in", "in/edited"), ("in/a.png", "in")):
        with pytest.raises(InputError, match="folder of the originals"):
            apply_edit(stored, tmp_path / images, tmp_path / out, overwrite=True)
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_what_cannot_be_applied(make, tmp_path) -> None:
    stored = kept(make(["tone"], (1, SIZE, SIZE)))
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="holds no PNG"):
        apply_edit(stored, tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        apply_edit(stored, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="quality 0"):
        apply_edit(stored, tmp_path / "in", tmp_path / "out", quality=0)
    Image.fromarray(grey(30, 40)).save(tmp_path / "in" / "a.png")
    with pytest.raises(InputError, match="square"):
        apply_edit(kept(make(["tone"], (1, SIZE, 2 * SIZE))), tmp_path / "in", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        apply_edit(stored, tmp_path / "in", tmp_path / "file")


def test_a_full_disk_stops_the_run_and_leaves_whole_files(make, tmp_path, monkeypatch) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(grey(30, 40)).save(tmp_path / "in" / f"{name}.png")
    real = module.write_atomic

    def write(path: Path, data: bytes) -> None:
        if path.name == "b.png":
            raise DiskFullError("no space")
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", write)
    with pytest.raises(DiskFullError):
        apply_edit(kept(make(["tone"], (1, SIZE, SIZE))), tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "edited.json"]


def test_a_killed_run_leaves_whole_files_and_goes_on(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(60):
        Image.fromarray(colour(60, 60)).save(tmp_path / "in" / f"{k:02d}.png")
    edit = moved(make(["tone"], (3, 60, 60)))
    (tmp_path / "edit.safetensors").write_bytes(save_edit(edit, {}))
    program = (
        "import sys, time\nfrom evenhand.edits.artifact import load_edit\nfrom evenhand.edits.files import apply_edit\n"
        "apply_edit(load_edit(sys.argv[1]), sys.argv[2], sys.argv[3], progress=lambda done, total: time.sleep(0.02))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *(str(tmp_path / name) for name in ("edit.safetensors", "in", "out"))])
    while len(list((tmp_path / "out").glob("[0-9]*.png"))) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = sorted((tmp_path / "out").glob("[0-9]*.png"))
    assert 5 <= len(whole) < 60
    for file in whole:
        assert read(file).shape == (3, 60, 60)
    report = apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    assert len(report.written) + len(report.existing) == 60
    assert report.existing == [file.name for file in whole]


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(48, 72), (100, 48), (16, 20)], ids=str)
def test_native_files_keep_their_size_and_come_back_to_the_edited_image(resize, shape, make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(grey(*shape)).save(tmp_path / "in" / "a.png")
    edit = moved(make(["lowres"], (1, SIZE, SIZE), resolution=4), size=8)
    report = apply_edit(kept(edit), tmp_path / "in", tmp_path / "out", native=True, resize=resize)
    assert any("native=true" in note for note in report.notes)
    copy, original = read(tmp_path / "out" / "a.png")[0].astype(int), grey(*shape).astype(int)
    assert copy.shape == shape
    again = resize_image(copy.astype(np.uint8), SIZE, resize).astype(int)
    wanted = expected(edit, tmp_path / "in" / "a.png", resize)[0].astype(int)
    seen = resize_image(np.full(shape, 255, np.uint8), SIZE, resize) == 255
    moved_by = np.abs(wanted - resize_image(original.astype(np.uint8), SIZE, resize))[seen].mean()
    assert moved_by > 4
    assert float(np.abs(again - wanted)[seen].mean()) < 0.25 * moved_by
    if resize == "crop" and shape == (48, 72):
        assert np.array_equal(copy[:, :12], original[:, :12])
        assert np.array_equal(copy[:, 60:], original[:, 60:])
        assert (copy != original)[:, 12:60].mean() > 0.8


def test_native_without_a_change_is_the_file_itself(make, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("8-bit-colour.png", "16-bit-grey.png", "16-bit-colour.png"):
        WAYS[name](tmp_path / "in" / name)
    apply_edit(kept(make(["tone"], (3, SIZE, SIZE))), tmp_path / "in", tmp_path / "out", native=True)
    for file in (tmp_path / "in").iterdir():
        assert np.array_equal(read(file), read(tmp_path / "out" / file.name))


def test_an_edit_without_clamp_says_that_files_are(make, moved, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(grey(30, 40)).save(tmp_path / "in" / "a.png")
    edit = moved(make(["pixel"], (1, SIZE, SIZE), clamp=False), size=60)
    report = apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    assert any("not clamped" in note for note in report.notes)
    assert np.array_equal(read(tmp_path / "out" / "a.png"), expected(edit, tmp_path / "in" / "a.png"))
