"""An audit's text is the same to the last digit for any number of threads."""

from __future__ import annotations

from typing import Any

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate


def test_the_number_of_threads_changes_no_digit(make_table: Any) -> None:
    frame = make_table(3000, images=3, shift=0.4)
    config = AuditConfig(bootstrap=300, permutations=300, metrics=["auc", "average_precision", "tpr", "fpr", "brier", "ece"])
    one, three = (
        evaluate(frame, labels=["label"], attributes=["sex", "sex*age"], bins={"age": [0, 60, 200]}, config=config, threads=threads).dumps()
        for threads in (1, 3)
    )
    assert one == three
