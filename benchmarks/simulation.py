"""Does an audit claim what it should? Simulated cohorts with known true values, audited many times over.

    python benchmarks/simulation.py [--audits 500] [--workers 2] [--seed 0] [--quick] [--results simulation.jsonl] [--json FILE]

Cohorts of 2 to 8 groups of 20 to 2,000 patients with 1 to 5 images each (`cohorts.py`), with no gap and with gaps of 0.1
and 0.2, go through `evenhand.evaluation.evaluate` as a user's table would. Counted are: claims of a gap (adjusted
p < 0.05) where there is none and where there is one, how often intervals of groups and of gaps hold the true value, how
wide they are, and how many groups are called estimable. Beside them, on every tenth cohort without a gap, stand other ways:
the bootstrap intervals of patients (percentile, BCa), and what the audit never does: images drawn and permuted as if each
were a patient of its own, the percentile interval of a max-min gap, and a z-test of every pair of groups uncorrected.

Bars, with Monte-Carlo error at the number of audits made: a gap where there is none is claimed in at most 5% plus the
binomial limit (7% at 500 audits); intervals cover in 93-97%; 80% of the groups of 50 or more patients are estimable.
The exit code is 1 when one is missed. The study appends to its results file and goes on from there after a kill;
results of other code, seeds or counts of draws in the file are left alone. ``--quick`` is 4 scenarios of 40 audits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cohorts import QUICK, THRESHOLD, Scenario, scenarios, true_values

from evenhand.config.schema import AuditConfig
from evenhand.evaluation.evaluate import evaluate
from evenhand.metrics.bootstrap import bootstrap_blocks, percentile_interval
from evenhand.metrics.cells import Cell, make_cell
from evenhand.random import derive_seed, generator

METRICS = ("auc", "tpr", "fpr", "positive_rate", "brier")
GAPS = ("auc", "tpr", "fpr", "equalized_odds", "equalized_odds_mean", "positive_rate", "brier")
FAMILY = ("auc", "equalized_odds")
BANDS = ((20, "20 to 49"), (50, "50 to 199"), (200, "200 to 999"), (1000, "1000 and more"))
LEVEL, CHUNK, COMPARE_EVERY = 0.05, 10, 10

Tally = dict[str, list[float]]
"""What was counted -> [sum, number]; tallies of different audits add up."""

Work = tuple[Scenario, int, int]
"""(scenario, chunk, audits in it)."""


@dataclass(frozen=True)
class Settings:
    """What one audit of the study depends on, besides the code."""

    bootstrap: int = 500
    permutations: int = 200
    seed: int = 0

    def config(self, **changed: Any) -> AuditConfig:
        """As a user has it, but for the metrics; without what does not bear on intervals and claims.

        That is the bootstrap, which the default intervals do not use, bounds over missing attributes, and the details.
        """
        options = {"bootstrap": 0, "permutations": self.permutations, "bounds": False, "details": False, **changed}
        return AuditConfig(threshold=str(THRESHOLD), primary=list(FAMILY), metrics=list(METRICS), **options)

    def fingerprint(self) -> str:
        """Of the settings and of every file that the numbers depend on."""
        here = Path(__file__).resolve().parent
        package = here.parent / "src" / "evenhand"
        files = [*sorted(package.glob("metrics/*.py")), *sorted(package.glob("evaluation/*.py")), here / "cohorts.py", Path(__file__)]
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def count(tally: Tally, key: str, value: float) -> None:
    """Add one observation."""
    entry = tally.setdefault(key, [0.0, 0])
    entry[0] += float(value)
    entry[1] += 1


def merge(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    total: Tally = {}
    for tally in tallies:
        for key, (value, n) in tally.items():
            entry = total.setdefault(key, [0.0, 0])
            entry[0] += value
            entry[1] += n
    return total


def band(patients: int) -> str:
    """The size band of a group."""
    return next(name for least, name in reversed(BANDS) if patients >= least)


def true_gap(scenario: Scenario, name: str, gaps: dict[str, Any]) -> float:
    """The true gap between the groups that entered the audit's gap."""
    if name in ("equalized_odds", "equalized_odds_mean"):
        parts = [true_gap(scenario, part, gaps) for part in ("tpr", "fpr")]
        return max(parts) if name == "equalized_odds" else sum(parts) / 2
    out = {item["group"] for item in gaps[name]["excluded"]}
    values = [true_values(group)[name] for group in scenario.groups if group.name not in out]
    return max(values) - min(values)


def holds(estimate: dict[str, Any], truth: float) -> bool:
    """Whether the interval holds the truth; an open end holds everything on its side."""
    lower, upper = (estimate["lower"], estimate["upper"])
    return (lower is None or lower <= truth + 1e-9) and (upper is None or truth - 1e-9 <= upper)


def count_claims(tally: Tally, scenario: Scenario, data: dict[str, Any], way: str) -> None:
    """``way|claim|…``: holm (any of the family), raw (without correction), false (of a gap that is not there), each metric."""
    by_attribute = data["labels"]["label"]["attributes"]
    gaps = by_attribute[scenario.joint]["gaps"]
    claims: dict[str, list[bool]] = {"holm": [], "raw": [], "false": []}
    for name in FAMILY:
        for attribute, item in by_attribute.items():
            gap = item["gaps"][name]
            if gap["p"] is None:
                continue
            claimed = gap["p_holm"] < LEVEL
            claims["holm"].append(claimed)
            claims["raw"].append(gap["p"] < LEVEL)
            if (true_gap(scenario, name, gaps) if attribute == scenario.joint else 0.0) < 1e-9:
                claims["false"].append(claimed)
            if attribute == scenario.joint:
                count(tally, f"{way}|claim|{name}", claimed)
    for kind, found in claims.items():
        if found or kind != "false":
            count(tally, f"{way}|claim|{kind}", any(found))


def count_gaps(tally: Tally, scenario: Scenario, data: dict[str, Any], way: str) -> None:
    """``way|covers gap|…`` and ``way|gap width|…``."""
    gaps = data["labels"]["label"]["attributes"][scenario.joint]["gaps"]
    for name in GAPS:
        if gaps[name]["value"] is not None:
            count(tally, f"{way}|covers gap|{name}", holds(gaps[name], true_gap(scenario, name, gaps)))
            _count_width(tally, f"{way}|gap width|{name}", gaps[name])


def count_groups(tally: Tally, scenario: Scenario, data: dict[str, Any], way: str) -> None:
    """``way|estimable|…``, ``way|covers|…`` and ``way|width|…``, by metric and size of the group."""
    rows = data["labels"]["label"]["attributes"][scenario.joint]["groups"]
    for group in scenario.groups:
        size = band(group.patients)
        for name in METRICS:
            estimate = rows[group.name][name]
            count(tally, f"{way}|estimable|{name}|{size}", estimate["value"] is not None)
            if estimate["value"] is not None:
                count(tally, f"{way}|covers|{name}|{size}", holds(estimate, true_values(group)[name]))
                _count_width(tally, f"{way}|width|{name}|{size}", estimate)


def _count_width(tally: Tally, key: str, estimate: dict[str, Any]) -> None:
    if estimate["lower"] is not None and estimate["upper"] is not None:
        count(tally, key, estimate["upper"] - estimate["lower"])


def count_other_ways(tally: Tally, scenario: Scenario, frame: pd.DataFrame, data: dict[str, Any], settings: Settings, seed: int) -> None:
    """What the audit does not do: percentile intervals of max-min gaps, and a z-test of every pair without correction."""
    part = data["labels"]["label"]["attributes"][scenario.joint]
    names = [group.name for group in scenario.groups]
    codes = pd.Categorical(frame["group"], categories=names).codes.astype(np.int64)
    cells = {name: _cell(frame[codes == k]) for k, name in enumerate(names)}
    strata = frame.assign(code=codes).groupby("patient_id")["code"].first().to_numpy()
    parts = ("auc", "tpr", "fpr")
    inside = {m: [g for g in names if part["groups"][g][m]["value"] is not None] for m in parts}

    def spread(weights: Any) -> dict[str, Any]:
        values = {g: cell.values(parts, weights) for g, cell in cells.items()}
        return {m: np.ptp([values[g][m] for g in inside[m]], axis=0) for m in parts if len(inside[m]) >= 2}

    blocks = list(bootstrap_blocks(spread, strata, settings.bootstrap, seed, "percentile"))
    gaps = {m: np.concatenate([block[m] for block in blocks]) for m in parts if m in blocks[0]}
    if {"tpr", "fpr"} <= set(gaps):
        gaps["equalized_odds"] = np.maximum(gaps["tpr"], gaps["fpr"])
    excludes = []
    for name, replicates in gaps.items():
        lower, upper, _ = percentile_interval(replicates, 1 - LEVEL)
        truth = true_gap(scenario, name, part["gaps"])
        count(tally, f"maxmin|covers gap|{name}", lower <= truth + 1e-9 and truth <= upper + 1e-9)
        excludes.append(name in FAMILY and lower > 0)
    if excludes:
        count(tally, "maxmin|claim|holm", any(excludes))
    moments = {g: cell.moments(parts) for g, cell in cells.items()}
    largest = [
        abs(moments[g][m][0][0] - moments[h][m][0][0]) / (moments[g][m][1][0] + moments[h][m][1][0]) ** 0.5
        for m in parts
        for g in inside[m]
        for h in inside[m]
        if g < h
    ]
    if largest:
        count(tally, "pairs|claim|holm", max(largest) > 1.959964)


def _cell(rows: pd.DataFrame) -> Cell:
    score = rows["y_score"].to_numpy()
    return make_cell(rows["y_true"].to_numpy(), score, (score >= THRESHOLD).astype(float), rows["patient_id"].to_numpy().astype(np.int64))


def audit_once(scenario: Scenario, number: int, settings: Settings) -> Tally:
    """Make one cohort, audit it, count; every tenth one without a gap also the other ways."""
    tally: Tally = {}
    frame = scenario.table(generator(settings.seed, "simulation", scenario.name, number))
    seed = derive_seed(settings.seed, "audit", scenario.name, number)
    question: dict[str, Any] = {"labels": ["label"], "attributes": scenario.attributes, "seed": seed, "threads": 1}
    data = evaluate(frame, config=settings.config(), **question).data
    for counted in (count_claims, count_gaps, count_groups):
        counted(tally, scenario, data, "audit")
    if number % COMPARE_EVERY or scenario.gap:
        return tally
    for kind in ("percentile", "bca"):
        drawn = settings.config(interval=kind, bootstrap=settings.bootstrap, permutations=0)
        count_groups(tally, scenario, evaluate(frame, config=drawn, **question).data, kind)
    drawn = settings.config(interval="percentile", bootstrap=settings.bootstrap)
    alone = evaluate(frame.drop(columns="patient_id"), config=drawn, **question).data
    for counted in (count_claims, count_gaps, count_groups):
        counted(tally, scenario, alone, "independent")
    count_other_ways(tally, scenario, frame, data, settings, seed)
    return tally


def run_chunk(scenario: Scenario, chunk: int, size: int, settings: Settings) -> tuple[Tally, float]:
    """A few audits in a row: (tally, seconds)."""
    start = time.perf_counter()
    tally = merge(audit_once(scenario, chunk * CHUNK + k, settings) for k in range(size))
    return tally, time.perf_counter() - start


def study(chosen: Sequence[Scenario], audits: int, settings: Settings, results: Path, workers: int) -> dict[str, Tally]:
    """Make what is not in the results file yet; scenario -> tally. Interrupted, the file keeps what was made.

    All scenarios advance together, so that an unfinished study has a table too. With ``workers`` 0 nothing is made.
    """
    key = settings.fingerprint()
    done = {(line["scenario"], line["chunk"]): line for line in read_lines(results) if line["key"] == key}
    sizes = [(k, min(CHUNK, audits - k * CHUNK)) for k in range(-(-audits // CHUNK))]
    wanted = [(item, chunk, size) for chunk, size in sizes for item in chosen]
    missing = [work for work in wanted if done.get((work[0].name, work[1]), {"n": 0})["n"] < work[2]] if workers else []
    start = time.perf_counter()
    for at, (item, chunk, size, tally, seconds) in enumerate(_computed(missing, settings, workers), 1):
        line = {"key": key, "scenario": item.name, "chunk": chunk, "n": size, "seconds": round(seconds, 3), "tally": tally}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done[item.name, chunk] = line
        _progress(at, len(missing), time.perf_counter() - start)
    return {item.name: merge(done[item.name, chunk]["tally"] for chunk, _ in sizes if (item.name, chunk) in done) for item in chosen}


def _computed(work: Sequence[Work], settings: Settings, workers: int) -> Iterator[tuple[Scenario, int, int, Tally, float]]:
    """(scenario, chunk, size, tally, seconds) as they come; fresh processes, so that they start with one thread each."""
    if workers <= 1:
        for item, chunk, size in work:
            yield (item, chunk, size, *run_chunk(item, chunk, size, settings))
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        waiting = {pool.submit(run_chunk, *item, settings): item for item in work}
        try:
            for future in as_completed(waiting):
                yield (*waiting[future], *future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_lines(results: Path) -> Iterator[dict[str, Any]]:
    """The results file's lines; a last line cut short by a kill is skipped."""
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"


def _progress(at: int, total: int, seconds: float) -> None:
    if sys.stderr.isatty() or at == total or at % max(total // 20, 1) == 0:
        left = seconds / at * (total - at)
        end = "\r" if sys.stderr.isatty() and at < total else "\n"
        sys.stderr.write(f"{at}/{total} chunks, {seconds / 60:.1f} min, about {left / 60:.1f} min left   {end}")
        sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its tables; 1 when a bar is missed, 130 when interrupted."""
    from simulation_table import bars, fill, tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, help="audits of each scenario; default 500, quick 40")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=Settings.bootstrap)
    parser.add_argument("--permutations", type=int, default=Settings.permutations)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", default="", help="scenarios whose names contain this")
    parser.add_argument("--results", type=Path, default=Path("simulation.jsonl"), help="file that is appended to and resumed from")
    parser.add_argument("--json", type=Path, help="also write every count and bar there")
    parser.add_argument("--docs", type=Path, help="also put the tables between the marks <!-- simulation --> of this page")
    parser.add_argument("--table", action="store_true", help="only print the tables of what the results file holds")
    options = parser.parse_args(arguments)
    settings = Settings(options.bootstrap, options.permutations, options.seed)
    audits = options.audits or (40 if options.quick else 500)
    chosen = [item for item in scenarios() if (not options.quick or item.name in QUICK) and options.only in item.name]
    if not chosen:
        print(f"no scenario has '{options.only}' in its name; they are: {', '.join(item.name for item in scenarios())}", file=sys.stderr)
        return 2
    try:
        found = study(chosen, audits, settings, options.results, 0 if options.table else options.workers)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options.results} has what was made, and the same command goes on from there", file=sys.stderr)
        return 130
    draws = f"{settings.permutations} permutations ({settings.bootstrap} bootstrap replicates for the other ways)"
    made = [round(found[item.name].get("audit|claim|holm", (0, 0))[1]) for item in chosen]
    checked = bars(chosen, found)
    missed = [item for item in checked if not item.met]
    lines = [f"{_range(made)} audits a scenario, {draws}, seed {settings.seed}.\n", *tables(chosen, found)]
    lines += [f"\nBars: {len(checked) - len(missed)} of {len(checked)} met.", *(f"\n- missed: {item}" for item in missed)]
    print("\n".join(lines))
    if options.docs:
        fill(options.docs, "\n".join(lines))
    if options.json:
        listed = [{**asdict(item), "met": item.met} for item in checked]
        record = {"settings": asdict(settings), "audits": audits, "bars": listed, "tallies": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
