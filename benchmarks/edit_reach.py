"""How far an edit reaches beyond the encoder it was trained with: a classifier of pixels, and a second encoder.

    python benchmarks/edit_reach.py --out results/edit_synthetic [--shortcuts texture] [--condition surrogate] [--seeds 0,1,2,3,4]

It takes edits that `edit_synthetic.py --out` has trained on its cohorts with the bundled encoder, and measures on the 4,000 test patients

- what a convolutional network, trained afresh on unedited and on edited pixels, reads of the group, given the label;
- the same for a head on MobileNet v1 0.75 (ImageNet) at 64 px, which the edit has never seen, with noise of the edit's size beside it,
  and the AUC and equalized odds of a disease head on it, without and with the edit.

It resumes; figures land in OUT/reach.jsonl. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from edit_synthetic import cohort, folder_name, interval

import evenhand as eh

WEIGHTS = Path("weights/mobilenet_v1_075/mobilenet_v1_075_224_imagenet.safetensors")
COLUMNS = {
    "pixels": ("pixels none", "pixels edit"),
    "second encoder": ("second none", "second edit", "second noise"),
    "disease head on it, AUC": ("auc none", "auc edit"),
    "disease head on it, equalized odds": ("odds none", "odds edit"),
}


def measured(words: list[str], out: Path) -> dict[str, Any]:
    """`edit measure`, once."""
    if not (out / "measure.json").exists():
        eh.edit_measure(eh.compose("edit measure", [*words, "bootstrap=200", "trainer.progress=false", f"out={out}"]))
    said: dict[str, Any] = json.loads((out / "measure.json").read_text())
    return said


def probe(words: list[str]) -> tuple[float, float]:
    """Test AUC and equalized odds of a linear probe."""
    options = ["method=linear_probe", "audit.bootstrap=200", "audit.details=false", "trainer.progress=false"]
    run = eh.train(eh.compose("train", [*words, *options]))
    found = json.loads((run.root / "audit.json").read_text())["labels"]["label"]
    return found["overall"]["auc"]["value"], found["attributes"]["group"]["gaps"]["equalized_odds"]["value"]


def reach(edit: Path, data: Path, weights: Path, out: Path, seed: int) -> dict[str, float]:
    """The figures of one edit."""
    words = [f"data={data}", f"seed={seed}"]
    pixels = measured([*words, f"edit={edit}", "pixel_reader=true"], out / "pixels")["pixels"]["group"]
    second = [*words, f"model={weights}", "model.name=mobilenetv1_075", "model.input_size=[64,64]", "model.precision=fp32"]
    read = measured([*second, f"edit={edit}"], out / "second")["attributes"]["group"]
    found = {f"pixels {name}": pixels[name]["given_label"]["value"] for name in ("none", "edit")}
    found |= {f"second {name}": read[name]["hidden"]["given_label"]["value"] for name in ("none", "edit", "noise")}
    found["auc none"], found["odds none"] = probe([*second, f"out={out / 'probe'}"])
    found["auc edit"], found["odds edit"] = probe([*second, f"edit={edit}", f"out={out / 'probe_edit'}"])
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, a row a shortcut and condition."""
    lines = ["| shortcut, edit | seeds | " + " | ".join(key for keys in COLUMNS.values() for key in keys) + " | change of equalized odds |"]
    lines.append("|---" * (sum(map(len, COLUMNS.values())) + 3) + "|")
    for shortcut, condition in dict.fromkeys((record["shortcut"], record["condition"]) for record in records):
        own = [record for record in records if (record["shortcut"], record["condition"]) == (shortcut, condition)]
        cells = [interval([record[key] for record in own]) for keys in COLUMNS.values() for key in keys]
        cells.append(interval([record["odds edit"] - record["odds none"] for record in own]))
        lines.append(f"| {shortcut}, {condition} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("EVENHAND_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--out", type=Path, default=Path("runs/edit_synthetic"))
    parser.add_argument("--shortcuts", default="texture")
    parser.add_argument("--condition", default="surrogate", help="whose edits are measured")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    options = parser.parse_args()
    log = options.out / "reach.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(record["shortcut"], record["condition"], record["seed"]) for record in records}
    for shortcut in options.shortcuts.split(","):
        for seed in map(int, options.seeds.split(",")):
            if (shortcut, options.condition, seed) in done:
                continue
            root = options.out / shortcut / f"seed={seed}"
            name = folder_name(options.condition)
            edit = root / "edits" / name
            if not (edit / "edit.json").exists():
                raise SystemExit(f"{edit} holds no edit; run edit_synthetic.py --out {options.out} --only {options.condition} first")
            cohort(shortcut, seed, root)
            figures = reach(edit, root / "data", options.shared / WEIGHTS, root / "reach" / name, seed)
            records.append({"shortcut": shortcut, "condition": options.condition, "seed": seed, **figures})
            with log.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in records[-1].items()}), flush=True)
    print(table(records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
