"""From a table and a folder to a prepared data set, and every way in which that is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.errors import EvenhandError, ImageError, InputError, TableError

Edit = Callable[[pd.DataFrame], pd.DataFrame]


def prepare(cohort: Path, out: Path | None = None, **options: Any) -> PreparedData:
    defaults: dict[str, Any] = {
        "images": cohort, "labels": ["y"], "attributes": ["sex", "age", "sex*age"], "bins": {"age": (0, 50, 200)}, "size": 8, "workers": 1,
    }
    return prepare_csv(cohort / "metadata.csv", out or cohort.parent / "out", **(defaults | options))


def rewrite(cohort: Path, edit: Edit) -> None:
    edit(pd.read_csv(cohort / "metadata.csv", dtype=str)).to_csv(cohort / "metadata.csv", index=False)


def test_a_prepared_data_set_opens_with_everything(cohort: Path) -> None:
    data = prepare(cohort)
    assert len(data) == 24
    assert data.labels().shape == (24, 1)
    assert data.groups()["sex*age"].keys == ("f*[0,50)", "f*[50,200)", "m*[0,50)", "m*[50,200)")
    assert data.patients.tolist() == [k // 2 for k in range(24)]
    assert data.rows("test").tolist() == [4, 5, 10, 11, 16, 17, 22, 23]
    assert data.description["counts"]["test"] == {"rows": 8, "patients": 4, "positives": {"y": 4}}
    assert data.images(data.rows("val")).shape == (1, 8, 8)
    again = PreparedData.open(cohort.parent / "out")
    assert again.fingerprint == data.fingerprint == data.description["hashes"]["data"]
    with pytest.raises(InputError, match="did you mean 'sex'"):
        data.groups(["sexx"])
    with pytest.raises(InputError, match="not a label"):
        data.labels(["z"])


def test_opening_does_not_import_torch(cohort: Path) -> None:
    prepare(cohort)
    folder = str(cohort.parent / "out")
    code = f"import sys; from evenhand.data.datasets import PreparedData; PreparedData.open({folder!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_the_same_call_is_a_no_op_and_another_is_refused(cohort: Path) -> None:
    data = prepare(cohort)
    before = (data.root / "dataset.yaml").stat().st_mtime_ns
    assert prepare(cohort).fingerprint == data.fingerprint
    assert (data.root / "dataset.yaml").stat().st_mtime_ns == before
    others = (({"size": 9}, "size: 8 there, 9 here"), ({"attributes": ["sex"], "bins": {}}, "attributes: .* there, sex here"),
              ({"seed": 1}, "seed: 0 there, 1 here"))
    for options, words in others:
        with pytest.raises(InputError, match=words):
            prepare(cohort, **options)


def test_splits_are_made_by_patient_and_equal_images_stay_together(cohort: Path) -> None:
    os.replace(cohort / "images" / "00.png", cohort / "images" / "23.png")
    (cohort / "images" / "00.png").write_bytes((cohort / "images" / "23.png").read_bytes())
    rewrite(cohort, lambda frame: frame.drop(columns="split"))
    data = prepare(cohort, fractions=(0.5, 0.25, 0.25))
    split = pd.Series(data.split)
    assert split.groupby(data.patients).nunique().max() == 1
    assert split[0] == split[23]
    assert any("drawn by patient with seed 0" in note for note in data.description["notes"])


def test_equal_images_across_given_splits_are_said(cohort: Path) -> None:
    (cohort / "images" / "00.png").write_bytes((cohort / "images" / "23.png").read_bytes())
    assert any("1 image content is in more than one split (rows 1, 24)" in note for note in prepare(cohort).description["notes"])


def test_without_patient_ids_each_image_is_a_patient(cohort: Path) -> None:
    rewrite(cohort, lambda frame: frame.drop(columns="patient_id"))
    data = prepare(cohort)
    assert len(set(data.patients)) == 24
    assert any("own patient" in note for note in data.description["notes"])


def test_keep_going_leaves_bad_images_out_and_lists_them(cohort: Path) -> None:
    (cohort / "images" / "03.png").write_bytes(b"x")
    (cohort / "images" / "07.png").unlink()
    with pytest.raises(ImageError, match="2 of 24") as caught:
        prepare(cohort)
    assert caught.value.exit_code == 2
    assert not (cohort.parent / "out").exists()
    data = prepare(cohort, keep_going=True)
    assert len(data) == 22
    assert pd.read_csv(data.root / "excluded.csv")["image"].tolist() == ["images/03.png", "images/07.png"]
    assert data.description["excluded"] == {"missing_attribute": 0, "unreadable_image": 2}


def test_missing_policies(cohort: Path) -> None:
    rewrite(cohort, lambda frame: frame.assign(sex=[None, *frame["sex"][1:]]))
    kept = prepare(cohort)
    assert kept.groups()["sex"].codes[0] == kept.groups()["sex*age"].codes[0] == -1
    assert len(prepare(cohort, cohort.parent / "drop", missing="drop")) == 23
    with pytest.raises(TableError, match="missing in row 1"):
        prepare(cohort, cohort.parent / "error", missing="error")


def test_ages_written_in_years_and_exact_repeats(cohort: Path) -> None:
    rewrite(cohort, lambda frame: pd.concat([frame.assign(age="0" + frame["age"] + "Y"), frame.assign(age="0" + frame["age"] + "Y")[:2]]))
    data = prepare(cohort)
    assert len(data) == 24
    assert data.table["age"][0] == "20"
    text = "\n".join(data.description["notes"])
    assert "24 values in years" in text or "26 values in years" in text
    assert "2 rows repeat an earlier row" in text


def test_class_names_and_other_column_names(cohort: Path) -> None:
    rewrite(cohort, lambda frame: frame.assign(dx=["a", "b", "c"] * 8).rename(columns={"image": "file", "patient_id": "pid"}))
    data = prepare(cohort, labels=["dx"], columns=("file", "pid", "split"))
    assert data.spec.kind == "multiclass"
    assert data.spec.classes == ("a", "b", "c")
    assert data.labels()[:4].tolist() == [0, 1, 2, 0]
    assert data.description["counts"]["test"]["positives"] == {"a": 0, "b": 4, "c": 4}


def _set(column: str, row: int, value: object) -> Edit:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return edit


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        (_set("image", 1, "images/00.png"), {}, r"image 'images/00.png' is listed 2 times \(rows 1, 2\)"),
        (_set("y", 4, "2"), {}, "row 5: y is '2'"),
        (_set("split", 1, "test"), {}, "one patient is in the splits test, train"),
        (_set("age", 0, "999"), {}, r"row 1: age is '999', outside its bins \[0, 200\)"),
        (lambda f: f.assign(y="1"), {}, "one class only"),
        (lambda f: f.assign(sex=None), {}, "missing in all 24 rows"),
        (lambda f: f, {"labels": ["Y"]}, "did you mean 'y'"),
        (lambda f: f, {"max_groups": 3}, "4 groups, more than max_groups = 3"),
        (lambda f: f, {"modality": "xray"}, "must be one of chest_film"),
        (lambda f: f, {"resize": "zoom"}, "must be one of crop"),
        (lambda f: f, {"images": "nowhere"}, "is not a folder"),
        (lambda f: f, {"missing": "guess"}, "must be one of own_group"),
        (lambda f: f, {"columns": ("file", "patient_id", "split")}, "column 'file'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(cohort: Path, edit: Edit, options: dict[str, Any], words: str) -> None:
    rewrite(cohort, edit)
    with pytest.raises(InputError, match=words) as caught:
        prepare(cohort, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.summary
    assert not (cohort.parent / "out").exists()


def test_folders_that_are_not_ours_are_left_alone(cohort: Path) -> None:
    with pytest.raises(InputError, match="holds the source table"):
        prepare(cohort, cohort)
    (cohort.parent / "full").mkdir()
    (cohort.parent / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"not empty \(thesis.txt\)"):
        prepare(cohort, cohort.parent / "full")
    with pytest.raises(InputError, match="is a file"):
        prepare(cohort, cohort / "metadata.csv")


def test_what_does_not_agree_does_not_open(cohort: Path) -> None:
    data = prepare(cohort)
    table = (data.root / "table.csv").read_text()
    (data.root / "table.csv").write_text(table.replace(",f,", ",m,", 1))
    with pytest.raises(InputError, match="was changed"):
        PreparedData.open(data.root)
    (data.root / "table.csv").write_text(table)
    description = (data.root / "dataset.yaml").read_text()
    for bad in (": [", "schema: other/1\n", description.replace("modality:", "mood:")):
        (data.root / "dataset.yaml").write_text(bad)
        with pytest.raises(InputError):
            PreparedData.open(data.root)
    (data.root / "dataset.yaml").unlink()
    with pytest.raises(InputError, match="not finished"):
        PreparedData.open(data.root)
    with pytest.raises(InputError, match="not a prepared data set"):
        PreparedData.open(cohort)
    assert prepare(cohort).fingerprint == data.fingerprint  # the same call finishes it


def test_a_full_disk_at_the_end_leaves_no_data_set(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def full(source: str, target: Path) -> None:
        if Path(target).name == "dataset.yaml":
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(EvenhandError) as caught:
            prepare(cohort)
    assert caught.value.exit_code == 4
    assert not list((cohort.parent / "out").glob(".*.tmp"))
    with pytest.raises(InputError, match="not finished"):
        PreparedData.open(cohort.parent / "out")
    assert len(prepare(cohort)) == 24


SHARED = Path(os.environ.get("EVENHAND_SHARED", Path(__file__).parents[3] / "shared")) / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data with real images is not here")
@pytest.mark.parametrize(
    ("name", "labels", "n", "notes"),
    [
        ("pad-ufes-mini", ["malignant"], 109, ["'fitzpatrick' has groups of one patient: 5, 6", "'sex' is missing in 34 of 109 rows"]),
        ("covid-cxr-mini", ["covid19", "no_finding"], 166, ["'age' is missing in 4 of 166 rows"]),
    ],
)
def test_real_sets(tmp_path: Path, name: str, labels: list[str], n: int, notes: list[str]) -> None:
    folder = SHARED / name
    attributes = ["sex", "age"] + (["fitzpatrick"] if "pad" in name else [])
    data = prepare_csv(
        folder / "metadata.csv", tmp_path / "out", images=folder, labels=labels, attributes=attributes, bins={"age": (0, 60, 200)}, size=32,
        workers=1,
    )
    assert len(data) == n
    assert np.isin(data.split, ["train", "val", "test"]).all()
    for note in notes:
        assert any(note in line for line in data.description["notes"]), data.description["notes"]


def test_images_with_more_than_eight_bits_make_a_sixteen_bit_cache(cohort: Path) -> None:
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(cohort / "images" / "05.png")
    data = prepare(cohort)
    assert data.cache.dtype == np.uint16
    assert (data.cache.raw([5]) == 40000).all()
    assert data.cache.raw([4]).max() > 40000  # 8-bit images use the same range
