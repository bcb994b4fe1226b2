"""COVID-19 image data collection (ieee8023/covid-chestxray-dataset): chest films and CT slices from published cases."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Attribute, Choice, Found, Info, Option, Task
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages

FRONTAL = ("PA", "AP", "AP SUPINE", "AP ERECT", "AP SEMI ERECT")
VIEWS = {
    "PA": "PA", "AP": "AP", "AP SUPINE": "AP supine", "AP ERECT": "AP erect", "AP SEMI ERECT": "AP semi erect", "L": "lateral",
    "LATERAL": "lateral",
}
"""Views in upper case -> one spelling of each."""
UNDECIDED = ("", "todo", "unknown")
KINDS = ("COVID-19", "other viral", "bacterial", "fungal")
_OLD_NAMES = {
    "viral": ("sars", "mers", "influenza", "varicella", "herpes"),
    "bacterial": ("streptococcus", "klebsiella", "legionella", "e.coli", "chlamydophila", "mycoplasma", "nocardia", "staphylococcus"),
    "fungal": ("pneumocystis", "aspergillosis"),
}
"""The findings of early versions, which named the germ without its kind."""

INFO = Info(
    name="covid_chestxray",
    title="COVID-19 image data collection (covid-chestxray-dataset)",
    modality="chest_film",
    version="the repository at any commit since March 2020; its last has finding as 'Pneumonia/Viral/COVID-19'",
    layout=(
        "metadata.csv: patientid, sex, age, finding, view, filename, and (since 2020-03) modality, folder, survival, license, url\n"
        "images/1-s2.0-S0140673620303706-fx1_lrg.jpg ...\n"
        "volumes/*.nii.gz (left out)"
    ),
    documentation=(
        "https://github.com/ieee8023/covid-chestxray-dataset", "https://github.com/ieee8023/covid-chestxray-dataset/blob/master/SCHEMA.md",
        "https://arxiv.org/abs/2006.11988",
    ),
    tasks=(
        Task("covid", ("COVID-19",), "1 where finding names COVID-19, 0 where it names anything else, No Finding too; todo and unknown are "
             "left out (the authors' first task)"),
        Task("pneumonia", ("pneumonia",), "COVID-19, other viral, bacterial or fungal pneumonia; other findings are left out (the authors' "
             "second task)", "multiclass"),
        Task("survival", ("died",), "1 where survival is N, 0 where it is Y; unknown is left out (the authors' third task)"),
    ),
    attributes=(
        Attribute("sex", "female, male"),
        *AGES,
        Attribute("view", "PA, AP, AP supine, AP erect, AP semi erect, lateral; one spelling of each, another word as it is written"),
    ),
    default_attributes=("sex", "age60"),
    split="none is published; split by patient",
    options=(
        Option("view", ("frontal", "all"), "frontal: PA, AP, AP supine, AP erect, AP semi erect (default); all: lateral films too"),
        Option("modality", ("x-ray", "ct"), "films (default), or the CT slices that are stored as pictures (all views)"),
    ),
    licence="per image, in the column license (Apache 2.0, CC BY-NC-SA 4.0, CC BY, ... or blank); the metadata are CC BY-NC-SA 4.0",
    link="https://github.com/ieee8023/covid-chestxray-dataset",
    citation="Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future, arXiv:2006.11988",
    channels=1,
    traps=(
        "the collection is of published cases: where an image comes from, its view and its kind of file tell the finding",
        "one case may stand under two patient ids, taken from two web sites: images of equal content are kept in one split",
        "findings are paths (Pneumonia/Viral/COVID-19), some with a space at the end; early versions name the germ only, or two things "
        "('COVID-19, ARDS')",
        "the column of the first version is Patientid, and its column view says CT where modality came later",
        "sex and age are blank for many; a blank is missing",
        "not confirmed: counts, which differ from commit to commit; none is compared",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the metadata table, without volumes."""
    found = Found(pd.DataFrame())
    table = _table(raw)
    finding = table["finding"].str.strip()
    view = table["view"].str.strip()
    modality = table["modality"].str.strip().str.lower().fillna("x-ray").mask(view.str.upper().eq("CT").fillna(False), "ct")
    folder = table["folder"].str.strip().fillna("images")
    found.frame = with_ages(pd.DataFrame({
        "image": folder + "/" + table["filename"].str.strip(),
        "patient_id": table["patientid"].str.strip(),
        **_labels(finding, table["survival"]),
        "sex": clean_sex(table["sex"], found.notes),
        "age": clean_age(table["age"], found.notes),
        "view": view.str.upper().map(VIEWS).astype("string").fillna(view),
        "finding": finding, "licence": table["license"].str.strip(), "url": table["url"].str.strip(),
    }))
    found.counts = {"rows": len(table), "patients": int(table["patientid"].nunique())}
    _leave_out(found, choice, folder, modality)
    return found


def _table(raw: RawFolder) -> pd.DataFrame:
    """The metadata, with the names of the last version."""
    columns = ("finding", "view", "filename")
    table = raw.table("metadata.csv", columns=columns, optional=("sex", "age", "survival", "license", "url", "modality", "folder"))
    if "patientid" not in table and "Patientid" in table:
        return table.rename(columns={"Patientid": "patientid"})
    return table if "patientid" in table else raw.table("metadata.csv", columns=("patientid", *columns))


def _labels(finding: pd.Series, survival: pd.Series) -> dict[str, pd.Series]:
    """The label columns of the three tasks, missing where a definition leaves the row out."""
    words = {text: [part.strip().lower() for part in text.replace(",", "/").split("/")] for text in finding.dropna().unique()}

    def covid(text: str) -> str | None:
        return None if text.lower() in UNDECIDED else "1" if "covid-19" in words[text] else "0"

    def kind(text: str) -> str | None:
        names = words[text]
        if "covid-19" in names:
            return KINDS[0]
        kinds = [word for word, germs in _OLD_NAMES.items() if word in names or any(name.startswith(germs) for name in names)]
        return "other viral" if kinds == ["viral"] else kinds[0] if len(kinds) == 1 else None

    return {
        "COVID-19": finding.map({text: covid(text) for text in words}).astype("string"),
        "pneumonia": finding.map({text: kind(text) for text in words}).astype("string"),
        "died": survival.str.strip().str.upper().map({"Y": "0", "N": "1"}).astype("string"),
    }


def _leave_out(found: Found, choice: Choice, folder: pd.Series, modality: pd.Series) -> None:
    """Volumes, the other modality, other views, and rows without a label of the task, each under its own reason."""
    wanted = choice.options["modality"]
    frontal = found.frame["view"].str.upper().isin(FRONTAL)
    other_view = pd.Series(choice.options["view"] == "frontal" and wanted == "x-ray", index=frontal.index) & ~frontal
    unlabelled = found.frame[choice.task.labels[0]].isna()
    reasons = {
        "a volume": folder.eq("volumes"),
        f"not of the modality asked for (option modality={wanted})": modality.ne(wanted),
        "not a frontal view (option view=frontal)": other_view,
        "its finding is left out by the task's definition": unlabelled,
    }
    left = pd.Series("", index=frontal.index)
    for reason, rows in reasons.items():
        left = left.mask(rows.astype(bool) & left.eq(""), reason)
    gone = found.frame[left.ne("")].assign(reason=left[left.ne("")])
    if len(gone):
        found.left_out = gone.reset_index(drop=True)
    found.frame = found.frame[left.eq("")].reset_index(drop=True)
