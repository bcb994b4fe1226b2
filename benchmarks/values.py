"""How often intervals of a mean and a median hold the truth: few patients, skewed values, several images of a patient.

    python benchmarks/values.py --sets 400

One row a case: the kind of values, patients, whether they have one to four images each, and the coverage of each interval at
a nominal 95%. The truth is that of the rows' distribution, which is the same whatever the number of images.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from evenhand.evaluation.value_groups import resampled_limits
from evenhand.metrics.means import make_value_cell, mean_limits, median_limits

REPLICATES = 400
SHARED = 0.7
"""Correlation of a patient's images on the normal scale is its square."""


def quantile(kind: str, share: np.ndarray) -> np.ndarray:
    """Values of a kind from uniform numbers: normal, a Dice with 5% failures at 0, or lognormal."""
    if kind == "dice":
        return np.where(share < 0.05, 0.0, stats.beta.ppf(np.clip((share - 0.05) / 0.95, 0, 1), 8, 1.5))
    normal = stats.norm.ppf(share)
    return normal if kind == "normal" else np.exp(normal)


def draw(kind: str, patients: int, clustered: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(values, patient of each)."""
    unit = np.repeat(np.arange(patients), rng.integers(1, 5, patients) if clustered else 1)
    own = rng.normal(size=patients)[unit]
    normal = SHARED * own + np.sqrt(1 - SHARED**2) * rng.normal(size=len(unit))
    return quantile(kind, stats.norm.cdf(normal)), unit


def intervals(x: np.ndarray, unit: np.ndarray, patients: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Name -> limits, the ones the audit uses last in each half."""
    cell = make_value_cell(x, unit)
    moments, values = cell.moments(("mean", "median")), cell.values()
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), REPLICATES).T.astype(float)
    drawn = cell.weighted(weights)
    error = cell.sums[1] - cell.sums[1].sum() / cell.n * cell.sums[0]
    skew = float((error**3).sum() / (6 * max((error**2).sum(), 1e-300) ** 1.5))
    mean, spread = values["mean"], float(moments["mean"][1][0])
    found = {
        "mean: t": mean_limits(mean, spread, patients, np.zeros(0), 0.95),
        "percentile": resampled_limits(mean, drawn["mean"], None, 0.95),
        "BCa": resampled_limits(mean, drawn["mean"], skew, 0.95),
        "studentised": mean_limits(mean, spread, patients, drawn["t"], 0.95),
        "median: percentile": resampled_limits(values["median"], drawn["median"], None, 0.95),
        "widened": median_limits(values["median"], float(moments["median"][1][0]), patients, drawn["median"], 0.95),
    }
    return {name: (float(low or 0), float(high or 0)) for name, (low, high) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["normal", "dice", "lognormal"])
    options = parser.parse_args()
    grid = (np.arange(1_000_000) + 0.5) / 1_000_000
    for kind in options.kinds:
        all_values = quantile(kind, grid)
        truth = {"mean": all_values.mean(), "median": np.median(all_values)}
        for clustered in (False, True):
            for patients in (10, 20, 50):
                rng = np.random.default_rng([options.seed, patients, clustered])
                held: dict[str, int] = {}
                for _ in range(options.sets):
                    what = "mean"
                    for name, (low, high) in intervals(*draw(kind, patients, clustered, rng), patients, rng).items():
                        what = "median" if name.startswith("median") else what
                        held[name] = held.get(name, 0) + int(low <= truth[what] <= high)
                shares = "  ".join(f"{name} {100 * count / options.sets:.1f}" for name, count in held.items())
                print(f"{kind:<10}{patients:>3} patients, {'1 to 4 images' if clustered else '1 image      '}  {shares}", flush=True)


if __name__ == "__main__":
    main()
