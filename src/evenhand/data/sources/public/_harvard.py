"""What the sets of the Harvard Ophthalmology AI Lab share: a summary table beside ``.npz`` files that hold image, label and attributes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Found
from evenhand.data.sources.public._eyes import SEX, known_races, people
from evenhand.data.sources.raw import RawFolder, recode
from evenhand.data.sources.values import AGES
from evenhand.errors import InputError

LAB = "https://github.com/Harvard-Ophthalmology-AI-Lab"
LICENCE = "CC BY-NC-ND 4.0; non-commercial research only, not for clinical decisions"
ATTRIBUTES = (
    SEX,
    *AGES,
    Attribute("race", "Asian, Black, White"),
    Attribute("race_white", "White, Other"),
    Attribute("ethnicity", "Hispanic or Latino; not Hispanic or Latino"),
    Attribute("language", "english, spanish, other (preferred language)"),
    Attribute("marital", "married or partnered, single, divorced, widowed, legally separated"),
)
FIELDS: dict[str, tuple[str, ...]] = {
    "sex": ("gender", "male", "sex"), "age": ("age",), "race": ("race",), "ethnicity": ("ethnicity", "hispanic"),
    "language": ("language", "preferredlanguage"), "marital": ("maritalstatus", "marital", "marriage"), "md": ("md",),
}
"""Our column -> the names it goes by in the summary table and in the files."""
_SEX = {"0": "female", "1": "male", "female": "female", "male": "male"}
_ETHNICITY = {
    **dict.fromkeys(("0", "non-hispanic", "not hispanic", "not hispanic or latino"), "not Hispanic or Latino"),
    **dict.fromkeys(("1", "hispanic", "hispanic or latino"), "Hispanic or Latino"),
}
_LANGUAGE = {"0": "english", "1": "spanish", "2": "other", "english": "english", "spanish": "spanish", "other": "other", "others": "other"}
_MARITAL = {
    "0": "married or partnered", "1": "single", "2": "divorced", "3": "widowed", "4": "legally separated",
    **dict.fromkeys(("married", "married or partnered", "marriage or partnered", "married/civil union", "life partner",
                     "married/civil union, life partner"), "married or partnered"),
    "single": "single", "divorced": "divorced", "widowed": "widowed", "legally separated": "legally separated",
    "leg-sep": "legally separated",
}
_WORDS = {"ethnicity": _ETHNICITY, "language": _LANGUAGE, "marital": _MARITAL}
_YES = {"yes": "1", "no": "0", "1": "1", "0": "0", "glaucoma": "1", "non-glaucoma": "0"}
_PARTS = {"training": "train", "train": "train", "validation": "val", "val": "val", "test": "test", "testing": "test"}
_FOLDERS = {"train": "Training", "val": "Validation", "test": "Test"}
_UNKNOWN = ("", "-1", "unknown")


def collect(
    raw: RawFolder, summaries: Sequence[str], labels: Mapping[str, Sequence[str]], notes: list[str], folder: str = "."
) -> pd.DataFrame:
    """One row a file ``data_*.npz``: ``file``, ``use``, and the columns of `FIELDS` and ``labels`` from the summary, else from the file.

    Args:
        raw: the download.
        summaries: names that the summary table goes by; it may be absent.
        labels: label column -> names it goes by.
        notes: what is odd is added.
        folder: where the files are.

    Raises:
        InputError: there are no such files, one stands in two folders, or none has the label.
    """
    paths = [path for path in raw.walk(folder, (".npz",)) if PurePosixPath(path).name.startswith("data_")]
    files = {PurePosixPath(path).stem: path for path in paths}
    if len(files) < len(paths):
        copies = counted(len(paths) - len(files), "file data_*.npz stands", "files data_*.npz stand")
        raise InputError(f"{copies} in two folders of {raw.root / folder}; remove the copies")
    summary = next((name for name in summaries if raw.has(name)), None)
    if not files and summary is None:
        raw.file(*summaries, f"{folder}/Training/data_0001.npz".removeprefix("./"))
    table = _from_summary(raw, summary, files, notes) if summary else pd.DataFrame({"stem": sorted(files)}, dtype="string")
    table["file"] = [files.get(stem) for stem in table["stem"]]
    wanted = {**FIELDS, **labels}
    inside = {name: next((other for other in others if other in table), None) for name, others in wanted.items()}
    table = table.assign(**{name: table[other] for name, other in inside.items() if other})
    lacking = {name: wanted[name] for name, other in inside.items() if other is None}
    if lacking:
        _from_files(raw, table, lacking, notes)
    if all(table[name].isna().all() for name in labels):
        words = " or ".join(f"'{other}'" for others in labels.values() for other in others)
        raise InputError(f"{raw.root} has no label: neither summary table nor files have {words}. Is it the folder of this data set?")
    table["use"] = [_part(use, path) for use, path in zip(_column(table, "use"), table["file"], strict=True)]
    return table


def attributes(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The attribute columns, unknown being missing; and ``md``."""
    named = [name for name in FIELDS if name != "md"]
    known = table[named].apply(lambda values: values.mask(values.str.strip().str.lower().isin(_UNKNOWN)))
    return pd.concat([
        people(known["sex"], known["age"], notes, _SEX), known_races(known["race"], notes),
        pd.DataFrame({
            **{name: _known(known[name], words, name, notes) for name, words in _WORDS.items()}, "md": table["md"],
        }),
    ], axis=1)


def _known(values: pd.Series, words: Mapping[str, str], name: str, notes: list[str]) -> pd.Series:
    """The provider's words in our spelling; other ones are missing and said."""
    groups = recode(values, words)
    odd = values[groups.isna() & values.notna()]
    if len(odd):
        shown = ", ".join(f"'{word}' {count}" for word, count in odd.value_counts().head(5).items())
        what = f"none that the provider describes ({shown}) and"
        notes.append(f"{name}: {counted(len(odd), f'value is {what} counts', f'values are {what} count')} as missing")
    return groups


def yes_no(values: pd.Series) -> pd.Series:
    """``yes`` and 1 are 1, ``no`` and 0 are 0, anything else is missing."""
    return recode(values, _YES)


def finish(found: Found, table: pd.DataFrame, choice: Choice) -> Found:
    """The published split where it was chosen, and the counts of images, patients and parts."""
    if choice.split == "published":
        absent = int(table["use"].isna().sum())
        if absent:
            are = counted(absent, "file is", "files are")
            advice = "give the folder that holds these three, or use --split patient"
            raise InputError(f"{are} in none of the folders Training, Validation and Test; {advice}")
        found.frame["split"] = table["use"]
    found.counts = {"images": len(table), "patients": int(table["stem"].nunique())}
    found.counts |= {f"{part} images": int(table["use"].eq(part).sum()) for part in ("train", "val", "test") if table["use"].notna().any()}
    return found


def should_be(table: pd.DataFrame, folder: str = "") -> pd.Series:
    """The path of every row's file: where it is, else where it should be."""
    parts = [_FOLDERS.get(use, "Training") if isinstance(use, str) else "Training" for use in table["use"]]
    made = [f"{folder}{part}/{stem}.npz" for part, stem in zip(parts, table["stem"], strict=True)]
    return pd.Series([path if isinstance(path, str) else other for path, other in zip(table["file"], made, strict=True)], dtype="string")


def empty_arrays(raw: RawFolder, table: pd.DataFrame, array: str) -> pd.Series:
    """Whether a row's file is there and has the array, but empty; only the head of the array is read."""
    return pd.Series([isinstance(path, str) and 0 in _shape(raw, path, array) for path in table["file"]], index=table.index, dtype=bool)


def _shape(raw: RawFolder, path: str, array: str) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(raw.root / path) as archive, archive.open(f"{array}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(reader(stream)[0])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return ()


def _from_summary(raw: RawFolder, name: str, files: Mapping[str, str], notes: list[str]) -> pd.DataFrame:
    table = raw.table(name, columns=("filename",))
    table = table.rename(columns=lambda column: str(column).lower()).drop(columns=["note", "gpt4_summary"], errors="ignore")
    table["stem"] = table["filename"].str.strip().str.removesuffix(".npz").astype("string")
    beyond = len(set(files) - set(table["stem"]))
    if beyond:
        notes.append(f"{counted(beyond, 'file is', 'files are')} not in {name} and not read")
    return table.drop(columns=["file"], errors="ignore")


def _from_files(raw: RawFolder, table: pd.DataFrame, lacking: Mapping[str, Sequence[str]], notes: list[str]) -> None:
    """Fill columns from what the files hold beside their images."""
    unread = 0
    cells: dict[str, list[str | None]] = {name: [] for name in lacking}
    for path in table["file"]:
        values: dict[str, str | None] = {}
        if isinstance(path, str):
            try:
                with (raw.root / path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                    values = {name: _scalar(archive, others) for name, others in lacking.items()}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                unread += 1
        for name in lacking:
            cells[name].append(values.get(name))
    for name, column in cells.items():
        table[name] = pd.Series(column, index=table.index, dtype="string")
    if unread:
        notes.append(f"{counted(unread, 'file', 'files')} cannot be read; the attributes there count as missing")


def _scalar(archive: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if name in archive:
            value = archive[name]
            if value.size == 1:
                item = value.reshape(-1)[0].item()
                return f"{item:g}" if isinstance(item, (int, float)) and not isinstance(item, bool) else str(item).strip()
    return None


def _part(use: object, path: object) -> str | None:
    if isinstance(use, str):
        return _PARTS.get(use.strip().lower())
    folders = PurePosixPath(path).parts[:-1] if isinstance(path, str) else ()
    return next((_PARTS[part.lower()] for part in reversed(folders) if part.lower() in _PARTS), None)


def _column(table: pd.DataFrame, name: str) -> Sequence[object]:
    return list(table[name]) if name in table else [None] * len(table)
