"""A tiny Harvard-GF: the summary table, and a file a patient with thickness map, OCT volume, label and attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.sources.miniatures._harvard import PARTS, patient, picture, words

HEADER = "filename,age,gender,race,ethnicity,language,maritalstatus,glaucoma,use"


def write(root: Path, *, patients: int = 28, seed: int = 0, summary: bool = True) -> None:
    """Patient 4 has an empty volume; thickness is in micrometres with -2 for none."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for number in range(1, patients + 1):
        known, part = patient(number), PARTS[number % 7]
        name = f"data_{number:04d}.npz"
        thickness = picture(rng, known["glaucoma"], (20, 20), top=350).astype(np.float32)
        thickness[:2] = -2
        volume = picture(rng, known["glaucoma"], (6, 20, 20), top=255).astype(np.uint8)
        (root / part).mkdir(parents=True, exist_ok=True)
        fields = {("ethnicity" if key == "hispanic" else key): np.array(value) for key, value in known.items()}
        np.savez(
            root / part / name, rnflt=thickness, oct_bscans=np.zeros((0,), np.uint8) if number == 4 else volume, tds=np.zeros(52), **fields
        )
        row = {"filename": name, **words(known), "use": part.lower()}
        lines.append(",".join(row[column] for column in HEADER.split(",")))
    if summary:
        (root / "data_summary.csv").write_text("\n".join(lines) + "\n")
