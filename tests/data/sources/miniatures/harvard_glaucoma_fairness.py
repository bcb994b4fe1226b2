"""A tiny Harvard-FairVision: the folders Glaucoma and AMD with a file and a picture a patient; a summary table for glaucoma only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.miniatures._harvard import PARTS, patient, picture, words

HEADER = "filename,age,gender,race,ethnicity,language,maritalstatus,glaucoma,use"
STAGES = ("not.in.icd.table", "early.dry", "intermediate.dry", "wet.amd.inactive.scar", "no.amd.diagnosis")


def write(root: Path, *, patients: int = 28, seed: int = 0) -> None:
    """Parts are named as the provider's code wants them (train, val, test); glaucoma's patient 4 has an empty volume."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for disease in ("Glaucoma", "AMD"):
        for number in range(1, patients + 1):
            known = patient(number)
            part = {"Training": "train", "Validation": "val", "Test": "test"}[PARTS[number % 7]]
            stage = STAGES[number % 5]
            label = known["glaucoma"] if disease == "Glaucoma" else int(number % 5 in (1, 2, 3))
            folder = root / disease / part
            folder.mkdir(parents=True, exist_ok=True)
            volume = picture(rng, label, (6, 20, 20), top=255).astype(np.uint8)
            slo = picture(rng, label, (20, 20), top=255).astype(np.uint8)
            fields = {key: np.array(known[key]) for key in ("male", "race", "hispanic", "language", "maritalstatus")}
            fields |= {"glaucoma": np.array(label)} if disease == "Glaucoma" else {"amd_condition": np.array(stage)}
            empty = disease == "Glaucoma" and number == 4
            name = f"data_{number:05d}.npz"
            np.savez(folder / name, oct_bscans=np.zeros((0,), np.uint8) if empty else volume, slo_fundus=slo, **fields)
            Image.fromarray(slo).save(folder / f"slo_fundus_{number:05d}.jpg", quality=95)
            if disease == "Glaucoma":
                row = {"filename": name, **words(known), "use": {"train": "training", "val": "validation", "test": "test"}[part]}
                lines.append(",".join(row[column] for column in HEADER.split(",")))
    (root / "data_summary_glaucoma.csv").write_text("\n".join(lines) + "\n")
