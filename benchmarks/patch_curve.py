"""What a patch costs against the fairness it reaches: image passes, equalized odds and AUC, from the first epoch to the last.

    python benchmarks/patch_curve.py --out results/patch_synthetic [--seeds 0,1,2,3,4] [--sizes 300] [--epochs 1,2,5,10,20] [--table]
        [--picture FILE.svg]

Cohorts, classifier and external set are those of `patch_synthetic.py` (the same OUT finds what is there). Every point is a run of its own
with that many epochs, so that its schedule is whole; thresholds come from the external set's held-out 30%.

| way | starts from | learns from | epochs count |
|---|---|---|---|
| bmft, swift | the classifier | external rows | passes of step one; step two is fitted on kept features |
| full_both, last_layer | the classifier | external rows | passes of all weights, of the head |
| retrained, external rows | the encoder | external rows | passes of all weights |
| retrained, training rows | the encoder | the 1,500 training rows and their groups, which no patch has | passes of all weights |

Re-training minimises what full_both does, on rows balanced by group and label, at the rate at which the classifier was trained, and keeps
its last state. A cost is images forward + 2 x images backward, all of it: importances, features, judging on validation rows. It resumes;
figures land in OUT/curve.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from patch_synthetic import QUIET, TEST, Study, cells_of, figures, prepared
from patching import Memory
from search_setups import Units, half_width

import evenhand as eh
from evenhand.config.patch_methods import BMFTConfig, PatchComparisonConfig, PatchMethodConfig, SWiFTConfig
from evenhand.config.schema import TrainerConfig
from evenhand.methods.base import Split, Task
from evenhand.methods.patching.comparisons import make_comparison
from evenhand.methods.patching.method import make_patched
from evenhand.methods.predictors import probabilities
from evenhand.metrics.thresholds import choose_threshold
from evenhand.models import build_classifier
from evenhand.report.drawing import INK, MUTED, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, MARKERS
from evenhand.runs.folder import RunFolder
from evenhand.runs.patch_start import external_rows
from evenhand.runs.results import load_predictor
from evenhand.runs.task import Rows, read_rows
from evenhand.training.predicting import predict_logits

CPU = torch.device("cpu")
FULL = PatchComparisonConfig(kind="full_both", repair_epochs=0)
WAYS: dict[str, PatchMethodConfig] = {
    "bmft": BMFTConfig(),
    "swift": SWiFTConfig(),
    "full_both": FULL,
    "last_layer": PatchComparisonConfig(kind="last_layer", repair_epochs=0),
    "retrained, external rows": replace(FULL, stop="last"),
    "retrained, training rows": replace(FULL, stop="last"),
}
DELIVERED = "as delivered"


@dataclass(frozen=True)
class Scene:
    """One seed's classifier, the encoder it started from, and rows."""

    classifier: torch.nn.Module
    encoder: Callable[[], torch.nn.Module]
    external: Rows
    source: Rows
    batch_size: int
    rate: float

    @classmethod
    def of(cls, study: Study, seed: int, size: int, classifier: Path) -> Scene:
        """From the folders of the study."""
        run = RunFolder(classifier)
        parts = (size, 0, TEST)
        data = prepared(study.out / f"seed={seed}" / f"external-{study.external}-{size}", 1000 + 10 * seed + size, parts,
                        shortcut=study.external == "same")
        words = [f"model={classifier}", f"data={data}", "external=[train]", f"seed={seed}", *QUIET]
        config = eh.compose("patch make", words)
        loaded = load_predictor(run)
        trained = loaded.config
        source = read_rows(trained.data, int(run.info["seed"]), redraw=bool(run.info["split_redrawn"]))
        trainer = trained.trainer
        rate = trainer.lr or trainer.base_lr * trained.data.batch_size / 256
        return cls(
            loaded.predictor.model.cpu(), lambda: build_classifier(trained.model, 1, seed), external_rows(config, seed, run)[0], source,  # type: ignore[union-attr]
            config.data.batch_size, rate,
        )

    def task(self, train: Split, seed: int) -> Task:
        """What a way learns from; validation rows are the external set's."""
        rows = self.external
        trainer = TrainerConfig(accelerator="cpu", progress=False)
        return Task(
            train, rows.take("val"), "binary", rows.labels, (), rows.attributes, seed, CPU, Memory(),
            lambda images: np.zeros((len(images), 1), np.float32), lambda n_outputs, **_: self.encoder(), trainer, self.batch_size,
        )


def judged(model: torch.nn.Module, rows: Rows, batch_size: int) -> dict[str, float]:
    """Figures on test rows, at the threshold that validation rows choose."""
    val, test = rows.take("val"), rows.take("test")
    scores = [probabilities(predict_logits(model, split.x, batch_size, CPU).astype(np.float64), "binary")[:, 0] for split in (val, test)]
    threshold = choose_threshold(np.asarray(val.y)[:, 0], scores[0], "youden")
    name = rows.attributes[0]
    table = {"y": np.asarray(test.y)[:, 0], "score": scores[1], "group": np.array(test.groups[name].keys)[test.groups[name].codes]}
    return figures(pd.DataFrame({**table, "decision": scores[1] >= threshold}))


def point(scene: Scene, seed: int, way: str, epochs: int) -> dict[str, Any]:
    """One way after so many epochs."""
    if way == DELIVERED:
        return {"images": 0, **judged(scene.classifier, scene.external, scene.batch_size)}
    config = replace(WAYS[way], impair_epochs=epochs)
    train = scene.external.take("train")
    if way.startswith("retrained"):
        model, config = scene.encoder(), replace(config, whole_lr=scene.rate)
        train = scene.source.take("train") if "training" in way else train
    else:
        model = copy.deepcopy(scene.classifier)
    make: Any = make_comparison if isinstance(config, PatchComparisonConfig) else make_patched
    start = time.process_time()
    outcome = make(scene.task(train, seed), model, config)
    seconds = time.process_time() - start
    images = outcome.cost.forward + 2 * outcome.cost.backward
    return {"images": images, "rows": outcome.cost.rows, "seconds": seconds, **judged(outcome.model, scene.external, scene.batch_size)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for every way and number of epochs, means and intervals over seeds."""
    out = []
    for external in dict.fromkeys(line["external"] for line in lines):
        own = [line for line in lines if line["external"] == external]
        base = {line["seed"]: line for line in own if line["way"] == DELIVERED}
        out += [f"\nexternal set: {external} patients\n",
                "| way | epochs | seeds | image passes | AUC | equalized odds | over thresholds | change of AUC | "
                "change of equalized odds | over thresholds |", "|---" * 10 + "|"]
        for way in [name for name in (DELIVERED, *WAYS) if any(line["way"] == name for line in own)]:
            for epochs in sorted({line["epochs"] for line in own if line["way"] == way}):
                rows = [line for line in own if (line["way"], line["epochs"]) == (way, epochs)]
                cells = [f"{np.mean([row['images'] for row in rows]):.0f}"]
                cells += cells_of(rows, None if way == DELIVERED else base, groups=False)
                out.append(f"| {way} | {epochs} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def picture(lines: Sequence[dict[str, Any]]) -> str:
    """An SVG of the first external set's curves: equalized odds over thresholds, and AUC, against image passes; bands are intervals."""
    own = [line for line in lines if line["external"] == lines[0]["external"]]
    base = [line for line in own if line["way"] == DELIVERED]
    drawing = Drawing(8.6, 3.8)
    ways = [way for way in WAYS if way != "last_layer" and any(line["way"] == way for line in own)]
    said = [f"Equalized odds over thresholds and AUC against image passes, external set: {lines[0]['external']} patients"]
    for k, (key, title) in enumerate((("mean odds", "equalized odds over thresholds"), ("auc", "AUC"))):
        low, high = (0.0, 0.35) if key == "mean odds" else (0.5, 1.0)
        axes = Axes(drawing, 0.75 + 4.2 * k, 0.15, 3.3, 2.5, x=(math.log10(600), 5.05), y=(low, high))
        axes.x_axis([(math.log10(n), f"{n:,}") for n in (1_000, 3_000, 10_000, 30_000, 100_000)], "images forward + 2 x images backward")
        axes.y_axis(ticks(low, high), title, grid=True)
        delivered = float(np.mean([line[key] for line in base]))
        axes.line(axes.x, (delivered, delivered), INK, 0.9, "4 2")
        drawing.text(axes.at(axes.x[0] + 0.03, delivered + 0.018 * (high - low)), "as delivered", size=8, colour=MUTED)
        for colour, marker, way in zip(COLOURS, MARKERS, ways, strict=False):
            points = [[line for line in own if (line["way"], line["epochs"]) == (way, n)]
                      for n in sorted({line["epochs"] for line in own if line["way"] == way})]
            x = [math.log10(float(np.mean([line["images"] for line in rows]))) for rows in points]
            y = [float(np.mean([line[key] for line in rows])) for rows in points]
            half = [half_width([line[key] for line in rows]) if len(rows) > 1 else 0.0 for rows in points]
            lows, highs = ([min(max(v + sign * h, low), high) for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
            axes.band(x, lows, highs, colour, 0.1)
            axes.line(x, y, colour, 1.4)
            for place, value in zip(x, y, strict=True):
                axes.mark(place, value, marker, 5.5, colour)
            said.append(f"{way}, {title}: " + ", ".join(f"{10**a:,.0f} {b:.3f}" for a, b in zip(x, y, strict=True)))
    for k, (colour, marker, way) in enumerate(zip(COLOURS, MARKERS, ways, strict=False)):
        place = (54 + 200 * (k % 3), 245 + 15 * (k // 3))
        drawing.mark((place[0], place[1] - 3), marker, 6, colour, colour)
        drawing.text((place[0] + 8, place[1]), way, size=9)
    svg = drawing.svg(". ".join(said), "patch-curve", "What a patch costs and what it reaches")
    return svg.replace("<svg ", '<svg font-family="sans-serif" ', 1)


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/patch_synthetic"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--sizes", default="300", help="patients of the external set")
    parser.add_argument("--external", default="balanced", choices=("balanced", "same"))
    parser.add_argument("--epochs", default="1,2,5,10,20")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--picture", type=Path, help="an SVG file of the curves")
    options = parser.parse_args()
    units = Units(options.out / "curve.jsonl")
    if not options.table:
        torch.set_num_threads(1)
        study = Study(options.out, options.external, [])
        wanted = [(DELIVERED, 0), *((way, epochs) for epochs in map(int, options.epochs.split(",")) for way in options.ways)]
        for seed in map(int, options.seeds.split(",")):
            for size in map(int, options.sizes.split(",")):
                name, scene = f"{options.external} {size}", None
                for way, epochs in wanted:
                    key = {"seed": seed, "external": name, "way": way, "epochs": epochs}
                    if units.has(**key):
                        continue
                    scene = scene or Scene.of(study, seed, size, study.train(seed))
                    units.add({**key, **point(scene, seed, way, epochs)})
    units.show("curve", table)
    if options.picture and (lines := units.read()):
        options.picture.write_text(picture(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
