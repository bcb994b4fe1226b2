"""Tables of predictions with a known answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from evenhand.config.schema import AuditConfig


def table(n: int = 240, seed: int = 0, *, images: int = 2, shift: float = 0.0) -> pd.DataFrame:
    """One label; sex and age; ``images`` rows a patient; ``shift`` lowers the scores of female cases."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) // images
    n_patients = patient.max() + 1
    sex = np.array(["female", "male"])[np.arange(n_patients) % 2][patient]
    age = rng.integers(20, 90, n_patients)[patient]
    y = (rng.random(n_patients) < 0.4).astype(int)[patient]
    z = rng.normal(size=n) + 1.5 * y - shift * ((sex == "female") & (y == 1))
    split = np.where(patient % 4 == 0, "val", "test")
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(n)],
            "patient_id": [f"p{i}" for i in patient],
            "split": split,
            "seed": 0,
            "y_true": y,
            "y_score": 1 / (1 + np.exp(-z)),
            "sex": sex,
            "age": age,
        }
    )


@pytest.fixture
def make_table() -> Callable[..., pd.DataFrame]:
    return table


@pytest.fixture
def quick() -> AuditConfig:
    """Few replicates: enough for shapes and identities."""
    return AuditConfig(bootstrap=100, permutations=99)
