"""The 14 labels that CheXpert's labeller reads from reports, as CheXpert and MIMIC-CXR-JPG publish them: 1, 0, -1 (uncertain) or blank.

Published policies for -1 (Irvin et al., AAAI 2019): U-Ignore, U-Zeros, U-Ones. Blank means that the report does not mention the finding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Found, Option, Task
from evenhand.errors import TableError

NO_FINDING = "No Finding"
FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis",
    "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)
LABELS = (NO_FINDING, *FINDINGS)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
DNE = ("Pleural Effusion", "Pneumonia", "Lung Lesion", "Edema")
PRESENT_IF_UNCERTAIN = ("Edema", "Atelectasis")
"""What the loader released with DNE counts as present where it is uncertain."""
VERSUS = "_vs_no_finding"


def versus_name(finding: str) -> str:
    """The name of the task "one finding against No Finding".

    Example:
        >>> versus_name("Pleural Effusion")
        'pleural_effusion_vs_no_finding'
    """
    return finding.lower().replace(" ", "_") + VERSUS


TASKS = (
    Task("no_finding", (NO_FINDING,), "1 where No Finding is 1, else 0 (MEDFAIR)"),
    *(
        Task(
            versus_name(name), (name,),
            f"1 where {name} is present, 0 where No Finding is 1 and it is not; other images are left out"
            + (" (the DNE paper)" if name in DNE else ""),
        )
        for name in FINDINGS
    ),
    Task("dne", DNE, "the DNE paper's four findings, each 1 where present, 0 where No Finding is 1, else empty; images with none of the "
         "five are left out", "multilabel"),
    Task("competition", COMPETITION, "the five findings of the CheXpert competition", "multilabel"),
    Task("findings", LABELS, "all 14 labels, No Finding and Support Devices among them", "multilabel"),
)
UNCERTAIN = Option(
    "uncertain", ("ignore", "zeros", "ones", "dne"),
    "labels of -1: ignore: empty (U-Ignore); zeros: absent (U-Zeros); ones: present (U-Ones); dne: present for edema and atelectasis, "
    "absent for the others, as the loader released with DNE has it. U-MultiClass and U-SelfTrained are not offered",
)
UNMENTIONED = Option(
    "unmentioned", ("zeros", "missing"),
    "blank labels: zeros: absent, as in the published baselines; missing: empty. A blank No Finding is always 0",
)
VIEW = Option(
    "view", ("frontal", "pa", "ap", "lateral", "all"),
    "which images: frontal (PA and AP; default), pa, ap, lateral, or all of them",
)


def add_labels(found: Found, choice: Choice) -> None:
    """Turn the columns of `LABELS` as published into those of the task, and leave out the rows that its definition leaves out.

    Args:
        found: its frame holds the 14 columns as text (``1.0``, ``0.0``, ``-1.0`` or missing) and every other column already.
        choice: the task, and the options ``uncertain`` and ``unmentioned``.

    Raises:
        TableError: a cell is something else.
    """
    task, policy = choice.task, choice.options["uncertain"]
    published = pd.DataFrame({name: _numbers(found.frame[name], name) for name in LABELS})
    wanted = [NO_FINDING, *task.labels] if _is_versus(task) else list(task.labels)
    uncertain = int(published[wanted].eq(-1).to_numpy().sum())
    if uncertain:
        become = {
            "ignore": "are left empty", "zeros": "count as absent", "ones": "count as present",
            "dne": "count as present for edema and atelectasis, as absent for the others",
        }
        found.notes.append(f"{uncertain:,} labels of the task are uncertain (-1) and {become[policy]} (option uncertain={policy})")
    labels = pd.DataFrame({name: _settle(published[name], name, policy, choice.options["unmentioned"]) for name in LABELS})
    if _is_versus(task):
        labels = labels.assign(**{name: versus(labels[name], labels[NO_FINDING]) for name in task.labels})
    found.frame = found.frame.assign(**{name: _words(labels[name]) for name in LABELS})
    if _is_versus(task):
        names = " nor ".join(f"'{name}'" for name in (NO_FINDING, *task.labels))
        found.leave_out(labels[list(task.labels)].isna().all(axis=1).to_numpy(bool), f"neither {names}")
    elif task.kind == "binary":
        found.leave_out(labels[task.labels[0]].isna().to_numpy(bool), "the label is uncertain")


def leave_views(found: Found, wanted: str, frontal: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Leave out the images of other views than the option asks for; which rows stayed.

    Args:
        found: its frame's column ``view`` is PA, AP, lateral, another word, or missing.
        wanted: a value of `VIEW`.
        frontal: which rows are frontal films.
    """
    views = found.frame["view"].fillna("")
    word = {"pa": "PA", "ap": "AP", "lateral": "lateral"}.get(wanted)
    kept = np.ones(len(views), bool) if wanted == "all" else frontal if word is None else views.eq(word).to_numpy(bool)
    found.leave_out(~kept, f"not the view asked for (option view={wanted})")
    return kept


def versus(present: pd.Series, none: pd.Series) -> pd.Series:
    """One finding against No Finding: 1 where it is present, 0 where there is none, NaN elsewhere.

    Example:
        >>> versus(pd.Series([1.0, 0.0, 0.0, 1.0]), pd.Series([0.0, 1.0, 0.0, 1.0])).tolist()
        [1.0, 0.0, nan, 1.0]
    """
    return pd.Series(np.where(present.eq(1), 1.0, np.where(none.eq(1), 0.0, np.nan)), index=present.index)


def _is_versus(task: Task) -> bool:
    return task.name == "dne" or task.name.endswith(VERSUS)


def _settle(values: pd.Series, name: str, policy: str, unmentioned: str) -> pd.Series:
    as_uncertain = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0, "dne": float(name in PRESENT_IF_UNCERTAIN)}[policy]
    blank = 0.0 if unmentioned == "zeros" or name == NO_FINDING else np.nan
    return values.fillna(blank).mask(values.eq(-1), as_uncertain)


def _numbers(values: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    wrong = (numbers.isna() & values.notna()) | ~(numbers.isna() | numbers.isin([-1, 0, 1]))
    if wrong.any():
        rows = counted(int(wrong.sum()), "row", "rows")
        raise TableError(
            f"column '{name}' is {values[wrong].iloc[0]!r} in {rows}, but a label of this set is 1, 0, -1 or blank; "
            "download the table again"
        )
    return numbers


def _words(values: pd.Series) -> pd.Series:
    return values.map({1.0: "1", 0.0: "0"}).astype("string")
