"""`evenhand card` as it is typed."""

import json

import pytest

from evenhand.cli.app import main
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=60)), root / "raw")
    prepare_csv(root / "raw" / "metadata.csv", root / "set", images=root / "raw", labels=["label"], attributes=["group"], size=32)
    return root / "set"


MODEL = ["model=test_vit", "model.input_size=[32,32]", "accelerator=cpu", "--permutations", "3"]


def test_a_card_is_written_where_it_is_asked_for(prepared, tmp_path, capsys):
    page = tmp_path / "new" / "my card.html"
    assert main(["card", str(prepared), "--out", str(page), *MODEL]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(page)
    assert said.splitlines()[-2].startswith(("- ", "nothing stands out"))
    card = json.loads((tmp_path / "new" / "my card.json").read_text())
    assert card["probe"]["encoder"]["name"] == "test_vit"
    assert "data:image/png" in page.read_text()


def test_beside_the_data_and_without_images_or_readers(prepared, capsys):
    assert main(["card", str(prepared), "--no-images", "--probe-rows", "0", "--min-cell", "1", "--seed", "4"]) == 0
    card = json.loads((prepared / "card.json").read_text())
    assert card["provenance"]["seed"] == 4
    assert card["probe"] is None
    assert "data:image/png" not in (prepared / "card.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_folder"], "does not exist"),
        (["DATA", "--out", "card.pdf"], "NAME.html"),
        (["DATA", "model=nothing.pth"], "no such path"),
        (["DATA", "modle=x"], "unknown option 'modle'"),
        (["DATA", "--min-cel", "3"], "did you mean '--min-cell'"),
    ],
)
def test_bad_input_is_one_line(prepared, words, said, capsys):
    assert main(["card", *[str(prepared) if word == "DATA" else word for word in words]]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_an_unfinished_set_is_refused(tmp_path, capsys):
    (tmp_path / "half" / "cache").mkdir(parents=True)
    assert main(["card", str(tmp_path / "half")]) == 2
    assert "was not finished" in capsys.readouterr().err
