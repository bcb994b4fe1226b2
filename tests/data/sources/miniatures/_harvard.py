"""Tiny files of the Harvard Ophthalmology AI Lab: ``.npz`` with image, label and attributes, in a folder a part."""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = ("Training", "Training", "Training", "Training", "Validation", "Test", "Test")
RACES = ("asian", "black", "white")
LANGUAGES = ("english", "spanish", "other", "unknown")
MARITAL = ("married or partnered", "single", "divorced", "widowed", "legally separated", "unknown")


def patient(number: int) -> dict[str, Any]:
    """One patient: 2 has an unknown ethnicity, 3 is exactly 60, 5 an unknown language."""
    return {
        "age": 60.0 if number == 3 else 30.51 + 1.7 * number, "male": number % 2, "race": number % 3,
        "language": -1 if number == 5 else number % 3,
        "hispanic": -1 if number == 2 else number % 2, "maritalstatus": number % 5, "glaucoma": (number // 2) % 2, "md": -0.5 * number,
    }


def words(known: dict[str, Any]) -> dict[str, str]:
    """The same patient as the summary table writes it."""
    return {
        "age": f"{known['age']:.2f}", "gender": ("female", "male")[known["male"]], "race": RACES[known["race"]],
        "ethnicity": {-1: "unknown", 0: "non-hispanic", 1: "hispanic"}[known["hispanic"]], "language": LANGUAGES[known["language"]],
        "maritalstatus": MARITAL[known["maritalstatus"]], "glaucoma": ("no", "yes")[known["glaucoma"]],
    }


def picture(rng: np.random.Generator, label: int, shape: tuple[int, ...], *, top: int) -> Any:
    """Noise, with a bright corner where the label is 1."""
    pixels = rng.integers(0, top // 3, shape)
    if label:
        pixels[..., : shape[-2] // 2, : shape[-1] // 2] = top - 5
    return pixels
