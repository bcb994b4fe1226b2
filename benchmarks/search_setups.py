"""What the studies of the search share: three setups of data and network, units of work that are kept, intervals over seeds.

| setup | data | network | space |
|---|---|---|---|
| synthetic | a cohort of its own for every seed, with a planted texture shortcut, 64 px | the bundled ViT | norms, attention, MLP |
| ham_mobilenet | ham10000-mini, malignant or not, 96 px, its own split | MobileNet of DIR/weights, channels last | conv, norms by stage |
| ham_vit | the same | a ViT of 0.9 M parameters from `pretrain_vit.py` | norms, attention, MLP |

Not a study: the studies import it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from evenhand.config import compose
from evenhand.config.search import SearchConfig
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.methods.base import Task
from evenhand.runs.search import task_of

SETUPS = ("synthetic", "ham_mobilenet", "ham_vit")
VIT, VIT_SIZE = "test_vit4", 96
"""timm's name of the small ViT: 0.92 M parameters, 9 blocks of width 96, patches of 16 pixels."""
RATES = ("lr_low=1e-4", "lr_high=3e-3")
"""Learning rates of searches: below, five epochs of 25 steps leave a head as it was."""
AGES = (0.0, 60.0, 200.0)
TRAIN, VAL, TEST = 1500, 500, 4000
"""Patients of a synthetic cohort, one image each."""


@dataclass(frozen=True)
class Setup:
    """Data and network of one seed.

    Attributes:
        name: of `SETUPS`.
        data: the prepared data set.
        files: the images it was made of, in the order of its table.
        words: options of `evenhand search` and `evenhand train`: data, network, attributes.
        space: the search space.
        attribute: the attributes that count, separated by commas.
        small: a quick look at few images.
    """

    name: str
    data: PreparedData
    files: tuple[Path, ...]
    words: tuple[str, ...]
    space: str
    attribute: str
    small: bool = False

    def search(self, *words: str) -> SearchConfig:
        """Options of a search of this setup."""
        few = ["min_patients=2"] if self.small else []
        config: SearchConfig = compose("search", [*self.words, f"space={self.space}", *RATES, *few, *words])
        return config


def make_setup(name: str, shared: Path, root: Path, seed: int, attribute: str, images: int = 0, n_test: int = TEST) -> Setup:
    """The data of a setup, prepared where they are not yet.

    Args:
        name: of `SETUPS`.
        shared: folder that holds data/ and weights/.
        root: folder of the study; it has vit/export for ham_vit.
        seed: of a synthetic cohort.
        attribute: ham: sex, age or both, separated by a comma.
        images: most training images, for a quick look; 0: all.
        n_test: test patients of a synthetic cohort.
    """
    same = ["model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false"]
    if name == "synthetic":
        data, files = _synthetic(root / "cohorts" / f"seed={seed}", seed, images, n_test)
        return Setup(name, data, files, (f"data={data.root}", "data.attributes=group", *same), "norms|attention|mlp", "group", images > 0)
    data, files = _ham(shared, root, images)
    words = [f"data={data.root}", f"data.attributes=[{attribute}]", f"model.input_size=[{VIT_SIZE},{VIT_SIZE}]", *same]
    if name == "ham_mobilenet":
        weights = _there(shared / "weights/mobilenet_v1_075/mobilenet_v1_075_224_imagenet.safetensors", "the weights of MobileNet")
        network = (f"model={weights}", "model.name=mobilenetv1_075", "trainer.channels_last=true")
        return Setup(name, data, files, (*words, *network), "conv|norm", attribute, images > 0)
    exported = _there(root / "vit" / "export", f"the pre-trained ViT; python benchmarks/pretrain_vit.py --out {root} makes it")
    return Setup(name, data, files, (*words, f"model={exported}", f"model.name={VIT}"), "norms|attention|mlp", attribute, images > 0)


def _synthetic(root: Path, seed: int, images: int, n_test: int) -> tuple[PreparedData, tuple[Path, ...]]:
    parts = (images, max(images // 2, 160), max(images // 2, 160)) if images else (TRAIN, VAL, n_test)
    n = sum(parts)
    config = SyntheticConfig(seed=seed, n_patients=n, images_per_patient=(1, 1), fractions=(parts[0] / n, parts[1] / n, parts[2] / n))
    if not (root / "images" / "twins.csv").exists():
        write_cohort(make_cohort(config), root / "images")
    data = prepare_csv(
        root / "images" / "metadata.csv", root / "data", images=root / "images", labels=["label"], attributes=["group"],
        size=config.size, modality="chest_film", seed=seed, workers=1,
    )
    return data, tuple(root / "images" / name for name in data.table["image"])


def _ham(shared: Path, root: Path, images: int) -> tuple[PreparedData, tuple[Path, ...]]:
    source = _there(shared / "data" / "ham10000-mini", "the photographs")
    table, out = source / "metadata.csv", root / "ham"
    if images:
        most = {"train": images, "val": max(images // 2, 80), "test": max(images // 2, 80)}
        every = pd.read_csv(table)
        few = pd.concat([rows.sample(min(most[str(key)], len(rows)), random_state=0) for key, rows in every.groupby("split")])
        table, out = root / f"ham-{images}.csv", root / f"ham-{images}"
        root.mkdir(parents=True, exist_ok=True)
        few.sort_index().to_csv(table, index=False)
    data = prepare_csv(
        table, out, images=source, labels=["malignant"], attributes=["sex", "age"], bins={"age": AGES}, size=VIT_SIZE,
        modality="dermoscopy", workers=1,
    )
    return data, tuple(source / name for name in data.table["image"])


def _there(path: Path, what: str) -> Path:
    if not path.exists():
        raise SystemExit(f"{path} is not there: {what}")
    return path


def step_seconds(task: Task, rounds: int = 2) -> tuple[float, float]:
    """Processor seconds an image of a full training step, and of a forward pass, in this process, with its threads."""
    model = task.build_model(task.n_outputs)
    images = task.train.x.batch(slice(0, min(task.batch_size, len(task.train))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)

    def step() -> None:
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    step()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    middle = time.perf_counter()
    with torch.no_grad():
        model.eval()(images)
    return (middle - start) / rounds / len(images), (time.perf_counter() - middle) / len(images)


def training_seconds(config: SearchConfig) -> float:
    """Seconds of one training of the whole network under these options, on this machine as it is now."""
    task = task_of(config, 0)
    train, forward = step_seconds(task)
    return config.trainer.max_epochs * (len(task.train) * train + len(task.val) * forward)


class Units:
    """Units of work that are done: one JSON line each, in a file that several processes may share.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """All of them; a line that a kill cut short does not count."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def has(self, **key: Any) -> bool:
        """Whether a unit with these values is done."""
        return any(all(unit.get(name) == value for name, value in key.items()) for unit in self.read())

    def add(self, unit: Mapping[str, Any]) -> None:
        """Keep one; on a line of its own even after one that was cut short."""
        with self.path.open("ab") as file:
            cut = file.tell() > 0 and self.path.read_bytes()[-1:] != b"\n"
            file.write((b"\n" if cut else b"") + json.dumps(unit).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def show(self, setup: str, table: Callable[[Sequence[dict[str, Any]]], str]) -> None:
        """Say how many are done, and their table."""
        done = self.read()
        say(f"{setup}: {len(done)} units are done")
        if done:
            say(table(done))


def half_width(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of a mean over seeds."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)


def interval(values: Sequence[float | None], digits: int = 3, sign: str = "") -> str:
    """Mean [95% t-interval over seeds]; empty where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    mean = float(np.mean(known))
    if len(known) < 2:
        return f"{mean:{sign}.{digits}f}"
    half = half_width(known)
    return f"{mean:{sign}.{digits}f} [{mean - half:{sign}.{digits}f}, {mean + half:{sign}.{digits}f}]"


def say(text: str) -> None:
    """A line for whoever watches, at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def show_progress() -> None:
    """Lines of the package about trials and trainings go to standard output, one each."""
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s   %(message)s", datefmt="%H:%M:%S", level=logging.ERROR)
    for name in ("evenhand.runs.search", "evenhand.runs.finalists"):
        logging.getLogger(name).setLevel(logging.INFO)


def numbers(text: str) -> list[int]:
    """``0,1,2`` -> [0, 1, 2]."""
    return [int(part) for part in text.split(",")]
