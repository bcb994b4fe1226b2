"""From images and a table to two audited classifiers and their comparison, on a synthetic cohort.

Run it with ``python examples/train_and_compare.py [OUT]``. Put your own folder and table in place of the cohort.
"""

import sys
from pathlib import Path

import evenhand as eh
from evenhand.data.synthetic import SyntheticConfig, write_cohort

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-train")

# 1. Images and metadata.csv: here drawn, with disease more frequent in group A, whose images carry a trace.
write_cohort(eh.make_cohort(SyntheticConfig(n_patients=400)), out / "raw")

# 2. Checked, decoded once.
eh.prepare_csv(out / "raw" / "metadata.csv", out / "prepared", images=out / "raw", labels=["label"], attributes=["group"], size=64)

# 3. A plain probe on the bundled encoder, and one with re-weighted cells.
for method in ("linear_probe", "reweight"):
    eh.train(eh.compose("train", [f"data={out / 'prepared'}", f"method={method}", f"out={out / method}", "trainer.progress=false"]))

# 4. Paired on the same patients: what changed, for whom, with intervals.
table = eh.compare([out / "linear_probe", out / "reweight"], out / "compare.html").to_table()
print(table[table["metric"].isin(["auc", "equalized_odds"])].to_string(index=False))
print(f"reports: {out / 'linear_probe' / 'report.html'}, {out / 'compare.html'}")
