"""A tiny PAD-UFES-20: the table with all its columns, and PNG images in three parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

COLUMNS = (
    "patient_id", "lesion_id", "smoke", "drink", "background_father", "background_mother", "age", "pesticide", "gender",
    "skin_cancer_history", "cancer_history", "has_piped_water", "has_sewage_system", "fitspatrick", "region", "diameter_1", "diameter_2",
    "diagnostic", "itch", "grew", "hurt", "changed", "bleed", "elevation", "img_id", "biopsed",
)
CLASSES = ("NEV", "BCC", "ACK", "SCC", "SEK", "MEL")


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Two images a patient, of one lesion for even patients; without a biopsy neither sex nor type; patient 3 is of type 0."""
    rng = np.random.default_rng(seed)
    lines = [",".join(COLUMNS)]
    for number in range(2 * patients):
        patient = number // 2
        lesion = 100 + (2 * patient if patient % 2 == 0 else number)
        kind = CLASSES[patient % 6]
        biopsed = kind in ("BCC", "SCC", "MEL") or patient % 4 == 0
        name = f"PAT_{patient}_{lesion}_{number + 300}.png"
        tone = "0" if patient == 3 else str(1 + patient % 5)
        cells = dict.fromkeys(COLUMNS, "") | {
            "patient_id": f"PAT_{patient}", "lesion_id": str(lesion), "age": str(30 + 3 * patient % 60),
            "region": ("FACE", "ARM")[patient % 2], "diagnostic": kind, "itch": "UNK", "grew": "True", "img_id": name,
            "biopsed": str(biopsed),
        }
        if biopsed:
            cells |= {"gender": ("FEMALE", "MALE")[patient // 2 % 2], "fitspatrick": f"{tone}.0"}
        lines.append(",".join(cells.values()))
        draw(root / "images" / f"imgs_part_{1 + number % 3}" / name, rng, kind in ("BCC", "SCC", "MEL"), tone)
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
