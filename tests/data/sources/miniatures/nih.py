"""A tiny NIH ChestX-ray14 as its archives unpack: the entry table, the two lists, and films in the folder images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FINDINGS = ("Effusion", "Edema", "Hernia", "Pleural_Thickening", "Effusion|Infiltration", "No Finding")
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Two films a patient; patient 2 has no sex, patient 3 is 411 years old, film 5 has an alpha channel."""
    rng = np.random.default_rng(seed)
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    lines, lists = [HEADER], {"test_list.txt": [], "train_val_list.txt": []}
    for patient in range(1, patients + 1):
        sex = "" if patient == 2 else "FM"[patient % 2]
        age = 411 if patient == 3 else 20 + 3 * patient
        for visit in range(2):
            name = f"{patient:08d}_{visit:03d}.png"
            finding = "No Finding" if (patient // 2 + visit) % 2 else FINDINGS[(patient + visit) % 5]
            lines.append(f"{name},{finding},{visit},{patient},{age},{sex},{'PA' if visit else 'AP'},2682,2749,0.143,0.143,")
            pixels = rng.integers(0, 180, (64, 60), dtype=np.uint8)
            if finding == "No Finding":
                pixels[:24, :24] = 250
            image = Image.fromarray(pixels)
            (image.convert("RGBA") if len(lines) == 7 else image).save(folder / name, compress_level=1)
            lists["test_list.txt" if patient % 4 == 0 else "train_val_list.txt"].append(name)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    for name, names in lists.items():
        (root / name).write_text("\n".join(names) + "\n")
