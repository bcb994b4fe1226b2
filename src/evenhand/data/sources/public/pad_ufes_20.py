"""PAD-UFES-20: 2,298 smartphone photographs of 1,641 skin lesions of 1,373 patients, with Fitzpatrick skin types."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._skin import SEX, TONES, image_paths, is_one_of, known_words, people, tones
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES

CLASSES = {"ACK": "ack", "BCC": "bcc", "MEL": "mel", "NEV": "nev", "SCC": "scc", "BOD": "scc", "SEK": "sek"}
COUNTS = {"ack": 730, "bcc": 845, "mel": 52, "nev": 244, "scc": 192, "sek": 235}
FOLDERS = ("images", "imgs_part_1", "imgs_part_2", "imgs_part_3")
_PAPER = "Pacheco et al., PAD-UFES-20, Data in Brief 32:106221, 2020"

INFO = Info(
    name="pad_ufes_20",
    title="PAD-UFES-20",
    modality="photograph",
    version="Mendeley Data doi:10.17632/zr7vgbcyr2.1",
    layout=(
        "metadata.csv: patient_id, lesion_id, age, gender, fitspatrick (so spelled), region, diagnostic, img_id, biopsed, ...\n"
        "images/imgs_part_1/PAT_8_15_820.png ..., imgs_part_2/, imgs_part_3/ (all three archives unpacked), or without images/"
    ),
    documentation=("https://data.mendeley.com/datasets/zr7vgbcyr2/1", "https://doi.org/10.1016/j.dib.2020.106221"),
    tasks=(
        Task("malignant", ("malignant",), "1: the provider's skin cancers, BCC, MEL, SCC (Bowen's disease in it); 0: ACK, NEV, SEK"),
        Task("melanoma", ("melanoma",), "1: MEL; 0: the rest"),
        Task("diagnosis", ("diagnosis",), "the provider's six: ack, bcc, mel, nev, scc, sek", "multiclass"),
    ),
    attributes=(SEX, *AGES, *TONES, Attribute("region", "face, forearm, chest, ... (the provider)")),
    default_attributes=("skin_tone", "sex", "age60"),
    split="none is published; drawn by patient",
    expected=(
        Expected("images", 2298, _PAPER), Expected("patients", 1373, _PAPER), Expected("lesions", 1641, _PAPER),
        *(Expected(name, count, _PAPER) for name, count in COUNTS.items()),
    ),
    licence="CC BY 4.0",
    link="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
    citation=f"{_PAPER}, doi:10.1016/j.dib.2020.106221",
    channels=3,
    aliases=("pad_ufes",),
    traps=(
        "sex and skin type are empty for many benign images, without a biopsy, and for no malignant one (seen on 109 images): leaving "
        "them out changes the prevalence",
        "the column of the skin type is spelled fitspatrick; types are written 3.0",
        "few patients are of types V and VI: small groups",
        "a patient may have several lesions, a lesion several images: kept together",
        "the 1,641 lesions are the distinct lesion_id; as some stand under several patients, the pairs of patient and lesion are more",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the metadata table."""
    table = raw.table(
        "metadata.csv", columns=("patient_id", "lesion_id", "age", "gender", "fitspatrick", "diagnostic", "img_id"),
        optional=("region", "biopsed"),
    )
    found = Found(pd.DataFrame())
    diagnosis = known_words(table["diagnostic"], CLASSES, "diagnostic", "metadata.csv")
    found.frame = pd.DataFrame({
        "image": image_paths(raw, table["img_id"].str.strip().str.removesuffix(".png"), FOLDERS, (".png", ".jpg")),
        "patient_id": table["patient_id"],
        "malignant": is_one_of(diagnosis, ("bcc", "mel", "scc")),
        "melanoma": is_one_of(diagnosis, ("mel",)),
        "diagnosis": diagnosis,
        **dict(people(table["gender"], table["age"], found.notes)),
        **dict(tones(table["fitspatrick"], found.notes)),
        "region": table["region"].astype("string").str.strip().str.lower(),
        "biopsed": table["biopsed"],
        "lesion_id": table["lesion_id"],
    })
    found.counts = {
        "images": len(table), "patients": int(table["patient_id"].nunique()), "lesions": int(table["lesion_id"].nunique()),
        **{name: int(diagnosis.eq(name).sum()) for name in COUNTS},
    }
    return found
