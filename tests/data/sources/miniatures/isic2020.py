"""A tiny ISIC 2020: the training table with patients and lesions, the list of duplicates, and JPEG images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ._lesions import draw

HEADER = "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"


def write(root: Path, *, patients: int = 24, seed: int = 0, kaggle: bool = False, skin_tones: bool = False) -> None:
    """Two images a patient, one in four a melanoma; patient 2 has neither sex nor age; the last image is a copy of the first one."""
    rng = np.random.default_rng(seed)
    folder = root / ("jpeg/train" if kaggle else "train")
    lines, tones = [HEADER], ["image_name,fitzpatrick,year"]
    for number in range(2 * patients + 1):
        patient = 0 if number == 2 * patients else number // 2
        name, melanoma = f"ISIC_{15719 + number:07d}", number % 4 == 1 and number < 2 * patients
        sex, age = ("", "") if patient == 2 else (("female", "male")[patient // 2 % 2], str(20 + 5 * (patient % 14)))
        found = "melanoma,malignant,1" if melanoma else ("nevus,benign,0" if number % 3 else "unknown,benign,0")
        lines.append(f"{name},IP_{1000000 + patient},IL_{2000000 + number},{sex},{age},{'torso' if number % 5 else ''},{found}")
        tone = str(1 + patient % 6)
        tones.append(f"{name},{tone},2020")
        draw(folder / f"{name}.jpg", rng, melanoma, tone)
    last = f"ISIC_{15719 + 2 * patients:07d}"
    shutil.copyfile(folder / "ISIC_0015719.jpg", folder / f"{last}.jpg")
    (root / "ISIC_2020_Training_Duplicates.csv").write_text(f"image_name_1,image_name_2\nISIC_0015719,{last}\n")
    if kaggle:
        lines = [",".join(cell for place, cell in enumerate(line.split(",")) if place != 2) for line in lines]
    (root / ("train.csv" if kaggle else "ISIC_2020_Training_GroundTruth_v2.csv")).write_text("\n".join(lines) + "\n")
    if skin_tones:
        (root / "isic_train_20-19-18-17.csv").write_text("\n".join(tones) + "\n")
