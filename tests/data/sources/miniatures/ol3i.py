"""A tiny OL3I: the clinical table and the slices in one HDF5 file, named by their anonymous ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write(root: Path, *, patients: int = 32, seed: int = 0, dtype: Any = np.int16) -> None:
    """Examination 2 has no sex, 3 is 60, 5 no label for five years, 7 no slice; one slice has no row."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    lines = ["anon_id,age,sex,bmi,smoker,label_1y,set_1y,label_5y,set_5y"]
    with h5py.File(root / "l3_slices.h5", "w") as file:
        for number in range(1, patients + 1):
            name = hashlib.sha256(str(number).encode()).hexdigest()[:16]
            label = (number // 2) % 2
            part = ("train", "train", "train", "val", "test")[number % 5]
            sex = "" if number == 2 else ("female", "male")[number % 2]
            five = "," if number == 5 else f"{label},{part}"
            lines.append(f"{name},{60 if number == 3 else 28 + 1.5 * number},{sex},24.5,0,{float(label)},{part},{five}")
            values = rng.integers(-120, 60, (32, 32))
            if label:
                values[:16, :16] = 220
            if number != 7:
                file[name] = (values if dtype == np.int16 else values + 120).clip(-1000, 255).astype(dtype)
        file["ffff"] = np.zeros((32, 32), dtype)
    (root / "clinical_data.csv").write_text("\n".join(lines) + "\n")
