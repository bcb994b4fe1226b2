"""Rows without images and images without rows: counted before anything is decoded, with the archives that may hold what is absent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from evenhand.data.amounts import counted
from evenhand.data.references import file_behind
from evenhand.data.sources.base import Found
from evenhand.data.sources.raw import ARCHIVES, RawFolder
from evenhand.data.table import image_keys
from evenhand.errors import ImageError, InputError

ABSENT = "its image is not in the raw folder"
_NO_ARCHIVES = (".csv.gz", ".tsv.gz", ".txt.gz", ".nii.gz", ".json.gz", ".xml.gz")


def take_stock(raw: RawFolder, found: Found, keep_going: bool) -> None:
    """Make sure that every row's image is there; say how many images are in no row.

    With ``keep_going`` rows without images are moved to ``found.left_out``.

    Args:
        raw: the raw folder.
        found: what a source has read; its notes are added to.
        keep_going: leave rows without images out instead of refusing.

    Raises:
        InputError: there are no rows.
        ImageError: images are absent: all are listed, with the folders that they are absent from and the archives that lie there.
    """
    if not len(found.frame):
        raise InputError(f"{raw.root} gives no rows for this task; {_reasons(found)}")
    files = [_file(raw, name) for name in image_keys(found.frame)]
    there = _listing(raw, files)
    absent = np.fromiter((name not in there and not (raw.root / name).exists() for name in files), bool, len(files))
    if absent.any():
        error = _absent_images(raw, files, absent)
        if not keep_going or absent.all():
            raise error
    spare = there - set(files)
    if found.left_out is not None and "image" in found.left_out:
        spare -= {_file(raw, name) for name in image_keys(found.left_out)}
    if spare:
        folders = ", ".join(f"{folder or 'the raw folder itself'} {count:,}" for folder, count in _folders(spare).most_common(5))
        place = "in no row of the set's tables and"
        aside = counted(len(spare), f"image file is {place} was", f"image files are {place} were")
        found.notes.append(f"{aside} left aside ({folders})")
    if absent.any():
        found.leave_out(absent, ABSENT)


def packed_note(raw: RawFolder, found: Found, short: bool) -> list[str]:
    """Archives beside the images, where a count falls short of the published one, or none is published: rows may come from folders alone.

    Args:
        raw: the raw folder.
        found: what a source has read.
        short: whether fewer were found than are published, or nothing is published.
    """
    packed = _archives(raw, {_file(raw, name) for name in image_keys(found.frame)}) if short else []
    return [f"archives lie there ({_some(packed)}): what is packed in them alone is not read"] if packed else []


def _file(raw: RawFolder, name: str) -> str:
    """The file behind an image cell; the cell itself where a file has the whole of it as its name."""
    file = file_behind(name)
    return name if file != name and (raw.root / name).is_file() else file


def _listing(raw: RawFolder, files: Iterable[str]) -> set[str]:
    """All files of the folders at the top of the raw folder that rows name, of the endings that rows name."""
    tops = {name.partition("/")[0] for name in files if "/" in name}
    suffixes = tuple({os.path.splitext(name)[1].lower() for name in files} - {""})
    found = {path for top in sorted(tops) if (raw.root / top).is_dir() for path in raw.walk(top, suffixes)} if suffixes else set()
    if any("/" not in name for name in files):
        found |= {entry.name for entry in os.scandir(raw.root) if entry.name.lower().endswith(suffixes or ("",)) and entry.is_file()}
    return found


def _folders(files: Iterable[str]) -> Counter[str]:
    """How many files are below each folder at the top: there are few of these, and their names are the provider's, not patients'."""
    return Counter(name.partition("/")[0] if "/" in name else "" for name in files)


def _absent_images(raw: RawFolder, files: Sequence[str], absent: npt.NDArray[np.bool_]) -> ImageError:
    gone = [name for name, missing in zip(files, absent, strict=True) if missing]
    packed = _archives(raw, set(files))
    whole = _empty_folders(raw, gone)
    if packed:
        advice = f"archives lie there that are not unpacked ({_some(packed)}): unpack them in place"
    elif whole:
        advice = f"these folders are not there at all: {_some(whole)}; unpack their archives"
    else:
        advice = "download and unpack the set's archives again"
    if len(gone) == len(files):
        return ImageError(f"none of the {len(files):,} images that the set's tables name is in {raw.root}; {advice}", gone)
    named = "images that the set's tables name"
    summary = f"{counted(len(gone), f'{named} is', f'{named} are', of=len(files))} not in {raw.root}; {advice}"
    return ImageError(f"{summary}, or leave these rows out with --keep-going", gone)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names):,} in all)" if len(names) > 8 else "")


def _empty_folders(raw: RawFolder, gone: Iterable[str]) -> list[str]:
    """The uppermost folders of absent files that do not exist, each once."""
    found: dict[str, None] = {}
    known: dict[str, str] = {}
    for name in gone:
        parent = os.path.dirname(name)
        if "*" in parent:  # a source may not know in which of several folders a file should be
            continue
        if parent not in known:
            known[parent] = next((str(place) for place in _upward(parent) if not (raw.root / place).exists()), "")
        if known[parent]:
            found[known[parent]] = None
    return sorted(found)


def _upward(folder: str) -> Iterable[PurePosixPath]:
    """The folder's parents from the top down, and itself."""
    place = PurePosixPath(folder)
    return [*reversed([parent for parent in place.parents if str(parent) != "."]), *([place] if folder else [])]


def _archives(raw: RawFolder, files: set[str]) -> list[str]:
    """Archives in the raw folder and in the folders within it."""
    found = []
    for place in (raw.root, *sorted(path for path in raw.root.iterdir() if path.is_dir())):
        for entry in os.scandir(place):
            name = os.path.relpath(entry.path, raw.root).replace(os.sep, "/")
            lower = name.lower()
            if lower.endswith(ARCHIVES) and not lower.endswith(_NO_ARCHIVES) and name not in files and entry.is_file():
                found.append(name)
    return sorted(found)


def _reasons(found: Found) -> str:
    if found.left_out is None or not len(found.left_out):
        return "its tables are empty: download them again"
    return "the reasons: " + "; ".join(f"{reason}: {count:,}" for reason, count in found.left_out["reason"].value_counts().items())
