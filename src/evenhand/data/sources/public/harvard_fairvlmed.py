"""Harvard-FairVLMed: SLO fundus pictures and notes of 10,000 patients, for glaucoma."""

from __future__ import annotations

from pathlib import PurePosixPath

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._harvard import ATTRIBUTES, LAB, LICENCE, attributes, collect, finish, should_be, yes_no
from evenhand.data.sources.raw import RawFolder

SUMMARIES = ("data_summary.csv", "ReadMe/data_summary.csv")
_PAPER = "Luo et al., FairCLIP: Harnessing Fairness in Vision-Language Learning, CVPR 2024"
_README = "README of the provider's repository FairCLIP"

INFO = Info(
    name="harvard_fairvlmed",
    title="Harvard-FairVLMed (FairVLMed10k)",
    modality="fundus",
    version="10,000 samples (2024)",
    layout=(
        "data_summary.csv (or ReadMe/data_summary.csv): filename, age, gender, race, ethnicity, language, maritalstatus, note,\n"
        "    gpt4_summary, glaucoma, use\n"
        "Training/data_00001.npz (slo_fundus, glaucoma, md, tds, age, gender, race, ...) and, where it is there, slo_fundus_00001.jpg;\n"
        "    Validation/, Test/ or Testing/"
    ),
    documentation=(f"{LAB}/FairCLIP", "https://ophai.hms.harvard.edu/datasets/harvard-fairvlmed10k"),
    tasks=(Task("glaucoma", ("glaucoma",), "1: glaucoma, 0: none (the provider, from visual fields)"),),
    attributes=ATTRIBUTES,
    default_attributes=("race", "sex", "ethnicity"),
    split="the provider's 7,000 / 1,000 / 2,000 patients for train, val and test",
    splits=("published", "patient"),
    expected=(
        Expected("images", 10000, _README), Expected("patients", 10000, _README), Expected("train images", 7000, _README),
        Expected("val images", 1000, _README), Expected("test images", 2000, _README),
    ),
    licence=LICENCE,
    link="https://ophai.hms.harvard.edu/datasets/harvard-fairvlmed10k",
    citation=_PAPER,
    resize="pad",
    channels=1,
    traps=(
        "the clinical notes and their summaries are never copied into the table",
        "the picture beside the .npz file is taken where there is one, else the array slo_fundus, 0 to 255",
        "gender is 0 for female and 1 for male in the files, a word in the summary table; -1 is unknown and missing",
        "the provider's code leaves rows with an unknown attribute out of val and test; here --missing drop does",
        "not confirmed: that slo_fundus lies in the array as in the picture, and not transposed",
    ),
    aliases=("fairvlmed", "harvard_fairvlmed10k"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a file."""
    found = Found(pd.DataFrame())
    table = collect(raw, SUMMARIES, {"glaucoma": ("glaucoma",)}, found.notes)
    beside = _pictures(raw)
    images = [beside.get(stem.removeprefix("data_"), f"{path}#array=slo_fundus&scale=0,255")
              for stem, path in zip(table["stem"], should_be(table), strict=True)]
    found.frame = pd.DataFrame({
        "image": images,
        "patient_id": table["stem"],
        "glaucoma": yes_no(table["glaucoma"]),
        **attributes(table, found.notes),
    })
    n_arrays = sum("#" in image for image in images)
    if 0 < n_arrays < len(images):
        where = "no picture beside the .npz file and"
        found.notes.append(f"{counted(n_arrays, f'images has {where} is', f'images have {where} are', of=len(images))} read from it")
    return finish(found, table, choice)


def _pictures(raw: RawFolder) -> dict[str, str]:
    """Number -> path of the pictures ``slo_fundus_00001.jpg``."""
    paths = raw.walk(".", (".jpg", ".jpeg", ".png"))
    return {PurePosixPath(path).stem.rpartition("_")[2]: path for path in paths if PurePosixPath(path).name.startswith("slo_")}
