"""Every method on four real data sets, over five seeds, audited and compared, as one command.

    make results DATA=../shared OUT=results

or ``python benchmarks/real_data.py --shared ../shared --out results``. The data are not part of the repository; the
script says what is missing and stops. It resumes: finished runs are kept. It prints the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

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
    "model.input_size=[128,128]",
    "trainer.lr=3e-4",
    "trainer.max_epochs=8",
    "trainer.warmup_epochs=1",
    "trainer.weight_decay=0.05",
    "data.augment=dermoscopy",
]
TUNED = {
    "finetune": ["method=finetune"],
    "resample_full": ["method=resample", "method.scope=full"],
    "reweight_full": ["method=reweight", "method.scope=full"],
    "group_dro_full": ["method=group_dro", "method.scope=full"],
    "dfr_full": ["method=dfr", "method.scope=full"],
}
SETS = {
    "ham": dict(folder="ham10000-mini", labels=["malignant"], attributes=["age", "sex", "sex*age"], bins={"age": [0, 60, 200]},
                size=224, modality="dermoscopy"),
    "nih": dict(folder="nih-cxr64-mini", attributes=["sex", "age"], bins={"age": [0, 60, 200]}, size=64, modality="chest_film",
                labels=["atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
                        "consolidation", "edema", "emphysema", "fibrosis", "pleural_thickening", "hernia"]),
    "covid": dict(folder="covid-cxr-mini", labels=["covid19"], attributes=["sex", "age"], bins={"age": [0, 60, 200]}, size=224,
                  modality="chest_film"),
    "pad": dict(folder="pad-ufes-mini", labels=["malignant"], attributes=["sex", "fitzpatrick"], bins={}, size=224, modality="photograph"),
}


def prepare(shared: Path, out: Path) -> dict[str, Path]:
    """Prepare the four sets; a finished one is kept."""
    prepared = {}
    for name, options in SETS.items():
        options = dict(options)
        source = shared / "data" / str(options.pop("folder"))
        prepared[name] = out / "prepared" / name
        eh.prepare_csv(source / "metadata.csv", prepared[name], images=source, progress=False, **options)
    return prepared


def run(name: str, words: list[str], out: Path) -> Path:
    """One method over five seeds."""
    start = time.perf_counter()
    eh.train(eh.compose("train", [*words, SEEDS, f"out={out}", "trainer.progress=false"]))
    print(f"{out.parent.name}/{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds data/ and weights/")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", default="ham,ham_full,nih,covid,pad", help="comma-separated parts")
    options = parser.parse_args()
    weights = options.shared / "weights/mobilenet_v1_075/mobilenet_v1_075_224_imagenet.safetensors"
    absent = [str(path) for path in [weights, *(options.shared / "data" / str(item["folder"]) for item in SETS.values())] if not path.exists()]
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
                runs[key] = run(key, [data, *model, *FULL, *words], options.out / name / key)
        if name in parts:
            report = options.out / name / "compare.html"
            result = eh.compare(list(map(str, runs.values())), out=report)
            (options.out / name / "compare.json").write_text(json.dumps(result.to_json(), indent=1))
            print(result.to_table().to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
