"""Your own data: a table with one row an image, and a folder of images, become a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from evenhand.data.datasets import PreparedData
from evenhand.data.images import Resize
from evenhand.data.prepare import Origin, Settings, make_spec, prepare_frame
from evenhand.data.references import is_there
from evenhand.data.table import Kind, nearest, read_table
from evenhand.errors import InputError

CANONICAL = ("image", "patient_id", "split")


def prepare_csv(
    table: str | Path,
    out: str | Path,
    *,
    images: str | Path,
    labels: Sequence[str],
    attributes: Sequence[str] = (),
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    size: int = 224,
    resize: Resize = "crop",
    kind: Kind | None = None,
    modality: str = "photograph",
    channels: int | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    columns: Sequence[str] = CANONICAL,
    workers: int | None = None,
    keep_going: bool = False,
    max_groups: int = 50,
    seed: int = 0,
    progress: bool = False,
    shared: bool = False,
    dicom_window: str | None = None,
) -> PreparedData:
    """Check a table, decode its images once, and write a prepared data set.

    The same call goes on after a kill, and does nothing where the data set is finished.

    Args:
        table: CSV, TSV or parquet, one row an image; columns as in `evenhand.data.table`.
        out: folder to write; it must be new, empty, or from the same call.
        images: folder that the table's image paths are relative to.
        labels: label columns: 0/1, or one column of class names.
        attributes: sensitive attributes, joint ones as ``sex*age``.
        bins: numeric attribute -> increasing edges of half-open bins.
        missing: rows with a missing attribute: ``own_group`` (kept and shown apart), ``drop`` or ``error``.
        size: side of the stored images in pixels.
        resize: ``crop`` (short side, then centre), ``pad`` or ``stretch``.
        kind: ``binary``, ``multiclass`` or ``multilabel``; None: told from the labels.
        modality: ``chest_film``, ``dermoscopy``, ``photograph``, ``fundus``, ``oct``, ``ct`` or ``mri``.
        channels: 1 or 3; None: 1 where every image is grey.
        fractions: shares of train, val and test, used where the table has no split column.
        columns: the table's names for image, patient and split.
        workers: decoding processes; None: one a core, or none for few images.
        keep_going: leave unreadable images out (listed in ``excluded.csv``) instead of refusing.
        max_groups: most groups one attribute may have, joint ones included.
        seed: of the splits, where the table has none.
        progress: show progress bars.
        shared: share the decoding with every process, on this machine or others, that makes the same call on the same ``out``.
        dicom_window: the window of DICOM images: the number of one in the header, from 0, or ``CENTRE,WIDTH``; None: the first.

    Returns:
        The prepared data set, opened.

    Raises:
        TableError: the table breaks its contract; all problems are in the details.
        ImageError: images are missing or unreadable.
        InputError: an option is wrong, or ``out`` holds something else.
        DiskFullError: no room; nothing half-written is left.
    """
    settings = Settings(size, resize, modality, channels, fractions, seed, workers, keep_going, progress, shared, dicom_window)
    _check_options(Path(images), columns)
    settings.check()
    frame, notes = _canonical(read_table(table), columns)
    frame = _with_slashes(frame, Path(images), notes)
    spec = make_spec(frame, labels, attributes, bins or {}, kind, missing, max_groups)
    source = {"kind": "csv", "table": str(table), "images": str(images)}
    return prepare_frame(frame, spec, Path(out), Origin(Path(images), source, table=Path(table), notes=notes), settings)


def _check_options(images: Path, columns: Sequence[str]) -> None:
    if not images.is_dir():
        raise InputError(f"images folder {images} is not a folder; give the one that the table's image paths are relative to")
    if len(columns) != 3:
        raise InputError(f"columns are {list(columns)}, but must be three names: image, patient and split")


def _canonical(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The table with its columns called image, patient_id and split."""
    for given, name in zip(columns, CANONICAL, strict=True):
        if given != name and given not in frame:
            raise InputError(f"column '{given}' ({name}) is not in the table; {nearest(given, map(str, frame.columns))}")
        if given != name and name in frame:
            raise InputError(f"column '{given}' was given for {name}, but the table also has a column '{name}'; rename one of them")
    frame = frame.rename(columns=dict(zip(columns, CANONICAL, strict=True)))
    notes = []
    if "patient_id" not in frame:
        notes.append("the table has no patient_id column: each image is taken as its own patient")
    return frame, notes


def _with_slashes(frame: pd.DataFrame, images: Path, notes: list[str]) -> pd.DataFrame:
    """Paths of Windows, ``a\\b.png``, as ``a/b.png``; where a file has the backslash in its name it is left."""
    if "image" not in frame:
        return frame
    cells = frame["image"].astype("string")
    there = [str(cell) for cell in cells[cells.str.contains("\\", regex=False).fillna(False)].unique()]
    turned = {cell: cell.replace("\\", "/") for cell in there if not is_there(images / cell)}
    if not turned:
        return frame
    notes.append(f"{int(cells.isin(turned).sum()):,} image paths are written with backslashes, as Windows does, and were read with slashes")
    return frame.assign(image=frame["image"].map(lambda cell: turned.get(cell, cell)))
