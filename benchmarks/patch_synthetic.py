"""What a patch changes where the truth is known: a classifier that learnt a planted shortcut, a small external set, ten comparisons.

    python benchmarks/patch_synthetic.py --out results/patch_synthetic [--seeds 0,1,2,3,4] [--sizes 75,150,300] [--table]

Every seed: the bundled encoder is fine-tuned on 1,500 patients whose group goes with the disease and with a texture, as `evenhand train
method=finetune` does it. Other patients (5, 10 and 20% of that number) are the external set: no shortcut in the labels of --external
balanced, the same one as in training with --external same. `evenhand patch make` patches the classifier with bmft and swift and makes
every comparison from the same rows, at equal passes; thresholds come from the external set's held-out 30%.

Test rows: 4,000 patients with the disease equally frequent in both groups (out of distribution), and 2,000 as in training (in
distribution). "Over thresholds" is the mean of equalized odds at the 10%, 15%, ..., 90% quantiles of the scores: a threshold that is chosen
on 22 to 90 validation rows moves the gap at it by more than a patch does. Intervals are Student's t over seeds; changes are paired
with the classifier as delivered. The bars: equalized odds out of distribution at least halved, AUC within 0.01, better than full
fine-tuning on the same rows, no group's AUC falls. It resumes; figures land in OUT/figures.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from edit_synthetic import interval
from search_setups import Units

import evenhand as eh
from evenhand.config.patch_methods import COMPARISONS
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort

TRAIN, VAL, TEST, INSIDE = 1500, 300, 4000, 2000
METHODS = ("bmft", "swift")
QUIET = ["audit.bootstrap=100", "audit.permutations=100", "audit.details=false"]
KINDS = [name for name in COMPARISONS if name != "none"]


def prepared(root: Path, seed: int, parts: tuple[int, int, int], *, shortcut: bool = True, balanced_test: bool = True) -> Path:
    """A prepared cohort of so many train, val and test patients; made once."""
    if not (root / "data" / "dataset.yaml").exists():
        shutil.rmtree(root, ignore_errors=True)
        n = sum(parts)
        fractions: Any = tuple(part / n for part in parts)
        prevalence = {"A": 0.55, "B": 0.15} if shortcut else {"A": 0.35, "B": 0.35}
        config = SyntheticConfig(
            seed=seed, n_patients=n, images_per_patient=(1, 1), fractions=fractions, prevalence=prevalence, balanced_test=balanced_test
        )
        write_cohort(make_cohort(config), root / "cohort")
        prepare_csv(
            root / "cohort" / "metadata.csv", root / "data", images=root / "cohort", labels=["label"], attributes=["group"],
            size=config.size, modality="chest_film", seed=seed, progress=False,
        )
        shutil.rmtree(root / "cohort")
    return root / "data"


def figures(predictions: pd.DataFrame, cuts: Any = None) -> dict[str, float]:
    """AUC, equalized odds (at the threshold, and its mean over ``cuts``, else 17 of `cuts_of`) and each group's AUC of scored rows."""
    from sklearn.metrics import roc_auc_score

    y, score, decided, group = (predictions[name].to_numpy() for name in ("y", "score", "decision", "group"))
    names = np.unique(group)

    def odds(positive: Any) -> float:
        return float(max(np.ptp([positive[(group == k) & (y == label)].mean() for k in names]) for label in (0, 1)))

    found = {"auc": float(roc_auc_score(y, score)), "odds": odds(decided), "positive": float(decided.mean())}
    found["mean odds"] = float(np.mean([odds(score >= cut) for cut in (cuts_of(score) if cuts is None else cuts)]))
    return found | {f"auc {k}": float(roc_auc_score(y[group == k], score[group == k])) for k in names}


def cuts_of(score: Any) -> Any:
    """The 10%, 15%, ..., 90% quantiles of scores."""
    return np.quantile(score, np.linspace(0.1, 0.9, 17))


def read(folder: Path, threshold: float, set_name: str | None = None) -> pd.DataFrame:
    """Predictions of a run's test rows with the decisions at a threshold."""
    table = pd.read_parquet(folder / "predictions.parquet")
    if set_name is None:
        table = table[table["split"] == "test"]
    return pd.DataFrame({
        "y": table["y_true"].to_numpy(), "score": table["y_score"].to_numpy(), "group": table["group"].to_numpy(),
        "decision": (table["y_score"] >= threshold).to_numpy(),
    })


def threshold_of(folder: Path, label: str = "label") -> float:
    """The decision threshold that an audit stored."""
    return float(json.loads((folder / "audit.json").read_text())["labels"][label]["threshold"]["value"])


class Study:
    """Units by (seed, size, method), each of which leaves its lines in figures.jsonl."""

    def __init__(self, out: Path, external: str, words: list[str]) -> None:
        self.out, self.external, self.words = out, external, words
        self.units = Units(out / "figures.jsonl")

    def train(self, seed: int) -> Path:
        """The classifier to be patched."""
        data = prepared(self.out / f"seed={seed}" / "source", seed, (TRAIN, VAL, TEST))
        run = self.out / f"seed={seed}" / "classifier"
        words = ["method=finetune", "trainer.max_epochs=10", "trainer.progress=false", "trainer.accelerator=cpu", f"seed={seed}"]
        eh.train(eh.compose("train", [f"data={data}", *words, *QUIET, f"out={run}"]))
        return run

    def unit(self, seed: int, size: int, method: str, classifier: Path) -> None:
        """One patch with its comparisons (with the first method only: they are the same for both)."""
        name = f"{self.external} {size}"
        if self.units.has(seed=seed, external=name, condition=method):
            return
        shortcut = self.external == "same"
        parts = (size, 0, TEST)
        data = prepared(self.out / f"seed={seed}" / f"external-{self.external}-{size}", 1000 + 10 * seed + size, parts, shortcut=shortcut)
        inside = prepared(self.out / f"seed={seed}" / "inside", 500 + seed, (0, 0, INSIDE), balanced_test=False)
        run = self.out / f"seed={seed}" / f"{method}-{self.external}-{size}"
        first = method == METHODS[0]
        start = time.perf_counter()
        words = [f"method={method}", "accelerator=cpu", f"seed={seed}", "external=[train]", *self.words]
        words += [f"comparisons=[{','.join(KINDS)}]"] if first else []
        eh.make_patch_run(eh.compose("patch make", [f"model={classifier}", f"data={data}", *words, *QUIET, f"out={run}"]))
        seconds = time.perf_counter() - start
        said = {k: json.loads((run / "comparisons" / k / "comparison.json").read_text()) for k in KINDS} if first else {}
        made = {k: about["cost"] for k, about in said.items() if "cost" in about}  # the rows may be too few for one
        folders = {method: run} | ({"as delivered": run / "delivered"} if first else {}) | {k: run / "comparisons" / k for k in made}
        costs = {method: json.loads((run / "patch.json").read_text())["cost"], **made}
        lines = {}
        for condition, folder in folders.items():
            lines[condition] = figures(read(folder, threshold_of(folder)))
        lines[method] |= self.inside(run, inside, "inside")
        if first:
            lines["as delivered"] |= self.inside(classifier, inside, "inside", threshold_of(run / "delivered"))
        lines[method] = lines.pop(method)  # last: it says that the unit is whole
        for condition, found in lines.items():
            if self.units.has(seed=seed, external=name, condition=condition):
                continue
            cost = costs.get(condition)
            took = seconds if condition == method else None
            self.units.add({"seed": seed, "external": name, "condition": condition, **found, "cost": cost, "seconds": took})

    def inside(self, run: Path, data: Path, name: str, threshold: float | None = None) -> dict[str, float]:
        """Figures of a run on the rows that are like those of training."""
        out = run / "evaluated-inside"
        if not (out / name / "predictions.parquet").exists():
            shutil.rmtree(out, ignore_errors=True)
            eh.evaluate(eh.compose("evaluate", [f"model={run}", f"sets.{name}={data}", *QUIET, f"out={out}"]))
        found = figures(read(out / name, threshold_of(run) if threshold is None else threshold, name))
        return {f"inside {key}": value for key, value in found.items() if key in ("auc", "odds")}


def cells_of(rows: Sequence[dict[str, Any]], base: Mapping[int, dict[str, Any]] | None, *, groups: bool = True) -> list[str]:
    """Of one condition's lines: means, changes from ``base`` (seed -> line; None: it is the base) and the worst group's."""
    keys = ("auc", "odds", "mean odds")
    cells = [interval([row[key] for row in rows]) for key in keys]
    if base is None:
        return cells + [""] * (4 if groups else 3)
    paired = [(row, base[row["seed"]]) for row in rows if row["seed"] in base]
    cells += [interval([row[key] - start[key] for row, start in paired]) if paired else "" for key in keys]
    if groups:
        names = [key for key in rows[0] if key.startswith("auc ")]
        cells.append(interval([min(row[key] - start[key] for key in names) for row, start in paired]))
    return cells


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table an external set, means and intervals over seeds, changes paired with the classifier as delivered."""
    out = []
    for external in dict.fromkeys(line["external"] for line in lines):
        own = [line for line in lines if line["external"] == external]
        base = {line["seed"]: line for line in own if line["condition"] == "as delivered"}
        out += [f"\nexternal set: {external} patients\n",
                "| condition | seeds | AUC | equalized odds | over thresholds | change of AUC | change of equalized odds | "
                "over thresholds | worst group's change of AUC | inside: AUC | inside: equalized odds |", "|---" * 11 + "|"]
        for condition in dict.fromkeys(line["condition"] for line in own):
            rows = [line for line in own if line["condition"] == condition]
            cells = cells_of(rows, None if condition == "as delivered" else base)
            cells += [interval([row[f"inside {key}"] for row in rows]) if f"inside {key}" in rows[0] else "" for key in ("auc", "odds")]
            out.append(f"| {condition} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/patch_synthetic"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--sizes", default="75,150,300", help="patients of the external set")
    parser.add_argument("--external", default="balanced", choices=("balanced", "same"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand patch make` that differ")
    options = parser.parse_args()
    study = Study(options.out, options.external, options.words)
    if not options.table:
        for seed in map(int, options.seeds.split(",")):
            classifier = study.train(seed)
            for size in map(int, options.sizes.split(",")):
                for method in METHODS:
                    study.unit(seed, size, method, classifier)
    study.units.show("patches", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
