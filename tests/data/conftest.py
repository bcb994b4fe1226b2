"""A small folder of images with its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """24 grey 20 x 16 px PNG images of 12 patients, and metadata.csv."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    rows = []
    for k in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 16), dtype=np.uint8)).save(folder / "images" / f"{k:02d}.png")
        patient = k // 2
        rows.append({
            "image": f"images/{k:02d}.png", "patient_id": f"p{patient}", "split": ("train", "val", "test")[patient % 3], "y": k % 2,
            "sex": "fm"[patient % 2], "age": 20 + 5 * patient,
        })
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder
