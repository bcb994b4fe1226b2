"""Assess and mitigate unequal performance across patient groups in medical-imaging models.

The table of contents; everything is imported on first use, so that ``import evenhand`` is instant and never loads torch.

Audit a table of scores::

    import evenhand as eh
    result = eh.audit(df, label="y", score="p", groups=["sex", "sex*age"])

Train on a prepared folder, as the command line does::

    run = eh.train(eh.compose("train", ["data=prepared", "method=group_dro", "trainer.max_epochs=20"]))

Train an image edit for an encoder behind an API, and a probe on edited images::

    edit = eh.edit_train(eh.compose("edit train", ["data=prepared", "model=https://host", "method=gezo", "out=runs/edit"]))
    run = eh.train(eh.compose("train", ["data=prepared", "model=https://host", "method=linear_probe", "edit=runs/edit"]))

Look at a prepared data set before anything is trained on it::

    eh.make_data_card("prepared", "card.html")

Search which parts of a network to fine-tune, and train with the mask that was found::

    eh.search_mask(eh.compose("search", ["data=prepared", "model=resnet18", "space=conv|norm", "out=runs/search"]))
    run = eh.train(eh.compose("train", ["data=prepared", "model=resnet18", "method=finetune", "mask=runs/search"]))

Patch a finished classifier with a small external set::

    patched = eh.make_patch_run(eh.compose("patch make", ["model=runs/finetune", "data=external", "method=bmft", "out=runs/patch"]))

Serve an encoder until it is stopped, and look up the command for a published one::

    eh.serve(eh.compose("serve", ["model=encoder.pth", "port=8080"]))
    eh.translate("python train_dne.py --epochs 25 --model vit_base_patch16 --dataset chexpert --disease Edema").command
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenhand.config.compose import compose as compose
    from evenhand.config.published import translate as translate
    from evenhand.data.sources.csv import prepare_csv as prepare_csv
    from evenhand.data.sources.describe import describe_source as describe_source
    from evenhand.data.sources.prepare import prepare_source as prepare_source
    from evenhand.data.sources.registry import list_sources as list_sources
    from evenhand.data.synthetic import make_cohort as make_cohort
    from evenhand.edits.artifact import load_edit as load_edit
    from evenhand.edits.files import apply_edit as apply_edit
    from evenhand.patches.artifact import apply_patch as apply_patch
    from evenhand.patches.artifact import revert_patch as revert_patch
    from evenhand.patches.storage import load_patch as load_patch
    from evenhand.runs.audit import audit as audit
    from evenhand.runs.card import make_data_card as make_data_card
    from evenhand.runs.compare import compare as compare
    from evenhand.runs.demo import demo as demo
    from evenhand.runs.edit import edit_head as edit_head
    from evenhand.runs.edit import edit_train as edit_train
    from evenhand.runs.edit_files import edit_apply as edit_apply
    from evenhand.runs.edit_files import edit_inspect as edit_inspect
    from evenhand.runs.edit_measure import edit_measure as edit_measure
    from evenhand.runs.evaluate import evaluate as evaluate
    from evenhand.runs.export import export as export
    from evenhand.runs.patch import make_patch_run as make_patch_run
    from evenhand.runs.patch_files import patch_apply as patch_apply
    from evenhand.runs.patch_files import patch_inspect as patch_inspect
    from evenhand.runs.patch_files import patch_revert as patch_revert
    from evenhand.runs.predict import predict as predict
    from evenhand.runs.search import search_mask as search_mask
    from evenhand.runs.train import train as train

__version__ = "0.1.0"

_FUNCTIONS = {
    "apply_edit": "evenhand.edits.files",
    "apply_patch": "evenhand.patches.artifact",
    "audit": "evenhand.runs.audit",
    "compare": "evenhand.runs.compare",
    "compose": "evenhand.config.compose",
    "demo": "evenhand.runs.demo",
    "describe_source": "evenhand.data.sources.describe",
    "edit_apply": "evenhand.runs.edit_files",
    "edit_head": "evenhand.runs.edit",
    "edit_inspect": "evenhand.runs.edit_files",
    "edit_measure": "evenhand.runs.edit_measure",
    "edit_train": "evenhand.runs.edit",
    "evaluate": "evenhand.runs.evaluate",
    "export": "evenhand.runs.export",
    "list_sources": "evenhand.data.sources.registry",
    "load_edit": "evenhand.edits.artifact",
    "load_patch": "evenhand.patches.storage",
    "make_cohort": "evenhand.data.synthetic",
    "make_data_card": "evenhand.runs.card",
    "make_patch_run": "evenhand.runs.patch",
    "patch_apply": "evenhand.runs.patch_files",
    "patch_inspect": "evenhand.runs.patch_files",
    "patch_revert": "evenhand.runs.patch_files",
    "predict": "evenhand.runs.predict",
    "prepare_csv": "evenhand.data.sources.csv",
    "prepare_source": "evenhand.data.sources.prepare",
    "revert_patch": "evenhand.patches.artifact",
    "search_mask": "evenhand.runs.search",
    "train": "evenhand.runs.train",
    "translate": "evenhand.config.published",
}
_ROOMS = (
    "config", "data", "edits", "errors", "evaluation", "methods", "metrics", "models", "patches", "report", "runs", "search", "serve",
    "training",
)

__all__ = [
    "apply_edit", "apply_patch", "audit", "compare", "compose", "config", "data", "demo", "describe_source", "edit_apply", "edit_head",
    "edit_inspect", "edit_measure", "edit_train", "edits", "errors", "evaluate", "evaluation", "export", "list_sources", "load_edit",
    "load_patch", "make_cohort", "make_data_card", "make_patch_run", "methods", "metrics", "models", "patch_apply", "patch_inspect",
    "patch_revert", "patches", "predict", "prepare_csv", "prepare_source", "report", "revert_patch", "runs", "search", "search_mask",
    "serve", "train", "training", "translate",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        value = getattr(import_module(_FUNCTIONS[name]), name)
    elif name in _ROOMS:
        value = import_module(f"evenhand.{name}")
    else:
        raise AttributeError(f"module 'evenhand' has no attribute '{name}'; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
