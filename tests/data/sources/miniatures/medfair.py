"""Tiny metadata as MEDFAIR's notebooks write it: three tables, and the images as pickles (blue first), as files or as volumes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

PARTS = {"train": 0.6, "val": 0.2, "test": 0.2}


def write(root: Path, *, patients: int = 30, seed: int = 0, kind: str = "HAM10000") -> None:
    """``kind``: HAM10000 (pickles), PAPILA (files; suspicious eyes), CXP (files; empty and uncertain labels), OCT (volumes)."""
    rng = np.random.default_rng(seed)
    rows = [_row(kind, number, rng, root) for number in range(1, patients + 1)]
    (root / "split").mkdir(parents=True, exist_ok=True)
    start = 0
    for part, share in PARTS.items():
        end = start + round(share * patients)
        kept = rows[start:end]
        frame = pd.DataFrame([row for row, _ in kept], index=range(5, 5 + len(kept)))
        frame.to_csv(root / "split" / f"new_{part}.csv")
        if kind == "HAM10000":
            (root / "pkls").mkdir(exist_ok=True)
            with (root / "pkls" / f"{part}_images.pkl").open("wb") as stream:
                pickle.dump([image[..., ::-1] for _, image in kept], stream)
        start = end


def _row(kind: str, number: int, rng: np.random.Generator, root: Path) -> tuple[dict[str, Any], Any]:
    """One row of the tables; number 2 has no known sex, 3 is exactly 60."""
    label, age, person = (number // 2) % 2, 60 if number == 3 else 20 + 2 * number, (number - 1) // 2
    image = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
    image[:, :, 0] += 40
    if label:
        image[8:24, 8:24] = (230, 90, 60)
    common = {"Sex": "U" if number == 2 else "MF"[number % 2], "Age_multi": min(age // 20, 4), "Age_binary": int(age > 60)}
    if kind == "HAM10000":
        name = f"ISIC_{number:07d}"
        row = {"lesion_id": f"HAM_{person:07d}", "image_id": name, "dx": "mel" if label else "nv", "age": float(age)}
        return {**row, "Path": f"HAM10000_images/{name}.jpg", **common, "binaryLabel": label}, image
    if kind == "PAPILA":
        side = ("OS", "OD")[number % 2]
        path = f"RET{person:03d}{side}.jpg"
        _save(root / "images" / path, image)
        row = {"ID": f"#{person:03d}", "Age": age, "Gender": 0, "Diagnosis": 2 if number == 5 else label}
        return {**row, "Path": path, **common}, image
    if kind == "CXP":
        path = f"CheXpert-v1.0-small/train/patient{person:05d}/study{number % 2 + 1}/view1_frontal.jpg"
        _save(root / path, image[..., 0])
        value = "" if number == 4 else -1.0 if number == 6 else 1.0 if label else ""
        return {"Path": path, "Age": age, "No Finding": value, "Race": ("White", "non-White")[number % 2], **common}, image
    path = f"Farsiu_Ophthalmology_2013_AMD_Subject_{1000 + number}.npy"
    (root / "images").mkdir(parents=True, exist_ok=True)
    np.save(root / "images" / path, np.repeat(image[..., 1][:, :, None], 5, axis=2))
    return {"Path": path, "Age": float(age), "label": label, **{key: common[key] for key in ("Age_multi", "Age_binary")}}, image


def _save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)
