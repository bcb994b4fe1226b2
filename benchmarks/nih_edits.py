"""An edit learnt for one finding, used for others: chest radiographs, attribute sex.

    python benchmarks/nih_edits.py --out results/nih_edits [--seeds 0,1,2,3,4] [--table]

1,000 radiographs of 264 patients at 64 px; every seed deals the patients anew into training (50%), validation (15%) and test (35%).
The default edit is trained to hide sex given effusion; then effusion and the findings it was not trained for are measured, each with
fresh heads: what a head still reads of sex given that finding (`edit measure`, on test rows), and AUC and equalized odds of a probe
with and without the edit. The encoder is the frozen MobileNet of ``--shared``. It resumes; figures land in OUT/figures.jsonl.
Intervals are Student's t over seeds. Test sets are small (about 350 images): gaps are mostly noise, and the table shows how much.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from edit_synthetic import interval

import evenhand as eh
from evenhand.data.sources.csv import prepare_csv
from evenhand.random import generator

LEARNT = "effusion"
OTHERS = ("infiltration", "atelectasis", "cardiomegaly", "abnormal")
FIGURES = (
    "given label none",
    "given label edit",
    "given label noise",
    "unseen none",
    "unseen edit",
    "auc none",
    "auc edit",
    "odds none",
    "odds edit",
)


def prepared(shared: Path, out: Path, seed: int) -> Path:
    """The data set with the splits of one seed."""
    root = shared / "data" / "nih-cxr64-mini"
    table = pd.read_csv(root / "metadata.csv")
    names = table["patient_id"].unique()
    place = dict(zip(names, generator(seed, "deal").permutation(len(names)) / len(names), strict=True))
    at = table["patient_id"].map(place)
    table["split"] = np.select([at < 0.5, at < 0.65], ["train", "val"], "test")
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "metadata.csv", index=False)
    labels = [LEARNT, *OTHERS]
    data = prepare_csv(
        out / "metadata.csv", out / "data", images=root, labels=labels, attributes=["sex"], size=64, modality="chest_film", seed=seed
    )
    return data.root


def probe(words: list[str], label: str) -> tuple[float, float]:
    """Test AUC and equalized odds of a linear probe."""
    run = eh.train(
        eh.compose("train", [*words, f"data.labels=[{label}]", "method=linear_probe", "audit.bootstrap=200", "audit.details=false"])
    )
    found = json.loads((run.root / "audit.json").read_text())["labels"][label]
    return found["overall"]["auc"]["value"], found["attributes"]["sex"]["gaps"]["equalized_odds"]["value"]


def run_seed(shared: Path, out: Path, seed: int, words: list[str]) -> list[dict[str, Any]]:
    """One record a finding."""
    data = prepared(shared, out, seed)
    weights = shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
    model = [f"data={data}", f"model={weights}", "model.name=mobilenetv1_075", "model.input_size=[64,64]", "model.precision=fp32"]
    model += [f"seed={seed}", "trainer.progress=false"]
    edit = out / "edit"
    eh.edit_train(eh.compose("edit train", [*model, f"data.labels=[{LEARNT}]", "method=dne", *words, f"out={edit}"]))
    records = []
    for label in (LEARNT, *OTHERS):
        measured = out / f"measure-{label}"
        if not (measured / "measure.json").exists():
            options = [*model, f"edit={edit}", f"data.labels=[{label}]", "bootstrap=200", f"out={measured}"]
            eh.edit_measure(eh.compose("edit measure", options))
        said = json.loads((measured / "measure.json").read_text())["attributes"]["sex"]
        record: dict[str, Any] = {"seed": seed, "finding": label, "n": said["edit"]["hidden"]["given_label"]["n"]}
        for name in ("none", "edit", "noise"):
            record[f"given label {name}"] = said[name]["hidden"]["given_label"]["value"]
            record[f"unseen {name}"] = said[name]["unseen"]["given_label"]["value"]
        record["auc none"], record["odds none"] = probe([*model, f"out={out / f'none-{label}'}"], label)
        record["auc edit"], record["odds edit"] = probe([*model, f"edit={edit}", f"out={out / f'edit-{label}'}"], label)
        records.append(record)
    return records


def known(values: list[float | None]) -> str:
    """Mean and interval over the seeds where the figure could be estimated; how many these are, where not all."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "not estimable"
    return interval(numbers) + (f" ({len(numbers)} seeds)" if len(numbers) < len(values) else "")


def show(records: list[dict[str, Any]]) -> None:
    """The table: a row a finding."""
    print("\n| finding | seeds | " + " | ".join(FIGURES) + " | change of AUC | change of equalized odds |")
    print("|---" * (len(FIGURES) + 4) + "|")
    for label in (LEARNT, *OTHERS):
        own = [record for record in records if record["finding"] == label]
        if not own:
            continue
        cells = [known([record[key] for record in own]) for key in FIGURES]
        for key in ("auc", "odds"):
            pairs = [(record[f"{key} edit"], record[f"{key} none"]) for record in own]
            cells.append(known([None if None in pair else pair[0] - pair[1] for pair in pairs]))
        print(f"| {label} | {len(own)} | " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--out", type=Path, default=Path("runs/nih_edits"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand edit train` that differ")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "figures.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in [int(text) for text in options.seeds.split(",")] if not options.table else ():
        if any(record["seed"] == seed for record in records):
            continue
        found = run_seed(options.shared, options.out / f"seed={seed}", seed, options.words)
        records += found
        with log.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in found)
    show(records)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
