"""How an audit was made: versions, seeds, options and a hash of what was judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import evenhand
from evenhand.config.schema import AuditConfig
from evenhand.evaluation.cohort import Cohort
from evenhand.metrics.intervals import DESCRIPTIONS


def provenance(
    frame: pd.DataFrame,
    cohort: Cohort,
    config: AuditConfig,
    seed: int,
    bins: Mapping[str, Sequence[float]],
    missing: str,
) -> dict[str, Any]:
    """The part of audit.json that says how its numbers were made, as far as the question and the options determine it."""
    return {
        **facts(
            frame,
            config,
            n_judged=len(cohort.patient),
            n_dropped=cohort.n_dropped,
            seed=seed,
            bins=bins,
            missing=missing,
            notes=cohort.notes,
        ),
        "threshold": config.threshold,
        "ece_bins": config.ece_bins,
        "interval": f"{DESCRIPTIONS[config.interval]}; gaps: inverted studentised maximum test",
    }


def facts(
    frame: pd.DataFrame,
    config: AuditConfig,
    *,
    n_judged: int,
    n_dropped: int,
    seed: int,
    bins: Mapping[str, Sequence[float]],
    missing: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What is said of every audit, of labels and of continuous values."""
    hashes = pd.util.hash_pandas_object(frame.astype("string"), index=False).to_numpy()
    return {
        "package": "evenhand",
        "version": evenhand.__version__,
        "seed": seed,
        "n_rows": len(frame),
        "n_judged": n_judged,
        "n_dropped": n_dropped,
        "predictions_sha256": hashlib.sha256(hashes.tobytes()).hexdigest(),
        "bootstrap": config.bootstrap,
        "confidence": config.confidence,
        "min_patients": config.min_patients,
        "max_groups": config.max_groups,
        "missing": missing,
        "bins": {name: list(edges) for name, edges in bins.items()},
        "notes": list(notes),
    }
