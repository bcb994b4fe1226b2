"""Fitzpatrick17k: 16,577 clinical photographs of 114 skin conditions from two atlases, with Fitzpatrick skin types."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._skin import PICTURES, TONES, image_paths, is_one_of, known_words, tones
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

FOLDERS = ("images", "finalfitz17k", "data/finalfitz17k", "Fitzpatrick17k_images", "fitzpatrick17k_images")
THREE = ("benign", "malignant", "non-neoplastic")
WRONG = "3 Wrongly labelled"
_REPOSITORY = "https://github.com/mattgroh/fitzpatrick17k"

INFO = Info(
    name="fitzpatrick17k",
    title="Fitzpatrick17k",
    modality="photograph",
    version="fitzpatrick17k.csv of July 2022 (types of two services), or of 2021 (column fitzpatrick)",
    layout=(
        "fitzpatrick17k.csv: md5hash, fitzpatrick_scale, fitzpatrick_centaur (2021: fitzpatrick), label, nine_partition_label,\n"
        "    three_partition_label, qc, url, url_alphanum\n"
        "images/5e82a45bc5d78bd24ae9202d194423f8.jpg ... (named by md5hash; by url_alphanum where downloaded so), or finalfitz17k/"
    ),
    documentation=(_REPOSITORY,),
    tasks=(
        Task("malignant", ("malignant",), "1: malignant of the three partitions; 0: benign and non-neoplastic (MEDFAIR; FairTune)"),
        Task(
            "neoplastic", ("malignant",),
            "1: malignant; 0: benign; non-neoplastic, wrongly labelled and without an address: left out (Bevan and Atapour-Abarghouei)",
        ),
        Task("melanoma", ("melanoma",), "1: malignant melanoma of the nine partitions; 0: the rest"),
        Task("three_partition", ("three_partition_label",), "benign, malignant, non-neoplastic (the authors)", "multiclass"),
        Task("nine_partition", ("nine_partition_label",), "the authors' nine partitions", "multiclass"),
        Task("condition", ("label",), "the 114 conditions", "multiclass"),
    ),
    attributes=TONES,
    default_attributes=("skin_tone",),
    split="none is published; every image counts as a patient of its own (MEDFAIR draws 8:1:1 by image)",
    expected=(Expected("rows", 16577, _REPOSITORY), Expected("conditions", 114, _REPOSITORY)),
    licence="CC BY-NC-SA 3.0 for the annotations; the images belong to DermaAmin and Atlas Dermatologico",
    link=_REPOSITORY,
    citation="Groh et al., Evaluating Deep Neural Networks ... with the Fitzpatrick 17k Dataset, CVPR Workshops 2021 (arXiv 2104.09957)",
    channels=3,
    options=(
        Option("annotator", ("scale", "centaur"), "whose skin types: Scale AI's (the column fitzpatrick of 2021) or Centaur Labs'"),
        Option("wrongly_labelled", ("keep", "leave_out"), "images that a dermatologist marked as wrongly labelled (keep: MEDFAIR)"),
    ),
    aliases=("fitz17k",),
    traps=(
        "images are downloaded from their addresses, of which some no longer answer: rows without an image are left out, and said",
        "type -1 is unknown: missing; a script of SWiFT's repository counts it as light (type <= 3), MEDFAIR drops it",
        "no patient id is published: two photographs of one person can fall into two splits, and near-duplicates are known "
        "(Abhishek et al., Scientific Data 12:196, 2025)",
        "skin types were judged from the photographs, by two services that differ; neither sex nor age is published",
        "few images were checked by dermatologists (qc is empty for nearly all)",
        "not confirmed: the folder that the authors' archive of all images unpacks to",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image that is there."""
    table = raw.table(
        "fitzpatrick17k.csv", columns=("md5hash", "label", "nine_partition_label", "three_partition_label"),
        optional=("fitzpatrick_scale", "fitzpatrick_centaur", "fitzpatrick", "qc", "url", "url_alphanum"),
    )
    found = Found(pd.DataFrame(), {"rows": len(table), "conditions": int(table["label"].nunique())})
    three = known_words(table["three_partition_label"], {name: name for name in THREE}, "three_partition_label", "fitzpatrick17k.csv")
    image, there = _images(raw, table)
    found.frame = pd.DataFrame({
        "image": image,
        "patient_id": table["md5hash"],
        "malignant": is_one_of(three, ("malignant",)),
        "melanoma": is_one_of(table["nine_partition_label"].str.strip(), ("malignant melanoma",)),
        "three_partition_label": three,
        "nine_partition_label": table["nine_partition_label"],
        "label": table["label"],
        **dict(tones(_types(table, choice), found.notes)),
        "qc": table["qc"],
        "url": table["url"],
    })
    found.frame["there"] = there
    _leave_out(found, choice)
    return found


def _types(table: pd.DataFrame, choice: Choice) -> pd.Series:
    if choice.options.get("annotator", "scale") == "centaur":
        if table["fitzpatrick_centaur"].isna().all():
            advice = "download the table of 2022, or use --option annotator=scale"
            raise InputError(f"fitzpatrick17k.csv has no column 'fitzpatrick_centaur'; {advice}")
        return table["fitzpatrick_centaur"]
    types = table["fitzpatrick_scale"].astype("string").fillna(table["fitzpatrick"].astype("string"))
    if types.isna().all():
        raise InputError("fitzpatrick17k.csv has neither a column 'fitzpatrick_scale' nor 'fitzpatrick'; download the table again")
    return types


def _images(raw: RawFolder, table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Path of each image, and whether it is there; by md5hash, else by url_alphanum."""
    paths = image_paths(raw, table["md5hash"].str.strip(), FOLDERS)
    files = raw.by_stem(FOLDERS, PICTURES)
    stems = table["url_alphanum"].astype("string").str.strip().str.removesuffix(".jpg").map(files).astype("string")
    by_hash = table["md5hash"].str.strip().isin(files)
    return paths.where(by_hash, stems.fillna(paths)), by_hash | stems.notna()


def _leave_out(found: Found, choice: Choice) -> None:
    gone = int((~found.frame["there"]).sum())
    if gone:
        are = counted(gone, "images is", "images are", of=len(found.frame))
        found.notes.append(f"{are} not there (addresses that no longer answer are usual in this set)")
    if gone == len(found.frame):
        raise InputError("none of the images of fitzpatrick17k.csv is there; they are named by md5hash, as 5e82...23f8.jpg (32 digits)")
    found.leave_out(~found.frame["there"], "the image was not downloaded")
    strict = choice.task.name == "neoplastic"
    wrong = found.frame["qc"].astype("string").str.strip().eq(WRONG).fillna(False)
    if strict or choice.options.get("wrongly_labelled", "keep") == "leave_out":
        found.leave_out(wrong, "a dermatologist marked it as wrongly labelled")
    elif wrong.any():
        marked = int(wrong.sum())
        what = "that a dermatologist called wrongly labelled"
        images = counted(marked, f"image {what} is", f"images {what} are")
        found.notes.append(f"{images} kept (--option wrongly_labelled=leave_out)")
    if strict:
        found.leave_out(found.frame["three_partition_label"] == "non-neoplastic", "non-neoplastic")
        found.leave_out(~found.frame["url"].astype("string").str.contains("http").fillna(False), "without an address")
    found.frame = found.frame.drop(columns="there")
    if found.left_out is not None:
        found.left_out = found.left_out.drop(columns="there")
