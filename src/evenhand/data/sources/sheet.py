"""The first sheet of an Excel workbook (``.xlsx``) as text: a zip archive of XML, read without a library of its own."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import pandas as pd

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_MOST_BYTES = 1 << 28
_LETTERS = re.compile(r"[A-Z]+")


def read_sheet(path: str | Path) -> pd.DataFrame:
    """The first sheet: its first row that is not empty names the columns, every cell is text as stored, or missing.

    Numbers keep the digits that the file has (``68``, ``0.5``), truth values are 1 and 0, dates stay Excel's day numbers.

    Raises:
        ValueError: not such a workbook, or it is damaged.
    """
    rows = sheet_rows(path)
    names = {column: name for column, name in rows[0].items() if name is not None}
    cells = {name: [row.get(column) for row in rows[1:]] for column, name in names.items()}
    return pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in cells.items()})


def sheet_rows(path: str | Path) -> list[dict[int, str | None]]:
    """The rows of the first sheet that are not empty, each as column number (from 0) -> text; for sheets with several header rows.

    Raises:
        ValueError: not such a workbook, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as book:
            strings = _strings(book)
            with _part(book, _first_sheet(book)) as stream:
                rows = [row for row in _rows(stream, strings) if row]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, IndexError, RuntimeError, zlib.error) as error:
        raise ValueError("not an .xlsx workbook, or damaged; an old .xls must be saved as .xlsx") from error
    if not rows:
        raise ValueError("the first sheet is empty")
    return rows


def _part(book: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of the archive; a small archive may claim to hold more than the memory does."""
    size = book.getinfo(name).file_size  # no more than this is unpacked
    if size > _MOST_BYTES:
        raise ValueError(f"the workbook unpacks to {size:,} bytes, and at most {_MOST_BYTES:,} are read; save its first sheet as CSV")
    return book.open(name)


def _strings(book: zipfile.ZipFile) -> list[str]:
    """The texts that cells refer to by number; a workbook may have none."""
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    with _part(book, "xl/sharedStrings.xml") as stream:
        return [_text(item) for item in ElementTree.parse(stream).getroot().iter(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    """All runs of a text, without the pronunciation that some languages add."""
    runs = [child for child in item if child.tag in (f"{_MAIN}t", f"{_MAIN}r")]
    return "".join(part.text or "" for run in runs for part in run.iter(f"{_MAIN}t"))


def _first_sheet(book: zipfile.ZipFile) -> str:
    with _part(book, "xl/workbook.xml") as stream:
        sheet = next(iter(ElementTree.parse(stream).getroot().iter(f"{_MAIN}sheet")), None)
    if sheet is None:
        raise KeyError("no sheet")
    with _part(book, "xl/_rels/workbook.xml.rels") as stream:
        targets = {item.get("Id"): item.get("Target", "") for item in ElementTree.parse(stream).getroot()}
    target = targets[sheet.get(_RELATION)]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _rows(stream: IO[bytes], strings: list[str]) -> Iterator[dict[int, str | None]]:
    """Column number -> text, row by row, without keeping the sheet in memory."""
    for _, row in ElementTree.iterparse(stream):
        if row.tag != f"{_MAIN}row":
            continue
        cells: dict[int, str | None] = {}
        column = -1
        for cell in row.iter(f"{_MAIN}c"):
            letters = _LETTERS.match(cell.get("r", ""))
            column = _column(letters.group()) if letters else column + 1
            value = _cell(cell, strings)
            if value is not None:
                cells[column] = value
        yield cells
        row.clear()


def _cell(cell: ElementTree.Element, strings: list[str]) -> str | None:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find(f"{_MAIN}is")
        return _text(inline) if inline is not None else None
    stored = cell.findtext(f"{_MAIN}v")
    if stored is None or kind == "e":
        return None
    return strings[int(stored)] if kind == "s" else stored


def _column(letters: str) -> int:
    """A -> 0, Z -> 25, AA -> 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1
