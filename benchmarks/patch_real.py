"""What a patch changes on real images: classifiers of skin lesions and of chest films, patched on patients they have not learnt from.

    python benchmarks/patch_real.py --shared ../shared --out results/patch_real [--sets ham,nih] [--seeds 0,1,2,3,4]
        [--methods bmft,swift] [--kinds full_both,last_layer,random_mask,dfr] [--table]

ham: an ImageNet MobileNet (96 px) is fine-tuned on the train split of ham10000-mini and patched, for age (under 60; 60 and over) and
for sex, on 70% of the val split's patients; thresholds and stopping use the other 30%. It is tested on the test split, and out of
distribution on all of pad-ufes-mini (photographs by telephone, sex and skin type; few patients: the intervals say what can be told).
nih: the same network at 64 px for effusion on nih-cxr64-mini, for sex.

A seed draws the training order and the 30%; the splits are the data's own, so intervals over seeds (Student's t) say how steady the
methods are on these patients, and the paired bootstrap of single runs what other patients would change. Both methods and the
comparisons of --kinds learn from the same rows for the same number of passes. It resumes; figures land in OUT/figures.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from edit_synthetic import interval
from patch_synthetic import KINDS, METHODS, QUIET, cells_of, cuts_of, threshold_of
from patch_synthetic import figures as group_figures
from search_setups import Units
from sklearn.metrics import roc_auc_score

import evenhand as eh
from evenhand.data.datasets import PreparedData

AGES = {"age": [0, 60, 200]}
DATA: dict[str, dict[str, Any]] = {
    "ham": {"folder": "ham10000-mini", "labels": ["malignant"], "attributes": ["age", "sex"], "bins": AGES, "size": 96,
            "modality": "dermoscopy"},
    "pad": {"folder": "pad-ufes-mini", "labels": ["malignant"], "attributes": ["sex", "fitzpatrick"], "bins": {}, "size": 96,
            "modality": "photograph"},
    "nih": {"folder": "nih-cxr64-mini", "labels": ["effusion"], "attributes": ["sex", "age"], "bins": AGES, "size": 64,
            "modality": "chest_film"},
}
SETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "ham": ("malignant", ("age", "sex"), ("pad",)),
    "nih": ("effusion", ("sex",), ()),
}
"""Data set -> its label, the attributes that are patched for (one at a time), and the sets out of distribution."""
RECIPE = ["trainer.lr=3e-4", "trainer.max_epochs=4", "trainer.warmup_epochs=1", "trainer.weight_decay=0.05", "trainer.progress=false",
          "trainer.accelerator=cpu"]


def figures(table: pd.DataFrame, groups: np.ndarray, threshold: float) -> dict[str, float]:
    """What `patch_synthetic.figures` says; rows without a group are in the AUC and left out of the rest."""
    known = ~pd.isna(groups)
    scored = pd.DataFrame({
        "y": table["y_true"].to_numpy(float), "score": table["y_score"].to_numpy(float), "group": groups,
        "decision": (table["y_score"] >= threshold).to_numpy(),
    })
    found = group_figures(scored[known].astype({"group": str}), cuts_of(scored["score"]))
    return found | {"auc": float(roc_auc_score(scored["y"], scored["score"])), "positive": float(scored["decision"].mean())}


class Study:
    """Units by (set, attribute, seed, method)."""

    def __init__(self, shared: Path, out: Path, kinds: list[str], words: list[str]) -> None:
        self.shared, self.out, self.kinds, self.words = shared, out, kinds, words
        self.units = Units(out / "figures.jsonl")

    def data(self, name: str) -> Path:
        """A prepared set."""
        options = dict(DATA[name])
        source = self.shared / "data" / options.pop("folder")
        eh.prepare_csv(source / "metadata.csv", self.out / "prepared" / name, images=source, **options)
        return self.out / "prepared" / name

    def train(self, name: str, seed: int) -> Path:
        """The classifier to be patched."""
        label = SETS[name][0]
        weights = self.shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
        run = self.out / name / f"seed={seed}" / "classifier"
        size = DATA[name]["size"]
        words = [f"data={self.data(name)}", f"data.labels=[{label}]", f"model={weights}", "model.name=mobilenetv1_075", "method=finetune",
                 f"model.input_size=[{size},{size}]", f"data.augment={DATA[name]['modality']}", *RECIPE, f"seed={seed}"]
        eh.train(eh.compose("train", [*words, *QUIET, f"out={run}"]))
        return run

    def unit(self, name: str, attribute: str, seed: int, method: str) -> None:
        """One patch, with its comparisons where the method is the first."""
        key = f"{name} {attribute}"
        if self.units.has(set=key, seed=seed, condition=method):
            return
        label, _, outside = SETS[name]
        classifier, data = self.train(name, seed), PreparedData.open(self.data(name))
        run = self.out / name / f"seed={seed}" / f"{method}-{attribute}"
        first = method == METHODS[0]
        start = time.perf_counter()
        words = [f"method={method}", f"method.attributes=[{attribute}]", "accelerator=cpu", f"seed={seed}", *self.words]
        words += [f"comparisons=[{','.join(self.kinds)}]"] if first else []
        eh.make_patch_run(eh.compose("patch make", [f"model={classifier}", f"data={data.root}", f"data.labels=[{label}]", *words, *QUIET,
                                                    f"out={run}"]))
        folders = {"as delivered": run / "delivered"} if first else {}
        if first:
            made = {kind: run / "comparisons" / kind for kind in self.kinds}
            folders |= {kind: folder for kind, folder in made.items() if (folder / "audit.json").exists()}
        folders[method] = run  # last: it says that the unit is whole
        rows = data.rows("test")
        groups = np.array(data.groups()[attribute].keys, object)[data.groups()[attribute].codes[rows]]
        groups[data.groups()[attribute].codes[rows] < 0] = None
        for condition, folder in folders.items():
            if self.units.has(set=key, seed=seed, condition=condition):
                continue
            table = pd.read_parquet(folder / "predictions.parquet")
            found = figures(table[table["split"] == "test"], groups, threshold_of(folder, label))
            if condition in ("as delivered", method):
                for other in outside:
                    start_from = classifier if condition == "as delivered" else run
                    found |= self.outside(start_from, run / f"outside-{condition.replace(' ', '-')}", other)
            took = round(time.perf_counter() - start, 1)
            self.units.add({"set": key, "seed": seed, "condition": condition, **found, "seconds": took})

    def outside(self, run: Path, out: Path, other: str) -> dict[str, float]:
        """AUC on another set's patients."""
        if not (out / other / "predictions.parquet").exists():
            eh.evaluate(eh.compose("evaluate", [f"model={run}", f"sets.{other}={self.data(other)}", *QUIET, f"out={out}"]))
        table = pd.read_parquet(out / other / "predictions.parquet")
        return {f"{other} auc": float(roc_auc_score(table["y_true"], table["y_score"]))}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table a set and attribute, means and intervals over seeds, changes paired with the classifier as delivered."""
    out = []
    for name in dict.fromkeys(line["set"] for line in lines):
        own = [line for line in lines if line["set"] == name]
        base = {line["seed"]: line for line in own if line["condition"] == "as delivered"}
        out += [f"\n{name}\n", "| condition | seeds | AUC | equalized odds | over thresholds | change of AUC | change of equalized odds | "
                "over thresholds | worst group's change of AUC | elsewhere: AUC |", "|---" * 10 + "|"]
        for condition in dict.fromkeys(line["condition"] for line in own):
            rows = [line for line in own if line["condition"] == condition and line["seed"] in base]
            cells = cells_of(rows, None if condition == "as delivered" else base)
            cells.append(interval([row["pad auc"] for row in rows]) if "pad auc" in rows[0] else "")
            out.append(f"| {condition} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    parser.add_argument("--out", type=Path, default=Path("runs/patch_real"))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--kinds", default="full_both,last_layer,random_mask,dfr", help=f"comparisons, of {', '.join(KINDS)}")
    parser.add_argument("--methods", default=",".join(METHODS), help="bmft makes the comparisons too")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand patch make` that differ")
    options = parser.parse_args()
    study = Study(options.shared, options.out, options.kinds.split(","), options.words)
    if not options.table:
        for name in options.sets.split(","):
            for seed in map(int, options.seeds.split(",")):
                for attribute in SETS[name][1]:
                    for method in options.methods.split(","):
                        study.unit(name, attribute, seed, method)
    study.units.show("patches", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
