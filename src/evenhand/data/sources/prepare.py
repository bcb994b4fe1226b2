"""A public data set, from the raw download to a prepared data set, by what its source declares and reads."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

import evenhand
from evenhand.data.amounts import counted
from evenhand.data.datasets import PreparedData
from evenhand.data.images import Resize
from evenhand.data.prepare import REST, Origin, Settings, check_writable, make_spec, prepare_frame
from evenhand.data.sources.base import Choice, Found, Info, SplitRule, Task
from evenhand.data.sources.inventory import packed_note, take_stock
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source
from evenhand.data.table import SPLITS, Kind, missing_rows
from evenhand.errors import InputError, nearest

log = logging.getLogger(__name__)
NOT_ATTRIBUTES = ("image", "patient_id", "split")


def prepare_source(
    name: str,
    raw: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    attributes: Sequence[str] | None = None,
    split: str | None = None,
    options: Mapping[str, str] | None = None,
    size: int | None = None,
    resize: Resize | None = None,
    channels: int | None = None,
    kind: Kind | None = None,
    modality: str | None = None,
    missing: str | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    bins: Mapping[str, Sequence[float]] | None = None,
    workers: int | None = None,
    keep_going: bool = False,
    max_groups: int = 50,
    seed: int = 0,
    progress: bool = False,
    shared: bool = False,
    dicom_window: str | None = None,
) -> PreparedData:
    """Read a public data set's raw download, decode its images once, and write a prepared data set.

    The same call goes on after a kill, and does nothing where the data set is finished. The raw folder is only read.

    Args:
        name: the data set, one of `list_sources`.
        raw: the folder that the download was unpacked to.
        out: folder to write; it must be new, empty, or from the same call, and outside the raw folder.
        task: the label definition; default: the set's first.
        labels: some of the task's label columns; default: all.
        attributes: sensitive attributes, joint ones as ``sex*age60``; default: the set's usual ones.
        split: ``published`` or ``patient``; default: the set's first.
        options: choices that only this set has, as ``{"uncertain": "ones"}``.
        size: side of the stored images in pixels; default: the set's.
        resize: ``crop``, ``pad`` or ``stretch``; default: the set's.
        channels: 1 or 3; default: the set's.
        kind: ``binary``, ``multiclass`` or ``multilabel``, where the labels are your own; default: told from them.
        modality: what the images are (picks augmentation recipes); default: the set's.
        missing: rows with a missing attribute: ``own_group``, ``drop`` or ``error``; default: the set's.
        fractions: shares of train, val and test where the split is drawn by patient; of train and val where only test is published.
        bins: numeric column -> increasing edges, as ``{"age": (0, 60, 200)}`` with ``age`` among the attributes.
        workers: decoding processes; None: one a core, or none for few images.
        keep_going: leave missing and unreadable images out (listed in ``excluded.csv``) instead of refusing.
        max_groups: most groups one attribute may have, joint ones included.
        seed: of the splits.
        progress: show progress bars.
        shared: share the decoding with every process, on this machine or others, that makes the same call on the same ``out``.
        dicom_window: the window of DICOM images: the number of one in the header, from 0, or ``CENTRE,WIDTH``; None: the first.

    Returns:
        The prepared data set, opened.

    Raises:
        InputError: a name is not known, the folder is not this set's, or ``out`` holds something else.
        TableError: the table that was read breaks its contract.
        ImageError: images are unreadable.
        DiskFullError: no room; nothing half-written is left.

    Example:
        >>> import evenhand as eh
        >>> eh.prepare_source("nih", "CXR8", "prepared/nih", task="findings")
        Traceback (most recent call last):
        ...
        evenhand.errors.InputError: CXR8 is not a folder; give the folder that the download was unpacked to
    """
    source = find_source(name)
    info: Info = source.INFO
    choice = make_choice(info, task, split, options or {})
    chosen = _labels(info, choice.task, labels)
    settings = Settings(
        size or info.size, resize or info.resize, modality or info.modality, channels or info.channels, fractions, seed, workers,
        keep_going, progress, shared, dicom_window,
    )
    settings.check()
    folder = RawFolder(raw, info.layout)
    call = _call(source, folder, choice, settings, {
        "labels": chosen, "attributes": attributes, "kind": kind, "modality": modality, "missing": missing or info.missing,
        "bins": {name: [float(edge) for edge in edges] for name, edges in (bins or {}).items()}, "max_groups": max_groups,
    })
    finished = _finished(Path(out), call)
    if finished is not None:
        return finished
    check_writable(Path(out))
    log.info("looking through %s as %s", raw, info.title)
    found: Found = source.read(folder, choice)
    _check_place(folder.root, Path(out))
    found.frame = _text(found.frame)
    take_stock(folder, found, keep_going)
    notes = [*found.notes, *_count_notes(info, found.counts), *packed_note(folder, found, _falls_short(info, found.counts))]
    named = list(info.default_attributes) if attributes is None else list(attributes)
    _check_attributes(info, found.frame, named)
    if attributes is None:
        named = _with_values(found.frame, named, notes)
        notes += _without_attributes(info, found.frame, named, chosen)
    _check_splits(found.frame)
    told = _kind(found.frame, choice.task, chosen, kind)
    spec = make_spec(found.frame, chosen, named, bins or {}, told, missing or info.missing, max_groups)
    choices = {"name": info.name, "task": choice.task.name, "split": choice.split, "options": dict(choice.options)}
    origin = Origin(
        folder.root, {"kind": "public", **choices, "version": info.version, "verified": info.verified, "raw": str(raw),
                      "counts": found.counts, **({"call": call} if call else {})},
        choices={"source": choices}, left_out=_left_out(found, notes), notes=notes,
    )
    return prepare_frame(found.frame, spec, Path(out), origin, replace(settings, modality=modality or found.modality or info.modality))


def _call(source: Any, raw: RawFolder, choice: Choice, settings: Settings, more: Mapping[str, Any]) -> str | None:
    """What is asked for of which files, as a hash; None for sources that do not tell the state of their files.

    A source that takes long to read tells it by ``state(raw, choice)``, from names, sizes and times of change.
    """
    state = source.state(raw, choice) if hasattr(source, "state") else None
    if state is None:
        return None
    how = {name: value for name, value in asdict(settings).items() if name not in ("workers", "progress", "shared")}
    asked = {"state": state, "task": choice.task.name, "split": choice.split, "options": dict(choice.options), **how, **more}
    return hashlib.sha256(f"{evenhand.__version__} {json.dumps(asked, sort_keys=True, default=list)}".encode()).hexdigest()


def _finished(out: Path, call: str | None) -> PreparedData | None:
    """The data set, where this very call has finished it: nothing of the source needs to be read again."""
    if call is None or not (out / "dataset.yaml").is_file():
        return None
    data = PreparedData.open(out)
    if data.description["source"].get("call") != call:
        return None
    log.info("%s is finished already, and is left as it is", out)
    return data


def make_choice(info: Info, task: str | None, split: str | None, options: Mapping[str, str]) -> Choice:
    """What was asked for, checked against what the set has; what was not said is the set's first.

    Raises:
        InputError: no such task, split rule, option, or value of an option; the nearest name is offered.
    """
    tasks = {item.name: item for item in info.tasks}
    name = info.tasks[0].name if task is None else task
    if name not in tasks:
        raise InputError(f"{info.name} has no task '{name}'; {nearest(name, list(tasks))}")
    rule = info.splits[0] if split is None else split
    if rule not in info.splits:
        known = " or ".join(info.splits)
        raise InputError(f"split is '{rule}', but {info.name} can be split by: {known} ({info.split})")
    known_options = {item.name: item for item in info.options}
    for option, value in options.items():
        if option not in known_options:
            otherwise = f"it has: {', '.join(known_options)}" if known_options else "it has none"
            raise InputError(f"{info.name} has no option '{option}'; {nearest(option, list(known_options), otherwise=otherwise)}")
        values = known_options[option].values
        if values and value not in values:
            raise InputError(f"option {option} is '{value}', but must be one of {', '.join(values)}")
    given = {item.name: options.get(item.name, item.default) for item in info.options}
    found_rule: SplitRule = "published" if rule == "published" else "patient"
    return Choice(tasks[name], found_rule, given)


def _labels(info: Info, task: Task, labels: Sequence[str] | None) -> tuple[str, ...]:
    if not (labels or task.labels):
        raise InputError(f"{info.name} has labels of your own: name them, as --labels COLUMN")
    for name in labels or ():
        if task.labels and name not in task.labels:
            other = [item.name for item in info.tasks if name in item.labels]
            hint = f"the task '{other[0]}' has it: --task {other[0]}" if other else nearest(name, task.labels)
            raise InputError(f"the task '{task.name}' of {info.name} has no label '{name}'; {hint}")
    return tuple(labels or task.labels)


def _kind(frame: pd.DataFrame, task: Task, labels: Sequence[str], given: Kind | None) -> Kind | None:
    """The task's kind; told from the labels where they are the user's own."""
    for name in labels:
        if name not in frame:
            raise InputError(f"label '{name}' is not a column of the table; {nearest(name, [str(column) for column in frame.columns])}")
    if not task.labels:
        return given
    if given is not None:
        raise InputError(f"the task '{task.name}' has its kind, {task.kind}; leave out kind")
    return "binary" if task.kind == "multilabel" and len(labels) == 1 else task.kind


def _check_place(raw: Path, out: Path) -> None:
    inside, outside = raw.resolve(), out.resolve()
    if outside == inside or inside in outside.parents:
        raise InputError(f"{out} lies inside the raw folder {raw}, which is only read; choose a folder outside it")


def _text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, or missing, as `evenhand.data.table.read_table` gives it."""
    columns = {str(name): frame[name].astype("string").str.strip() for name in frame.columns}
    return pd.DataFrame({name: values.mask(values == "").astype("str") for name, values in columns.items()}).reset_index(drop=True)


def _count_notes(info: Info, counts: Mapping[str, int]) -> list[str]:
    """One sentence for every count that is not what the provider has published."""
    notes = []
    for what, count in counts.items():
        published = [item for item in info.expected if item.what == what]
        if published and count not in [item.count for item in published]:
            said = " or ".join(f"{item.count:,} ({item.origin})" for item in published)
            notes.append(f"{what}: {count:,} here, the provider says {said}")
    return notes


def _falls_short(info: Info, counts: Mapping[str, int]) -> bool:
    """Whether something may be packed still: a count is below all published ones, or there are none."""
    published = {what: min(item.count for item in info.expected if item.what == what) for what in {item.what for item in info.expected}}
    return not published or any(count < published.get(what, 0) for what, count in counts.items())


def _check_attributes(info: Info, frame: pd.DataFrame, names: Sequence[str]) -> None:
    own = [item.name for item in info.attributes] or [str(column) for column in frame.columns if column not in NOT_ATTRIBUTES]
    for part in (part.strip() for name in names for part in name.split("*")):
        if part not in frame or part in NOT_ATTRIBUTES:
            raise InputError(f"{info.name} has no attribute '{part}'; {nearest(part, own)}")


def _with_values(frame: pd.DataFrame, names: Sequence[str], notes: list[str]) -> list[str]:
    """The usual attributes without those that this download has no value of."""
    empty = [name for name in names if any(missing_rows(frame, part).all() for part in name.split("*"))]
    notes += [f"attribute '{name}' has no value in this download and was left out" for name in empty]
    return [name for name in names if name not in empty]


def _without_attributes(info: Info, frame: pd.DataFrame, named: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What to do where no attribute was chosen and the set has no usual one: nothing could be compared by group."""
    if named:
        return []
    own = [item.name for item in info.attributes] or [str(name) for name in frame.columns]
    there = [name for name in own if name in frame and name not in NOT_ATTRIBUTES and _may_be_groups(frame, name, labels)]
    advice = f"name some: --attributes {','.join(there[:3])} (there are {', '.join(there[:12])})" if there else "this download has none"
    return [f"no attribute was chosen, so no groups can be compared; {advice}"]


def _may_be_groups(frame: pd.DataFrame, name: str, labels: Sequence[str]) -> bool:
    """Whether a column has few enough values for groups, and is no label in other words."""
    n_values = frame[name].mask(missing_rows(frame, name)).nunique()
    pairs = {label: len(frame[[label, name]].dropna().drop_duplicates()) for label in labels}
    same = any(pairs[label] == frame[label].nunique() == n_values for label in labels)
    return 1 < n_values <= max(10, len(frame) // 4) and not same


def _check_splits(frame: pd.DataFrame) -> None:
    """Rows of the split ``rest`` of a patient who also has rows in train or val go there; other patients belong in one split."""
    if "split" not in frame:
        return
    unknown = sorted(set(frame["split"].dropna()) - {*SPLITS, REST})
    if unknown or frame["split"].isna().any():
        raise InputError(f"the source gave rows without a split, or of the split {unknown}; report this as a bug")
    if "patient_id" not in frame:
        return
    pairs = frame[["patient_id", "split"]].drop_duplicates().sort_values("split")
    pairs = pairs[pairs.duplicated("patient_id", keep=False)]
    if len(pairs):
        several = pairs.groupby("patient_id")["split"].agg("+".join)
        places = ", ".join(f"{names} {count}" for names, count in several.value_counts().items())
        have = counted(len(several), "patient has", "patients have")
        raise InputError(f"{have} images in several of the published splits ({places}); use --split patient")


def _left_out(found: Found, notes: list[str]) -> pd.DataFrame | None:
    if found.left_out is None:
        return None
    for reason, count in found.left_out["reason"].value_counts().items():
        notes.append(f"{counted(count, 'row was', 'rows were')} left out: {reason} (excluded.csv)")
    return _text(found.left_out)
