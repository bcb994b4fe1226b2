"""Own images in folders of classes, with a table beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(root: Path, *, patients: int = 24, seed: int = 0, splits: bool = False) -> None:
    """Two images a person, names with blanks and umlauts; the first image has no row, one row no image."""
    rng = np.random.default_rng(seed)
    lines = ["File;x,Patient,sex,age".replace(";x", "")]
    for k in range(patients):
        name = ("benign", "malignant")[k % 2]
        part = ("train/", "val/", "test/", "train/")[k % 4 if k % 8 < 4 else 0] if splits else ""
        for n in range(2):
            pixels = rng.integers(0, 150, (48, 40), dtype=np.uint8)
            if name == "malignant":
                pixels[:20, :20] = 240
            file = f"{part}{name}/Bild {k:02d}ä{n}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / file, compress_level=1)
            if k or n:
                lines.append(f"{file if splits else Path(file).name},P{k // 2 if not splits else k},{'fm'[k // 2 % 2]},{20 + 2 * k}")
    lines.append("gone.png,P99,f,50")
    (root / "attributes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
