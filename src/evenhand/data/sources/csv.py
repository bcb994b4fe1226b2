"""Your own data: a table with one row an image, and a folder of images, become a prepared data set."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evenhand.data.cache import build_cache
from evenhand.data.datasets import MODALITIES, SCHEMA, PreparedData, data_hash
from evenhand.data.images import RESIZES, Resize
from evenhand.data.notes import drop_missing, table_notes
from evenhand.data.splits import content_codes, find_leaks, join_units, make_splits, split_shares
from evenhand.data.table import (
    Kind,
    TableSpec,
    attribute_groups,
    check_table,
    class_names,
    image_keys,
    infer_kind,
    label_array,
    nearest,
    read_table,
)
from evenhand.errors import EvenhandError, InputError
from evenhand.files import disk_errors, locked, write_atomic

log = logging.getLogger(__name__)
CANONICAL = ("image", "patient_id", "split")
_YEARS = re.compile(r"^0*(\d+(?:\.\d+)?)\s*(?:y|yr|yrs|year|years)$", re.IGNORECASE)
_OURS = {".lock", "cache", "dataset.yaml", "embeddings", "excluded.csv", "table.csv"}


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
        modality: ``chest_film``, ``dermoscopy``, ``photograph`` or ``fundus``.
        channels: 1 or 3; None: 1 where every image is grey.
        fractions: shares of train, val and test, used where the table has no split column.
        columns: the table's names for image, patient and split.
        workers: decoding processes; None: one a core, or none for few images.
        keep_going: leave unreadable images out (listed in ``excluded.csv``) instead of refusing.
        max_groups: most groups one attribute may have, joint ones included.
        seed: of the splits, where the table has none.
        progress: show progress bars.

    Returns:
        The prepared data set, opened.

    Raises:
        TableError: the table breaks its contract; all problems are in the details.
        ImageError: images are missing or unreadable.
        InputError: an option is wrong, or ``out`` holds something else.
        DiskFullError: no room; nothing half-written is left.
    """
    out, folder = Path(out), Path(images)
    _check_options(folder, modality, resize, columns)
    split_shares(fractions)
    frame, notes = _canonical(read_table(table), columns)
    spec = _make_spec(frame, tuple(labels), tuple(attributes), bins or {}, kind, missing, max_groups)
    frame = _plain_ages(frame, spec, notes)
    frame = _without_repeats(frame, notes)
    check_table(frame, spec)
    if spec.kind == "multiclass":
        spec = replace(spec, classes=class_names(frame, spec.labels[0]))
    dropped = frame.iloc[:0].assign(reason="")
    if missing == "drop":
        frame, dropped = drop_missing(frame, spec)
        check_table(frame, spec)
    config = {
        "spec": spec.to_dict(), "size": size, "resize": resize, "channels": channels, "modality": modality, "seed": seed,
        "fractions": [float(share) for share in fractions], "rows": hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest(),
    }
    source = {"kind": "csv", "table": str(table), "images": str(images)}
    _check_out(out, Path(table), config)
    created = not out.exists()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / ".lock", lambda: log.warning("another process is preparing %s; waiting for it to finish", out)):
            _check_out(out, Path(table), config)
            files = [folder / name for name in image_keys(frame)]
            _, excluded = build_cache(
                files, out / "cache", size=size, resize=resize, channels=channels, workers=workers, keep_going=keep_going, progress=progress
            )
            if not (out / "dataset.yaml").exists():
                _write(out, frame, spec, dropped, excluded, config, source, notes)
    except (EvenhandError, OSError):
        if created:
            for path in (out / "cache", out):
                with suppress(OSError):
                    path.rmdir()
        raise
    return PreparedData.open(out)


def _check_options(images: Path, modality: str, resize: str, columns: Sequence[str]) -> None:
    if not images.is_dir():
        raise InputError(f"images folder {images} is not a folder; give the one that the table's image paths are relative to")
    if modality not in MODALITIES:
        raise InputError(f"modality is '{modality}', but must be one of {', '.join(MODALITIES)}")
    if resize not in RESIZES:
        raise InputError(f"resize is '{resize}', but must be one of {', '.join(RESIZES)}")
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


def _make_spec(
    frame: pd.DataFrame, labels: tuple[str, ...], attributes: tuple[str, ...], bins: Mapping[str, Sequence[float]],
    kind: Kind | None, missing: str, max_groups: int,
) -> TableSpec:
    edges = {name: tuple(float(edge) for edge in values) for name, values in bins.items()}
    attributes = tuple(dict.fromkeys("*".join(part.strip() for part in name.split("*")) for name in attributes))
    labels = tuple(dict.fromkeys(labels))
    return TableSpec(labels, attributes, edges, kind or infer_kind(frame, labels), missing=missing, max_groups=max_groups)


def _plain_ages(frame: pd.DataFrame, spec: TableSpec, notes: list[str]) -> pd.DataFrame:
    """``058Y`` and ``58 years`` become ``58`` in binned columns."""
    for name in (column for column in spec.bins if column in frame):
        text = frame[name].astype("string").str.strip()
        years = text.str.extract(_YEARS, expand=False)
        if years.notna().any():
            example = text[years.notna()].iloc[0]
            notes.append(f"column '{name}': {int(years.notna().sum())} values in years (as {example!r}) are read as numbers")
            frame = frame.assign(**{name: years.fillna(text).astype(object)})
    return frame


def _without_repeats(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    repeated = frame.duplicated()
    if repeated.any():
        notes.append(f"{int(repeated.sum())} rows repeat an earlier row exactly and were taken once")
        return frame[~repeated].reset_index(drop=True)
    return frame


def _check_out(out: Path, table: Path, config: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to write the data set to")
    if not out.exists():
        return
    if table.resolve().parent == out.resolve():
        raise InputError(f"{out} holds the source table; give another folder to write the data set to")
    if (out / "dataset.yaml").exists():
        old = PreparedData.open(out).description["config"]
        differing = [name for name in config if old.get(name) != config[name]]
        if differing:
            other = ", ".join(differing)
            raise InputError(f"{out} holds a data set of another configuration (other {other}); choose another folder, or delete it")
        return
    foreign = sorted({path.name for path in out.iterdir()} - _OURS)
    if foreign or ((out / "table.csv").exists() and not (out / "cache").is_dir()):
        raise InputError(f"{out} is not empty ({', '.join(foreign[:3] or ['table.csv'])}); give a new folder to write the data set to")


def _write(
    out: Path, frame: pd.DataFrame, spec: TableSpec, dropped: pd.DataFrame, excluded: Mapping[int, str],
    config: Mapping[str, Any], source: Mapping[str, str], notes: list[str],
) -> None:
    import yaml

    from evenhand.data.cache import ImageCache

    cache = ImageCache.open(out / "cache")
    bad = sorted(excluded)
    unread = frame.iloc[bad].assign(reason=[excluded[row] for row in bad])
    frame = frame.drop(index=bad).reset_index(drop=True)
    check_table(frame, spec)
    frame = _with_splits(frame, spec, cache.hashes, config, notes)
    data = frame.to_csv(index=False, lineterminator="\n").encode()
    left_out = pd.concat([dropped, unread], ignore_index=True)
    for n, what in ((len(dropped), "a missing attribute"), (len(unread), "an image that cannot be read")):
        if n:
            notes.append(f"{n} rows were left out for {what} (excluded.csv)")
    notes += table_notes(frame, spec) + find_leaks(frame["split"].to_numpy(str), _patients(frame), cache.hashes).sentences()
    for note in notes:
        log.warning("%s", note)
    table_hash = hashlib.sha256(data).hexdigest()
    description = {
        "schema": SCHEMA, "name": out.resolve().name, "modality": config["modality"], "spec": spec.to_dict(),
        "image": {"channels": cache.shape[0], "size": config["size"], "resize": config["resize"], "dtype": cache.dtype.name},
        "counts": split_counts(frame, spec), "excluded": {"missing_attribute": len(dropped), "unreadable_image": len(unread)},
        "notes": notes, "source": dict(source), "config": dict(config),
        "hashes": {"table": table_hash, "images": cache.fingerprint, "data": data_hash(table_hash, cache.fingerprint)},
    }
    write_atomic(out / "table.csv", data)
    if len(left_out):
        write_atomic(out / "excluded.csv", left_out.to_csv(index=False, lineterminator="\n").encode())
    # plain JSON types only: tuples and numpy numbers would become YAML tags
    text = yaml.safe_dump(json.loads(json.dumps(description)), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(out / "dataset.yaml", text.encode())


def _patients(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    return pd.factorize(frame["patient_id"])[0].astype(np.int64)


def _with_splits(
    frame: pd.DataFrame, spec: TableSpec, hashes: np.ndarray[Any, np.dtype[np.uint8]], config: Mapping[str, Any], notes: list[str]
) -> pd.DataFrame:
    """Fill patient_id and split; images of equal content stay in one split where the split is ours to make."""
    if "patient_id" not in frame:
        frame = frame.assign(patient_id=[f"image-{row + 1}" for row in range(len(frame))])
    frame = frame.assign(patient_id=frame["patient_id"].astype("string").str.strip().astype(object), image=image_keys(frame).astype(object))
    if "split" in frame:
        return frame.assign(split=frame["split"].astype("string").str.strip().astype(object))
    units = join_units(_patients(frame), content_codes(hashes))
    split = make_splits(units, strata(frame, spec), config["fractions"], config["seed"])
    counts = ", ".join(f"{name} {int((split == name).sum())}" for name in ("train", "val", "test"))
    notes.append(f"the table has no split column: split by patient with seed {config['seed']} ({counts} rows)")
    return frame.assign(split=split.astype(object))


def strata(frame: pd.DataFrame, spec: TableSpec) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 (n,): first label x first attribute, unlabelled and missing being levels of their own."""
    labels = label_array(frame, spec)
    first = labels if spec.kind == "multiclass" else np.nan_to_num(labels[:, 0], nan=-1).astype(np.int64)
    if not spec.attributes:
        return np.asarray(first + 1, dtype=np.int64)
    groups = attribute_groups(frame, replace(spec, attributes=spec.attributes[:1]))[spec.attributes[0]]
    return np.asarray((first + 1) * (len(groups.keys) + 1) + groups.codes + 1, dtype=np.int64)


def split_counts(frame: pd.DataFrame, spec: TableSpec) -> dict[str, dict[str, Any]]:
    """Rows, patients and positives (or rows of each class) of every split."""
    labels = label_array(frame, spec)
    counts: dict[str, dict[str, Any]] = {}
    for split in ("train", "val", "test"):
        rows = (frame["split"] == split).to_numpy(bool)
        if spec.kind == "multiclass":
            per_label = {name: int((labels[rows] == code).sum()) for code, name in enumerate(spec.classes)}
        else:
            per_label = {name: int(np.nansum(labels[rows, k])) for k, name in enumerate(spec.labels)}
        counts[split] = {"rows": int(rows.sum()), "patients": int(frame["patient_id"][rows].nunique()), "positives": per_label}
    return counts
