"""Harvard-GDP (Glaucoma Detection and Progression): thickness maps of 1,000 patients, half of them with six labels of progression."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd

from evenhand.data.sources.base import Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._harvard import ATTRIBUTES, LAB, LICENCE, attributes, collect, yes_no
from evenhand.data.sources.raw import RawFolder

FOLDER = "rnflt_maps"
PROGRESSION = ("md", "vfi", "td_pointwise", "md_fast", "md_fast_no_p_cut", "td_pointwise_no_p_cut")
_LABELS = tuple(f"progression_{name}" for name in PROGRESSION)
_PAPER = "Luo et al., Harvard Glaucoma Detection and Progression, ICCV 2023"
_README = "README of the provider's repository Harvard-GDP"

INFO = Info(
    name="harvard_gdp",
    title="Harvard-GDP1000",
    modality="oct",
    version="1,000 samples (2023)",
    layout=(
        "rnflt_maps/data_0001.npz ... data_1000.npz: rnflt (225 x 225), glaucoma, progression (6 labels, in the first 500 files), md,\n"
        "    tds, age, male, race, hispanic"
    ),
    documentation=(f"{LAB}/Harvard-GDP", "https://ophai.hms.harvard.edu/datasets/harvard-gdp1000"),
    tasks=(
        Task("glaucoma", ("glaucoma",), "1: glaucoma, 0: none (the provider, from visual fields)"),
        Task("progression", _LABELS, "progression by six definitions of the provider; files 501 to 1000 are left out", "multilabel"),
        *(Task(label, (label,), f"{label.replace('_', ' by ', 1)}, a definition of the provider") for label in _LABELS),
    ),
    attributes=tuple(item for item in ATTRIBUTES if item.name not in ("language", "marital")),
    default_attributes=("race", "sex"),
    split="none is published; drawn by patient",
    expected=(Expected("images", 1000, _README), Expected("patients", 1000, _README), Expected("with progression", 500, _README)),
    licence=LICENCE,
    link="https://ophai.hms.harvard.edu/datasets/harvard-gdp1000",
    citation=f"{_PAPER}, 20471-20482",
    size=225,
    resize="stretch",
    channels=1,
    traps=(
        "thickness maps are in micrometres: -2 (no value) becomes black and 350 white, the same for every patient",
        "male is 0 for female and 1 for male; -1 is unknown and missing",
        "not confirmed: how race is written; words other than those for Asian, Black and White are missing, and said",
        "not confirmed: what progression holds in files 501 to 1000; anything but six values of 0 and 1 counts as unlabelled",
    ),
    aliases=("gdp1000",),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a file."""
    found = Found(pd.DataFrame())
    folder = FOLDER if (raw.root / FOLDER).is_dir() else "."
    if not raw.walk(folder, (".npz",)):
        raw.file(f"{FOLDER}/data_0001.npz")
    table = collect(raw, (), {"glaucoma": ("glaucoma",)}, found.notes, folder)
    numbers = pd.to_numeric(table["stem"].str.removeprefix("data_"), errors="coerce")
    rows = [_progression(raw, path) if number <= 500 else None for path, number in zip(table["file"], numbers, strict=True)]
    progression = {label: pd.Series([row[k] if row else None for row in rows], dtype="string") for k, label in enumerate(_LABELS)}
    people = attributes(table, found.notes).drop(columns=["language", "marital"])
    found.frame = pd.DataFrame({
        "image": table["file"].astype("string") + "#array=rnflt&scale=-2,350",
        "patient_id": table["stem"],
        "glaucoma": yes_no(table["glaucoma"]),
        **progression,
        **people,
    })
    found.counts = {"images": len(table), "patients": len(table), "with progression": sum(row is not None for row in rows)}
    if choice.task.name != "glaucoma":
        found.leave_out(progression[_LABELS[0]].isna().to_numpy(), "no label of progression")
    return found


def _progression(raw: RawFolder, path: str) -> list[str] | None:
    try:
        with (raw.root / path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            values = np.ravel(archive["progression"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(values) != len(PROGRESSION) or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        return None
    return [str(int(value)) for value in values]
