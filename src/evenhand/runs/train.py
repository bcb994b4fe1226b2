"""`evenhand train`: one run, or one a seed, from a prepared data set to an audited run folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evenhand.config import config_yaml
from evenhand.config.editing import GeZOConfig
from evenhand.config.methods import FinetuneConfig
from evenhand.config.schema import TrainConfig
from evenhand.edits.artifact import StoredEdit, check_grid, load_edit
from evenhand.errors import ConfigError, EvenhandError, InputError
from evenhand.files import write_atomic, write_text
from evenhand.methods.base import Result, Task
from evenhand.methods.registry import get_method
from evenhand.models.backbones import starts_random
from evenhand.models.masks import MASK_FILE
from evenhand.models.paid import PaidEmbedder
from evenhand.models.shared import Relay
from evenhand.runs.edited import EDIT_FILE, check_method, edit_record, keep_edit, open_edit, warn_of_other_encoder
from evenhand.runs.folder import RunFolder, package_versions, utc_now
from evenhand.runs.folder import identity as folder_identity
from evenhand.runs.loggers import Loggers, audit_numbers, check_loggers, told
from evenhand.runs.processes import follow_first, helped, told_by_first
from evenhand.runs.results import judge, rehearse, save_predictor, score
from evenhand.runs.task import Encoder, Rows, make_task, rank, read_rows

log = logging.getLogger(__name__)


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain containers."""
    return dict(asdict(config))


def train(config: TrainConfig) -> RunFolder:
    """Train any method, audit it on the test rows, and write a run folder.

    With ``config.seeds`` each seed becomes ``OUT/seed=k`` with training and validation rows re-drawn by patient and the
    test rows fixed. The same command continues an interrupted run and ends with the same numbers; a finished one is
    returned as it is.

    Args:
        config: see `evenhand.config.TrainConfig`; from text: ``evenhand.compose("train", ["data=…", "method=…"])``.

    Returns:
        The run folder; ``.seeds`` lists the run of each seed.

    Raises:
        InputError: the data set, the checkpoint or an option is wrong; nothing is written.
        RunError: training failed after it had started; the folder keeps its last complete state.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> run = eh.train(eh.compose("train", ["data=prepared/ham", "method=linear_probe"]))  # doctest: +SKIP
        >>> run.info["status"]  # doctest: +SKIP
        'done'
    """
    check_loggers(config.logger)
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.method.name}")
    if not config.seeds:
        return _train_one(config, out, config.seed, redraw=False)
    if len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds={config.seeds} names a seed twice; each may stand once")
    if (out / "run.json").exists() and RunFolder(out).info.get("schema") == "evenhand.run/1":
        raise InputError(f"out={out} holds a single run; give another out= for several seeds")
    _check_mask_of_seeds(config)
    runs = [_train_one(config, out / f"seed={seed}", seed, redraw=True) for seed in config.seeds]
    if rank() == 0:
        tables = [pd.read_csv(run.root / "results.csv") for run in runs]
        text = pd.concat(tables, ignore_index=True).to_csv(index=False)
        write_text(out / "results.csv", text)
    return RunFolder(out)


def _check_mask_of_seeds(config: TrainConfig) -> None:
    """Refuse a searched mask for random weights before the first of several seeds, not at the second.

    Raises:
        ConfigError: every seed would start from other random weights than the search did.
    """
    method = config.method
    if not isinstance(method, FinetuneConfig) or method.mask is None or method.mask_other_weights or len(config.seeds or ()) < 2:
        return
    path = Path(method.mask)
    path, known = path / MASK_FILE if path.is_dir() else path, None
    if not path.is_file() or path.suffix == ".npy" or not (method.from_scratch or starts_random(config.model)):
        return
    with contextlib.suppress(ValueError, AttributeError):  # a damaged file is refused where it is read
        known = json.loads(path.read_text(encoding="utf-8", errors="replace")).get("model_hash")
    if known:
        raise ConfigError(
            f"mask {path} was searched on one network's weights, but {config.model.name} starts from random weights here, other ones for "
            "every seed; search and train from model.checkpoint=… or model.pretrained=true, or say that other weights of this "
            "architecture are meant (method.mask_other_weights=true)"
        )


def train_fold(config: TrainConfig, fold: tuple[int, int]) -> RunFolder:
    """As `train` with one seed into ``config.out``, with (which, of how many) folds of the rows outside test as validation rows."""
    return _train_one(config, Path(str(config.out)), config.seed, redraw=False, fold=fold)


def _train_one(config: TrainConfig, out: Path, seed: int, redraw: bool, fold: tuple[int, int] | None = None) -> RunFolder:
    config = replace(config, seed=seed, seeds=None, out=str(out))
    check_method(config.method, config.edit, config.model.url)
    edit = open_edit(config.edit) if config.edit else None
    config, masks = _with_masks(config)
    if rank() > 0:
        with deterministic(config.deterministic):
            follow_first(config, lambda: _fit(config, read_rows(config.data, seed, redraw, fold), RunFolder(out), redraw, edit))
        return RunFolder(out)
    rows = read_rows(config.data, seed, redraw, fold)
    if edit is not None:
        check_grid(edit, rows.data.cache.shape)
    rehearse(rows, config)
    own = {"edit": edit.fingerprint if edit else None, **masks, **({"fold": list(fold)} if fold else {})}
    identity = {**plain(config), **own, "redraw": redraw, "data_hash": rows.data.fingerprint}
    return carried_out(out, identity, config, lambda run: _fit(config, rows, run, redraw, edit))


def _with_masks(config: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """The options with the file of a mask where its search's folder was given, and the sha256 of the files of masks that they name."""
    method = config.method
    if not isinstance(method, FinetuneConfig):
        return config, {}
    method = replace(method, mask=_mask_file("mask", method.mask), mask_like=_mask_file("method.mask_like", method.mask_like))
    files = {"mask": method.mask, "mask_like": method.mask_like}
    known = {name: Path(file) for name, file in files.items() if file is not None and Path(file).is_file()}
    return replace(config, method=method), {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in known.items()}


def _mask_file(name: str, value: str | None) -> str | None:
    """The file of a mask where its search's folder was given."""
    if value is None or not Path(value).is_dir():
        return value
    file = Path(value) / "mask.json"
    if not file.is_file():
        raise InputError(f"{name}={value} holds no mask.json; give the folder of a search that is finished, or a file")
    return str(file)


def carried_out(out: Path, identity: Mapping[str, Any], config: Any, fit: Callable[[RunFolder], None]) -> RunFolder:
    """The run of a configuration: begun or taken up, held against other processes, and fitted unless it is finished."""
    is_new = not (out / "run.json").exists()
    follow_server(RunFolder(out), identity, config)
    run = RunFolder.begin(out, identity, config_yaml(config))
    with run.locked():
        goes_further(run, identity, config)
        if told_by_first(config.trainer.accelerator, run.done):
            log.info("%s is finished already", run.root)
            return run
        with failures_noted(run, is_new):
            fit(run)
    return run


@contextlib.contextmanager
def failures_noted(run: RunFolder, is_new: bool) -> Iterator[None]:
    """Write into run.json why a run failed; a new one that was refused before it had anything to lose leaves nothing."""
    try:
        yield
    except InputError as error:
        if is_new and not run.started:
            shutil.rmtree(run.root)
        else:
            run.update(status="failed", error=error.summary, ended=utc_now())
        raise
    except EvenhandError as error:
        run.update(status="failed", error=error.summary, ended=utc_now())
        raise


def goes_further(run: RunFolder, identity: Mapping[str, Any], config: Any) -> None:
    """Open a finished search again where it is now allowed another number of images or rounds; its state is kept."""
    if not isinstance(config.method, GeZOConfig):
        return
    before = run.info["config"]["method"]
    if any(before.get(name) != getattr(config.method, name) for name in ("budget", "rounds")):
        _reconfigure(run, identity, config, status="running")


def follow_server(run: RunFolder, identity: Mapping[str, Any], config: Any) -> None:
    """Let an unfinished search go on where its server now has another address; its state belongs to the model, not to the address."""
    before = run.info.get("config", {}).get("model", {}).get("url")
    if not isinstance(config.method, GeZOConfig) or before in (None, config.model.url) or config.model.url is None or run.done:
        return
    if run.info["config_id"] != folder_identity({**identity, "model": {**identity["model"], "url": before}}):
        return  # more than the address differs, as `RunFolder.begin` will say
    log.info("the search in %s goes on at %s; it was begun at %s", run.root, config.model.url, before)
    with run.locked():
        _reconfigure(run, identity, config)


def _reconfigure(run: RunFolder, identity: Mapping[str, Any], config: Any, **facts: Any) -> None:
    """Write down other options for a run whose state they leave valid."""
    run.update(config_id=folder_identity(identity), config=dict(identity), **facts)
    write_text(run.root / "config.yaml", config_yaml(config))


def _fit(config: TrainConfig, rows: Rows, run: RunFolder, redraw: bool, edit: StoredEdit | None) -> None:
    """Fit, score validation and test rows, save everything; ``done`` is set last."""
    with helped(config) as relay, told(run, config.logger if rank() == 0 else ()) as loggers:
        _fit_told(config, rows, run, redraw, edit, loggers, relay)


def _fit_told(
    config: TrainConfig, rows: Rows, run: RunFolder, redraw: bool, edit: StoredEdit | None, loggers: Loggers, relay: Relay | None
) -> None:
    writes = rank() == 0
    store = run.store(read_only=not writes)
    paid = run.root / "checkpoints" / "paid"
    task, encoder = make_task(config, rows, config.seed, store, log.info, edit, paid, loggers.log, relay)
    method = get_method(config.method)
    if writes:
        run.update(status="running", seed=config.seed, method=config.method.name, **provenance(encoder, rows, redraw))
        if edit is not None:
            transfer = warn_of_other_encoder(edit, encoder)
            keep_edit(run, edit, {**edit_record(edit, task.train.x), "transfer": transfer})
    with deterministic(config.deterministic), released(task):
        result: Result = method.fit(task)
        predictions = score(result.predictor, rows, ("val", "test"), config.seed)
    if not writes:
        return
    save_predictor(run, result, task, encoder)
    for name, content in result.artifacts.items():
        write_atomic(run.root / name, content)
    if EDIT_FILE in result.artifacts:
        run.update(edit=edit_record(load_edit(run.root / EDIT_FILE), task.train.x))
    audit = judge(run, predictions, rows, config)
    loggers.finish(result.history, audit_numbers(audit.to_json(), config.audit.primary))
    notes = [*result.notes, *encoder.notes]
    for note in notes:
        log.info("%s", note)
    run.update(status="done", ended=utc_now(), notes=notes)


def provenance(encoder: Encoder, rows: Rows, redraw: bool) -> dict[str, Any]:
    """What a run was made from, for run.json: versions, data, splits, encoder, task."""
    return origin(rows, encoder.fingerprint, encoder.architecture, redraw)


def origin(rows: Rows, model_hash: str, architecture: Mapping[str, Any], redraw: bool) -> dict[str, Any]:
    """As `provenance`, of any model: its hash, and its name and input size."""
    counts = {name: int((rows.split == name).sum()) for name in ("train", "val", "test")}
    return {
        "versions": package_versions(),
        "data": str(rows.data.root.resolve()),
        "data_name": rows.data.name,
        "data_hash": rows.data.fingerprint,
        "split_hash": rows.split_hash,
        "split_redrawn": redraw,
        "n_images": counts,
        "image": dict(rows.data.description["image"]),
        "model_hash": model_hash,
        "architecture": dict(architecture),
        "kind": rows.kind,
        "labels": list(rows.labels),
        "classes": list(rows.data.spec.classes),
        "attributes": list(rows.attributes),
    }


@contextlib.contextmanager
def released(task: Task) -> Iterator[None]:
    """Let go of the log of paid answers afterwards, so that another process can go on with it."""
    try:
        yield
    finally:
        if isinstance(task.embedder, PaidEmbedder):
            task.embedder.close()


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Ask torch for deterministic operations, and put its setting back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
