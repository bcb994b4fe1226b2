"""`evenhand search`: which parts of a network to fine-tune, for fairness on validation rows; a folder with mask.json.

The second step is `evenhand train method=finetune mask=FOLDER`. The best masks are trained once more here, beside fixed
choices, and tested: the report shows what is left on test rows of what was found on validation rows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evenhand.config import config_yaml
from evenhand.config.methods import FinetuneConfig
from evenhand.config.schema import TrainConfig
from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError
from evenhand.files import write_text
from evenhand.methods.base import Task
from evenhand.metrics.thresholds import parse_rule
from evenhand.models.masks import write_mask
from evenhand.report.leakage_table import table_lines
from evenhand.report.search_page import finalist_table, write_search_page
from evenhand.runs.finalists import baseline_method, judge_finalists
from evenhand.runs.folder import SEARCH_RUN_SCHEMA, FileStore, RunFolder, package_versions, utc_now, write_json
from evenhand.runs.results import rehearse
from evenhand.runs.search_record import search_record, trials_csv
from evenhand.runs.task import Encoder, Rows, make_task, read_rows
from evenhand.runs.train import deterministic, failures_noted, plain, provenance
from evenhand.search import SearchResult, TrialRecord, run_search

log = logging.getLogger(__name__)

TEMPORARY = "temporary"
FREE = (
    "n_trials", "sampler", "startup_trials", "pruner", "prune_after", "prune_startup", "reduction", "prefix", "reuse", "stop_collapsed",
    "workers", "threads", "storage", "heartbeat", "grace", "reruns", "storage_wait", "pick", "pick_within", "finalists", "baselines",
    "baseline_rates", "audit", "deterministic", "activations",
)
"""Options under which a search goes on: how far it goes and how it gets there, not what its trials are."""
ENDING = ("n_trials", "pick", "pick_within", "finalists", "baselines", "baseline_rates", "audit")
"""Those that decide what a finished search shows: with others it is finished anew, its trials as they are."""


def search_mask(config: SearchConfig) -> RunFolder:
    """Search which parts of a network to fine-tune, and how fast; test the best masks beside fixed choices.

    The same command goes on after a kill; on other machines, with the same ``storage``, it joins the search. A finished
    search goes on where ``n_trials`` is larger than before; with other finalists, baselines or another pick it is finished anew,
    and so it is where a baseline failed.

    Args:
        config: see `evenhand.config.search.SearchConfig`; from text: ``evenhand.compose("search", ["data=…", "model=…"])``.

    Returns:
        The folder: mask.json, search.json, trials.csv, report.html, masks/ of the finalists and of a Pareto front, and the
        runs of finalists and baselines.

    Raises:
        InputError: the data set, the network or an option is wrong, or ``out`` holds something else.
        RunError: the search failed after it had started; finished trials are kept.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> run = eh.search_mask(eh.compose("search", ["data=prepared/ham", "n_trials=20", "out=runs/search"]))  # doctest: +SKIP
        >>> (run.root / "mask.json").exists()  # doctest: +SKIP
        True
    """
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-search")
    config = replace(config, out=str(out))
    _check(config)
    rows = rows_of(config, 0)
    if config.finalists:
        rehearse(rows, train_config(config))
    is_new = not (out / "run.json").exists()
    run = RunFolder.begin(out, _identity(config, rows), config_yaml(config))
    ending = _ending(config)
    if run.done and run.info.get("n_trials") == config.n_trials and run.info.get("ending", ending) == ending:
        log.info("%s is finished already", run.root)
        return run
    with failures_noted(run, is_new):
        _, encoder = make_task(train_config(config), rows, config.seed, FileStore(out, read_only=True), log.info)
        about = provenance(encoder, rows, False)
        run.update(schema=SEARCH_RUN_SCHEMA, status="running", seed=config.seed, n_trials=config.n_trials, **about)
        write_text(out / "config.yaml", config_yaml(config))
        with _storage(config) as placed, deterministic(config.deterministic):
            result = _searched(placed)
            record = search_record(result, config, placed.storage or str(out / "study.journal"), run.info)
        with run.locked():
            _finish(run, config, result, record, encoder)
    return run


def task_of(config: SearchConfig, k: int) -> Task:
    """The task of training k of a trial; the same in every worker process.

    Args:
        config: the search's options.
        k: 0 for ``outer=holdout``; the fold of ``cv``; with ``seeds`` the split is that of ``evenhand train seeds=…`` for seed + k.
    """
    seed = config.seed + k if config.outer == "seeds" else config.seed
    root = Path(config.out or ".")
    task, _ = make_task(train_config(config), rows_of(config, k), seed, FileStore(root, read_only=True), log.debug)
    return task


def rows_of(config: SearchConfig, k: int) -> Rows:
    """The rows of training k of a trial."""
    if config.outer == "cv":
        return read_rows(config.data, config.seed, redraw=False, fold=(k, config.folds))
    return read_rows(config.data, config.seed + k, redraw=config.outer == "seeds")


def train_config(config: SearchConfig) -> TrainConfig:
    """A search's options as those of one training."""
    return TrainConfig(
        data=config.data,
        model=config.model,
        method=FinetuneConfig(),
        trainer=replace(config.trainer, progress=False),
        audit=replace(config.audit, threshold=config.threshold),
        seed=config.seed,
        embeddings=config.embeddings,
        deterministic=config.deterministic,
    )


def _check(config: SearchConfig) -> None:
    """Refuse what would be refused only after the search."""
    if config.model.url:
        raise ConfigError("a search trains the network itself, but model.url is a server that gives embeddings only; give the weights")
    parse_rule(config.threshold)
    for name in config.baselines:
        baseline_method(name, Path("mask.json"))
    if len(set(config.baselines)) != len(config.baselines):
        raise ConfigError(f"baselines={','.join(config.baselines)} names one twice; each may stand once")
    if any(rate <= 0 for rate in config.baseline_rates):
        raise ConfigError(f"baseline_rates={','.join(f'{rate:g}' for rate in config.baseline_rates)} must be above 0")


def _identity(config: SearchConfig, rows: Rows) -> dict[str, Any]:
    """What a search is: calls that agree in it go on with each other."""
    fixed = {name: value for name, value in plain(config).items() if name not in FREE}
    fixed["trainer"] = {name: value for name, value in fixed["trainer"].items() if name != "accelerator"}
    return {**fixed, "command": "search", "data_hash": rows.data.fingerprint}


@contextlib.contextmanager
def _storage(config: SearchConfig) -> Iterator[SearchConfig]:
    """The options with the place of the study; a temporary one is gone afterwards."""
    if config.storage != TEMPORARY:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="evenhand-search-") as folder:
        yield replace(config, storage=str(Path(folder) / "study.journal"))


def _searched(config: SearchConfig) -> SearchResult:
    """Run the search; activations of frozen layers are kept in its folder meanwhile."""
    kept = Path(str(config.out)) / "activations"
    with _display(config) as (report, watch):
        result = run_search(functools.partial(task_of, config), config, report=report, watch=watch)
    if not any(trial.state == "running" for trial in result.trials):
        shutil.rmtree(kept, ignore_errors=True)
    return result


Report = Callable[[str], None]
Watch = Callable[[Sequence[TrialRecord]], None]


@contextlib.contextmanager
def _display(config: SearchConfig) -> Iterator[tuple[Report, Watch]]:
    """Where lines about trials go: to the log, and with ``trainer.progress`` to a bar that shows the best so far."""
    if not config.trainer.progress:
        yield log.info, lambda trials: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("search", total=config.n_trials)

        def report(line: str) -> None:
            log.info("%s", line)
            best = line.rpartition("; ")[2]
            progress.update(bar, description=best if best.startswith("best ") or "Pareto" in best else "search")

        def watch(trials: Sequence[TrialRecord]) -> None:
            progress.update(bar, completed=sum(trial.state in ("complete", "pruned", "failed") for trial in trials))

        yield report, watch


def _finish(run: RunFolder, config: SearchConfig, result: SearchResult, record: dict[str, Any], encoder: Encoder) -> None:
    """Write what was found, test the finalists, write the report; ``done`` is set last."""
    write_mask(run.root / "mask.json", result.mask)
    kept = {trial.number: trial for trial in (*result.front, *result.finalists(config.finalists))}
    for number, trial in kept.items():
        write_mask(run.root / "masks" / f"trial-{number}.json", result.mask_of(trial))
    write_text(run.root / "trials.csv", trials_csv(result))
    tested: Mapping[str, Any] = {}
    if config.finalists:
        tested = judge_finalists(run, train_config(config), config, result.finalists(config.finalists))
    notes = [*result.notes, *encoder.notes, *tested.get("notes", ())]
    full = {**record, "tested": tested, "notes": notes, "versions": package_versions()}
    write_json(run.root / "search.json", full)
    write_search_page(full, run.root / "report.html")
    for note in notes:
        log.info("%s", note)
    best = {"trial": result.best.number, "values": list(result.best.values), "lr": result.mask.lr, "share": result.best.share}
    # with a baseline that failed it is not ended: the same command tries that one again
    failed = any("failed" in one for one in tested.get("runs", {}).values())
    ending = None if failed else _ending(config)
    run.update(status="done", ended=utc_now(), n_trials=config.n_trials, ending=ending, best=best, notes=notes)


def _ending(config: SearchConfig) -> dict[str, Any]:
    """The options that decide what a finished search shows, as JSON has them."""
    chosen = plain(config)
    found: dict[str, Any] = json.loads(json.dumps({name: chosen[name] for name in ENDING}))
    return found


def search_lines(run: RunFolder) -> list[str]:
    """What the terminal shows of a finished search: the chosen mask, and what came of the finalists on test rows."""
    record = json.loads((run.root / "search.json").read_text(encoding="utf-8"))
    lines = [str(record["summary"])]
    if record["tested"]:
        lines += table_lines(finalist_table(record))
    return lines

