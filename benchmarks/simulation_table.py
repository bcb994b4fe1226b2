"""The tables and bars of the simulation study: counts in, Markdown out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cohorts import Scenario

Tallies = Mapping[str, Mapping[str, Sequence[float]]]

LEVEL = 0.05
COVERAGE = (0.93, 0.97)
ESTIMABLE = 0.8
LARGE = ("50 to 199", "200 to 999", "1000 and more")
SIZES = ("20 to 49", *LARGE)
GROUP_METRICS = {"auc": "AUC", "tpr": "TPR", "fpr": "FPR", "positive_rate": "positive rate", "brier": "Brier"}
GAP_METRICS = {
    "auc": "AUC", "tpr": "TPR", "fpr": "FPR", "equalized_odds": "EO", "equalized_odds_mean": "EO mean", "positive_rate": "positive rate",
    "brier": "Brier",
}
WAYS = {"audit": "this audit", "independent": "images as patients", "maxmin": "percentile of max-min", "pairs": "every pair, z-test"}
OTHERS = {"percentile": "patient bootstrap, percentile", "bca": "patient bootstrap, BCa", "independent": "image bootstrap, percentile"}
"""Other ways to make a group's interval."""


@dataclass(frozen=True)
class Bar:
    """One bar: what was seen, out of how many, and the limits within which it is met, Monte-Carlo error included."""

    what: str
    seen: float
    n: int
    lowest: float
    highest: float

    @property
    def met(self) -> bool:
        return self.lowest - 1e-9 <= self.seen <= self.highest + 1e-9

    def __str__(self) -> str:
        return f"{self.what}: {self.seen:.1%} of {self.n}, but must lie in {self.lowest:.1%} to {self.highest:.1%}"


def share(tally: Mapping[str, Sequence[float]], key: str) -> tuple[float, int]:
    """(share or mean, number); NaN without observations."""
    total, n = tally.get(key, (0.0, 0))
    return (total / n if n else float("nan")), int(n)


def pooled(found: Tallies, key: str, names: Sequence[str] | None = None) -> dict[str, list[float]]:
    """One key summed over scenarios, as a tally with that key."""
    parts = [tally[key] for name, tally in found.items() if key in tally and (names is None or name in names)]
    return {key: [sum(part[0] for part in parts), sum(part[1] for part in parts)]}


def wilson(seen: float, n: int) -> tuple[float, float]:
    """Monte-Carlo limits of a share: Wilson's, 95%."""
    z = 1.959964
    centre = (seen + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(seen * (1 - seen) / n + z**2 / (4 * n**2)))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def percent(tally: Mapping[str, Sequence[float]], key: str, limits: bool = True) -> str:
    """A share as text, with its Monte-Carlo limits."""
    seen, n = share(tally, key)
    if not n:
        return "–"
    low, high = wilson(seen, n)
    return f"{100 * seen:.1f} ({100 * low:.1f} to {100 * high:.1f})" if limits else f"{100 * seen:.1f}"


def limit(n: int, level: float, side: float) -> float:
    """The share of n that a binomial count of probability ``level`` stays within, at the given quantile."""
    from scipy.stats import binom

    return float(binom.ppf(side, n, level)) / n


def bars(chosen: Sequence[Scenario], found: Tallies) -> list[Bar]:
    """Every bar of the study."""
    made = []
    for item in chosen:
        seen, n = share(found[item.name], "audit|claim|false")
        if n:
            made.append(Bar(f"claims of a gap that is not there, {item.name}", seen, n, 0.0, limit(n, LEVEL, 0.975)))
    for metric, shown in GROUP_METRICS.items():
        for size in SIZES:
            made += _coverage(f"coverage of {shown}, groups of {size} patients", pooled(found, f"audit|covers|{metric}|{size}"))
        if metric in ("auc", "tpr", "fpr"):
            counts = [pooled(found, f"audit|estimable|{metric}|{size}") for size in LARGE]
            yes, n = np.sum([next(iter(count.values())) for count in counts], axis=0)
            if n:
                what = f"groups of 50 and more patients with an estimable {shown}"
                made.append(Bar(what, float(yes / n), int(n), ESTIMABLE, 1.0))
    for item in chosen:
        for metric, shown in GAP_METRICS.items():
            key = f"audit|covers gap|{metric}"
            if key in found[item.name]:
                made += _coverage(f"coverage of the {shown} gap, {item.name}", {key: found[item.name][key]})
    return made


def _coverage(what: str, tally: Mapping[str, Sequence[float]]) -> list[Bar]:
    seen, n = share(tally, next(iter(tally)))
    return [Bar(what, seen, n, limit(n, COVERAGE[0], 0.025), limit(n, COVERAGE[1], 0.975))] if n else []


def fill(page: Path, text: str) -> None:
    """Replace what a page has between ``<!-- simulation -->`` and ``<!-- /simulation -->``."""
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- simulation -->")
    _, found, after = rest.partition("<!-- /simulation -->")
    if not found:
        raise SystemExit(f"{page} has no marks <!-- simulation --> and <!-- /simulation -->")
    page.write_text(f"{before}<!-- simulation -->\n{text}\n<!-- /simulation -->{after}", encoding="utf-8")


def tables(chosen: Sequence[Scenario], found: Tallies) -> Iterator[str]:
    """The study's tables, line by line; shares in percent with 95% Monte-Carlo limits."""
    without = [item.name for item in chosen if not item.gap]
    yield "\n**No gap in AUC, TPR and FPR: share of audits that claim one, in percent.**\n"
    yield from _table(
        ["cohort", "this audit", "family uncorrected", *list(WAYS.values())[1:]],
        [[name, *(percent(found[name], f"{way}|claim|{kind}") for way, kind in _CLAIMS)] for name in without],
    )
    yield "\n**A gap: share of audits that claim it (power), in percent.**\n"
    rows = []
    for item in chosen:
        if item.gap:
            keys = ("auc", "equalized_odds", "false")
            rows.append([item.name, *(percent(found[item.name], f"audit|claim|{key}") for key in keys)])
    yield from _table(["cohort", "AUC gap", "equalized-odds gap", "a claim where there is none"], rows)
    yield "\n**Groups: how often the interval holds the true value, in percent, and its mean width; the same in other ways.**\n"
    yield from _table(
        ["metric", "patients", "intervals", "this audit", *(f"{title}" for title in OTHERS.values())],
        [row for metric, shown in GROUP_METRICS.items() for size in SIZES if (row := _group_row(found, metric, shown, size))],
    )
    yield "\n**Gaps: how often the interval holds the true gap, in percent.**\n"
    shown = [*GAP_METRICS.values()]
    rows = [[item.name, *(percent(found[item.name], f"audit|covers gap|{m}", False) for m in GAP_METRICS)] for item in chosen]
    for way in ("independent", "maxmin"):
        rows += [[f"{WAYS[way]}: {name}", *(percent(found[name], f"{way}|covers gap|{m}", False) for m in GAP_METRICS)] for name in without]
    yield from _table(["cohort", *shown], rows)
    yield "\n**Gaps: mean width of the interval.**\n"
    rows = [[item.name, *(_width(found[item.name], f"audit|gap width|{m}") for m in GAP_METRICS)] for item in chosen]
    yield from _table(["cohort", *shown], rows)
    yield "\n**Share of groups called estimable, in percent.**\n"
    kinds = ("auc", "tpr", "fpr")
    rows = [[size, *(percent(pooled(found, key := f"audit|estimable|{m}|{size}"), key) for m in kinds)] for size in SIZES]
    yield from _table(["patients", *(GROUP_METRICS[m] for m in kinds)], rows)


_CLAIMS = (("audit", "holm"), ("audit", "raw"), ("independent", "holm"), ("maxmin", "holm"), ("pairs", "holm"))


def _group_row(found: Tallies, metric: str, shown: str, size: str) -> list[str]:
    cells = []
    for way in ("audit", *OTHERS):
        key, width = f"{way}|covers|{metric}|{size}", f"{way}|width|{metric}|{size}"
        cells.append(f"{percent(pooled(found, key), key)}, {_width(pooled(found, width), width)}")
    n = share(pooled(found, key := f"audit|covers|{metric}|{size}"), key)[1]
    return [shown, size, f"{n:,}", *cells] if n else []


def _width(tally: Mapping[str, Sequence[float]], key: str) -> str:
    mean, n = share(tally, key)
    return f"{mean:.3f}" if n else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)
