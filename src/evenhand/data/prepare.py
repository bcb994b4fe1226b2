"""From a table in memory to a prepared data set: checks, the decode-once cache, splits by patient, and ``dataset.yaml``.

Every source of data ends here: it brings a table with one row an image and the folder that its image paths are relative to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.cache import ImageCache, build_cache
from evenhand.data.datasets import MODALITIES, SCHEMA, PreparedData, data_hash
from evenhand.data.images import RESIZES, Resize
from evenhand.data.notes import drop_missing, table_notes
from evenhand.data.references import rules_note, window_keys, with_window
from evenhand.data.splits import content_codes, find_leaks, join_units, make_splits, split_shares
from evenhand.data.table import Kind, TableSpec, attribute_groups, check_table, class_names, image_keys, infer_kind, label_array
from evenhand.errors import EvenhandError, InputError, TableError
from evenhand.files import disk_errors, locked, write_atomic

log = logging.getLogger(__name__)
REST = "rest"
"""A split that is drawn into train and val by patient; only public sources have it."""
_YEARS = re.compile(r"^0*(\d+(?:\.\d+)?)\s*(?:y|yr|yrs|year|years)$", re.IGNORECASE)
_OURS = {".lock", "cache", "card.html", "card.json", "dataset.yaml", "embeddings", "excluded.csv", "table.csv"}


@dataclass(frozen=True)
class Settings:
    """How a table becomes a prepared data set.

    Attributes:
        size: side of the stored images in pixels.
        resize: ``crop``, ``pad`` or ``stretch``.
        modality: one of `evenhand.data.datasets.MODALITIES`.
        channels: 1 or 3; None: 1 where every image is grey.
        fractions: shares of train, val and test, used where the table has no split column.
        seed: of the splits.
        workers: decoding processes; None: one a core, or none for few images.
        keep_going: leave unreadable images out (listed in ``excluded.csv``) instead of refusing.
        progress: show progress bars.
        shared: share the decoding with every process, on this machine or others, that prepares the same data set in the same folder.
        dicom_window: the window of DICOM images: the number of one in the header, from 0, or ``CENTRE,WIDTH``; None: the first.
    """

    size: int = 224
    resize: Resize = "crop"
    modality: str = "photograph"
    channels: int | None = None
    fractions: Sequence[float] = (0.7, 0.1, 0.2)
    seed: int = 0
    workers: int | None = None
    keep_going: bool = False
    progress: bool = False
    shared: bool = False
    dicom_window: str | None = None

    def check(self) -> None:
        """Refuse wrong options before anything is read.

        Raises:
            InputError: size, channels, modality, resize, fractions or window are none of those there are.
        """
        if self.modality not in MODALITIES:
            raise InputError(f"modality is '{self.modality}', but must be one of {', '.join(MODALITIES)}")
        if not 1 <= self.size <= 8192:
            raise InputError(f"size is {self.size}, but must be 1 to 8192 pixels")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels is {self.channels}, but must be 1 or 3")
        if self.resize not in RESIZES:
            raise InputError(f"resize is '{self.resize}', but must be one of {', '.join(RESIZES)}")
        split_shares(self.fractions)
        if self.dicom_window is not None:
            window_keys(self.dicom_window)


@dataclass(frozen=True)
class Origin:
    """Where a table came from.

    Attributes:
        images: the folder that its image paths are relative to.
        source: what ``dataset.yaml`` records of it.
        choices: further choices that a finished data set must agree with to be taken up again.
        table: the table's file, where there is one.
        left_out: rows that the source has left out, with their ``reason``.
        notes: what the source has to say.
    """

    images: Path
    source: Mapping[str, Any]
    choices: Mapping[str, Any] = field(default_factory=dict)
    table: Path | None = None
    left_out: pd.DataFrame | None = None
    notes: Sequence[str] = ()


def make_spec(
    frame: pd.DataFrame, labels: Sequence[str], attributes: Sequence[str], bins: Mapping[str, Sequence[float]],
    kind: Kind | None, missing: str, max_groups: int = 50,
) -> TableSpec:
    """How a table is read; names that are given twice are taken once, and the kind is told from the labels where it is None."""
    edges = {name: tuple(float(edge) for edge in values) for name, values in bins.items()}
    attributes = tuple(dict.fromkeys("*".join(part.strip() for part in name.split("*")) for name in attributes))
    labels = tuple(dict.fromkeys(labels))
    return TableSpec(labels, attributes, edges, kind or infer_kind(frame, labels), missing=missing, max_groups=max_groups)


def prepare_frame(frame: pd.DataFrame, spec: TableSpec, out: Path, origin: Origin, settings: Settings) -> PreparedData:
    """Check a table, decode its images once, and write a prepared data set; goes on after a kill.

    Args:
        frame: one row an image, every cell as text: ``image``, label and attribute columns, and ``patient_id`` and ``split`` where
            they are known; rows of the split ``rest`` are drawn into train and val by patient.
        spec: how it is read.
        out: folder to write; it must be new, empty, or from the same call.
        origin: where the table came from.
        settings: how the images are stored and splits are drawn.

    Returns:
        The prepared data set, opened.

    Raises:
        TableError: the table breaks its contract; all problems are in the details.
        ImageError: images are missing or unreadable.
        InputError: ``out`` holds something else.
        DiskFullError: no room; nothing half-written is left.
    """
    check_writable(out)
    notes = list(origin.notes)
    frame = _plain_ages(frame, spec, notes)
    frame = _without_repeats(frame, notes)
    try:
        check_table(_without_rest(frame), spec)
    except TableError:
        for note in notes:  # what was read may say why the table is as it is
            log.warning("%s", note)
        raise
    if settings.dicom_window is not None:
        frame = frame.assign(image=with_window(image_keys(frame).tolist(), origin.images, settings.dicom_window))
    notes += rules_note(image_keys(frame).tolist())
    if spec.kind == "multiclass":
        spec = replace(spec, classes=class_names(frame, spec.labels[0]))
    dropped = frame.iloc[:0].assign(reason="")
    if spec.missing == "drop":
        frame, dropped = drop_missing(frame, spec)
        check_table(_without_rest(frame), spec)
    config = {
        **origin.choices, "spec": spec.to_dict(), "size": settings.size, "resize": settings.resize, "channels": settings.channels,
        "modality": settings.modality, "seed": settings.seed, "fractions": [float(share) for share in settings.fractions],
        "rows": hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest(),
    }
    _check_out(out, origin.table, config)
    created = not out.exists()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        waiting = lambda: log.warning("another process is preparing %s; waiting for it to finish", out)  # noqa: E731
        # several processes that share the work write the same table, each file whole: they need no lock
        with nullcontext() if settings.shared else locked(out / ".lock", waiting):
            _check_out(out, origin.table, config)
            finished = (out / "dataset.yaml").exists()
            if finished:
                log.info("%s is finished already, and is left as it is", out)
            for note in () if finished else notes:
                log.warning("%s", note)
            files = [os.path.join(origin.images, name) for name in image_keys(frame)]
            _, excluded = build_cache(
                files, out / "cache", size=settings.size, resize=settings.resize, channels=settings.channels,
                workers=settings.workers, keep_going=settings.keep_going, progress=settings.progress, shared=settings.shared,
            )
            if not (out / "dataset.yaml").exists():
                _write(out, frame, spec, dropped, excluded, config, origin, notes)
    except (EvenhandError, OSError):
        if created:
            for path in (out / "cache", out):
                with suppress(OSError):
                    path.rmdir()
        raise
    return PreparedData.open(out)


def check_writable(out: Path) -> None:
    """Refuse a place that cannot be written, without writing anything; several processes may ask at once.

    Raises:
        InputError: a file is in the way, or the right is lacking.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if place.is_file() and place != out:
        raise InputError(f"{out} cannot be written: {place} is a file; choose another folder for the data set")
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        advice = "give yourself the right, or choose another folder for the data set"
        raise InputError(f"{out} cannot be written: there is no right to write in {place}; {advice}")


def _without_rest(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(split=frame["split"].replace(REST, "train")) if "split" in frame else frame


def _plain_ages(frame: pd.DataFrame, spec: TableSpec, notes: list[str]) -> pd.DataFrame:
    """``058Y`` and ``58 years`` become ``58`` in binned columns."""
    for name in (column for column in spec.bins if column in frame):
        text = frame[name].astype("string").str.strip()
        years = text.str.extract(_YEARS, expand=False)
        if years.notna().any():
            example = text[years.notna()].iloc[0]
            read = counted(int(years.notna().sum()), f"value in years (as {example!r}) is", f"values in years (as {example!r}) are")
            notes.append(f"column '{name}': {read} read as numbers")
            frame = frame.assign(**{name: years.fillna(text).astype(object)})
    return frame


def _without_repeats(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    repeated = frame.duplicated()
    if repeated.any():
        rows = counted(int(repeated.sum()), "row repeats an earlier row exactly and was", "rows repeat an earlier row exactly and were")
        notes.append(f"{rows} taken once")
        return frame[~repeated].reset_index(drop=True)
    return frame


def _check_out(out: Path, table: Path | None, config: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to write the data set to")
    if not out.exists():
        return
    if table is not None and table.resolve().parent == out.resolve():
        raise InputError(f"{out} holds the source table; give another folder to write the data set to")
    if (out / "dataset.yaml").exists():
        old = PreparedData.open(out).description["config"]
        if any(old.get(name) != config[name] for name in config):
            other = config_differences(old, config)
            raise InputError(f"{out} holds a data set of another configuration ({other}); choose another folder, or delete it")
        return
    foreign = sorted(path.name for path in out.iterdir() if not _is_ours(path.name))
    if foreign or ((out / "table.csv").exists() and not (out / "cache").is_dir()):
        raise InputError(f"{out} is not empty ({', '.join(foreign[:3] or ['table.csv'])}); give a new folder to write the data set to")


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What a finished data set was made with and what is asked for now, in words.

    Example:
        >>> config_differences({"size": 224, "spec": {"labels": ["y"]}}, {"size": 64, "spec": {"labels": ["y", "z"]}})
        'size: 224 there, 64 here; labels: y there, y, z here'
    """
    if (old.get("source") or {}).get("name") != (new.get("source") or {}).get("name"):
        names = [(config.get("source") or {}).get("name", "csv") for config in (old, new)]
        return f"data set: {names[0]} there, {names[1]} here"
    words = [
        f"{name}: {_told(before)} there, {_told(now)} here"
        for (name, before), now in zip(_leaves(old, new), [now for _, now in _leaves(new, old)], strict=True)
        if before != now and name not in ("rows", "classes")
    ]
    return "; ".join(words) or "the same choices, but other rows: the source's files have changed, or this version reads them otherwise"


def _leaves(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every setting of either configuration by its own name, with its value in the first; None where that has none."""
    leaves: list[tuple[str, Any]] = []
    for name in sorted({*config, *other}):
        value, beside = config.get(name), other.get(name)
        if name != "bins" and (isinstance(value, Mapping) or isinstance(beside, Mapping)):
            leaves += _leaves(value or {}, beside or {})
        else:
            leaves.append((name, value))
    return leaves


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_told(part).replace(' ', '')}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value[:4])) + (f", … ({len(value)} in all)" if len(value) > 4 else "") or "none"
    return "not given" if value is None else str(value)


def _is_ours(name: str) -> bool:
    """Files of a prepared data set, also those that another process is just writing or that a kill has left."""
    return name in _OURS or (name.endswith(".tmp") and name.startswith(tuple(f".{known}." for known in _OURS)))


def _write(
    out: Path, frame: pd.DataFrame, spec: TableSpec, dropped: pd.DataFrame, excluded: Mapping[int, str],
    config: Mapping[str, Any], origin: Origin, notes: list[str],
) -> None:
    import yaml

    cache = ImageCache.open(out / "cache")
    said = len(notes)
    bad = sorted(excluded)
    unread = frame.iloc[bad].assign(reason=[excluded[row] for row in bad])
    frame = frame.drop(index=bad).reset_index(drop=True)
    check_table(_without_rest(frame), spec)
    frame = _with_splits(frame, spec, cache.hashes, config, notes)
    data = frame.to_csv(index=False, lineterminator="\n").encode()
    parts = [dropped, unread] if origin.left_out is None else [origin.left_out, dropped, unread]
    left_out = pd.concat(parts, ignore_index=True)
    for n, what in ((len(dropped), "a missing attribute"), (len(unread), "an image that cannot be read")):
        if n:
            notes.append(f"{counted(n, 'row was', 'rows were')} left out for {what} (excluded.csv)")
    notes += table_notes(frame, spec) + find_leaks(frame["split"].to_numpy(str), _patients(frame), cache.hashes).sentences()
    for note in notes[said:]:
        log.warning("%s", note)
    table_hash = hashlib.sha256(data).hexdigest()
    gone = {"missing_attribute": len(dropped), "unreadable_image": len(unread)}
    if origin.left_out is not None:
        gone["definition"] = len(origin.left_out)
    description = {
        "schema": SCHEMA, "name": out.resolve().name, "modality": config["modality"], "spec": spec.to_dict(),
        "image": {"channels": cache.shape[0], "size": config["size"], "resize": config["resize"], "dtype": cache.dtype.name},
        "counts": split_counts(frame, spec), "excluded": gone,
        "notes": notes, "source": dict(origin.source), "config": dict(config),
        "hashes": {"table": table_hash, "images": cache.fingerprint, "data": data_hash(table_hash, cache.fingerprint)},
    }
    write_atomic(out / "table.csv", data)
    if len(left_out):
        write_atomic(out / "excluded.csv", left_out.to_csv(index=False, lineterminator="\n").encode())
    # plain JSON types only: tuples and numpy numbers would become YAML tags
    text = yaml.safe_dump(json.loads(json.dumps(description)), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(out / "dataset.yaml", text.encode())


def _patients(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    return pd.factorize(frame["patient_id"])[0].astype(np.int64)


def _with_splits(
    frame: pd.DataFrame, spec: TableSpec, hashes: npt.NDArray[np.uint8], config: Mapping[str, Any], notes: list[str]
) -> pd.DataFrame:
    """Fill patient_id and split; images of equal content stay in one split where the split is ours to make."""
    if "patient_id" not in frame:
        frame = frame.assign(patient_id=[f"image-{row + 1}" for row in range(len(frame))])
    frame = frame.assign(patient_id=frame["patient_id"].astype("string").str.strip().astype(object), image=image_keys(frame).astype(object))
    if "split" in frame:
        return _with_rest_drawn(frame.assign(split=frame["split"].astype("string").str.strip().astype(object)), spec, hashes, config, notes)
    units = join_units(_patients(frame), content_codes(hashes))
    split = make_splits(units, strata(frame, spec), config["fractions"], config["seed"])
    counts = ", ".join(f"{name} {int((split == name).sum())}" for name in ("train", "val", "test"))
    notes.append(f"no split is given: drawn by patient with seed {config['seed']} ({counts} rows)")
    return frame.assign(split=split.astype(object))


def _with_rest_drawn(
    frame: pd.DataFrame, spec: TableSpec, hashes: npt.NDArray[np.uint8], config: Mapping[str, Any], notes: list[str]
) -> pd.DataFrame:
    """Draw the rows of the split ``rest`` into train and val, by patient and in the shares of these two."""
    rows = np.flatnonzero((frame["split"] == REST).to_numpy(bool))
    if not len(rows):
        return frame
    train, val, _ = config["fractions"]
    shares = (train / (train + val), val / (train + val), 0) if train + val else (1, 0, 0)
    part = frame.iloc[rows]
    drawn = make_splits(join_units(_patients(part), content_codes(hashes[rows])), strata(part, spec), shares, config["seed"])
    split = frame["split"].to_numpy(object, copy=True)
    split[rows] = drawn
    counts = ", ".join(f"{name} {int((drawn == name).sum())}" for name in ("train", "val"))
    notes.append(f"the published split leaves val open: drawn by patient with seed {config['seed']} ({counts} rows)")
    return frame.assign(split=split)


def strata(frame: pd.DataFrame, spec: TableSpec) -> npt.NDArray[np.int64]:
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
