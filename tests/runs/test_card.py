"""The data card of prepared sets: numbers, a planted shortcut and one that is not there, leaks, copies, privacy, kinds of labels."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import evenhand as eh
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import InputError
from evenhand.runs.card import card_lines, source_facts


def card_of(page):
    return json.loads(page.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A prepared cohort with a planted bias."""
    root = tmp_path_factory.mktemp("traced")
    write_cohort(make_cohort(SyntheticConfig(size=48, n_patients=240, missing_age=0.05, images_per_patient=(1, 2))), root / "raw")
    prepare_csv(
        root / "raw" / "metadata.csv", root / "set", images=root / "raw", labels=["label"], attributes=["group", "age"],
        bins={"age": [0, 60, 120]}, size=48,
    )
    return root / "set"


@pytest.fixture(scope="module")
def planted(traced, tmp_path_factory):
    """The card of that cohort, every count shown."""
    return eh.make_data_card(traced, tmp_path_factory.mktemp("card") / "planted.html", min_cell=1, permutations=39)


def pictures(folder, table, seed=0, size=24, **columns):
    """Random pictures and a table of them, prepared."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(table)
    frame["image"] = [f"{k}.png" for k in range(len(frame))]
    for name in frame["image"]:
        Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(folder / name)
    return folder, frame


def prepare(folder, frame, **options):
    frame.to_csv(folder / "t.csv", index=False)
    prepare_csv(folder / "t.csv", folder / "out", images=folder, size=24, **options)
    return folder / "out"


def test_counts_are_those_of_the_table(planted, traced):
    card, table = card_of(planted), PreparedData.open(traced).table
    assert card["data"]["n"] == len(table)
    assert card["data"]["n_patients"] == table["patient_id"].nunique()
    for (split, group), rows in table.groupby(["split", "group"]):
        cell = card["attributes"]["group"][group][split]
        assert cell == {"n": len(rows), "n_patients": rows["patient_id"].nunique()}
        found = card["labels"]["label"]["attributes"]["group"]["prevalence"][group][split]
        assert (found["n"], found["n_positive"]) == (len(rows), (rows["label"] == "1").sum())
        assert found["lower"] <= found["value"] <= found["upper"]
    assert card["attributes"]["age"]["(missing)"]["all"]["n"] == table["age"].isna().sum()
    assert sum(card["ages"]["age"]["patients"]) == table.dropna(subset="age")["patient_id"].nunique()


def test_a_planted_shortcut_is_found(planted):
    card = card_of(planted)
    odds = card["labels"]["label"]["attributes"]["group"]["association"]["A"]
    assert odds["train"]["lower"] > 1
    assert odds["test"]["lower"] < 1 < odds["test"]["upper"]
    read = card["probe"]["attributes"]["group"]
    for kind in ("encoder", "statistics"):
        assert read[kind]["folds"]["lower"] > 0.6
        assert read[kind]["chance"]["above"]
    assert read["encoder"]["labels"]["label"]["given_label"]["folds"]["lower"] > 0.6
    assert card["probe"]["labels"]["label"]["attributes"]["group"]["folds"]["value"] > 0.6
    codes = [item["code"] for item in card["findings"]]
    assert codes.count("shortcut") == 1
    assert "label goes with group" in next(item["text"] for item in card["findings"] if item["code"] == "shortcut")
    assert card["probe"]["attributes"]["age"]["encoder"]["folds"]["value"] < 0.65
    assert "Possible shortcut" in planted.read_text()


def test_without_a_trace_the_group_is_not_read(tmp_path):
    config = SyntheticConfig(size=32, n_patients=160, shortcuts=(), prevalence={"A": 0.4, "B": 0.4}, seed=3)
    write_cohort(make_cohort(config), tmp_path / "raw")
    data = tmp_path / "out"
    prepare_csv(tmp_path / "raw" / "metadata.csv", data, images=tmp_path / "raw", labels=["label"], attributes=["group"], size=32)
    card = card_of(eh.make_data_card(data, permutations=39))
    found = card["probe"]["attributes"]["group"]["encoder"]
    assert abs(found["folds"]["value"] - 0.5) < 0.12
    assert not found["chance"]["above"]
    assert not {"shortcut", "association", "readable"} & {item["code"] for item in card["findings"]}
    assert (data / "card.html").exists()


def test_equal_seeds_give_equal_cards_and_readers_can_be_left_out(traced, tmp_path):
    pages = [eh.make_data_card(traced, tmp_path / name, probe_rows=60, permutations=3, seed=5) for name in ("a.html", "b.html")]
    assert pages[0].with_suffix(".json").read_bytes() == pages[1].with_suffix(".json").read_bytes()
    assert pages[0].read_bytes() == pages[1].read_bytes()
    card = card_of(pages[0])
    assert card["probe"]["sampled"]
    assert card["probe"]["n"] <= 60
    bare = eh.make_data_card(traced, tmp_path / "bare.html", probe_rows=0, images=False)
    assert card_of(bare)["probe"] is None
    assert "<img" not in bare.read_text()
    assert "Images were left out" in bare.read_text()


def counts_of(value, key=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from counts_of(inner, name)
    elif key in ("n_patients", "n_positive"):
        yield value


def test_small_counts_and_patients_do_not_stand_in_the_card(tmp_path):
    ids = [f"SECRET{k:04d}" for k in range(70)]
    sex = ["f"] * 40 + ["m"] * 27 + ["x"] * 3
    folder, frame = pictures(tmp_path / "raw", {"patient_id": ids, "sex": sex, "y": np.arange(70) % 2, "split": ["train", "test"] * 35})
    page = eh.make_data_card(prepare(folder, frame, labels=["y"], attributes=["sex"]), probe_rows=0)
    card = card_of(page)
    numbers = [value for value in counts_of({"a": card["attributes"], "l": card["labels"]}) if isinstance(value, int)]
    assert all(value == 0 or value >= 5 for value in numbers)
    assert card["attributes"]["sex"]["x"]["all"]["n_patients"] == "<5"
    for text in (page.read_text(), page.with_suffix(".json").read_text()):
        assert "SECRET" not in text
        assert str(tmp_path) not in text
    shown = card_of(eh.make_data_card(folder / "out", probe_rows=0, min_cell=1))
    assert shown["attributes"]["sex"]["x"]["all"] == {"n": 3, "n_patients": 3}


def test_leaks_and_copies(tmp_path):
    from scipy.ndimage import gaussian_filter

    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    smooth = np.clip(128 + 300 * gaussian_filter(rng.normal(size=(60, 48, 48)), (0, 3, 3)), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(smooth[7]).save(buffer, "JPEG", quality=70)
    images = [*smooth, np.asarray(Image.open(buffer)), smooth[9]]
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k}.png")
    split = ["train"] * 60 + ["test"] * 2
    frame = pd.DataFrame(
        {"image": [f"{k}.png" for k in range(62)], "patient_id": [*range(60), 60, 61], "y": np.arange(62) % 2, "split": split}
    )
    frame.to_csv(folder / "t.csv", index=False)
    prepare_csv(folder / "t.csv", tmp_path / "out", images=folder, labels=["y"], size=48)
    page = eh.make_data_card(tmp_path / "out", probe_rows=0)
    card = card_of(page)
    assert (card["leaks"]["images"], card["leaks"]["equal_across_patients"], card["leaks"]["patients"]) == (1, 1, 0)
    assert card["leaks"]["rows"] == [[10, 62]]
    near = card["near_duplicates"]
    assert (near["across_splits"], near["across_patients"]) == (1, 0)
    assert (near["pairs"][0]["rows"], near["pairs"][0]["splits"]) == ([8, 61], ["train", "test"])
    assert {"leak", "near_duplicates"} <= {item["code"] for item in card["findings"]}
    assert "Rows 8 (train) and 61 (test), different patients" in page.read_text()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "plain"])
def test_every_kind_of_label_and_no_attributes(tmp_path, kind):
    n = 90
    table = {"patient_id": range(n), "sex": ["f", "m", "", "f", "m"] * 18, "split": ["train", "train", "test"] * 30}
    table |= {"dx": ["a", "b", "c"] * 30, "p": [0, 1] * 45, "q": ["1", "", "0"] * 30}
    folder, frame = pictures(tmp_path / "raw", table)
    labels = {"multiclass": ["dx"], "multilabel": ["p", "q"], "plain": ["p"]}[kind]
    data = prepare(folder, frame, labels=labels, attributes=[] if kind == "plain" else ["sex"])
    page = eh.make_data_card(data, tmp_path / f"{kind}.html", permutations=3)
    card, text = card_of(page), page.read_text()
    expected = {"multiclass": ["dx = a", "dx = b", "dx = c"], "multilabel": ["p", "q"], "plain": ["p"]}[kind]
    assert list(card["labels"]) == expected
    if kind == "multilabel":
        assert card["labels"]["q"]["n_unlabelled"] == 30
    if kind == "plain":
        assert "No attribute was prepared" in text
        assert card["findings"][0]["code"] == "no_groups"
        assert "othing stands out" not in text
        assert not any("nothing stands out" in line for line in card_lines(page))
        assert card["probe"]["attributes"] == {}
    else:
        assert card["attributes"]["sex"]["(missing)"]["all"]["n"] == 18
        assert "sex not recorded" in text
        assert "missing" in {item["code"] for item in card["findings"]}


def test_a_set_without_test_rows_and_one_of_two_patients(tmp_path):
    folder, frame = pictures(
        tmp_path / "raw", {"patient_id": range(40), "y": [0, 1] * 20, "sex": ["f", "m", "m", "f"] * 10, "split": "train"}
    )
    card = card_of(eh.make_data_card(prepare(folder, frame, labels=["y"], attributes=["sex"]), permutations=3))
    assert list(card["splits"]) == ["train"]
    assert card["probe"]["attributes"]["sex"]["encoder"]["test"]["value"] is None
    folder, frame = pictures(tmp_path / "two", {"patient_id": range(2), "y": [0, 1], "sex": ["f", "m"], "split": ["train", "test"]})
    card = card_of(eh.make_data_card(prepare(folder, frame, labels=["y"], attributes=["sex"]), permutations=3))
    assert card["probe"]["attributes"]["sex"]["encoder"]["folds"]["value"] is None


def test_what_cannot_be_a_card_is_refused(traced, tmp_path):
    (tmp_path / "half" / "cache").mkdir(parents=True)
    with pytest.raises(InputError, match="was not finished"):
        eh.make_data_card(tmp_path / "half")
    with pytest.raises(InputError, match="not a prepared data set"):
        eh.make_data_card(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"NAME\.html"):
        eh.make_data_card(traced, tmp_path / "card.txt")
    with pytest.raises(InputError, match=r"model=nothing\.pth"):
        eh.make_data_card(traced, tmp_path / "card.html", model="nothing.pth")
    with pytest.raises(InputError, match="none may be negative"):
        eh.make_data_card(traced, tmp_path / "card.html", min_cell=-1)
    assert not (tmp_path / "card.html").exists()


def test_a_public_set_is_described_by_its_source():
    found = source_facts({"kind": "public", "name": "nih", "task": "findings", "split": "published", "counts": {"images": 7}})
    assert found["title"] == "NIH ChestX-ray14"
    assert found["task"]["name"] == "findings"
    assert {item["what"]: item["found"] for item in found["expected"]} == {"images": 7, "patients": None, "test images": None}
    assert source_facts({"kind": "csv", "table": "/some/where/secret/t.csv"}) == {"kind": "csv", "table": "t.csv"}
