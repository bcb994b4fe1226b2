"""Files of every kind give the same table."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from evenhand.errors import InputError
from evenhand.evaluation.reading import read_predictions

FRAME = pd.DataFrame({"y": [1, 0, 1], "p": [0.5, 0.25, 0.125], "sex": ["f", None, "é"]})


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"t.{kind}"
    csv = {"csv": ",", "tsv": "\t", "txt": ";", "dat": "|"}
    end = kind.removesuffix(".gz")
    if end in csv:
        content = FRAME.to_csv(index=False, sep=csv[end]).encode()
    elif end == "parquet":
        FRAME.to_parquet(path)
        return path
    else:
        content = FRAME.to_json(orient="records", lines=end != "json").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if kind.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "txt", "dat", "csv.gz", "tsv.gz", "jsonl", "ndjson", "jsonl.gz", "json", "parquet"]
)
def test_every_kind_is_the_same_table(tmp_path: Path, kind: str) -> None:
    found = read_predictions(_write(tmp_path, kind))
    assert list(found.columns) == ["y", "p", "sex"]
    assert found.p.tolist() == FRAME.p.tolist()
    assert found.y.tolist() == FRAME.y.tolist()
    assert found.sex.iloc[0] == "f"
    assert found.sex.iloc[2] == "é"
    assert pd.isna(found.sex.iloc[1])


def test_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("y;p\n1;0,5\n0;0,25\n")
    assert read_predictions(tmp_path / "a.csv").p.tolist() == [0.5, 0.25]


def test_leading_zeros_stay_and_other_numbers_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffsite,y,p\n01,1,0.5\n,0,0.25\n10,1,1\n")
    found = read_predictions(tmp_path / "a.csv")
    assert found.site.tolist()[::2] == ["01", "10"]
    assert pd.isna(found.site.iloc[1])
    assert found.p.tolist() == [0.5, 0.25, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "y,p\n1,0.5\n0,é\n".encode("latin-1"), r"not UTF-8 \(line 3, byte 13 is 0xe9\); save it again as UTF-8"),
        ("a.csv", "y,p\n1,0.5\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"PK\x03\x04 and more", "zip archive"),
        ("a.csv", b"y p sex\n1 0.5 f\n", "one column only, named 'y p sex'"),
        ("a.csv", b"y,p,sex\n1;0.5;f\n", "separated by commas and its rows by semicolons"),
        ("a.csv", b"y,p\n1,0.5,f\n", "more fields than its header"),
        ("a.csv", b"y,p,sex\n1,0.5,f,7\n0,0.2,m,9\n", "more fields than its header"),
        ("a.csv", b"y,p,sex\n1,0.5,f\n1,0.5,f,x\n", "line 3 has 4 fields, the lines before it 3"),
        ("a.csv", b"y,p,y\n1,0.5,1\n", "2 columns named 'y'"),
        ("a.csv.gz", gzip.compress(b"y,p\n1,0.5\n", mtime=0)[:20], "cut off or damaged"),
        ("a.jsonl", b'{"y": 1}\n{"y": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"y": 1}\n[1]\n', "record 2 is not an object"),
        ("a.jsonl", b'{"y": [1]}\n', "lists or objects in the field 'y'"),
        ("a.json", b'[{"y": 1}', "cannot be read as a table"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_predictions(tmp_path / name)
    assert "\n" not in caught.value.summary
