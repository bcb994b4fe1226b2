"""Simulated cohorts whose true values are known: groups of patients, several images each, binormal scores through a link.

Every patient has 1 to 5 images (or as its group says). The latent score of an image is normal given the truth; a share
``icc`` of its variance is the patient's own, so that images of one patient agree. The score is the logistic function of
the latent times ``LINK``, so the score's threshold 0.5 is the latent's 0. Truth is the patient's, or each image's own.

The number of images does not depend on truth or score, so rates over images have the closed forms of `true_values`.
Groups may differ in prevalence, in spread (which moves Brier score and calibration and leaves AUC, TPR and FPR alone), in
images a patient and in their correlation, so that "no gap" does not mean "groups alike".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]

LINK = 1.5
THRESHOLD = 0.5
NEGATIVE, POSITIVE = -0.9, 0.566
"""Latent means of the better groups with spread 1: AUC 0.850, TPR 0.714, FPR 0.184 at the threshold."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Group:
    """One group of a cohort.

    Attributes:
        name: its key in the audit.
        patients: how many.
        prevalence: P(y=1) of an image.
        negative, positive: mean of the latent score given the truth.
        spread: its standard deviation, in both classes.
        images: fewest and most images of a patient; every number between is equally likely.
        icc: share of the latent's variance (given the truth) that the images of a patient have in common.
        shared_truth: whether a patient's images have one truth, or each its own.
    """

    name: str
    patients: int
    prevalence: float
    negative: float = NEGATIVE
    positive: float = POSITIVE
    spread: float = 1.0
    images: tuple[int, int] = (1, 5)
    icc: float = 0.5
    shared_truth: bool = True

    def spread_by(self, factor: float) -> Group:
        """The group with all latents times ``factor``: AUC, TPR and FPR as before, Brier score and log loss not."""
        return replace(self, negative=self.negative * factor, positive=self.positive * factor, spread=self.spread * factor)

    def with_lower_auc(self, gap: float) -> Group:
        """The group with its AUC lowered by ``gap``: positives score lower, negatives as before (so TPR falls, FPR stays)."""
        distance = _NORMAL.inv_cdf(true_values(self)["auc"] - gap) * 2**0.5 * self.spread
        return replace(self, positive=self.negative + distance)

    def with_lower_tpr(self, gap: float) -> Group:
        """The group with its TPR lowered by ``gap``: all score lower, so AUC stays and FPR falls a little too."""
        positive = _NORMAL.inv_cdf(true_values(self)["tpr"] - gap) * self.spread
        return replace(self, positive=positive, negative=self.negative + positive - self.positive)


@cache
def true_values(group: Group) -> dict[str, float]:
    """What the group's metrics would be with endlessly many patients, by metric name.

    Rates and AUC are closed forms of the normal distribution; losses are integrals over it, by
    Gauss quadrature, exact to about 1e-9.
    """
    p = group.prevalence
    tpr, fpr = (_NORMAL.cdf(mean / group.spread) for mean in (group.positive, group.negative))
    flagged = p * tpr + (1 - p) * fpr
    values = {
        "auc": _NORMAL.cdf((group.positive - group.negative) / (2**0.5 * group.spread)),
        "tpr": tpr,
        "fpr": fpr,
        "tnr": 1 - fpr,
        "fnr": 1 - tpr,
        "ppv": p * tpr / flagged,
        "npv": (1 - p) * (1 - fpr) / (1 - flagged),
        "accuracy": p * tpr + (1 - p) * (1 - fpr),
        "balanced_accuracy": (tpr + 1 - fpr) / 2,
        "f1": 2 * p * tpr / (flagged + p),
        "positive_rate": flagged,
        "prevalence": p,
    }
    return {**values, **_losses(group)}


def _losses(group: Group) -> dict[str, float]:
    z, weights = _normal_nodes()
    p = group.prevalence
    low, high = (LINK * (mean + group.spread * z) for mean in (group.negative, group.positive))
    squared = p * weights @ _logistic(-high) ** 2 + (1 - p) * weights @ _logistic(low) ** 2
    log_loss = p * weights @ np.logaddexp(0, -high) + (1 - p) * weights @ np.logaddexp(0, low)
    return {"brier": float(squared), "log_loss": float(log_loss)}


@cache
def _normal_nodes() -> tuple[FloatArray, FloatArray]:
    """Points and weights for integrals over the standard normal."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return 9 * nodes, weights * 9 * np.exp(-((9 * nodes) ** 2) / 2) / np.sqrt(2 * np.pi)


def _logistic(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-x)))


def make_cohort(groups: list[Group] | tuple[Group, ...], rng: np.random.Generator) -> pd.DataFrame:
    """One cohort as a table of predictions: ``patient_id, y_true, y_score, group``, one row an image."""
    parts, first = [], 0
    for group in groups:
        fewest, most = group.images
        images = rng.integers(fewest, most + 1, group.patients)
        patient = np.repeat(np.arange(group.patients), images)
        chance = rng.random(group.patients)[patient] if group.shared_truth else rng.random(len(patient))
        truth = (chance < group.prevalence).astype(float)
        noise = group.icc**0.5 * rng.standard_normal(group.patients)[patient] + (1 - group.icc) ** 0.5 * rng.standard_normal(len(patient))
        latent = np.where(truth == 1, group.positive, group.negative) + group.spread * noise
        score = _logistic(LINK * latent)
        parts.append(pd.DataFrame({"patient_id": first + patient, "y_true": truth, "y_score": score, "group": group.name}))
        first += group.patients
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Scenario:
    """What is simulated, many times over.

    Attributes:
        name: short and unique.
        groups: of the cohort.
        gap: the planted gap; 0: none in AUC, TPR and FPR.
        planted: metric of the planted gap.
        attributes: what is audited; more than one: the group names are joint, as ``a0*b1``.
    """

    name: str
    groups: tuple[Group, ...]
    gap: float = 0.0
    planted: str = ""
    attributes: tuple[str, ...] = ("group",)

    @property
    def joint(self) -> str:
        """The attribute whose groups are those of the cohort."""
        return self.attributes[-1]

    def table(self, rng: np.random.Generator) -> pd.DataFrame:
        """One cohort, with a column for every single attribute."""
        frame = make_cohort(self.groups, rng)
        if self.joint != "group":
            for k, name in enumerate(self.joint.split("*")):
                frame[name] = frame["group"].str.split("*").str[k]
        return frame


def sized(sizes: tuple[int, ...], prevalences: tuple[float, ...] = (0.4, 0.3, 0.5, 0.35), alike: bool = False) -> tuple[Group, ...]:
    """Groups of these sizes that differ in everything but AUC, TPR and FPR: prevalence, spread, images, correlation, truth."""
    spreads, images, iccs = (1.0, 1.4, 0.8, 1.2), ((1, 5), (1, 3), (2, 5), (1, 5)), (0.5, 0.3, 0.6, 0.5)
    made = []
    for k, n in enumerate(sizes):
        j = k % 4
        plain = Group(f"g{k}", n, prevalences[k % len(prevalences)], images=images[j], icc=iccs[j], shared_truth=j != 3)
        made.append(replace(plain, images=(1, 5), icc=0.5, shared_truth=True) if alike else plain.spread_by(spreads[j]))
    return tuple(made)


def planted(groups: tuple[Group, ...], metric: str, gap: float, ladder: bool = False) -> tuple[Group, ...]:
    """The groups with a gap: the second group alone is worse by ``gap``, or all step down evenly to it (``ladder``).

    Args:
        groups: without a gap.
        metric: ``auc`` or ``tpr`` (which is then the equalized-odds gap as well).
        gap: largest difference between two groups.
        ladder: whether every group is a step worse than the one before.
    """
    steps = np.linspace(0, gap, len(groups)) if ladder else gap * (np.arange(len(groups)) == 1)
    lower = Group.with_lower_auc if metric == "auc" else Group.with_lower_tpr
    return tuple(lower(group, float(step)) if step else group for group, step in zip(groups, steps, strict=True))


MIXED4, MIXED8 = (2000, 200, 20, 50), (500, 80, 20, 50, 300, 120, 30, 200)


def scenarios() -> tuple[Scenario, ...]:
    """The study: cohorts without a gap, then with gaps of 0.1 and 0.2."""
    joint = tuple(replace(group, name=f"a{k // 4}*b{k % 4}") for k, group in enumerate(sized((120,) * 8, (0.3, 0.4), alike=True)))
    rare = tuple(replace(group, prevalence=0.06) for group in sized((500, 500, 300, 300)))
    found = [
        Scenario("2 x 50", sized((50, 50), (0.4, 0.5))),
        Scenario("2 x 200", sized((200, 200))),
        Scenario("2 x 2000", sized((2000, 2000))),
        Scenario("2000 + 20", sized((2000, 20), (0.4, 0.5))),
        Scenario("4: 20 to 2000", sized(MIXED4)),
        Scenario("4, rare (6%)", rare),
        Scenario("8 x 50", sized((50,) * 8)),
        Scenario("8: 20 to 500", sized(MIXED8)),
        Scenario("2 x 4 joint", joint, attributes=("a", "b", "a*b")),
    ]
    bases = {"2 x 200": sized((200, 200)), "8: 20 to 500": sized(MIXED8)}
    for gap in (0.1, 0.2):
        found += [Scenario(f"{name}, AUC -{gap:g}", planted(groups, "auc", gap), gap, "auc") for name, groups in bases.items()]
        found += [Scenario(f"{name}, TPR -{gap:g}", planted(groups, "tpr", gap), gap, "tpr") for name, groups in bases.items()]
        ladder = planted(bases["8: 20 to 500"], "auc", gap, ladder=True)
        found.append(Scenario(f"8: 20 to 500, AUC ladder -{gap:g}", ladder, gap, "auc"))
    return tuple(found)


QUICK = ("2 x 50", "4: 20 to 2000", "2 x 200, AUC -0.2", "2 x 200, TPR -0.2")
"""The scenarios of a quick study."""
