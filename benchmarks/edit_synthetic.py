"""What an image edit hides, fools and mitigates where the truth is known: three planted shortcuts, five seeds.

    python benchmarks/edit_synthetic.py --out results/edit_synthetic [--shortcuts texture,marker] [--seeds 0,1,2,3,4] [--only none,white]

Each cohort has 1,500 training, 500 validation and 4,000 test patients with one image each; in the test split the disease is
equally frequent in both groups, so that a gap there comes from the trace. Everything goes through the commands a user has
(prepare, train, edit train, edit measure) with the bundled encoder, frozen. It resumes; figures land in OUT/figures.jsonl
and the table is printed at the end (``--table`` prints it from what is there). Intervals are Student's t over seeds.
``--way 'heavier:method=gezo method.attribute_weight=3' --only none,heavier --seeds 10,11`` tries other options on other cohorts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import evenhand as eh
from evenhand.data.cache import build_cache
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, dependence, make_cohort, write_cohort
from evenhand.edits import Bounds, load_edit, save_edit
from evenhand.edits.planes import PixelEdit
from evenhand.runs.folder import RunFolder
from evenhand.runs.results import load_predictor, stored_thresholds

TRAIN, VAL, TEST = 1500, 500, 4000
TRAINED = {
    "published white": ["method=dne_paper"],
    "published black": ["method=gezo_released"],
    "paper black": ["method=gezo_paper"],
    "white": ["method=dne"],
    "black": ["method=gezo", "method.optimizer=cma"],
    "surrogate": ["method=gezo"],
    "surrogate lowres+spectral": [
        "method=gezo", "method.family=[lowres,spectral]", "method.reference_images=1024", "method.validation_images=500"
    ],
    "utility alone": ["method=dne", "method.attribute_weight=0"],
    "white cross-fitted": ["method=dne", "method.cross_fit=true"],
}
"""Condition -> options of `evenhand edit train`."""
HEADS = {
    "none": ["method=linear_probe"],
    "reweight": ["method=reweight"],
    "penalised head": ["method=eo_head"],
    "LEACE": ["method=leace"],
    "LEACE given label": ["method=leace", "method.given_label=true"],
    "least encoding": ["method=least_encoding"],
    "thresholds": ["method=thresholds"],
}
NOISE = {"noise of the published size": "published white", "noise of our size": "white"}
"""One picture of noise for all images, as large as an edit is on average: with a disease head trained on it. A head that is trained anew
can leave one picture aside; the control of an edit that looks at the image is `NoiseControl`, which `edit measure` reads."""
COMBINED = {"white + penalised head": ("white", ["method=eo_head"])}


def cohort(shortcut: str, seed: int, root: Path) -> tuple[PreparedData, Any]:
    """The prepared data set and the test images' twins, in table order; made once."""
    n = TRAIN + VAL + TEST
    config = SyntheticConfig(
        shortcuts=(shortcut,), seed=seed, n_patients=n, images_per_patient=(1, 1), fractions=(TRAIN / n, VAL / n, TEST / n)
    )
    drawn = make_cohort(config)
    if not (root / "cohort" / "twins.csv").exists():
        write_cohort(drawn, root / "cohort")
    data = prepare_csv(
        root / "cohort" / "metadata.csv", root / "data", images=root / "cohort", labels=["label"], attributes=["group"],
        size=config.size, modality="chest_film", seed=seed, progress=False,
    )
    rows = np.flatnonzero(np.asarray(data.split, dtype=object) == "test")
    twin_of = dict(zip(drawn.twin_table["twin_of"], drawn.twin_table["image"], strict=True))
    files = [root / "cohort" / twin_of[name] for name in data.table["image"].iloc[rows]]
    twins, _ = build_cache(files, root / "twins", size=config.size)
    return data, twins.images()


def gaussian(like: Path, seed: int, out: Path) -> Path:
    """A stored per-pixel edit of Gaussian noise as large (root mean square over images) as another edit."""
    stored = load_edit(like)
    if not out.exists():
        size = float(json.loads((like / "run.json").read_text())["edit"]["visibility"]["l2"]) / math.sqrt(math.prod(stored.edit.grid))
        edit = PixelEdit(stored.edit.grid, Bounds(clamp=True, rounding="8bit"))
        edit.load_vector(torch.randn(edit.n_parameters, generator=torch.Generator().manual_seed(seed)) * size)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(save_edit(edit, {**stored.facts, "method": "gaussian noise"}))
    return out


def outcome(run: RunFolder, data: PreparedData, twins: Any) -> dict[str, float]:
    """AUC, equalized odds and flips of a trained run on the test rows."""
    found = json.loads((run.root / "audit.json").read_text())["labels"]["label"]
    predictor = load_predictor(run, data.root / "embeddings").predictor
    rows = np.flatnonzero(np.asarray(data.split, dtype=object) == "test")
    if predictor.needs_groups:  # thresholds by group: the trace is exchanged, not whom the image shows
        groups = {name: item.take(rows) for name, item in data.groups(["group"]).items()}
        scores, twin_scores = (predictor.predict(part, groups)[1][:, 0] for part in (data.images(rows), twins))
        flips = dependence(scores, twin_scores, 0.5)
    else:
        scores, twin_scores = (predictor.predict(part)[0][:, 0] for part in (data.images(rows), twins))
        flips = dependence(scores, twin_scores, stored_thresholds(run)["label"])
    part = found["attributes"]["group"]
    rates = {f"auc {name}": item["auc"]["value"] for name, item in part["groups"].items()}
    return {"auc": found["overall"]["auc"]["value"], "odds": part["gaps"]["equalized_odds"]["value"], "flips": flips.flip_rate, **rates}


def leakage(edit: Path, data: PreparedData, out: Path) -> dict[str, float]:
    """Fooled and hidden on the test rows."""
    words = [f"edit={edit}", f"data={data.root}", "bootstrap=200", f"out={out}", "trainer.progress=false"]
    if not (out / "measure.json").exists():
        eh.edit_measure(eh.compose("edit measure", words))
    said = json.loads((out / "measure.json").read_text())
    record = said["attributes"]["group"]
    numbers = {}
    for name in ("none", "edit", "noise"):
        numbers[f"fooled {name}"] = record[name]["fooled"]["accuracy"]
        numbers[f"hidden {name}"] = record[name]["hidden"]["overall"]["value"]
        numbers[f"given label {name}"] = record[name]["hidden"]["given_label"]["value"]
        numbers[f"unseen {name}"] = record[name]["unseen"]["given_label"]["value"]
    seen = said["visibility"]["edit"]
    return {**numbers, "psnr": seen["psnr"], "max_grey": seen["max_grey"]}


def folder_name(condition: str) -> str:
    """Where a condition lies in a seed's folder."""
    return condition.replace(" ", "_").replace("+", "and")


def run_condition(name: str, data: PreparedData, twins: Any, root: Path, seed: int) -> dict[str, Any]:
    """One condition on one cohort: its figures."""
    folder = root / folder_name(name)
    shared = [f"data={data.root}", f"seed={seed}", "trainer.progress=false", "model.precision=fp32", "audit.details=false"]
    shared += ["audit.bootstrap=200", "audit.permutations=200"]
    start = time.perf_counter()
    if name in HEADS:
        run = eh.train(eh.compose("train", [*shared, *HEADS[name], f"out={folder}"]))
        return {**outcome(run, data, twins), "seconds": time.perf_counter() - start}
    numbers: dict[str, Any] = {}
    words = ["method=linear_probe"]
    if name in TRAINED:
        edit = root / "edits" / folder.name
        own = [word for word in shared if not word.startswith("audit.")]
        eh.edit_train(eh.compose("edit train", [*own, *TRAINED[name], f"out={edit}"]))
        numbers |= leakage(edit, data, root / "measured" / folder.name)
        told = json.loads((edit / "edit.json").read_text())
        numbers["images sent"] = told["search"]["images"] if "search" in told else told.get("training", {}).get("images_sent", math.nan)
    elif name in NOISE:
        source = root / "edits" / NOISE[name].replace(" ", "_")
        edit = gaussian(source, seed, root / "edits" / f"{folder.name}.safetensors")
        numbers |= leakage(edit, data, root / "measured" / folder.name)
    else:
        source_name, words = COMBINED[name]
        edit = root / "edits" / source_name
    numbers |= outcome(eh.train(eh.compose("train", [*shared, *words, f"edit={edit}", f"out={folder}"])), data, twins)
    return {**numbers, "seconds": time.perf_counter() - start}


def interval(values: list[float]) -> str:
    """Mean [95% t-interval over seeds]."""
    from scipy.stats import t

    numbers = np.asarray(values, float)
    if len(numbers) < 2:
        return f"{numbers.mean():.3f}"
    half = float(t.ppf(0.975, len(numbers) - 1)) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return f"{numbers.mean():.3f} [{numbers.mean() - half:.3f}, {numbers.mean() + half:.3f}]"


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one table a shortcut; changes are paired with no edit over the same seeds."""
    lines = []
    keys = ("fooled edit", "hidden edit", "given label edit", "unseen edit", "auc", "odds", "flips")
    for shortcut in dict.fromkeys(record["shortcut"] for record in records):
        own = [record for record in records if record["shortcut"] == shortcut]
        plain = {record["seed"]: record for record in own if record["condition"] == "none"}
        lines += [f"\n{shortcut}\n",
                  "| condition | seeds | fooled | hidden | hidden given label | unseen given label | AUC | equalized odds | flips | "
                  "change of AUC | change of equalized odds |", "|---" * 11 + "|"]
        for name in dict.fromkeys(record["condition"] for record in own):
            rows = [record for record in own if record["condition"] == name]
            cells = [interval([r[k] for r in rows]) if all(k in r for r in rows) else "" for k in keys]
            for key in ("auc", "odds"):
                paired = [r[key] - plain[r["seed"]][key] for r in rows if r["seed"] in plain]
                cells.append(interval(paired) if paired and name != "none" else "")
            lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
            if name in TRAINED and all("given label noise" in r for r in rows):
                cells = [interval([r[k.replace("edit", "noise")] for r in rows]) for k in keys if k.endswith("edit")]
                lines.append(f"| noise as large, image by image | {len(rows)} | " + " | ".join(cells) + " |" * 6)
        start = [r["given label none"] for r in own if "given label none" in r]
        if start:
            unseen = [r["unseen none"] for r in own if "unseen none" in r]
            lines.append(f"\nno edit: hidden given label {np.mean(start):.3f}, unseen given label {np.mean(unseen):.3f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/edit_synthetic"))
    parser.add_argument("--shortcuts", default="texture,marker,intensity")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--only", default="", help="conditions, separated by commas; default: all")
    parser.add_argument("--way", action="append", default=[], help="NAME:options of `evenhand edit train`, one more condition; repeatable")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    log = options.out / "figures.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    TRAINED.update({name: words.split() for name, words in (way.split(":", 1) for way in options.way)})
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    every = [*HEADS, *TRAINED, *NOISE, *COMBINED]
    wanted = [name for name in every if not options.only or name in options.only.split(",")]
    for seed in [int(text) for text in options.seeds.split(",")] if not options.table else ():
        for shortcut in options.shortcuts.split(","):
            root = options.out / shortcut / f"seed={seed}"
            have = {record["condition"] for record in done if (record["shortcut"], record["seed"]) == (shortcut, seed)}
            missing = [name for name in wanted if name not in have]
            if not missing:
                continue
            data, twins = cohort(shortcut, seed, root)
            for name in missing:
                record = {"shortcut": shortcut, "seed": seed, "condition": name, **run_condition(name, data, twins, root, seed)}
                done.append(record)
                with log.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
    print(table(sorted(done, key=lambda r: (r["shortcut"], every.index(r["condition"]), r["seed"]))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
