"""A tiny HAM10000: its metadata as Kaggle or Dataverse give it, and the images in two parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

DX = ("nv", "mel", "bkl", "bcc", "nv", "akiec", "df", "vasc")
SITES = ("back", "lower extremity", "face", "unknown")


def write(root: Path, *, patients: int = 24, seed: int = 0, release: str = "kaggle") -> None:
    """Two images of every third lesion; lesion 2 has sex unknown, lesion 3 no age, lesion 4 age 0, lesion 5 age 60."""
    rng = np.random.default_rng(seed)
    dataverse = release == "dataverse"
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", *(["dataset"] if dataverse else [])]
    rows, number = [header], 24306
    for lesion in range(1, patients + 1):
        sex = "unknown" if lesion == 2 else ("female", "male")[lesion // 2 % 2]
        age = {3: "", 4: "0.0", 5: "60.0"}.get(lesion, f"{20 + 5 * (lesion % 13)}.0")
        for _ in range(2 if lesion % 3 == 0 else 1):
            image, dx = f"ISIC_{number:07d}", DX[lesion % 8]
            rows.append([f"HAM_{lesion:07d}", image, dx, "histo" if dx == "mel" else "follow_up", age, sex, SITES[lesion % 4],
                         *(["vidir_modern"] if dataverse else [])])
            draw(root / f"HAM10000_images_part_{1 + number % 2}" / f"{image}.jpg", rng, dx in ("mel", "bcc", "akiec"))
            number += 1
    separator, name = ("\t", "HAM10000_metadata.tab") if dataverse else (",", "HAM10000_metadata.csv")
    (root / name).write_text("".join(separator.join(row) + "\n" for row in rows))
