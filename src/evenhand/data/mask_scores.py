r"""Dice and 95% Hausdorff distance of predicted against true masks, computed by MONAI.

Dice is 2 |P ∩ T| / (|P| + |T|). The 95% Hausdorff distance is the larger of the 95th percentiles of the distances from
P's surface to T's and from T's to P's, with the voxels' size.

Where libraries differ, and what is done here:

- Both masks empty: MONAI gives NaN, TorchMetrics 0 or NaN by option, others 1. Here neither is defined: a case without
  the structure says nothing about how well it is delineated. Such cases are counted, not scored.
- One empty: Dice is 0 everywhere. The distance is infinite in MONAI, an error in medpy, an image's diagonal elsewhere.
  Here it is not defined and counted, since any number would be made up; so read HD95 beside Dice.
- HD95 in medpy pools both directions before taking the percentile; MONAI, used here, takes it of each and then the larger.
- Several classes: the case's value is the mean over the classes that are present in either mask, background excluded. Its
  HD95 is not defined as soon as one of them is in one mask only, so that a missed class does not flatter it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.decoding import run_chunks
from evenhand.data.masks import Mask, check_pair, read_mask
from evenhand.errors import ConfigError, ImageError
from evenhand.optional import require

Spacing = tuple[float, ...]
FOREGROUND = 1
_CHUNK = 16
_ALONE = 100
"""Pairs up to which one process is quicker than several, each of which imports MONAI."""


@dataclass(frozen=True)
class Pair:
    """Two mask files of one case."""

    row: int
    pred: str
    true: str


@dataclass(frozen=True)
class Task:
    """Pairs for one worker, and how to read them: the classes (empty: one foreground), the spacing where it is given."""

    pairs: tuple[Pair, ...]
    classes: tuple[int, ...] = ()
    spacing: Spacing | None = None


@dataclass(frozen=True)
class Header:
    """What the first look at a pair found; ``problem`` is empty where it can be scored."""

    row: int
    pred_values: tuple[int, ...] = ()
    true_values: tuple[int, ...] = ()
    axes: int = 0
    spaced: bool = False
    problem: str = ""


@dataclass(frozen=True)
class MaskScores:
    """The scores of many cases.

    Attributes:
        table: one row a case in the order given: ``dice`` and ``hd95``, NaN where not defined; with several classes also
            ``dice_K`` and ``hd95_K`` of each.
        unit: ``mm`` or ``pixels``, of the distances.
        classes: the classes' values; empty: one foreground.
        n_empty: cases where both masks are empty: neither score is defined.
        n_one_empty: cases with a class in one of the masks only: its Dice is 0 and HD95 is not defined.
        n_absent: cases without one of the files.
    """

    table: pd.DataFrame
    unit: str
    classes: tuple[int, ...]
    n_empty: int
    n_one_empty: int
    n_absent: int

    def sentences(self) -> list[str]:
        """What a report says about how the scores were made."""
        said = [
            "Dice and the 95% Hausdorff distance (HD95) were computed from mask files with MONAI; "
            f"distances are in {self.unit}, " + ("with the voxels' size." if self.unit == "mm" else "every pixel of size 1.")
        ]
        if self.classes:
            said.append(f"Masks have {len(self.classes)} classes; a case's value is the mean over those present in either mask.")
        if self.n_empty:
            said.append(f"Both masks are empty in {_cases(self.n_empty)}: neither score is defined there, and these are left out.")
        if self.n_one_empty:
            said.append(
                f"One mask is empty (or lacks a class) in {_cases(self.n_one_empty)}: Dice counts that as 0, HD95 is not defined there."
            )
        if self.n_absent:
            said.append(f"No mask is named in {_cases(self.n_absent)}: these are left out.")
        return said


def _cases(n: int) -> str:
    return f"{n} case{'s' * (n != 1)}"


def score_masks(
    pred: Sequence[Path | None],
    true: Sequence[Path | None],
    *,
    spacing: Sequence[float] | float | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], object] | None = None,
) -> MaskScores:
    """Dice and HD95 of every case. All files are read and checked before any score is computed.

    Args:
        pred: predicted mask files, None where there is none.
        true: true ones, as many.
        spacing: size of a pixel or voxel in mm, one number or one an axis; wins over what files say. None: the NIfTI
            header's, else 1, and the unit is pixels.
        workers: processes; below a hundred pairs one is used.
        progress: called with (what, done, all).

    Raises:
        ImageError: files that cannot be read or do not fit each other, one line each.
        ConfigError: a spacing that does not fit, or that only some files have.
        DependencyError: MONAI (or nibabel, for NIfTI) is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> square = np.zeros((20, 20), np.uint8)
        >>> square[5:10, 5:10] = 1
        >>> np.save(folder / "true.npy", square)
        >>> np.save(folder / "pred.npy", np.roll(square, 2, axis=1))
        >>> score_masks([folder / "pred.npy"], [folder / "true.npy"]).table.round(3).to_dict("records")
        [{'dice': 0.6, 'hd95': 2.0}]
    """
    steps = _steps(spacing)
    pairs = [Pair(row, str(p), str(t)) for row, (p, t) in enumerate(zip(pred, true, strict=True)) if p is not None and t is not None]
    require("monai.metrics", "masks", "Scoring masks")
    workers = workers if len(pairs) > _ALONE else 1
    headers = list(_reported(_over(look, pairs, Task(()), workers), "reading masks", len(pairs), progress))
    classes, unit = _checked(headers, pairs, steps)
    found = _reported(_over(score, pairs, Task((), classes, steps), workers), "scoring masks", len(pairs), progress)
    names = classes or (FOREGROUND,)
    dice, distance = np.full((len(pred), len(names)), np.nan), np.full((len(pred), len(names)), np.nan)
    for row, scores in found:
        dice[row], distance[row] = scores
    return _summary(dice, distance, classes, unit, len(pred) - len(pairs))


def _steps(spacing: Sequence[float] | float | None) -> Spacing | None:
    if spacing is None:
        return None
    steps = (float(spacing),) if isinstance(spacing, (int, float)) else tuple(float(step) for step in spacing)
    if not steps or len(steps) > 3 or not all(np.isfinite(step) and step > 0 for step in steps):
        raise ConfigError(f"spacing is {spacing}, but must be one positive number of mm, or one an axis, as 0.5,0.5,2")
    return steps


def _over(function: Callable[[Task], list[Any]], pairs: Sequence[Pair], like: Task, workers: int) -> Iterator[Any]:
    tasks = (Task(tuple(pairs[i : i + _CHUNK]), like.classes, like.spacing) for i in range(0, len(pairs), _CHUNK))
    for results in run_chunks(function, tasks, workers):
        yield from results


def _reported(results: Iterator[Any], what: str, total: int, progress: Callable[[str, int, int], object] | None) -> Iterator[Any]:
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(what, done, total)
        yield result


def look(task: Task) -> list[Header]:
    """Read every pair and say what it holds, or what is wrong with it."""
    found = []
    for pair in task.pairs:
        try:
            pred, true = _named(pair.pred, "predicted"), _named(pair.true, "true")
            check_pair(pred, true)
            spaced = pred.spacing is not None or true.spacing is not None
            found.append(Header(pair.row, pred.values, true.values, pred.labels.ndim, spaced))
        except ImageError as error:
            found.append(Header(pair.row, problem=error.summary))
        except MemoryError:
            found.append(Header(pair.row, problem="a mask is too large for the memory of this machine"))
    return found


def _named(file: str, which: str) -> Mask:
    try:
        return read_mask(file)
    except ImageError as error:
        raise ImageError(f"the {which} mask {Path(file).name} {error.summary}") from error


def _checked(headers: Sequence[Header], pairs: Sequence[Pair], steps: Spacing | None) -> tuple[tuple[int, ...], str]:
    """(classes, unit of distances) of all pairs together."""
    bad = sorted((header for header in headers if header.problem), key=lambda header: header.row)
    if bad:
        raise ImageError(
            f"{len(bad)} of {len(pairs)} pairs of masks cannot be scored; correct the files, or empty their cells to leave them out",
            [f"row {header.row + 1}: {header.problem}" for header in bad],
        )
    spaced = {header.spaced for header in headers}
    if steps is None and len(spaced) > 1:
        raise ConfigError("some masks say how large a voxel is and some do not, so distances would be in two units; give --spacing")
    axes = {header.axes for header in headers}
    if steps is not None and len(steps) > 1 and axes - {len(steps)}:
        other = min(axes - {len(steps)})
        raise ConfigError(f"spacing has {len(steps)} numbers, but there are masks of {other} axes; give one number an axis")
    in_pred = {value for header in headers for value in header.pred_values}
    in_true = {value for header in headers for value in header.true_values}
    unit = "mm" if steps is not None or True in spaced else "pixels"
    if len(in_pred) <= 1 and len(in_true) <= 1:
        return (), unit
    if in_pred and in_true and not in_pred & in_true:
        some = [", ".join(map(str, sorted(values)[:6])) for values in (in_pred, in_true)]
        raise ConfigError(f"predicted masks hold the classes {some[0]}, true ones {some[1]}, none in common; use one numbering")
    return tuple(sorted(in_pred | in_true)), unit


def score(task: Task) -> list[tuple[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]]:
    """(row, (Dice, HD95) of each class) of every pair."""
    found = []
    for pair in task.pairs:
        pred, true = read_mask(pair.pred), read_mask(pair.true)
        own = task.spacing or true.spacing or pred.spacing or (1.0,)
        spacing = own * pred.labels.ndim if len(own) == 1 else own
        found.append((pair.row, pair_scores(pred.labels, true.labels, task.classes, spacing)))
    return found


def pair_scores(
    pred: npt.NDArray[Any], true: npt.NDArray[Any], classes: Sequence[int] = (), spacing: Sequence[float] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(Dice, HD95) of each class of two masks, NaN where not defined.

    Args:
        pred: (h, w) or (x, y, z) whole numbers.
        true: of the same shape.
        classes: values that are classes; empty: everything above 0 is one foreground.
        spacing: size of a voxel along each axis; None: 1.

    Example:
        >>> square = np.zeros((9, 9), int)
        >>> square[2:5, 2:5] = 1
        >>> [part.round(6).tolist() for part in pair_scores(square, square)]
        [[1.0], [0.0]]
    """
    monai = require("monai.metrics", "masks", "Scoring masks")
    torch = require("torch", "masks", "Scoring masks")
    kept = list(spacing) if spacing is not None else [1.0] * pred.ndim
    dice, distance = [], []
    for value in classes or (None,):
        p, t = (pred > 0, true > 0) if value is None else (pred == value, true == value)
        some = p.any(), t.any()
        dice.append(np.nan if not any(some) else 0.0)
        distance.append(np.nan)
        if all(some):
            batch = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (p, t)]
            dice[-1] = _seven(monai.compute_dice(*batch, include_background=True))
            with warnings.catch_warnings():
                # MONAI 1.5 and 1.6 warn of an argument that MONAI itself passes
                warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
                found = monai.compute_hausdorff_distance(*batch, include_background=True, percentile=95, spacing=kept)
            distance[-1] = _seven(found)
    return np.array(dice), np.array(distance)


def _seven(found: Any) -> float:
    """MONAI's answer in single precision, to the seven digits that this has."""
    return float(f"{float(found[0, 0]):.7g}")


def _summary(
    dice: npt.NDArray[np.float64], distance: npt.NDArray[np.float64], classes: tuple[int, ...], unit: str, n_absent: int
) -> MaskScores:
    present = ~np.isnan(dice)
    n_present = present.sum(axis=1)
    lacking = (present & np.isnan(distance)).any(axis=1)
    table = pd.DataFrame({"dice": _mean(dice, n_present), "hd95": np.where(lacking, np.nan, _mean(distance, n_present))})
    for position, value in enumerate(classes):
        table[f"dice_{value}"], table[f"hd95_{value}"] = dice[:, position], distance[:, position]
    n_empty = int((n_present == 0).sum()) - n_absent
    return MaskScores(table, unit, classes, n_empty, int(lacking.sum()), n_absent)


def _mean(values: npt.NDArray[np.float64], n: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.where(n > 0, np.nansum(values, axis=1) / np.maximum(n, 1), np.nan))
