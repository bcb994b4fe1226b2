"""`evenhand demo`: the whole story on a synthetic cohort whose bias is planted, so that what is found can be checked.

Make a cohort -> write PNG files and a CSV -> prepare -> train a plain probe and mitigations on the bundled encoder, an image edit,
a small search of what to fine-tune and a patch of the finished probe among them -> audit each -> compare -> measure how much each
really depends on the attribute, with counterfactual twins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evenhand.config.editing import DNEConfig
from evenhand.config.methods import METHOD_CONFIGS, FinetuneConfig
from evenhand.config.patch_methods import BMFTConfig, ExternalDataConfig, FinishedModelConfig, PatchMakeConfig
from evenhand.config.schema import AuditConfig, DataConfig, ModelConfig, TrainConfig, TrainerConfig
from evenhand.config.search import SearchConfig
from evenhand.data.cache import CachedImages, build_cache
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import Dependence, SyntheticConfig, dependence, make_cohort, write_cohort
from evenhand.data.synthetic_theory import ExpectedPerformance, expected_performance
from evenhand.errors import InputError
from evenhand.report.patch_page import percent, size_words
from evenhand.runs.compare import compare, page_of
from evenhand.runs.folder import RunFolder, write_json
from evenhand.runs.patch import make_patch_run
from evenhand.runs.results import load_predictor, stored_thresholds
from evenhand.runs.search import search_mask
from evenhand.runs.train import train

log = logging.getLogger(__name__)

SEARCHED = "fairtune"
"""Not a method but two commands: a search, then fine-tuning with the mask that it found."""
PATCHED = BMFTConfig.name
"""Not trained but made from the run of the first method: a patch, learnt from validation rows alone."""
METHODS = ("linear_probe", "reweight", "dfr", "eo_head", "dne", SEARCHED, PATCHED)
EDIT = DNEConfig(
    family=["spectral"], attributes=["group"], epochs=4, batch_size=96, refit_every=10, reference_images=512, controls=False
)
"""A small edit that is trained in seconds: a filter of a few numbers, a few passes over the images, no noise control."""
PATCH = BMFTConfig(attributes=["group"], impair_epochs=3)
"""A patch that is made in seconds: three passes of step one."""
TUNING = TrainerConfig(max_epochs=1, lr=5e-4, accelerator="cpu", progress=False)
"""How trials, finalists and the network that is kept are trained; the rate is that of the comparison, masks have their own."""
MODALITY = {"chest": "chest_film", "skin": "dermoscopy"}
ATTRIBUTES = ("group", "age")
AGE_EDGES = (0.0, 60.0, 200.0)


@dataclass(frozen=True)
class DemoRun:
    """One method's outcome.

    Attributes:
        method: its registry name.
        folder: the run folder, with report.html.
        auc: overall AUC on the test rows: value, lower, upper.
        gaps: attribute -> equalized-odds difference: value, lower, upper, p.
        groups: attribute -> group -> number of test images.
        dependence: test decisions and scores against those of the counterfactual twins.
        edit: for a method that trains an edit: what it fools and what it hides, in a sentence; else empty.
        search: for a searched mask: what was chosen, in a sentence; else empty.
        patch: for a patch: what it changes, in a sentence; else empty.
    """

    method: str
    folder: Path
    auc: Mapping[str, Any]
    gaps: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Mapping[str, int]]
    dependence: Dependence
    edit: str = ""
    search: str = ""
    patch: str = ""


@dataclass(frozen=True)
class DemoResult:
    """What `demo` made: ``root`` holds cohort/, data/, a run folder a method, and ``report``, the comparison."""

    root: Path
    report: Path
    cohort: SyntheticConfig
    expected: Mapping[str, ExpectedPerformance]
    runs: tuple[DemoRun, ...]


def demo(
    out: str | Path = "runs/demo",
    seed: int = 0,
    *,
    cohort: SyntheticConfig | None = None,
    methods: Sequence[str] = METHODS,
    audit: AuditConfig | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Run the whole path on a synthetic cohort. The same call goes on where a killed one stopped.

    Args:
        out: folder for everything; new, empty, or from the same call.
        seed: of the cohort and of every method.
        cohort: another cohort than the default one (its own ``seed`` counts then, for its images).
        methods: registry names, fairtune or bmft; the first is the reference that the others are compared with, and what bmft patches.
        audit: another audit configuration than the default one.
        report: called with a line of text at each step.

    Raises:
        InputError: ``out`` holds a demo with other settings, or a method is unknown.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> round(eh.demo("runs/demo").runs[0].gaps["group"]["value"], 2)  # doctest: +SKIP
        0.25
    """
    root, settings, judged = Path(out), cohort or SyntheticConfig(seed=seed), audit or AuditConfig()
    known = (*METHOD_CONFIGS, SEARCHED, PATCHED)
    unknown = [name for name in methods if name not in known]
    if unknown or not methods:
        raise InputError(f"methods {unknown} are unknown; give at least one of {', '.join(known)}")
    if methods[0] == PATCHED:
        raise InputError(f"{PATCHED} patches the run of the first method; name another one before it, as linear_probe,{PATCHED}")
    _claim(root, {"seed": seed, "cohort": asdict(settings)})
    report(f"cohort: {settings.n_patients} patients, {settings.kind}, {settings.size} px, trace: {', '.join(settings.shortcuts) or 'none'}")
    data, images, twins = _prepare(root, settings)
    runs = []
    for name in methods:
        report(f"{'patch' if name == PATCHED else 'search, ' * (name == SEARCHED) + 'train'} and audit: {name}")
        config = TrainConfig(
            data=DataConfig(path=str(data.root)),
            model=ModelConfig(precision="fp32"),
            method=EDIT if name == EDIT.name else METHOD_CONFIGS.get(name, FinetuneConfig)(),
            trainer=TrainerConfig(accelerator="cpu", progress=False),
            audit=judged,
            seed=seed,
            out=str(root / name),
        )
        if name == SEARCHED:
            config = _after_search(root / "search", config)
        run = _patched(root / methods[0], config) if name == PATCHED else train(config)
        runs.append(_outcome(name, run, data, images, twins))
    report("compare")
    page = _compare([run.folder for run in runs], root / "compare", judged, seed) if len(runs) > 1 else runs[0].folder / "report.html"
    return DemoResult(root, page, settings, expected_performance(settings), tuple(runs))


def _after_search(root: Path, config: TrainConfig) -> TrainConfig:
    """Search what to fine-tune, a few trials long; the options of a training with the mask that was found."""
    found = search_mask(
        SearchConfig(
            data=replace(config.data, attributes=["group"]),
            model=config.model,
            trainer=TUNING,
            n_trials=4,
            lr_low=1e-4,
            min_patients=1,
            warm_head=True,
            finalists=1,
            baselines=["head"],
            audit=config.audit,
            seed=config.seed,
            out=str(root),
        )
    )
    return replace(config, method=FinetuneConfig(mask=str(found.root), warm_head=True), trainer=replace(TUNING, lr=None))


def _patched(classifier: Path, config: TrainConfig) -> RunFolder:
    """A patch for the finished classifier of a run, learnt from the rows that it was not trained on."""
    return make_patch_run(
        PatchMakeConfig(
            data=ExternalDataConfig(path=config.data.path),
            model=FinishedModelConfig(name="auto", checkpoint=str(classifier)),
            method=PATCH,
            audit=config.audit,
            accelerator="cpu",
            seed=config.seed,
            out=config.out,
        )
    )


def _claim(root: Path, settings: Mapping[str, Any]) -> None:
    """Write what this folder is for, or refuse a folder that is for something else."""
    file, wanted = root / "demo.json", json.loads(json.dumps(settings))
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != wanted:
            raise InputError(f"{root} holds a demo with other settings; give another folder, or remove this one")
        return
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root} is not empty and holds no demo; give another folder")
    root.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def _prepare(root: Path, settings: SyntheticConfig) -> tuple[PreparedData, CachedImages, CachedImages]:
    """The prepared data set, its test images, and their twins in the same order."""
    cohort = make_cohort(settings)
    if not (root / "cohort" / "twins.csv").exists():
        write_cohort(cohort, root / "cohort")
    data = prepare_csv(
        root / "cohort" / "metadata.csv",
        root / f"synthetic-{settings.kind}",
        images=root / "cohort",
        labels=["label"],
        attributes=ATTRIBUTES,
        bins={"age": AGE_EDGES},
        size=settings.size,
        modality=MODALITY[settings.kind],
        seed=settings.seed,
    )
    rows = np.flatnonzero(np.asarray(data.split, dtype=object) == "test")
    twin_of = dict(zip(cohort.twin_table["twin_of"], cohort.twin_table["image"], strict=True))
    files = [root / "cohort" / twin_of[name] for name in data.table["image"].iloc[rows]]
    cache, _ = build_cache(files, root / "twins", size=settings.size)
    return data, data.images(rows), cache.images()


def _outcome(name: str, run: RunFolder, data: PreparedData, images: CachedImages, twins: CachedImages) -> DemoRun:
    """Read a run's audit, and score its test images and their twins."""
    found = json.loads((run.root / "audit.json").read_text(encoding="utf-8"))["labels"]["label"]
    predictor = load_predictor(run, data.root / "embeddings").predictor
    rows = np.flatnonzero(np.asarray(data.split, dtype=object) == "test")
    groups = {name: item.take(rows) for name, item in data.groups(list(ATTRIBUTES)).items()}
    threshold = stored_thresholds(run)["label"]
    scores, twin_scores = (predictor.predict(part, groups)[0][:, 0] for part in (images, twins))
    parts = found["attributes"]
    return DemoRun(
        method=name,
        folder=run.root,
        auc=found["overall"]["auc"],
        gaps={name: parts[name]["gaps"]["equalized_odds"] for name in ATTRIBUTES},
        groups={name: {key: int(item["n"]) for key, item in parts[name]["groups"].items()} for name in ATTRIBUTES},
        dependence=dependence(scores, twin_scores, threshold, groups["group"].names()),
        edit=_edit_line(run.root),
        search=_search_line(run.root.parent / "search") if name == SEARCHED else "",
        patch=_patch_line(run.root) if name == PATCHED else "",
    )


def _edit_line(root: Path) -> str:
    """What the run's edit fools and hides on validation rows, empty where the run trained none."""
    if not (root / "edit.json").exists():
        return ""
    return " ".join(json.loads((root / "edit.json").read_text(encoding="utf-8")).get("summary") or ())


def _search_line(root: Path) -> str:
    """What a search chose."""
    return str(json.loads((root / "search.json").read_text(encoding="utf-8"))["summary"])


def _patch_line(root: Path) -> str:
    """What a patch changes, and how it is undone."""
    patch = json.loads((root / "patch.json").read_text(encoding="utf-8"))["patch"]
    share = percent(patch["share"])
    return f"{share} of the probe's network, a file of {size_words(patch['bytes'])}; evenhand patch revert model={root} takes it off"


def _compare(folders: Sequence[Path], out: Path, config: AuditConfig, seed: int) -> Path:
    """The comparison page, with its numbers as JSON and CSV beside it."""
    compare(folders, out, bins={"age": AGE_EDGES}, config=config, seed=seed, title="Demo: mitigations against a plain probe")
    return page_of(out)
