"""OL3I: one abdominal CT slice (third lumbar vertebra) of 8,139 examinations, and ischaemic heart disease within one and five years."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import SEX, people, plain_numbers
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES
from evenhand.errors import InputError
from evenhand.optional import require

TABLE = "clinical_data.csv"
SLICES = "l3_slices.h5"
GREYS = {"soft_tissue": "window=50,400", "full": "scale=-1000,1000"}
_PAPER = "Zambrano Chaves et al., Opportunistic assessment of ischemic heart disease risk, Scientific Reports 13:21034, 2023"

INFO = Info(
    name="ol3i",
    title="OL3I",
    modality="ct",
    version="Stanford AIMI, 2022",
    layout=(
        "clinical_data.csv: anon_id, age, sex, label_1y, set_1y, label_5y, set_5y, ...\n"
        "l3_slices.h5: one array an examination, named by its anon_id (512 x 512, Hounsfield units)"
    ),
    documentation=("https://doi.org/10.1038/s41598-023-47895-y", "https://github.com/StanfordMIMI/abct_ihd"),
    tasks=(
        Task("ihd_1y", ("ihd_1y",), "1: ischaemic heart disease within one year of the CT, 0: none (label_1y; FairTune)"),
        Task("ihd_5y", ("ihd_5y",), "1: within five years, 0: none (label_5y); examinations with a shorter follow-up are unlabelled"),
    ),
    attributes=(SEX, *AGES),
    default_attributes=("sex", "age60"),
    split="the provider's columns set_1y and set_5y, one split for each label",
    splits=("published", "patient"),
    expected=(Expected("images", 8139, _PAPER), Expected("patients", 8139, _PAPER)),
    licence="Stanford University Dataset Research Use Agreement (non-commercial)",
    link="https://stanfordaimi.azurewebsites.net/datasets/3263e34a-252e-460f-8f63-d585a9bfecfc",
    citation=f"{_PAPER}, doi:10.1038/s41598-023-47895-y",
    options=(Option("grey", tuple(GREYS), "soft_tissue: black -150, white 250 HU; full: -1000 and 1000 HU (the provider's code)"),),
    channels=1,
    traps=(
        "few examinations are positive within a year, and so few in a group: see the intervals",
        "FairTune's loader casts the stored values to 8 bits without a window, so that they wrap where they are Hounsfield units",
        "needs h5py (the extra 'volumes')",
        "not confirmed: the type of the stored values; arrays of 8 bits are taken as they are, others as Hounsfield units",
        "not confirmed: that an anon_id is a person and not an examination; the provider says one examination a person",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an examination that the task has a label for."""
    years = choice.task.name.removeprefix("ihd_")
    table = raw.table(TABLE, columns=("anon_id", "age", "sex", f"label_{years}"), optional=("label_1y", "label_5y", "set_1y", "set_5y"))
    found = Found(pd.DataFrame())
    names, keys = _slices(raw, GREYS[choice.options["grey"]])
    ids = table["anon_id"].str.strip()
    labels = {f"ihd_{span}": plain_numbers(table[f"label_{span}"]) for span in ("1y", "5y")}
    found.frame = pd.DataFrame({
        "image": f"{SLICES}#array=" + ids + keys,
        "patient_id": ids,
        **{name: values.where(values.isin(["0", "1"])) for name, values in labels.items()},
        **people(table["sex"], table["age"], found.notes),
    })
    found.counts = {"images": len(names), "patients": int(ids.nunique())}
    absent, beyond = int((~ids.isin(names)).sum()), len(names - set(ids.dropna()))
    if absent or beyond:
        rows, slices = counted(absent, f"row of {TABLE} has", f"rows of {TABLE} have"), counted(beyond, "slice", "slices")
        found.notes.append(f"{rows} no slice and {slices} no row: both are left out")
    if choice.split == "published":
        found.frame["split"] = table[f"set_{years}"].str.strip().str.lower()
    found.leave_out((~ids.isin(names)).to_numpy(), f"no slice in {SLICES}")
    found.leave_out(found.frame[choice.task.labels[0]].isna().to_numpy(), f"no label_{years}")
    if choice.split == "published":
        known = found.frame["split"].isin(["train", "val", "test"])
        found.leave_out((~known).to_numpy(), f"set_{years} is neither train, val nor test")
        if not known.any():
            raise InputError(f"{TABLE} has no row with train, val or test in set_{years}; use --split patient")
    return found


def _slices(raw: RawFolder, grey: str) -> tuple[set[str], str]:
    """The names of all slices, and what a reference needs to make them grey."""
    path = raw.file(SLICES)
    h5py = require("h5py", "volumes", f"reading {SLICES}")
    try:
        with h5py.File(path, "r") as file:
            names = set(file)
            first = file[next(iter(names))] if names else None
            eight_bits = first is not None and getattr(first, "dtype", None) == "uint8"
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} cannot be read as HDF5 ({str(error).splitlines()[0]}); download it again") from error
    if not names:
        raise InputError(f"{path} holds no slices. Is it the file of this data set?")
    return names, "" if eight_bits else f"&{grey}"
