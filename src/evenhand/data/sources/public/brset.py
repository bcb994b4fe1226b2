"""BRSET: 16,266 fundus photographs of 8,524 Brazilian patients, with anatomy, diseases, retinopathy grades and image quality."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import SEX, people, plain_numbers
from evenhand.data.sources.raw import RawFolder, recode
from evenhand.data.sources.values import AGES

TABLES = ("labels_brset.csv", "labels.csv")
DISEASES = (
    "diabetic_retinopathy", "macular_edema", "scar", "nevus", "amd", "vascular_occlusion", "hypertensive_retinopathy", "drusens",
    "hemorrhage", "retinal_detachment", "myopic_fundus", "increased_cup_disc", "other",
)
OTHER_SPELLINGS = {"drusens": "drusen"}
FOLDERS = ("fundus_photos", "images")
_PAPER = "Nakayama et al., BRSET: A Brazilian Multilabel Ophthalmological Dataset of Retina Fundus Photos, PLOS Digital Health, 2024"

INFO = Info(
    name="brset",
    title="BRSET",
    modality="fundus",
    version="PhysioNet brazilian-ophthalmological 1.0.0, 1.0.1 and 1.0.2",
    layout=(
        "labels_brset.csv (1.0.0: labels.csv): image_id, patient_id, camera, patient_age, comorbidities, diabetes_time_y, insuline,\n"
        "    patient_sex, exam_eye, diabetes, nationality, ..., DR_SDRG, DR_ICDR, ..., quality (1.0.2 spells drusen, insulin)\n"
        "fundus_photos/img00001.jpg ..."
    ),
    documentation=("https://physionet.org/content/brazilian-ophthalmological/", "https://github.com/luisnakayama/BRSET"),
    tasks=(
        Task("diabetic_retinopathy", ("diabetic_retinopathy",), "1: any diabetic retinopathy, 0: none (the provider; FairMedFM)"),
        Task("referable", ("referable",), "1: moderate or worse (ICDR 2 to 4), 0: none or mild"),
        Task("grade", ("grade",), "ICDR 0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative (the provider)", "multiclass"),
        Task("diseases", DISEASES, "the provider's 13 conditions of the image", "multilabel"),
    ),
    attributes=(
        SEX, *AGES, Attribute("nationality", "as in the table"), Attribute("camera", "Canon CR, NIKON NF5050"),
        Attribute("eye", "right, left"), Attribute("diabetes", "yes, no"),
    ),
    default_attributes=("sex", "age60"),
    split="none is published; drawn by patient",
    expected=(Expected("images", 16266, _PAPER), Expected("patients", 8524, _PAPER)),
    licence="PhysioNet Credentialed Health Data License 1.5.0 (training and a signed agreement)",
    link="https://physionet.org/content/brazilian-ophthalmological/",
    citation=f"{_PAPER}; doi:10.13026/1pht-2b69",
    options=(Option("quality", ("all", "adequate"), "adequate: images graded inadequate are left out"),),
    resize="pad",
    channels=3,
    traps=(
        "patient_sex is 1 for male and 2 for female: 61.8% of the images are of women in the paper, and 10,052 rows have 2",
        "ages are missing in a third of the rows",
        "two eyes of most patients: they stay in one split",
        "1.0.1 and 1.0.2 corrected labels and exam_eye: results of different releases do not compare; the release is not in the files",
        "graded by one specialist",
        "not confirmed: exam_eye 1 right and 2 left",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the label table."""
    others = tuple(OTHER_SPELLINGS.get(name, name) for name in DISEASES)
    names = ("image_id", "patient_id", "patient_age", "patient_sex", "diabetic_retinopathy", "DR_ICDR")
    optional = ("camera", "exam_eye", "diabetes", "nationality", "quality", *DISEASES, *others)
    table = raw.table(*TABLES, columns=names, optional=optional)
    found = Found(pd.DataFrame())
    files = raw.by_stem([*FOLDERS, "."], (".jpg", ".jpeg", ".png"))
    grade = plain_numbers(table["DR_ICDR"])
    grade = grade.where(grade.isin(list("01234")))
    labels = {name: plain_numbers(table[name]).fillna(plain_numbers(table[other])) for name, other in zip(DISEASES, others, strict=True)}
    found.frame = pd.DataFrame({
        "image": [files.get(name, f"{FOLDERS[0]}/{name}.jpg") for name in table["image_id"].str.strip().str.removesuffix(".jpg")],
        "patient_id": table["patient_id"],
        **{name: values.where(values.isin(["0", "1"])) for name, values in labels.items()},
        "grade": grade,
        "referable": grade.isin(["2", "3", "4"]).map({True: "1", False: "0"}).astype("string").mask(grade.isna()),
        **people(plain_numbers(table["patient_sex"]), table["patient_age"], found.notes, {"1": "male", "2": "female"}),
        "nationality": table["nationality"],
        "camera": table["camera"],
        "eye": plain_numbers(table["exam_eye"]).map({"1": "right", "2": "left"}),
        "diabetes": recode(table["diabetes"], {"yes": "yes", "no": "no", "1": "yes", "0": "no"}),
        "quality": table["quality"],
    })
    found.counts = {"images": len(table), "patients": int(table["patient_id"].nunique())}
    if choice.options["quality"] == "adequate":
        found.leave_out(table["quality"].str.strip().str.lower().eq("inadequate").fillna(False).to_numpy(bool), "the quality is inadequate")
    return found
