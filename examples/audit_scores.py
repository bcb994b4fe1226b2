"""Audit anybody's scores: a table in, one offline page out. No model and no torch are needed.

Run it with ``python examples/audit_scores.py [OUT]``. The scores are made up here: the model is worse for patients under 60.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import evenhand as eh

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-audit")
rng = np.random.default_rng(0)
n = 1200
age = rng.integers(20, 90, n)
ill = rng.random(n) < 0.3
signal = np.where(age < 60, 0.8, 2.0)
scores = pd.DataFrame(
    {
        "patient_id": rng.integers(0, 800, n),
        "split": rng.choice(["val", "test"], n, p=[0.3, 0.7]),
        "sex": rng.choice(["female", "male", None], n, p=[0.48, 0.48, 0.04]),
        "age": age,
        "ill": ill.astype(int),
        "score": 1 / (1 + np.exp(-(signal * ill + rng.normal(0, 1, n) - 1))),
    }
)

result = eh.audit(scores, label="ill", score="score", groups=["sex", "age", "sex*age"], bins={"age": [0, 60, 120]}, out=out)
for verdict in result.verdicts:
    print("-", verdict["text"])
print(f"report: {out / 'report.html'}")
