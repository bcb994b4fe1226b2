"""A tiny ODIR-5K: the annotation sheet (or Kaggle's full_df.csv), a row a patient (an eye), and a photograph an eye."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.miniatures._sheet import write_sheet

HEADER = (
    "ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords", "Right-Diagnostic Keywords",
    "N", "D", "G", "C", "A", "H", "M", "O",
)
WORDS = (
    ("normal fundus", ""), ("moderate non proliferative retinopathy", "D"), ("normal fundus", ""), ("cataract", "C"),
    ("lens dust，drusen", "O"), ("normal fundus", ""),
)
ODD = {4: "low image quality", 6: "no fundus image", 8: "anterior segment image", 10: "glaucoma，hypertensive retinopathy"}


def write(root: Path, *, patients: int = 24, seed: int = 0, kaggle: bool = False) -> None:
    """Patient 0 is 1 year old, patient 3 is 60; the right eyes of 4, 6, 8 have no diagnosis; 2957 (the last) has a wrong background."""
    rng = np.random.default_rng(seed)
    rows: list[list[object]] = []
    folder = root / ("preprocessed_images" if kaggle else "ODIR-5K_Training_Dataset")
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(patients):
        number = 2957 if place == patients - 1 else place
        words, codes = [], set()
        for eye in (0, 1):
            text, code = WORDS[(place + 3 * eye * (place % 3 == 0)) % 6]
            text, code = (ODD[place], "GH" if place == 10 else "") if eye and place in ODD else (text, code)
            words.append(text)
            codes |= set(code)
            pixels = rng.integers(0, 90, (44, 60, 3), dtype=np.uint8)
            if code:
                pixels[10:34, 18:42] = (230, 190, 90)
            Image.fromarray(pixels).save(folder / f"{number}_{('left', 'right')[eye]}.jpg", quality=90)
        age = {0: 1, 3: 60}.get(place, 28 + 2 * place)
        flags = [int(code in (codes or {"N"})) for code in "NDGCAHMO"]
        rows.append([number, age, ("Female", "Male")[place % 2], f"{number}_left.jpg", f"{number}_right.jpg", *words, *flags])
    if kaggle:
        with (root / "full_df.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([*HEADER, "filepath", "labels", "target", "filename"])
            for row in rows:
                for column in (3, 4):
                    if not (column == 4 and row[6] in ODD.values() and row[0] != 10):
                        writer.writerow([*row, f"../input/{row[column]}", "['N']", "[1, 0, 0, 0, 0, 0, 0, 0]", row[column]])
    else:
        write_sheet(root / "ODIR-5K_Training_Annotations(Updated)_V2.xlsx", [list(HEADER), *rows], name="Sheet1")
