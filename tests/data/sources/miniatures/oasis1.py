"""A tiny OASIS-1: the table, and two discs of sessions with Analyze volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEADER = "ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay"


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """One session a person, numbers 8 and 24 not used; every sixth person is young and not rated; the first has a repeated session."""
    import nibabel

    rng = np.random.default_rng(seed)
    lines = [HEADER]
    numbers = [number for number in range(1, patients + 3) if number not in (8, 24)][:patients]
    for k, number in enumerate(numbers):
        young = k % 6 == 0
        cdr = "" if young else ("0", "0.5", "0", "1")[k % 4]
        sessions = ["MR1", "MR2"] if k == 0 else ["MR1"]
        for session in sessions:
            name = f"OAS1_{number:04d}_{session}"
            age, rest = (20 + k, ",,,,") if young else (60 + k, f"{1 + k % 5},{'' if k % 7 == 0 else 1 + k % 5},{20 + k % 10},{cdr},")
            lines.append(f"{name},{'FM'[k % 2]},R,{age},{rest}{1344 + k},0.743,1.306,{40 if session == 'MR2' else 'N/A'}")
            folder = root / f"disc{1 + k % 2}" / name / "PROCESSED" / "MPRAGE" / "T88_111"
            folder.mkdir(parents=True)
            volume = rng.integers(0, 900, (16, 20, 18)).astype(np.int16)
            if cdr not in ("", "0"):
                volume[6:10, 8:12] = 2500
            stem = f"{name}_mpr_n{3 + k % 2}_anon_111_t88"
            for kind in ("gfc", "masked_gfc"):
                nibabel.save(nibabel.AnalyzeImage(volume, np.diag([-1.0, 1, 1, 1])), folder / f"{stem}_{kind}.img")
            (folder / f"{stem}_masked_gfc_tra_90.gif").write_bytes(b"GIF89a")
    (root / "oasis_cross-sectional.csv").write_text("\n".join(lines) + "\n")
