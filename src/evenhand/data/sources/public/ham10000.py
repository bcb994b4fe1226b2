"""HAM10000: 10,015 dermatoscopic images of 7,470 pigmented lesions, seven diagnoses."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._skin import SEX, image_paths, is_one_of, known_words, people
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
COUNTS = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
CANCER = ("mel", "bcc", "akiec")
MEDFAIR = ("mel", "akiec")
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
FOLDERS = (
    "HAM10000_images_part_1", "HAM10000_images_part_2", "ham10000_images_part_1", "ham10000_images_part_2", "HAM10000_images", "images",
)
_PAPER = "Tschandl et al., The HAM10000 dataset, Scientific Data 5:180161, 2018"

INFO = Info(
    name="ham10000",
    title="HAM10000",
    modality="dermoscopy",
    version="Harvard Dataverse doi:10.7910/DVN/DBW86T, or its copy on Kaggle (kmader/skin-cancer-mnist-ham10000)",
    layout=(
        "HAM10000_metadata.csv (Kaggle), HAM10000_metadata.tab or HAM10000_metadata (Dataverse; commas or tabs): lesion_id, image_id, dx,\n"
        "    dx_type, age, sex, localization, and in newer releases dataset\n"
        "HAM10000_images_part_1/ISIC_0024306.jpg ..., HAM10000_images_part_2/ (both archives unpacked), or HAM10000_images/ (together)"
    ),
    documentation=("https://doi.org/10.7910/DVN/DBW86T", "https://www.kaggle.com/datasets/kmader/skin-cancer-mnist-ham10000"),
    tasks=(
        Task("malignant", ("malignant",), "1: melanoma, basal cell carcinoma, actinic keratosis or Bowen (mel, bcc, akiec); 0: the rest"),
        Task("malignant_medfair", ("malignant",), "1: mel, akiec; 0: the rest, basal cell carcinoma among them (MEDFAIR; FairTune)"),
        Task("melanoma", ("melanoma",), "1: mel; 0: the rest"),
        Task("diagnosis", ("diagnosis",), "the seven diagnoses of the provider: akiec, bcc, bkl, df, mel, nv, vasc", "multiclass"),
    ),
    attributes=(SEX, *AGES),
    default_attributes=("sex", "age60"),
    split="none is published; drawn by lesion (MEDFAIR draws 8:1:1 by lesion, too)",
    expected=(
        Expected("images", 10015, _PAPER), Expected("lesions", 7470, _PAPER),
        *(Expected(name, count, _PAPER) for name, count in COUNTS.items()),
    ),
    licence="CC BY-NC 4.0 (Dataverse, ISIC archive); one redistributor says CC BY-NC-SA 4.0",
    link="https://doi.org/10.7910/DVN/DBW86T",
    citation=f"{_PAPER}, doi:10.1038/sdata.2018.161",
    channels=3,
    traps=(
        "no patient id is published: patient_id is the lesion, so two lesions of one patient can fall into two splits",
        "a lesion has up to six images: a split by image leaks",
        "sex 'unknown' is missing; MEDFAIR's loader counts it as female",
        "ages are in steps of 5 years, so many patients are 60: age60 and age_over60 differ; 0 stands in a few rows and is kept, and said",
        "the seven diagnoses overlap with ISIC 2018's training part, which is the same set",
        "not confirmed: whether 0 means an unknown age",
    ),
)


def metadata(raw: RawFolder) -> pd.DataFrame:
    """The metadata table, whatever Dataverse or Kaggle call it and separate it with."""
    first = raw.lines(*METADATA)[:1]
    return raw.table(
        *METADATA, columns=("lesion_id", "image_id", "dx", "age", "sex"), optional=("dx_type", "localization", "dataset"),
        separator="\t" if first and "\t" in first[0] else ",",
    )


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the metadata table."""
    table = metadata(raw)
    found = Found(pd.DataFrame())
    dx = known_words(table["dx"], {name: name for name in CLASSES}, "dx", raw.file(*METADATA).name)
    malignant = MEDFAIR if choice.task.name == "malignant_medfair" else CANCER
    persons = people(table["sex"], table["age"], found.notes)
    found.frame = pd.DataFrame({
        "image": image_paths(raw, table["image_id"], FOLDERS),
        "patient_id": table["lesion_id"],
        "malignant": is_one_of(dx, malignant),
        "melanoma": is_one_of(dx, ("mel",)),
        "diagnosis": dx,
        **{name: persons[name] for name in persons},
        "dx_type": table["dx_type"],
        "site": table["localization"],
        "source": table["dataset"],
    })
    found.counts = {"images": len(table), "lesions": int(table["lesion_id"].nunique())}
    found.counts |= {name: int(dx.eq(name).sum()) for name in CLASSES}
    return found
