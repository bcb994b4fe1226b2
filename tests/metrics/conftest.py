"""Predictions on which ours and other libraries' numbers are compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

REAL = Path(os.environ.get("EVENHAND_RESULTS", Path(__file__).parents[2] / "results"))
"""Where `make results` leaves the predictions on real images; without them only made-up ones are compared."""


@dataclass(frozen=True)
class Judged:
    """Truth, score, decision and group of every row."""

    y: np.ndarray
    s: np.ndarray
    d: np.ndarray
    g: np.ndarray

    def of(self, group: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth, score and decision of one group."""
        use = self.g == group
        return self.y[use], self.s[use], self.d[use]


def made_up(n: int, groups: int, levels: int, prevalence: float, seed: int) -> Judged:
    """Random predictions; ``levels`` distinct scores, so few levels mean many ties."""
    rng = np.random.default_rng(seed)
    g = rng.integers(0, groups, n)
    y = (rng.random(n) < prevalence).astype(int)
    for group in range(groups):
        y[np.flatnonzero(g == group)[:2]] = (0, 1)
    s = np.round(levels / (1 + np.exp(-(rng.normal(size=n) + 1.3 * y - 0.3 * g)))) / levels
    return Judged(y, s, (s >= 0.5).astype(int), g)


MADE_UP = {
    "many ties": made_up(400, 4, 5, 0.4, 0),
    "no ties": made_up(300, 3, 10**9, 0.3, 1),
    "small": made_up(40, 2, 8, 0.5, 2),
    "rare": made_up(600, 2, 1000, 0.04, 3),
    "constant score": Judged(np.arange(30) % 2, np.full(30, 0.5), np.ones(30, int), np.arange(30) % 3),
    "perfect": Judged(np.arange(24) % 2, np.arange(24) % 2 * 1.0, np.arange(24) % 2, np.arange(24) // 12),
}


def real() -> dict[str, Judged]:
    """Predictions of runs on real images: the test rows of one seed each, by sex."""
    found = {}
    for path in sorted(REAL.glob("*/linear_probe/seed=0/predictions.parquet")):
        frame = pd.read_parquet(path)
        frame = frame[(frame["split"] == "test") & frame["sex__group"].notna()] if "y_true" in frame.columns else frame[:0]
        if len(frame):
            s = frame["y_score"].to_numpy(float)
            d = (s >= 0.5).astype(int)
            found[path.parts[-4]] = Judged(frame["y_true"].to_numpy(int), s, d, frame["sex__group"].to_numpy(object))
    return found


CASES = MADE_UP | real()


@pytest.fixture(params=CASES.values(), ids=CASES)
def judged(request: pytest.FixtureRequest) -> Judged:
    """One set of predictions after the other."""
    case: Judged = request.param
    return case
