"""ISIC 2019: 25,331 dermoscopic images for training, 8,238 for test; eight diagnoses and "none of the others"."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._isic import ATTRIBUTES, LINK, OVERLAP_TRAP, TONE_TRAP, beside, estimated_tones, lone_images, one_hot
from evenhand.data.sources.public._skin import image_paths, is_one_of, people
from evenhand.data.sources.raw import RawFolder

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
COUNTS = {"mel": 4522, "nv": 12875, "bcc": 3323, "ak": 867, "bkl": 2624, "df": 239, "vasc": 253, "scc": 628}
"""Of the training part; they add up to its 25,331 images."""
_TRUTH = "column sums of ISIC_2019_Training_GroundTruth.csv as others count them"
_PAPER = "ISIC 2019 Challenge (Tschandl et al. 2018; Codella et al. 2018; Combalia et al., BCN20000, arXiv 1908.02288)"

INFO = Info(
    name="isic2019",
    title="ISIC 2019 Challenge",
    modality="dermoscopy",
    version="the challenge's archives, ground truth of both parts",
    layout=(
        "ISIC_2019_Training_Input/ISIC_0000000.jpg, ISIC_0000017_downsampled.jpg ...\n"
        "ISIC_2019_Training_GroundTruth.csv: image, MEL, NV, BCC, AK, BKL, DF, VASC, SCC, UNK\n"
        "ISIC_2019_Training_Metadata.csv: image, age_approx, anatom_site_general, lesion_id, sex\n"
        "ISIC_2019_Test_Input/, ISIC_2019_Test_GroundTruth.csv, ISIC_2019_Test_Metadata.csv (no lesion_id; for the published split)"
    ),
    documentation=("https://challenge.isic-archive.com/landing/2019/", LINK),
    tasks=(
        Task(
            "malignant", ("malignant",),
            "1: MEL, BCC, SCC and the precursor AK (as AKIEC in ham10000 and isic2018); 0: the rest; the challenge publishes no grouping",
        ),
        Task("cancer", ("malignant",), "1: MEL, BCC, SCC; 0: the rest, the precursor AK included"),
        Task("melanoma", ("melanoma",), "1: MEL; 0: the rest"),
        Task("diagnosis", ("diagnosis",), "the challenge's eight: mel, nv, bcc, ak, bkl, df, vasc, scc", "multiclass"),
    ),
    attributes=(*ATTRIBUTES, Attribute("site", "the challenge's general sites, as anterior torso, head/neck, palms/soles")),
    default_attributes=("sex", "age60"),
    split="the challenge's test part is the test split; val is drawn by lesion from its training part; patient: the training part alone",
    splits=("published", "patient"),
    expected=(
        Expected("training images", 25331, LINK), Expected("test images", 8238, LINK),
        *(Expected(f"training {name}", count, _TRUTH) for name, count in COUNTS.items()),
    ),
    licence="CC BY-NC 4.0",
    link=LINK,
    citation=_PAPER,
    channels=3,
    traps=(
        "some names end in _downsampled, in the tables and on disk; elsewhere in the ISIC archive the image has its plain name",
        "no patient id is published: patient_id is the lesion, and the image where lesion_id is empty (said how many)",
        "sex, age and site are empty for part of the images: missing",
        "test images of the class UNK (none of the eight diagnoses) are left out: nothing is published on what they are",
        TONE_TRAP,
        OVERLAP_TRAP,
        "not confirmed: the columns of the test ground truth beyond the classes (weights of the scoring are not read)",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the ground truth."""
    found = Found(pd.DataFrame())
    parts = ["Training", "Test"] if choice.split == "published" else ["Training"]
    table = pd.concat([_part(raw, part, found) for part in parts], ignore_index=True)
    persons = people(table["sex"], table["age_approx"], found.notes)
    malignant = ("mel", "bcc", "scc") if choice.task.name == "cancer" else ("mel", "bcc", "scc", "ak")
    found.frame = pd.DataFrame({
        "image": table["path"],
        "patient_id": table["lesion_id"].fillna(table["image"]),
        "malignant": is_one_of(table["diagnosis"], malignant),
        "melanoma": is_one_of(table["diagnosis"], ("mel",)),
        "diagnosis": table["diagnosis"],
        **{name: persons[name] for name in persons},
        **dict(estimated_tones(raw, table["image"], found.notes)),
        "site": table["anatom_site_general"],
    })
    if choice.split == "published":
        found.frame["split"] = table["part"].map({"Training": "rest", "Test": "test"}).astype("string")
    found.leave_out(table["diagnosis"] == "unk", "diagnosis UNK: none of the eight")
    return found


def _part(raw: RawFolder, part: str, found: Found) -> pd.DataFrame:
    folder = f"ISIC_2019_{part}_Input"
    file = f"ISIC_2019_{part}_GroundTruth.csv"
    truth = raw.table(*beside(file, folder), columns=("image", *CLASSES), optional=("UNK",))
    truth = truth.assign(image=truth["image"].str.strip(), UNK=truth["UNK"].astype("string").fillna("0"))
    places = beside(f"ISIC_2019_{part}_Metadata.csv", folder)
    known = raw.table(*places, columns=("image", "age_approx", "sex"), optional=("lesion_id", "anatom_site_general"))
    known = known.assign(image=known["image"].str.strip()).drop_duplicates("image").set_index("image")
    table = truth[["image"]].join(known, on="image")
    table = table.assign(
        diagnosis=one_hot(truth, (*CLASSES, "UNK"), file), part=part, lesion_id=table["lesion_id"].astype("string"),
        path=image_paths(raw, truth["image"], (folder,), (".jpg", ".jpeg")),
    )
    unknown = int((~truth["image"].isin(known.index)).sum())
    if unknown:
        images = counted(unknown, f"image of the part {part} is", f"images of the part {part} are")
        found.notes.append(f"{images} not in its metadata: sex and age are missing")
    if part == "Training":
        alone = int(table["lesion_id"].isna().sum())
        if alone:
            found.notes.append(lone_images(alone))
    if part == "Training":
        found.counts |= {f"training {name}": int(table["diagnosis"].eq(name).sum()) for name in COUNTS}
    found.counts["training images" if part == "Training" else "test images"] = len(truth)
    return table
