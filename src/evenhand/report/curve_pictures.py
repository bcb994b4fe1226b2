"""Pictures of the scores themselves, by group: ROC, precision-recall, reliability and decision curves, and distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.curves import GRID, GroupCurves, at_grid, group_curves
from evenhand.report import curve_figures, figures, tables, words
from evenhand.report.curve_figures import MOST_BANDS, MOST_PANELS, Shown
from evenhand.report.page import Picture, picture
from evenhand.report.summary import confidence_of

if TYPE_CHECKING:
    import pandas as pd

Json = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]
REPLICATES = 200
FEWEST_ROWS = 10
FEW_GROUPS = 3
"""A page of many labels draws every curve of attributes with so many groups, and of larger ones ROC and reliability only."""


@dataclass(frozen=True)
class Scored:
    """The audited rows of one label.

    Attributes:
        y: (n,) truth, NaN where unlabelled.
        score: (n,).
        unit: (n,) patient codes.
        members: attribute -> (n,) group keys, '' where missing.
    """

    y: FloatArray
    score: FloatArray
    unit: npt.NDArray[np.int64]
    members: Mapping[str, Any]


def audited_rows(predictions: pd.DataFrame, audit: Json) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that were audited, and for each attribute the group key of every such row ('' where missing).

    Groups and rows are found as the audit finds them, so that a curve is of the rows that its number is of. An attribute
    whose columns the table does not have is left out.
    """
    from evenhand.evaluation.attributes import audit_groups
    from evenhand.evaluation.cohort import judged_rows
    from evenhand.evaluation.predictions import GROUP_SUFFIX

    made, columns = audit.get("provenance", {}), set(map(str, predictions.columns))
    names = dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"])
    known = [name for name in names if all({part, f"{part}{GROUP_SUFFIX}"} & columns for part in name.split("*"))]
    table = predictions.reset_index(drop=True)
    groups = audit_groups(table, known, made.get("bins") or {}, len(table))
    use = judged_rows(table, groups, made.get("missing") or "own_group")
    members = {name: np.where(item.codes < 0, "", item.names())[use] for name, item in groups.items()}
    stored = {name: f"{name}{GROUP_SUFFIX}" for name in names if name not in members and f"{name}{GROUP_SUFFIX}" in columns}
    members.update({name: table[column].astype("string").fillna("").to_numpy(object)[use] for name, column in stored.items()})
    return table[use], members


def patients_of(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Patient codes; a row without a patient id is a patient of its own."""
    if "patient_id" not in rows:
        return np.arange(len(rows), dtype=np.int64)
    codes = rows["patient_id"].factorize()[0].astype(np.int64)
    alone = codes < 0
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(int(alone.sum()))
    return np.asarray(codes)


def scores_of(rows: pd.DataFrame, label: str) -> tuple[FloatArray, FloatArray] | None:
    """Truth (NaN where unlabelled) and score of one label, for the column names of binary, multi-label and multi-class tables."""
    import pandas as pd

    truth = next((c for c in (f"y_true_{label}", "y_true") if c in rows), None)
    score = next((c for c in (f"y_score_{label}", "y_score") if c in rows), None)
    if truth is None or score is None:
        return None
    y = pd.to_numeric(rows[truth], errors="coerce").to_numpy(float)
    if truth == "y_true" and score != "y_score":
        y = np.where(rows[truth].isna(), np.nan, (rows[truth].astype(str) == label).to_numpy(float))
    return y, pd.to_numeric(rows[score], errors="coerce").to_numpy(float)


def score_pictures(key: str, name: str, attribute: Json, block: Json, scored: Scored, audit: Json, *, brief: bool) -> list[Picture]:
    """Every picture of one attribute that the rows allow.

    Args:
        key: a name for the figures that no other attribute of the page has.
        name: the attribute.
        attribute, block: the attribute's and its label's dictionaries of audit.json.
        scored: the label's rows.
        audit: for the seed and the confidence level.
        brief: fewer curves of attributes with more than `FEW_GROUPS` groups, for pages of many labels.
    """
    member = scored.members.get(name)
    groups = list(tables.known_groups(attribute))
    if member is None or not groups:
        return []
    usable = np.isfinite(scored.y) & np.isfinite(scored.score)
    places = {group: i for i, group in enumerate(groups)}
    codes = np.array([places.get(str(k), -1) for k in member], np.int64)[usable]
    y, score = scored.y[usable], scored.score[usable]
    estimable = [g for g in groups if words.estimable(attribute["groups"][g].get("auc"))]
    made = audit.get("provenance", {})
    curves = group_curves(
        y,
        score.clip(0, 1),
        scored.unit[usable],
        np.where(np.isin(codes, [places[g] for g in estimable]), codes, -1),
        n_bootstrap=REPLICATES if len(estimable) <= (MOST_BANDS if brief else MOST_PANELS) else 0,
        seed=int(made.get("seed") or 0),
        name=f"{key}/{name}",
        confidence=float(made.get("confidence", 0.95)),
    )
    found = {g: curves[places[g]] for g in estimable if places[g] in curves}
    split = {g: (y[codes == places[g]], score[codes == places[g]]) for g in groups}
    shown = _curve_pictures(key, name, attribute, block, found, confidence_of(audit), brief=brief) if found else []
    spread = _distributions(key, name, split, block)
    return [*shown, *([spread] if spread else [])]


def _curve_pictures(
    key: str, name: str, attribute: Json, block: Json, curves: Mapping[str, GroupCurves], sure: str, *, brief: bool
) -> list[Picture]:
    groups, title = attribute["groups"], words.group_label(name, name)
    left_out = len(tables.known_groups(attribute)) - len(curves)
    absent = f" No curve for {words.plural(left_out, 'group')} without an estimable AUC." if left_out else ""
    named, note = _named(curves, groups)
    drawn = len(named) <= MOST_BANDS and any(len(c.roc.grid) for c in curves.values())
    bands = f" Shaded: {sure} bands over patients, point by point." if drawn else ""
    order = sorted(curves, key=lambda g: (g in named, named.get(g, 0)))
    shown = [_shown(name, g, groups[g], curves[g], named.get(g)) for g in order]
    pictures = [_roc(key, title, shown, [groups[g]["auc"]["value"] for g in order], note, bands + absent)]
    if note or (brief and len(curves) > MOST_BANDS):
        return pictures
    if brief and len(curves) > FEW_GROUPS:
        return [*pictures, _reliability(key, title, shown)]
    threshold = threshold_of(block)
    return [
        *pictures,
        _precision_recall(key, title, shown, bands),
        _reliability(key, title, shown),
        _decision(key, title, shown, threshold),
    ]


def threshold_of(block: Json) -> float | None:
    """The threshold that a label was judged at, or None where decisions were given."""
    found = block.get("threshold")
    value = found.get("value") if isinstance(found, Mapping) else found
    return None if value is None else float(value)


def _named(curves: Mapping[str, GroupCurves], groups: Mapping[str, Json]) -> tuple[dict[str, int], str]:
    """Group -> style, and the words for the others; with many groups those of the lowest and highest AUC are named."""
    if len(curves) <= figures.MOST_CURVES:
        return {g: i for i, g in enumerate(curves)}, ""
    ranked = sorted(curves, key=lambda g: float((groups[g].get("auc") or {}).get("value") or 0.0))
    picked = ranked[:4] + ranked[-3:]
    return {g: i for i, g in enumerate(picked)}, f"{words.plural(len(curves) - len(picked), 'further group')}"


def _shown(name: str, group: str, row: Json, curves: GroupCurves, style: int | None) -> Shown:
    used = words.estimable(row.get("fpr")) and words.estimable(row.get("tpr"))
    point = (row["fpr"]["value"], row["tpr"]["value"]) if used else None
    return Shown(words.group_label(name, group), curves, style, point)


def _roc(key: str, title: str, shown: Sequence[Shown], aucs: Sequence[float], note: str, tail: str) -> Picture:
    named = [replace(s, label=f"{s.label}, AUC {auc:.2f}") for s, auc in zip(shown, aucs, strict=True)]
    text = "; ".join(s.label for s in named if s.style is not None)
    svg = curve_figures.roc(named, key=f"{key}-roc", summary=f"ROC curves by {title}. {text}.", note=note)
    caption = "The mark on a curve is where the model is used: its threshold. Marks far apart are a gap in equalized odds."
    caption += f" Of {len(shown)} groups the four lowest and three highest AUC are named." if note else ""
    numbers = None if note else _grid_table("roc", "TPR at FPR", shown, (0.1, 0.2, 0.3, 0.5))
    return picture(f"ROC curves by {title}", svg, caption + tail, numbers)


def _precision_recall(key: str, title: str, shown: Sequence[Shown], bands: str) -> Picture:
    said = "; ".join(f"{s.label}: prevalence {s.curves.n_positive / s.curves.n:.2f}" for s in shown)
    named = [replace(s, label=f"{s.label}, prevalence {s.curves.n_positive / s.curves.n:.2f}") for s in shown]
    svg = curve_figures.precision_recall(named, key=f"{key}-pr", summary=f"Precision-recall curves by {title}. {said}.")
    caption = (
        "A short line at the right edge is the group's share of positive cases: what a coin toss would reach. "
        "Curves of groups with different shares differ even for one and the same model."
    )
    numbers = _grid_table("pr", "PPV at recall", shown, (0.2, 0.4, 0.6, 0.8))
    return picture(f"Precision-recall curves by {title}", svg, caption + bands, numbers)


def _reliability(key: str, title: str, shown: Sequence[Shown]) -> Picture:
    said = "; ".join(f"{s.label}: {_over_or_under(s.curves)}" for s in shown)
    svg = curve_figures.reliability(shown, key=f"{key}-rel", summary=f"Reliability by {title}. {said}.")
    caption = "On the dashed diagonal a score means what it says; below it scores are too high, above it too low."
    caption += " Bars: Wilson intervals with patients as the sample size." if len(shown) <= MOST_BANDS else ""
    return picture(f"Reliability by {title}", svg, caption, _reliability_table(shown))


def _over_or_under(curves: GroupCurves) -> str:
    bins = curves.reliability
    mean = float(np.average(bins.score, weights=bins.n))
    return f"mean score {mean:.2f}, {curves.n_positive / curves.n:.2f} truly positive"


def _decision(key: str, title: str, shown: Sequence[Shown], threshold: float | None) -> Picture:
    top = decision_range(shown, threshold)
    places = [round(top * part, 2) for part in (0.2, 0.4, 0.6, 0.8)]
    said = "; ".join(f"{s.label}: {_benefit(s, places[1])}" for s in shown)
    text = f"Decision curves by {title}. Net benefit at a threshold of {places[1]:g}: {said}."
    svg = curve_figures.decision(shown, key=f"{key}-dca", summary=text, top=top, threshold=threshold)
    caption = (
        "Net benefit: cases found, less false alarms weighted by the odds of the threshold, per case. Where the model lies below "
        "'treat everybody', treating everybody does better; where it lies below 0, treating nobody does."
    )
    caption += " Upright dashes: the threshold in use." if threshold is not None and threshold < top else ""
    return picture(f"Decision curves by {title}", svg, caption, _decision_table(shown, places))


def decision_range(shown: Sequence[Shown], threshold: float | None) -> float:
    """The highest threshold probability worth showing: where scores, the threshold and treating everybody have ended."""
    share = max(s.curves.n_positive / s.curves.n for s in shown)
    high = max(float(s.curves.reliability.score[-1]) for s in shown)
    wanted = max(1.6 * share, 1.1 * high, 1.3 * (threshold or 0.0))
    return next((edge for edge in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if wanted <= edge), 0.99)


def _benefit(shown: Shown, threshold: float) -> str:
    line = shown.curves.decision
    i = int(np.abs(line.x - threshold).argmin())
    return f"{words.number(float(line.y[i]))} with the model, {words.number(max(float(shown.curves.treat_all[i]), 0.0))} without"


def _grid_table(kind: str, what: str, shown: Sequence[Shown], places: Sequence[float]) -> tables.Table:
    """One row a group: the curve's height at a few places of the bands' grid, with its band."""
    rows, at = [], [int(np.abs(GRID - place).argmin()) for place in places]
    for s in shown:
        line = s.curves.roc if kind == "roc" else s.curves.precision_recall
        heights = at_grid(kind, line.x, line.y, GRID)
        small = [f"{words.number(line.lower[i], 2)} to {words.number(line.upper[i], 2)}" if len(line.grid) else "" for i in at]
        cells = [tables.Cell(words.number(float(heights[i]), 2), text) for i, text in zip(at, small, strict=True)]
        rows.append(tables.Row(s.label, tuple(cells)))
    return tables.Table(("group", *(f"{what} {place:g}" for place in places)), tuple(rows))


def _decision_table(shown: Sequence[Shown], places: Sequence[float]) -> tables.Table:
    rows = []
    for s in shown:
        line = s.curves.decision
        at = [int(np.abs(line.x - place).argmin()) for place in places]
        small = [f"{words.number(line.lower[i])} to {words.number(line.upper[i])}" if len(line.grid) else "" for i in at]
        model = tuple(tables.Cell(words.number(float(line.y[i])), text) for i, text in zip(at, small, strict=True))
        rows.append(tables.Row(s.label, model))
        everybody = tuple(tables.Cell(words.number(float(s.curves.treat_all[i])), "", "soft") for i in at)
        rows.append(tables.Row(f"{s.label}: treat everybody", everybody))
    return tables.Table(("group", *(f"net benefit at {place:g}" for place in places)), tuple(rows))


def _reliability_table(shown: Sequence[Shown]) -> tables.Table:
    """One row a bin, one column a group: mean score and observed share, interval and count."""
    rows = []
    for i in range(max(len(s.curves.reliability.n) for s in shown)):
        cells = []
        for b in (s.curves.reliability for s in shown):
            if i >= len(b.n):
                cells.append(tables.Cell("–", "", "empty"))
                continue
            limits = f"{words.number(b.lower[i], 2)} to {words.number(b.upper[i], 2)}"
            cells.append(tables.Cell(f"{words.number(b.score[i], 2)} → {words.number(b.observed[i], 2)}", f"{limits}, n = {b.n[i]}"))
        rows.append(tables.Row(f"bin {i + 1}", tuple(cells)))
    return tables.Table(("mean score → share positive", *(s.label for s in shown)), tuple(rows))


def _distributions(key: str, name: str, split: Mapping[str, tuple[FloatArray, FloatArray]], block: Json) -> Picture | None:
    shown = [figures.Scores(words.group_label(name, k), s[y > 0], s[y <= 0]) for k, (y, s) in split.items() if len(y) >= FEWEST_ROWS]
    if not shown:
        return None
    cut, title = threshold_of(block), words.group_label(name, name)
    medians = "; ".join(f"{g.label} median {_median(g.positive)} if positive, {_median(g.negative)} if negative" for g in shown)
    few = len(shown) <= figures.MOST_HISTOGRAMS
    draw = figures.score_histograms if few else figures.score_ranges
    svg = draw(shown, key=f"{key}-scores", summary=f"Scores by {title}. {medians}.", threshold=cut)
    how = (
        "Filled, above the line: positive cases; hatched, below: negative cases, each scaled to its own peak."
        if few
        else "Square: median score of positive cases; ring: of negative ones; thick line the middle half, thin line 5% to 95%."
    )
    left_out = len(split) - len(shown)
    how += " Dashed: the threshold." if cut is not None else ""
    how += f" Not drawn: {words.plural(left_out, 'group')} with fewer than {FEWEST_ROWS} images." if left_out else ""
    return picture(f"Scores by {title}", svg, how, _median_table(shown))


def _median_table(shown: Sequence[figures.Scores]) -> tables.Table:
    rows = [
        tables.Row(g.label, tuple(tables.Cell(_median(v), _middle(v)) for v in (g.positive, g.negative)))
        for g in shown
    ]
    return tables.Table(("group", "median score if positive", "median score if negative"), tuple(rows))


def _median(values: FloatArray) -> str:
    return words.number(float(np.median(values)), 2) if len(values) else "–"


def _middle(values: FloatArray) -> str:
    if not len(values):
        return ""
    low, high = np.quantile(values, [0.25, 0.75])
    return f"middle half {words.number(float(low), 2)} to {words.number(float(high), 2)}"
