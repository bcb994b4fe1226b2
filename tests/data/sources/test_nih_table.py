"""What the source nih makes of its tables: odd ages and sexes, the published lists, and one finding against none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import nih
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError
from tests.data.sources.miniatures.nih import write


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nih")
    write(root)
    return root


def read(raw: Path, task: str | None = None, split: str | None = None) -> Found:
    found = nih.read(RawFolder(raw, nih.INFO.layout), make_choice(nih.INFO, task, split, {}))
    assert all((raw / name).is_file() for name in found.frame["image"])
    return found


def test_odd_values_and_lists(raw: Path) -> None:
    found = read(raw)
    by_patient = found.frame.drop_duplicates("patient_id").set_index("patient_id")
    assert by_patient.loc["2", ["sex"]].isna().all()
    assert by_patient.loc["3", ["age", "age60"]].isna().all(), "411 years"
    assert "age: 2 rows have an age over 120 and count as missing" in found.notes
    assert found.frame["split"].value_counts().to_dict() == {"rest": 36, "test": 12}
    assert found.counts == {"images": 48, "patients": 24, "test images": 12}
    assert "split" not in read(raw, split="patient").frame


def test_one_finding_against_none(raw: Path) -> None:
    found = read(raw, "effusion_vs_no_finding")
    assert found.left_out is not None
    assert set(found.left_out["reason"]) == {"neither 'Effusion' nor 'No Finding'"}
    assert len(found.frame) + len(found.left_out) == 48
    assert ((found.frame["Effusion"] == "1") == (found.frame["No Finding"] == "0")).all()
    several = read(raw, "infiltration_vs_no_finding").frame
    assert set(several.loc[several["Infiltration"] == "1", "Effusion"]) == {"1"}, "a film with two findings stays"
    assert [task.name for task in nih.INFO.tasks].count("pleural_thickening_vs_no_finding") == 1


def test_an_image_in_neither_list(miniature: Callable[..., Path]) -> None:
    raw = miniature("nih", patients=4)
    (raw / "test_list.txt").write_text("")
    with pytest.raises(InputError, match="2 images are in neither of the provider's lists; use --split patient"):
        read(raw)
    assert len(read(raw, split="patient").frame) == 8
