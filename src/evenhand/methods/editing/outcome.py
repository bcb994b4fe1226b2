"""What training an edit gives, and the last published step: a disease head on edited embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from evenhand.config.editing import EditMethodConfig
from evenhand.config.methods import LinearProbeConfig
from evenhand.edits.artifact import FILE as EDIT_FILE
from evenhand.edits.artifact import encoder_names, save_edit
from evenhand.edits.base import Edit
from evenhand.edits.images import EditedImages
from evenhand.methods.base import Images, Result, Task
from evenhand.methods.baselines.linear_probe import LinearProbe
from evenhand.methods.editing.attribute_head import AttributeHead, heads_files
from evenhand.methods.editing.leakage import LeakageRows, measure_leakage, summary
from evenhand.methods.editing.setup import EditSetup

REPORT_FILE = "edit.json"


@dataclass(frozen=True)
class EditOutcome:
    """A trained edit.

    Attributes:
        edit: the edit, on the CPU.
        history: one JSON record an epoch or a round.
        report: JSON: attribute heads before, leakage after with its controls, visibility, images sent; see `edit_report`.
        notes: sentences for the report.
        heads: the attribute heads on unedited images that the edit was trained against.
    """

    edit: Edit
    history: tuple[Mapping[str, Any], ...]
    report: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    heads: tuple[AttributeHead, ...] = ()


def edit_report(task: Task, setup: EditSetup, edit: Edit, config: EditMethodConfig, n_bootstrap: int = 200) -> dict[str, Any]:
    """JSON: the attribute heads on unedited images, and fooled and hidden on the validation rows (`measure_leakage`).

    Without validation rows, or with ``measure=false``, leakage is null. L2 strengths were chosen on these rows too, so the
    numbers of a report that matters come from test rows (`evenhand edit measure`). Training and validation images are embedded
    once for every condition; ``controls=false`` leaves out no edit and noise.
    """
    report: dict[str, Any] = {"attributes": {head.attribute: head.report for head in setup.heads}, "leakage": None, "summary": []}
    if len(task.val) and config.measure:
        rows = LeakageRows(task.embed, task.train, task.val, task.val, task.kind, task.labels, task.classes)
        heads = {head.attribute: head for head in setup.heads}
        found = measure_leakage(
            rows, edit, setup.attributes, heads=heads, seed=task.seed, n_bootstrap=n_bootstrap, controls=config.controls, unseen=False
        )
        report |= {"leakage": {"split": "val", **found}, "summary": summary(found)}
    return report


def edit_facts(task: Task, outcome: EditOutcome, config: EditMethodConfig) -> dict[str, Any]:
    """What the edit's file says about where it comes from."""
    return {
        "method": config.name,
        "attributes": list(outcome.report.get("attributes", {})),
        "labels": list(task.labels),
        "encoder": head_facts(task)["model_hash"],
        "data": task.train.x.fingerprint,
        "seed": task.seed,
        "objective": config.objective,
        "visibility": (outcome.report.get("leakage") or {}).get("visibility", {}).get("edit"),
        "history": [dict(record) for record in outcome.history],
    }


def head_facts(task: Task) -> dict[str, Any]:
    """What the file of attribute heads says of the encoder that they read, and the seed."""
    known = None if task.embedder is None else encoder_names(task.embedder, task.train.x.shape)[0]
    return {"model_hash": known, "seed": task.seed}


def finish(task: Task, outcome: EditOutcome, config: EditMethodConfig) -> Result:
    """A linear probe on edited embeddings, with the edit and the heads that it was trained against among the artifacts.

    The predictor scores images as they come: its ``embed`` puts the edit on them first. Its stored state is that of a
    plain head; whoever restores it wraps the encoder with the edit stored beside it (`EDIT_FILE`).
    """
    def embed(images: Images) -> npt.NDArray[Any]:
        return task.embed(EditedImages(images, outcome.edit))

    result = LinearProbe(LinearProbeConfig(l2=config.l2_head)).fit(replace(task, embed=embed))
    report = {**outcome.report, "notes": list(outcome.notes)}
    artifacts = {
        EDIT_FILE: save_edit(outcome.edit, edit_facts(task, outcome, config)),
        **heads_files(outcome.heads, {}, head_facts(task)),
        REPORT_FILE: (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
    }
    history = (*outcome.history, *result.history)
    return Result(result.predictor, history=history, artifacts=artifacts, notes=(*outcome.notes, *result.notes))
