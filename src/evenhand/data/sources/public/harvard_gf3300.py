"""Harvard-GF (Harvard Glaucoma Fairness): thickness maps and OCT volumes of 3,300 patients, a third each Asian, Black and White."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import VIEW, view_keys
from evenhand.data.sources.public._harvard import ATTRIBUTES, LAB, LICENCE, attributes, collect, empty_arrays, finish, should_be, yes_no
from evenhand.data.sources.raw import RawFolder

SUMMARIES = ("data_summary.csv", "ReadMe/data_summary.csv")
THICKNESS = "scale=-2,350"
_PAPER = "Luo et al., Harvard Glaucoma Fairness, IEEE Transactions on Medical Imaging, 2024"
_README = "README of the provider's repository Harvard-GF"

INFO = Info(
    name="harvard_gf3300",
    title="Harvard-GF3300 (Harvard Glaucoma Fairness)",
    modality="oct",
    version="3,300 samples (2023)",
    layout=(
        "data_summary.csv (or ReadMe/data_summary.csv): filename, age, gender, race, ethnicity, language, maritalstatus, glaucoma, use\n"
        "Training/data_0001.npz ..., Validation/, Test/ (also named train, val, test, and anywhere under the folder): rnflt, oct_bscans,\n"
        "    glaucoma, md, tds, age, male, race, ...; without the summary table these are read"
    ),
    documentation=(f"{LAB}/Harvard-GF", "https://ophai.hms.harvard.edu/datasets/harvard-gf3300/"),
    tasks=(Task("glaucoma", ("glaucoma",), "1: glaucoma, 0: none (the provider, from visual fields; FairTune, FairMedFM)"),),
    attributes=ATTRIBUTES,
    default_attributes=("race", "sex"),
    split="the provider's 2,100 / 300 / 900 patients for train, val and test",
    splits=("published", "patient"),
    expected=(
        Expected("images", 3300, _README), Expected("patients", 3300, _README), Expected("train images", 2100, _README),
        Expected("val images", 300, _README), Expected("test images", 900, _README),
    ),
    licence=LICENCE,
    link="https://ophai.hms.harvard.edu/datasets/harvard-gf3300/",
    citation=f"{_PAPER} (arXiv:2306.09264)",
    options=(
        Option("image", ("rnflt", "oct_bscans"), "rnflt: thickness map of the nerve fibre layer; oct_bscans: a picture of the OCT volume"),
        VIEW,
    ),
    size=200,
    resize="stretch",
    channels=1,
    traps=(
        "thickness maps are in micrometres: -2 (no value) becomes black and 350 white, as FairMedFM does, the same for every patient",
        "male is 0 for female and 1 for male; -1 is unknown and missing",
        "the groups of race have equal numbers by design: prevalences are not those of a clinic",
        "Harvard-FairVision and Harvard-FairVLMed are other sets (harvard_glaucoma_fairness, harvard_fairvlmed)",
        "not confirmed: whether the map is 200 x 200 (README) or 225 x 225 (as in Harvard-GDP); either is stored at the size asked for",
        "not confirmed: that the first axis of oct_bscans runs over the B-scans (the provider's loader takes it so)",
    ),
    aliases=("harvard_gf", "gf3300"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a file."""
    found = Found(pd.DataFrame())
    table = collect(raw, SUMMARIES, {"glaucoma": ("glaucoma",)}, found.notes)
    array = choice.options["image"]
    keys = THICKNESS if array == "rnflt" else f"{view_keys(choice.options['view'], 0)}&scale=0,255"
    found.frame = pd.DataFrame({
        "image": should_be(table) + f"#array={array}&{keys}",
        "patient_id": table["stem"],
        "glaucoma": yes_no(table["glaucoma"]),
        **attributes(table, found.notes),
    })
    finish(found, table, choice)
    if array == "oct_bscans":
        found.leave_out(empty_arrays(raw, table, array).to_numpy(), "the OCT volume is empty")
    return found
