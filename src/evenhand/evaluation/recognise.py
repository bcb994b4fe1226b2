"""Which column is what, by its name: label, score, patient, split and attributes of anybody's table.

Names are compared without case, blanks and punctuation ("Patient ID" is ``patient_id``). Each role has tiers: a column of an
earlier tier is taken before one of a later tier, and two columns of one tier are an error that lists both. What a user names
is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from evenhand.errors import ConfigError
from evenhand.evaluation.coding import certain, label_values, positive_of
from evenhand.evaluation.predictions import GROUP_SUFFIX

Tiers = tuple[tuple[str, ...], ...]

LABELS: Tiers = (
    ("ytrue",),
    ("label", "labels", "target", "y", "truth", "groundtruth", "gt", "truelabel", "actual", "ytest"),
    ("diagnosis", "disease", "class", "outcome", "dx"),
)
SCORES: Tiers = (
    ("yscore",),
    ("score", "scores", "prob", "probs", "p", "proba", "probability", "probabilities", "predprob", "predproba", "predictedprobability",
     "yprob", "yproba", "ypredproba", "modelscore", "riskscore", "predictedrisk"),
    ("prediction", "predictions", "pred", "ypred", "yhat", "logit", "logits", "ylogit", "output"),
)  # fmt: skip
PATIENTS: Tiers = (
    ("patientid",),
    ("patient", "subjectid", "subject", "pid", "participantid", "participant", "personid", "patientnumber", "mrn"),
)
SPLITS: Tiers = (
    ("split",),
    ("fold", "set", "partition", "subset", "dataset", "datasplit", "splitname", "splittype", "settype", "datasettype", "imageset",
     "traintest", "trainvaltest", "traintestsplit", "phase", "mode", "stage", "usage"),
)  # fmt: skip
IMAGES: Tiers = (("image",), ("imageid", "imagepath", "imagename", "imageindex", "img", "filename", "filepath", "file", "path", "dicomid"))
AGES = frozenset({
    "age", "patientage", "ageyears", "ageyrs", "ageinyears", "patientageyears", "ageapprox", "anchorage", "ageatscan", "ageatexam",
    "ageatstudy", "ageatimaging", "ageatdiagnosis",
})  # fmt: skip
ATTRIBUTES = AGES | frozenset({
    "sex", "gender", "biologicalsex", "agegroup", "agebin", "agerange", "ageband", "race", "ethnicity", "ethnicgroup", "raceethnicity",
    "site", "scanner", "skintype", "skintone", "fitzpatrick", "fitzpatrickskintype", "fitzpatricktype", "monkskintone", "insurance",
    "insurancetype", "language", "patientsex", "patientgender", "patientrace", "sexatbirth", "hospital", "institution", "center",
    "centre", "manufacturer", "vendor", "maritalstatus",
})  # fmt: skip
NOMINAL = ATTRIBUTES - AGES
"""Attributes whose numbers are codes: never cut into quantile bins."""

LABEL_PREFIXES = frozenset({"ytrue", "label", "target", "true", "truth", "gt", "groundtruth", "y"})
SCORE_PREFIXES = frozenset(
    {"yscore", "score", "prob", "proba", "p", "probability", "predprob", "predproba", "yprob", "yproba", "pred", "prediction", "ypred",
     "logit", "logits"}
)  # fmt: skip
SPLIT_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "holdout": "test", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "tune": "val", "tuning": "val", "tr": "train", "trn": "train", "te": "test", "tst": "test",
    "train set": "train", "training set": "train", "train_set": "train", "trainset": "train", "test set": "test", "testing set": "test",
    "test_set": "test", "testset": "test", "validation set": "val", "val set": "val", "validation_set": "val", "val_set": "val",
}  # fmt: skip

TEST_FLAGS = frozenset({"istest", "istestset", "intest", "intestset", "testrow", "testflag"})
"""Columns of 0 and 1 that can only say whether a row is of the test split."""

MAYBE_TEST_FLAGS = frozenset({"test", "testset", "holdout", "isholdout"})
"""Columns of 0 and 1 that may say so, or hold the result of a test."""

VAL_FLAGS = frozenset({"isval", "isvalid", "isvalidation", "inval", "isdev", "istune"})


@dataclass(frozen=True)
class Outcome:
    """The columns of what is judged.

    Attributes:
        names: label names.
        labels: their columns.
        scores: score columns: one a label, or one a class.
        classes: multi-class: the class of each score column; else empty.
        preds: label name -> its column of decisions, where there is one.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[str, ...]
    classes: tuple[str, ...] = ()
    preds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Single:
    """The other columns that a table has one of, None where it has none."""

    patient: str | None = None
    split: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Attributes:
    """Attributes found by name, and why others were passed over."""

    names: tuple[str, ...]
    passed: Mapping[str, str] = field(default_factory=dict)


def squeeze(name: object) -> str:
    """A name without case, blanks and punctuation.

    Example:
        >>> squeeze("Patient ID")
        'patientid'
    """
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def pick(columns: Iterable[str], tiers: Tiers, role: str, option: str, fits: Callable[[str], bool] = lambda _: True) -> str | None:
    """The column of the first tier that has one.

    Raises:
        ConfigError: a tier has two.
    """
    known = {name: squeeze(name) for name in columns}
    for tier in tiers:
        found = [name for name, short in known.items() if short in tier and fits(name)]
        if len(found) > 1:
            raise ConfigError(f"columns {_quoted(found)} could both be the {role}; say which one with {option}, as {option} {found[0]}")
        if found:
            return found[0]
    return None


def find_outcome(frame: pd.DataFrame, labels: Sequence[str] = (), scores: Sequence[str] = (), pos_label: str | None = None) -> Outcome:
    """The label and score columns of a table; those given are taken as they are, the others are found by their names.

    In this order: one label with one score; one label with a score column for each of its classes (a label of two classes
    takes the positive one's); several labels with a score each (``label_X`` and ``score_X``, ``X_true`` and ``X_prob``, or ``X``
    itself and ``score_X``).

    Raises:
        ConfigError: nothing fits, or two things fit equally well.
    """
    if not labels and not scores and (contract := _contract(frame)):
        return contract
    taken = {*labels, *scores}
    free = [str(name) for name in frame.columns if name not in taken and not str(name).endswith(GROUP_SUFFIX)]
    numeric = [name for name in free if pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name])]
    if len(labels) > 1 or (len(scores) > 1 and not labels):
        return _partners(frame, free, numeric, labels, scores, pos_label)
    label = labels[0] if labels else _one_label(frame, free, numeric, pos_label)
    numeric = [name for name in numeric if name != label]
    score = scores[0] if scores else pick(numeric, SCORES, "score", "--score", lambda name: not _is_decision(frame, name, numeric))
    if label is not None and score is None:
        score = _named(numeric, label)
    if label is not None and score is not None:
        return _single(frame, label, score, given=bool(labels))
    if label is not None and (family := _class_columns(frame, label, numeric)):
        return _class_outcome(frame, label, family, pos_label)
    if label is not None and score is None and (score := _of_positive(frame, label, numeric, pos_label)):
        return _single(frame, label, score, given=bool(labels))
    if not labels and not scores and (several := _label_family(frame, free, numeric)):
        return several
    if label is not None and (lacking := _lacking(frame, label, numeric)):
        raise ConfigError(lacking)
    if label is not None and (text := pick([name for name in free if name != label], SCORES, "score", "--score")):
        return _single(frame, label, text, given=bool(labels))
    raise _nothing(frame, label, score)


def _contract(frame: pd.DataFrame) -> Outcome | None:
    """The columns that evenhand itself writes, ``y_true[_LABEL]`` and ``y_score[_LABEL or _CLASS]``, with their decisions."""
    columns = [str(name) for name in frame.columns]
    if "y_true" in columns and "y_score" in columns:
        return _single(frame, "y_true", "y_score", given=False)
    scored = [name.removeprefix("y_score_") for name in columns if name.startswith("y_score_")]
    if "y_true" in columns and scored:
        own = {"label": "y_pred"} if "y_pred" in columns else {}
        return Outcome(("label",), ("y_true",), tuple(f"y_score_{name}" for name in scored), tuple(scored), own)
    names = tuple(name for name in scored if f"y_true_{name}" in columns)
    if not names:
        return None
    preds = {name: f"y_pred_{name}" for name in names if f"y_pred_{name}" in columns and frame[f"y_pred_{name}"].notna().any()}
    return Outcome(names, tuple(f"y_true_{name}" for name in names), tuple(f"y_score_{name}" for name in names), (), preds)


def _one_label(frame: pd.DataFrame, free: Sequence[str], numeric: Sequence[str], pos_label: str | None) -> str | None:
    """A label that can be coded as 0 and 1 before one of many classes."""
    values = {name: label_values(frame[name]) for name in free if any(squeeze(name) in tier for tier in LABELS)}
    two = pick(values, LABELS, "label", "--label", lambda name: len(values[name]) <= 2 or pos_label in values[name])
    return two if two is not None else pick(values, LABELS, "label", "--label")


def _is_decision(frame: pd.DataFrame, name: str, numeric: Sequence[str]) -> bool:
    """Whether a prediction column holds decisions rather than scores: 0 and 1 only, and something else could be the score."""
    return squeeze(name) in SCORES[-1] and bool(frame[name].dropna().isin((0, 1)).all()) and len(numeric) > 1


def _single(frame: pd.DataFrame, label: str, score: str, given: bool) -> Outcome:
    """One label with its score, and the decisions in ``y_pred``; those of evenhand's own columns are checked later, not here."""
    name = "label" if label == "y_true" and not given else label
    pred = "y_pred"
    own = not given and pred in frame.columns and pred != score and bool(frame[pred].notna().any())
    own = own and (score == "y_score" or bool(pd.to_numeric(frame[pred], errors="coerce").isin((0, 1)).all()))
    return Outcome((name,), (label,), (score,), (), {name: pred} if own else {})


def _named(numeric: Sequence[str], label: str) -> str | None:
    """``score_X`` for the label ``X`` (or ``label_X``)."""
    names = {label, *(stem for _, stem in _stems(label, LABEL_PREFIXES))}
    found = [name for name in numeric if any(stem in names for _, stem in _stems(name, SCORE_PREFIXES))]
    if len(found) > 1:
        raise ConfigError(f"columns {_quoted(found)} could both be the score of '{label}'; say which one with --score")
    return found[0] if found else None


def _of_positive(frame: pd.DataFrame, label: str, numeric: Sequence[str], pos_label: str | None) -> str | None:
    """``prob_malignant`` for a label of malignant and benign."""
    values = label_values(frame[label])
    positive = pos_label if pos_label in values else positive_of(values)
    return None if positive is None or len(values) > 2 else _named(numeric, positive)


def _stems(name: str, prefixes: frozenset[str]) -> list[tuple[str, str]]:
    """(what is cut off, what is left) for every prefix, and every suffix, of a name that is one of ``prefixes``.

    Example:
        >>> _stems("y_score_mel", SCORE_PREFIXES), _stems("mel prob", SCORE_PREFIXES)
        ([('y_score_*', 'mel')], [('* prob', 'mel')])
    """
    found = []
    for sign in re.finditer(r"[_ .:\-]", name):
        start, end = name[: sign.start()], name[sign.end() :]
        if start and end and squeeze(start) in prefixes:
            found.append((f"{name[: sign.end()]}*", end))
        if start and end and squeeze(end) in prefixes:
            found.append((f"*{name[sign.start() :]}", start))
    return found


def _families(columns: Iterable[str], prefixes: frozenset[str]) -> dict[str, dict[str, str]]:
    """Pattern -> {stem: column}."""
    found: dict[str, dict[str, str]] = {}
    for name in columns:
        for pattern, stem in _stems(name, prefixes):
            found.setdefault(pattern, {})[stem] = name
    return found


def _class_columns(frame: pd.DataFrame, label: str, numeric: Sequence[str]) -> dict[str, str]:
    """Class -> score column, where every value of the label has one; empty where there are none."""
    values = certain(label_values(frame[label]))
    # pred_class beside pred_0 and pred_1 is a decision, not the score of a class
    scored = [name for name in numeric if not any(squeeze(stem) in ("class", "label") for _, stem in _stems(name, SCORE_PREFIXES))]
    families = _families(scored, SCORE_PREFIXES)
    families["*"] = {name: name for name in numeric if name in values}
    fitting = {pattern: columns for pattern, columns in families.items() if len(columns) > 1 and values and set(values) <= set(columns)}
    if len(fitting) > 1:
        raise ConfigError(
            f"columns named {_quoted(list(fitting))} could both be the scores of the classes of '{label}'; say which with --score"
        )
    return next(iter(fitting.values()), {})


def _lacking(frame: pd.DataFrame, label: str, numeric: Sequence[str]) -> str:
    """Which classes of a label have no score column, where others have one; empty where none has."""
    values = certain(label_values(frame[label]))
    found = [set(values) & set(columns) for columns in _families(numeric, SCORE_PREFIXES).values()]
    most = max(found, key=len, default=set())
    if len(values) < 3 or not most:
        return ""
    without = [f"'{value}'" for value in values if value not in most]
    shown = ", ".join(without[:8]) + (", …" if len(without) > 8 else "")
    return f"the classes {shown} of the label '{label}' have no score column, while others have; add them, or name the columns with --score"


def _class_outcome(frame: pd.DataFrame, label: str, family: Mapping[str, str], pos_label: str | None) -> Outcome:
    values = list(family)
    positive = "1" if set(values) == {"0", "1"} else pos_label if pos_label in values else positive_of(values)
    if len(values) == 2 and positive is not None:
        return Outcome((label,), (label,), (family[positive],))
    return Outcome((label,), (label,), tuple(family.values()), tuple(values))


def _label_family(frame: pd.DataFrame, free: Sequence[str], numeric: Sequence[str]) -> Outcome | None:
    """Labels and scores that share their stems; the pair of patterns with the most stems in common."""
    truths = _families(free, LABEL_PREFIXES)
    found: dict[tuple[tuple[str, str], ...], Outcome] = {}
    for columns in _families(numeric, SCORE_PREFIXES).values():
        bare = {name: name for name in free if name in columns and len(certain(label_values(frame[name]))) <= 2}
        for labels in (*truths.values(), bare):
            stems = [stem for stem in labels if stem in columns and labels[stem] != columns[stem]]
            pairs = tuple((labels[stem], columns[stem]) for stem in stems)
            if stems:
                found[pairs] = Outcome(tuple(stems), tuple(labels[s] for s in stems), tuple(columns[s] for s in stems))
    most = max(map(len, found), default=0)
    best = [pairs for pairs in found if len(pairs) == most]
    if len(best) > 1:
        first, second = (f"{pairs[0][0]} with {pairs[0][1]}" for pairs in best[:2])
        raise ConfigError(f"the labels could be read in two ways ({first}, …; or {second}, …); name them with --label and --score")
    return found[best[0]] if best else None


def _partners(
    frame: pd.DataFrame, free: Sequence[str], numeric: Sequence[str], labels: Sequence[str], scores: Sequence[str], pos_label: str | None
) -> Outcome:
    """The scores of several given labels, or the labels of several given scores."""
    if scores:
        label = _one_label(frame, free, numeric, pos_label)
        several = None if label is not None else _label_family(frame, free, scores)
        if label is None and (several is None or len(several.scores) < len(scores)):
            raise ConfigError("--label is missing; no column is named as a label is, so give one for each --score, or one of class names")
        return several or Outcome((str(label),), (str(label),), tuple(scores))
    found = []
    for label in labels:
        score = _named(numeric, label)
        if score is None:
            raise ConfigError(f"no column is named as the score of '{label}'; give --score, one for each --label")
        found.append(score)
    return Outcome(tuple(labels), tuple(labels), tuple(found))


def _nothing(frame: pd.DataFrame, label: str | None, score: str | None) -> ConfigError:
    shown = ", ".join(str(name) for name in frame.columns[:12]) + (", …" if len(frame.columns) > 12 else "")
    if label is None and score is None:
        return ConfigError(f"no label and no score column is recognised among {shown}; name them with --label and --score")
    if label is None:
        return ConfigError(f"the score is '{score}', but no label column is recognised among {shown}; name it with --label")
    return ConfigError(f"the label is '{label}', but no score column of numbers is recognised among {shown}; name it with --score")


def find_single(frame: pd.DataFrame, taken: Iterable[str], patient: str | None, split: str | None) -> Single:
    """Patient, split and image columns: those given, else by name; a fold without the words train, val and test is none.

    Raises:
        ConfigError: two columns of equal standing.
    """
    free = [str(name) for name in frame.columns if name not in {*taken, patient, split}]
    return Single(
        patient or pick(free, PATIENTS, "patient", "--patient"),
        split
        or pick(free, SPLITS, "split", "--split", lambda name: name == "split" or says_split(frame[name]))
        or _test_flag(frame, free),
        pick(free, IMAGES, "image", "another name") if "image" in free else _first_image(free),
    )


def _first_image(free: Sequence[str]) -> str | None:
    """Images only serve to count duplicates, so that the first of several names will do."""
    return next((name for name in free if squeeze(name) in IMAGES[1]), None)


def _test_flag(frame: pd.DataFrame, free: Sequence[str]) -> str | None:
    """The only column that marks test rows with 1, where none marks validation rows and no split is there."""
    marks = [name for name in free if squeeze(name) in TEST_FLAGS and is_flag(frame[name])]
    return marks[0] if len(marks) == 1 and not any(squeeze(name) in VAL_FLAGS for name in free) else None


def is_flag(values: pd.Series) -> bool:
    """Whether a column is 0 and 1, or true and false, in every row, and both occur."""
    if values.isna().any() or values.nunique() != 2:
        return False
    return {value.casefold() for value in label_values(values)} in ({"0", "1"}, {"true", "false"})


def says_split(values: pd.Series) -> bool:
    """Whether a column holds nothing but words such as train, val and test; also without test, so that it is not passed over."""
    words = {value.casefold() for value in label_values(values)} if values.nunique() <= len(SPLIT_WORDS) else set()
    return bool(words) and words <= set(SPLIT_WORDS)


def find_attributes(frame: pd.DataFrame, taken: Iterable[str], max_groups: int) -> Attributes:
    """Attributes by name: every ``<x>__group``, and the usual ones that hold more than one group and not too many.

    A column ``age_group`` stands for ``age`` where both are there.
    """
    free = [str(name) for name in frame.columns if name not in set(taken)]
    stored = [name.removesuffix(GROUP_SUFFIX) for name in free if name.endswith(GROUP_SUFFIX)]
    usual = [name for name in free if squeeze(name) in ATTRIBUTES and name not in stored and not name.endswith(GROUP_SUFFIX)]
    shorts = {squeeze(name): name for name in usual}
    passed, names = {}, list(stored)
    for name in usual:
        binned = next((shorts[squeeze(name) + end] for end in ("group", "bin", "range", "band") if squeeze(name) + end in shorts), None)
        n_values = frame[name].nunique()
        if binned is not None:
            passed[name] = f"'{binned}' stands for it"
        elif n_values == 0:
            passed[name] = "it is empty in every row"
        elif n_values == 1:
            passed[name] = "it has one value only"
        elif n_values > max_groups and not is_measured(frame[name], name):
            passed[name] = f"it has {n_values} values, more than --max-groups {max_groups}"
        else:
            names.append(name)
    return Attributes(tuple(names), passed)


MOST_VALUES = 10
"""More distinct numbers than this are a measurement, which is cut into quartiles unless its name says that they are codes."""


def is_measured(values: pd.Series, name: str) -> bool:
    """Whether a column holds measurements (age) rather than categories: more than `MOST_VALUES` distinct numbers."""
    kind = pd.api.types.infer_dtype(values, skipna=True) if values.dtype == object else ""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    numeric = numeric or kind in ("integer", "floating", "mixed-integer-float", "decimal")
    return numeric and squeeze(name) not in NOMINAL and values.nunique() > MOST_VALUES


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
