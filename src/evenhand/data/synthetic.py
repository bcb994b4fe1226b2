"""A synthetic cohort with a known, planted bias, and the counterfactual twin of every image.

The story of one patient, each arrow a number of `SyntheticConfig`:

    group g ── prevalence[g] ──> disease d ── label_noise[g] ──> label y
      └───── fidelity ─────────> trace s                d, s ──> image

The trace (a texture, a marker, an exposure) is the only thing the group changes in an image. Where prevalence differs
between groups, the trace predicts the label, so a model gains by reading it: that is the planted bias. The test split is
drawn with the same prevalence in every group (``balanced_test``), so that what a model does there because of the trace
shows as a gap. A twin is the same patient with the same noise and the other trace; it measures the dependence exactly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.schema import opt
from evenhand.data.synthetic_images import CHANNELS, draw_pairs
from evenhand.errors import ConfigError, InputError
from evenhand.files import disk_errors, write_text
from evenhand.random import generator

SHORTCUTS = ("texture", "marker", "intensity")
SPLITS = ("train", "val", "test")


@dataclass
class SyntheticConfig:
    """What a synthetic cohort looks like and how biased it is. Group names are the keys of ``prevalence``."""

    kind: str = opt("chest", "chest: grey films with opacities; skin: colour photographs with irregular lesions", choices=("chest", "skin"))
    size: int = opt(64, "height and width of the images", "pixels")
    n_patients: int = opt(1500, "patients, all splits together", "patients")
    images_per_patient: tuple[int, int] = opt((1, 2), "fewest and most images of one patient (uniform between)", "images")
    prevalence: dict[str, float] = opt({"A": 0.55, "B": 0.15}, "group -> share of diseased patients (of test: see balanced_test)", "share")
    group_shares: Optional[dict[str, float]] = opt(None, "group -> share of patients; default: equal", "share")
    traced_groups: tuple[str, ...] = opt(("A",), "groups whose images carry the trace; the others do not")
    fidelity: float = opt(0.95, "probability that a patient looks as the group says, traced or not; 0.5 = no shortcut", "share")
    shortcuts: tuple[str, ...] = opt(("texture",), "what the trace is, any of these; none = ()", choices=SHORTCUTS)
    shortcut_strength: float = opt(1.0, "multiplies what the trace changes in an image; 0 = invisible")
    signal: float = opt(1.8, "multiplies what the disease changes in an image; 0 = invisible, 1 = faint, 2 = plain")
    label_noise: dict[str, float] = opt({}, "group -> share of patients whose label is flipped; not named: 0", "share")
    balanced_test: bool = opt(True, "test patients have the same prevalence in every group (the mean over patients)")
    fractions: tuple[float, float, float] = opt((0.6, 0.15, 0.25), "train, val and test share of the patients", "share")
    age_range: tuple[float, float] = opt((20.0, 90.0), "uniform range of the age column; age changes nothing else", "years")
    missing_age: float = opt(0.0, "share of patients whose age is missing", "share")
    seed: int = opt(0, "seed of every random stream")

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError(f"the synthetic cohort cannot be made: {problems[0]}", problems[1:])

    @property
    def groups(self) -> tuple[str, ...]:
        """The group names, K of them, in the order of ``prevalence``."""
        return tuple(self.prevalence)

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of patients in each group, (K,), sums to 1."""
        given = self.group_shares or dict.fromkeys(self.prevalence, 1 / len(self.prevalence))
        return np.array([given[name] for name in self.groups], float)

    @property
    def noise(self) -> npt.NDArray[np.float64]:
        """Label flip probability of each group, (K,)."""
        return np.array([self.label_noise.get(name, 0.0) for name in self.groups], float)

    def split_prevalence(self, split: str) -> npt.NDArray[np.float64]:
        """Probability of disease in each group in one split, (K,)."""
        prevalence = np.array([self.prevalence[name] for name in self.groups], float)
        if split == "test" and self.balanced_test:
            return np.full(len(prevalence), float(self.shares @ prevalence))
        return prevalence

    def trace_probability(self) -> npt.NDArray[np.float64]:
        """Probability of carrying the trace in each group, (K,): ``fidelity`` in traced groups, 1 - ``fidelity`` in the others."""
        traced = np.array([name in self.traced_groups for name in self.groups])
        return np.where(traced, self.fidelity, 1 - self.fidelity)


def _problems(c: SyntheticConfig) -> Any:
    shares = {**c.prevalence, **c.label_noise, "fidelity": c.fidelity, "missing_age": c.missing_age}
    if c.kind not in CHANNELS:
        yield f"kind is '{c.kind}', but must be one of {', '.join(CHANNELS)}"
    if c.size < 8 or c.n_patients < 1:
        yield f"size is {c.size} and n_patients {c.n_patients}, but at least 8 pixels and 1 patient are needed"
    if not 1 <= c.images_per_patient[0] <= c.images_per_patient[1]:
        yield f"images_per_patient is {c.images_per_patient}, but must be (fewest, most) with 1 <= fewest <= most"
    for name, value in shares.items():
        if not 0 <= value <= 1:
            yield f"the share of '{name}' is {value}, but must lie in [0, 1]"
    unknown = {*c.label_noise, *c.traced_groups, *(c.group_shares or {})} - set(c.prevalence)
    if unknown or not c.prevalence:
        yield f"groups {sorted(unknown)} are not keys of prevalence {sorted(c.prevalence)}; name every group there"
    if c.group_shares is not None and (set(c.group_shares) != set(c.prevalence) or abs(sum(c.group_shares.values()) - 1) > 1e-9):
        yield f"group_shares is {c.group_shares}, but must name every group and sum to 1"
    if set(c.shortcuts) - set(SHORTCUTS):
        yield f"shortcuts is {c.shortcuts}, but may hold only {', '.join(SHORTCUTS)} (none: empty)"
    if len(c.fractions) != 3 or min(c.fractions) < 0 or abs(sum(c.fractions) - 1) > 1e-9:
        yield f"fractions is {c.fractions}, but must be three shares (train, val, test) that sum to 1"


@dataclass(frozen=True)
class Cohort:
    """A drawn cohort.

    Attributes:
        config: what it was drawn from.
        images: uint8 (n, c, h, w).
        twins: uint8 (n, c, h, w), the same patients and noise with the other trace; n = 0 when they were not asked for.
        table: one row an image: ``image, patient_id, split, label, group, age`` and the truth that only a simulation
            knows: ``disease`` (0/1, before label noise) and ``trace`` (0/1).
        twin_table: the same rows with ``image`` under twins/, ``twin_of`` the original's path, ``group`` a group with the
            other trace, and ``trace`` flipped.
    """

    config: SyntheticConfig
    images: npt.NDArray[np.uint8]
    twins: npt.NDArray[np.uint8]
    table: pd.DataFrame
    twin_table: pd.DataFrame


def make_table(config: SyntheticConfig) -> pd.DataFrame:
    """Draw everything but the pixels; see `Cohort.table`. Same config, same table.

    Example:
        >>> table = make_table(SyntheticConfig(n_patients=4, images_per_patient=(2, 2)))
        >>> len(table), table["patient_id"].nunique()
        (8, 4)
    """
    n, names = config.n_patients, np.array(config.groups, dtype=object)
    group = _quota(config.shares, n, generator(config.seed, "group"))
    split = _quota(np.asarray(config.fractions), n, generator(config.seed, "split"))
    prevalence = np.stack([config.split_prevalence(name) for name in SPLITS])  # (split, group)
    disease = generator(config.seed, "disease").random(n) < prevalence[split, group]
    label = disease ^ (generator(config.seed, "label_noise").random(n) < config.noise[group])
    trace = generator(config.seed, "trace").random(n) < config.trace_probability()[group]
    age = np.round(generator(config.seed, "age").uniform(*config.age_range, n), 1)
    age[generator(config.seed, "missing_age").random(n) < config.missing_age] = np.nan
    low, high = config.images_per_patient
    count = generator(config.seed, "images").integers(low, high + 1, n)
    rows = np.repeat(np.arange(n), count)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    width = len(str(n - 1))
    patient = np.array([f"p{i:0{width}d}" for i in range(n)], dtype=object)[rows]
    return pd.DataFrame(
        {
            "image": [f"images/{p}_{k}.png" for p, k in zip(patient, number, strict=True)],
            "patient_id": patient,
            "split": np.array(SPLITS, dtype=object)[split[rows]],
            "label": label[rows].astype(np.int64),
            "group": names[group[rows]],
            "age": age[rows],
            "disease": disease[rows].astype(np.int64),
            "trace": trace[rows].astype(np.int64),
        }
    )


def make_cohort(config: SyntheticConfig | None = None, *, twins: bool = True) -> Cohort:
    """Draw a cohort: table, images and counterfactual twins. The same config gives the same bytes (on one machine).

    Args:
        config: what to draw; default `SyntheticConfig()`.
        twins: False saves their memory and leaves ``Cohort.twins`` empty.

    Example:
        >>> cohort = make_cohort(SyntheticConfig(n_patients=3, size=16))
        >>> cohort.images.shape[1:], cohort.images.shape == cohort.twins.shape
        ((1, 16, 16), True)
    """
    config = config or SyntheticConfig()
    table = make_table(config)
    images, others = draw_pairs(
        kind=config.kind,
        size=config.size,
        patient=pd.factorize(table["patient_id"])[0],
        disease=table["disease"].to_numpy(bool),
        carried=table["trace"].to_numpy(bool),
        signal=config.signal,
        shortcuts=config.shortcuts,
        strength=config.shortcut_strength,
        seed=config.seed,
        twins=twins,
    )
    return Cohort(config, images, others, table, _twin_table(config, table))


def _twin_table(config: SyntheticConfig, table: pd.DataFrame) -> pd.DataFrame:
    other = {name: _other_group(config, name) for name in config.groups}
    twin = table.copy()
    twin["image"] = table["image"].str.replace("images/", "twins/", n=1, regex=False)
    twin["group"] = table["group"].map(other)
    twin["trace"] = 1 - table["trace"]
    twin.insert(1, "twin_of", table["image"])
    return twin


def _other_group(config: SyntheticConfig, name: str) -> str:
    """The next group in cyclic order with the other trace; the group itself where all groups look alike."""
    names = config.groups
    start, traced = names.index(name), name in config.traced_groups
    cycle = [names[(start + step) % len(names)] for step in range(1, len(names))]
    return next((other for other in cycle if (other in config.traced_groups) != traced), name)


def _quota(shares: npt.NDArray[np.float64], n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """n codes in random order whose counts differ from ``shares * n`` by less than one."""
    edges = np.round(np.cumsum(shares) * n).astype(np.int64)
    edges[-1] = n
    return rng.permutation(np.searchsorted(edges, np.arange(n), side="right"))


@dataclass(frozen=True)
class Dependence:
    """How much scores depend on the attribute's trace: each image against its twin.

    Attributes:
        flip_rate: share of images whose decision differs from their twin's.
        score_shift: mean of |score - twin score|.
        n: images.
        groups: the same per group, empty where no groups were given.
    """

    flip_rate: float
    score_shift: float
    n: int
    groups: Mapping[str, Dependence]


def dependence(
    scores: npt.ArrayLike, twin_scores: npt.ArrayLike, threshold: float, groups: Sequence[Any] | npt.NDArray[Any] | pd.Series | None = None
) -> Dependence:
    """Counterfactual dependence of a model on the attribute, exact because nothing else differs between twins.

    ``flip_rate = mean 1[(s >= t) != (s' >= t)]`` and ``score_shift = mean |s - s'|``, overall and per group of the original.
    0 for a model that does not read the trace; a model that reads only the trace has a flip rate of 1.

    Args:
        scores: (n,) in [0, 1], of the images.
        twin_scores: (n,) of their twins, in the same order.
        threshold: a score at or above it is a positive decision.
        groups: (n,) group of each image; missing ones (None, NaN) enter the overall figures only.

    Raises:
        InputError: no image, or lengths that differ.

    Example:
        >>> found = dependence([0.2, 0.9], [0.7, 0.8], 0.5, ["A", "B"])
        >>> found.flip_rate, round(found.score_shift, 3), found.groups["A"].flip_rate
        (0.5, 0.3, 1.0)
    """
    s, t = np.asarray(scores, float).ravel(), np.asarray(twin_scores, float).ravel()
    if len(s) != len(t) or len(s) == 0 or (groups is not None and len(groups) != len(s)):
        raise InputError(f"{len(s)} scores and {len(t)} twin scores arrived; give one of each (and a group) per image, at least one image")
    parts: dict[str, Dependence] = {}
    if groups is not None:
        named = pd.Series(list(groups), dtype=object)
        for key in sorted(named.dropna().unique()):
            rows = (named == key).to_numpy()
            parts[str(key)] = dependence(s[rows], t[rows], threshold)
    return Dependence(float(np.mean((s >= threshold) != (t >= threshold))), float(np.mean(np.abs(s - t))), len(s), parts)


def write_cohort(cohort: Cohort, folder: str | os.PathLike[str]) -> Path:
    """Write ``images/*.png`` and ``metadata.csv``, and ``twins/*.png`` and ``twins.csv`` where there are twins.

    The paths in the tables are relative to ``folder``. Each table is written last and replaced at once, so a folder with
    a metadata.csv is complete.

    Returns:
        The path of metadata.csv.

    Raises:
        DiskFullError: no space left.
    """
    root = Path(folder)
    with disk_errors(root):
        _write_part(root, "metadata.csv", cohort.table, cohort.images)
        if len(cohort.twins):
            _write_part(root, "twins.csv", cohort.twin_table, cohort.twins)
    return root / "metadata.csv"


def _write_part(root: Path, name: str, table: pd.DataFrame, images: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    for sub in {Path(path).parent for path in table["image"]}:
        (root / sub).mkdir(parents=True, exist_ok=True)
    for path, pixels in zip(table["image"], images, strict=True):
        picture = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        Image.fromarray(picture).save(root / path, compress_level=1)
    write_text(root / name, table.to_csv(index=False, lineterminator="\n"))
