"""A tiny ISIC 2017: three parts, each with images beside their superpixel masks, metadata inside the folder, ground truth outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ._lesions import draw

SHARES = (("Training", 12), ("Validation", 6), ("Test_v2", 6))


def write(root: Path, *, patients: int = 24, seed: int = 0, nested: bool = False) -> None:
    """Of every four images one is a melanoma and one a seborrheic keratosis; every fifth has sex, every seventh age unknown."""
    rng = np.random.default_rng(seed)
    number = 0
    for part, share in SHARES:
        folder = root / f"ISIC-2017_{part}_Data"
        folder = folder / folder.name if nested else folder
        truth, given = ["image_id,melanoma,seborrheic_keratosis"], ["image_id,age_approximate,sex"]
        for _ in range(share * patients // 24):
            name, kind = f"ISIC_{number:07d}", number % 4
            truth.append(f"{name},{float(kind == 1)},{float(kind == 2)}")
            age = "unknown" if number % 7 == 6 else str(20 + 5 * (number % 12))
            given.append(f"{name},{age},{'unknown' if number % 5 == 4 else ('female', 'male')[number // 2 % 2]}")
            draw(folder / f"{name}.jpg", rng, kind == 1)
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / f"{name}_superpixels.png")
            number += 1
        (folder / f"ISIC-2017_{part}_Data_metadata.csv").write_text("\n".join(given) + "\n")
        (root / f"ISIC-2017_{part}_Part3_GroundTruth.csv").write_text("\n".join(truth) + "\n")
