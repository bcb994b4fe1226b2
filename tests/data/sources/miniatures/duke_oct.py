"""A tiny RPEDC: a MATLAB file a subject in the folders AMD and Control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat


def write(root: Path, *, patients: int = 24, seed: int = 0) -> None:
    """Numbers start again for the controls; AMD 1002 has no age, AMD 1003 is 70, Control 1001 is of another size."""
    rng = np.random.default_rng(seed)
    for group in ("AMD", "Control"):
        (root / group).mkdir(parents=True, exist_ok=True)
        for number in range(1001, 1001 + patients // 2):
            shape = (24, 36, 7) if (group, number) == ("Control", 1001) else (20, 36, 6)
            volume = rng.integers(0, 60, shape, dtype=np.uint8)
            if group == "AMD":
                volume[4:12, 6:20] = 230
            age = 70.0 if number == 1003 else 52.0 + 3 * (number - 1000)
            fields = {"images": volume, "layerMaps": np.full((shape[2], shape[1], 3), np.nan)}
            if (group, number) != ("AMD", 1002):
                fields["Age"] = np.array([[age]])
            savemat(root / group / f"Farsiu_Ophthalmology_2013_{group}_Subject_{number}.mat", fields, do_compression=True)
