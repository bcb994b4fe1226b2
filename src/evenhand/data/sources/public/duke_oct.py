"""Duke OCT (RPEDC, Farsiu 2013): macular OCT volumes of 269 subjects with AMD and 115 without."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._eyes import VIEW, view_keys
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, over, with_ages
from evenhand.errors import InputError

_NAME = re.compile(r"_(AMD|Control)_Subject_(\d+)$")
_PAPER = "Farsiu et al., Quantitative classification of eyes with and without intermediate AMD using OCT, Ophthalmology 121, 2014"
_PAGE = "the provider's page"

INFO = Info(
    name="duke_oct",
    title="Duke OCT (RPEDC)",
    modality="oct",
    version="Ophthalmology 2013 data set",
    layout=(
        "AMD/Farsiu_Ophthalmology_2013_AMD_Subject_1001.mat ..., Control/Farsiu_Ophthalmology_2013_Control_Subject_1001.mat ...\n"
        "    (all archives unpacked; the files may lie in any folder): images (512 x 1000 x 100), layerMaps, Age"
    ),
    documentation=("https://people.duke.edu/~sf59/RPEDC_Ophth_2013_dataset.htm",),
    tasks=(Task("amd", ("amd",), "1: intermediate age-related macular degeneration, 0: control (the provider)"),),
    attributes=(*AGES, Attribute("age_over70", "70 and under; over 70 (MEDFAIR)")),
    default_attributes=("age_over70",),
    split="none is published; drawn by patient (MEDFAIR draws 7:1:2)",
    expected=(
        Expected("images", 384, _PAGE), Expected("patients", 384, _PAGE), Expected("AMD", 269, _PAGE), Expected("Control", 115, _PAGE),
    ),
    licence="free for research; the provider asks for the citation",
    link="https://people.duke.edu/~sf59/RPEDC_Ophth_2013_dataset.htm",
    citation=f"{_PAPER}, doi:10.1016/j.ophtha.2013.07.013",
    options=(VIEW,),
    resize="pad",
    channels=1,
    traps=(
        "no sex is published",
        "subject numbers start again for the controls: AMD 1001 and Control 1001 are two people",
        "MEDFAIR's notebook labels AMD 0 and controls 1; here AMD is 1",
        "one volume a person, of which one picture is taken (--option view); MEDFAIR uses the volumes",
        "a few volumes have other sizes than 512 x 1000 x 100",
        "not confirmed: that grey levels run from 0 to 255 in every file",
    ),
    aliases=("rpedc", "oct"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a volume."""
    names = [(path, _NAME.search(PurePosixPath(path).stem)) for path in raw.walk(".", (".mat",))]
    volumes = [(path, match.group(1), match.group(2)) for path, match in names if match]
    if not volumes:
        raw.file("AMD/Farsiu_Ophthalmology_2013_AMD_Subject_1001.mat", "Control/Farsiu_Ophthalmology_2013_Control_Subject_1001.mat")
    found = Found(pd.DataFrame())
    repeated = len(volumes) - len({volume[1:] for volume in volumes})
    if repeated:
        raise InputError(f"{repeated} subjects stand in more than one file of {raw.root}; remove the copies")
    if len(names) > len(volumes):
        found.notes.append(f"{len(names) - len(volumes)} .mat files have other names than a subject's and are not read")
    groups = pd.Series([group for _, group, _ in volumes], dtype="string")
    ages = clean_age(pd.Series([_age(raw, path) for path, _, _ in volumes], dtype="string"), found.notes)
    absent = int(ages.isna().sum())
    if absent:
        found.notes.append(f"age: {counted(absent, 'file holds none and counts', 'files hold none and count')} as missing")
    found.frame = with_ages(pd.DataFrame({
        "image": [f"{path}#array=images&{view_keys(choice.options['view'], 2)}&scale=0,255" for path, _, _ in volumes],
        "patient_id": [f"{group}-{number}" for _, group, number in volumes],
        "amd": groups.map({"AMD": "1", "Control": "0"}),
        "age": ages,
        "age_over70": over(ages, 70),
    }))
    found.counts = {"images": len(volumes), "patients": len(volumes), **{name: int(groups.eq(name).sum()) for name in ("AMD", "Control")}}
    return found


def _age(raw: RawFolder, path: str) -> str | None:
    """What the file has for Age; None where it cannot be read, which the pictures will say."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        value = loadmat(raw.root / path, variable_names=["Age"]).get("Age")
    except (MatReadError, OSError, ValueError, TypeError, NotImplementedError, KeyError):
        return None
    if value is None or np.size(value) != 1 or not np.isfinite(np.ravel(value)[0]):
        return None
    return f"{float(np.ravel(value)[0]):g}"
