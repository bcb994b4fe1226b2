"""Speed and memory of the audit: three bars, each with our figure, the peer, the floor, the ratio and the verdict.

    python benchmarks/audit.py [--only bootstrap,process,large] [--peer-boot 20] [--large-rows 1000000]

bootstrap: 10,000 rows, 4 groups, AUC + TPR + FPR, 1000 replicates, overall and by group. Ours: the whole of `evaluate` (table
    checked, groups made, replicates drawn, JSON written) with those metrics and no permutations. Peer: fairlearn's MetricFrame
    with `n_boot`; few replicates are timed and scaled (its cost is linear in them), and the intervals of 1000 of its replicates
    are compared where `--peer-boot 1000` is given, of the few otherwise. Floor: drawing as many rows, one bincount of them a
    replicate and one sort of the scores. Bar: 150 times.
process: `evenhand audit` of a 10,000-row CSV with two attributes to finished HTML, as a process of its own. Peer: a process that
    imports pandas, SciPy and matplotlib. Bar: 4 times.
large: 1,000,000 rows, 3 attributes, 500 replicates, permutations as by default, against 100,000 rows; each in a process of its
    own. Bars: peak memory under 2 GB, time linear in the rows (within 1.3 times), both processors used.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

ATTRIBUTES = {"site": 4, "sex": 2, "age": 3}
write = sys.stdout.write


def cohort(n: int, attributes: list[str], seed: int = 0) -> pd.DataFrame:
    """Scores of one image a patient, and categorical attributes."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    z = rng.normal(size=n) + 1.2 * y - 0.7
    columns = {name: np.array([f"{name}{k}" for k in range(ATTRIBUTES[name])])[rng.integers(0, ATTRIBUTES[name], n)] for name in attributes}
    return pd.DataFrame({"patient_id": np.arange(n), "y_true": y, "y_score": 1 / (1 + np.exp(-z)), **columns})


def seconds(call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Best time of the repeats, and the last result."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def verdict(name: str, ratio: float, bar: str, passed: bool) -> bool:
    write(f"  {name} {ratio:.2f} (bar {bar}): {'passed' if passed else 'MISSED'}\n")
    return passed


def bootstrap_floor(scores: npt.NDArray[np.float64], replicates: int) -> None:
    """What any bootstrap of these rows does: one sort, and per replicate (overall and by group) draws and one bincount."""
    np.argsort(scores)
    rng, n = np.random.default_rng(0), len(scores)
    for _ in range(2 * replicates):
        np.bincount(rng.integers(0, n, n), minlength=n)


def peer_bootstrap(frame: pd.DataFrame, replicates: int) -> Any:
    """fairlearn's intervals of the same three metrics."""
    import fairlearn.metrics as fm
    from sklearn.metrics import roc_auc_score

    metrics = {
        "auc": lambda y, d, s: roc_auc_score(y, s),
        "tpr": lambda y, d, s: fm.true_positive_rate(y, d),
        "fpr": lambda y, d, s: fm.false_positive_rate(y, d),
    }
    return fm.MetricFrame(
        metrics=metrics,
        y_true=frame["y_true"],
        y_pred=(frame["y_score"] >= 0.5).astype(int),
        sensitive_features=frame["site"],
        sample_params={name: {"s": frame["y_score"]} for name in metrics},
        n_boot=replicates,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )


def bench_bootstrap(peer_boot: int) -> bool:
    """Bar 1."""
    from evenhand.config.schema import AuditConfig
    from evenhand.evaluation import evaluate

    frame = cohort(10_000, ["site"])
    config = AuditConfig(threshold="0.5", bootstrap=1000, permutations=0, metrics=["auc", "tpr", "fpr"], interval="percentile")
    ours, result = seconds(lambda: evaluate(frame, labels=["label"], attributes=["site"], config=config), 5)
    direct = seconds(lambda: direct_bootstrap(frame, 1000), 5)[0]
    floor = seconds(lambda: bootstrap_floor(frame["y_score"].to_numpy(), 1000), 3)[0]
    once = seconds(lambda: peer_bootstrap(frame, 1), 2)[0]
    many, other = seconds(lambda: peer_bootstrap(frame, peer_boot))
    peer = many if peer_boot >= 1000 else once + (many - once) / (peer_boot - 1) * 999
    groups = result.to_json()["labels"]["label"]["attributes"]["site"]["groups"]
    apart = max(
        abs(row[name][side] - float(other.by_group_ci[k].loc[group, name])) / ((row[name]["upper"] - row[name]["lower"]) / 3.92)
        for group, row in groups.items()
        for name in ("auc", "tpr", "fpr")
        for k, side in enumerate(("lower", "upper"))
    )
    # a 2.5% quantile of B draws from a normal distribution has a standard error of 2.67 SD / sqrt(B)
    error = 2.67 * np.sqrt(1 / 1000 + 1 / peer_boot)
    write("bootstrap: 10,000 rows, 4 groups, AUC + TPR + FPR, 1000 replicates\n")
    write(f"  figure  {ours:8.3f} s  evaluate(), everything included\n")
    write(f"  direct  {direct:8.3f} s  the replicates alone, from arrays, one thread\n")
    write(f"  floor   {floor:8.3f} s  one sort, 2 x 1000 draws and bincounts, one thread\n")
    write(
        f"  peer    {peer:8.1f} s  fairlearn MetricFrame, n_boot={peer_boot} took {many:.1f} s"
        + (", scaled\n" if peer_boot < 1000 else "\n")
    )
    write(f"  figure / floor {ours / floor:.2f}\n")
    close = verdict("limits apart, in SD of the estimate:", apart, f"{4 * error:.2f} = 4 Monte-Carlo errors", apart < 4 * error)
    return verdict("peer / figure", peer / ours, "150", peer / ours >= 150) and close


def direct_bootstrap(frame: pd.DataFrame, replicates: int) -> list[Any]:
    """Replicates of the three metrics, overall and by group, from arrays."""
    from evenhand.metrics import bootstrap_blocks, make_cell

    y, s = frame["y_true"].to_numpy(float), frame["y_score"].to_numpy()
    d, unit = (s >= 0.5).astype(float), np.arange(len(frame))
    found = []
    for codes in (np.zeros(len(frame), np.int64), pd.factorize(frame["site"])[0].astype(np.int64)):
        cells = [make_cell(*(x[codes == k] for x in (y, s, d, unit))) for k in range(codes.max() + 1)]

        def statistic(weights: npt.NDArray[np.float64], cells: list[Any] = cells) -> list[Any]:
            return [cell.values(("auc", "tpr", "fpr"), weights) for cell in cells]

        found.append(list(bootstrap_blocks(statistic, codes, replicates, 0)))
    return found


def bench_process() -> bool:
    """Bar 2."""
    script = Path(sys.executable).with_name("evenhand")
    with tempfile.TemporaryDirectory() as folder:
        frame = cohort(10_000, ["site", "sex"]).rename(columns={"y_true": "y", "y_score": "p"})
        frame.to_csv(f"{folder}/scores.csv", index=False)
        options = ["--label", "y", "--score", "p", "--groups", "site,sex", "--threshold", "0.5"]
        command = [str(script), "audit", f"{folder}/scores.csv", *options, "--out", f"{folder}/out"]
        imports = [sys.executable, "-c", "import pandas, scipy, scipy.stats, matplotlib.pyplot"]
        ours, peer = [], []
        for _ in range(4):
            ours.append(seconds(lambda: subprocess.run(command, check=True, capture_output=True))[0])
            peer.append(seconds(lambda: subprocess.run(imports, check=True, capture_output=True))[0])
        if not Path(folder, "out", "report.html").exists():
            return False
    write("process: `evenhand audit` of a 10,000-row CSV, two attributes, to finished HTML; best of 4, in turns\n")
    write(f"  figure  {min(ours):8.2f} s\n  floor   {min(peer):8.2f} s  importing pandas, SciPy and matplotlib\n")
    return verdict("figure / floor", min(ours) / min(peer), "4", min(ours) <= 4 * min(peer))


def audit_once(rows: int) -> None:
    """The large audit, in this process; prints its figures as JSON."""
    from evenhand.config.schema import AuditConfig
    from evenhand.evaluation import evaluate

    frame = cohort(rows, list(ATTRIBUTES))
    config = AuditConfig(threshold="0.5", bootstrap=500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start, cpu = time.perf_counter(), time.process_time()
    evaluate(frame, labels=["label"], attributes=list(ATTRIBUTES), config=config)
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    write(json.dumps({"rows": rows, "wall": wall, "cpu": time.process_time() - cpu, "peak": peak, "before": before}) + "\n")


def bench_large(rows: int) -> bool:
    """Bar 3."""
    found = []
    for n in (rows // 10, rows):
        done = subprocess.run([sys.executable, __file__, "--audit-once", str(n)], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    small, large = found
    write(f"large: {rows:,} rows, 3 attributes (9 groups), 500 replicates, permutations and metrics as by default\n")
    for item in found:
        write(f"  {item['rows']:>9,} rows  {item['wall']:8.1f} s wall, {item['cpu']:8.1f} s processor, peak {item['peak']:.2f} GB\n")
    passed = verdict("peak memory, GB", large["peak"], "2", large["peak"] < 2)
    linear = large["wall"] / small["wall"] / 10
    passed &= verdict("time over 10 x time of a tenth", linear, "1.3", linear <= 1.3)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = large["cpu"] / large["wall"]
    return verdict("processors used", share, f"0.8 of {cores}", share >= 0.8 * cores) and passed


def main() -> int:
    """Print the bars; 1 when one is missed."""
    parser = argparse.ArgumentParser(description="Speed and memory of the audit")
    parser.add_argument("--only", default="bootstrap,process,large")
    parser.add_argument("--peer-boot", type=int, default=50)
    parser.add_argument("--large-rows", type=int, default=1_000_000)
    parser.add_argument("--audit-once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.audit_once:
        audit_once(options.audit_once)
        return 0
    bars = {
        "bootstrap": lambda: bench_bootstrap(options.peer_boot),
        "process": bench_process,
        "large": lambda: bench_large(options.large_rows),
    }
    passed = [bars[name]() for name in options.only.split(",")]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
