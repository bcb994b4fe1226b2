"""The first sheet of a workbook, as text."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.sheet import read_sheet
from evenhand.errors import InputError
from tests.data.sources.miniatures._sheet import write_sheet


def test_numbers_texts_and_empty_cells(tmp_path: Path) -> None:
    rows = [["PATIENT", "AGE", "WORD & <SIGN>"], ["patient00001", 68, None], ["patient00002", 0.5, "a < b"], [None, None, "é "]]
    write_sheet(tmp_path / "a.xlsx", rows)
    frame = read_sheet(tmp_path / "a.xlsx")
    assert list(frame.columns) == ["PATIENT", "AGE", "WORD & <SIGN>"]
    assert frame["AGE"].tolist()[:2] == ["68", "0.5"]
    assert frame["WORD & <SIGN>"].tolist()[1:] == ["a < b", "é "]
    assert frame.isna().sum().tolist() == [1, 1, 1]


def test_rich_and_inline_texts_truth_values_and_columns_past_z(tmp_path: Path) -> None:
    write_sheet(tmp_path / "a.xlsx", [["x"]])
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    sheet = (
        f'<worksheet {main}><sheetData><row><c r="A1" t="s"><v>0</v></c><c r="AB1" t="inlineStr"><is><t>far</t></is></c>'
        '<c t="inlineStr"><is/></c></row>'
        '<row/><row><c r="A3" t="b"><v>1</v></c><c r="AB3" t="e"><v>#N/A</v></c></row></sheetData></worksheet>'
    )
    rich = f"<sst {main}><si><r><t>two</t></r><r><t> runs</t></r><rPh><t>no</t></rPh></si></sst>"
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, {"xl/worksheets/sheet1.xml": sheet, "xl/sharedStrings.xml": rich}.get(name) or old.read(name))
    frame = read_sheet(tmp_path / "b.xlsx")
    assert list(frame.columns) == ["two runs", "far", ""]
    assert frame["two runs"].tolist() == ["1"]
    assert frame["far"].isna().all()


def test_what_is_no_workbook_is_refused_through_the_raw_folder(tmp_path: Path) -> None:
    (tmp_path / "demo.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 an old .xls")
    with pytest.raises(InputError, match=r"demo\.xlsx cannot be read as a table \(not an \.xlsx workbook"):
        RawFolder(tmp_path).table("demo.xlsx", columns=("a",))
    write_sheet(tmp_path / "demo.xlsx", [["PATIENT", "RACE"], ["p1", "NA"]])
    assert RawFolder(tmp_path).table("demo.xlsx", columns=("PATIENT",))["RACE"].isna().all()


def test_a_workbook_that_unpacks_beyond_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sheet(tmp_path / "a.xlsx", [["x"], ["y" * 5000]])
    monkeypatch.setattr("evenhand.data.sources.sheet._MOST_BYTES", 4000)
    with pytest.raises(InputError, match=r"unpacks to 5,\d+ bytes, and at most 4,000 are read; save its first sheet as CSV"):
        RawFolder(tmp_path).table("a.xlsx", columns=("x",))


def test_an_encrypted_workbook_is_refused(tmp_path: Path) -> None:
    write_sheet(tmp_path / "a.xlsx", [["x"]])
    data = bytearray((tmp_path / "a.xlsx").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + place] |= 1
            at = data.find(mark, at + 4)
    (tmp_path / "a.xlsx").write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read as a table"):
        RawFolder(tmp_path).table("a.xlsx", columns=("x",))
