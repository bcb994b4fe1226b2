"""A tiny CheXpert as its archives unpack: small, full, or the four batch folders; with the demographics file and the test set on request.

Patient 2's sex is Unknown and age 0; patient 3 is 90; patients have one to three studies, every third study a lateral film; labels are 1.0,
0.0, -1.0 and blank; the demographics write race in many ways, and patient 5 twice, with two races.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.miniatures._sheet import write_sheet

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)
BATCHES = (
    "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)", "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
)
RACES = (
    ("White", "Non-Hispanic/Non-Latino"), ("Black or African American", "Not Hispanic"), ("White, non-Hispanic", "Unknown"),
    ("Asian, Hispanic", None), ("Race and Ethnicity Unknown", "Unknown"), ("White or Caucasian", "Hispanic/Latino"),
    ("Native Hawaiian or Other Pacific Islander", "Hispanic"), ("Other, Hispanic", None), ("Patient Refused", "Patient Refused"),
    ("American Indian or Alaska Native", "Non-Hispanic/Non-Latino"),
)
HEADER = ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS))


def write(
    root: Path, *, patients: int = 24, seed: int = 0, layout: str = "small", demo: bool = True, test: str | None = None
) -> None:
    """``layout``: small, full (one folder named as the archive), batches; ``test``: paths or studies, the two files of test labels."""
    rng = np.random.default_rng(seed)
    archive = "CheXpert-v1.0-small" if layout == "small" else "CheXpert-v1.0"
    base = {"small": root, "full": root / archive, "batches": root / BATCHES[0]}[layout]
    base.mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 1, patients), ("valid", 64541, max(6, patients // 4))):
        lines = [HEADER]
        for patient in range(first, first + count):
            for study in range(1, 2 + patient % 3):
                lines += _study(base, layout, archive, part, patient, study, rng)
        (base / f"{part}.csv").write_text("\n".join(lines) + "\n")
    if test:
        _test(base, test, rng)
    if demo:
        rows: list[list[object]] = [["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"]]
        numbers = [*range(1, patients + 1), *range(64541, 64545), *range(64741, 64747)]
        rows += [[f"patient{n:05d}", _sex(n), _age(n), *RACES[n % len(RACES)]] for n in numbers]
        rows.append(["patient00005", _sex(5), _age(5), "Black, non-Hispanic", "Non-Hispanic/Non-Latino"])
        write_sheet(root / "CHEXPERT DEMO.xlsx", rows)


def _sex(patient: int) -> str:
    return "Unknown" if patient == 2 else ("Female", "Male")[patient % 2]


def _age(patient: int) -> int:
    return {2: 0, 3: 90}.get(patient, 20 + 3 * (patient % 22))


def _labels(patient: int, study: int, radiologist: bool) -> dict[str, str]:
    """By turns: nothing found, an effusion, uncertain edema with an effusion denied, an uncertain effusion."""
    kind = (patient + study) % 4
    found = {
        0: {"No Finding": "1.0"}, 1: {"Pleural Effusion": "1.0", "Pneumonia": "0.0", "Support Devices": "1.0"},
        2: {"Edema": "-1.0", "Pleural Effusion": "0.0", "Lung Lesion": "1.0"}, 3: {"Pleural Effusion": "-1.0", "Atelectasis": "-1.0"},
    }[kind]
    if radiologist:
        return {name: "1.0" if found.get(name) == "1.0" else "0.0" for name in LABELS}
    return {name: found.get(name, "") for name in LABELS}


def _study(base: Path, layout: str, archive: str, part: str, patient: int, study: int, rng: np.random.Generator) -> list[str]:
    labels = _labels(patient, study, part == "valid")
    place = base / part
    if layout == "batches" and part == "train":
        place = base.parent / BATCHES[1 + patient % 3]
    lines = []
    for k, view in enumerate(("frontal", "lateral") if study == 2 else ("frontal",), 1):
        name = f"patient{patient:05d}/study{study}/view{k}_{view}.jpg"
        _film(place / name, labels["Pleural Effusion"] == "1.0", rng)
        position = "" if view == "lateral" else ("AP", "PA")[patient % 2]
        sex, age = _sex(patient), _age(patient)
        lines.append(f"{archive}/{part}/{name},{sex},{age},{view.capitalize()},{position}," + ",".join(labels.values()))
    return lines


def _test(base: Path, form: str, rng: np.random.Generator) -> None:
    """Six patients of one study; labels by path (CheXlocalize) or by study (the repository of the test labels)."""
    lines = [",".join(("Path" if form == "paths" else "Study", *LABELS[1:], "No Finding"))]
    for patient in range(64741, 64747):
        labels = {name: value[:1] for name, value in _labels(patient, 1, True).items()}
        values = ",".join([*(labels[name] for name in LABELS[1:]), labels["No Finding"]])
        for k, view in enumerate(("frontal", "lateral") if patient == 64741 else ("frontal",), 1):
            name = f"test/patient{patient}/study1/view{k}_{view}.jpg"
            _film(base / name, labels["Pleural Effusion"] == "1", rng)
            if form == "paths":
                lines.append(f"{name},{values}")
        if form == "studies":
            lines.append(f"CheXpert-v1.0/test/patient{patient}/study1,{values}")
    (base / ("test_labels.csv" if form == "paths" else "groundtruth.csv")).write_text("\n".join(lines) + "\n")


def _film(path: Path, effusion: bool, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 150, (40, 48), dtype=np.uint8)
    if effusion:
        pixels[24:] = 230
    Image.fromarray(pixels).save(path, quality=90)
