"""What is reported and not refused."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evenhand.data.groups import category_groups
from evenhand.evaluation.notes import cohort_notes


def test_each_is_counted_and_no_id_is_named() -> None:
    frame = pd.DataFrame({"image": list("aabcd"), "y_score": [0.5, 0.5, 0.1, 0.2, 0.3], "patient_id": list("ppqrs")})
    truths = {"y": np.array([0.0, 0, 1, 1, np.nan]), "z": np.ones(5)}
    groups = {"sex": category_groups(pd.Series(list("fffmm")), "sex"), "age": category_groups(pd.Series([1, 2, 1, 1, 3]), "age")}
    found = cohort_notes(frame, truths, groups, np.array([0, 0, 1, 2, 3]))
    assert found == [
        "1 row is an exact copy of another row; judged as the table has them, so remove them if that is a mistake",
        "1 image names stand in several judged rows (2 rows)",
        "label 'z' has one class in the judged rows, so that no AUC can be said",
        "1 group of 'sex' has one class only: m",
        "'age' has 2 groups of one patient: 2, 3",
        "1 patients are in more than one group of 'age'; their images count where they belong",
        "1 group of 'age' has one class only: 2",
    ]


def test_a_clean_table_has_none() -> None:
    frame = pd.DataFrame({"y_score": [0.5, 0.5, 0.1, 0.2], "image": list("abcd")})
    groups = {"sex": category_groups(pd.Series(["f", "f", "m", "m"]), "sex")}
    assert cohort_notes(frame, {"y": np.array([0.0, 1, 0, 1])}, groups, np.arange(4)) == []
