"""A tiny covid-chestxray-dataset as its repository lies: metadata.csv, images of several kinds and colour modes, volumes.

Patient 2 has neither sex nor age; case 4 has a lateral film, case 5 a CT slice, case 6 a volume, case 7 is "todo"; a finding ends in a
space.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,needed_supplemental_O2,extubated,"
    "temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,location,folder,filename,doi,url,"
    "license,clinical_notes,other_notes,"
)
FIRST_HEADER = "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes"
FINDINGS = (
    "Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial/Streptococcus", "Pneumonia/Viral/COVID-19", "Pneumonia/Fungal/Pneumocystis",
    "No Finding", "Pneumonia/Viral/COVID-19", "Pneumonia/Viral/Herpes ", "Pneumonia/Viral/COVID-19",
    "Pneumonia/Bacterial/Staphylococcus/MRSA", "Pneumonia",
)


def write(root: Path, *, patients: int = 24, seed: int = 0, version: str = "last") -> None:
    """``version``: last, or first (of March 2020: other columns, the germ's name alone)."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for patient in range(1, patients + 1):
        finding = "todo" if patient == 7 else FINDINGS[patient % len(FINDINGS)]
        views = ["PA", "AP Supine"] if patient % 2 else ["AP"]
        for k, view in enumerate(views + (["L"] if patient == 4 else ["Axial"] if patient in (5, 6) else [])):
            volume = patient == 6 and view == "Axial"
            name = f"case {patient}-day{k}" + (".nii.gz" if volume else ".png" if patient % 3 else ".jpg")
            rows.append({
                "patientid": patient, "offset": k, "sex": "" if patient == 2 else "FM"[patient % 2],
                "age": "" if patient == 2 else 20 + 3 * patient, "finding": finding,
                "survival": "" if patient % 4 == 0 else "YN"[patient % 3 == 0], "view": view,
                "modality": "CT" if view == "Axial" else "X-ray",
                "folder": "volumes" if volume else "images", "filename": name, "license": "CC BY-NC-SA" if patient % 2 else "",
                "clinical_notes": 'a note, with a comma and a "quote"',
            })
            if not volume:
                _film(root / "images" / name, "COVID-19" in finding, "RGB" if patient % 2 else "L", rng)
    if version == "first":
        rows = [_early(row) for row in rows if row["folder"] == "images"]
    with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as stream:
        header = next(csv.reader([HEADER if version == "last" else FIRST_HEADER]))
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([row.get(name.strip(), "") for name in header] for row in rows)


def _early(row: dict[str, object]) -> dict[str, object]:
    germ = str(row["finding"]).strip().split("/")[-1]
    view = "CT" if row["modality"] == "CT" else row["view"]
    return {**row, "Patientid": row["patientid"], "finding": "COVID-19, ARDS" if row["patientid"] == 10 else germ, "view": view}


def _film(path: Path, covid: bool, mode: str, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 150, (44, 40), dtype=np.uint8)
    if covid:
        pixels[20:] = 230
    Image.fromarray(pixels).convert(mode).save(path)
