"""What a fitted method leaves in its run folder, and how a run is taken up again to score other images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from evenhand.config.patch_methods import train_options
from evenhand.config.schema import ModelConfig, TrainConfig
from evenhand.edits.artifact import StoredEdit
from evenhand.errors import CheckpointError, InputError
from evenhand.evaluation.evaluate import AuditResult, checked_cohort, evaluate
from evenhand.evaluation.predictions import make_predictions, write_predictions
from evenhand.evaluation.runs_table import stored_thresholds as thresholds_of
from evenhand.files import write_atomic, write_text
from evenhand.methods.base import Images, Predictor, Result, Task
from evenhand.methods.predictors import ModelPredictor, predictor_from_state
from evenhand.models import ImageClassifier, build_classifier
from evenhand.runs.edited import EDIT_RUN_SCHEMA, edit_of, edited_embed
from evenhand.runs.folder import SEARCH_RUN_SCHEMA, RunFolder, write_json
from evenhand.runs.task import Encoder, Rows, pick_device

PATCH_COMMAND = "patch make"
"""What run.json says of the run folder of a patch; its config.yaml has the options of that command."""


def score(predictor: Predictor, rows: Rows, splits: Sequence[str], seed: int) -> pd.DataFrame:
    """Predictions of the rows of some splits, in table order, as the contract's columns.

    Args:
        predictor: scores images.
        rows: what the run reads from its data set.
        splits: names of splits to score.
        seed: written beside every row.
    """
    chosen = np.flatnonzero(np.isin(rows.split.astype(str), list(splits)))
    groups = {name: item.take(chosen) for name, item in rows.groups.items()}
    scores, decisions = predictor.predict(rows.data.images(chosen), groups if predictor.needs_groups else None)
    table = rows.data.table.iloc[chosen]
    return make_predictions(
        image=list(table[rows.data.spec.image]),
        patient=list(table[rows.data.spec.patient]),
        split=list(rows.split[chosen]),
        seed=seed,
        y_true=rows.y[chosen],
        y_score=scores,
        labels=rows.labels,
        classes=tuple(rows.data.spec.classes),
        decisions=decisions,
        attributes=raw_attributes(table, rows.attributes),
        groups=groups,
    )


def rehearse(rows: Rows, config: TrainConfig) -> None:
    """Refuse before training what the audit of the trained model would refuse: options, groups, judged rows.

    Raises:
        InputError: what is wrong.
    """

    class Constant:
        needs_groups = False

        def predict(self, images: Images, groups: Any = None) -> tuple[npt.NDArray[np.float64], None]:
            n_columns = len(rows.data.spec.classes) if rows.kind == "multiclass" else len(rows.labels)
            return np.full((len(images), n_columns), 1 / max(n_columns, 2) if rows.kind == "multiclass" else 0.5), None

        def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
            return {}, {}

    checked_cohort(score(Constant(), rows, ("val", "test"), config.seed), thresholds=None, **audit_options(rows, config))


def audit_options(rows: Rows, config: TrainConfig) -> dict[str, Any]:
    """How a run's predictions are judged, for the rehearsal and for the audit alike."""
    return {
        "labels": rows.labels,
        "attributes": rows.attributes,
        "config": config.audit,
        "bins": dict(rows.data.spec.bins),
        "missing": config.data.missing,
        "classes": tuple(rows.data.spec.classes),
    }


def raw_attributes(table: pd.DataFrame, attributes: Sequence[str]) -> dict[str, list[Any]]:
    """The columns that attributes are made of, as they stand in the table; empty cells are None."""
    columns = dict.fromkeys(part for name in attributes for part in name.split("*") if part in table)
    return {name: [None if pd.isna(value) or str(value).strip() == "" else value for value in table[name]] for name in columns}


def judge(run: RunFolder, predictions: pd.DataFrame, rows: Rows, config: TrainConfig) -> AuditResult:
    """Audit a run's predictions and write predictions.parquet, audit.json, results.csv and report.html."""
    audit = evaluate(predictions, seed=config.seed, **audit_options(rows, config))
    edited = ", on edited images" if run.info.get("edit") else ""
    write_audit(run.root, audit, predictions, _facts(run), f"{config.method.name} on {rows.data.name}{edited}")
    return audit


def write_audit(root: Path, audit: AuditResult, predictions: pd.DataFrame, facts: Mapping[str, Any], title: str) -> None:
    """Write predictions.parquet, audit.json, results.csv and report.html into a folder, each atomically."""
    from evenhand.report.html import write_audit_report

    content = audit.to_json()
    content["provenance"] = {**content.get("provenance", {}), **facts}
    table = audit.to_table()
    for name in ("seed", "method", "data"):
        if facts.get(name) is not None and name not in table:
            table.insert(0, name, facts[name])
    write_predictions(predictions, root / "predictions.parquet")
    write_json(root / "audit.json", content)
    write_text(root / "results.csv", table.to_csv(index=False))
    write_audit_report(content, predictions, root / "report.html", title=title)


def _facts(run: RunFolder) -> dict[str, Any]:
    info = run.info
    names = ("method", "seed", "data_name", "data_hash", "split_hash", "model_hash", "n_images", "versions", "started")
    facts = {"data" if name == "data_name" else name: info.get(name) for name in names}
    return {**facts, "edit_hash": info["edit"]["hash"]} if info.get("edit") else facts


def save_predictor(run: RunFolder, result: Result, task: Task, encoder: Encoder) -> None:
    """Write the predictor as predictor.json and model.safetensors, and the history as metrics.jsonl."""
    from safetensors.torch import save

    meta, tensors = result.predictor.state()
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomic(run.root / "model.safetensors", content)
    write_json(run.root / "predictor.json", meta)
    lines = "".join(json.dumps(dict(record)) + "\n" for record in result.history)
    write_text(run.root / "metrics.jsonl", lines)
    if encoder.built:
        run.update(embedding=encoder.description())


def load_config(run: RunFolder) -> TrainConfig:
    """The resolved configuration of a finished run.

    Raises:
        InputError: the folder holds no finished run, or several (one a seed).
    """
    from evenhand.config import load_config as read_config

    if not run.root.is_dir():
        raise InputError(f"model={run.root} does not exist; give a run folder written by `evenhand train`")
    if not run.info:
        seeds = [folder.root.name for folder in run.seeds if folder.root != run.root]
        if seeds:
            raise InputError(f"model={run.root} holds {len(seeds)} runs; name one of them, for example model={run.root / seeds[0]}")
        raise InputError(f"model={run.root} holds no run (no run.json); give a run folder written by `evenhand train`")
    if run.info.get("schema") == EDIT_RUN_SCHEMA:
        raise InputError(
            f"model={run.root} holds an edit, which scores nothing by itself; train a head on it first, as evenhand train "
            f"edit={run.root} method=linear_probe, and give that run"
        )
    if run.info.get("schema") == SEARCH_RUN_SCHEMA:
        raise InputError(
            f"model={run.root} holds a search, which scores nothing by itself; train with its mask first, as evenhand train "
            f"method=finetune mask={run.root}, and give that run"
        )
    if not run.done:
        raise InputError(
            f"model={run.root} is a run that has not finished (status {run.info.get('status')}); run its train command again first"
        )
    if run.info.get("command") == PATCH_COMMAND:
        return train_options(read_config(run.root / "config.yaml", PATCH_COMMAND), ModelConfig(**run.info["network"]))
    config: TrainConfig = read_config(run.root / "config.yaml", "train")
    return config


@dataclass(frozen=True)
class Loaded:
    """A finished run taken up again: what scores, the configuration, the frozen encoder (built when first used), its edit."""

    predictor: Predictor
    config: TrainConfig
    encoder: Encoder
    edit: StoredEdit | None = None


def load_predictor(run: RunFolder, embeddings: Path | None = None, edit: StoredEdit | None = None) -> Loaded:
    """Restore a finished run's predictor; where the run has an edit, it is put on every image that is scored.

    Args:
        run: the run folder.
        embeddings: where embeddings of the images to be scored are cached; None keeps none.
        edit: another edit than the run's own.

    Raises:
        InputError: no finished run.
        CheckpointError: the encoder's weights, or the edit, are not the ones the run was trained with.
    """
    from safetensors.torch import load_file

    config, own = load_config(run), edit_of(run)
    used = edit or own
    device = pick_device("auto" if config.trainer.accelerator == "gpu" and not torch.cuda.is_available() else config.trainer.accelerator)
    meta = json.loads((run.root / "predictor.json").read_text())
    encoder = Encoder(config.model, config.seed, device, embeddings)
    if meta["type"] != "model":
        now = encoder.fingerprint
        if now != run.info["model_hash"]:
            raise CheckpointError(
                f"the encoder's weights are not those the run {run.root} was trained with (sha256 {now[:12]}, expected "
                f"{run.info['model_hash'][:12]}); put the same checkpoint at {config.model.checkpoint or config.model.name}"
            )
    architecture = config.model
    if meta["type"] == "model" and architecture.checkpoint and not Path(architecture.checkpoint).exists():
        # the run holds every weight of the tuned network: where it started from is not needed
        architecture = replace(architecture, checkpoint=None, pretrained=False, **run.info["architecture"])
    predictor = predictor_from_state(
        meta,
        load_file(run.root / "model.safetensors"),
        embed=encoder.embed if used is None else edited_embed(encoder, used),
        # every weight is in the run: those that the network started from are not read again
        build_model=lambda n: build_classifier(architecture, n, config.seed, from_scratch=True).with_edit(own.edit if own else None),
        device=device,
    )
    if edit is not None and isinstance(predictor, ModelPredictor) and isinstance(predictor.model, ImageClassifier):
        predictor.model.with_edit(edit.edit)
    return Loaded(predictor, config, encoder, used)


def stored_thresholds(run: RunFolder) -> dict[str, float]:
    """Label -> the threshold that was chosen on the run's validation rows."""
    return thresholds_of(run.root)


def positions(split: npt.NDArray[Any], wanted: str | None) -> npt.NDArray[np.int64]:
    """Rows of one split, or all rows.

    Raises:
        InputError: no row is in that split.
    """
    if wanted is None:
        return np.arange(len(split))
    rows = np.flatnonzero(split.astype(str) == wanted)
    if not len(rows):
        raise InputError(f"split={wanted} has no rows; the data set has {', '.join(sorted(set(split.astype(str))))}")
    return rows
