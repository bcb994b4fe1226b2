"""Mask files of every kind give the same numbers; what is no mask, or lies on another grid, is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from evenhand.data.masks import Mask, check_pair, find_files, read_mask
from evenhand.errors import ImageError, InputError

SQUARE = np.zeros((12, 16), np.uint8)
SQUARE[3:8, 4:9] = 1
SQUARE[9:11, 4:9] = 2


def nifti(path: Path, array: npt.NDArray[Any], spacing: tuple[float, ...] = (1.0, 1.0, 1.0), flip: bool = False) -> Path:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([*spacing, 1.0])
    affine[0, 0] *= -1 if flip else 1
    image = nibabel.Nifti1Image(array, affine)
    nibabel.save(image, path)
    return path


def written(folder: Path, kind: str) -> Path:
    path = folder / f"mask{kind}"
    if kind == ".npy":
        np.save(path, SQUARE)
    elif kind == ".npz":
        np.savez_compressed(path, mask=SQUARE)
    elif kind.startswith(".nii"):
        nifti(path, SQUARE[..., None])
    elif kind == ".PNG":
        Image.fromarray(SQUARE).save(path, "PNG")
    else:
        depth = kind.partition("-")[2]
        path = folder / f"mask{depth}.png"
        array = {"8": SQUARE, "16": SQUARE.astype(np.uint16), "colour": np.repeat(SQUARE[..., None], 3, axis=2)}.get(depth)
        picture = Image.fromarray(SQUARE) if array is None else Image.fromarray(array)
        if depth == "palette":
            picture = picture.convert("P")
            picture.putdata(SQUARE.ravel().tolist())
        picture.save(path)
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".nii", ".nii.gz", ".PNG", "png-8", "png-16", "png-colour", "png-palette"])
def test_every_kind_of_file_gives_the_same_numbers(tmp_path: Path, kind: str) -> None:
    mask = read_mask(written(tmp_path, kind))
    assert np.array_equal(mask.labels, SQUARE)
    assert mask.values == (1, 2)


def test_one_bit_png_and_booleans_are_masks(tmp_path: Path) -> None:
    Image.fromarray(SQUARE > 0).save(tmp_path / "bit.png")
    np.save(tmp_path / "bool.npy", SQUARE > 0)
    for name in ("bit.png", "bool.npy"):
        assert len(read_mask(tmp_path / name).values) == 1


def test_spacing_and_orientation_come_from_the_header(tmp_path: Path) -> None:
    volume = np.zeros((4, 5, 6), np.int16)
    volume[1:3, 1:3, 1:3] = 1
    mask = read_mask(nifti(tmp_path / "a.nii.gz", volume, (0.5, 0.5, 2.0)))
    assert mask.spacing == (0.5, 0.5, 2.0)
    assert mask.axes == "RAS"
    assert read_mask(nifti(tmp_path / "b.nii", volume, flip=True)).axes == "LAS"
    assert read_mask(nifti(tmp_path / "flat.nii", volume[:, :, :1], (0.5, 0.7, 9.0))).spacing == (0.5, 0.7)
    np.save(tmp_path / "c.npy", volume)
    assert read_mask(tmp_path / "c.npy").spacing is None


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.full((4, 4), 0.3), "holds fractions"),
        (np.full((4, 4), np.nan), "holds fractions"),
        (np.full((4, 4), -1), "negative values"),
        (np.arange(400).reshape(20, 20), "400 different values"),
        (np.zeros((2, 3, 4, 5), np.uint8), "4 axes"),
        (np.zeros(4, np.uint8), "1 axes"),
        (np.zeros((0, 4), np.uint8), "is empty"),
        (np.full((4, 4), "a"), "type"),
    ],
)
def test_arrays_that_are_no_masks_are_refused(tmp_path: Path, array: npt.NDArray[Any], text: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=text):
        read_mask(tmp_path / "a.npy")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.npy", "a.npz", "a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"not a mask at all")
        with pytest.raises(ImageError, match="cannot be read as"):
            read_mask(tmp_path / name)
    whole = nifti(tmp_path / "whole.nii.gz", np.zeros((20, 20, 20), np.int16)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read as"):
        read_mask(tmp_path / "cut.nii.gz")
    Image.fromarray(SQUARE).save(tmp_path / "photo.jpg")
    with pytest.raises(ImageError, match=r"but this is 'photo\.jpg'"):
        read_mask(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").rename(tmp_path / "photo.png")
    with pytest.raises(ImageError, match="is JPEG"):
        read_mask(tmp_path / "photo.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match="colour picture"):
        read_mask(tmp_path / "colour.png")
    np.savez(tmp_path / "two.npz", a=SQUARE, b=SQUARE)
    with pytest.raises(ImageError, match="holds 2 arrays"):
        read_mask(tmp_path / "two.npz")
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "absent.png")
    # pickles run code when loaded
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("object.npy", "text.npy", "text.npz"):
        with pytest.raises(ImageError, match=r"cannot be read as a NumPy array of numbers .* save it with numpy\.save") as caught:
            read_mask(tmp_path / name)
        assert "pickle" not in str(caught.value)


def test_pairs_on_different_grids_are_refused() -> None:
    labels = np.ones((4, 5), np.int64)
    check_pair(Mask(labels, (1.0, 1.0), "RA"), Mask(labels, None))
    with pytest.raises(ImageError, match=r"shape \(4, 5\), the true one \(5, 4\)"):
        check_pair(Mask(labels), Mask(labels.T))
    with pytest.raises(ImageError, match="voxels of 1 x 1 mm, the true one of 1 x 2 mm"):
        check_pair(Mask(labels, (1.0, 1.0)), Mask(labels, (1.0, 2.0)))
    with pytest.raises(ImageError, match="oriented RA, the true one LA"):
        check_pair(Mask(labels, (1.0, 1.0), "RA"), Mask(labels, (1.0, 1.0), "LA"))


def test_absent_files_are_named_before_anything_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SQUARE)
    assert find_files(["a.npy", None], tmp_path, "pred") == [tmp_path / "a.npy", None]
    with pytest.raises(InputError, match="names 1 file that cannot be found") as caught:
        find_files(["a.npy", "b.npy"], tmp_path, "pred")
    assert caught.value.details == ("row 2: b.npy",)
