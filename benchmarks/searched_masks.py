"""Does a searched mask beat what needs no search? Test rows, five seeds, three setups.

    python benchmarks/searched_masks.py --shared DIR --out results/searched_masks --setup synthetic|ham_mobilenet|ham_vit
        [--attribute sex,age] [--seeds 0,1,2,3,4] [--trials 20] [--epochs 5] [--table] [words of `evenhand search` …]

Setups are in `search_setups.py`; ham_vit needs `pretrain_vit.py` with the same OUT first. Of each seed:

    searched        `evenhand search`: TPE, successive halving, objective worst-group AUC on validation rows; its best mask, trained again
    best random     the same with sampler=random: the best, by validation rows, of as many random masks (the first six
                    are those that TPE begins with)
    random mask     one random mask of the searched one's size, at its learning rate
    full, head,     fixed masks, each at every rate of --rates, the best by validation rows: a searched learning rate is no merit
    bitfit, lora    of the mask
    full, trainer.lr  full fine-tuning at the middle rate (3e-4), untuned, as `evenhand train` has it

Of several attributes the worst group of all counts; `--attribute sex` and `--attribute age` are studies of their own. A seed decides
sampler, heads, order of images and random masks; synthetic: the cohort too. The split of ham10000-mini is the data's own in every
seed (the ViT has seen its training rows), so intervals over seeds there leave test rows fixed: Student's t of the seeds' paired
differences says what another search would give, and the intervals of each seed (patients drawn again, 1,000 times, as for a search's
finalists) what other patients would. Drop: objective on test rows minus that on the validation rows which chose.

Bar: searched minus full above 0 with an interval over seeds that excludes 0, and the same for searched minus best random; else the
table says how much of the validation value is lost on test rows, and how many seeds' own intervals exclude 0.

Each seed is a unit: one line in OUT/SETUP/figures.jsonl; two processes with other --seeds share OUT. Inside a unit every search and
training goes on after a kill. Run one process a core with OMP_NUM_THREADS=1. The time of a unit is estimated before it starts;
about, at 20 trials of 5 epochs on a quiet core with halving: synthetic 25 min, ham_mobilenet 80 min, ham_vit 20 min.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from search_setups import SETUPS, Setup, Units, half_width, interval, make_setup, numbers, say, show_progress, training_seconds

import evenhand as eh
from evenhand.config.search import SearchConfig
from evenhand.models.masks import Mask
from evenhand.runs.finalists import SHOWN, _Judged
from evenhand.runs.folder import RunFolder
from evenhand.search import MAXIMISED

SEARCHES = {"searched": "tpe", "best random": "random"}
FIXED = ("full", "head", "bitfit", "lora")
AUDIT = ["audit.bootstrap=100", "audit.permutations=100", "audit.details=false", "audit.bounds=false", "audit.metrics=[auc,tpr,fpr]"]
OF_TRAINING = ("trainer.", "data.", "model.")
FIRST = 6
"""Random trials that both samplers begin with."""
DRAWS = 1000
"""Draws of patients behind a seed's own interval."""


@dataclass(frozen=True)
class Study:
    """What all units have in common.

    Attributes:
        rates: learning rates of fixed masks.
        words: options of searches.
        epochs: of every training.
    """

    rates: tuple[float, ...]
    words: tuple[str, ...]
    epochs: int

    @property
    def middle(self) -> float:
        """The rate of the untuned comparison."""
        return sorted(self.rates)[(len(self.rates) - 1) // 2]


def unit_folder(setup: str, attribute: str, seed: int) -> Path:
    """Where a unit's runs lie, below OUT."""
    return Path(setup) / attribute.replace(",", "-") / f"seed={seed}"


def searched(setup: Setup, study: Study, sampler: str, seed: int, out: Path) -> tuple[SearchConfig, RunFolder, Mapping[str, Any]]:
    """A search's options, the run of its winner, and its trial."""
    words = [f"startup_trials={FIRST}", "pruner=halving", f"trainer.max_epochs={study.epochs}", "finalists=1", "baselines=[]", *AUDIT]
    config = setup.search(*words, *study.words, f"sampler={sampler}", f"seed={seed}", f"out={out}")
    found = eh.search_mask(config)
    best = found.info["best"]
    return config, RunFolder(found.root / "runs" / f"trial-{best['trial']}"), best


def tuned(setup: Setup, study: Study, seed: int, mask: Sequence[str], lr: float | None, out: Path) -> RunFolder:
    """A training with a fixed mask."""
    words = [*setup.words, *AUDIT, f"trainer.max_epochs={study.epochs}", *(word for word in study.words if word.startswith(OF_TRAINING))]
    rate = [] if lr is None else [f"trainer.lr={lr:g}"]
    return eh.train(eh.compose("train", [*words, "method=finetune", *mask, *rate, f"seed={seed}", f"out={out}"]))


def run_unit(setup: Setup, study: Study, seed: int, root: Path) -> dict[str, Any]:
    """Everything of one seed: condition -> its values."""
    start = time.perf_counter()
    conditions: dict[str, tuple[_Judged, dict[str, Any]]] = {}
    config = None
    for name, sampler in SEARCHES.items():
        say(f"{setup.name}, seed {seed}: {name}")
        config, run, best = searched(setup, study, sampler, seed, root / sampler)
        config = replace(config, audit=replace(config.audit, bootstrap=20 if setup.small else DRAWS))
        about = {"lr": best["lr"], "share": best["share"], "trial": best["trial"], "searched": best["values"][0]}
        conditions[name] = _Judged(run, config), about
    assert config is not None
    first = config.objective
    mask = root / "tpe" / "mask.json"
    rate = Mask.from_json(mask.read_text(encoding="utf-8")).lr
    say(f"{setup.name}, seed {seed}: a random mask of the searched one's size")
    words = ["mask=random", f"method.mask_like={mask}", f"method.mask_lr={rate!r}"]
    conditions["random mask"] = _Judged(tuned(setup, study, seed, words, None, root / "random_mask"), config), {"lr": rate}
    for name in FIXED:
        tried: list[tuple[float, float, _Judged]] = []
        for lr in study.rates:
            say(f"{setup.name}, seed {seed}: {name} at {lr:g}")
            judged = _Judged(tuned(setup, study, seed, [f"mask={name}"], lr, root / f"{name}_{lr:g}"), config)
            value = judged.values((first,))["val"][first]
            sign = 1 if first in MAXIMISED else -1
            tried.append((sign * value, lr, judged))
        best_of = max(tried, key=lambda item: item[0])
        conditions[name] = best_of[2], {"lr": best_of[1]}
        if name == "full":
            conditions["full, trainer.lr"] = next(item[2] for item in tried if item[1] == study.middle), {"lr": study.middle}
    say(f"{setup.name}, seed {seed}: paired differences on test rows")
    reference = conditions["searched"][0]
    names = tuple(dict.fromkeys((first, *SHOWN)))
    found = {}
    for name, (judged, about) in conditions.items():
        found[name] = {**about, **judged.values(names, about.get("searched"))}
        if name != "searched":
            found[name]["difference"] = reference.difference(judged, config)
    about_unit = {"setup": setup.name, "attribute": setup.attribute, "seed": seed, "objective": first, "epochs": study.epochs}
    return {**about_unit, "trials": config.n_trials, "conditions": found, "seconds": round(time.perf_counter() - start, 1)}


def table(root: Path, units: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: means over seeds, what the searched mask is better by, and what the searches tried."""
    lines = []
    studies: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for unit in sorted(units, key=lambda unit: unit["seed"]):
        studies.setdefault((unit["setup"], unit["attribute"], unit["objective"]), []).append(unit)
    for key, own in studies.items():
        first = key[2]
        lines += [
            f"\n{key[0]}, {key[1]}: {len(own)} seeds, {own[0]['trials']} trials of {own[0]['epochs']} epochs, "
            f"{sum(unit['seconds'] for unit in own) / 3600:.1f} h\n",
            f"| condition | test {first} | AUC gap | equalized odds | AUC | validation {first} | drop | searched minus this, test | "
            "seeds whose own interval is above 0, below 0 |",
            "|---" * 9 + "|",
        ]
        for name in own[0]["conditions"]:
            rows = [unit["conditions"][name] for unit in own]
            cells = [interval([row["test"].get(metric) for row in rows]) for metric in (first, "auc_gap", "equalized_odds", "auc")]
            cells += [interval([row["searched"] for row in rows]), interval([row["drop"] for row in rows], sign="+")]
            if name == "searched":
                cells += ["", ""]
            else:
                gaps = [row["difference"] for row in rows]
                sides = [sum(gap["lower"] is not None and gap["lower"] > 0 for gap in gaps)]
                sides.append(sum(gap["upper"] is not None and gap["upper"] < 0 for gap in gaps))
                cells += [interval([gap["value"] for gap in gaps], sign="+"), f"{sides[0]}, {sides[1]}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += ["", *(verdict(own, name, first) for name in ("full", "best random"))]
        folders = {unit["seed"]: root / unit_folder(key[0], key[1], unit["seed"]) for unit in own}
        lines.append(trials_table({seed: folder for seed, folder in folders.items() if folder.exists()}))
    return "\n".join(lines)


def trials_table(folders: Mapping[int, Path]) -> str:
    """Markdown: what the samplers proposed, and what a trial's value goes with; of the searches' own records.

    Args:
        folders: seed -> folder of its unit.
    """
    from scipy.stats import spearmanr

    head = ("search", f"median value of its first {FIRST} trials", "of the others", "best", "run to the end", "epochs of all trials")
    lines = ["\n| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    correlations: dict[str, list[float]] = {"learning rate": [], "share of weights": []}
    for name, sampler in SEARCHES.items():
        facts = []
        for folder in folders.values():
            found = json.loads((folder / sampler / "search.json").read_text(encoding="utf-8"))["trials"]
            trials = [trial for trial in found if trial["values"]]
            values = [trial["values"][0] for trial in trials]
            medians = [float(np.median(part)) for part in (values[:FIRST], values[FIRST:])]
            ended = sum(trial["state"] == "complete" for trial in trials) / len(trials)
            facts.append([*medians, max(values), ended, float(sum(trial["epochs"] for trial in trials))])
            if sampler == "random":
                correlations["learning rate"].append(float(spearmanr([trial["params"]["lr"] for trial in trials], values).statistic))
                correlations["share of weights"].append(float(spearmanr([trial["share"] for trial in trials], values).statistic))
        cells = [interval(column, digits) for column, digits in zip(zip(*facts, strict=True), (3, 3, 3, 2, 0), strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    said = ", ".join(f"{key} {np.mean(found):+.2f} ({min(found):+.2f} to {max(found):+.2f})" for key, found in correlations.items())
    lines.append(f"\nrank correlation of a random trial's validation value, mean (range over seeds): {said}")
    return "\n".join(lines)


def verdict(units: Sequence[Mapping[str, Any]], name: str, objective: str) -> str:
    """Whether a part of the bar is met."""
    sign = 1 if objective in MAXIMISED else -1
    known = [unit["conditions"][name]["difference"]["value"] for unit in units]
    values = [sign * value for value in known if value is not None]
    if len(values) < 2:
        return f"bar, searched better than {name}: not to be said of {len(values)} seed"
    met = sum(values) / len(values) - half_width(values) > 0
    return f"bar, searched better than {name}: {'met' if met else 'MISSED'} ({interval(values, sign='+')})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[2] / "shared")))
    parser.add_argument("--out", type=Path, default=Path("runs/searched_masks"))
    parser.add_argument("--setup", default="synthetic", choices=SETUPS)
    parser.add_argument("--attribute", default="sex,age", help="ham: sex, age, or both, the worst group of which counts")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3,3e-3", help="learning rates of fixed masks, over the range of the search")
    parser.add_argument("--images", type=int, default=0, help="most training images, for a quick look; 0: all")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    parser.add_argument("words", nargs="*", help="options of `evenhand search` that differ, as pruner=none")
    options = parser.parse_args()
    show_progress()
    attribute = "group" if options.setup == "synthetic" else options.attribute
    study = Study(tuple(float(rate) for rate in options.rates.split(",")), (f"n_trials={options.trials}", *options.words), options.epochs)
    units = Units(options.out / options.setup / "figures.jsonl")
    for seed in numbers(options.seeds) if not options.table else ():
        if units.has(setup=options.setup, attribute=attribute, seed=seed):
            continue
        setup = make_setup(options.setup, options.shared, options.out, seed, attribute, options.images)
        once = training_seconds(setup.search(*study.words, f"trainer.max_epochs={options.epochs}"))
        most = 2 * options.trials + 3 + len(FIXED) * len(study.rates)
        say(f"{options.setup}, {attribute}, seed {seed}: one training of everything takes {once:.0f} s here, so a unit of at most {most} "
            f"trainings takes at most {most * once / 60:.0f} min; pruning and frozen layers take that to about half")  # fmt: skip
        root = options.out / unit_folder(options.setup, attribute, seed)
        unit = run_unit(setup, study, seed, root)
        units.add(unit)
        say(f"{options.setup}, {attribute}, seed {seed}: done in {unit['seconds'] / 60:.0f} min")
    units.show(options.setup, functools.partial(table, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
