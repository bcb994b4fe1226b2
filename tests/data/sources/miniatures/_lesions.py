"""Small pictures of skin with a lesion, for the miniatures of skin sets: dark and large where malignant, on lighter or darker skin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, rng: np.random.Generator, malignant: bool, tone: str | None = "2", size: tuple[int, int] = (56, 48)) -> None:
    """Save one picture; its folder is made."""
    level = 225 - 25 * (int(tone) if tone in tuple("123456") else 2)
    pixels = np.full((size[1], size[0], 3), (level, level - 25, level - 45), np.int16)
    rows, columns = np.ogrid[: size[1], : size[0]]
    radius = 16 if malignant else 9
    inside = (rows - size[1] // 2) ** 2 + (columns - size[0] // 2) ** 2 < radius**2
    pixels[inside] = (40, 25, 30) if malignant else (130, 90, 70)
    pixels += rng.integers(-15, 16, pixels.shape, dtype=np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
