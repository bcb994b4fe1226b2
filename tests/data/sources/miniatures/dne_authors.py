"""Tiny metadata as the authors of DNE give it out, beside the films of CheXpert small that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,"
    "Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices,Race"
)
RACES = ("White", "Black or African American", "White, non-Hispanic", "Asian", "")


def write(root: Path, *, patients: int = 30, seed: int = 0) -> None:
    """Patient 2's sex is unknown, 3 is 60; 4 has an uncertain effusion and oedema only, 6 nothing at all, 8 both."""
    rng = np.random.default_rng(seed)
    (root / "meta_data").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [HEADER], "valid": [HEADER]}
    for number in range(1, patients + 1):
        part = "valid" if number % 4 == 0 else "train"
        ill = bool((number // 2 + number // 4) % 2)
        path = f"CheXpert-v1.0-small/{part}/patient{number:05d}/study1/view1_frontal.jpg"
        cells = dict.fromkeys(HEADER.split(","), "")
        cells |= {
            "Path": path, "Sex": "Unknown" if number == 2 else ("Female", "Male")[number % 2],
            "Age": str(60 if number == 3 else 25 + 2 * number),
            "Frontal/Lateral": "Frontal", "AP/PA": "AP", "Race": RACES[number % 5],
            "Pleural Effusion": "1.0" if ill else "", "Edema": "-1.0" if ill else "", "No Finding": "" if ill else "1.0",
        }
        if number == 4:
            cells |= {"Pleural Effusion": "-1.0", "Edema": "-1.0", "No Finding": ""}
        if number == 6:
            cells |= {"Pleural Effusion": "", "Edema": "", "No Finding": ""}
        if number == 8:
            cells |= {"Pleural Effusion": "1.0", "No Finding": "1.0"}
        lines[part].append(",".join(f'"{cell}"' if "," in cell else cell for cell in cells.values()))
        film = rng.integers(0, 120, (44, 52), dtype=np.uint8)
        if ill:
            film[24:, :26] = 240
        file = root / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film).save(file, quality=90)
    for part, rows in lines.items():
        (root / "meta_data" / f"{part}.csv").write_text("\n".join(rows) + "\n")
