"""Tables from files: CSV with any usual separator, JSON lines, parquet, gzip; what is no table is said in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evenhand.errors import InputError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
KINDS = "expected CSV (comma, semicolon or tab), JSON lines (each may be .gz) or parquet"


def read_predictions(path: str | os.PathLike[str], *, text: Sequence[str] = ("image", "patient_id", "split")) -> pd.DataFrame:
    """Read a table from a file, or a run folder's predictions.parquet.

    - CSV, TSV, semicolons or bars, told apart by the header line; with semicolons a comma may be the decimal point.
    - JSON lines (one object a line), and a JSON list of objects.
    - any of these compressed with gzip; parquet.

    Only an empty field is missing; "NA" is text here; `evenhand.evaluation.doubts.emptied` sees to it among
    numbers. A column whose values have leading zeros ("01") stays text.

    Args:
        path: a file, or a folder holding predictions.parquet.
        text: columns kept as text (so that patient 007 stays 007).

    Raises:
        InputError: no such file, or not a table.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "predictions.parquet"
    if not file.exists():
        raise InputError(f"there is no file {file}; give a CSV, TSV, JSON lines or parquet file, or a run folder with predictions.parquet")
    try:
        frame = _read(file, text)
    except (ValueError, OSError, csv.Error) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip()
        if ragged := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", first):
            first = f"line {ragged[2]} has {ragged[3]} fields, the lines before it {ragged[1]}"
        raise InputError(f"{file} cannot be read as a table ({first}); {KINDS}, with one header line and one row an image") from error
    if frame.empty:
        raise InputError(f"{file} has no rows below its header; predictions need at least one row an image")
    return frame


def _read(file: Path, text: Sequence[str]) -> pd.DataFrame:
    with file.open("rb") as stream:
        start = stream.read(4)
    if file.suffix.lower() in (".parquet", ".pq") or start == b"PAR1":
        return pd.read_parquet(file)
    raw = file.read_bytes()
    if start[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error) as error:
            raise InputError(f"{file} is a gzip file that is cut off or damaged; copy it again") from error
    if not raw.strip():
        raise InputError(f"{file} is empty; expected a header line and one row an image")
    _check_text(raw, file)
    if file.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")) or raw.lstrip()[:1] == b"{":
        return _read_json(raw, file)
    return _read_delimited(raw, file, text)


def _check_text(raw: bytes, file: Path) -> None:
    """Refuse what is not UTF-8 text, and say what it looks like and where it breaks."""
    if raw.startswith(b"PK\x03\x04"):
        raise InputError(f"{file} is not text (it is a zip archive, as Excel workbooks are); save the sheet as CSV")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{file} cannot be read: it is UTF-16, not UTF-8 text; save it again as UTF-8 CSV")
    if b"\0" in raw[:65536]:
        raise InputError(f"{file} is not text (it has zero bytes); {KINDS}")
    if raw.isascii():
        return
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file} cannot be read: it is not UTF-8 (line {line}, byte {error.start + 1} is 0x{raw[error.start]:02x}); "
            "save it again as UTF-8"
        ) from error


def _read_json(raw: bytes, file: Path) -> pd.DataFrame:
    """One object a line, or one list of objects."""
    content = raw.decode("utf-8-sig")
    rows = []
    if content.lstrip().startswith("["):
        rows = json.loads(content)
    else:
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{file} cannot be read: line {number} is not JSON ({error.msg}); JSON lines hold one object a line"
                ) from error
    wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise InputError(f"{file} cannot be read: its record {wrong} is not an object; JSON lines hold one object a line")
    frame = pd.DataFrame(rows)
    nested = [name for name in frame.columns if frame[name].map(lambda cell: isinstance(cell, (list, dict))).any()]
    if nested:
        raise InputError(f"{file} has lists or objects in the field '{nested[0]}'; give one plain value a field")
    return frame.replace("", None)


def _read_delimited(raw: bytes, file: Path, text: Sequence[str]) -> pd.DataFrame:
    body = raw.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    first, _, rest = body.partition(b"\n")
    header = first.decode("utf-8").rstrip("\r")
    separator = max(SEPARATORS, key=header.count)
    if separator not in header:
        raise InputError(
            f"{file} has one column only, named '{header[:60]}'; columns must be separated by commas, semicolons or tabs"
        )
    _check_header(header, rest, separator, file)
    sample = rest[:65536]
    comma = separator == ";" and re.search(rb"[;\n]-?\d+,\d", sample) and not re.search(rb"[;\n]-?\d+\.\d", sample)
    decimal = "," if comma else "."
    frame = pd.read_csv(
        io.BytesIO(body), sep=separator, decimal=decimal, keep_default_na=False, na_values=[""], encoding="utf-8", low_memory=False
    )
    frame.columns = frame.columns.str.strip()
    _check_rows(frame, separator, file)
    return _with_codes(_with_points(frame) if comma else frame, body, separator, text)


def _with_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Decimal commas as points in columns that a word such as NA kept from being numbers (as R's write.csv2 leaves them)."""
    made = {}
    for name in frame.columns:
        if not pd.api.types.is_string_dtype(frame[name]):
            continue
        texts = pd.Series(frame[name].unique()).dropna().astype(str)
        number = texts.str.fullmatch(r"\s*[-+]?\d+,\d+\s*")
        if number.any() and (number | texts.str.fullmatch(r"\s*[-+]?\d*\s*") | texts.str.fullmatch(r"[A-Za-z/.]+")).all():
            made[name] = frame[name].str.replace(r"^(\s*[-+]?\d+),(\d+\s*)$", r"\1.\2", regex=True)
    return frame.assign(**made)


def _check_header(header: str, rest: bytes, separator: str, file: Path) -> None:
    names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file} has {names.count(twice)} columns named '{twice}'; rename or remove one of them")
    row = next(csv.reader(rest[:65536].decode("utf-8", errors="ignore").splitlines(), delimiter=separator), [])
    if len(row) > len(names):
        raise InputError(
            f"{file} cannot be read: its rows have more fields than its header ({len(row)} and {len(names)}); "
            "every row needs as many fields as the header"
        )


def _check_rows(frame: pd.DataFrame, separator: str, file: Path) -> None:
    """A header with one separator over rows with another gives one full column and nothing but emptiness beside it."""
    if frame.empty or not frame.iloc[:, 1:].isna().all(axis=None):
        return
    cell = str(frame.iloc[0, 0])
    other = next((name for sign, name in SEPARATORS.items() if sign != separator and sign in cell), None)
    if other is not None:
        raise InputError(
            f"{file} cannot be read: its header is separated by {SEPARATORS[separator]} and its rows by {other}; use one separator"
        )


def _has_codes(body: bytes, separator: str, block: int = 1 << 22) -> bool:
    """Whether any field starts with a zero and another digit; by blocks, as arrays are several times faster than a pattern."""
    starts = np.zeros(256, dtype=bool)
    starts[[ord(sign) for sign in ("\n", '"', separator)]] = True
    data = np.frombuffer(body, dtype=np.uint8)
    for begin in range(0, len(data) - 2, block):
        part = data[begin : begin + block + 2]
        zero = np.flatnonzero(part[1:-1] == ord("0"))
        zero = zero[starts[part[zero]]]
        following = part[zero + 2]
        if ((following >= ord("0")) & (following <= ord("9"))).any():
            return True
    return False


def _with_codes(frame: pd.DataFrame, body: bytes, separator: str, text: Sequence[str]) -> pd.DataFrame:
    """Columns that were read as numbers although they are ids, or codes with leading zeros, as the text they are.

    They are read again rather than read as text at once, which would take all tables four times as long.
    """
    numeric = [name for name in frame.columns if not pd.api.types.is_string_dtype(frame[name])]
    if not _has_codes(body, separator):
        numeric = [name for name in numeric if name in text]
    if not numeric:
        return frame
    texts = pd.read_csv(
        io.BytesIO(body), sep=separator, usecols=numeric, dtype="string", keep_default_na=False, na_values=[""], encoding="utf-8"
    )
    codes = [name for name in numeric if name in text or texts[name].str.match(r"\s*0\d").any()]
    return frame.assign(**{name: texts[name] for name in codes})
