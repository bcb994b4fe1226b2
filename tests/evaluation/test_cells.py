"""Which metrics of a table are bootstrapped, and that nothing else depends on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate
from evenhand.evaluation.cells import Measured, measure
from evenhand.evaluation.cohort import make_cohort
from evenhand.evaluation.evaluate import bootstrapped
from evenhand.evaluation.selection import RESAMPLED
from evenhand.metrics.cells import METRICS

LABELS: dict[str, Any] = {"labels": ["label"], "attributes": ["sex"]}


def tables(frame: Any, config: AuditConfig, resampled: Any) -> dict[int, Measured]:
    cohort = make_cohort(frame, classes=(), bins={}, missing="own_group", config=config, thresholds=None, **LABELS)
    how: dict[str, Any] = {"n_bootstrap": config.bootstrap, "min_patients": 10, "seed": 0, "threads": 1, "kind": config.interval}
    return measure(cohort, cohort.groups["sex"].codes, [0, 1], "sex", resampled=resampled, **how)[0]


def test_estimates_do_not_depend_on_which_metrics_are_bootstrapped(make_table: Any, quick: AuditConfig) -> None:
    frame = make_table(400)
    every, few = (tables(frame, quick, resampled) for resampled in (None, RESAMPLED))
    for key, item in every.items():
        for name in METRICS:
            assert item.estimate(name, 0.95) == few[key].estimate(name, 0.95)
            assert len(item.replicates[name]) == 100
            assert len(few[key].replicates[name]) == (100 if name in RESAMPLED else 0)
        for name in RESAMPLED:
            assert np.array_equal(item.replicates[name], few[key].replicates[name])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, RESAMPLED),
        ({"interval": "percentile"}, set(METRICS)),
        ({"interval": "bca"}, set(METRICS)),
        ({"permutations": 0}, set(METRICS)),
        ({"bootstrap": 0}, set()),
        ({"metrics": ["auc"], "primary": ["auc"]}, set()),
    ],
)
def test_replicates_are_made_where_an_interval_or_a_test_reads_them(
    make_table: Any, quick: AuditConfig, options: dict[str, Any], expected: set[str]
) -> None:
    config, frame = replace(quick, details=False, bounds=False, **options), make_table(400)
    data = evaluate(frame, **LABELS, config=config).to_json()
    assert set(data["provenance"]["bootstrapped"]) == set(expected)
    found = data["labels"]["label"]["attributes"]["sex"]
    for name, gap in found["gaps"].items():
        if gap["value"] is not None and config.permutations and (config.bootstrap or name not in RESAMPLED):
            assert gap["p"] is not None, name


def test_averages_over_classes_are_bootstrapped(make_table: Any, quick: AuditConfig) -> None:
    cohort = make_cohort(make_table(400), classes=(), bins={}, missing="own_group", config=quick, thresholds=None, **LABELS)
    assert bootstrapped(replace(cohort, kind="multiclass"), quick, gaps=False) == METRICS
    assert bootstrapped(cohort, quick, gaps=False) == ()
