"""Images sent until a black-box search reaches 90% of what a gradient reaches, on held-out images.

For every seed and way of searching:

    gain(e)  = L(no edit) - L(e),  L the optimised loss on judge images that neither search nor gradient sees; where the loss has
               heads that follow the edit, they are fitted on reference images under that same edit
    reached  = images sent (candidates, checks and re-fits all counted) when the kept edit first has
               gain >= 0.9 gain(white box of the same family and loss); the whole budget where that never happens

A surrogate also learns from the unedited training images, which every way embeds once for its heads; they
are counted as sent for it alone, so that the comparison leans against it.

``released`` and ``published`` are the per-pixel search of the paper, with and without the released code's defects; not reaching counts
as its 256,000 images. The others are this project's. "best" is the share of the white-box gain of the best family under the same loss.

    python benchmarks/queries.py                      # five seeds, hours; results are kept in --out and continued
    python benchmarks/queries.py --quick              # one small cohort, two minutes, a look only
    python benchmarks/queries.py --data ham10000      # real photographs and MobileNet, from --shared

It exits 1 when the bar, a twentieth of the published budget, is missed by the default way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenhand.config.editing import DNEConfig, EditMethodConfig, GeZOConfig
from evenhand.config.schema import ModelConfig, TrainerConfig
from evenhand.data.groups import Groups
from evenhand.data.synthetic import SyntheticConfig, make_cohort
from evenhand.edits.build import build_edit
from evenhand.methods.base import MemoryStore, Split, Task
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.search import STATE, search
from evenhand.methods.editing.setup import EditSetup, prepare
from evenhand.models import LocalEmbedder, build_classifier
from evenhand.random import generator

PUBLISHED_BUDGET = 256_000
BAR = 20
SHARE = 0.9
REFERENCE = 512
JUDGE = 800

PAPER: dict[str, Any] = {
    "objective": "published", "utility": 0.0, "norm_weight": 0.001, "family": ["pixel"], "rounding": "none", "optimizer": "gezo",
    "budget": 268_800, "rounds": 50, "query_images": 256, "validation_images": 0, "refit_every": 1, "step": 0.03,
    "natural_steps": False, "coast": False, "patience": 0, "restarts": 0,
}  # fmt: skip
PAPERS = ("released", "published")
RELEASED = {"both_signs": False, "check_incumbent": False, "keep_momentum": False, "same_batch": False, "keep_step": False}
WAYS: dict[str, dict[str, Any]] = {
    "released": {**PAPER, **RELEASED, "clamp": False},
    "published": PAPER,
    "default": {},
    "cma": {"optimizer": "cma"},
    "gezo": {"optimizer": "gezo", "draws": 4},
    "spsa": {"optimizer": "spsa", "draws": 4, "lr": 2.0},
    "tone+spectral": {"family": ["tone", "spectral"]},
    "residual": {"family": ["residual"]},
    "default, published loss": {"objective": "published", "utility": 0.0},
}
"""Name -> options of `GeZOConfig` that differ from the defaults. ``--way 'name:key=json;key=json'`` adds one."""

QUICK = ("released", "default", "gezo")


@dataclass
class Memory(MemoryStore):
    """A store that also remembers which edit a search kept after how many images."""

    kept: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def put(self, key: str, value: Any) -> None:
        super().put(key, value)
        if key == STATE:
            judged = np.isfinite(value["best_value"])
            vector = (value["best"] if judged else value["strategy"]["current"]).numpy().copy()
            if not self.kept or not np.array_equal(self.kept[-1][1], vector):
                self.kept.append((int(value["images"]), vector))


@dataclass
class InMemory:
    """Images (n, c, h, w) uint8 as the methods take them."""

    pixels: np.ndarray
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, positions: Any) -> torch.Tensor:
        return torch.from_numpy(self.pixels[positions].astype(np.float32) / 255)


@dataclass
class Bench:
    """One seed's data: a task, and the judge's rows."""

    task: Task
    judge: Split

    def fresh(self, store: Memory | None = None, seed: int = 0) -> Task:
        return replace(self.task, store=store or Memory(), seed=seed)


def split_of(pixels: np.ndarray, y: np.ndarray, codes: np.ndarray, keys: tuple[str, ...], patient: np.ndarray, name: str) -> Split:
    groups = {"group": Groups("group", keys, codes.astype(np.int64))}
    return Split(InMemory(pixels, f"{name} {pixels.sum()}"), y.astype(np.float32)[:, None], groups, patient, np.arange(len(y)))


def cut(pixels: np.ndarray, y: np.ndarray, codes: np.ndarray, keys: tuple[str, ...], patient: np.ndarray, seed: int) -> tuple[Split, ...]:
    """Train, validation and judge rows, by patient: 50, 15 and 35%."""
    names = np.unique(patient)
    place = dict(zip(names, generator(seed, "bench").permutation(len(names)) / len(names), strict=True))
    at = np.array([place[name] for name in patient])
    parts = [at < 0.5, (at >= 0.5) & (at < 0.65), at >= 0.65]
    cuts = zip(parts, ("train", "val", "judge"), strict=True)
    return tuple(split_of(pixels[rows], y[rows], codes[rows], keys, patient[rows], name) for rows, name in cuts)


def synthetic_rows(seed: int, patients: int) -> tuple[Split, ...]:
    cohort = make_cohort(SyntheticConfig(n_patients=patients, shortcuts=("texture",), seed=seed, balanced_test=False), twins=False)
    table = cohort.table
    codes = (table["group"] == "B").to_numpy().astype(np.int64)
    patient = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)[1]
    return cut(cohort.images, table["label"].to_numpy(), codes, ("A", "B"), patient, seed)


def ham_rows(seed: int, shared: Path, size: int) -> tuple[Split, ...]:
    import pandas as pd

    from evenhand.data.images import fit_grid, read_image, resize_image

    root = shared / "data" / "ham10000-mini"
    table = pd.read_csv(root / "metadata.csv")
    table = table[table["age"].notna()].reset_index(drop=True)
    pixels = np.stack([fit_grid(resize_image(read_image(root / name), size), 3, 8) for name in table["image"]])
    patient = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)[1]
    older = (table["age"] >= 60).to_numpy().astype(np.int64)
    return cut(pixels, table["malignant"].to_numpy(), older, ("[0,60)", "[60,)"), patient, seed)


def make_bench(options: argparse.Namespace, seed: int) -> Bench:
    """Rows, encoder and task of one seed."""
    if options.data == "ham10000":
        train, val, judge = ham_rows(seed, options.shared, 128)
        weights = options.shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
        model = ModelConfig(name="mobilenetv1_075", checkpoint=str(weights))
    else:
        train, val, judge = synthetic_rows(seed, options.patients)
        model = ModelConfig(name="evenhand_demo_vit")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = LocalEmbedder(build_classifier(model, 0, seed), "fp32", 128, device)
    task = Task(
        train=train, val=val, kind="binary", labels=("label",), classes=(), attributes=("group",), seed=seed, device=device,
        store=Memory(), embed=embedder.embed_images, build_model=None, trainer=TrainerConfig(progress=False), batch_size=128,
        embedder=embedder,
    )  # type: ignore[arg-type]  # fmt: skip
    return Bench(task, judge)


class Judge:
    """L of an edit, by heads fitted for it, on images that no search sees."""

    def __init__(self, bench: Bench, config: EditMethodConfig) -> None:
        self.bench, self.config = bench, config
        self.setup: EditSetup = prepare(bench.fresh(seed=0), config)
        self.edit = build_edit(config, bench.task.train.x.shape).to(bench.task.device)
        from evenhand.methods.editing.facts import RowFacts

        self.rows = np.sort(generator(7, "judge rows").permutation(len(bench.judge))[:JUDGE])
        self.facts = RowFacts.of(bench.judge, self.setup.attributes, bench.task.device).take(torch.from_numpy(self.rows))
        n = min(REFERENCE, len(bench.task.train))
        self.reference = np.sort(generator(7, "judge").permutation(len(bench.task.train))[:n])
        self.none = self.loss(self.edit.vector())

    @torch.no_grad()
    def loss(self, vector: torch.Tensor) -> float:
        """L of the edit with these parameters."""
        from evenhand.methods.editing.objectives import edit_norm

        self.edit.load_vector(vector.to(self.bench.task.device))
        objective, task = self.setup.objective, self.bench.task
        if objective.needs_refit:
            taken = torch.from_numpy(self.reference).to(task.device)
            objective.refit(self._embed(task.train, self.reference), self.setup.train.take(taken))
        rows = self.rows
        norm = None
        if self.config.norm_weight > 0:
            some = self.bench.judge.x.batch(rows[:256]).to(task.device)
            norm = edit_norm(self.edit, some, self.edit(some))
        return objective(self._embed(self.bench.judge, rows), self.facts, norm=norm, pooled=False)[1]["objective"]

    def gain(self, vector: torch.Tensor) -> float:
        """How much lower L is than without an edit."""
        return self.none - self.loss(vector)

    def _embed(self, split: Split, rows: np.ndarray) -> torch.Tensor:
        task = self.bench.task
        chunks = np.array_split(rows, -(-len(rows) // 128))
        return torch.cat([task.embedder(self.edit(split.x.batch(chunk).to(task.device))) for chunk in chunks])  # type: ignore[misc]


def shared_options(config: EditMethodConfig) -> dict[str, Any]:
    """What white and black box have in common."""
    from dataclasses import fields

    return {item.name: getattr(config, item.name) for item in fields(EditMethodConfig) if item.name not in ("name", "refit_every")}


def white_box(bench: Bench, config: GeZOConfig, epochs: int, steps: list[float]) -> dict[str, Any]:
    """The gain of the same family and loss trained by gradient: the largest of several learning rates, each at its best epoch."""
    started = time.perf_counter()
    judge = Judge(bench, config)
    gains = {}
    for lr in steps:
        natural = {"epochs": epochs, "lr": lr, "batch_size": 64, "refit_every": 8, "controls": False, "measure": False, "patience": epochs}
        edit = DNE(DNEConfig(**(shared_options(config) | natural))).fit_edit(bench.fresh()).edit
        gains[f"{lr:g}"] = judge.gain(edit.vector())
    return {"gain": max(gains.values()), "gains": gains, "none": judge.none, "seconds": time.perf_counter() - started}


def black_box(bench: Bench, config: GeZOConfig, target: float) -> dict[str, Any]:
    """Search, and the images that were sent when the kept edit first had ``target``; kept edits are bisected, their gains grow."""
    started = time.perf_counter()
    judge, memory = Judge(bench, config), Memory()
    task = bench.fresh(memory)
    edit = build_edit(config, task.train.x.shape).to(task.device)
    setup = prepare(task, config)
    origin = edit.vector().cpu().double()
    scale = edit.natural_steps().cpu().double() if config.natural_steps else torch.ones_like(origin)
    found = search(task, edit, setup.objective, config, (setup.train, setup.val))
    gains: dict[int, float] = {}

    def gain(k: int) -> float:
        if k not in gains:
            gains[k] = judge.gain((origin + torch.from_numpy(memory.kept[k][1]) * scale).float())
        return gains[k]

    low, high = -1, len(memory.kept) - 1
    last = gain(high)
    hit = target > 0 and last >= target
    while hit and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gain(middle) >= target else (middle, high)
    facts = {name: found.report[name] for name in ("rounds", "parameters", "ended_by", "held_out_start", "held_out_kept")}
    plain = len(task.train) if config.optimizer == "surrogate" else 0
    path = [[plain + memory.kept[k][0], value] for k, value in sorted(gains.items())]
    reached = {"hit": bool(hit), "images": plain + memory.kept[high][0], "sent": plain + found.report["images"], "gain": last, "path": path}
    return {**reached, **facts, "seconds": time.perf_counter() - started}


class Log:
    """Results as JSON lines; what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def once(self, key: str, compute: Any) -> dict[str, Any]:
        if key not in self.known:
            row = {"key": key, **compute()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
        return self.known[key]


def configs(options: argparse.Namespace) -> Iterator[tuple[str, GeZOConfig]]:
    """The ways asked for."""
    extra = {}
    for text in options.way:
        name, _, rest = text.partition(":")
        extra[name] = {key: json.loads(value) for key, value in (part.split("=", 1) for part in rest.split(";") if part)}
    for name in [*(options.ways or ([] if extra else QUICK if options.quick else WAYS)), *extra]:
        changed = extra.get(name) or WAYS[name]
        config = GeZOConfig(**changed)
        config.controls = False
        if options.quick:
            config.budget, config.rounds = (10_000, 2) if name in PAPERS else (min(config.budget, 8_000), config.rounds)
        yield name, config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("synthetic", "ham10000"), default="synthetic")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--patients", type=int, default=3000)
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="default: all")
    parser.add_argument("--way", action="append", default=[], help="a way of your own: 'name:key=json;key=json'")
    parser.add_argument("--epochs", type=int, default=24, help="of the white box")
    parser.add_argument("--lr", type=float, nargs="*", default=[4.0, 12.0, 36.0], help="of the white box, natural steps; the best counts")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines; default: runs/benchmarks/queries[-quick].jsonl")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.seeds, options.patients, options.epochs = 1, 800, 8
    log = Log(options.out or Path("runs", "benchmarks", f"queries-{options.data}{'-quick' if options.quick else ''}.jsonl"))
    ways = list(configs(options))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in ways}
    for seed in range(options.seeds):
        benches: list[Bench] = []

        def bench(seed: int = seed, benches: list[Bench] = benches) -> Bench:
            if not benches:
                benches.append(make_bench(options, seed))
            return benches[0]

        for name, config in ways:
            size = f"{options.data} {options.patients} {seed}"
            family = json.dumps({**shared_options(config), "epochs": options.epochs, "lr": options.lr}, sort_keys=True)
            white = log.once(f"white {size} {family}", lambda c=config: white_box(bench(), c, options.epochs, options.lr))
            target = SHARE * white["gain"]
            key = f"black {size} {options.epochs} {options.lr} {json.dumps(vars(config), sort_keys=True)}"
            black = log.once(key, lambda c=config, t=target: black_box(bench(), c, t))
            otherwise = PUBLISHED_BUDGET if name in PAPERS else config.budget
            # the released code sends the minus direction too, and drops it
            images = black["images"] * (2 if name == "released" else 1) if black["hit"] else otherwise
            rows[name].append({**black, "images": images, "white": white["gain"], "config": config})
            said = f"{images:7d} images" + ("" if black["hit"] else " (not reached)")
            print(f"seed {seed}  {name:26s} white {white['gain']:+.4f}  black {black['gain']:+.4f}  {said}", flush=True)
    return report(rows)


def report(rows: dict[str, list[dict[str, Any]]]) -> int:
    """The table, and whether the bar is met."""
    best: dict[str, float] = {}
    for found in rows.values():
        objective = found[0]["config"].objective
        best[objective] = max(best.get(objective, 0.0), float(np.mean([row["white"] for row in found])))
    print(f"\n{'way':26s} {'family':10s} {'p':>6s} {'loss':10s} {'white gain':>10s} {'black/white':>11s} {'/best':>6s} {'reached':>8s} "
          f"{'median images':>14s} {'fewer by':>8s}")  # fmt: skip
    for name, found in rows.items():
        config = found[0]["config"]
        white, black = (float(np.mean([row[key] for row in found])) for key in ("white", "gain"))
        images = float(np.median([row["images"] for row in found]))
        hits = sum(row["hit"] for row in found)
        share, of_best = (black / other if other > 0 else float("nan") for other in (white, best[config.objective]))
        print(f"{name:26s} {'+'.join(config.family):10s} {found[0]['parameters']:6d} {config.objective:10s} {white:10.4f} "
              f"{share:11.2f} {of_best:6.2f} "
              f"{hits:4d}/{len(found):<3d} {images:14.0f} {PUBLISHED_BUDGET / images:8.1f}")  # fmt: skip
    if "default" not in rows:
        return 0
    median = float(np.median([row["images"] for row in rows["default"]]))
    met = all(row["hit"] for row in rows["default"]) and median * BAR <= PUBLISHED_BUDGET
    print(f"\nbar: the default reaches {SHARE:.0%} of its white box with at least {BAR} times fewer images than {PUBLISHED_BUDGET:,}: "
          f"{'met' if met else 'missed'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
