"""A tiny MIMIC-CXR-JPG as PhysioNet lays it out (packed tables), with MIMIC-IV's patients and admissions where they are asked for.

Patient 2 is not in MIMIC-IV; patient 3 is over 89 (anchor_age 91); patient 4 was admitted as WHITE and as ASIAN, patient 5 as UNKNOWN and
BLACK/CAPE VERDEAN, patient 6 as WHITE and WHITE - RUSSIAN; the first study of patient 7 has no labels; some films have no view.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Lung Opacity",
    "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)
META = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
RACES = {
    4: ("WHITE", "ASIAN"), 5: ("UNKNOWN", "BLACK/CAPE VERDEAN"), 6: ("WHITE", "WHITE - RUSSIAN"), 7: ("UNABLE TO OBTAIN",),
    8: ("HISPANIC/LATINO - PUERTO RICAN",), 9: ("PORTUGUESE",), 10: ("?", "PATIENT DECLINED TO ANSWER"),
    11: ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER",), 12: ("AMERICAN INDIAN/ALASKA NATIVE",), 13: ("ASIAN - SOUTH EAST ASIAN",),
}


def write(root: Path, *, patients: int = 24, seed: int = 0, iv: str | None = "mimic-iv-3.1/hosp", race: str = "race") -> None:
    """``iv``: the folder of MIMIC-IV's tables, relative to the root; ``race``: the column's name (``ethnicity`` before version 2.0)."""
    rng = np.random.default_rng(seed)
    meta, split, gold = [META], ["dicom_id,study_id,subject_id,split"], ["study_id," + ",".join(LABELS)]
    programs = {name: ["subject_id,study_id," + ",".join(LABELS)] for name in ("chexpert", "negbio")}
    for patient in range(1, patients + 1):
        subject = 10000000 + 32 * patient
        part = ("train", "train", "validate", "test")[patient % 4]
        for k in range(2):
            study = 50000000 + 1000 * patient + k
            labels = _labels(patient, k)
            if (patient, k) != (7, 0):
                for name, rows in programs.items():
                    values = ["0.0" if name == "negbio" and value == "-1.0" else value for value in labels.values()]
                    rows.append(f"{subject},{study}," + ",".join(values))
            if part == "test" and patient != 7:
                gold.append(f"{study}," + ",".join("1.0" if name == "Edema" else "" for name in LABELS))
            for view in (("AP", "PA")[patient % 2], "LATERAL" if k else "")[: 2 if patient % 3 else 1]:
                film = "-".join("".join(f"{digit:x}" for digit in rng.integers(0, 16, 8)) for _ in range(5))
                _film(root / f"files/p{subject // 1000000}/p{subject}/s{study}/{film}.jpg", labels["Pleural Effusion"] == "1.0", rng)
                meta.append(f"{film},{subject},{study},CHEST (PORTABLE AP),{view},3056,2544,{2180 + patient + 3 * k}0506,213014.53,,,")
                split.append(f"{film},{study},{subject},{part}")
    tables = {"metadata": meta, "split": split, **programs}
    for name, lines in tables.items():
        _packed(root / f"mimic-cxr-2.0.0-{name}.csv.gz", lines)
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("\n".join(gold) + "\n")
    if iv is not None:
        _mimic_iv(root / iv, patients, race)


def _labels(patient: int, study: int) -> dict[str, str]:
    found = {
        0: {"No Finding": "1.0"}, 1: {"Pleural Effusion": "1.0", "Support Devices": "1.0"},
        2: {"Pleural Effusion": "-1.0", "Pneumonia": "0.0"},
    }[(patient + study) % 3]
    return {name: found.get(name, "") for name in LABELS}


def _mimic_iv(folder: Path, patients: int, race: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    people = ["subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"]
    stays = [f"subject_id,hadm_id,admittime,{race}"]
    for patient in range(1, patients + 1):
        if patient == 2:
            continue
        subject = 10000000 + 32 * patient
        people.append(f"{subject},{'FM'[patient % 2]},{91 if patient == 3 else 20 + 3 * patient},{2180 + patient},2011 - 2013,")
        for k, word in enumerate(RACES.get(patient, ("WHITE",) if patient % 2 else ("BLACK/AFRICAN AMERICAN",))):
            stays.append(f"{subject},{20000000 + 10 * patient + k},2180-05-06 22:23:00,{word}")
    _packed(folder / "patients.csv.gz", people)
    _packed(folder / "admissions.csv.gz", stays)


def _packed(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=1, mtime=0))


def _film(path: Path, effusion: bool, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 150, (48, 40), dtype=np.uint8)
    if effusion:
        pixels[30:] = 230
    Image.fromarray(pixels).save(path, quality=90)
