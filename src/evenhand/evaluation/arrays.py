"""Arrays instead of a table: lists, numpy arrays, pandas Series and tensors, without importing what they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenhand.errors import ConfigError
from evenhand.evaluation.coding import label_values


def is_array(value: Any) -> bool:
    """Whether an argument holds values, one a row, rather than names of columns.

    Example:
        >>> is_array(np.zeros(3)), is_array([0, 1]), is_array("y"), is_array(["sex", "age"])
        (True, True, False, False)
    """
    if value is None or isinstance(value, (str, bytes)):
        return False
    if isinstance(value, (list, tuple)):
        return bool(value) and not all(isinstance(item, str) for item in value)
    return hasattr(value, "__array__") or hasattr(value, "detach")


def as_column(value: Any, name: str) -> Any:
    """Values as a numpy array or a pandas Series with a fresh index; tensors come from their device, without gradients.

    Raises:
        ConfigError: neither one nor two dimensions.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError:
            # half-precision kinds that numpy does not know
            value = value.float().numpy()
    if isinstance(value, pd.Series):
        return value.reset_index(drop=True)
    if isinstance(value, pd.Categorical):
        return pd.Series(value)
    if isinstance(value, pd.DataFrame):
        value = value.to_numpy()
    if isinstance(value, (list, tuple)) and not any(np.ndim(item) for item in value):
        return pd.Series(list(value))
    array = np.asarray(value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2):
        raise ConfigError(f"{name} has {array.ndim} dimensions, but must be one value a row, or one row of values")
    return array


def table_of(data: Any) -> pd.DataFrame:
    """A DataFrame from a mapping of columns; a DataFrame as it is.

    Raises:
        ConfigError: columns of different lengths, or of two dimensions.
    """
    if isinstance(data, pd.DataFrame):
        return data
    columns = {str(name): as_column(values, f"column '{name}'") for name, values in data.items()}
    _same_length(columns)
    flat = next((name for name, values in columns.items() if np.ndim(values) != 1), None)
    if flat is not None:
        raise ConfigError(f"column '{flat}' has two dimensions; give one column a label or a class")
    return pd.DataFrame(columns)


def _same_length(columns: Mapping[str, Any]) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"the arrays differ in length ({', '.join(f'{name} {n}' for name, n in lengths.items())}); give one value a row")


def frame_of_arrays(
    label: Any,
    score: Any,
    *,
    pred: Any = None,
    groups: Any = None,
    patient: Any = None,
    split: Any = None,
    label_names: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table from arrays, and the names of its columns as the arguments of an audit.

    - label (n,) and score (n,): one label. score (n, 2): the second column, as ``predict_proba`` gives it.
    - label (n,) and score (n, K): K classes; labels are class names, or positions in ``classes`` (default: 0 to K-1).
    - label (n, L) and score (n, L): L labels, named by ``label_names``.

    Args:
        label, score: as above; lists, arrays, Series or tensors. Rows go by position.
        pred: decisions in the shape of the label.
        groups: mapping of attribute names to (n,) values, a DataFrame, or one (n,) array, which is called ``group``.
        patient, split: (n,).
        label_names: names of labels; default ``label``, or ``label_1``, ….
        classes: names of classes.

    Raises:
        ConfigError: shapes or lengths that do not fit.
    """
    if label is None or score is None:
        raise ConfigError(f"{'label' if label is None else 'score'} is missing; without a table give arrays for label and score")
    columns: dict[str, Any] = {"label": as_column(label, "label"), "score": as_column(score, "score")}
    further = {"pred": pred, "patient": patient, "split": split}
    columns |= {name: as_column(value, name) for name, value in further.items() if value is not None}
    attributes = _attributes(groups)
    _same_length({**columns, **attributes})
    made, named = _outcome(columns["label"], columns["score"], columns.get("pred"), list(label_names), [str(name) for name in classes])
    clash = next((name for name in attributes if name in made or name in ("patient_id", "split")), None)
    if clash is not None:
        raise ConfigError(f"an attribute is named '{clash}', as the column of another role is; give it another name")
    for role, name in (("patient", "patient_id"), ("split", "split")):
        if role in columns:
            made[name] = columns[role]
            named[role] = name
    return pd.DataFrame({**made, **attributes}), {**named, "groups": tuple(attributes)}


def _attributes(groups: Any) -> dict[str, Any]:
    if groups is None:
        return {}
    if isinstance(groups, (Mapping, pd.DataFrame)):
        return {str(name): as_column(groups[name], f"attribute '{name}'") for name in groups}
    if isinstance(groups, str) or (not is_array(groups) and not isinstance(groups, (list, tuple))):
        raise ConfigError("groups are names, but there is no table; give a mapping, as groups={'sex': values}")
    return {str(getattr(groups, "name", None) or "group"): as_column(groups, "groups")}


def _outcome(label: Any, score: Any, pred: Any, names: list[str], classes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns, label/score/pred names)."""
    shapes = f"label {np.shape(label)} and score {np.shape(score)}"
    if np.ndim(label) == 1 and np.ndim(score) == 2:
        values = label_values(pd.Series(label))
        if np.shape(score)[1] != 2 or classes or not set(values) <= {"0", "1", "True", "False"}:
            return _classes(label, score, pred, names, classes)
        score = score[:, 1]
    if np.shape(label) != np.shape(score) or (pred is not None and np.shape(pred) != np.shape(label)):
        raise ConfigError(f"{shapes} do not fit; give (n,) and (n,), (n,) and (n, classes), or (n, labels) twice")
    if classes:
        raise ConfigError(f"classes are given, but {shapes} are not of one label with a score for each class")
    n_labels = 1 if np.ndim(label) == 1 else np.shape(label)[1]
    names = names or (["label"] if n_labels == 1 else [f"label_{k + 1}" for k in range(n_labels)])
    if len(names) != n_labels or len(set(names)) != n_labels:
        raise ConfigError(f"{len(set(names))} label names are given for {n_labels} labels; name each once")
    if n_labels == 1:
        made = {names[0]: label, f"score_{names[0]}": score} | ({} if pred is None else {f"pred_{names[0]}": pred})
    else:
        made = {name: label[:, k] for k, name in enumerate(names)} | {f"score_{name}": score[:, k] for k, name in enumerate(names)}
        made |= {} if pred is None else {f"pred_{name}": pred[:, k] for k, name in enumerate(names)}
    given = () if pred is None else tuple(f"pred_{name}" for name in names)
    return made, {"label": tuple(names), "score": tuple(f"score_{name}" for name in names), "pred": given}


def _classes(label: Any, score: Any, pred: Any, names: list[str], classes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    n_classes = np.shape(score)[1]
    values = label_values(pd.Series(label))
    positions = [str(k) for k in range(n_classes)]
    if not classes:
        classes = positions if set(values) <= set(positions) else values
    if len(classes) != n_classes:
        known = ", ".join(classes[:12])
        raise ConfigError(f"score has {n_classes} columns and there are {len(classes)} classes ({known}); give classes=[…]")
    by_position = set(values) <= set(positions) and not set(values) <= set(classes)
    name = names[0] if names else "label"
    made = {name: _class_names(label, classes, by_position)}
    made |= {f"y_score_{key}": score[:, k] for k, key in enumerate(classes)}
    if pred is not None:
        made["pred"] = _class_names(pred, classes, by_position)
    scores = tuple(f"y_score_{key}" for key in classes)
    return made, {"label": (name,), "score": scores, "pred": () if pred is None else ("pred",)}


def _class_names(values: Any, classes: list[str], by_position: bool) -> Any:
    if not by_position:
        return values
    series = pd.Series(values)
    return series.map(lambda value: None if pd.isna(value) else classes[int(value)])
