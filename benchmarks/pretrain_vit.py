"""A small ViT pre-trained on the training images of ham10000-mini, for the searches of what to fine-tune.

    python benchmarks/pretrain_vit.py --shared DIR --out results/searched_masks [--epochs 100]

Writes OUT/vit/export, a folder that `evenhand … model=` and timm load. The recipe is `evenhand train` from random weights,
then `evenhand export`:

    network    timm's test_vit4 at 96 px: 0.92 M parameters, 9 blocks of width 96, patches of 16 pixels
    images     those of the split `train` alone; the weights have seen no validation and no test image of the searches. Of their
               patients, a tenth picks the epoch and a twentieth is set aside
    label      the diagnosis, seven classes (column dx), balanced weights
    training   AdamW, 1e-3, cosine with 5 epochs of warm-up, weight decay 0.05, stochastic depth 0.1, mirrors, turns and
               colours of the preset for dermoscopy

Malignancy follows from the diagnosis, so the weights have seen the training rows' labels (as weights pre-trained on a larger
label set of one hospital have): a search fine-tunes a network that starts well on its training rows, and is judged on others.
Every seed of a study uses these weights, so the studies keep the data's own split: drawn anew, validation rows would
be rows of the pre-training. It resumes after a kill. About 10 s an epoch on one core: 100 epochs take 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from search_setups import VIT, VIT_SIZE, say, show_progress

import evenhand as eh
from evenhand.data.sources.csv import prepare_csv
from evenhand.random import generator

CHOOSE, ASIDE = 0.1, 0.05
"""Shares of the training patients: those that pick the epoch, and those that `evenhand train` tests on."""
RECIPE = [
    "method=finetune", "method.from_scratch=true", f"model={VIT}", f"model.input_size=[{VIT_SIZE},{VIT_SIZE}]", "model.drop_path=0.1",
    "model.precision=fp32", "data.augment=dermoscopy", "trainer.lr=1e-3", "trainer.warmup_epochs=5", "trainer.weight_decay=0.05",
    "trainer.class_weights=balanced", "trainer.accelerator=cpu", "trainer.progress=false", "audit.bootstrap=100",
    "audit.permutations=100", "audit.details=false", "audit.metrics=[auc]",
]  # fmt: skip


def own_table(source: Path, out: Path, images: int) -> Path:
    """The rows of the split ``train``, split once more by patient."""
    table = pd.read_csv(source / "metadata.csv")
    table = table[table["split"] == "train"]
    if images:
        table = table.sample(min(images, len(table)), random_state=0).sort_index()
    patients = generator(0, "pre-training").permutation(np.sort(table["patient_id"].unique()))
    cuts = [round(len(patients) * share) for share in (CHOOSE, CHOOSE + ASIDE)]
    part = dict.fromkeys(patients, "train") | dict.fromkeys(patients[: cuts[0]], "val") | dict.fromkeys(patients[cuts[0] : cuts[1]], "test")
    out.parent.mkdir(parents=True, exist_ok=True)
    table.assign(split=table["patient_id"].map(part)).to_csv(out, index=False)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--out", type=Path, default=Path("runs/searched_masks"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--images", type=int, default=0, help="most images, for a quick look; 0: all")
    parser.add_argument("--table", action="store_true", help="say what came of it, and train nothing")
    options = parser.parse_args()
    show_progress()
    source, root = options.shared / "data" / "ham10000-mini", options.out / "vit"
    if not options.table:
        table = own_table(source, root / "metadata.csv", options.images)
        data = prepare_csv(
            table, root / "data", images=source, labels=["dx"], attributes=["sex"], kind="multiclass", size=VIT_SIZE, modality="dermoscopy",
            workers=1,
        )
        say(f"{len(data)} images of the training split, {options.epochs} epochs")
        words = [f"data={data.root}", *RECIPE, f"trainer.max_epochs={options.epochs}", f"out={root / 'run'}"]
        eh.train(eh.compose("train", words))
        if not (root / "export").exists():
            eh.export(eh.compose("export", [f"model={root / 'run'}", f"out={root / 'export'}"]))
    history = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(history, key=lambda record: record.get("val_auc") or 0.0)
    say(f"{root / 'export'}: epoch {best['epoch']} of {len(history)}, AUC {best['val_auc']:.3f} (mean over diagnoses, held-out patients)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
