"""The metadata of the authors of DNE, from a tiny copy to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.registry import all_sources
from evenhand.errors import InputError
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("dne_authors", miniature("dne_authors"))
    assert len(data) == 27
    assert (data.split == "test").sum() == 5
    told = data.description["notes"]
    assert "1 row was left out: both Pleural Effusion and No Finding (excluded.csv)" in told
    assert "2 rows were left out: neither Pleural Effusion nor No Finding (excluded.csv)" in told


def test_labels_and_groups_are_the_authors(miniature: Callable[..., Path]) -> None:
    root = miniature("dne_authors")
    frame = found("dne_authors", root).frame.set_index("patient_id")
    assert set(frame["split"]) == {"rest", "test"}
    assert frame.loc["patient00003", ["age", "age60", "age_over60", "sex"]].tolist() == ["60", "60 and over", "60 and under", "male"]
    assert frame.loc["patient00001", "image"] == "data/CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    assert pd.isna(frame.loc["patient00002", "sex"]), "the authors' loader counts it as female"
    assert frame.loc[["patient00005", "patient00007", "patient00001"], "race_white"].tolist() == ["White", "White", "Other"]
    assert pd.isna(frame.loc["patient00009", "race_white"])
    assert "patient00004" not in frame.index, "an uncertain effusion is 0"
    edema = found("dne_authors", root, "edema_vs_no_finding").frame.set_index("patient_id")
    assert edema.loc["patient00004", "Edema"] == "1", "an uncertain oedema is 1"


def test_unknown_race_is_missing_and_groups_are_spelled_as_in_chexpert(miniature: Callable[..., Path]) -> None:
    root = miniature("dne_authors")
    table = root / "meta_data" / "train.csv"
    table.write_text(table.read_text().replace("Black or African American", "Race and Ethnicity Unknown"))
    frame = found("dne_authors", root).frame.set_index("patient_id")
    assert frame.loc["patient00001", ["race", "race_white"]].isna().all(), "the authors count it as not White"
    assert frame.loc["patient00007", "race"] == "White", "White, non-Hispanic"
    own, theirs = ({task.name: task.labels for task in all_sources()[name].tasks} for name in ("dne_authors", "chexpert"))
    assert own.items() <= theirs.items()


def test_other_tables_are_refused(miniature: Callable[..., Path]) -> None:
    root = miniature("dne_authors")
    table = root / "meta_data" / "train.csv"
    table.write_text(table.read_text().replace("patient0", "p"))
    with pytest.raises(InputError, match="paths name no patient as 'patient00001'"):
        found("dne_authors", root)
    table.write_text(table.read_text().replace("Pleural Effusion", "Effusion"))
    with pytest.raises(InputError, match="'Pleural Effusion' is absent"):
        found("dne_authors", root)
    table.unlink()
    with pytest.raises(InputError, match="has no file 'meta_data/train"):
        found("dne_authors", root)
