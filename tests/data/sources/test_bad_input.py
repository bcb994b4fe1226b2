"""What can be wrong with a download: one readable line that says what to do, nothing half-written, and it works once corrected."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.cli.app import main
from evenhand.data import building, datasets
from evenhand.data import prepare as preparing
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.sources.prepare import make_choice, prepare_source
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source, source_names
from evenhand.errors import DiskFullError, EvenhandError, ImageError, InputError

TABLES = (".csv", ".csv.gz", ".tsv", ".tab", ".txt", ".xlsx", ".json", ".parquet", ".h5", ".pkl")
TABLE = "Data_Entry_2017_v2020.csv"


@pytest.fixture
def raw(miniature: Callable[..., Path]) -> Path:
    """A whole raw folder of NIH ChestX-ray14."""
    return miniature("nih", patients=12)


def refusal(raw: Path, out: Path, **options: object) -> EvenhandError:
    """What `prepare_source` says; nothing is written."""
    with pytest.raises(EvenhandError) as caught:
        prepare_source("nih", raw, out, **{"size": 8, "workers": 1, **options})  # type: ignore[arg-type]
    assert not out.exists()
    assert "\n" not in caught.value.summary
    return caught.value


def works(raw: Path, out: Path, **options: object) -> datasets.PreparedData:
    return prepare_source("nih", raw, out, size=8, workers=1, **options)


def test_the_archive_itself_is_given(raw: Path, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "CXR8"), "zip", raw))
    assert "is an archive; unpack it" in refusal(packed, tmp_path / "out").summary
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path / "out").summary
    (tmp_path / "empty").mkdir()
    assert "it is empty" in refusal(tmp_path / "empty", tmp_path / "out").summary


def test_archives_are_not_unpacked_at_all(raw: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (raw / "images").iterdir())
    shutil.rmtree(raw / "images")
    (raw / "images").mkdir()
    for k in range(1, 13):
        (raw / "images" / f"images_{k:03d}.tar.gz").write_bytes(b"\x1f\x8b")
    error = refusal(raw, tmp_path / "out", keep_going=True)
    assert error.summary.startswith(f"none of the 24 images that the set's tables name is in {raw}")
    assert "(images/images_001.tar.gz, images/images_002.tar.gz, " in error.summary
    assert "(12 in all)): unpack them in place" in error.summary
    assert error.details == tuple(f"images/{name}" for name in names)


def test_archives_are_half_unpacked(raw: Path, tmp_path: Path) -> None:
    """The other spelling of the layout: one folder an archive, the last of which is not there."""
    names = sorted(path.name for path in (raw / "images").iterdir())
    for k, name in enumerate(names):
        folder = raw / f"images_{k // 8 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (raw / "images" / name).rename(folder / name)
    (raw / "images").rmdir()
    whole = works(raw, tmp_path / "whole")
    shutil.rmtree(raw / "images_003")
    error = refusal(raw, tmp_path / "out")
    assert f"8 of 24 images that the set's tables name are not in {raw}" in error.summary
    assert "these folders are not there at all: images; unpack their archives, or leave these rows out with --keep-going" in error.summary
    (raw / "images_003.tar.gz").write_bytes(b"\x1f\x8b")
    assert "archives lie there that are not unpacked (images_003.tar.gz): unpack them in place" in refusal(raw, tmp_path / "out").summary
    part = works(raw, tmp_path / "out", keep_going=True)
    assert (len(whole), len(part)) == (24, 16)
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert excluded["reason"].tolist() == ["its image is not in the raw folder"] * 8
    assert "8 rows were left out: its image is not in the raw folder (excluded.csv)" in part.description["notes"]
    assert part.description["excluded"]["definition"] == 8


def test_classes_that_are_still_packed_are_told_where_rows_come_from_folders(
    miniature: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a table, nothing else says that half of the archives was not unpacked."""
    eyes = miniature("duke_oct")
    whole = prepare_source("duke_oct", eyes, tmp_path / "whole", size=8, workers=1).description["notes"]
    assert not any("archives lie there" in note for note in whole)
    control = next(path.parent for path in sorted(eyes.rglob("*.mat")) if "Control" in path.name)
    shutil.make_archive(str(control), "zip", control)
    shutil.rmtree(control)
    assert main(["prepare", "duke_oct", str(eyes), str(tmp_path / "out"), "--size", "8", "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "error: label 'amd' has one class only in the whole table" in said
    assert not (tmp_path / "out").exists()
    note = f"archives lie there ({control.name}.zip): what is packed in them alone is not read"
    shutil.unpack_archive(str(control.with_suffix(".zip")), control)
    data = prepare_source("duke_oct", eyes, tmp_path / "again", size=8, workers=1)
    assert note in data.description["notes"], "the set is smaller than the published one, so the archive may hold more"


@pytest.mark.parametrize("level", ["one up", "one down"])
def test_a_wrong_folder_level(raw: Path, tmp_path: Path, level: str) -> None:
    given = raw.parent if level == "one up" else raw / "images"
    error = refusal(given, tmp_path / "out")
    assert f"{raw} has it: give that folder" in error.summary
    assert error.details[0].startswith("Data_Entry_2017_v2020.csv")


def test_missing_images_are_named_ten_of_them_and_counted(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = sorted((raw / "images").iterdir())[2:15]
    for path in gone:
        path.unlink()
    assert main(["prepare", "nih", str(raw), str(tmp_path / "out"), "--size", "8", "--problems", str(tmp_path / "all.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "13 of 24 images that the set's tables name are not in" in lines[0]
    assert lines[1:11] == [f"  images/{path.name}" for path in gone[:10]]
    assert lines[11:] == ["  … and 3 more"]
    assert len((tmp_path / "all.txt").read_text().splitlines()) == 14
    assert not (tmp_path / "out").exists()


def test_changed_column_names_are_met_with_the_nearest_one(raw: Path, tmp_path: Path) -> None:
    table = raw / TABLE
    text = table.read_text()
    table.write_text(text.replace("Image Index", "Image_Index").replace("Patient Age", "Age of Patient"))
    error = refusal(raw, tmp_path / "out")
    assert "'Image Index' is absent, did you mean 'Image_Index'?" in error.summary
    assert "'Patient Age' is absent" in error.summary
    assert "Is it the file of this data set?" in error.summary
    table.write_text(text)
    assert len(works(raw, tmp_path / "out")) == 24


def test_columns_of_other_names_are_listed_once(miniature: Callable[..., Path], tmp_path: Path) -> None:
    films = miniature("chexpert", patients=12)
    table = films / "train.csv"
    table.write_text(table.read_text().replace("Sex", "Gender", 1).replace("Frontal/Lateral", "View", 1))
    with pytest.raises(InputError) as caught:
        prepare_source("chexpert", films, tmp_path / "out")
    assert "'Sex' is absent; 'Frontal/Lateral' is absent; the columns that are not known: Gender, View." in caught.value.summary
    assert str(table) in caught.value.summary


def test_a_file_of_the_download_is_absent(raw: Path, tmp_path: Path) -> None:
    (raw / TABLE).rename(raw / "Data_Entry_2017_v2020 (1).csv")
    assert "the nearest name there is 'Data_Entry_2017_v2020 (1).csv'" in refusal(raw, tmp_path / "out").summary
    (raw / "Data_Entry_2017_v2020 (1).csv").unlink()
    (raw / TABLE).mkdir()
    assert f"'{TABLE}' is a folder there: unpack the download again" in refusal(raw, tmp_path / "out").summary
    folder = RawFolder(raw, "layout")
    with pytest.raises(InputError, match=r"has no file 'a.csv', also not in the folders named below; it holds "):
        folder.file("a.csv", "b/a.csv", "c/a.csv", "d/a.csv")


def test_a_part_of_the_archives_is_named(miniature: Callable[..., Path], tmp_path: Path) -> None:
    photographs = miniature("ham10000")
    shutil.rmtree(photographs / "HAM10000_images_part_2")
    with pytest.raises(ImageError, match=r"these folders are not there at all: HAM10000_images_part_2; unpack their archives") as caught:
        prepare_source("ham10000", photographs, tmp_path / "out")
    assert all(line.startswith("HAM10000_images_part_2/ISIC_") for line in caught.value.details)


def test_the_lists_of_a_published_split_are_absent(raw: Path, tmp_path: Path) -> None:
    (raw / "test_list.txt").unlink()
    summary = refusal(raw, tmp_path / "out").summary
    assert "has no file 'test_list.txt', of the published split; download it, or use --split patient" in summary
    assert len(works(raw, tmp_path / "out", split="patient")) == 24


def test_a_table_that_may_not_be_read(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(raw / TABLE))

    monkeypatch.setattr(pd, "read_csv", refused)
    summary = refusal(raw, tmp_path / "out").summary
    assert summary == f"{raw / TABLE} cannot be read (permission denied); give yourself the right to read it"


def test_an_own_set_without_attributes_is_told_which_there_are(miniature: Callable[..., Path], tmp_path: Path) -> None:
    data = prepare_source("image_folder", miniature("image_folder"), tmp_path / "out", size=8, workers=1)
    note = next(note for note in data.description["notes"] if note.startswith("no attribute was chosen"))
    assert "--attributes sex" in note
    assert "File" not in note


def test_images_without_rows_are_counted(raw: Path, tmp_path: Path) -> None:
    table = raw / TABLE
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:4], *lines[6:]]) + "\n")
    (raw / "images" / "readme.txt").write_text("not an image")
    notes = works(raw, tmp_path / "out").description["notes"]
    assert "2 image files are in no row of the set's tables and were left aside (images 2)" in notes


def test_unreadable_images(raw: Path, tmp_path: Path) -> None:
    images = sorted((raw / "images").iterdir())
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:-40])
    images[2].write_text("<html>please log in</html>")
    error = refusal(raw, tmp_path / "out")
    assert isinstance(error, ImageError)
    assert "3 of 24 images are missing or cannot be read" in error.summary
    assert [line.split(": ")[-1] for line in error.details[:1]] == ["file is empty (0 bytes)"]
    data = works(raw, tmp_path / "out", keep_going=True)
    assert len(data) == 21
    assert "3 rows were left out for an image that cannot be read (excluded.csv)" in data.description["notes"]


def test_mixed_colour_modes(raw: Path, tmp_path: Path) -> None:
    images = sorted((raw / "images").iterdir())
    for path, mode in zip(images, ("RGB", "RGBA", "P", "LA", "1", "I;16", "CMYK"), strict=False):
        picture = Image.open(path).convert("L")
        picture = Image.fromarray(np.array(picture, np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
        picture.save(path, format="TIFF" if mode == "CMYK" else "PNG")
    data = works(raw, tmp_path / "out")
    assert (data.cache.shape, data.cache.dtype.name) == ((1, 8, 8), "uint16")
    assert works(raw, tmp_path / "colour", channels=3).cache.shape == (3, 8, 8)


def test_paths_with_spaces_and_letters_of_all_kinds(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = raw.rename(tmp_path / "Röntgen 胸部 #2 & 'más'")
    out = tmp_path / "vorbereitet für später"
    assert main(["prepare", "nih", str(place), str(out), "--size", "8", "--workers", "1"]) == 0
    assert str(out) in capsys.readouterr().out
    assert datasets.PreparedData.open(out).description["source"]["raw"] == str(place)


def test_the_raw_folder_may_be_read_only(raw: Path, tmp_path: Path) -> None:
    for path in [raw, *raw.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = {path: path.stat().st_mtime_ns for path in [raw, *raw.rglob("*")]}
        works(raw, tmp_path / "out")
        assert {path: path.stat().st_mtime_ns for path in [raw, *raw.rglob("*")]} == before
    finally:
        for path in [raw, *raw.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_folders_that_may_not_be_read(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the operating system refuses it to all but the super-user."""
    usual = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "images":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{raw / 'images'} cannot be read (permission denied)" in refusal(raw, tmp_path / "out").summary


def test_a_place_that_may_not_be_written_is_refused_before_anything_is_read(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the operating system refuses it to all but the super-user; on file systems that are mounted to be read, to all."""
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "theirs" and usual(path, mode))
    (tmp_path / "theirs").mkdir()
    for out in (tmp_path / "theirs" / "prepared" / "nih", tmp_path / "theirs" / "nih"):
        said = refusal(raw, out).summary
        assert said == (
            f"{out} cannot be written: there is no right to write in {tmp_path / 'theirs'}; "
            "give yourself the right, or choose another folder for the data set"
        )
    with pytest.raises(InputError, match="no right to write in"):
        works(raw, tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file; choose another folder" in refusal(raw, tmp_path / "file" / "nih").summary


@pytest.mark.parametrize("inside", [".", "images", "prepared/nih"])
def test_nothing_is_written_into_the_raw_folder(raw: Path, inside: str) -> None:
    with pytest.raises(InputError, match=r"lies inside the raw folder .*; choose a folder outside it"):
        prepare_source("nih", raw, raw / inside, size=8)
    assert not (raw / "prepared").exists()


def test_a_full_disk(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    assert isinstance(refusal(raw, tmp_path / "out"), DiskFullError)
    monkeypatch.undo()
    full = preparing.write_atomic

    def write(path: Path, data: bytes) -> None:
        if Path(path).name == "dataset.yaml":
            raise DiskFullError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        full(path, data)

    monkeypatch.setattr(preparing, "write_atomic", write)
    with pytest.raises(DiskFullError):
        works(raw, tmp_path / "out")
    with pytest.raises(InputError, match="was not finished; run the same 'evenhand prepare' command again"):
        datasets.PreparedData.open(tmp_path / "out")
    monkeypatch.undo()
    assert len(works(raw, tmp_path / "out")) == 24


def test_tables_that_are_no_tables(raw: Path, tmp_path: Path) -> None:
    table = raw / TABLE
    whole = table.read_bytes()
    for content, reason in (
        (b"", "No columns to parse"), (b"PK\x03\x04" + bytes(range(256)), "cannot be read as a table"),
        (b"\xff\xfe\x00a", "cannot be read as a table"),
        (whole[:40], "is absent"), (whole.splitlines()[0], f"{TABLE} has no rows below its header; download it again"),
    ):
        table.write_bytes(content)
        assert reason in refusal(raw, tmp_path / "out").summary
    table.write_bytes(whole)
    (raw / "test_list.txt").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in refusal(raw, tmp_path / "out").summary


def test_another_configuration_in_the_same_folder_is_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    works(raw, out)
    with pytest.raises(InputError, match=r"holds a data set of another configuration \(split: published there, patient here\)"):
        works(raw, out, split="patient")
    with pytest.raises(InputError, match=r"of another configuration \(attributes: sex, age60 there, view here\); choose"):
        works(raw, out, attributes=["view"])
    columns = ("Image Index", "Patient ID", "split")
    with pytest.raises(InputError, match=r"of another configuration \(data set: nih there, csv here\); choose"):
        prepare_csv(raw / TABLE, out, images=raw / "images", columns=columns, labels=["Follow-up #"], kind="multiclass")
    table = raw / TABLE
    kept = table.read_text()
    table.write_text("\n".join(kept.splitlines()[:-1]))
    with pytest.raises(InputError, match=r"\(the same choices, but other rows: the source's files have changed"):
        works(raw, out)
    table.write_text(kept)
    assert len(works(raw, out)) == 24


def test_what_was_read_is_said_before_decoding_and_a_finished_set_is_called_so(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    works(raw, tmp_path / "out")
    lines = [record.getMessage() for record in caplog.records]
    read = lines.index(next(line for line in lines if line.startswith("images: 24 here, the provider says")))
    assert read < lines.index(next(line for line in lines if line.startswith("cached 24 images")))
    assert len(lines) == len(set(lines))
    caplog.clear()
    works(raw, tmp_path / "out")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1] == f"{tmp_path / 'out'} is finished already, and is left as it is"
    assert not any(line.startswith("images: 24 here") for line in lines)


def test_a_number_without_edges_is_no_set_of_groups(raw: Path, tmp_path: Path) -> None:
    notes = works(raw, tmp_path / "out", attributes=["age"]).description["notes"]
    note = next(note for note in notes if "groups of one patient" in note)
    assert note.endswith("in all); cut it into few groups, as --bins age=0,60,200")


@pytest.mark.parametrize(("options", "says"), [
    ({"task": "finding"}, "nih has no task 'finding'; did you mean 'findings'?"),
    ({"labels": ["Edema"]}, "the task 'no_finding' of nih has no label 'Edema'; the task 'findings' has it: --task findings"),
    ({"task": "findings", "labels": ["Oedema"]}, "did you mean 'Edema'?"),
    ({"attributes": ["sexx"]}, "nih has no attribute 'sexx'; did you mean 'sex'?"),
    ({"attributes": ["sex*age6"]}, "nih has no attribute 'age6'; did you mean 'age60'?"),
    ({"attributes": ["patient_id"]}, "nih has no attribute 'patient_id'; known are sex, age60, age_over60, age4, age5, view"),
    ({"split": "random"}, "split is 'random', but nih can be split by: published or patient"),
    ({"options": {"uncertain": "ones"}}, "nih has no option 'uncertain'; it has none"),
    ({"kind": "multiclass"}, "the task 'no_finding' has its kind, binary; leave out kind"),
    ({"modality": "xray"}, "modality is 'xray', but must be one of chest_film"),
    ({"size": -4}, "size is -4, but must be 1 to 8192 pixels"),
    ({"channels": 2}, "channels is 2, but must be 1 or 3"),
    ({"resize": "squash"}, "resize is 'squash', but must be one of crop, pad, stretch"),
    ({"fractions": (1, 1, 1)}, "must be three shares"),
    ({"missing": "guess"}, "missing is 'guess', but must be one of own_group, drop, error"),
    ({"bins": {"age": (0, 60, 200)}}, "bins were given for 'age', which is not among the attributes"),
])
def test_wrong_options_offer_the_nearest(raw: Path, tmp_path: Path, options: dict[str, object], says: str) -> None:
    assert says in str(refusal(raw, tmp_path / "out", **options))


def test_an_own_table_goes_the_same_way(raw: Path, tmp_path: Path) -> None:
    """The source csv: missing and unreadable images are refused or left out alike."""
    table = pd.DataFrame({"image": sorted(path.name for path in (raw / "images").iterdir()), "y": [0, 1] * 12})
    table.to_csv(tmp_path / "own.csv", index=False)
    (raw / "images" / table["image"][3]).unlink()
    with pytest.raises(ImageError, match="1 of 24 images are missing or cannot be read"):
        prepare_csv(tmp_path / "own.csv", tmp_path / "own", images=raw / "images", labels=["y"], size=8, workers=1)
    assert not (tmp_path / "own").exists()
    data = prepare_csv(tmp_path / "own.csv", tmp_path / "own", images=raw / "images", labels=["y"], size=8, workers=1, keep_going=True)
    assert len(data) == 23
    assert re.search(r"1 row was left out for an image that cannot be read", str(data.description["notes"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", source_names())
def test_every_source_meets_damaged_tables_with_one_line(name: str, tmp_path: Path, miniature: Callable[..., Path]) -> None:
    """Each of the first tables empty, cut in the middle or of random bytes; and a folder without anything."""
    source, choice = find_source(name), make_choice(find_source(name).INFO, None, None, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvenhandError):
        source.read(RawFolder(tmp_path / "empty"), choice)
    raw = miniature(name)
    tables = [path for path in sorted(raw.rglob("*")) if path.name.lower().endswith(TABLES)][:2]
    for path in tables:
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], bytes(range(256)) * 4):
            path.write_bytes(content)
            with suppress(EvenhandError):
                source.read(RawFolder(raw), choice)
        path.write_bytes(whole)
