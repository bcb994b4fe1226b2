"""What is taken from DICOM headers: identifiers only to join and to group by, and nothing that names a person into the table."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

import pandas as pd

from evenhand.data.decoding import Chunk, chunks, run_chunks
from evenhand.data.dicom import BROKEN, quiet
from evenhand.data.images import is_dicom
from evenhand.data.sources.raw import walk_links
from evenhand.errors import ImageError

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "AccessionNumber", "PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate",
    "SeriesDate", "AcquisitionDate", "ContentDate", "StudyInstanceUID", "PatientIdentityRemoved", "BurnedInAnnotation", "Rows",
    "NumberOfFrames", "Modality", "ViewPosition", "ImageLaterality", "Laterality", "BodyPartExamined", "Manufacturer",
    "ManufacturerModelName", "WindowCenter",
)
_NOT_IMAGES = (".csv", ".tsv", ".xlsx", ".xls", ".txt", ".json", ".md", ".pdf", ".html", ".xml", ".parquet", ".png", ".jpg", ".jpeg")
_AGE = re.compile(r"^(\d{1,3})([DWMY])$")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
CHUNK = 64
ALONE_BELOW = 2000


@dataclass(frozen=True)
class Header:
    """One file's header.

    Attributes:
        image: path relative to the raw folder.
        sop: SOPInstanceUID.
        accession: AccessionNumber.
        patient: PatientID.
        study: StudyInstanceUID.
        sex: PatientSex as written.
        age: years, from PatientAge, else from PatientBirthDate and the date of the study; the dates themselves are not kept.
        age_from_dates: whether the age is from the dates.
        frames: how many.
        windows: how many windows the header has.
        removed: PatientIdentityRemoved, ``YES``, ``NO`` or empty.
        burned: BurnedInAnnotation is ``YES``.
        modality: Modality, as ``DX``.
        view: ViewPosition.
        laterality: ImageLaterality, else Laterality.
        body_part: BodyPartExamined.
        manufacturer: Manufacturer.
        model: ManufacturerModelName.
    """

    image: str
    sop: str
    accession: str
    patient: str
    study: str
    sex: str
    age: str
    age_from_dates: bool
    frames: int
    windows: int
    removed: str
    burned: bool
    modality: str
    view: str
    laterality: str
    body_part: str
    manufacturer: str
    model: str


def age_in_years(age: str, birth: str, when: str) -> str:
    """Whole years as text, empty where they cannot be told.

    Example:
        >>> age_in_years("058Y", "", ""), age_in_years("018M", "", ""), age_in_years("", "19600705", "20200704")
        ('58', '1', '59')
        >>> age_in_years("", "19600230", "20200704"), age_in_years("old", "", "")
        ('', 'old')
    """
    if age.strip():
        matched = _AGE.match(age.strip().upper())
        return str(int(int(matched[1]) * _YEARS[matched[2]] + 1e-9)) if matched else age.strip()
    born, seen = _day(birth), _day(when)
    if born is None or seen is None or seen < born:
        return ""
    return str(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _day(text: str) -> date | None:
    digits = text.strip().replace(".", "")
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) if len(digits) == 8 else None
    except ValueError:
        return None


def read_headers(root: str, workers: int | None = None) -> tuple[list[Header], int, list[str]]:
    """The headers of all DICOM images below a folder, by path.

    Args:
        root: the folder.
        workers: processes; None: one a core where there are many files.

    Returns:
        Headers; how many DICOM files hold no image; paths that are named as DICOM and are none that can be read.
    """
    names = candidates(root)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if len(names) >= ALONE_BELOW else 1
    found: list[Header] = []
    others, odd = 0, []
    by_start = {}
    for start, part in run_chunks(_read_chunk, ((root, chunk) for chunk in chunks(names, CHUNK)), workers):
        by_start[start] = part
    for start in sorted(by_start):
        for header in by_start[start]:
            if isinstance(header, Header):
                found.append(header)
            elif header is None:
                others += 1
            elif header:
                odd.append(header)
    return found, others, odd


def candidates(root: str) -> list[str]:
    """Sorted paths, relative to a folder, of the files below it that may be DICOM."""
    found = []
    for place, folders, files in walk_links(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        base = os.path.relpath(place, root).replace(os.sep, "/")
        prefix = "" if base == "." else base + "/"
        found += [prefix + name for name in files if not name.startswith(".") and name.upper() != "DICOMDIR"
                  and not name.lower().endswith(_NOT_IMAGES)]
    return sorted(found)


def _read_chunk(task: tuple[str, Chunk]) -> tuple[int, list[Header | str | None]]:
    """A header; None for DICOM without an image; a path for what is named as DICOM and is none; empty for other files."""
    root, chunk = task
    return chunk.start, [_read(root, name or "") for name in chunk.files]


def _read(root: str, name: str) -> Header | str | None:
    from pydicom import dcmread
    from pydicom.errors import BytesLengthException

    named = name.lower().endswith((".dcm", ".dicom", ".dic"))
    try:
        with quiet(), open(os.path.join(root, name), "rb") as stream:
            if not is_dicom(stream.read(132)):
                return name if named else ""
            stream.seek(0)
            return _header(name, dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS)))
    except (ImageError, BytesLengthException, *BROKEN):
        return name


def _header(name: str, data: Any) -> Header | None:
    if "Rows" not in data:
        return None
    text = {tag: str(data.get(tag) or "").strip() for tag in _TAGS}
    when = next((text[tag] for tag in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate") if text[tag]), "")
    age = age_in_years(text["PatientAge"], text["PatientBirthDate"], when)
    centre = data.get("WindowCenter")
    windows = len(centre) if hasattr(centre, "__len__") and not isinstance(centre, str) else int(centre is not None)
    return Header(
        name, text["SOPInstanceUID"], text["AccessionNumber"], text["PatientID"], text["StudyInstanceUID"], text["PatientSex"], age,
        bool(age) and not text["PatientAge"], int(data.get("NumberOfFrames") or 1), windows, text["PatientIdentityRemoved"].upper(),
        text["BurnedInAnnotation"].upper() == "YES", text["Modality"], text["ViewPosition"],
        text["ImageLaterality"] or text["Laterality"], text["BodyPartExamined"], text["Manufacturer"], text["ManufacturerModelName"],
    )


def as_frame(headers: Sequence[Header]) -> pd.DataFrame:
    """One row a file; empty text is missing."""
    names = [field.name for field in fields(Header)]
    frame = pd.DataFrame({name: [getattr(header, name) for header in headers] for name in names})
    texts = [name for name in names if name not in ("age_from_dates", "frames", "windows", "burned")]
    return frame.assign(**{name: frame[name].astype("string").mask(frame[name] == "") for name in texts})


def hashed(ids: pd.Series) -> pd.Series:
    """Ids -> words that do not tell them: keyed by all ids of the folder, so that trying likely ids one by one finds nothing.

    Example:
        >>> words = hashed(pd.Series(["123", "456", "123", None]))
        >>> words[0] == words[2], words[0] == words[1], len(words[0]), words.isna().tolist()
        (True, False, 16, [False, False, False, True])
    """
    key = hashlib.blake2b("\0".join(sorted(set(ids.dropna().astype(str)))).encode(), digest_size=32).digest()
    words = {text: hashlib.blake2b(str(text).encode(), digest_size=8, key=key).hexdigest() for text in ids.dropna().unique()}
    return ids.map(words).astype("string")
