"""`evenhand card`: an offline page about a prepared data set, to be read before a model of disease is trained on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evenhand.config.card import CardConfig
from evenhand.config.compose import compose
from evenhand.config.schema import ModelConfig
from evenhand.data.datasets import PreparedData
from evenhand.data.image_features import STATISTICS, ImageFeatures, image_features
from evenhand.data.near_duplicates import LEAST_COSINE, MOST_BITS, NearDuplicates, find_near_duplicates
from evenhand.data.sources.registry import find_source, source_names
from evenhand.data.splits import content_codes, find_leaks
from evenhand.errors import ConfigError, InputError
from evenhand.evaluation.card_findings import card_findings, private_notes
from evenhand.evaluation.data_counts import (
    MISSING,
    OVERALL,
    SMALL,
    CardRows,
    LabelColumn,
    ages,
    association_table,
    label_columns,
    mean,
    n_patients,
    prevalence_table,
    size_table,
)
from evenhand.evaluation.readability import with_squares
from evenhand.evaluation.small_cells import shown_count
from evenhand.files import check_folder, write_text
from evenhand.report.card_page import write_card_page
from evenhand.runs.card_pictures import card_pictures
from evenhand.runs.card_probe import ProbeRows, embed, factors, read_attributes, read_labels
from evenhand.runs.folder import package_versions

log = logging.getLogger(__name__)
Json = dict[str, Any]

SCHEMA = "evenhand.card/1"
SHOWN_PAIRS = 12
"""Near-duplicate pairs that stand in the card."""


def make_data_card(
    data: str | Path,
    out: str | Path | None = None,
    *,
    model: str | ModelConfig | CardConfig | None = None,
    min_cell: int = 5,
    images: bool = True,
    probe_rows: int = 5000,
    permutations: int = 99,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write what there is to know about a prepared data set before a model is trained on it: a page, and card.json beside it.

    Who is in it (counts by group, label and split), how often labels occur in each group and how strongly the two go
    together, how images differ between groups, what is in two splits, which images are nearly equal, and how well each
    attribute can be read from the images. The page is one file, works offline and holds no patient ids.

    Args:
        data: folder written by ``evenhand prepare``.
        out: the page, NAME.html; NAME.json is written beside it. Default: card.html in the data set's folder.
        model: the encoder that attributes are read with: what ``model=`` takes, or its options. Default: the bundled one.
        min_cell: counts of fewer patients than this are shown as ``<5`` and the like; 1 shows all.
        images: whether images of the set stand on the page.
        probe_rows: most rows outside the test split, and most test rows, that readers see; 0: nothing is read.
        permutations: readers of permuted groups that say what chance gives.
        seed: of every random stream; equal seeds give equal cards.
        progress: show progress bars.

    Returns:
        The page.

    Raises:
        InputError: not a finished prepared data set, or an option is wrong.
        DiskFullError: no space left; nothing half-written is left.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.make_data_card("prepared/ham", "cards/ham.html", model="encoder.pth")  # doctest: +SKIP
    """
    if min_cell < 0 or probe_rows < 0 or permutations < 0:
        raise InputError(f"min_cell is {min_cell}, probe_rows {probe_rows} and permutations {permutations}, but none may be negative")
    opened = PreparedData.open(data)
    page = Path(out) if out is not None else opened.root / "card.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"the page would be {page}, but must be a file NAME.html; give another --out")
    check_folder(page.parent)
    config = _config(model)
    rows = CardRows(opened.split, opened.patients, opened.groups(), max(min_cell, 1))
    labels = opened.labels()
    columns = label_columns(labels, opened.spec.kind, opened.spec.labels, opened.spec.classes)
    features = image_features(opened.cache, seed, progress)
    log.info("looking for near-duplicates among %d images", len(opened))
    contents = content_codes(opened.cache.hashes).astype(np.int64)
    twins = find_near_duplicates(features, contents, opened.patients, opened.split, seed)
    card = {
        "schema": SCHEMA,
        **_about(opened, rows),
        "labels": _labels(rows, columns),
        "statistics": _statistics(rows, features),
        "leaks": _leaks(opened, contents, rows.least),
        "near_duplicates": _twins(opened, twins),
        "probe": _probe(opened, features, columns, config, probe_rows, permutations, seed, progress),
    }
    card["provenance"] = {
        "seed": seed,
        "min_cell": rows.least,
        "permutations": permutations,
        "probe_rows": probe_rows,
        "images": images,
        "versions": package_versions(),
    }
    card["findings"] = card_findings(card)
    card = _rounded(card)
    pictures = card_pictures(opened, rows, columns, card["near_duplicates"]["pairs"], seed) if images else {}
    write_text(page.with_suffix(".json"), json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_card_page(card, pictures, page)
    return page


def _config(model: str | ModelConfig | CardConfig | None) -> CardConfig:
    if isinstance(model, CardConfig):
        return model
    if isinstance(model, ModelConfig):
        return CardConfig(model=model)
    if model is None:
        return CardConfig()
    try:
        return compose(CardConfig, [f"model={model}"])
    except ConfigError as error:
        raise InputError(str(error)) from error


def _about(data: PreparedData, rows: CardRows) -> Json:
    """Name, source, sizes, attributes and ages."""
    spec = data.spec
    per_patient = np.bincount(data.patients)
    sizes = {name: size_table(rows, name) for name in rows.groups}
    everyone = {
        split: {"n": int(rows.inside(split).sum()), "n_patients": n_patients(rows.patients, rows.inside(split))} for split in rows.splits
    }
    return {
        "data": {
            "name": data.name,
            "hash": data.fingerprint,
            "modality": data.modality,
            "kind": spec.kind,
            "labels": list(spec.labels),
            "classes": list(spec.classes),
            "attributes": list(spec.attributes),
            "bins": {name: list(edges) for name, edges in spec.bins.items()},
            "missing": spec.missing,
            "image": dict(data.description.get("image") or {}),
            "n": len(data),
            "n_patients": len(per_patient),
            "images_per_patient": {"median": float(np.median(per_patient)), "most": int(per_patient.max())},
        },
        "source": source_facts(data.description.get("source") or {}),
        "excluded": dict(data.description.get("excluded") or {}),
        "notes": private_notes(list(data.description.get("notes") or ()), rows.least),
        "splits": everyone,
        "attributes": sizes,
        "ages": _ages(data, rows.least),
    }


def source_facts(source: Mapping[str, Any]) -> Json:
    """What is known of where a data set came from: of a public one, what its source declares; of a table, its name alone."""
    kind = str(source.get("kind") or "")
    name = str(source.get("name") or kind)
    if name not in source_names():
        shown = {"kind": kind or "unknown", "table": Path(str(source["table"])).name if source.get("table") else None}
        return {key: value for key, value in shown.items() if value}
    info = find_source(name).INFO
    task = next((item for item in info.tasks if item.name == source.get("task")), info.tasks[0])
    counts = source.get("counts") or {}
    return {
        "kind": kind,
        "name": name,
        "title": info.title,
        "version": source.get("version") or info.version,
        "verified": bool(source.get("verified", info.verified)),
        "licence": info.licence,
        "link": info.link,
        "citation": info.citation,
        "task": {"name": task.name, "text": task.text},
        "attributes": {item.name: item.text for item in info.attributes},
        "split": {"rule": str(source.get("split") or ""), "text": info.split},
        "options": dict(source.get("options") or {}),
        "expected": [
            {"what": item.what, "count": item.count, "origin": item.origin, "found": counts.get(item.what)} for item in info.expected
        ],
        "traps": list(info.traps),
    }


def _ages(data: PreparedData, least: int) -> Json:
    """Ages of patients, from a column of numbers that is called age or has been cut into bins."""
    out = {}
    for name in dict.fromkeys(["age", *data.spec.bins]):
        if name in data.table:
            found = ages(pd.to_numeric(data.table[name], errors="coerce").to_numpy(np.float64), data.patients, least)
            if found is not None:
                out[name] = found
    return out


def _labels(rows: CardRows, columns: list[LabelColumn]) -> Json:
    """Prevalences and odds ratios of every label and attribute."""
    out: Json = {}
    for column in columns:
        attributes = {}
        for name in rows.groups:
            prevalence = prevalence_table(rows, column, name)
            attributes[name] = {"prevalence": prevalence, "association": association_table(rows, column, name, prevalence)}
        alone = CardRows(rows.split, rows.patients, {}, rows.least)
        everyone = next(iter(attributes.values()))["prevalence"][OVERALL] if attributes else _everyone(alone, column)
        people = n_patients(rows.patients, ~column.known)
        unlabelled = shown_count(int((~column.known).sum()), 0 < people < rows.least, rows.least)
        out[column.name] = {"everyone": everyone, "n_unlabelled": unlabelled, "attributes": attributes}
    return out


def _everyone(rows: CardRows, column: LabelColumn) -> Json:
    """Prevalence without any attribute."""
    from evenhand.data.groups import Groups

    none = Groups("(none)", (), np.full(len(rows.split), -1, dtype=np.int64))
    found: Json = prevalence_table(CardRows(rows.split, rows.patients, {"(none)": none}, rows.least), column, "(none)")[OVERALL]
    return found


def _statistics(rows: CardRows, features: ImageFeatures) -> Json:
    """Mean grey level, contrast and sharpness of everyone and of every group, all splits together; small groups are left out."""

    def block(own: Any) -> Json:
        people = n_patients(rows.patients, own)
        if 0 < people < rows.least:
            none = {"value": None, "lower": None, "upper": None, "reason": SMALL}
            return {"n_patients": shown_count(people, True, rows.least), **dict.fromkeys(STATISTICS, none)}
        found = {name: mean(features.statistics[own, k], rows.patients[own]) for k, name in enumerate(STATISTICS)} if own.any() else {}
        return {"n_patients": people, **found}

    everyone = block(np.ones(len(features), bool))
    spread = {name: float(features.statistics[:, k].std()) for k, name in enumerate(STATISTICS)}
    attributes = {
        name: {key: block(own) for key, own in rows.members(name).items() if key != OVERALL and own.any()} for name in rows.groups
    }
    return {"everyone": everyone, "spread": spread, "attributes": attributes, "missing_key": MISSING}


def _leaks(data: PreparedData, contents: Any, least: int) -> Json:
    """Patients and image contents in more than one split, and equal images of different patients."""
    found = find_leaks(data.split, data.patients, data.cache.hashes)
    frame = pd.DataFrame({"content": contents, "patient": data.patients})
    grouped = frame.groupby("content")["patient"].agg(["size", "nunique"])
    return {
        "patients": len(found.patients),
        "images": len(found.images),
        "rows": [[row + 1 for row in rows[:4]] for rows in found.images[:20]],
        "equal_images": int((grouped["size"] > 1).sum()),
        "equal_across_patients": int((grouped["nunique"] > 1).sum()),
    }


def _twins(data: PreparedData, found: NearDuplicates) -> Json:
    split = data.split
    pairs = [
        {
            "rows": [int(a) + 1, int(b) + 1],
            "splits": [str(split[a]), str(split[b])],
            "same_patient": not bool(other),
            "cosine": float(cosine),
            "bits": int(bits),
        }
        for (a, b), cosine, bits, other in zip(
            found.pairs[:SHOWN_PAIRS],
            found.cosine[:SHOWN_PAIRS],
            found.bits[:SHOWN_PAIRS],
            found.across_patients[:SHOWN_PAIRS],
            strict=True,
        )
    ]
    return {
        "rule": {"most_bits": MOST_BITS, "least_cosine": LEAST_COSINE},
        "across_splits": int(found.across_splits.sum()),
        "across_splits_and_patients": int((found.across_splits & found.across_patients).sum()),
        "across_patients": int((found.across_patients & ~found.across_splits).sum()),
        "within": found.within,
        "complete": found.complete,
        "random_pairs": found.n_random,
        "random_hits": found.random_hits,
        "expected_by_chance": found.random_hits / max(found.n_random, 1) * len(data) * (len(data) - 1) / 2,
        "random_upper": float(_upper(found.random_hits, found.n_random)) if found.n_random else None,
        "pairs": pairs,
    }


def _upper(hits: int, n: int) -> float:
    """The upper end of Clopper and Pearson's 95% interval of a share."""
    from scipy.special import betaincinv

    return 1.0 if hits >= n else float(betaincinv(hits + 1, n - hits, 0.975 if hits else 0.95))


def _probe(
    data: PreparedData,
    features: ImageFeatures,
    columns: list[LabelColumn],
    config: CardConfig,
    most: int,
    permutations: int,
    seed: int,
    progress: bool,
) -> Json | None:
    """What can be read; None where nothing was asked for."""
    if not most:
        return None
    place = ProbeRows.draw(data, most, seed)
    groups = data.groups()
    statistics = features.statistics[place.rows]
    out: Json = {"n": int(place.outside.sum()), "n_test": int((~place.outside).sum()), "encoder": None, "attributes": {}}
    out["sampled"] = len(place.rows) < len(data)
    if groups:
        z, out["encoder"] = embed(data, place, config, seed, progress)
        log.info("reading %d attributes from %d images", len(groups), len(place.rows))
        whole = factors(data.labels(), data.spec.kind, data.spec.labels, data.spec.classes)
        out["attributes"] = read_attributes(place, {"encoder": z, "statistics": with_squares(statistics)}, groups, whole, permutations)
    out["labels"] = read_labels(place, columns, statistics, groups, permutations)
    return out


def _rounded(value: Any) -> Any:
    """Numbers to six digits, so that the last ones, which processors disagree on, are not in the file; what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def card_lines(page: Path) -> list[str]:
    """What the terminal shows of a card: its findings."""
    card = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return [f"- {item['text']}" for item in card["findings"]] or ["nothing stands out; read the intervals on the page"]
