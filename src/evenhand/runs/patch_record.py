"""What is told of a patch that was made: patch.json, the page, the lines on the terminal, and the comparison before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evenhand.config.patch_methods import COMPARISONS, PatchMakeConfig
from evenhand.data.datasets import PreparedData
from evenhand.errors import EvenhandError
from evenhand.evaluation.compare import compare as compare_tables
from evenhand.evaluation.reading import read_predictions
from evenhand.evaluation.runs_table import stored_thresholds
from evenhand.files import write_text
from evenhand.methods.patching.outcome import PatchOutcome
from evenhand.patches import Patch, patch_facts
from evenhand.report.html import write_compare_report
from evenhand.report.leakage_table import table_lines
from evenhand.report.patch_made_page import before_after_table, write_made_page
from evenhand.report.patch_page import percent, size_words
from evenhand.runs.folder import RunFolder, package_versions

PATCH_SCHEMA = "evenhand.patch_run/1"
PATCHED, DELIVERED = "patched", "delivered"


def patch_record(
    run: RunFolder, patch: Patch, state: Mapping[str, Tensor], outcome: PatchOutcome, config: PatchMakeConfig, notes: Sequence[str]
) -> dict[str, Any]:
    """patch.json: what the patch is, how it was made, what it took.

    Args:
        run: its folder, with patch.safetensors.
        patch: as stored there.
        state: of the patched network.
        outcome: of the method.
        config: the options.
        notes: sentences for the reader.
    """
    found = patch_facts(patch, state, n_bytes=(run.root / "patch.safetensors").stat().st_size)
    info = run.info
    return {
        "schema": PATCH_SCHEMA,
        "method": config.method.name,
        "patch": {"base_hash": patch.base_hash, "result_hash": patch.result_hash, "data_hash": patch.data_hash, **found.to_json()},
        "mask": dict(outcome.mask),
        "cost": outcome.cost.record(),
        "history": [dict(item) for item in outcome.history],
        "classifier": {"source": Path(info["source"]).name, "name": info["architecture"]["name"]},
        "data": {"name": info["data_name"], "hash": info["data_hash"], "n_images": info["n_images"]},
        "attributes": info["attributes"],
        "comparisons": list(config.comparisons),
        "seed": config.seed,
        "notes": list(dict.fromkeys(notes)),
        "versions": package_versions(),
    }


def compare_seeds(out: Path, runs: Sequence[RunFolder], config: PatchMakeConfig) -> dict[str, Any]:
    """Compare the classifier before and after, and what was made beside it: compare/report.html, .json and .csv.

    Args:
        out: where ``compare/`` goes.
        runs: the run of each seed.
        config: the options.
    """
    made = [kind for kind in config.comparisons if all((_folder(run, kind) / "audit.json").exists() for run in runs)]
    names = [DELIVERED, PATCHED, *made]
    folders = {name: [_folder(run, name) for run in runs] for name in names}
    data = PreparedData.open(config.data.path)
    info = runs[0].info
    thresholds = {name: [stored_thresholds(folder) for folder in places] for name, places in folders.items()}
    result = compare_tables(
        [(name, [read_predictions(folder) for folder in places]) for name, places in folders.items()],
        labels=list(info["labels"]), classes=list(info["classes"]), attributes=list(info["attributes"]), bins=dict(data.spec.bins),
        missing=config.data.missing, config=config.audit, seed=config.seed, thresholds={} if info["classes"] else thresholds,
    )
    page = out / "compare" / "report.html"
    write_text(page.with_suffix(".json"), result.dumps())
    write_text(page.with_suffix(".csv"), result.to_table().to_csv(index=False, lineterminator="\n"))
    found: dict[str, Any] = result.to_json()
    write_compare_report(found, page, title="A classifier as delivered and patched")
    return found


def _folder(run: RunFolder, name: str) -> Path:
    if name == PATCHED:
        return run.root
    return run.root / DELIVERED if name == DELIVERED else run.root / "comparisons" / name


def write_page(run: RunFolder, record: Mapping[str, Any]) -> None:
    """patch.html: what the patch changes, what it did on test rows, what it took."""
    compared = json.loads((run.root / "compare" / "report.json").read_text(encoding="utf-8"))
    costs = {}
    for kind in record["comparisons"]:
        said = json.loads((run.root / "comparisons" / kind / "comparison.json").read_text(encoding="utf-8"))
        if "failed" not in said:
            costs[kind] = {**said, "means": COMPARISONS[kind]}
    write_made_page({**record, "beside": costs}, compared, run.root / "patch.html")


def patch_lines(run: RunFolder) -> list[str]:
    """What the terminal shows of a finished patch: before and after on test rows, and how large the patch is."""
    place = run.root / "compare" / "report.json"
    if not place.exists():
        raise EvenhandError(f"{run.root} holds no finished patch; run its command again")
    compared = json.loads(place.read_text(encoding="utf-8"))
    lines = table_lines(before_after_table(compared))
    sizes = [json.loads((one.root / "patch.json").read_text(encoding="utf-8"))["patch"] for one in run.seeds]
    for one, size in zip(run.seeds, sizes, strict=True):
        what = f"{size['changed']} of {size['n']} entries ({percent(size['share'])}), {size_words(size['bytes'])}"
        text = f"patch: {what}; undo: evenhand patch revert model={one.root}"
        lines.append(text if len(sizes) == 1 else f"{one.root.name} {text}")
    return lines
