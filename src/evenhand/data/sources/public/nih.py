"""NIH ChestX-ray14: 112,120 frontal chest films of 30,805 patients, 14 findings mined from reports."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._chexpert_labels import VERSUS, versus_name
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages
from evenhand.errors import InputError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass",
    "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)
_PAPER = "Wang et al., ChestX-ray8, CVPR 2017"
_README = "README_CHESTXRAY.pdf of the download"

INFO = Info(
    name="nih",
    title="NIH ChestX-ray14",
    modality="chest_film",
    version="2017 release (Data_Entry_2017_v2020.csv or Data_Entry_2017.csv)",
    layout=(
        "Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv): Image Index, Finding Labels, Follow-up #, Patient ID, Patient Age,\n"
        "    Patient Gender (or Patient Sex), View Position\n"
        "train_val_list.txt, test_list.txt (for the published split)\n"
        "images/00000001_000.png ... (all archives unpacked together), or images_001/images/ ... images_012/images/"
    ),
    documentation=("https://nihcc.app.box.com/v/ChestXray-NIHCC", "https://www.kaggle.com/datasets/nih-chest-xrays/data"),
    tasks=(
        Task("no_finding", ("No Finding",), "1 where the report names no finding, 0 where it names one (the provider; MEDFAIR)"),
        Task("findings", FINDINGS, "the 14 findings, each 1 where the report names it (the provider)", "multilabel"),
        *(
            Task(versus_name(name), (name,), f"1 where the report names {name}, 0 where it names no finding; other images are left out (as "
                 "the DNE paper does on CheXpert)")
            for name in FINDINGS
        ),
    ),
    attributes=(
        Attribute("sex", "female, male"),
        *AGES,
        Attribute("view", "PA, AP"),
    ),
    default_attributes=("sex", "age60"),
    split="the provider's test list is the test split; val is drawn by patient from the train_val list",
    splits=("published", "patient"),
    expected=(
        Expected("images", 112120, _README), Expected("patients", 30805, _README),
        Expected("test images", 25596, "lines of test_list.txt; train_val_list.txt has the other 86,524"),
    ),
    licence="no restriction; the provider asks for the citation and a link (NIH Clinical Center)",
    link="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    citation=f"{_PAPER}, doi:10.1109/CVPR.2017.369",
    channels=1,
    traps=(
        "ages up to 411 stand in the first release: over 120 is missing; ages in months or days (006M, 012D) are read as "
        "whole years (not confirmed: that the first release has such)",
        "a few images are stored with colour or alpha channels: read as grey",
        "labels are mined from reports by the provider's text tool, not read from the images",
        "unlike CheXpert's labels they know no uncertainty and no denial: a finding that is not named is 0",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the entry table."""
    table = raw.table(
        "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", columns=("Image Index", "Finding Labels", "Patient ID", "Patient Age"),
        optional=("Patient Gender", "Patient Sex", "View Position"),
    )
    found = Found(pd.DataFrame())
    findings = table["Finding Labels"].str.split("|")
    present = {name: findings.map(lambda names, name=name: name in names, na_action="ignore") for name in ("No Finding", *FINDINGS)}
    labels = {name: value.map({True: "1", False: "0"}).astype("string") for name, value in present.items()}
    files = raw.by_stem(["images", *(f"images_{k:03d}" for k in range(1, 13))], (".png",))
    names = table["Image Index"].str.strip()
    found.frame = with_ages(pd.DataFrame({
        "image": [files.get(name.removesuffix(".png"), f"images/{name}") for name in names],
        "patient_id": table["Patient ID"],
        **labels,
        "sex": clean_sex(table["Patient Gender"].fillna(table["Patient Sex"]), found.notes),
        "age": clean_age(table["Patient Age"], found.notes),
        "view": table["View Position"],
    }))
    if choice.split == "published":
        found.frame["split"] = _published(raw, names)
        found.counts = {"test images": int(found.frame["split"].eq("test").sum())}
    found.counts |= {"images": len(table), "patients": int(table["Patient ID"].nunique())}
    if choice.task.name.endswith(VERSUS):
        name = choice.task.labels[0]
        neither = ~(present[name] | present["No Finding"]).astype(bool)
        found.leave_out(neither.to_numpy(bool), f"neither '{name}' nor 'No Finding'")
    return found


def _published(raw: RawFolder, names: pd.Series) -> pd.Series:
    """``test`` for the provider's test list, ``rest`` for the other one: val is drawn from it by patient."""
    lists = ("test_list.txt", "train_val_list.txt")
    absent = [name for name in lists if not raw.has(name)]
    if absent:
        names_of = " and ".join(f"'{name}'" for name in absent)
        raise InputError(f"{raw.root} has no file {names_of}, of the published split; download it, or use --split patient")
    test, rest = (set(raw.lines(name)) for name in lists)
    split = pd.Series(["test" if name in test else "rest" if name in rest else None for name in names], dtype="string")
    if split.isna().any():
        are = counted(int(split.isna().sum()), "image is", "images are")
        raise InputError(f"{are} in neither of the provider's lists; use --split patient, or download the lists again")
    return split
