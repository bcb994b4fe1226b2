"""OASIS-1 and ADNI, from tiny copies of the downloads to tables, and to trained probes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice, prepare_source
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source
from evenhand.errors import InputError

pytest.importorskip("nibabel")
Make = Callable[..., Path]
Story = Callable[..., PreparedData]


def read(name: str, raw: Path, task: str | None = None, **options: str) -> Found:
    source = find_source(name)
    found: Found = source.read(RawFolder(raw, source.INFO.layout), make_choice(source.INFO, task, None, options))
    return found


def test_oasis_from_raw_to_a_trained_probe(miniature: Make, story: Story) -> None:
    data = story("oasis1", miniature("oasis1"))
    assert len(data) == 20
    assert data.cache.dtype == np.uint16
    notes = data.description["notes"]
    assert "5 rows were left out: no clinical dementia rating (excluded.csv)" in notes
    assert any("patients: 24 here, the provider says 416" in note for note in notes)


def test_oasis_ratings_and_sessions(miniature: Make) -> None:
    raw = miniature("oasis1", patients=12)
    found = read("oasis1", raw)
    assert found.counts == {"patients": 12, "sessions": 13, "CDR above 0": 6}
    assert found.frame["cdr"].tolist() == ["0.5", "0", "1", "0", "0.5", "1", "0", "0.5", "0", "1"]
    assert found.frame["dementia"].tolist() == ["1", "0", "1", "0", "1", "1", "0", "1", "0", "1"]
    assert found.frame["ses"].isna().tolist() == [False] * 5 + [True] + [False] * 4
    first = found.frame.iloc[0]
    assert first["image"] == (
        "disc2/OAS1_0002_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0002_MR1_mpr_n4_anon_111_t88_masked_gfc.img"
        "#axis=2&slice=middle&scale=percentile"
    )
    assert (first["patient_id"], first["sex"], first["age60"]) == ("OAS1_0002", "male", "60 and over")
    every = read("oasis1", raw, no_cdr="zero", plane="sagittal", view="max").frame
    assert every["dementia"].notna().all()
    assert every["patient_id"].tolist()[:2] == ["OAS1_0001"] * 2, "a repeated session is the same patient"
    assert every["session"].tolist()[:2] == ["MR1", "MR2"]
    assert every["image"].iloc[0].endswith("#axis=0&project=max&scale=percentile")
    assert read_image(raw / every["image"].iloc[0]).shape == (20, 18)
    assert read_image(raw / first["image"]).shape == (16, 20)


def test_oasis_of_other_names(miniature: Make, tmp_path: Path) -> None:
    raw = miniature("oasis1", patients=3)
    (raw / "oasis_cross-sectional.csv").write_text("ID,M/F,Age,CDR\nOAS2_0001,F,70,0\n")
    with pytest.raises(InputError, match="1 of 1 cells in the column ID is not of the form"):
        read("oasis1", raw)
    (raw / "oasis_cross-sectional.csv").unlink()
    with pytest.raises(InputError, match=r"no file 'oasis_cross-sectional.csv'"):
        read("oasis1", raw)


def test_adni_from_raw_to_a_trained_probe(miniature: Make, story: Story) -> None:
    data = story("adni", miniature("adni", patients=30))
    assert len(data) == 40
    assert data.table["patient_id"].nunique() == 20
    notes = data.description["notes"]
    assert "20 rows were left out: a group that the task leaves out (excluded.csv)" in notes
    assert "1 row was left out: not an MR image (excluded.csv)" in notes
    assert "1 row of ADNI1_Complete_1Yr_1.5T_1_31_2022.csv repeats an image and was taken once" in notes


def test_adni_groups_ages_and_scans(miniature: Make) -> None:
    raw = miniature("adni", patients=9)
    found = read("adni", raw, "diagnosis", scans="first")
    frame = found.frame.set_index("patient_id")
    assert found.counts == {"images": 19, "patients": 9}
    assert frame["diagnosis"].tolist() == ["CN", "AD", "MCI"] * 3
    assert (frame["visit"] == "sc").all(), "the earliest, though it stands below"
    assert frame["sex"].isna().sum() == 1
    assert frame["age"].tolist() == [str(age) for age in range(54, 81, 3)]
    assert frame["age5_adni"].tolist() == ["54 and under", *["55 to 65"] * 3, *["66 to 75"] * 4, "76 to 85"]
    assert frame["age_over75"].tolist() == ["75 and under"] * 8 + ["over 75"]
    assert "I118003.nii#axis=2&slice=middle&scale=percentile&orient=ras" in frame["image"].iloc[1], "its number lacks the I"
    assert set(read("adni", raw, "impaired").frame["impaired"]) == {"0", "1"}
    assert len(read("adni", raw).frame) == 12


def test_adni_series_show_what_the_nifti_file_shows(miniature: Make, tmp_path: Path) -> None:
    series, files = miniature("adni", patients=2), tmp_path / "files"
    files.mkdir()
    from tests.data.sources.miniatures.adni import write

    write(files, patients=2, dicom=False)
    for plane, shape in (("axial", (18, 12)), ("coronal", (20, 12)), ("sagittal", (20, 18))):
        one, other = (read_image(raw / read("adni", raw, plane=plane, view="mean").frame["image"].iloc[-1]) for raw in (series, files))
        assert other.shape == shape
        assert sorted(one.shape) == sorted(shape)
        assert np.array_equal(np.sort(one.ravel()), np.sort(other.ravel())), plane


def test_adni_tables_are_told_from_their_header(miniature: Make, tmp_path: Path) -> None:
    raw = miniature("adni", patients=3)
    table = raw / "ADNI1_Complete_1Yr_1.5T_1_31_2022.csv"
    (raw / "DXSUM.csv").write_text("RID,DX\n1,2\n")
    shutil.copy(table, raw / "ADNI1_Baseline_3T.csv")
    with pytest.raises(InputError, match="holds 2 tables of collections"):
        read("adni", raw)
    assert len(read("adni", raw, table="ADNI1_Baseline_3T.csv").frame) == 4
    (raw / "ADNI1_Baseline_3T.csv").unlink()
    shutil.rmtree(raw / "ADNI" / "002_S_0295")
    with pytest.raises(InputError, match="2 of 4") as caught:
        prepare_source("adni", raw, tmp_path / "out")
    assert "_S_" not in str(caught.value)
