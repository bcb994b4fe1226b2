"""Edits, heads and their combinations on real photographs: HAM10000, malignant or not, age 60 as the attribute.

    python benchmarks/ham_edits.py --out results/ham_edits [--repeats 5] [--folds 5] [--only 0,1,2] [--edit utility] [--table]

Repeated cross-validation over patients (5 x 5, stratified by age and label): in every fold a fifth of the rows is tested, a
fifth of the others is for validation (L2 strengths, thresholds, the choice of a point), the rest is trained on. The encoder is a
frozen MobileNet at 96 px. Everything is the package's own: `linear_probe`, `reweight`, `eo_head`, `leace`, `thresholds`, and `dne`,
whose edit is trained for the disease head alone (``attribute_weight=0``), with ``cross_fit``; ``--edit hide`` also hides age, and
``--edit queries`` does so without the encoder's gradient (`gezo`). Each wants an OUT of its own.

Scores of every condition are kept in OUT/fold-*.npz, so the table (``--table``) can be printed anew. Equalized odds is of decisions
at the threshold that maximises Youden's J on validation rows. A fold's gap of two finite groups is above 0 even where there is none;
that holds for all conditions alike. Intervals over folds use the corrected variance of Nadeau and Bengio, since training sets overlap.

The picked point is the condition with an edit that has the least equalized odds on validation rows (mean of folds) among those that
lose at most 0.005 of the plain probe's AUC there; it is compared, fold by fold, with the penalised heads on both sides of its AUC
and with the same head without the edit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from queries import InMemory, Memory
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from evenhand.config import compose
from evenhand.config.editing import DNEConfig
from evenhand.config.schema import ModelConfig, TrainerConfig
from evenhand.data.groups import Groups
from evenhand.edits.base import Edit
from evenhand.methods.base import Images, Split, Task
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.gezo import GeZO
from evenhand.methods.registry import get_method
from evenhand.metrics.thresholds import choose_threshold
from evenhand.models import LocalEmbedder, build_classifier
from evenhand.random import derive_seed

STRENGTHS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0)
HEADS: dict[str, list[str]] = {
    "plain": ["method=linear_probe"],
    "reweight": ["method=reweight"],
    **{f"penalised {s:g}": ["method=eo_head", f"method.strength={s:g}"] for s in STRENGTHS},
    "LEACE": ["method=leace"],
    "LEACE given label": ["method=leace", "method.given_label=true"],
    "least encoding": ["method=least_encoding"],
    "thresholds": ["method=thresholds"],
}
EDITS = {
    "utility": ["method=dne", "method.attribute_weight=0", "method.batch_size=64", "method.epochs=6", "method.refit_every=25",
                "method.measure=false", "method.patience=0", "method.cross_fit=true"],
    "hide": ["method=dne", "method.batch_size=64", "method.epochs=6", "method.refit_every=25", "method.measure=false",
             "method.patience=0", "method.cross_fit=true"],
    "queries": ["method=gezo", "method.measure=false"],
}  # fmt: skip
"""How the edit is trained: for the disease head alone, by gradient (the table of the docs); to hide age as well; the same by queries."""
WITHOUT_EDIT, WITH_EDIT = "", "edit + "
LOSS = 0.005
"""Of AUC, on validation rows, that the picked condition may lose."""


@dataclass(frozen=True)
class Rows:
    """Some rows of the pictures."""

    all: InMemory
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.all.shape

    @property
    def fingerprint(self) -> str:
        return f"{self.all.fingerprint} {derive_seed(0, *map(str, self.rows))}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Any) -> torch.Tensor:
        return self.all.batch(self.rows[positions])


@dataclass(frozen=True)
class Pictures:
    """The data set and the encoder."""

    images: InMemory
    y: np.ndarray
    older: np.ndarray
    patient: np.ndarray
    embedder: LocalEmbedder

    @classmethod
    def load(cls, shared: Path, size: int) -> Pictures:
        import pandas as pd

        from evenhand.data.images import fit_grid, read_image, resize_image

        root = shared / "data" / "ham10000-mini"
        table = pd.read_csv(root / "metadata.csv")
        table = table[table["age"].notna()].reset_index(drop=True)
        pixels = np.stack([fit_grid(resize_image(read_image(root / name), size), 3, 8) for name in table["image"]])
        patient = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)[1]
        weights = shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
        model = ModelConfig(name="mobilenetv1_075", checkpoint=str(weights), input_size=[size, size])
        embedder = LocalEmbedder(build_classifier(model, 0, 0), "fp32", 128, torch.device("cpu"))
        older = (table["age"] >= 60).to_numpy().astype(np.int64)
        return cls(InMemory(pixels, f"ham {size}"), table["malignant"].to_numpy().astype(np.int64), older, patient, embedder)

    def embeddings(self, edit: Edit | None = None) -> np.ndarray:
        """(n, d), under an edit."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.y), 128):
                images = self.images.batch(slice(start, start + 128))
                parts.append(self.embedder(images if edit is None else edit(images)).numpy())
        return np.concatenate(parts)

    def split(self, rows: np.ndarray) -> Split:
        groups = {"age": Groups("age", ("[0,60)", "[60,)"), self.older[rows])}
        return Split(Rows(self.images, rows), self.y[rows].astype(np.float32)[:, None], groups, self.patient[rows], rows)  # type: ignore[arg-type]

    def task(self, train: np.ndarray, val: np.ndarray, z: np.ndarray, seed: int) -> Task:
        def embed(images: Images) -> np.ndarray:
            return z[images.rows]  # type: ignore[attr-defined]

        return Task(
            train=self.split(train), val=self.split(val), kind="binary", labels=("malignant",), classes=(), attributes=("age",), seed=seed,
            device=torch.device("cpu"), store=Memory(), embed=embed, build_model=None, trainer=TrainerConfig(progress=False), batch_size=64,
            embedder=self.embedder, report=lambda text: print(f"    {text}", flush=True),
        )  # type: ignore[arg-type]  # fmt: skip


def cut(pictures: Pictures, repeat: int, fold: int, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test rows: no patient in two of them."""
    cells = pictures.y * 2 + pictures.older
    outer = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat)
    rest, test = list(outer.split(cells, cells, pictures.patient))[fold]
    inner = StratifiedGroupKFold(5, shuffle=True, random_state=1000 + repeat)
    train, val = next(iter(inner.split(rest, cells[rest], pictures.patient[rest])))
    return rest[train], rest[val], test


def method_of(words: list[str]) -> Any:
    """A method from the words of `evenhand train`."""
    config = compose("train", [*words, f"data={HERE}"])
    return get_method(config.method)


def decide(name: str, task: Task, rows: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores and decisions of one condition on validation and test rows."""
    result = method_of(HEADS[name]).fit(task)
    found = {}
    threshold = math.nan
    for split, part in zip(("val", "test"), rows, strict=True):
        data = task.val if split == "val" else None
        images = Rows(task.train.x.all, part)  # type: ignore[attr-defined]
        groups = data.groups if data is not None else {"age": Groups("age", ("[0,60)", "[60,)"), OLDER[part])}
        scores, decisions = result.predict(images, groups)
        if split == "val":
            threshold = choose_threshold(Y[part], scores[:, 0], "youden")
        found[f"{split} scores"] = scores[:, 0]
        found[f"{split} decisions"] = (scores[:, 0] >= threshold if decisions is None else decisions[:, 0] == 1).astype(np.int8)
    return found


HERE = Path(__file__).parent
Y = np.zeros(0)
OLDER = np.zeros(0)


def run_fold(pictures: Pictures, plain: np.ndarray, repeat: int, fold: int, folds: int, words: list[str]) -> dict[str, np.ndarray]:
    """All conditions of one fold."""
    train, val, test = cut(pictures, repeat, fold, folds)
    seed = repeat * folds + fold
    found: dict[str, np.ndarray] = {"val": val, "test": test}
    started = time.perf_counter()
    config = compose("edit train", [*words, f"data={HERE}"])
    trainer = DNE(config.method) if isinstance(config.method, DNEConfig) else GeZO(config.method)
    edit = trainer.fit_edit(replace(pictures.task(train, val, plain, seed), augment=config.data.augment)).edit
    seconds = time.perf_counter() - started
    for prefix, z in ((WITHOUT_EDIT, plain), (WITH_EDIT, pictures.embeddings(edit))):
        task = replace(pictures.task(train, val, z, seed), report=lambda text: None)
        for name in HEADS:
            for key, values in decide(name, task, (val, test)).items():
                found[f"{prefix}{name}/{key}"] = values
    print(f"repeat {repeat}, fold {fold}: edit in {seconds:.0f} s, all in {time.perf_counter() - started:.0f} s", flush=True)
    return found


def figures(found: Any, split: str) -> dict[str, tuple[float, float]]:
    """Condition -> (AUC, equalized odds) on the rows of a split."""
    rows = found[split]
    y, a = Y[rows], OLDER[rows]
    numbers = {}
    for key in found:
        name, _, what = key.partition("/")
        if what != f"{split} scores":
            continue
        d = found[f"{name}/{split} decisions"]
        gaps = [abs(d[(y == v) & (a == 1)].mean() - d[(y == v) & (a == 0)].mean()) for v in (0, 1)]
        numbers[name] = (float(roc_auc_score(y, found[key])), float(max(gaps)))
    return numbers


def interval(values: np.ndarray, folds: int) -> str:
    """Mean [95% interval], corrected for overlapping training sets (Nadeau, Bengio, Machine Learning 52, 2003)."""
    n = len(values)
    if n < 2:
        return f"{values.mean():.3f}"
    spread = math.sqrt((1 / n + 1 / (folds - 1)) * values.var(ddof=1))
    half = float(student.ppf(0.975, n - 1)) * spread
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def show(out: Path, folds: int) -> None:
    """The table of what is there."""
    files = sorted(out.glob("fold-*.npz"))
    every = [dict(np.load(file)) for file in files]
    tests, vals = ([figures(found, split) for found in every] for split in ("test", "val"))
    names = list(tests[0])
    print(f"\n{len(files)} folds\n\n| condition | AUC | equalized odds | change of AUC | change of equalized odds |\n|---|---|---|---|---|")
    table = {name: np.array([found[name] for found in tests]) for name in names}
    for name in names:
        cells = [interval(table[name][:, k], folds) for k in (0, 1)]
        cells += [interval(table[name][:, k] - table["plain"][:, k], folds) for k in (0, 1)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    validation = {name: np.array([found[name] for found in vals]).mean(axis=0) for name in names}
    print("\nvalidation rows:", ", ".join(f"{name} {auc:.3f}/{gap:.3f}" for name, (auc, gap) in validation.items()))
    edits = [name for name in names if name.startswith(WITH_EDIT)]
    for title, among in (("attribute not needed", [name for name in edits if "thresholds" not in name]), ("any", edits)):
        print(f"\n{title}: " + verdict(table, pick(validation, among), folds))


def pick(validation: dict[str, np.ndarray], among: list[str]) -> str:
    """The condition with the least equalized odds on validation rows, of those that lose at most `LOSS` of the plain probe's AUC there."""
    able = [name for name in among if validation[name][0] >= validation["plain"][0] - LOSS]
    return min(able or among, key=lambda name: float(validation[name][1]))


def verdict(table: dict[str, np.ndarray], name: str, folds: int) -> str:
    """A picked condition against every baseline, and against the penalised head at the same AUC."""
    auc, gap = table[name].mean(axis=0)
    baselines = [other for other in HEADS if other in table]
    better = [other for other in baselines if table[other][:, 0].mean() >= auc and table[other][:, 1].mean() <= gap]
    heads = sorted(("plain", *(other for other in baselines if other.startswith("penalised"))), key=lambda other: table[other][:, 0].mean())
    means = np.array([table[other][:, 0].mean() for other in heads])
    k = int(np.clip(np.searchsorted(means, auc), 1, len(heads) - 1))
    share = float(np.clip((auc - means[k - 1]) / max(means[k] - means[k - 1], 1e-9), 0, 1))
    equal = (1 - share) * table[heads[k - 1]] + share * table[heads[k]]
    bare = name.removeprefix(WITH_EDIT)
    return (
        f"picked on validation rows: {name}, AUC {auc:.3f}, equalized odds {gap:.3f}; dominated by {', '.join(better) or 'no baseline'}; "
        f"penalised heads at their nearest AUC ({heads[k - 1]} and {heads[k]}, {equal[:, 0].mean():.3f}): equalized odds "
        f"{equal[:, 1].mean():.3f}, difference {interval(table[name][:, 1] - equal[:, 1], folds)}, "
        f"of AUC {interval(table[name][:, 0] - equal[:, 0], folds)}; {bare} without the edit: equalized odds "
        f"{table[bare][:, 1].mean():.3f}, difference {interval(table[name][:, 1] - table[bare][:, 1], folds)}, "
        f"of AUC {interval(table[name][:, 0] - table[bare][:, 0], folds)}"
    )


def main() -> int:
    global Y, OLDER
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--out", type=Path, default=Path("runs/ham_edits"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", default="", help="numbers of folds, 5 repeat + fold, separated by commas; default: 0 to 24")
    parser.add_argument("--edit", default="utility", choices=tuple(EDITS), help="how the edit is trained")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand edit train` that differ")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures.load(options.shared, options.size)
    Y, OLDER = pictures.y, pictures.older
    plain = pictures.embeddings()
    words = [*EDITS[options.edit], *options.words]
    (options.out / "options.json").write_text(json.dumps(words))
    for number in [int(text) for text in options.only.split(",")] if options.only else range(25):
        file = options.out / f"fold-{number:02d}.npz"
        if options.table or file.exists():
            continue
        found = run_fold(pictures, plain, number // options.folds, number % options.folds, options.folds, words)
        np.savez_compressed(options.out / "part.npz", **found)
        (options.out / "part.npz").replace(file)
    show(options.out, options.folds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
