"""Training for a look and not for a result: a few rows learnt by heart, epochs cut short, the time of some steps taken apart."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from evenhand.data.subsets import ImageRows
from evenhand.random import generator
from evenhand.training.rows import TrainingRows
from evenhand.training.settings import Setup

if TYPE_CHECKING:
    from evenhand.methods.base import Split

PROFILE, TRACE = "profile.txt", "profile_trace.json.gz"
_ACTIVE, _ROWS = 3, 40


def pick_rows(y: npt.NDArray[Any], count: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """Positions of at most ``count`` labelled rows at random, classes in turn, so that few rows have all of them.

    Args:
        y: labels as in `Split`; the first label counts.
        count: how many.
        seed: of the draw.
        purpose: names the random stream.

    Returns:
        int64 (k,), ascending.

    Example:
        >>> picked = pick_rows(np.array([[0.0]] * 97 + [[1.0]] * 3), 4, 0, "example")
        >>> int((picked >= 97).sum())
        2
    """
    labelled = y >= 0 if y.ndim == 1 else ~np.isnan(y).all(axis=1)
    rows = generator(seed, "debug", purpose).permutation(np.flatnonzero(labelled))
    value = np.nan_to_num(np.asarray(y if y.ndim == 1 else y[:, 0], dtype=np.float64)[rows], nan=-1.0)
    turn = np.zeros(len(rows), dtype=np.int64)
    for kind in np.unique(value):
        turn[value == kind] = np.arange(int((value == kind).sum()))
    return np.sort(rows[np.argsort(turn, kind="stable")[:count]])


def narrowed(train: Split, val: Split, rows: TrainingRows, setup: Setup) -> tuple[TrainingRows, Split, tuple[str, ...]]:
    """The rows that a run with debug options draws from and is validated on, and what a reader of its numbers must know.

    ``overfit_batches=k``: k batches of training rows, validated on these very rows; a network, loss and learning rate that
    belong together bring ``val_auc`` to 1. ``limit_batches=k``: k batches of validation rows (those of training are cut by
    the loop, from other rows in every epoch).

    Args:
        train: training rows.
        val: validation rows.
        rows: the same training rows, as the loop draws them.
        setup: options, batch size and seed.
    """
    trainer, notes = setup.trainer, []
    if trainer.overfit_batches > 0:
        y = np.asarray(train.y)
        allowed = np.full(y.shape, -1) if y.ndim == 1 else np.full(y.shape, np.nan)
        allowed[rows.eligible] = y[rows.eligible]
        chosen = pick_rows(allowed, trainer.overfit_batches * setup.batch_size, setup.seed, "overfit")
        rows = replace(rows, eligible=chosen)
        val = _some(train, chosen)
        notes.append(
            f"debug run: trained and validated on the same {len(chosen)} rows (trainer.overfit_batches={trainer.overfit_batches}); "
            "its numbers say whether training works, not how good the network is"
        )
    if trainer.limit_batches > 0:
        count = trainer.limit_batches * setup.batch_size
        if len(val) > count:
            chosen = pick_rows(np.asarray(val.y), count, setup.seed, "limit")
            val = _some(val, chosen) if len(chosen) else val
        notes.append(
            f"debug run: at most {trainer.limit_batches} batches an epoch (trainer.limit_batches); its numbers are of no use beyond that"
        )
    return rows, val, tuple(notes)


def _some(split: Split, rows: npt.NDArray[np.int64]) -> Split:
    groups = {name: value.take(rows) for name, value in split.groups.items()}
    return replace(split, x=ImageRows(split.x, rows), y=split.y[rows], groups=groups, patient=split.patient[rows], index=split.index[rows])


class StepProfiler:
    """Profiles some steps of the first epoch that this process trains, where it is wanted.

    One step is passed over and one warms up, where there are that many; up to three are profiled. ``artifacts`` then holds
    profile.txt, a table of operations by their own time under the stages "read", "forward and backward" and "optimiser",
    and profile_trace.json.gz for chrome://tracing or Perfetto.

    Args:
        wanted: False makes every call do nothing.
        device: what is profiled beside the processor.
        n_steps: batches of the epoch.
    """

    def __init__(self, wanted: bool, device: torch.device, n_steps: int) -> None:
        self.artifacts: dict[str, bytes] = {}
        self._gpu = device.type == "cuda"
        self._wanted = wanted and n_steps > 0
        self._wait, self._warm = int(n_steps > _ACTIVE + 1), int(n_steps > 1)
        self._steps = min(_ACTIVE, n_steps - self._wait - self._warm)
        self._profile: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around the steps of an epoch."""
        if not self._wanted:
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._gpu else [])]
        plan = schedule(wait=self._wait, warmup=self._warm, active=self._steps, repeat=1) if self._warm else None
        with profile(activities=activities, schedule=plan, on_trace_ready=self._keep if plan else None) as self._profile:
            yield
        if plan is None:
            self._keep(self._profile)
        self._profile = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names what happens inside, for the table and the trace."""
        if self._profile is None:
            yield
            return
        with record_function(name):
            yield

    def step(self) -> None:
        """A batch is done."""
        if self._profile is not None and self._warm:
            self._profile.step()

    def _keep(self, done: Any) -> None:
        order = "self_cuda_time_total" if self._gpu else "self_cpu_time_total"
        head = f"{self._steps} steps, operations by their own time; the stages of a step come with their total\n"
        self.artifacts[PROFILE] = (head + str(done.key_averages().table(sort_by=order, row_limit=_ROWS)) + "\n").encode()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            done.export_chrome_trace(str(path))
            self.artifacts[TRACE] = gzip.compress(path.read_bytes(), mtime=0)
