"""DDI (Diverse Dermatology Images): 656 clinical photographs of biopsied lesions, chosen for diverse skin tones."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._skin import image_paths, is_one_of, known_words
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

PAIRS = {"12": "I-II", "34": "III-IV", "56": "V-VI"}
_TRUTH = {"true": "1", "false": "0", "1": "1", "0": "0"}
_PAPER = "Daneshjou et al., Disparities in dermatology AI performance, Science Advances 8:eabq6147, 2022"

INFO = Info(
    name="ddi",
    title="DDI (Diverse Dermatology Images)",
    modality="photograph",
    version="Stanford AIMI, ddidiversedermatologyimages",
    layout=(
        "ddi_metadata.csv: DDI_ID, DDI_file, skin_tone (12, 34, 56), malignant (True, False), disease\n"
        "000001.png ... beside it, or images/000001.png ... (as the authors' code wants them)"
    ),
    documentation=("https://ddi-dataset.github.io/", "https://github.com/DDI-Dataset/DDI-Code"),
    tasks=(
        Task("malignant", ("malignant",), "1: malignant; 0: benign, by biopsy (the provider)"),
        Task("melanoma", ("melanoma",), "1: a disease whose name holds melanoma (in situ, acral, nodular); 0: the rest"),
    ),
    attributes=(
        Attribute("skin_tone3", "I-II; III-IV; V-VI (the provider)"),
        Attribute("skin_tone", "light: I-II; dark: V-VI (the provider compares these two); III-IV by the option middle"),
    ),
    default_attributes=("skin_tone3",),
    split="none is published; every image counts as a patient of its own",
    expected=(
        Expected("images", 656, _PAPER), Expected("malignant", 171, _PAPER), Expected("I-II", 208, _PAPER), Expected("III-IV", 241, _PAPER),
        Expected("V-VI", 207, _PAPER),
    ),
    licence="Stanford University Dataset Research Use Agreement (non-commercial research)",
    link="https://stanfordaimi.azurewebsites.net/datasets/35866158-8196-48d8-87bf-50dca81df965",
    citation=f"{_PAPER}, doi:10.1126/sciadv.abq6147",
    channels=3,
    options=(
        Option(
            "middle", ("missing", "light", "dark"),
            "where types III-IV go in skin_tone: DDI does not tell III from IV, so the split at 3 of other sets cannot be made",
        ),
    ),
    traps=(
        "skin tones come in pairs of types: III and IV cannot be told apart",
        "656 images of 570 patients, but no patient id is published: two images of one patient can fall into two splits",
        "images differ much in size; neither sex nor age is published",
        "older copies of the table have the column 'malignancy(malig=1)'",
        "not confirmed: how BMFT and SWiFT put DDI's three groups into two",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the metadata table."""
    table = raw.table("ddi_metadata.csv", columns=("DDI_file", "skin_tone"), optional=("malignant", "malignancy(malig=1)", "disease"))
    truth = table["malignant"].astype("string").fillna(table["malignancy(malig=1)"].astype("string"))
    if truth.isna().all():
        raise InputError("ddi_metadata.csv has no column 'malignant'; is it the table of this data set?")
    names = table["DDI_file"].str.strip().str.removesuffix(".png")
    pairs = known_words(table["skin_tone"].str.strip().str.removesuffix(".0"), PAIRS, "skin_tone", "ddi_metadata.csv")
    middle = choice.options.get("middle", "missing")
    halves = pairs.map({"I-II": "light", "III-IV": pd.NA if middle == "missing" else middle, "V-VI": "dark"}).astype("string")
    disease = table["disease"].astype("string").str.strip()
    found = Found(pd.DataFrame({
        "image": image_paths(raw, names, ("images", "."), (".png",)),
        "patient_id": names,
        "malignant": known_words(truth, _TRUTH, "malignant", "ddi_metadata.csv"),
        "melanoma": is_one_of(disease.str.contains("melanoma").astype("string"), ("True",)),
        "skin_tone3": pairs,
        "skin_tone": halves,
        "disease": disease,
    }))
    if middle == "missing":
        among = int((pairs == "III-IV").sum())
        images = counted(among, "image of types III-IV counts", "images of types III-IV count")
        found.notes.append(f"skin_tone: {images} as missing: DDI does not tell them apart (--option middle)")
    found.counts = {
        "images": len(table), "malignant": int((found.frame["malignant"] == "1").sum()),
        **{name: int((pairs == name).sum()) for name in PAIRS.values()},
    }
    return found
