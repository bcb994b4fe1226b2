"""ODIR-5K: fundus photographs of both eyes, with diagnostic keywords an eye and eight disease codes a patient."""

from __future__ import annotations

import re

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import SEX, leave_out_each, people, plain_numbers
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES

CODES = ("N", "D", "G", "C", "A", "H", "M", "O")
TABLES = (
    "ODIR-5K_Training_Annotations(Updated)_V2.xlsx", "data.xlsx", "ODIR-5K/data.xlsx", "ODIR-5K/ODIR-5K/data.xlsx", "full_df.csv",
)
FOLDERS = (
    "ODIR-5K_Training_Dataset", "ODIR-5K_Training_Images", "Training Images", "ODIR-5K/Training Images", "ODIR-5K/ODIR-5K/Training Images",
    "preprocessed_images",
)
BEGINS = {
    "normal fundus": "N", "diabetic retinopathy": "D", "proliferative retinopathy": "D", "glaucoma": "G", "cataract": "C",
    "macular degeneration": "A", "hypertensive retinopathy": "H", "myopi": "M",
}
"""Part of a keyword -> code, the first that fits; any other keyword is O."""
QUALITY = ("lens dust", "optic disk photographically invisible", "low image quality", "image offset")
NO_FUNDUS = ("anterior segment image", "no fundus image")
BACKGROUND = frozenset(
    [f"{number}_{side}" for number in (2177, 2179, 2180, 2181, 2182, 2957) for side in ("left", "right")]
    + ["2174_right", "2175_left", "2176_left", "2178_right"]
)
_COMMAS = re.compile(r"[,，]")
_PAGE = "ODIR-2019 challenge, training part"
_KAGGLE = "full_df.csv of the copy on Kaggle"

INFO = Info(
    name="odir5k",
    title="ODIR-5K",
    modality="fundus",
    version="Training_Annotations(Updated)_V2 (2019), or the copy on Kaggle (andrewmvd/ocular-disease-recognition-odir5k)",
    layout=(
        "ODIR-5K_Training_Annotations(Updated)_V2.xlsx (or data.xlsx): ID, Patient Age, Patient Sex, Left-Fundus, Right-Fundus,\n"
        "    Left-Diagnostic Keywords, Right-Diagnostic Keywords, N, D, G, C, A, H, M, O; or full_df.csv (Kaggle), the same a row an eye\n"
        "ODIR-5K_Training_Dataset/0_left.jpg ... (or Training Images/, ODIR-5K/ODIR-5K/Training Images/, preprocessed_images/)"
    ),
    documentation=(
        "https://odir2019.grand-challenge.org/dataset/",
        "https://www.kaggle.com/datasets/andrewmvd/ocular-disease-recognition-odir5k",
    ),
    tasks=(
        Task("abnormal", ("abnormal",), "1: the eye's keywords name a disease, 0: only 'normal fundus'"),
        Task("diabetic_retinopathy", ("D",), "1: the eye's keywords name diabetic or (non-)proliferative retinopathy, 0: they do not"),
        Task("cataract", ("C",), "1: the eye's keywords name cataract, 0: they do not"),
        Task("diseases", CODES, "the eight codes from the eye's own keywords", "multilabel"),
        Task("patient_diseases", tuple(f"patient_{code}" for code in CODES), "the provider's codes of the patient", "multilabel"),
    ),
    attributes=(SEX, *AGES, Attribute("eye", "right, left")),
    default_attributes=("sex", "age60"),
    split="the challenge's test labels are not public; the training part is drawn by patient",
    expected=(
        Expected("images", 7000, _PAGE), Expected("patients", 3500, _PAGE), Expected("images", 6392, _KAGGLE),
        Expected("patients", 3358, _KAGGLE),
    ),
    licence="for research, by registration with the challenge; the copy on Kaggle names no licence of the provider",
    link="https://odir2019.grand-challenge.org/",
    citation="Li et al., A Benchmark of Ocular Disease Intelligent Recognition, Bench 2020 (arXiv:2102.07978)",
    options=(Option("background", ("leave_out", "keep"), "the 16 images that the provider names for their wrong background"),),
    resize="pad",
    channels=3,
    traps=(
        "the codes N to O are of the patient: one ill eye labels both; the tasks take each eye's own keywords",
        "'low image quality', 'lens dust', 'image offset' and 'optic disk photographically invisible' are no diseases; an eye with "
        "nothing else is left out, as is one with 'no fundus image' or 'anterior segment image'",
        "keywords are separated by Chinese commas, and in places by Latin ones",
        "'suspected' diseases count as diseases, as in the provider's codes",
        "some patients are 1 year old in the table, which is not plausible: they are kept, and said",
        "the columns labels and target of full_df.csv are not used",
        "not confirmed: the provider's own list of keywords a code; how often keywords and codes differ is said",
    ),
    aliases=("odir", "odir_5k"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an eye."""
    keywords = ("Left-Diagnostic Keywords", "Right-Diagnostic Keywords")
    table = raw.table(
        *TABLES, columns=("ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus", *keywords, *CODES), optional=("filename",)
    )
    found = Found(pd.DataFrame())
    listed = set(table["filename"].dropna().str.strip())
    patients = table.drop_duplicates("ID").reset_index(drop=True)
    eyes = pd.concat([
        patients.assign(eye=side.lower(), file=patients[f"{side}-Fundus"].str.strip(), words=patients[f"{side}-Diagnostic Keywords"])
        for side in ("Left", "Right")
    ], ignore_index=True)
    eyes = eyes[eyes["file"].isin(listed) if listed else eyes["file"].notna()].reset_index(drop=True)
    files = raw.by_stem(FOLDERS, (".jpg", ".jpeg", ".png"))
    named = [find_codes(words) if isinstance(words, str) else set() for words in eyes["words"]]
    codes = {code: pd.Series([str(int(code in names)) if names else None for names in named], dtype="string") for code in CODES}
    found.frame = pd.DataFrame({
        "image": [files.get(name.rpartition(".")[0], f"{FOLDERS[0]}/{name}") for name in eyes["file"]],
        "patient_id": eyes["ID"],
        "abnormal": pd.Series([str(int(names != {"N"})) if names else None for names in named], dtype="string"),
        **codes,
        **{f"patient_{code}": plain_numbers(eyes[code]) for code in CODES},
        **people(eyes["Patient Sex"], eyes["Patient Age"], found.notes),
        "eye": eyes["eye"],
        "keywords": eyes["words"],
    })
    _say(found, patients)
    found.counts = {"images": len(eyes), "patients": len(patients)}
    words = eyes["words"].str.lower().fillna("")
    reasons = {
        "the keywords say that it is no fundus image": [any(phrase in text for phrase in NO_FUNDUS) for text in words],
        "the keywords say nothing but the image's quality": [not names for names in named],
    }
    if choice.options["background"] == "leave_out":
        reasons["the provider names its wrong background"] = [name.rpartition(".")[0] in BACKGROUND for name in eyes["file"]]
    leave_out_each(found, reasons)
    return found


def find_codes(text: str) -> set[str]:
    """The codes that an eye's keywords name; empty where they are about the image's quality only.

    Example:
        >>> sorted(find_codes("moderate non proliferative retinopathy，lens dust")), find_codes("low image quality")
        (['D'], set())
        >>> sorted(find_codes("normal fundus, drusen"))
        ['O']
    """
    codes = set()
    for keyword in (part.strip().lower() for part in _COMMAS.split(text)):
        if keyword and keyword not in QUALITY and keyword not in NO_FUNDUS:
            codes.add(next((code for part, code in BEGINS.items() if part in keyword), "O"))
    return codes - {"N"} or codes


def _say(found: Found, patients: pd.DataFrame) -> None:
    """How often the codes of the patient are not those of both eyes' keywords, and how many ages are 1."""
    differing = 0
    for _, row in patients.iterrows():
        texts = [row[f"{side}-Diagnostic Keywords"] for side in ("Left", "Right")]
        both: set[str] = set().union(*(find_codes(text) for text in texts if isinstance(text, str)))
        given = {code for code in CODES if str(row[code]).strip() in ("1", "1.0")}
        differing += (both - {"N"} or both) != given
    if differing:
        have = counted(differing, "patients has", "patients have", of=len(patients))
        found.notes.append(f"{have} other codes than the keywords of the eyes give; eyes are taken")
    ones = int(found.frame["age"].eq("1").sum())
    if ones:
        found.notes.append(f"age: {counted(ones, 'row has age 1 and is', 'rows have age 1 and are')} kept")
