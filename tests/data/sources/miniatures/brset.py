"""A tiny BRSET as PhysioNet lays it out: one label table, and the photographs in one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "image_id,patient_id,camera,patient_age,comorbidities,diabetes_time_y,insuline,patient_sex,exam_eye,diabetes,nationality,optic_disc,"
    "vessels,macula,DR_SDRG,DR_ICDR,focus,Illuminaton,image_field,artifacts,diabetic_retinopathy,macular_edema,scar,nevus,amd,"
    "vascular_occlusion,hypertensive_retinopathy,drusens,hemorrhage,retinal_detachment,myopic_fundus,increased_cup_disc,other,quality"
)


def write(root: Path, *, patients: int = 24, seed: int = 0, newest: bool = False) -> None:
    """Two eyes a patient; patient 2 has no age, patient 3 is 60.0, patient 4's images are inadequate; ``newest``: spelt as in 1.0.2."""
    rng = np.random.default_rng(seed)
    (root / "fundus_photos").mkdir(parents=True, exist_ok=True)
    lines = [HEADER.replace("drusens", "drusen").replace("insuline", "insulin") if newest else HEADER]
    for patient in range(1, patients + 1):
        age = "" if patient == 2 else "60.0" if patient == 3 else f"{18 + 2.5 * patient}"
        for eye in (1, 2):
            number = 2 * patient + eye - 2
            grade = (patient // 2) % 2 * (1 + patient % 4)
            quality = "Inadequate" if patient == 4 else "Adequate"
            findings = ["1" if grade else "0", *["0"] * 6, str(number % 2), *["0"] * 3, "1" if number % 3 else "0", "0"]
            first = [f"img{number:05d}", patient, "Canon CR" if patient % 3 else "NIKON NF5050", age, '"diabetes1, SAH"', "12", "yes"]
            second = [1 + patient % 2, eye, "yes" if patient % 2 else "no", "Brazil", 1, 1, 1, grade, grade, 1, 1, 1, 1]
            row = [*first, *second, *findings, quality]
            lines.append(",".join(map(str, row)))
            pixels = rng.integers(0, 90, (50, 56, 3), dtype=np.uint8)
            if grade:
                pixels[15:36, 15:36] = (200, 60, 40)
            Image.fromarray(pixels).save(root / "fundus_photos" / f"img{number:05d}.jpg", quality=90)
    (root / ("labels_brset.csv" if newest else "labels.csv")).write_text("\n".join(lines) + "\n")
