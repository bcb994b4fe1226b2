"""Hand-made audits and comparisons for the report's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

NASTY = '<b>&"$x_$</b>'


def estimate(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "lower": value - 0.05, "upper": value + 0.05, "n": n}


def hole(n: int = 4) -> dict[str, Any]:
    reason = "4 patients in the denominator, at least 10 are needed"
    return {"value": None, "lower": None, "upper": None, "reason": reason, "n": n, "n_positive": 1}


def block(n: int = 100, broken: bool = False) -> dict[str, Any]:
    values = {"auc": 0.81, "tpr": 0.72, "fpr": 0.23, "positive_rate": 0.31, "brier": 0.12}
    return {"n": n, "n_patients": n // 2, "n_positive": n // 4, **{m: hole(n) if broken else estimate(v, n) for m, v in values.items()}}


def attribute(keys: list[str], broken: bool = False, missing: bool = True) -> dict[str, Any]:
    groups = {key: block(20 + i, broken) for i, key in enumerate(keys)}
    if missing:
        groups["(missing)"] = {**block(7, True), "missing": True}
    extra = {"p": 0.0301, "p_holm": 0.0604, "groups": None if broken else [keys[0], keys[-1]], "excluded": []}
    gaps = {m: {**(hole() if broken else estimate(0.12)), **extra} for m in ("auc", "fpr", "equalized_odds", "demographic_parity_ratio")}
    return {"n_missing": 7 if missing else 0, "groups": groups, "gaps": gaps}


def audit(labels: tuple[str, ...] = ("malignant",), keys: dict[str, list[str]] | None = None, broken: bool = False) -> dict[str, Any]:
    keys = {"sex": ["f", "m"]} if keys is None else keys
    verdict = {
        "code": "gap",
        "label": labels[0],
        "attribute": "sex",
        "group": None,
        "metric": "auc",
        "value": 0.12,
        "lower": 0.02,
        "upper": 0.2,
    }
    return {
        "schema": "evenhand.audit/1",
        "kind": "binary" if len(labels) == 1 else "multilabel",
        "n": 100,
        "n_patients": 50,
        "labels": {
            label: {
                "threshold": {"value": 0.41, "rule": "youden", "source": "val", "n": 60, "n_positive": 12, "note": None},
                "overall": block(100, broken),
                "attributes": {name: attribute(groups, broken) for name, groups in keys.items()},
            }
            for label in labels
        },
        "verdicts": [{**verdict, "text": f"{labels[0]}: AUC differs by sex."}],
        "provenance": {
            "version": "0.1.0",
            "seed": 7,
            "bootstrap": 1000,
            "confidence": 0.95,
            "bins": {},
            "family": {"metrics": ["auc"], "tests": 2},
        },
    }


def predictions(labels: tuple[str, ...] = ("malignant",), keys: dict[str, list[str]] | None = None, n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    keys = {"sex": ["f", "m"]} if keys is None else keys
    frame = pd.DataFrame(
        {"image": [f"secret-{i}.png" for i in range(n)], "patient_id": [f"patient-{i // 2}" for i in range(n)], "split": "test"}
    )
    for label in labels:
        y, tail = rng.integers(0, 2, n), "" if len(labels) == 1 else f"_{label}"
        frame[f"y_true{tail}"], frame[f"y_score{tail}"] = y, 1 / (1 + np.exp(-(rng.normal(size=n) + y)))
    for name, groups in keys.items():
        frame[f"{name}__group"] = np.array(groups, dtype=object)[rng.integers(0, len(groups), n)]
    return frame


def compare(runs: tuple[str, ...] = ("probe", "dro")) -> dict[str, Any]:
    def seeded(value: float) -> dict[str, Any]:
        return {**estimate(value), "sd_over_seeds": 0.011, "seeds": [value]}

    levels = {run: {"auc": seeded(0.8), "tpr": seeded(0.7), "fpr": seeded(0.2)} for run in runs}
    changes = {
        run: {"f": {"auc": estimate(-0.09), "fpr": estimate(-0.08)}, "m": {"auc": estimate(0.01), "fpr": hole()}} for run in runs[1:]
    }
    view = {
        "groups": {"f": levels, "m": levels},
        "gaps": {run: {"auc": seeded(0.1), "equalized_odds": seeded(0.2)} for run in runs},
        "changes": changes,
        "gap_changes": {run: {"auc": estimate(-0.04), "equalized_odds": estimate(-0.1)} for run in runs[1:]},
    }
    return {
        "schema": "evenhand.compare/1",
        "reference": runs[0],
        "runs": [{"name": run, "n_seeds": 2, "seeds": [0, 1]} for run in runs],
        "n": 100,
        "n_patients": 50,
        "labels": {
            "malignant": {
                "overall": levels,
                "overall_changes": {run: {"auc": estimate(-0.01)} for run in runs[1:]},
                "attributes": {"sex": view},
            }
        },
        "verdicts": [{"code": "levelling_down", "run": runs[-1], "label": "malignant", "text": "dro: f got worse."}],
        "provenance": {"version": "0.1.0", "seed": 0, "confidence": 0.95, "bootstrap": 500},
    }
