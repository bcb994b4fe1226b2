"""Your own set as a folder of parquet files, as the Hugging Face library ``datasets`` writes and publishes it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Found, Info, Option
from evenhand.data.sources.public._own_table import (
    CLASS,
    COLUMNS,
    PATIENT,
    PATIENTS,
    POSITIVE,
    SPLITS,
    pick_column,
    positive_label,
    with_columns,
)
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

_SPLIT = re.compile(r"^(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")

_PART = re.compile(r"(?P<head>.*-)(?P<k>\d+)-of-(?P<n>\d+)(?P<tail>\D*)$")
INFO = Info(
    name="parquet_folder",
    title="Your own Hugging Face parquet folder",
    modality="photograph",
    version="any (the layout of datasets 2 to 4)",
    layout=(
        "data/train-00000-of-00002.parquet ..., data/validation-00000-of-00001.parquet, data/test-00000-of-00001.parquet\n"
        "    (or train/0000.parquet ..., test/0000.parquet; or any .parquet files): a column of images, each {bytes, path}\n"
        "README.md (optional): dataset_info with features and names of classes, where the files do not hold them"
    ),
    documentation=("https://huggingface.co/docs/datasets/image_dataset", "https://huggingface.co/docs/datasets/about_dataset_features"),
    tasks=(CLASS, POSITIVE, COLUMNS),
    attributes=(),
    default_attributes=(),
    split="the splits of the file names where train and test are among them, else by patient; patient: by patient in any case",
    splits=("published", "patient"),
    options=(
        Option("positive", (), "the class that counts as 1, for the task positive"),
        Option("image", (), "column of images; default: the first of that kind"),
        Option("label", (), "column of classes, for the tasks class and positive; default: the first ClassLabel, else label"),
        PATIENT,
    ),
    licence="your own; a published set's stands in its README.md",
    link="your own files",
    citation="your own",
    traps=(
        "images whose bytes are not in the files but elsewhere (path only) are not read",
        "without a column of patients every image is its own patient: images of one patient may then be in two splits",
        "a ClassLabel of -1 (datasets' sign for no label) is missing",
        "where the files have train and test only, val is drawn from train by patient",
        "every plain column can be an attribute: name them, as --attributes sex",
    ),
    aliases=("huggingface", "hf"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a row of the files."""
    import pyarrow.parquet as parquet

    paths = raw.walk(".", (".parquet",))
    if not paths:
        raise InputError(f"{raw.root} has no .parquet files", INFO.layout.splitlines())
    found = Found(pd.DataFrame())
    schema = _schema(raw.root / paths[0])
    image = _image_column(schema, choice.options["image"])
    names = _class_names(schema, raw.root)
    plain = [field.name for field in schema if _is_plain(field.type)]
    parts = []
    for path in paths:
        other = _schema(raw.root / path)
        if [field.name for field in other] != [field.name for field in schema]:
            raise InputError(f"{path} has other columns than {paths[0]}; give a folder of one data set")
        columns = parquet.read_table(raw.root / path, columns=plain)
        part = pd.DataFrame({name: _text(columns[name]) for name in plain}, dtype="string")
        part.insert(0, "__image", [f"{path}#row={row}&column={image}" for row in range(columns.num_rows)])
        parts.append(part.assign(__split=_split_name(path)))
    absent = _absent_parts(paths)
    if absent:
        more = f", … ({len(absent):,} in all)" if len(absent) > 10 else ""
        named = f"{', '.join(absent[:10])}{more}"
        found.notes.append(f"files are not there, so this is a part of the data set: {named}; download them for all of it")
    table = pd.concat(parts, ignore_index=True)
    label = _label_column(plain, names, choice)
    frame = pd.DataFrame({"image": table["__image"]})
    patient = pick_column(plain, choice.options["patient"], PATIENTS, "patient")
    if patient is None:
        found.notes.append("there is no column of patients: each image is taken as its own patient")
        frame["patient_id"] = [f"image-{k + 1}" for k in range(len(table))]
    else:
        frame["patient_id"] = table[patient]
    for name, classes in names.items():
        if name in table:
            table[name] = _named(table[name], classes, name)
    if label is not None:
        frame["class"] = table[label].to_numpy(object)
        positive = positive_label(frame["class"], choice.options["positive"], choice.task.name)
        if positive is not None:
            frame["positive"] = positive
    if choice.split == "published":
        _add_split(frame, table["__split"], found.notes)
    taken = ["__image", "__split", patient, label if label == "class" else None]
    found.frame = with_columns(frame, table, taken, found.notes, "the files")
    found.counts = {"images": len(frame), "patients": int(frame["patient_id"].nunique()), "files": len(paths)}
    return found


def _absent_parts(paths: Sequence[str]) -> list[str]:
    """Files whose neighbours' names say that they should be there, as train-00001-of-00002.parquet."""
    numbered = {(match["head"], len(match["k"]), match["n"], match["tail"]) for match in map(_PART.match, paths) if match}
    wanted = {f"{head}{k:0{width}d}-of-{n}{tail}" for head, width, n, tail in numbered for k in range(min(int(n), 100_000))}
    return sorted(wanted - set(paths))


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path.name} is not a parquet file ({str(error).splitlines()[0]}); download it again") from error


def _image_column(schema: Any, given: str) -> str:
    """The column of encoded images: named, or the first struct that has bytes, or the first binary one."""
    import pyarrow as pa

    kinds = pa.types
    structs = [field.name for field in schema if kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    binary = [field.name for field in schema if kinds.is_binary(field.type) or kinds.is_large_binary(field.type)]
    name = pick_column([*structs, *binary], given, [], "image") or next(iter([*structs, *binary]), None)
    if name is None:
        raise InputError(f"the files have no column of images (bytes); their columns are {', '.join(schema.names[:20])}")
    return name


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_string, kinds.is_large_string, kinds.is_dictionary)
    return any(test(kind) for test in tests)


def _text(column: Any) -> list[str | None]:
    """Cells as text; whole numbers without a point, true and false as 1 and 0."""
    def text(value: Any) -> str | None:
        if value is None or value != value:
            return None
        return f"{value:.15g}" if isinstance(value, float) else str(int(value)) if isinstance(value, bool) else str(value)

    return [text(value) for value in column.to_pylist()]


def _class_names(schema: Any, root: Path) -> dict[str, list[str]]:
    """Column -> names of its classes: from the files, else from README.md."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored:
        features = json.loads(stored).get("info", {}).get("features", {})
        labels = {name: kind for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"}
        return {name: list(kind["names"]) for name, kind in labels.items()}
    readme = root / "README.md"
    if not readme.is_file():
        return {}
    import yaml

    head = readme.read_text(encoding="utf-8", errors="replace").split("---")
    try:
        info = (yaml.safe_load(head[1]) or {}).get("dataset_info", {}) if len(head) > 2 else {}
    except (yaml.YAMLError, AttributeError) as error:
        raise InputError(f"{readme} has a header that is not YAML; correct or remove it") from error
    configs = info if isinstance(info, list) else [info]
    found: dict[str, list[str]] = {}
    for feature in configs[0].get("features", []) if configs else []:
        kind = feature.get("dtype")
        if isinstance(kind, dict) and "class_label" in kind:
            classes = kind["class_label"]["names"]
            found[str(feature["name"])] = [str(classes[key]) for key in sorted(classes, key=int)]
    return found


def _label_column(plain: list[str], names: dict[str, list[str]], choice: Choice) -> str | None:
    if choice.task.name == COLUMNS.name and not choice.options["label"]:
        return None
    label = pick_column(plain, choice.options["label"], [*(name.lower() for name in names if name in plain), "label", "class"], "label")
    if label is None:
        raise InputError(f"the files have no column of classes; name it: --option label=COLUMN (plain columns are {', '.join(plain[:20])})")
    return label


def _named(values: pd.Series, classes: list[str], column: str) -> pd.Series:
    codes = pd.to_numeric(values, errors="coerce").astype("Int64")
    wrong = int((codes >= len(classes)).fillna(False).sum())
    if wrong:
        codes_beyond = counted(wrong, "code", "codes")
        raise InputError(f"column '{column}' has {codes_beyond} beyond its {len(classes)} classes; the names do not belong to the files")
    return codes.map(lambda code: classes[code] if code >= 0 else None, na_action="ignore").astype("string")


def _split_name(path: str) -> str:
    """The split that a file's name or folder tells, as it is written; empty where it tells none."""
    name = PurePosixPath(path)
    match = _SPLIT.match(name.stem)
    for text in (match.group(1) if match else name.stem, name.parent.name):
        if text.lower() in SPLITS:
            return text.lower()
    return match.group(1) if match else ""


def _add_split(frame: pd.DataFrame, names: pd.Series, notes: list[str]) -> None:
    ours = names.map(SPLITS)
    if ours.isna().all() or set(ours.dropna()) < {"train", "test"}:
        notes.append("the file names do not tell train and test: split by patient")
        return
    if ours.isna().any():
        unknown = ", ".join(sorted(set(names[ours.isna()]))[:5])
        raise InputError(f"files are of splits that are not known ({unknown}): remove them, or use --split patient")
    frame["split"] = ours if "val" in set(ours) else ours.replace("train", "rest")
