"""A tiny ISIC 2018, task 3: three parts with one-hot ground truth, lesion groupings, and HAM10000's metadata beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._lesions import draw

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PARTS = (("Training", 24306), ("Validation", 34321), ("Test", 35065))


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Training: one lesion in three has two images; the 4th test image is the one that is not scored."""
    rng = np.random.default_rng(seed)
    lesions, people = ["image,lesion_id,diagnosis_confirm_type"], ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for part, number in PARTS:
        truth = [",".join(("image", *CLASSES))]
        for lesion in range(patients if part == "Training" else max(7, patients // 4)):
            for _ in range(2 if part == "Training" and lesion % 3 == 0 else 1):
                name, kind = f"ISIC_{number:07d}", lesion % 7
                truth.append(",".join((name, *("1.0" if place == kind else "0.0" for place in range(7)))))
                draw(root / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg", rng, CLASSES[kind] in ("MEL", "BCC", "AKIEC"))
                number += 1
                if part == "Training":
                    sex = "unknown" if lesion == 5 else ("female", "male")[lesion // 2 % 2]
                    lesions.append(f"{name},HAM_{lesion:07d},single image expert consensus")
                    people.append(f"HAM_{lesion:07d},{name},{CLASSES[kind].lower()},consensus,{20 + 5 * (lesion % 12)}.0,{sex},back")
        folder = root / f"ISIC2018_Task3_{part}_GroundTruth"
        folder.mkdir()
        (folder / f"{folder.name}.csv").write_text("\n".join(truth) + "\n")
    (root / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text("\n".join(lesions) + "\n")
    (root / "HAM10000_metadata.csv").write_text("\n".join(people) + "\n")
