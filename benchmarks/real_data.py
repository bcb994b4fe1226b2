"""Every method on four real data sets, over five seeds, audited and compared, as one command.

    make results DATA=../shared OUT=results

or ``python benchmarks/real_data.py --shared ../shared --out results``. The data are not part of the repository; the
script says what is missing and stops. It resumes: finished runs are kept. It prints the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import evenhand as eh

SEEDS = "seeds=0,1,2,3,4"
HEADS = {
    "linear_probe": ["method=linear_probe"],
    "resample": ["method=resample"],
    "reweight": ["method=reweight"],
    "group_dro": ["method=group_dro"],
    "dfr": ["method=dfr"],
    "eo_head": ["method=eo_head"],
    "leace": ["method=leace"],
    "leace_given_label": ["method=leace", "method.given_label=true"],
    "thresholds": ["method=thresholds"],
}
FULL = [
    "model.input_size=[96,96]",
    "trainer.lr=3e-4",
    "trainer.max_epochs=4",
    "trainer.warmup_epochs=1",
    "trainer.weight_decay=0.05",
    "data.augment=dermoscopy",
]
TUNED = {"finetune": ["method=finetune"]}
FINDINGS = [
    "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax", "consolidation",
    "edema", "emphysema", "fibrosis", "pleural_thickening", "hernia",
]
AGES = {"age": [0, 60, 200]}
SETS: dict[str, dict[str, Any]] = {
    "ham": {"folder": "ham10000-mini", "labels": ["malignant"], "attributes": ["age", "sex", "sex*age"], "bins": AGES, "size": 224,
            "modality": "dermoscopy"},
    "ham96": {"folder": "ham10000-mini", "labels": ["malignant"], "attributes": ["age", "sex", "sex*age"], "bins": AGES, "size": 96,
               "modality": "dermoscopy"},
    "nih": {"folder": "nih-cxr64-mini", "labels": FINDINGS, "attributes": ["sex", "age"], "bins": AGES, "size": 64,
            "modality": "chest_film"},
    "covid": {"folder": "covid-cxr-mini", "labels": ["covid19"], "attributes": ["sex", "age"], "bins": AGES, "size": 224,
              "modality": "chest_film"},
    "pad": {"folder": "pad-ufes-mini", "labels": ["malignant"], "attributes": ["sex", "fitzpatrick"], "bins": {}, "size": 224,
            "modality": "photograph"},
}


def prepare(shared: Path, out: Path) -> dict[str, Path]:
    """Prepare the four sets; a finished one is kept."""
    prepared = {}
    for name, options in SETS.items():
        options = dict(options)
        source = shared / "data" / options.pop("folder")
        prepared[name] = out / "prepared" / name
        eh.prepare_csv(source / "metadata.csv", prepared[name], images=source, progress=False, **options)
    return prepared


def run(name: str, words: list[str], out: Path) -> Path:
    """One method over five seeds."""
    start = time.perf_counter()
    eh.train(eh.compose("train", [*words, SEEDS, f"out={out}", "trainer.progress=false"]))
    print(f"{out.parent.name}/{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return out


def summary(data: dict[str, Any]) -> str:
    """A Markdown table: one row a run; overall AUC and the equalized-odds difference by attribute, mean over seeds."""
    rows = []
    for label, item in data["labels"].items():
        names = list(item["attributes"])
        rows.append(f"\n{label}\n\n| run | AUC | " + " | ".join(f"equalized odds, {name}" for name in names) + " |")
        rows.append("|---" * (len(names) + 2) + "|")
        for run_of in data["runs"]:
            own = run_of["name"]
            cells = [show(item["overall"][own]["auc"]), *(show(item["attributes"][a]["gaps"][own]["equalized_odds"]) for a in names)]
            rows.append(f"| {own} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def show(estimate: dict[str, Any]) -> str:
    """value [lower, upper] ± SD over seeds, or why there is none."""
    if estimate["value"] is None:
        return f"not estimable ({estimate.get('reason')})"
    spread = "" if estimate.get("sd_over_seeds") is None else f" ± {estimate['sd_over_seeds']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['lower']:.3f}, {estimate['upper']:.3f}]{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds data/ and weights/")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", default="ham,ham_full,nih,covid,pad", help="comma-separated parts")
    options = parser.parse_args()
    weights = options.shared / "weights/mobilenet_v1_075/mobilenet_v1_075_224_imagenet.safetensors"
    needed = [weights, *(options.shared / "data" / item["folder"] for item in SETS.values())]
    absent = [str(path) for path in needed if not path.exists()]
    if absent:
        print("not there: " + ", ".join(absent), file=sys.stderr)
        return 2
    prepared = prepare(options.shared, options.out)
    model = [f"model={weights}", "model.name=mobilenetv1_075"]
    parts = options.only.split(",")
    for name in ("ham", "nih", "covid", "pad"):
        data = f"data={prepared[name]}"
        methods = HEADS if name == "ham" else {key: HEADS[key] for key in ("linear_probe", "reweight", "eo_head")}
        runs = {key: options.out / name / key for key in methods}
        if name in parts:
            for key, words in methods.items():
                run(key, [data, *model, *words], runs[key])
        if name == "ham" and "ham_full" in parts:
            for key, words in TUNED.items():
                runs[key] = run(key, [f"data={prepared['ham96']}", *model, *FULL, *words], options.out / name / key)
        if name in parts:
            report = options.out / name / "compare.html"
            result = eh.compare(list(runs.values()), report)
            print(summary(result.to_json()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
