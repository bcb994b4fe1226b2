"""A tiny Harvard-GDP: a file a patient with a thickness map; files up to 500 with six labels of progression."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.sources.miniatures._harvard import patient, picture

RACES = ("Asian", "Black or African American", "White or Caucasian")


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Half of the files are numbered from 501; patient 1 (the first) has an unlisted race."""
    rng = np.random.default_rng(seed)
    (root / "rnflt_maps").mkdir(parents=True, exist_ok=True)
    for place in range(1, patients + 1):
        known = patient(place)
        number = place if place <= patients // 2 else 500 + place
        fields = {key: np.array(known[key]) for key in ("age", "male", "hispanic", "md", "glaucoma")}
        fields["race"] = np.array("Other" if place == 1 else RACES[known["race"]])
        fields["progression"] = np.array([place % 2, 0, 1, place % 3 == 0, 0, 1], float) if number <= 500 else np.full(6, np.nan)
        thickness = picture(rng, known["glaucoma"], (25, 25), top=350).astype(np.float32)
        np.savez(root / "rnflt_maps" / f"data_{number:04d}.npz", rnflt=thickness, tds=np.zeros(52), **fields)
