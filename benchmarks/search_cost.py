"""What a search costs beside a plain loop that does what the released code of FairTune does, and what each saving is worth.

    python benchmarks/search_cost.py --shared DIR --out results/searched_masks --setup synthetic|ham_mobilenet|ham_vit
        [--seeds 0,1,2,3,4] [--trials 20 --epochs 5] [--savings 0] [--only ours,plain] [--table] [words of `evenhand search` …]

The plain loop takes these steps of the released search (search_mask.py and utilities/training_utils.py of the repository
Raman1121/FairTune), each of them in every trial:

    1  data sets and loaders are made anew (define_dataloaders in objective)
    2  the network is made anew and its weights are read (create_model)
    3  every image of every epoch is read from its file, decoded and resized (data/HAM10000.py, utilities/presets.py)
    4  frozen parameters have requires_grad=False; every batch goes through the whole network (get_masked_model)
    5  the validation rows are scored after every epoch, and once more after the last (evaluate_fairness_*)
    6  the objective is reported once, after all epochs, and the pruner is asked then (trial.report): nothing is saved by it, and finished
       trials are thrown away, which the sampler is told; here by Optuna's default pruner, those below the median
    7  one trial after the other in one process (study.optimize)

Left out, which would cost the plain loop more: metrics of every training batch, random crops and mirrors (ours could not keep
activations with them, views aside), checkpoints, the plots, sixteen loader processes made anew in every epoch. Kept equal, so
that both do the same training and the difference is cost alone: rows, order of images, optimiser, constant rate (the released
steps come after 30 epochs), the last epoch, the objective on all validation rows at once, the seeded sampler and its start-up
trials, one thread, one process. So without pruning both go through the same trials; "agree" counts those whose objectives are equal.
(The sampler ranks thrown-away trials below the others, so it may draw others later; in the seed that was run it did not.)

    ours                  decoded once, activations before the first trained part kept, pruned by successive halving, twins looked up
    one in four           reduction=4: one in four trials goes on at each rung, not one in three
    without pruning       pruner=none: the figure beside
    without prefix        prefix=false
    without reuse         reuse=false; a learning rate that is searched never comes twice, so it saves nothing here
    decoded every epoch   images from their files, as in step 3
    without channels last ham_mobilenet: trainer.channels_last=false
    with none             all of them switched off
    plain                 the loop

Ours includes the seconds of decoding once (`prepare`, one process). Bar: the plain loop's wall time is at least 5 times ours, at a
best objective at most 0.005 below its, in 4 of 5 seeds. Processor seconds stand beside wall time, which a busy machine stretches. The
variants without a saving are run for the seeds of --savings. Each (seed, variant) is a unit, one line in OUT/SETUP/cost.jsonl; a
killed one begins again. About, at 20 trials of 5 epochs on a quiet core: synthetic 20 min a seed, 60 with all variants;
ham_mobilenet 75 min and 4 h; ham_vit 35 min and 100 min.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from search_setups import SETUPS, Setup, Units, interval, make_setup, numbers, say, show_progress, training_seconds
from torch.utils.data import DataLoader, Dataset

from evenhand.config.search import SearchConfig
from evenhand.data.cache import build_cache
from evenhand.data.images import fit_grid, read_image, resize_image
from evenhand.errors import RunError
from evenhand.methods.base import Split, Task
from evenhand.models.parameters import head_prefixes
from evenhand.runs.search import task_of
from evenhand.search import run_search
from evenhand.search.samplers import SeededSampler
from evenhand.search.space import SearchSpace
from evenhand.search.trial import make_scorer
from evenhand.training.losses import MaskedLoss
from evenhand.training.optim import make_optimizer
from evenhand.training.sampling import epoch_order, even_batches

BAR, TOLERANCE = 5.0, 0.005
TRAINING = ["trainer.schedule=constant", "trainer.monitor=last", "startup_trials=6", "finalists=0", "heartbeat=30"]
OURS = ["pruner=halving"]
FILES = "files"
"""The mark of a variant that decodes images in every epoch."""
LAYOUT = "without channels last"
"""Of convolutional networks only: the others have none to switch off."""
VARIANTS: dict[str, list[str]] = {
    "ours": [],
    "one in four": ["reduction=4"],
    "without pruning": ["pruner=none"],
    "without prefix": ["prefix=false"],
    "without reuse": ["reuse=false"],
    "decoded every epoch": [FILES],
    LAYOUT: ["trainer.channels_last=false"],
    "with none": ["pruner=none", "prefix=false", "reuse=false", "trainer.channels_last=false", FILES],
}
PLAIN = "plain"
EVERY = (*VARIANTS, PLAIN)


class Files(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images that are read from their files, decoded and resized whenever they are asked for.

    Args:
        files: one an image.
        shape: channels, height, width.
        y: labels, for a loader.
    """

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int], y: np.ndarray) -> None:
        self.files, self.shape, self.y = tuple(files), shape, y
        self.fingerprint = hashlib.sha256("\n".join(map(str, self.files)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = fit_grid(resize_image(read_image(self.files[k]), self.shape[1]), self.shape[0], 8)
        return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255, torch.from_numpy(self.y[k])

    def batch(self, positions: Any) -> torch.Tensor:
        """As `evenhand.methods.base.Images` has it."""
        return torch.stack([self[int(k)][0] for k in np.arange(len(self))[positions]])


def from_files(split: Split, files: Sequence[Path]) -> Split:
    """Rows whose images are decoded in every epoch."""
    return replace(split, x=Files([files[row] for row in split.index], split.x.shape, np.asarray(split.y, dtype=np.float32)))


def task_from_files(config: SearchConfig, files: Sequence[Path], k: int) -> Task:
    """The task of a trial, on files."""
    task = task_of(config, k)
    return replace(task, train=from_files(task.train, files), val=from_files(task.val, files))


class Order:
    """The same batches as ours, for a loader."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed, self.epoch = n, size, seed, 0

    def __iter__(self) -> Any:
        self.epoch += 1
        order = epoch_order(np.arange(self.n), self.seed, self.epoch)
        return iter([order[cut].tolist() for cut in even_batches(self.n, self.size)])


def plain_search(config: SearchConfig, files: Sequence[Path]) -> dict[int, float]:
    """The plain loop; trial -> objective, of those too that the pruner throws away when they are done."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        task = task_of(config, 0)
        train, val = from_files(task.train, files).x, from_files(task.val, files).x
        loader = DataLoader(train, batch_sampler=Order(len(train), task.batch_size, task.seed))  # type: ignore[arg-type]
        val_loader = DataLoader(val, batch_size=task.batch_size)  # type: ignore[arg-type]
        model = task.build_model(task.n_outputs)
        space = SearchSpace.of_network(config, model)
        params = space.suggest(trial)
        mask = space.mask(params, {"seed": config.seed, "model_hash": "", "data_hash": "", "study": "plain", "architecture": None})
        wanted = {name for part in mask.parts if part.train for name in part.parameters}
        for name, parameter in model.named_parameters():
            own = name.removeprefix("network.")
            parameter.requires_grad_(own in wanted or own.startswith(head_prefixes(model)))
        optimizer, mean_loss = make_optimizer(model, config.trainer, mask.lr), MaskedLoss("binary")
        for _ in range(config.trainer.max_epochs):
            model.train()
            for images, y in loader:
                loss = mean_loss(model(images), y, None, None)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            score(model, val_loader)
        value = make_scorer(config, task, [task.val], (config.objective,))(score(model, val_loader)).values[config.objective]
        values[trial.number] = value
        trial.report(value, config.trainer.max_epochs)
        thrown = trial.should_prune()
        say(f"  plain: trial {trial.number}: {config.objective} {value:.4f}{', thrown away' if thrown else ''}")
        if thrown:
            raise optuna.TrialPruned
        return value

    values: dict[int, float] = {}
    study = optuna.create_study(direction="maximize", sampler=SeededSampler("tpe", config.seed, config.startup_trials))
    study.optimize(objective, n_trials=config.n_trials)
    return values


def score(model: torch.nn.Module, loader: DataLoader[Any]) -> np.ndarray:
    """Probabilities of the validation rows."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([torch.sigmoid(model(images)) for images, _ in loader]).double().numpy()


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """What an action gives, and its wall and processor seconds."""
    start, used = time.perf_counter(), time.process_time()
    found = action()
    return found, time.perf_counter() - start, time.process_time() - used


def decode_once(setup: Setup, config: SearchConfig, folder: Path) -> None:
    """What `prepare` does with the images of the search, in one process."""
    task = task_of(config, 0)
    rows = [*task.train.index, *task.val.index]
    shutil.rmtree(folder, ignore_errors=True)
    build_cache([setup.files[row] for row in rows], folder, size=task.train.x.shape[1], workers=1)
    shutil.rmtree(folder)


def run_variant(setup: Setup, words: Sequence[str], variant: str, seed: int, root: Path) -> dict[str, Any]:
    """One search: time, best objective, values of its trials."""
    shutil.rmtree(root, ignore_errors=True)
    own = VARIANTS.get(variant, [])
    config = setup.search(*TRAINING, *OURS, *words, *(word for word in own if word != FILES), f"seed={seed}", f"out={root}")
    if variant == PLAIN:
        values, wall, used = timed(lambda: plain_search(config, setup.files))
        return {"best": max(values.values()), "values": values, "wall": wall, "processor": used, "pruned": 0}
    files = FILES in own
    _, once, once_used = (None, 0.0, 0.0) if files else timed(lambda: decode_once(setup, config, root / "decoded"))
    factory = functools.partial(task_from_files, config, setup.files) if files else functools.partial(task_of, config)
    result, wall, used = timed(lambda: run_search(factory, config, report=lambda line: say(f"  {variant}: {line}")))
    values = {trial.number: trial.values[0] for trial in result.trials if trial.state == "complete"}
    found = {"best": result.best.values[0], "values": values, "wall": wall + once, "processor": used + once_used, "decoding": once}
    epochs = sum(trial.epochs for trial in result.trials)
    shutil.rmtree(root, ignore_errors=True)
    return {**found, "pruned": sum(trial.state == "pruned" for trial in result.trials), "epochs": epochs}


def table(units: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a variant, and the bar."""
    lines = []
    for name in dict.fromkeys(unit["setup"] for unit in units):
        own = {(unit["variant"], unit["seed"]): unit for unit in units if unit["setup"] == name}
        lines += [
            f"\n{name}\n",
            "| variant | seeds | wall, s | processor, s | plain / this, wall | plain / this, processor | ours / this, wall | "
            "best minus plain's | epochs trained | agree with plain |",
            "|---" * 10 + "|",
        ]
        for variant in EVERY:
            rows = {seed: own[variant, seed] for kind, seed in own if kind == variant}
            plain = {seed: own[PLAIN, seed] for seed in rows if (PLAIN, seed) in own}
            ours = {seed: own["ours", seed] for seed in rows if ("ours", seed) in own}
            if not rows:
                continue
            cells = [f"{np.mean([row[key] for row in rows.values()]):.0f}" for key in ("wall", "processor")]
            cells += [interval([plain[seed][key] / rows[seed][key] for seed in plain], 2) for key in ("wall", "processor")]
            cells.append(interval([ours[seed]["wall"] / rows[seed]["wall"] for seed in ours], 2))
            cells.append(interval([rows[seed]["best"] - plain[seed]["best"] for seed in plain], 4, "+"))
            cells.append(", ".join(str(row.get("epochs", row["trials"] * row["max_epochs"])) for row in rows.values()))
            pairs = [(rows[seed]["values"], plain[seed]["values"]) for seed in plain]
            cells.append(", ".join(f"{sum(abs(a[k] - b[k]) < 1e-6 for k in a if k in b)} of {len(a)}" for a, b in pairs))
            lines.append(f"| {variant} | {len(rows)} | " + " | ".join(cells) + " |")
        both = [seed for seed in sorted({seed for _, seed in own}) if ("ours", seed) in own and (PLAIN, seed) in own]
        close = [seed for seed in both if own["ours", seed]["best"] >= own[PLAIN, seed]["best"] - TOLERANCE]
        fast = [seed for seed in both if own[PLAIN, seed]["wall"] >= BAR * own["ours", seed]["wall"]]
        good = len(set(close) & set(fast))
        lines.append(f"\nbar {BAR:g}x at a best objective within {TOLERANCE:g}: {good} of {len(both)} seeds ({len(fast)} as fast, "
                     f"{len(close)} as good), wanted 4 of 5: {'met' if good >= 4 else 'MISSED'}")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--out", type=Path, default=Path("runs/searched_masks"))
    parser.add_argument("--setup", default="synthetic", choices=SETUPS)
    parser.add_argument("--attribute", default="sex,age", help="ham: sex, age, or both")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--savings", default="0", help="seeds whose savings are switched off one by one")
    parser.add_argument("--only", default="", help="variants, separated by commas; default: all")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=0, help="most training images, for a quick look; 0: all")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand search` that differ, as reduction=4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    show_progress()
    units = Units(options.out / options.setup / "cost.jsonl")
    only = options.only.split(",") if options.only else [name for name in EVERY if name != LAYOUT or options.setup == "ham_mobilenet"]
    words = [f"n_trials={options.trials}", f"trainer.max_epochs={options.epochs}", *options.words]
    for seed in numbers(options.seeds) if not options.table else ():
        wanted = [name for name in only if name in ("ours", PLAIN) or seed in numbers(options.savings)]
        missing = [name for name in wanted if not units.has(setup=options.setup, seed=seed, variant=name)]
        if not missing:
            continue
        attribute = "group" if options.setup == "synthetic" else options.attribute
        setup = make_setup(options.setup, options.shared, options.out, seed, attribute, options.images, n_test=200)
        once = training_seconds(setup.search(*TRAINING, *words))
        most = options.trials * once / 60
        say(f"{options.setup}, seed {seed}: one training of everything takes {once:.0f} s here, so plain takes about {most:.0f} min, "
            f"ours about a third of that; to do: {', '.join(missing)}")  # fmt: skip
        with contextlib.suppress(RunError):  # where the trial has collapsed; what is loaded when first used is loaded now
            small = [*words, "n_trials=1", "trainer.max_epochs=1"]
            run_variant(setup, small, "ours", seed, options.out / options.setup / f"seed={seed}-warm-up")
        for variant in missing:
            say(f"{options.setup}, seed {seed}: {variant}")
            found = run_variant(setup, words, variant, seed, options.out / options.setup / f"seed={seed}-{variant.replace(' ', '_')}")
            about = {"setup": options.setup, "seed": seed, "variant": variant, "trials": options.trials, "max_epochs": options.epochs}
            units.add({**about, **found})
            say(f"{options.setup}, seed {seed}: {variant}: {found['wall']:.0f} s, best {found['best']:.4f}")
    units.show(options.setup, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
