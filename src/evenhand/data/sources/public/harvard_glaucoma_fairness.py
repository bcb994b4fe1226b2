"""Harvard-FairVision (also Harvard Eye Fairness): OCT volumes and SLO pictures of 30,000 patients for glaucoma, AMD and retinopathy."""

from __future__ import annotations

from pathlib import PurePosixPath

import pandas as pd

from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import VIEW, view_keys
from evenhand.data.sources.public._harvard import ATTRIBUTES, LAB, LICENCE, attributes, collect, empty_arrays, finish, should_be, yes_no
from evenhand.data.sources.raw import RawFolder

FOLDERS = {"glaucoma": "Glaucoma", "amd": "AMD", "amd_stage": "AMD", "dr": "DR"}
CONDITIONS = {"amd": ("amd_condition", "dr_subtype", "amd"), "dr": ("dr_subtype", "dr"), "glaucoma": ("glaucoma",)}
AMD = {
    "not.in.icd.table": "none", "no.amd.diagnosis": "none", "early.dry": "early", "intermediate.dry": "intermediate",
    "advanced.atrophic.dry.with.subfoveal.involvement": "late", "advanced.atrophic.dry.without.subfoveal.involvement": "late",
    "wet.amd.active.choroidal.neovascularization": "late", "wet.amd.inactive.choroidal.neovascularization": "late",
    "wet.amd.inactive.scar": "late",
}
DR = {"not.in.icd.table": "0", "no.dr.diagnosis": "0", "mild.npdr": "0", "moderate.npdr": "0", "severe.npdr": "1", "pdr": "1"}
_PAPER = "Luo et al., FairVision: Equitable Deep Learning for Eye Disease Screening via Fair Identity Scaling, arXiv:2310.02492"
_README = "README of the provider's repository FairVision, 10,000 patients a disease"

INFO = Info(
    name="harvard_glaucoma_fairness",
    title="Harvard-FairVision30k (Harvard Eye Fairness)",
    modality="oct",
    version="FairVision30k (2024)",
    layout=(
        "Glaucoma/Training/data_00001.npz (oct_bscans, slo_fundus, glaucoma, race, male, hispanic, language, maritalstatus) and\n"
        "    slo_fundus_00001.jpg; Glaucoma/Validation/, Glaucoma/Test/ (or train, val, test); for other tasks AMD/ and DR/\n"
        "data_summary_glaucoma.csv, data_summary_amd.csv, data_summary_dr.csv (earlier glaucoma_meta.csv, ...; without them the files are\n"
        "    read, which hold no age)"
    ),
    documentation=(f"{LAB}/FairVision", f"{LAB}/Harvard-EyeFairness", "http://ophai.hms.harvard.edu/datasets/harvard-fairvision30k"),
    tasks=(
        Task("glaucoma", ("glaucoma",), "1: glaucoma, 0: none (the provider), from the folder Glaucoma"),
        Task("amd", ("amd",), "1: early, intermediate or late macular degeneration, 0: none, from the folder AMD"),
        Task("amd_stage", ("stage",), "none, early, intermediate, late (the provider's four classes), from the folder AMD", "multiclass"),
        Task("dr", ("dr",), "1: severe non-proliferative or proliferative retinopathy, 0: less (the provider), from the folder DR"),
    ),
    attributes=ATTRIBUTES,
    default_attributes=("race", "sex", "ethnicity"),
    split="the provider's folders for train, val and test",
    splits=("published", "patient"),
    expected=(Expected("images", 10000, _README), Expected("patients", 10000, _README)),
    licence=LICENCE,
    link="http://ophai.hms.harvard.edu/datasets/harvard-fairvision30k",
    citation=_PAPER,
    options=(
        Option("image", ("oct_bscans", "slo"), "oct_bscans: a picture of the OCT volume; slo: the fundus picture (file, else array)"), VIEW,
    ),
    resize="pad",
    channels=1,
    traps=(
        "the provider names no set GlaucomaFairness: here it is the glaucoma part of FairVision; Harvard-GF is harvard_gf3300",
        "volumes are 200 x 200 x 200 for glaucoma and 128 x 200 x 200 for AMD and DR; some files hold an empty volume and are left out",
        "male is 0 for female and 1 for male; -1 is unknown and missing",
        "a patient number is counted within a disease: whether a patient stands in two diseases is not published",
        "conditions 'not.in.icd.table' count as no disease, as in the provider's code",
        "not confirmed: the names of the columns of the summary tables (those of Harvard-GF are read)",
        "not confirmed: that the array slo_fundus is stored transposed, as the provider's loader takes it; the picture files are preferred",
    ),
    aliases=("harvard_fairvision", "fairvision", "harvard_eye_fairness"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a file of the disease's folder."""
    found = Found(pd.DataFrame())
    folder = FOLDERS[choice.task.name]
    disease = folder.lower()
    raw.folder(folder)
    summaries = (f"data_summary_{disease}.csv", f"{disease}_meta.csv", f"ReadMe/data_summary_{disease}.csv")
    table = collect(raw, summaries, {"condition": CONDITIONS[disease]}, found.notes, folder)
    found.frame = pd.DataFrame({
        "image": _images(raw, table, choice, folder),
        "patient_id": table["stem"],
        **_labels(table["condition"], disease),
        **attributes(table, found.notes),
    })
    finish(found, table, choice)
    if choice.options["image"] == "oct_bscans":
        found.leave_out(empty_arrays(raw, table, "oct_bscans").to_numpy(), "the OCT volume is empty")
    return found


def _labels(condition: pd.Series, disease: str) -> dict[str, pd.Series]:
    if disease == "glaucoma":
        return {"glaucoma": yes_no(condition)}
    words = condition.astype("string").str.strip().str.lower()
    if disease == "dr":
        return {"dr": words.map(DR).fillna(yes_no(condition)).astype("string"), "condition": words}
    stage = words.map(AMD).astype("string")
    ill = stage.ne("none").map({True: "1", False: "0"}, na_action="ignore").astype("string")
    return {"amd": ill.fillna(yes_no(condition)), "stage": stage, "condition": words}


def _images(raw: RawFolder, table: pd.DataFrame, choice: Choice, folder: str) -> list[str]:
    paths = list(should_be(table, f"{folder}/"))
    if choice.options["image"] == "oct_bscans":
        return [f"{path}#array=oct_bscans&{view_keys(choice.options['view'], 0)}&scale=0,255" for path in paths]
    pictures = raw.walk(folder, (".jpg", ".jpeg", ".png"))
    slo = [path for path in pictures if PurePosixPath(path).name.startswith("slo_")]
    beside = {PurePosixPath(path).stem.rpartition("_")[2].lstrip("0"): path for path in slo}
    numbers = [stem.removeprefix("data_").lstrip("0") for stem in table["stem"]]
    return [beside.get(number, f"{path}#array=slo_fundus&scale=0,255") for number, path in zip(numbers, paths, strict=True)]
