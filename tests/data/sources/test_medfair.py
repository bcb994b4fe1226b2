"""Metadata prepared for MEDFAIR, from tiny copies to trained probes; the pickles are never unpickled."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.errors import ImageError, InputError
from tests.data.sources.reading import found


def test_from_pickles_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("medfair", miniature("medfair"))
    assert len(data) == 30
    assert data.modality == "dermoscopy"
    told = data.description["notes"]
    assert "the tables are taken for MEDFAIR's HAM10000: label 'binaryLabel'" in told
    assert "images are read from MEDFAIR's pickles; colours are taken as blue first, turned to red first" in told
    reddish = data.images(data.rows("train")).batch(range(4)).mean((0, 2, 3))
    assert reddish[0] > reddish[2], "the pickles hold blue first"


def test_the_tables_become_rows(miniature: Callable[..., Path]) -> None:
    root = miniature("medfair")
    frame = found("medfair", root).frame
    assert frame["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    assert frame["image"][18] == "pkls/val_images.pkl#row=0&colours=bgr"
    second, third = frame.iloc[1], frame.iloc[2]
    assert (second.patient_id, second.label, third.age_binary, third.age_over60, third.age60) == (
        "HAM_0000000", "1", "younger", "60 and under", "60 and over"
    )
    assert frame["sex"].isna().tolist()[:3] == [False, True, False], "MEDFAIR would count it as female"
    assert found("medfair", root, colours="rgb").frame["image"][18] == "pkls/val_images.pkl#row=0"


def test_papila_chexpert_and_oct_are_told_apart(miniature: Callable[..., Path], tmp_path: Path) -> None:
    from tests.data.sources.miniatures.medfair import write

    write(tmp_path / "papila", kind="PAPILA")
    papila = found("medfair", tmp_path / "papila")
    assert (papila.modality, len(papila.frame)) == ("fundus", 29)
    assert papila.frame["image"][0] == "images/RET000OD.jpg"
    (tmp_path / "papila" / "images").rename(tmp_path / "papila" / "FundusImages")
    assert found("medfair", tmp_path / "papila").frame["image"][0] == "FundusImages/RET000OD.jpg", "as PAPILA unpacks"
    assert papila.left_out is not None
    assert papila.left_out["reason"].tolist() == ["suspicious, neither healthy nor glaucoma"]
    write(tmp_path / "cxp", kind="CXP")
    films = found("medfair", tmp_path / "cxp")
    assert (films.modality, len(films.frame)) == ("chest_film", 30)
    assert films.frame.loc[1, ["patient_id", "label", "race_white"]].tolist() == ["patient00000", "1", "White"]
    assert films.frame["label"].tolist()[:6] == ["0", "1", "1", "0", "0", "0"]
    write(tmp_path / "oct", kind="OCT")
    volumes = found("medfair", tmp_path / "oct", view="max")
    assert volumes.modality == "oct"
    assert volumes.frame["image"][0].endswith("1001.npy#axis=2&project=max&scale=percentile")
    assert read_image(tmp_path / "oct" / volumes.frame["image"][0]).shape == (32, 32)


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


def test_a_malicious_pickle_is_refused_before_anything_is_written(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root, harm = miniature("medfair"), tmp_path / "harm"
    (root / "pkls" / "val_images.pkl").write_bytes(pickle.dumps([Malicious(harm)]))
    with pytest.raises(ImageError, match=r"val_images\.pkl: the pickle names '(posix|nt)\.system', which is refused"):
        found("medfair", root)
    assert not harm.exists()


def test_pickles_of_some_tables_alone_are_refused(miniature: Callable[..., Path]) -> None:
    root = miniature("medfair")
    (root / "pkls" / "val_images.pkl").unlink()
    with pytest.raises(InputError, match=r"lacks pkls/val_images\.pkl; put them there, or .* --option images=files"):
        found("medfair", root)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: bytes(range(256))])
def test_a_damaged_pickle_says_what_to_do(miniature: Callable[..., Path], damage: Callable[[bytes], bytes]) -> None:
    path = miniature("medfair") / "pkls" / "val_images.pkl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=r"val_images\.pkl: .*; write it again with MEDFAIR's notebook, or .* --option images=files$"):
        found("medfair", path.parents[1])


def test_bad_tables_are_said(miniature: Callable[..., Path]) -> None:
    root = miniature("medfair")
    with (root / "pkls" / "val_images.pkl").open("wb") as stream:
        pickle.dump([np.zeros((4, 4, 3), np.uint8)] * 5, stream)
    with pytest.raises(InputError, match="has 5 images and the table of val 6 rows"):
        found("medfair", root)
    for part in ("train", "val", "test"):
        table = root / "split" / f"new_{part}.csv"
        table.write_text(table.read_text().replace("binaryLabel", "target"))
    with pytest.raises(InputError, match="none of MEDFAIR's label columns"):
        found("medfair", root)
    (root / "split" / "new_val.csv").unlink()
    with pytest.raises(InputError, match=r"has no file 'new_val\.csv' or 'val\.csv'"):
        found("medfair", root)
