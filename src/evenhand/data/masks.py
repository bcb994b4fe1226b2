"""Mask files: PNG, NumPy and NIfTI segmentations as small integers, with the size of a voxel where the file says it.

0 is background. A mask whose values are 0 and one other (1, or 255) has one class, "foreground", whatever that value is;
with more values every value is a class of its own.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.errors import ImageError, InputError
from evenhand.optional import require

IntArray = npt.NDArray[np.int64]

ENDINGS = (".png", ".npy", ".npz", ".nii", ".nii.gz")
MOST_CLASSES = 255
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Mask:
    """One segmentation.

    Attributes:
        labels: int64 (h, w) or (x, y, z), 0 is background.
        spacing: size of a voxel along each axis, in mm, where the file says it; else None.
        axes: orientation of the axes, as ``RAS``, where the file says it; else empty.
    """

    labels: IntArray
    spacing: tuple[float, ...] | None = None
    axes: str = ""

    @property
    def values(self) -> tuple[int, ...]:
        """The values that occur, without background, ascending."""
        return tuple(int(value) for value in np.unique(self.labels) if value)


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """Read a mask by its file's ending.

    - ``.png``: 1, 8 or 16 bits, grey or palette (the palette's positions); colour only where all channels agree.
    - ``.npy``, ``.npz``: whole numbers or booleans, (h, w) or (x, y, z); an archive holds one array.
    - ``.nii``, ``.nii.gz``: with the header's spacing; needs nibabel (extra ``masks``).

    Axes of length 1 at the end (or the start) are taken off.

    Raises:
        ImageError: no such file, of another kind, damaged, or not a mask (fractions, negative values, too many values).
        DependencyError: NIfTI without nibabel.
    """
    file = Path(path)
    ending = next((end for end in reversed(ENDINGS) if file.name.lower().endswith(end)), None)
    if ending is None:
        raise ImageError(f"masks are {', '.join(ENDINGS)} files, but this is '{file.name}'; convert it without loss")
    if not file.is_file():
        raise ImageError("there is no such file")
    spacing, axes = None, ""
    try:
        if ending == ".png":
            array = _png(file)
        elif ending in (".npy", ".npz"):
            array = _numpy(file)
        else:
            array, spacing, axes = _nifti(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].replace(str(file), file.name)
        raise ImageError(f"cannot be read as a mask ({first})") from error
    labels, kept = _squeezed(array)
    return Mask(_whole(labels), None if spacing is None else tuple(spacing[i] for i in kept), axes)


def _png(file: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(file) as image:
        if image.format != "PNG":
            raise ImageError(f"is named .png but is {image.format}, which may have changed the values; save it as PNG")
        array = np.asarray(image)
    if array.ndim == 3:
        colour = array[..., :3] if array.shape[-1] in (3, 4) else array[..., :1]
        if not (colour == colour[..., :1]).all():
            raise ImageError("is a colour picture; a mask has one channel, with a number for each class")
        array = colour[..., 0]
    return array


def _numpy(file: Path) -> npt.NDArray[Any]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise ImageError(f"holds {len(loaded.files)} arrays ({', '.join(loaded.files[:5])}), but a mask archive holds one")
            return np.asarray(loaded[loaded.files[0]])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        # numpy takes every other file for a pickle, and advises to load what may run code
        raise ImageError(
            "cannot be read as a NumPy array of numbers (damaged, of another kind, or Python objects); save it with numpy.save"
        ) from error


def _nifti(file: Path) -> tuple[npt.NDArray[Any], tuple[float, ...], str]:
    nibabel = require("nibabel", "masks", "Reading NIfTI masks")
    try:
        image = nibabel.load(file)
        array = np.asanyarray(image.dataobj)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ImageError("cannot be read as NIfTI (damaged, truncated or of another kind)") from error
    # the header holds single precision
    zooms = tuple(round(float(step), 6) for step in image.header.get_zooms())
    return array, zooms, "".join(str(axis) for axis in nibabel.aff2axcodes(image.affine))


def _squeezed(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], list[int]]:
    """An array of two or three axes, and which axes of the file these are."""
    kept = list(range(array.ndim))
    while len(kept) > 2 and array.shape[-1] == 1:
        array, kept = array[..., 0], kept[:-1]
    while len(kept) > 2 and array.shape[0] == 1:
        array, kept = array[0], kept[1:]
    if len(kept) not in (2, 3):
        raise ImageError(f"has {len(kept)} axes of shape {array.shape}; a mask has 2 or 3")
    if not array.size:
        raise ImageError(f"is empty, of shape {array.shape}")
    return array, kept


def _whole(array: npt.NDArray[Any]) -> IntArray:
    if array.dtype.kind not in "buif":
        raise ImageError(f"holds values of the type {array.dtype}; a mask holds whole numbers")
    if array.dtype.kind == "f" and (not np.isfinite(array).all() or (array != np.round(array)).any()):
        raise ImageError("holds fractions, as of probabilities; a mask holds whole numbers: apply the threshold first")
    labels = array.astype(np.int64)
    if labels.min() < 0:
        raise ImageError(f"holds negative values (lowest {labels.min()}); a mask holds 0 for background and positive numbers for classes")
    n_values = len(np.unique(labels))
    if n_values > MOST_CLASSES + 1:
        raise ImageError(f"holds {n_values} different values, more than a mask has ({MOST_CLASSES} classes); is it the image itself?")
    return labels


def check_pair(pred: Mask, true: Mask) -> None:
    """Refuse two masks that do not lie on one grid.

    Raises:
        ImageError: shapes, voxel sizes or orientations differ.
    """
    if pred.labels.shape != true.labels.shape:
        raise ImageError(f"the predicted mask has the shape {pred.labels.shape}, the true one {true.labels.shape}; put both on one grid")
    if pred.spacing and true.spacing and not np.allclose(pred.spacing, true.spacing, rtol=_TOLERANCE):
        sizes = [" x ".join(f"{step:g}" for step in mask.spacing or ()) for mask in (pred, true)]
        raise ImageError(f"the predicted mask has voxels of {sizes[0]} mm, the true one of {sizes[1]} mm; put both on one grid")
    if pred.axes and true.axes and pred.axes != true.axes:
        raise ImageError(f"the predicted mask is oriented {pred.axes}, the true one {true.axes}; put both on one grid")


def find_files(names: Sequence[str | None], folder: Path, column: str) -> list[Path | None]:
    """The file of every cell, relative to a folder; None where the cell is empty.

    Raises:
        InputError: files that are not there; nothing was read.
    """
    found = [None if name is None else folder / name for name in names]
    absent = [(row, file) for row, file in enumerate(found) if file is not None and not file.is_file()]
    if absent:
        some = "file" if len(absent) == 1 else "files"
        raise InputError(
            f"column '{column}' names {len(absent)} {some} that cannot be found in {folder}; correct the names or give --images DIR",
            [f"row {row + 1}: {names[row]}" for row, _ in absent],
        )
    return found
