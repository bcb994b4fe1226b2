"""Duke OCT (RPEDC), from a tiny copy of the download to a trained probe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.errors import InputError
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("duke_oct", miniature("duke_oct"), options={"view": "mean"})
    assert len(data) == 24
    assert data.table["patient_id"].nunique() == 24, "AMD 1001 and Control 1001 are two people"
    assert "AMD: 12 here, the provider says 269 (the provider's page)" in data.description["notes"]


def test_files_become_rows(miniature: Callable[..., Path]) -> None:
    root = miniature("duke_oct")
    result = found("duke_oct", root)
    frame = result.frame.set_index("patient_id")
    assert frame.loc["AMD-1003", "image"] == (
        "AMD/Farsiu_Ophthalmology_2013_AMD_Subject_1003.mat#array=images&axis=2&slice=middle&scale=0,255"
    )
    volume = loadmat(root / "AMD" / "Farsiu_Ophthalmology_2013_AMD_Subject_1003.mat")["images"]
    np.testing.assert_array_equal(read_image(root / frame.loc["AMD-1003", "image"]), np.uint16(257) * volume[:, :, 3].astype(np.uint16))
    assert frame.loc["AMD-1003", ["amd", "age", "age_over70", "age5"]].tolist() == ["1", "70", "70 and under", "60 to 79"]
    assert frame.loc["Control-1009", ["amd", "age", "age_over70"]].tolist() == ["0", "79", "over 70"]
    assert pd.isna(frame.loc["AMD-1002", "age60"])
    assert "age: 1 file holds none and counts as missing" in result.notes


def test_copies_other_files_and_an_empty_folder(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("duke_oct")
    name = "Farsiu_Ophthalmology_2013_AMD_Subject_1001.mat"
    (root / "AMD" / "notes.mat").write_bytes(b"MATLAB")
    (root / "AMD" / "Farsiu_Ophthalmology_2013_AMD_Subject_1004.mat").write_bytes(b"cut off")
    notes = found("duke_oct", root).notes
    assert "1 .mat files have other names than a subject's and are not read" in notes
    assert "age: 2 files hold none and count as missing" in notes
    shutil.copy(root / "AMD" / name, root / name)
    with pytest.raises(InputError, match="1 subjects stand in more than one file"):
        found("duke_oct", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no file"):
        found("duke_oct", tmp_path / "empty")
