"""Whole ways through the command line, as users of different data would type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from .conftest import SMALL, TINY, N, contents

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def through(source: Path, tmp_path: Path, say: Say) -> Callable[..., Path]:
    """Prepare a table and train a probe on it: the run folder."""

    def go(frame: pd.DataFrame, *words: str, images: Path = source / "images") -> Path:
        frame.to_csv(tmp_path / "table.csv", index=False)
        data, run = tmp_path / "data", tmp_path / "run"
        code, _, err = say("prepare", "csv", tmp_path / "table.csv", data, "--images", images, *SMALL, *words)
        assert code == 0, err
        code, _, err = say("train", f"data={data}", *TINY, f"out={run}")
        assert code == 0, err
        assert (run / "report.html").stat().st_size > 10_000
        return run

    return go


def audit_of(run: Path) -> dict:
    return json.loads((run / "audit.json").read_text())


def test_class_names_from_table_to_timm(through: Callable[..., Path], frame: pd.DataFrame, source: Path, tmp_path: Path, say: Say) -> None:
    import timm

    run = through(frame, "--label", "finding", "--attributes", "sex")
    assert set(audit_of(run)["labels"]) == {"bkl", "mel", "nev", "macro"}
    assert say("predict", f"model={run}", f"data={source / 'images'}", f"out={tmp_path / 'scored'}")[0] == 0
    scored = pd.read_parquet(tmp_path / "scored" / "predictions.parquet")
    scores = scored[["y_score_bkl", "y_score_mel", "y_score_nev"]].to_numpy()
    assert len(scored) == N
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert say("export", f"model={run}", f"out={tmp_path / 'exported'}")[0] == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).num_classes == 3


def test_several_labels_one_of_them_empty(
    through: Callable[..., Path], frame: pd.DataFrame, source: Path, tmp_path: Path, say: Say
) -> None:
    frame = frame.assign(second=[str(n % 3 // 2) for n in range(N)], void="")
    run = through(frame, "--label", "label,second,void", "--attributes", "sex,age", "--bins", "age=0,60,100")
    labels = audit_of(run)["labels"]
    assert labels["void"]["overall"]["auc"]["value"] is None
    assert labels["label"]["overall"]["auc"]["n"] > 0
    assert say("predict", f"model={run}", f"data={source / 'images'}", f"out={tmp_path / 'scored'}")[0] == 0


def test_no_validation_rows(through: Callable[..., Path], frame: pd.DataFrame) -> None:
    run = through(frame[frame["split"] != "val"], "--label", "label", "--attributes", "sex")
    assert audit_of(run)["labels"]["label"]["threshold"]["value"] == 0.5


def test_no_attributes_no_patients_no_splits(through: Callable[..., Path], frame: pd.DataFrame) -> None:
    run = through(frame[["image", "label"]], "--label", "label")
    assert audit_of(run)["labels"]["label"]["attributes"] == {}


def test_no_test_rows_is_said_before_training(
    frame: pd.DataFrame, source: Path, tmp_path: Path, say: Say, refused: Callable[..., str]
) -> None:
    frame[frame["split"] != "test"].to_csv(tmp_path / "table.csv", index=False)
    data = tmp_path / "data"
    assert say("prepare", "csv", tmp_path / "table.csv", data, "--images", source / "images", *SMALL, "--label", "label")[0] == 0
    assert "no row 'test'" in refused(2, "train", f"data={data}", *TINY, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_an_attribute_of_numbers_written_as_text(through: Callable[..., Path], frame: pd.DataFrame) -> None:
    frame = frame.assign(skin_type=[f"0{1 + n // 2 % 6}" for n in range(N)])
    run = through(frame, "--label", "label", "--attributes", "skin_type")
    assert set(audit_of(run)["labels"]["label"]["attributes"]["skin_type"]["groups"]) == {"02", "04", "06"}


def test_sixteen_bit_png_and_dicom_give_the_same_scores(frame: pd.DataFrame, source: Path, tmp_path: Path, say: Say) -> None:
    found = []
    for suffix, write in ((".png", write_png), (".dcm", write_dicom)):
        images = tmp_path / suffix[1:]
        images.mkdir()
        for name in frame["image"]:
            pixels = np.asarray(Image.open(source / "images" / name)).astype(np.uint16) * 257
            write(pixels, images / name.replace(".png", suffix))
        table = frame.assign(image=[name.replace(".png", suffix) for name in frame["image"]])
        table.to_csv(tmp_path / f"{suffix[1:]}.csv", index=False)
        data, run = tmp_path / f"data{suffix[1:]}", tmp_path / f"run{suffix[1:]}"
        assert say("prepare", "csv", tmp_path / f"{suffix[1:]}.csv", data, "--images", images, *SMALL, "--label", "label")[0] == 0
        assert say("train", f"data={data}", *TINY, f"out={run}")[0] == 0
        assert say("predict", f"model={run}", f"data={images}", f"out={tmp_path / ('scored' + suffix)}")[0] == 0
        found.append(pd.read_parquet(tmp_path / f"scored{suffix}" / "predictions.parquet")["y_score"].to_numpy())
        assert not any(b"Secret" in path.read_bytes() for folder in (data, run) for path in folder.rglob("*") if path.is_file())
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def write_png(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


def write_dicom(pixels: np.ndarray, path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName = "Secret^Name"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_spaces_and_other_alphabets(frame: pd.DataFrame, source: Path, tmp_path: Path, say: Say) -> None:
    root = tmp_path / "päth with späce 日本"
    (root / "bilder ü").mkdir(parents=True)
    for name in frame["image"]:
        (root / "bilder ü" / f"bild é {name}").write_bytes((source / "images" / name).read_bytes())
    frame = frame.assign(image=[f"bild é {name}" for name in frame["image"]], sex=frame["sex"].map({"f": "weiblich ♀", "m": "männlich"}))
    frame.to_csv(root / "tabelle.csv", index=False)
    words = ["--images", root / "bilder ü", *SMALL, "--label", "label", "--attributes", "sex"]
    assert say("prepare", "csv", root / "tabelle.csv", root / "daten", *words)[0] == 0
    assert say("train", f"data={root / 'daten'}", *TINY, f"out={root / 'lauf ü'}")[0] == 0
    assert say("predict", f"model={root / 'lauf ü'}", f"data={root / 'bilder ü'}", f"out={root / 'p'}")[0] == 0
    assert say("compare", f"a={root / 'lauf ü'}", f"b={root / 'lauf ü'}", "-o", root / "c d.html", "--bootstrap", "20")[0] == 0
    assert (root / "c d.html").exists()
    assert "männlich" in (root / "lauf ü" / "report.html").read_text(encoding="utf-8")


def test_seeds_are_named_one_by_one(prepared: Path, tmp_path: Path, say: Say, refused: Callable[..., str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    code, said, _ = say("train", f"data={prepared}", *TINY, "seeds=0,1", f"out={runs}")
    assert code == 0
    assert said.splitlines() == [*(f"Report: {runs / f'seed={seed}' / 'report.html'}" for seed in (0, 1)), str(runs)]
    assert "holds 2 runs; name one of them" in refused(2, "predict", f"model={runs}", f"data={prepared}", f"out={out}")
    assert "holds 2 runs; name one of them" in refused(2, "export", f"model={runs}", f"out={out}")
    assert not out.exists()
    assert say("predict", f"model={runs / 'seed=1'}", f"data={prepared}", f"out={out}")[0] == 0
    few = ("audit.bootstrap=20", "audit.permutations=20")
    assert say("evaluate", f"model={runs}", f"sets.again={prepared}", *few, f"out={tmp_path / 'e'}")[0] == 0


def test_presets_of_ones_own(prepared: Path, tmp_path: Path, say: Say, refused: Callable[..., str]) -> None:
    folder = tmp_path / "mine"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "short.yaml").write_text("max_epochs: 1\naccelerator: cpu\nprogress: false\n")
    (folder / "trainer" / "wrong.yaml").write_text("max_epoch: 1\n")
    words = ["train", f"data={prepared}", *TINY[:3], *TINY[5:], "method=finetune", "--config-dir", folder, f"out={tmp_path / 'run'}"]
    said = refused(2, *words, "trainer=wrong")
    assert "preset trainer/wrong: unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?" in said
    assert say(*words, "trainer=short")[0] == 0
    assert "max_epochs: 1" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_same_command_again_changes_nothing(probe: Path, prepared: Path, say: Say) -> None:
    before = contents(probe)
    assert say("train", f"data={prepared}", *TINY, f"out={probe}")[0] == 0
    assert contents(probe) == before


def test_predicting_twice_into_one_folder_replaces_the_scores(probe: Path, prepared: Path, tmp_path: Path, say: Say) -> None:
    for split, n in (("test", 12), ("train", 24)):
        assert say("predict", f"model={probe}", f"data={prepared}", f"split={split}", f"out={tmp_path / 'out'}")[0] == 0
        assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == n


def test_a_gate_that_cannot_be_estimated_is_3_and_the_report_is_there(probe: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    words = ["--fail-if", "sex.auc.worst < 0.1", "--bootstrap", "20", "--permutations", "20"]
    assert "1 gate condition failed" in refused(3, "audit", probe, "-o", tmp_path / "out", *words)
    assert (tmp_path / "out" / "report.html").exists()
