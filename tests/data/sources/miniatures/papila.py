"""A tiny PAPILA as its archive unpacks: two clinical sheets with header rows above each other, and a photograph an eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.miniatures._sheet import write_sheet

REST = ("Phakic/Pseudophakic", "Pneumatic", "Perkins", "Pachymetry", "Axial_Length", "VF_MD")
TOP = (None, "Age", "Gender", "Diagnosis", "Refractive_Defect", None, None, REST[0], "IOP", None, *REST[3:])
SECOND = (None, "Age", "Gender", "Diagnosis", "dioptre_1", "dioptre_2", "astigmatism", *REST)
THIRD = ("ID", *([None] * 12))
MEASURED = (0.75, -1.75, 90, 0, 21, None, 586, 23.64, -0.07)


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Both eyes of every patient; patient 2 (#004) has no sex, patient 3 is 60; every sixth eye is suspicious."""
    rng = np.random.default_rng(seed)
    for folder in ("ClinicalData", "FundusImages", "ExpertsSegmentations/Contours"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for side, shift in (("od", 0), ("os", 1)):
        rows: list[tuple[object, ...]] = [TOP, SECOND, THIRD]
        for patient in range(1, patients + 1):
            number = f"{2 * patient:03d}"
            code = 2 if (patient + shift) % 6 == 0 else int((patient // 2 + shift * (patient % 5 == 0)) % 2)
            sex = None if patient == 2 else patient % 2
            rows.append((f"#{number}", 60 if patient == 3 else 22 + 3 * patient, sex, code, *MEASURED))
            pixels = rng.integers(0, 90, (48, 60, 3), dtype=np.uint8)
            if code:
                pixels[14:34, 20:40] = (240, 200, 120)
            Image.fromarray(pixels).save(root / "FundusImages" / f"RET{number}{side.upper()}.jpg", quality=90)
        write_sheet(root / "ClinicalData" / f"patient_data_{side}.xlsx", rows, name="Hoja1")
