"""OL3I, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.errors import InputError
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("ol3i", miniature("ol3i"))
    assert len(data) == 31
    told = data.description["notes"]
    assert "1 row of clinical_data.csv has no slice and 1 slice no row: both are left out" in told
    assert any(note.startswith("images: 32 here, the provider says 8,139") for note in told)


def test_the_table_becomes_a_row_an_examination(miniature: Callable[..., Path]) -> None:
    root = miniature("ol3i")
    result = found("ol3i", root, "ihd_5y", grey="full")
    frame = result.frame
    assert len(frame) == 30
    assert result.left_out is not None
    assert result.left_out["reason"].tolist() == ["no slice in l3_slices.h5", "no label_5y"]
    assert frame["split"].tolist()[:4] == ["train", "train", "val", "test"]
    assert pd.isna(frame["sex"][1])
    assert frame.loc[2, ["age", "age60", "age_over60", "sex", "ihd_5y"]].tolist() == ["60", "60 and over", "60 and under", "male", "1"]
    assert frame["image"][0].startswith("l3_slices.h5#array=")
    assert frame["image"][0].endswith("&scale=-1000,1000")
    assert read_image(root / frame["image"][1])[2, 2] == round(1220 / 2000 * 65535)


def test_slices_of_eight_bits_are_taken_as_they_are(miniature: Callable[..., Path]) -> None:
    frame = found("ol3i", miniature("ol3i", dtype=np.uint8)).frame
    assert not frame["image"].str.contains("window").any()


def test_bad_files_are_said(miniature: Callable[..., Path]) -> None:
    root = miniature("ol3i")
    table = root / "clinical_data.csv"
    text = table.read_text()
    table.write_text(text.replace("set_1y", "split_1y"))
    with pytest.raises(InputError, match="use --split patient"):
        found("ol3i", root)
    table.write_text(text.replace("label_1y", "label1y"))
    with pytest.raises(InputError, match="did you mean 'label1y'"):
        found("ol3i", root)
    (root / "l3_slices.h5").write_bytes(b"half a file")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        found("ol3i", root, "ihd_5y")
