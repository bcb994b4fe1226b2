"""A tiny DDI: the table with its unnamed first column, and PNG images of different sizes beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

DISEASES = ("melanocytic-nevi", "melanoma-in-situ", "seborrheic-keratosis", "basal-cell-carcinoma")
TYPES = {"12": "1", "34": "3", "56": "6"}


def write(root: Path, *, patients: int = 24, seed: int = 0, moved: bool = False) -> None:
    """One image a patient, two in four malignant; with ``moved`` the images are in a folder, as the authors' code wants them."""
    rng = np.random.default_rng(seed)
    lines = [",DDI_ID,DDI_file,skin_tone,malignant,disease"]
    for number in range(2 * patients):
        tone, disease = tuple(TYPES)[number // 4 % 3], DISEASES[number % 4]
        malignant = number % 2 == 1
        name = f"{number + 1:06d}.png"
        lines.append(f"{number},{number + 1},{name},{tone},{malignant},{disease}")
        draw(root / "images" / name if moved else root / name, rng, malignant, TYPES[tone], (50 + number % 9, 44 + number % 5))
    (root / "ddi_metadata.csv").write_text("\n".join(lines) + "\n")
