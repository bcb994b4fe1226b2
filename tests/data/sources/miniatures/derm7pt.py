"""A tiny derm7pt: meta.csv with all its columns, the lists of indexes, and two images a case in folders, their names' case astray."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

COLUMNS = (
    "case_num", "diagnosis", "seven_point_score", "pigment_network", "streaks", "pigmentation", "regression_structures",
    "dots_and_globules", "blue_whitish_veil", "vascular_structures", "level_of_diagnostic_difficulty", "elevation", "location", "sex",
    "management", "clinic", "derm", "case_id", "notes",
)
DIAGNOSES = (
    "clark nevus", "melanoma (in situ)", "basal cell carcinoma", "seborrheic keratosis", "melanoma (less than 0.76 mm)",
    "reed or spitz nevus",
)


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """One case a patient; the clinical photograph of every third case is spelled in capitals in the table alone."""
    rng = np.random.default_rng(seed)
    lines, lists = [",".join(COLUMNS)], {"train": ["indexes"], "valid": ["indexes"], "test": ["indexes"]}
    for case in range(2 * patients):
        diagnosis = DIAGNOSES[case % 6]
        clinic, derm = f"NEL/Nel{2 * case:03d}.jpg", f"NEL/Nel{2 * case + 1:03d}.jpg"
        written = f"NEL/NEL{2 * case:03d}.JPG" if case % 3 == 0 else clinic
        cells = dict.fromkeys(COLUMNS, "absent") | {
            "case_num": str(case + 1), "diagnosis": diagnosis, "seven_point_score": str(case % 8), "location": "back",
            "sex": ("female", "male")[case // 2 % 2], "clinic": written, "derm": derm, "notes": "",
            "case_id": "1d171819" if case == 9 else "",
        }
        lines.append(",".join(cells.values()))
        for name in (clinic, derm):
            draw(root / "images" / name, rng, diagnosis.startswith("melanoma") or diagnosis.startswith("basal"), size=(60, 40))
        lists["test" if case % 5 in (3, 4) else "valid" if case % 5 == 2 else "train"].append(str(case))
    (root / "meta").mkdir()
    (root / "meta" / "meta.csv").write_text("\n".join(lines) + "\n")
    for name, rows in lists.items():
        (root / "meta" / f"{name}_indexes.csv").write_text("\n".join(rows) + "\n")
