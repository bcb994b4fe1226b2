"""A tiny Harvard-FairVLMed: the summary table with notes, and a file a patient, some with the picture beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.miniatures._harvard import PARTS, patient, picture, words

HEADER = "filename,age,gender,race,ethnicity,language,maritalstatus,note,gpt4_summary,glaucoma,use"


def write(root: Path, *, patients: int = 28, seed: int = 0) -> None:
    """The folder of the test part is called Test, in the table its name is ``test``; patient 1's picture is not beside its file."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for number in range(1, patients + 1):
        known, part = patient(number), PARTS[number % 7]
        pixels = picture(rng, known["glaucoma"], (26, 20), top=255).astype(np.uint8)
        (root / part).mkdir(parents=True, exist_ok=True)
        fields = {("gender" if key == "male" else "ethnicity" if key == "hispanic" else key): np.array(v) for key, v in known.items()}
        np.savez(root / part / f"data_{number:05d}.npz", slo_fundus=pixels, tds=np.zeros(52), note=np.array("seen today"), **fields)
        if number > 1:
            Image.fromarray(pixels).save(root / part / f"slo_fundus_{number:05d}.jpg", quality=95)
        told = {**words(known), "note": '"ms. PERSON, 56 yo, with drusen"', "gpt4_summary": '"a summary"'}
        row = {"filename": f"data_{number:05d}.npz", **told, "use": part.lower()}
        lines.append(",".join(row[column] for column in HEADER.split(",")))
    (root / "ReadMe").mkdir()
    (root / "ReadMe" / "data_summary.csv").write_text("\n".join(lines) + "\n")
