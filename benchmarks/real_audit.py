"""Audits of predictions on real images: who is failed and how sure that is, and what patients with several images do to it.

    python benchmarks/real_audit.py --results DIR [--run linear_probe/seed=0] [--bootstrap 1000]

DIR is the folder of `make results` (benchmarks/real_data.py). For ham10000-mini: overall AUC and the gaps by sex, age and
sex*age. For nih-cxr64-mini: for each of the 14 findings the width of the intervals with patients as clusters over their width
with every image taken for a patient of its own, from two audits of the same rows, and the square root of the design effect
that the audit itself states.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate, read_predictions
from evenhand.evaluation.predictions import find_labels

write = sys.stdout.write
METRICS = ["auc", "accuracy", "tpr", "fpr"]


def audit(frame: pd.DataFrame, attributes: list[str], bootstrap: int, permutations: int) -> dict[str, Any]:
    """The labels of audit.json."""
    labels, _ = find_labels(frame)
    config = AuditConfig(bootstrap=bootstrap, permutations=permutations, metrics=METRICS, details=permutations > 0)
    data = evaluate(frame, labels=labels, attributes=attributes, config=config).to_json()
    write(f"{data['n']} images of {data['n_patients']} patients\n")
    found: dict[str, Any] = data["labels"]
    return found


def shown(estimate: dict[str, Any]) -> str:
    """value [lower, upper], or why not."""
    if estimate["value"] is None:
        return f"not estimable ({estimate['reason']})"
    limits = "" if estimate["lower"] is None else f" [{estimate['lower']:.3f}, {estimate['upper']:.3f}]"
    adjusted = "" if estimate.get("p_holm") is None else f" p_holm={estimate['p_holm']:.3f}"
    return f"{estimate['value']:.3f}{limits}{adjusted}"


def skin(path: Path, bootstrap: int) -> None:
    """ham10000-mini by sex, age and both."""
    write("\nham10000-mini: ")
    for label, block in audit(read_predictions(path), ["sex", "age", "sex*age"], bootstrap, 1000).items():
        write(f"{label}: AUC {shown(block['overall']['auc'])}\n\n| attribute | gap in AUC | equalized odds |\n|---|---|---|\n")
        for name, part in block["attributes"].items():
            write(f"| {name} | {shown(part['gaps']['auc'])} | {shown(part['gaps']['equalized_odds'])} |\n")


def width(estimate: dict[str, Any]) -> float | None:
    """Of an interval that is there."""
    return None if estimate["value"] is None or estimate["lower"] is None else estimate["upper"] - estimate["lower"]


def chest(path: Path, bootstrap: int) -> bool:
    """nih-cxr64-mini: intervals by patient over intervals by image; whether those of accuracy widen."""
    frame = read_predictions(path)
    write("\nnih-cxr64-mini, patients as clusters: ")
    clustered = audit(frame, [], bootstrap, 0)
    write("every image a patient of its own: ")
    alone = audit(frame.drop(columns="patient_id"), [], bootstrap, 0)
    write("\nwidth by patient / width by image (square root of the stated design effect)\n\n")
    write("| finding | " + " | ".join(METRICS) + " |\n" + "|---" * (len(METRICS) + 1) + "|\n")
    ratios: dict[str, list[float]] = {name: [] for name in METRICS}
    for label, block in clustered.items():
        cells = []
        for name in METRICS:
            wide, narrow = width(block["overall"][name]), width(alone[label]["overall"][name])
            stated = block["overall"]["design_effect"].get(name)
            if wide is None or not narrow or stated is None:
                cells.append("not estimable")
                continue
            ratios[name].append(wide / narrow)
            cells.append(f"{wide / narrow:.2f} ({stated**0.5:.2f})")
        write(f"| {label} | " + " | ".join(cells) + " |\n")
    middle = {name: statistics.median(found) for name, found in ratios.items() if found}
    write("| median | " + " | ".join(f"{middle[name]:.2f}" if name in middle else "" for name in METRICS) + " |\n")
    return middle.get("accuracy", 0.0) > 1


def main() -> int:
    """Print both; 1 where intervals do not widen."""
    parser = argparse.ArgumentParser(description="Audits of predictions on real images")
    parser.add_argument("--results", type=Path, required=True, help="folder of `make results`")
    parser.add_argument("--run", default="linear_probe/seed=0")
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    paths = {name: options.results / name / options.run / "predictions.parquet" for name in ("ham", "nih")}
    absent = [str(path) for path in paths.values() if not path.exists()]
    if absent:
        sys.stderr.write(f"not there: {', '.join(absent)}; run `make results` first\n")
        return 2
    skin(paths["ham"], options.bootstrap)
    return 0 if chest(paths["nih"], options.bootstrap) else 1


if __name__ == "__main__":
    sys.exit(main())
