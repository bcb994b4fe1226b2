"""An own folder of DICOM files, from the export to a trained probe; nothing in the table names a person."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.cli.app import main
from evenhand.data.datasets import PreparedData
from evenhand.data.images import fit_grid, read_image, resize_image
from evenhand.data.sources.prepare import prepare_source
from evenhand.data.sources.public import _dicom_headers
from evenhand.errors import ImageError, InputError
from tests.data.sources.miniatures.dicom_folder import write_file
from tests.data.sources.reading import found

PERSONAL = ("Doe", "Jane", "MRN", "19610704", "ACC0", "1.2.826", "20210703")


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("dicom_folder", miniature("dicom_folder"), labels=["effusion"], attributes=["sex", "age60", "ward"])
    assert len(data) == 30
    assert data.cache.dtype == np.uint16
    told = " ".join(data.description["notes"])
    for words in (
        "1 DICOM file holds no image", "1 file cannot be read as DICOM and was passed over, as export/broken.dcm",
        "PatientIdentityRemoved is YES in 16 of 32 headers, NO in 0, absent in 16; names and birth dates were not copied",
        "1 header says that the pixels hold burned-in annotation", "2 ages are from the birth date and the date of the study",
        "1 image has no PatientID: each study counts as a patient of its own", "1 image has several windows in the header",
        "sex: 1 value is neither female nor male ('O' 1) and counts as missing",
        "labels.csv was joined by its column 'SOPInstanceUID' (SOPInstanceUID): 30 of 32 images have a row",
        "columns that may tell who somebody is were not copied: PatientName", "2 rows were left out: no row in labels.csv",
    ):
        assert words in told
    for name in ("table.csv", "dataset.yaml", "excluded.csv"):
        written = (data.root / name).read_text()
        assert not [word for word in PERSONAL if word in written.replace("PatientName", "")]


def test_headers_become_attributes(miniature: Callable[..., Path]) -> None:
    frame = found("dicom_folder", miniature("dicom_folder")).frame
    rows = frame.set_index(frame["image"].str.extract(r"STUDY(\d+)", expand=False).astype(int))
    rows = rows[~rows.index.duplicated()]
    assert rows["sex"].isna().sum() == 2
    assert rows.loc[[1, 2], "sex"].isna().all(), "absent or other is in no group"
    assert rows.loc[3, "age"] == "59", "one day before the birthday"
    assert rows.loc[4, "age"] == "1"
    assert rows.loc[6, ["age", "age60", "age4"]].tolist() == ["90", "60 and over", "80 and over"]
    assert set(frame["view"]) == {"PA", "LL"}
    assert set(frame["manufacturer"]) == {"Acme", "Umbrella"}
    assert "split" not in frame
    assert frame.loc[frame["image"].str.contains("STUDY06"), "patient_id"].nunique() == 1
    assert frame["patient_id"].nunique() == 23
    assert rows.loc[5, "patient_id"] != rows.loc[7, "patient_id"]


@pytest.mark.parametrize("key", ["SOPInstanceUID", "AccessionNumber", "PatientID", "file"])
def test_every_key_joins_the_same_labels(miniature: Callable[..., Path], key: str) -> None:
    frame = found("dicom_folder", miniature("dicom_folder", key=key)).frame
    patients = frame["image"].str.extract(r"STUDY(\d+)", expand=False).astype(int)
    assert (frame["effusion"].astype(int) == patients // 2 % 2).all()
    assert len(frame) == (29 if key == "PatientID" else 30), "the image without a PatientID has no row then"


def test_patient_ids_are_hashed_unless_asked_for(miniature: Callable[..., Path]) -> None:
    root = miniature("dicom_folder")
    plain = found("dicom_folder", root, patient_ids="kept").frame["patient_id"]
    hidden = found("dicom_folder", root).frame["patient_id"]
    assert plain.dropna().str.startswith(("MRN", "1.2")).all()
    assert not hidden.str.contains("MRN").any()
    assert (pd.factorize(plain)[0] == pd.factorize(hidden)[0]).all()
    assert hidden.equals(found("dicom_folder", root).frame["patient_id"])


def test_one_patient_id_for_all_is_said_and_studies_can_take_its_place(tmp_path: Path) -> None:
    """As a de-identifier writes that knows one pseudonym alone."""
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16))
    for k in range(52):
        write_file(tmp_path / f"{k:02d}.dcm", pixels + k, f"1.2.3.{k}", PatientID="ANON", StudyInstanceUID=f"1.2.4.{k // 2}", Modality="DX",
                   PhotometricInterpretation="MONOCHROME2")
    names = [f"{k:02d}.dcm" for k in range(52)]
    pd.DataFrame({"file": names, "y": [k % 2 for k in range(52)]}).to_csv(tmp_path / "labels.csv", index=False)
    result = found("dicom_folder", tmp_path)
    assert result.counts["patients"] == 1
    note = next(note for note in result.notes if "ONE patient" in note)
    assert note.startswith("all 52 images (of 26 studies) have one and the same PatientID and count as ONE patient")
    assert note.endswith("use --option patients=study")
    apart = found("dicom_folder", tmp_path, patients="study")
    assert apart.frame["patient_id"].nunique() == apart.counts["patients"] == 26
    assert not any("ONE patient" in note for note in apart.notes)
    (tmp_path / "51.dcm").unlink()
    (tmp_path / "50.dcm").unlink()
    assert not any("ONE patient" in note for note in found("dicom_folder", tmp_path).notes), "50 images may well be of one"


def test_names_of_files_join_where_they_are_unique(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("dicom_folder", key="file")
    table = pd.read_csv(root / "labels.csv")
    own = tmp_path / "own.csv"
    table.assign(file=table["file"].str.split("/").str[-1]).drop_duplicates("file").to_csv(own, index=False)
    with pytest.raises(InputError, match="are those of several files; write paths from the folder"):
        found("dicom_folder", root, table=str(own))
    for k, path in enumerate(sorted((root / "export").glob("STUDY*/IM*"))):
        path.rename(path.with_name(f"film{k:03d}.dcm"))
    pd.DataFrame({"image": [f"film{k:03d}" for k in range(32)], "effusion": [k % 2 for k in range(32)]}).to_csv(own, index=False)
    frame = found("dicom_folder", root, table=str(own)).frame
    assert len(frame) == 32
    assert frame["effusion"].tolist() == [str(k % 2) for k in range(32)]


def test_the_table_fills_what_headers_lack_and_splits(miniature: Callable[..., Path]) -> None:
    root = miniature("dicom_folder", key="AccessionNumber")
    table = pd.read_csv(root / "labels.csv")
    table["Gender"], table["split"] = "F", [("train", "val", "test")[k % 3] for k in range(len(table))]
    table["view"] = "odd"
    table.to_csv(root / "labels.csv", index=False)
    result = found("dicom_folder", root, split="published")
    sex = result.frame.set_index(result.frame["image"].str.extract(r"STUDY(\d+)", expand=False).astype(int))["sex"]
    assert sex[1] == "female"
    assert sex[11] == "male"
    told = " ".join(result.notes)
    assert "sex: header and table differ in" in told
    assert "the header's value is taken" in told
    assert "sex: 1 image has it from the table" in told
    assert "named as what headers hold were not copied: view" in told
    assert set(result.frame["split"]) == {"train", "val", "test"}
    table.drop(columns="split").to_csv(root / "labels.csv", index=False)
    with pytest.raises(InputError, match="has no column split"):
        found("dicom_folder", root, split="published")


def test_files_of_several_frames_are_refused_or_picked(miniature: Callable[..., Path]) -> None:
    root = miniature("dicom_folder", key="AccessionNumber")
    tags = {"AccessionNumber": "ACC0000", "PatientID": "MRN70000", "PatientSex": "F", "PatientAge": "050Y", "Modality": "OP"}
    write_file(root / "export/cine", np.zeros((5, 48, 40)), "1.2.9", **tags)
    with pytest.raises(InputError, match="1 DICOM file holds 5 frames") as error:
        found("dicom_folder", root)
    assert error.value.details == ("export/cine",)
    assert found("dicom_folder", root, frames="first").modality == "chest_film"
    for how, frames in (("first", [0]), ("middle", [2]), ("all", range(5))):
        result = found("dicom_folder", root, frames=how)
        assert result.frame["image"][result.frame["image"].str.contains("cine")].tolist() == [f"export/cine#frame={k}" for k in frames]
        assert "1 file holds 5 frames: " in " ".join(result.notes)
        assert "headers are of several modalities: DX 32, OP 1" in result.notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "none.csv"}, "option table is 'none.csv', but there is no such file"),
        ({"key": "PatientID"}, "has no column of PatientID to join by; its columns are SOPInstanceUID, effusion"),
        ({"key": "sop"}, "option key is 'sop'"),
    ],
)
def test_wrong_options_are_said(miniature: Callable[..., Path], options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        found("dicom_folder", miniature("dicom_folder"), **options)


def test_tables_that_do_not_fit_are_said(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("dicom_folder")
    table = pd.read_csv(root / "labels.csv")
    pd.concat([table, table[:2]]).to_csv(root / "labels.csv", index=False)
    with pytest.raises(InputError, match=r"has 2 values in several rows \(rows 1, 2, 31, 32\)") as error:
        found("dicom_folder", root)
    assert "1.2.826" not in str(error.value)
    table.assign(SOPInstanceUID="9").iloc[:1].to_csv(root / "labels.csv", index=False)
    with pytest.raises(InputError, match=r"none of the 32 DICOM images has a row in labels\.csv"):
        found("dicom_folder", root)
    (root / "more.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"holds 2 tables \(labels.csv, more.csv\)"):
        found("dicom_folder", root)
    (root / "more.csv").unlink()
    (root / "labels.csv").unlink()
    with pytest.raises(InputError, match="holds no table of labels; say which it is with --option table=FILE"):
        found("dicom_folder", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no DICOM file"):
        found("dicom_folder", tmp_path / "empty")


def test_the_window_of_the_command_line_is_in_the_table(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("dicom_folder", patients=12)
    words = ["prepare", "dicom_folder", str(root), str(tmp_path / "out"), "--label", "effusion", "--size", "32", "--attributes", "sex"]
    assert main([*words, "--dicom-window", "2000,1000"]) == 0
    data = PreparedData.open(tmp_path / "out")
    assert data.table["image"].str.endswith("#window=2000,1000").all()
    assert any("images are taken out of files: " in note and "by window=2000,1000" in note for note in data.description["notes"])
    first = read_image(root / data.table["image"][0])
    assert np.array_equal(data.cache.raw([0])[0], fit_grid(resize_image(first, 32), 1, 16))
    assert main([*words, "--dicom-window", "1"]) == 2, "another window is another data set"
    with pytest.raises(InputError, match="DICOM window is '40,0'"):
        prepare_source("dicom_folder", root, tmp_path / "other", labels=["effusion"], dicom_window="40,0")
    with pytest.raises(ImageError, match="images are missing or cannot be read") as error:
        prepare_source("dicom_folder", root, tmp_path / "other", labels=["effusion"], dicom_window="1")
    assert "window 1 is asked for, but the DICOM header has 1 window" in error.value.details[0]


def test_a_finished_set_is_told_from_names_sizes_and_times(
    miniature: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = miniature("dicom_folder"), tmp_path / "out"
    prepare = partial(prepare_source, "dicom_folder", raw, out, labels=["effusion"], attributes=["sex"], size=16, workers=1)
    first = prepare()
    headers = _dicom_headers.read_headers

    def refuse(*_: object) -> None:
        raise AssertionError("headers are read again")

    monkeypatch.setattr("evenhand.data.sources.public.dicom_folder.read_headers", refuse)
    assert prepare().fingerprint == first.fingerprint
    typed = ["prepare", "dicom_folder", str(raw), str(out), "--label", "effusion", "--attributes", "sex", "--size", "16"]
    assert main(typed) == 0
    assert prepare(bins={}, missing="own_group", fractions=[0.7, 0.1, 0.2]).fingerprint == first.fingerprint
    with pytest.raises(AssertionError, match="read again"):
        prepare(seed=1)
    for changed in (raw / "labels.csv", next(raw.rglob("*.dcm"))):
        times = changed.stat()
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))
        with pytest.raises(AssertionError, match="read again"):
            prepare()
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr("evenhand.data.sources.public.dicom_folder.read_headers", headers)
    os.utime(raw / "labels.csv")
    assert prepare().fingerprint == first.fingerprint


def test_labels_must_be_named(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("dicom_folder")
    with pytest.raises(InputError, match="name them"):
        prepare_source("dicom_folder", root, tmp_path / "out")
    with pytest.raises(InputError, match="label 'efusion' is not a column of the table; did you mean 'effusion'"):
        prepare_source("dicom_folder", root, tmp_path / "out", labels=["efusion"])


def test_chunks_are_put_together_in_order_and_travel_between_processes(
    miniature: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(miniature("dicom_folder"))
    whole = _dicom_headers.read_headers(root)
    monkeypatch.setattr(_dicom_headers, "CHUNK", 5)
    by_pool = lambda function, tasks, workers: reversed([pickle.loads(pickle.dumps(function(task))) for task in tasks])  # noqa: E731
    monkeypatch.setattr(_dicom_headers, "run_chunks", by_pool)
    assert _dicom_headers.read_headers(root) == whole
