"""`evenhand evaluate`: finished runs on further named data sets, beside their own test rows: what is left elsewhere, and for whom."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evenhand.config.schema import AuditConfig, DataConfig, EvaluateConfig, TrainConfig
from evenhand.data.datasets import PreparedData
from evenhand.edits.artifact import check_grid
from evenhand.errors import InputError
from evenhand.evaluation.compare import CompareResult
from evenhand.evaluation.compare import compare as compare_tables
from evenhand.evaluation.evaluate import AuditResult
from evenhand.evaluation.evaluate import evaluate as audit_predictions
from evenhand.evaluation.predictions import GROUP_SUFFIX
from evenhand.evaluation.transfer import OWN, JudgedSet, TransferResult, transfer
from evenhand.files import write_text
from evenhand.runs.folder import RunFolder, package_versions
from evenhand.runs.results import load_config, load_predictor, positions, score, stored_thresholds, write_audit
from evenhand.runs.task import Rows, embeddings_folder, read_rows

CHANGES = ("auc", "tpr", "fpr")


@dataclass(frozen=True)
class _Scored:
    """One run (of one seed) on one set: its predictions, the audit of these, and what the set is called."""

    run: RunFolder
    predictions: pd.DataFrame
    audit: AuditResult
    data: str
    notes: tuple[str, ...] = ()


def evaluate(config: EvaluateConfig) -> Path:
    """Score and audit runs on named data sets at each run's stored threshold, beside the rows that count as in-distribution.

    In-distribution are the first run's own test rows (or those of ``home``); a run that was judged on other rows, such as
    one that was patched on an external set, is scored on these too. Every set may have attributes of its own.

    Args:
        config: ``model`` is a run folder (``models`` names several, the first is the reference), ``sets`` maps names to
            prepared data sets.

    Returns:
        The output folder: report.html, transfer.json and transfer.csv (every number with its drop), results.csv (every
        audit as one table, the own test rows first), one folder a set (then a run, then a seed) with predictions, audit and
        report, and with several runs a paired comparison of them on every set.

    Raises:
        InputError: no run or no set named, a label that a set does not have, no finished run.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.evaluate(eh.compose("evaluate", ["model=runs/probe", "sets.pad=prepared/pad"]))  # doctest: +SKIP
    """
    runs = _runs(config)
    first = next(iter(runs.values()))[0]
    known = [*first.info["attributes"]]
    for folder in config.sets.values():
        data = PreparedData.open(folder)
        _labels_of(data, first)
        known += data.spec.attributes
    unknown = next((name for name in config.audit.reference if name not in known), None)
    if unknown is not None:
        raise InputError(f"audit.reference names the attribute '{unknown}', which no set has; they have {', '.join(dict.fromkeys(known))}")
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-evaluate")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"out={out} is not empty; give an empty or a new folder")
    scored: dict[str, dict[str, list[_Scored]]] = {}
    for name, seeds in runs.items():
        scored[name] = {OWN: [_at_home(run, first, config) for run in seeds]}
        own = scored[name][OWN][0].predictions
        for place, folder in config.sets.items():
            scored[name][place] = [_elsewhere(run, PreparedData.open(folder), config, own) for run in seeds]
            for one in scored[name][place]:
                parts = [place, *([name] if len(runs) > 1 else []), *([one.run.root.name] if len(seeds) > 1 else [])]
                _write_one(out.joinpath(*parts), one, place)
    compared = {place: _compared(scored, place, config) for place in (OWN, *config.sets)} if len(runs) > 1 else {}
    for place, comparison in compared.items():
        _write_comparison(out / place / "compare", comparison, place)
    tables = [_table(name, place, one) for name, places in scored.items() for place, seeds in places.items() for one in seeds]
    write_text(out / "results.csv", pd.concat(tables, ignore_index=True).to_csv(index=False))
    _write_transfer(out, _transferred(scored, config, compared))
    return out


def _runs(config: EvaluateConfig) -> dict[str, list[RunFolder]]:
    """Name -> the runs of each seed, all finished and of the same labels."""
    given = {**({Path(config.model).resolve().name: config.model} if config.model else {}), **config.models}
    if not given:
        raise InputError("no run was named; give model=RUN, or several as models.NAME=RUN")
    if config.model and Path(config.model).resolve().name in config.models:
        raise InputError(f"two runs are named '{Path(config.model).resolve().name}'; give both as models.NAME=RUN with other names")
    if not config.sets:
        raise InputError("no data set was named; give at least one as sets.NAME=FOLDER")
    wrong = next((name for name in config.sets if name == OWN or not re.fullmatch(r"[\w .+-]+", name)), None)
    if wrong is not None:
        rule = "that is the own test rows' name" if wrong == OWN else "a name has letters, digits, spaces and ._+- only"
        raise InputError(f"a set cannot be named '{wrong}': {rule}")
    runs = {name: RunFolder(folder).seeds for name, folder in given.items()}
    labels = runs[next(iter(runs))][0].info.get("labels")
    for name, seeds in runs.items():
        for run in seeds:
            if not run.done:
                raise InputError(f"{name}={run.root} holds no finished run; give a run folder written by `evenhand train`")
            if run.info["labels"] != labels:
                raise InputError(
                    f"{name}={run.root} predicts {', '.join(run.info['labels'])}, but the first run {', '.join(labels or ())}; "
                    "runs side by side need the same labels"
                )
    return runs


def _at_home(run: RunFolder, first: RunFolder, config: EvaluateConfig) -> _Scored:
    """A run on the rows that count as in-distribution: as its folder has them, or scored anew where these are other rows."""
    trained = load_config(run)
    attributes = list(first.info["attributes"])
    if config.home is None and (predictions := _stored(run, first, attributes)) is not None:
        audit = audit_predictions(
            predictions, labels=run.info["labels"], attributes=attributes, config=_known(config.audit, attributes), seed=trained.seed,
            thresholds=stored_thresholds(run), missing=trained.data.missing, classes=tuple(run.info["classes"]),
        )
        return _Scored(run, predictions, audit, str(run.info["data_name"]))
    data = _home_data(first, config)
    known = {part for name in data.spec.attributes for part in name.split("*")}
    asked = None if config.home else attributes
    rows = _rows_of(data, run, trained, "test", [name for name in asked or data.spec.attributes if set(name.split("*")) <= known])
    return _scored(run, rows, config.audit)


def _stored(run: RunFolder, first: RunFolder, attributes: Sequence[str]) -> pd.DataFrame | None:
    """The run's own test rows, where they are the first run's with the same groups; else None."""
    if not all((one.root / "predictions.parquet").is_file() for one in (run, first)):
        # a patched run whose own data set was not at hand
        return None
    table, reference = (pd.read_parquet(one.root / "predictions.parquet") for one in (run, first))
    table, reference = table[table["split"] == "test"], reference[reference["split"] == "test"]
    same = run.info["data_hash"] == first.info["data_hash"] and sorted(table["image"]) == sorted(reference["image"])
    complete = all(f"{name}{GROUP_SUFFIX}" in table.columns for name in attributes)
    return table.reset_index(drop=True) if same and complete else None


def _home_data(first: RunFolder, config: EvaluateConfig) -> PreparedData:
    if config.home is not None:
        data = PreparedData.open(config.home)
        _labels_of(data, first)
        return data
    folder = Path(first.info["data"])
    if not folder.is_dir():
        raise InputError(f"the first run's data set is not at {folder} any more, and another run has to be scored on it; give it as home=")
    data = PreparedData.open(folder)
    if data.fingerprint != first.info["data_hash"]:
        raise InputError(f"{folder} is not the data set any more that the first run was judged on; give the right one as home=")
    return data


def _elsewhere(run: RunFolder, data: PreparedData, config: EvaluateConfig, own: pd.DataFrame) -> _Scored:
    """A run on a further set, with what a reader must know about the two sets' rows."""
    rows = _rows_of(data, run, load_config(run), config.split)
    notes = []
    chosen = rows.data.table.iloc[np.flatnonzero(rows.split == "test")]
    if data.fingerprint == run.info["data_hash"] and (run.root / "predictions.parquet").is_file():
        tested = pd.read_parquet(run.root / "predictions.parquet")
        seen = ~chosen[data.spec.image].astype(str).isin(set(tested.loc[tested["split"] == "test", "image"].astype(str)))
        notes.append(
            f"this is the data set that the run was trained on; {int(seen.sum())} of the {len(chosen)} rows were not among its test rows"
        )
    both = len(set(chosen[data.spec.patient].astype(str)) & set(own["patient_id"].astype(str)))
    if both:
        notes.append(
            f"{both} patient ids are among the own test rows too; if these are the same people, the intervals of drops, made for "
            "different patients, do not hold"
        )
    return _scored(run, rows, config.audit, tuple(notes))


def _scored(run: RunFolder, rows: Rows, audit: AuditConfig, notes: tuple[str, ...] = ()) -> _Scored:
    loaded = load_predictor(run, embeddings_folder(rows.data.root))
    trained = loaded.config
    if loaded.edit is not None:
        check_grid(loaded.edit, rows.data.cache.shape)
    predictions = score(loaded.predictor, rows, ("test",), trained.seed)
    found = audit_predictions(
        predictions, labels=rows.labels, attributes=rows.attributes, config=_known(audit, rows.attributes), seed=trained.seed,
        thresholds=stored_thresholds(run), bins=dict(rows.data.spec.bins), missing=trained.data.missing,
        classes=tuple(rows.data.spec.classes),
    )
    return _Scored(run, predictions, found, rows.data.name, notes)


def _known(audit: AuditConfig, attributes: Sequence[str]) -> AuditConfig:
    """The options of one set's audit: reference groups of the attributes that it has."""
    return replace(audit, reference={name: group for name, group in audit.reference.items() if name in attributes})


def _labels_of(data: PreparedData, run: RunFolder) -> list[str]:
    """The run's labels, which the set must have.

    Raises:
        InputError: one is absent.
    """
    labels: list[str] = run.info["labels"]
    absent = [label for label in labels if label not in data.spec.labels]
    if absent:
        raise InputError(f"{data.root} has no label '{absent[0]}', which the run predicts; prepare it with --label {','.join(labels)}")
    if list(run.info["classes"]) and list(data.spec.classes) != list(run.info["classes"]):
        raise InputError(
            f"{data.root} has the classes {', '.join(data.spec.classes)}, but the run predicts {', '.join(run.info['classes'])}; "
            "prepare it with the same classes"
        )
    return labels


def _rows_of(data: PreparedData, run: RunFolder, trained: TrainConfig, split: str | None, attributes: list[str] | None = None) -> Rows:
    """All asked rows of a further set count as test rows."""
    wanted = DataConfig(path=str(data.root), labels=_labels_of(data, run), attributes=attributes, missing=trained.data.missing)
    rows = read_rows(wanted, trained.seed, redraw=False, to_train=False)
    chosen = np.full(len(rows.split), "other", dtype=object)
    chosen[positions(np.asarray(data.split, dtype=object), split)] = "test"
    chosen[rows.split == "dropped"] = "dropped"
    return Rows(data, rows.labels, rows.attributes, rows.y, rows.groups, chosen)


def _write_one(target: Path, one: _Scored, place: str) -> None:
    info = one.run.info
    facts = {"method": info["method"], "seed": info["seed"], "data": one.data, "model_hash": info["model_hash"],
             "trained_on": info["data_name"], "versions": package_versions()}
    if info.get("edit"):
        facts["edit_hash"] = info["edit"]["hash"]
    target.mkdir(parents=True, exist_ok=True)
    write_audit(target, one.audit, one.predictions, facts, f"{info['method']} on {place}")


def _table(name: str, place: str, one: _Scored) -> pd.DataFrame:
    table = one.audit.to_table()
    for position, (column, value) in enumerate((("set", place), ("run", name), ("seed", one.run.info["seed"]))):
        table.insert(position, column, value)
    return table


def _compared(
    scored: Mapping[str, Mapping[str, Sequence[_Scored]]], place: str, config: EvaluateConfig, at_least: int = 2
) -> CompareResult:
    """Runs on one set: means over seeds, and where there are several runs paired changes."""
    first = next(iter(scored.values()))[place][0]
    thresholds = {name: [stored_thresholds(one.run) for one in places[place]] for name, places in scored.items()}
    classes = tuple(first.run.info["classes"])
    blocks = first.audit.to_json()["labels"].values()
    attributes = list(dict.fromkeys(attribute for block in blocks for attribute in block["attributes"]))
    return compare_tables(
        [(name, [one.predictions for one in places[place]]) for name, places in scored.items()],
        labels=first.run.info["labels"],
        classes=classes,
        attributes=attributes,
        missing=load_config(first.run).data.missing,
        config=_known(config.audit, attributes),
        seed=first.run.info["seed"],
        thresholds=None if classes else {name: items for name, items in thresholds.items() if all(items)},
        at_least=at_least,
    )


def _transferred(
    scored: Mapping[str, Mapping[str, Sequence[_Scored]]], config: EvaluateConfig, compared: Mapping[str, CompareResult]
) -> TransferResult:
    judged: dict[str, dict[str, JudgedSet]] = {}
    for name, places in scored.items():
        judged[name] = {}
        for place, seeds in places.items():
            one = seeds[0]
            labels = one.audit.to_json()["labels"]
            if len(seeds) > 1:
                labels = _means(_compared({name: places}, place, config, at_least=1).to_json()["labels"], name)
            size = one.audit.to_json()
            judged[name][place] = JudgedSet(labels, one.data, size["n"], size["n_patients"], one.notes)
    provenance = {
        "runs": {name: {"folders": [one.run.root.name for one in places[OWN]], "method": places[OWN][0].run.info["method"],
                        "seeds": [one.run.info["seed"] for one in places[OWN]], "model_hash": places[OWN][0].run.info["model_hash"],
                        "trained_on": places[OWN][0].run.info["data_name"]} for name, places in scored.items()},
        "split": config.split, "versions": package_versions(),
    }
    return transfer(
        judged, primary=config.audit.primary, confidence=config.audit.confidence, provenance=provenance,
        changes={place: _changes(found, config.audit.primary) for place, found in compared.items()},
    )


def _means(labels: Mapping[str, Any], run: str) -> dict[str, Any]:
    """One run's means over seeds out of a comparison, in the form of an audit's labels."""

    def attribute(part: Mapping[str, Any]) -> dict[str, Any]:
        return {"groups": {group: by_run[run] for group, by_run in part["groups"].items()}, "gaps": part["gaps"][run]}

    return {
        label: {"overall": block["overall"][run], "attributes": {name: attribute(part) for name, part in block["attributes"].items()}}
        for label, block in labels.items()
    }


def _changes(compared: CompareResult, primary: Sequence[str]) -> dict[str, Any]:
    """label -> run -> the paired changes against the first run: of everyone, and of the primary gaps by attribute."""
    found: dict[str, Any] = {}
    for label, block in compared.to_json()["labels"].items():
        found[label] = {
            run: {
                "overall": {name: overall[name] for name in CHANGES if name in overall},
                "gaps": {name: {gap: part["gap_changes"][run][gap] for gap in primary if gap in part["gap_changes"][run]}
                         for name, part in block["attributes"].items()},
            }
            for run, overall in block["overall_changes"].items()
        }
    return found


def _write_comparison(base: Path, comparison: CompareResult, place: str) -> None:
    from evenhand.report.html import write_compare_report

    write_text(base.with_suffix(".json"), comparison.dumps())
    write_text(base.with_suffix(".csv"), comparison.to_table().to_csv(index=False, lineterminator="\n"))
    write_compare_report(comparison.to_json(), base.with_suffix(".html"), title=f"Comparison of runs on {place}")


def _write_transfer(out: Path, result: TransferResult) -> None:
    from evenhand.report.transfer_page import write_transfer_page

    write_text(out / "transfer.json", result.dumps())
    write_text(out / "transfer.csv", result.to_table().to_csv(index=False, lineterminator="\n"))
    write_transfer_page(result.to_json(), out / "report.html")
