"""A tiny ISIC 2019: training and test parts, names with and without _downsampled, lesions only for part of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Training: lesion 0 is unknown for every fourth image; test: every ninth image is UNK; sex and age are empty here and there."""
    rng = np.random.default_rng(seed)
    number = 0
    for part in ("Training", "Test"):
        lesion_column = ["lesion_id"] if part == "Training" else []
        truth, given = [["image", *CLASSES]], [["image", "age_approx", "anatom_site_general", *lesion_column, "sex"]]
        for row in range(patients * 3 // 2):
            name = f"ISIC_{number:07d}" + ("_downsampled" if number % 3 == 2 else "")
            kind = number % (8 if part == "Training" else 9)
            lesion = "" if row % 4 == 3 else f"BCN_{row // 2:07d}"
            if lesion and row % 2:
                kind = (number - 1) % 8
            truth.append([name, *("1.0" if place == kind else "0.0" for place in range(9))])
            age = "" if row % 9 == 8 else str(20 + 5 * (row % 12))
            sex = "" if row % 7 == 6 else ("female", "male")[row // 8 % 2]
            given.append([name, age, "head/neck" if row % 2 else "", *([lesion] if lesion_column else []), sex])
            draw(root / f"ISIC_2019_{part}_Input" / f"{name}.jpg", rng, CLASSES[kind] in ("MEL", "BCC", "AK", "SCC"))
            number += 1
        for file, rows in ((f"ISIC_2019_{part}_GroundTruth.csv", truth), (f"ISIC_2019_{part}_Metadata.csv", given)):
            (root / file).write_text("".join(",".join(cells) + "\n" for cells in rows))
