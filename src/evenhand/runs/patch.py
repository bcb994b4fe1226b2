"""`evenhand patch make`: a patch for a finished classifier, and the test of the classifier before and after it.

    external set -> learnt from (70% of its patients) | thresholds and stopping (30%)     test rows: judged once, at the end

The run folder is that of the patched classifier, with the patch beside it; ``delivered/`` holds what the classifier scored before,
``comparisons/`` what else was made from the same rows, ``compare/`` all of them side by side, in pairs of patients.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evenhand.config import config_yaml
from evenhand.config.patch_methods import PatchComparisonConfig, PatchMakeConfig, PatchMethodConfig, train_options
from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError, InputError, MethodError
from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.files import write_atomic, write_text
from evenhand.methods.base import Images, Task
from evenhand.methods.patching.comparisons import make_comparison
from evenhand.methods.patching.method import make_patched
from evenhand.methods.patching.outcome import PatchOutcome
from evenhand.methods.patching.setting import check_options
from evenhand.methods.predictors import ModelPredictor
from evenhand.models import ImageClassifier
from evenhand.models.finished import look_like_probabilities
from evenhand.patches import Patch, load_patch, make_patch, save_patch
from evenhand.runs.edited import edit_record, keep_edit
from evenhand.runs.folder import FileStore, RunFolder, utc_now, write_json
from evenhand.runs.patch_record import compare_seeds, patch_lines, patch_record, write_page
from evenhand.runs.patch_start import Delivered, as_delivered, bias_attributes, external_rows, open_delivered, start_of
from evenhand.runs.results import PATCH_COMMAND, audit_options, rehearse, score, write_audit
from evenhand.runs.task import Rows, pick_device
from evenhand.runs.train import deterministic, failures_noted, origin, plain

__all__ = ["PATCH_FILE", "make_patch_run", "patch_lines"]

log = logging.getLogger(__name__)

PATCH_FILE = "patch.safetensors"
DELIVERED = "delivered"


def make_patch_run(config: PatchMakeConfig) -> RunFolder:
    """Make a patch for a finished classifier, and test the classifier before and after it on the same rows.

    The classifier is not changed. With ``config.seeds`` each seed becomes ``OUT/seed=k`` with the external set re-split by patient
    and the test rows fixed. The same command continues an interrupted run and ends with the same numbers.

    Args:
        config: see `evenhand.config.patch_methods.PatchMakeConfig`; from text:
            ``evenhand.compose("patch make", ["model=runs/finetune", "data=prepared/external", "method=bmft"])``.

    Returns:
        The run folder of the patched classifier, which predict, evaluate, export and serve take: patch.safetensors, patch.json
        (facts, cost, history), report.html (the audit), patch.html (the patch), compare/report.html (before and after).

    Raises:
        ConfigError: an option does not suit, or ``model=`` is missing.
        CheckpointError: the checkpoint is damaged, does not fit, or has no head of known name.
        InputError: the external set lacks a cell of groups and label, or labels are not the classifier's; nothing is written.
        MethodError: there is one group, or the task does not suit the method.
        RunError: it failed after it had started; the folder keeps its last complete state.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> run = eh.make_patch_run(eh.compose("patch make", ["model=runs/finetune", "data=prepared/external"]))  # doctest: +SKIP
        >>> (run.root / "patch.safetensors").exists()  # doctest: +SKIP
        True
    """
    _check(config)
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-patch-{config.method.name}")
    if not config.seeds:
        return _make_one(config, out, config.seed)
    if len(set(config.seeds)) != len(config.seeds):
        raise InputError(f"seeds={config.seeds} names a seed twice; each may stand once")
    if (out / "run.json").exists():
        raise InputError(f"out={out} holds a single run; give another out= for several seeds")
    runs = [_make_one(config, out / f"seed={seed}", seed) for seed in config.seeds]
    write_text(out / "results.csv", pd.concat([_results(run) for run in runs], ignore_index=True).to_csv(index=False))
    compare_seeds(out, runs, config)
    return RunFolder(out)


def _check(config: PatchMakeConfig) -> None:
    """Refuse what needs no data to be wrong."""
    if not isinstance(config.method, PatchMethodConfig):
        raise ConfigError(f"method={config.method.name} patches no finished classifier; use method=bmft, swift or comparison")
    if not isinstance(config.method, PatchComparisonConfig):
        check_options(config.method)
    if len(set(config.comparisons)) != len(config.comparisons):
        raise ConfigError(f"comparisons={','.join(config.comparisons)} names one twice; each may stand once")
    for kind in config.comparisons:
        comparison_config(config.method, kind)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"a patch is made in one process, but {os.environ['WORLD_SIZE']} were started; start it without torchrun")


def comparison_config(method: PatchMethodConfig, kind: str) -> PatchComparisonConfig:
    """A comparison with the options of a method: the same bias term, epochs and rates.

    Raises:
        ConfigError: it is not known.
    """
    known = PatchComparisonConfig.__dataclass_fields__["kind"].metadata["choices"]
    if kind not in known:
        raise ConfigError(f"comparisons={kind} is not known; known are: {', '.join(known)}")
    options = {item.name: getattr(method, item.name) for item in fields(PatchMethodConfig) if item.name != "name"}
    return PatchComparisonConfig(**options, kind=kind)


def _make_one(config: PatchMakeConfig, out: Path, seed: int) -> RunFolder:
    config = replace(config, seed=seed, seeds=None, out=str(out))
    start = start_of(config)
    if start is not None and not start.info:
        raise InputError(f"model={start.root} holds several runs, one a seed; name one of them, as model={start.seeds[0].root}")
    rows, notes = external_rows(config, seed, start)
    rehearse(rows, train_options(config, config.model))
    delivered = open_delivered(config, rows, start)
    own = {"command": PATCH_COMMAND, "data_hash": rows.data.fingerprint, "base_hash": delivered.hash}
    is_new = not (out / "run.json").exists()
    run = RunFolder.begin(out, {**plain(config), **own}, config_yaml(config))
    with run.locked():
        if run.done:
            log.info("%s is finished already", run.root)
            return run
        with failures_noted(run, is_new), deterministic(config.deterministic):
            _Making(config, rows, delivered, run, notes).run_all()
    return run


@dataclass
class _Making:
    """One run: score what was delivered, make the patch and the comparisons, judge and compare them."""

    config: PatchMakeConfig
    rows: Rows
    delivered: Delivered
    run: RunFolder
    notes: tuple[str, ...]

    def run_all(self) -> None:
        """Everything, in an order that a kill cannot spoil; ``done`` is set last."""
        config, run = self.config, self.run
        about = {"name": self.delivered.model.name, "input_size": list(self.delivered.model.input_size)}
        facts = {
            **origin(self.rows, self.delivered.hash, about, True), "command": PATCH_COMMAND, "network": plain(self.delivered.network),
            "source": self.delivered.source,
        }
        run.update(status="running", seed=config.seed, method=config.method.name, **facts)
        if self.delivered.edit is not None:
            keep_edit(run, self.delivered.edit, edit_record(self.delivered.edit))
        if start_of(config) is None:
            self._warn_of_probabilities()
        self._judge(self._predictor(self.delivered.model), run.root / DELIVERED, DELIVERED)
        outcome = self._made(config.method, "")
        run.store().put("outcome", {"made": True})
        self._judge(self._predictor(outcome.model), run.root, config.method.name)
        patch = self._save(outcome)
        for kind in config.comparisons:
            self._compare_with(kind)
        notes = [*self.notes, *self.delivered.notes, *outcome.notes]
        record = patch_record(run, patch, self._patched_state(outcome), outcome, config, notes)
        write_json(run.root / "patch.json", record)
        compare_seeds(run.root, [run], config)
        write_page(run, record)
        for note in record["notes"]:
            log.info("%s", note)
        hashes = {name: record["patch"][name] for name in ("base_hash", "result_hash", "data_hash")}
        run.update(status="done", ended=utc_now(), notes=record["notes"], patch=hashes)

    def _made(self, method: PatchMethodConfig, store: str) -> PatchOutcome:
        """A copy of the classifier, patched."""
        model = copy.deepcopy(self.delivered.model).to(self.device)
        make: Any = make_comparison if isinstance(method, PatchComparisonConfig) else make_patched
        outcome: PatchOutcome = make(self._task(store), model, method)
        return self._rounded(outcome)

    def _rounded(self, outcome: PatchOutcome) -> PatchOutcome:
        """The outcome as it will be in a file of fewer bits a number, where the classifier came in one."""
        if not self.delivered.dtypes:
            return outcome
        dtypes = {f"network.{name}": dtype for name, dtype in self.delivered.dtypes.items()}
        kept = {name: value.to(dtypes[name]).to(value.dtype) if name in dtypes else value for name, value in outcome.after.items()}
        outcome.model.load_state_dict(kept)
        return replace(outcome, after=kept)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return pick_device(self.config.accelerator)

    def _task(self, store: str) -> Task:
        """The external set as a method sees it: learnt from, and for thresholds and stopping."""
        config, rows = self.config, self.rows

        def embed(images: Images) -> Any:
            raise MethodError("a patch reads embeddings of the classifier itself, which changes; the run has no frozen encoder")

        def build(n_outputs: int, /, *, from_scratch: bool = False) -> torch.nn.Module:
            return copy.deepcopy(self.delivered.model)

        first = bias_attributes(rows, config.method)
        return Task(
            train=rows.take("train"), val=rows.take("val"), kind=rows.kind,  # type: ignore[arg-type]
            labels=rows.labels, classes=tuple(rows.data.spec.classes),
            attributes=(*first, *(name for name in rows.attributes if name not in first)), seed=config.seed, device=self.device,
            store=FileStore(self.run.root / "checkpoints" / store) if store else self.run.store(), embed=embed, build_model=build,
            trainer=TrainerConfig(accelerator=config.accelerator, progress=False), batch_size=config.data.batch_size,
            augment=config.data.augment, report=log.info,
        )

    def _predictor(self, model: Any) -> ModelPredictor:
        kind: Any = self.rows.kind
        n_outputs = len(self.rows.data.spec.classes) or len(self.rows.labels)
        return ModelPredictor(model.to(self.device).eval(), kind, n_outputs, self.config.data.batch_size, self.device)

    def _judge(self, predictor: ModelPredictor, folder: Path, name: str) -> AuditResult:
        """Audit one classifier at thresholds chosen on the external set's validation rows."""
        predictions = score(predictor, self.rows, ("val", "test"), self.config.seed)
        audit = evaluate(predictions, seed=self.config.seed, **audit_options(self.rows, train_options(self.config, self.delivered.network)))
        info = self.run.info
        names = ("seed", "data_hash", "split_hash", "model_hash", "n_images", "versions", "started")
        facts = {"method": name, "data": info["data_name"], **{key: info.get(key) for key in names}}
        folder.mkdir(parents=True, exist_ok=True)
        write_audit(folder, audit, predictions, facts, f"{name} on {self.rows.data.name}")
        return audit

    def _save(self, outcome: PatchOutcome) -> Patch:
        """The patch, and the patched network as the run's predictor."""
        from safetensors.torch import save

        run, method = self.run, self.config.method
        dtypes = {f"network.{name}": dtype for name, dtype in self.delivered.dtypes.items()}
        audit = json.loads((run.root / "audit.json").read_text(encoding="utf-8"))["labels"]
        thresholds = {name: item["threshold"]["value"] for name, item in audit.items() if item["threshold"]["value"] is not None}
        history = {
            "method": plain(method), "seed": self.config.seed, "source": Path(self.delivered.source).name, "data": self.rows.data.name,
            "external": {name: int((self.rows.split == name).sum()) for name in ("train", "val")}, "attributes": list(self.rows.attributes),
            "thresholds": thresholds, "cost": outcome.cost.record(), "mask": dict(outcome.mask), "notes": list(outcome.notes),
        }
        patch = make_patch(
            as_delivered(dict(outcome.before), dtypes), as_delivered(dict(outcome.after), dtypes),
            data_hash=self.rows.data.fingerprint, history=json.loads(json.dumps(history)),
        )
        save_patch(run.root / PATCH_FILE, patch)
        meta, tensors = self._predictor(outcome.model).state()
        # in the types of the delivered file, so that taking the patch off gives its very bits
        tensors = as_delivered(tensors, dtypes)
        write_atomic(run.root / "model.safetensors", save({name: value.contiguous() for name, value in tensors.items()}))
        write_json(run.root / "predictor.json", meta)
        write_text(run.root / "metrics.jsonl", "".join(json.dumps(dict(record)) + "\n" for record in outcome.history))
        return load_patch(run.root / PATCH_FILE)

    def _patched_state(self, outcome: PatchOutcome) -> dict[str, torch.Tensor]:
        dtypes = {f"network.{name}": dtype for name, dtype in self.delivered.dtypes.items()}
        return as_delivered(dict(outcome.after), dtypes)

    def _compare_with(self, kind: str) -> None:
        """One comparison, unless it was made before a kill; one that these rows do not allow is told of, and ends nothing."""
        folder = self.run.root / "comparisons" / kind
        if (folder / "comparison.json").exists():
            return
        log.info("comparison: %s", kind)
        try:
            outcome = self._made(comparison_config(self.config.method, kind), f"comparisons/{kind}")
        except InputError as error:
            log.warning("comparison %s: %s", kind, error.summary)
            self.notes = (*self.notes, f"comparison {kind} could not be made: {error.summary}")
            write_json(folder / "comparison.json", {"kind": kind, "failed": error.summary})
            return
        self._judge(self._predictor(outcome.model), folder, kind)
        write_json(folder / "comparison.json", {"kind": kind, "cost": outcome.cost.record(), "notes": list(outcome.notes)})

    def _warn_of_probabilities(self) -> None:
        """Say it where the classifier's outputs look as if a sigmoid or softmax had been applied already."""
        held = self.rows.take("val" if (self.rows.split == "val").any() else "train")
        model: ImageClassifier = self.delivered.model.to(self.device)
        with torch.no_grad():
            logits = model(held.x.batch(slice(0, min(len(held), 64))).to(self.device))
        if look_like_probabilities(logits, self.rows.kind):
            text = (
                "every output of the classifier lies in [0, 1], as if a sigmoid or softmax had been applied already; here its outputs are "
                "logits, so scores are squeezed: give a checkpoint without that layer"
            )
            log.warning("%s", text)
            self.notes = (*self.notes, text)


def _results(run: RunFolder) -> pd.DataFrame:
    """results.csv of the patch and of all that is beside it."""
    made = {path.parent.name: path.parent for path in sorted((run.root / "comparisons").glob("*/results.csv"))}
    folders: Mapping[str, Path] = {DELIVERED: run.root / DELIVERED, "patched": run.root, **made}
    tables = []
    for name, folder in folders.items():
        table = pd.read_csv(folder / "results.csv")
        table.insert(0, "classifier", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
