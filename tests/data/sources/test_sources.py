"""What holds for every source of data: what it declares is whole, and a miniature of its download stands beside."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import MODALITIES
from evenhand.data.images import RESIZES
from evenhand.data.sources.base import Info
from evenhand.data.sources.describe import describe_source
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.registry import all_sources, find_source, list_sources, source_names
from evenhand.data.sources.values import AGES, clean_age, with_ages
from evenhand.data.table import KINDS, MISSING_POLICIES
from evenhand.errors import InputError

SOURCES = all_sources()
ASKED_FOR = {
    "chexpert", "mimic_cxr", "nih", "ham10000", "isic2017", "isic2018", "isic2019", "isic2020", "fitzpatrick17k", "ddi", "pad_ufes_20",
    "derm7pt", "papila", "ol3i", "oasis1", "harvard_gf3300", "harvard_glaucoma_fairness", "harvard_fairvlmed", "duke_oct", "covid_ct_md",
    "adni", "brset", "odir5k", "covid_chestxray", "dicom_folder", "image_folder", "parquet_folder", "medfair", "dne_authors",
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_source_declares_is_whole(name: str) -> None:
    info: Info = SOURCES[name]
    assert info.name == name
    assert info.modality in MODALITIES
    assert info.resize in RESIZES
    assert info.missing in MISSING_POLICIES
    assert info.channels in (None, 1, 3)
    assert all((info.title, info.version, info.layout, info.split, info.licence, info.link, info.citation, info.documentation, info.tasks))
    assert set(info.splits) <= {"published", "patient"}
    assert len(info.splits) == len(set(info.splits)) > 0
    attributes = [item.name for item in info.attributes]
    assert len(set(attributes)) == len(attributes)
    assert {part for attribute in info.default_attributes for part in attribute.split("*")} <= set(attributes)
    for task in info.tasks:
        assert task.kind in KINDS
        assert task.text
        assert len(task.labels) < 2 or task.kind == "multilabel"
        assert not set(task.labels) & set(attributes), "a label and an attribute of one name would be one column"
    assert all(item.text for item in (*info.attributes, *info.options))
    assert all(item.count > 0 and item.origin for item in info.expected)
    assert make_choice(info, None, None, {}).options == {option.name: option.default for option in info.options}


@pytest.mark.parametrize("name", SOURCES)
def test_texts_hold_no_line_breaks_and_layouts_no_long_lines(name: str) -> None:
    info: Info = SOURCES[name]
    texts = [info.title, info.version, info.split, info.licence, info.link, info.citation, *info.traps, *info.documentation]
    texts += [item.text for item in (*info.tasks, *info.attributes, *info.options)]
    assert not [text for text in texts if "\n" in text or text != text.strip() or text.endswith(".")]
    assert max(len(line) for line in info.layout.splitlines()) <= 132
    assert all(re.match(r"https?://\S+$", text) for text in info.documentation if "://" in text)


def test_names_and_aliases_are_unique_and_found() -> None:
    words = [word for info in SOURCES.values() for word in (info.name, *info.aliases)]
    assert len(set(words)) == len(words)
    assert "csv" not in words
    for info in SOURCES.values():
        assert all(find_source(alias).INFO is info for alias in info.aliases)
    with pytest.raises(InputError, match="source 'chexprt' is not known; did you mean 'chexpert'"):
        find_source("chexprt")
    with pytest.raises(InputError, match=r"known sources are: .*csv, "):
        find_source("zzz")


def test_every_set_that_was_asked_for_is_there() -> None:
    assert set(source_names()) >= ASKED_FOR
    assert [info.name for info in list_sources()] == list(source_names())
    assert {info.modality for info in list_sources("mri")} == {"mri"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_miniature_and_is_told_to_its_end(name: str) -> None:
    folder = Path(__file__).parent
    assert (folder / "miniatures" / f"{name}.py").is_file()
    tests = "\n".join(path.read_text() for path in folder.glob("test_*.py") if path.name != Path(__file__).name)
    assert f'"{name}"' in tests


@pytest.mark.parametrize("name", [name for name, info in SOURCES.items() if any(item.name == "age60" for item in info.attributes)])
def test_ages_are_cut_alike_in_every_set(name: str) -> None:
    texts = {item.name: item.text for item in SOURCES[name].attributes}
    assert {item.name: texts[item.name] for item in AGES} == {item.name: item.text for item in AGES}
    assert all(re.match(r"age(_over)?\d|age$|age_binary|age_multi", word) for word in texts if word.startswith("age"))


def test_months_weeks_and_days_are_whole_years_as_in_nih_s_first_release() -> None:
    notes: list[str] = []
    assert clean_age(pd.Series(["006M", "012M", "025M", "052W", "400D", "003D", "M"]), notes).tolist()[:6] == ["0", "1", "2", "0", "1", "0"]
    assert notes == ["age: 1 value is no age in years and counts as missing", "age: 3 rows have age 0 and are kept"]


def test_ages_of_60_fall_where_the_names_say() -> None:
    frame = with_ages(pd.DataFrame({"age": pd.array(["59", "60", "60.9", "61", None], dtype="string")}))
    assert frame["age60"].tolist()[:4] == ["under 60", *["60 and over"] * 3]
    assert frame["age_over60"].tolist()[:4] == [*["60 and under"] * 3, "over 60"]
    assert frame.iloc[4].isna().all()


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_described_names_the_augmentation_that_fits(name: str) -> None:
    line = f"Augment  evenhand train ... data.augment={SOURCES[name].modality} "
    assert (line in describe_source(name)) == (not SOURCES[name].own)
