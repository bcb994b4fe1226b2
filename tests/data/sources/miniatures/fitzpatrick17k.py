"""A tiny Fitzpatrick17k: the table of 2022 or of 2021, and the images that could be downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ._lesions import draw

KINDS = (
    ("melanoma", "malignant melanoma", "malignant"),
    ("psoriasis", "inflammatory", "non-neoplastic"),
    ("basal cell carcinoma", "malignant epidermal", "malignant"),
    ("dermatofibroma", "benign dermal", "benign"),
)


def write(root: Path, *, patients: int = 24, seed: int = 0, release: str = "2022") -> None:
    """Every 12th type is -1, row 4 is wrongly labelled, row 5 has no address, row 7 no image, row 8's image is named by its address."""
    rng = np.random.default_rng(seed)
    types = ["fitzpatrick_scale", "fitzpatrick_centaur"] if release == "2022" else ["fitzpatrick"]
    tail = ["url_alphanum"] if release == "2022" else []
    rows = [["md5hash", *types, "label", "nine_partition_label", "three_partition_label", "qc", "url", *tail]]
    for number in range(2 * patients):
        name = hashlib.md5(f"{seed} {number}".encode(), usedforsecurity=False).hexdigest()
        tone = "-1" if number % 12 == 11 else str(1 + number // 4 % 6)
        other = "-1" if tone == "-1" else str(min(6, int(tone) + 1))
        kind = KINDS[number % 4]
        url = "" if number == 5 else f"https://www.dermaamin.com/site/images/clinical-pic/{number}.jpg"
        alphanum = f"httpswwwdermaamincomsiteimagesclinicalpic{number}jpg.jpg"
        qc = {4: "3 Wrongly labelled", 6: "1 Diagnostic"}.get(number, "")
        cells = [tone, other] if release == "2022" else [tone]
        rows.append([name, *cells, *kind, qc, url, *([alphanum] if tail else [])])
        if number != 7:
            file = alphanum if number == 8 and tail else f"{name}.jpg"
            draw(root / "images" / file, rng, kind[2] == "malignant", tone, (64 - number % 3, 44))
    (root / "fitzpatrick17k.csv").write_text("".join(",".join(cells) + "\n" for cells in rows))
