"""Where a run's epochs are told of while they run: metrics.csv, TensorBoard, MLflow.

What is told is the method's history, epoch by epoch, and at the end the audit's overall numbers and primary gaps. Images,
predictions and patients' names are never sent. A logger that fails while a run is under way is dropped with a warning, and
the run goes on; its numbers are in the run folder in any case.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from evenhand.errors import InputError, RunError
from evenhand.files import write_text
from evenhand.optional import require
from evenhand.runs.folder import RunFolder, package_versions

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
_LONGEST = 500


class EpochLogger(Protocol):
    """One place that epochs are told to. Every call may raise; `Loggers` sees to that."""

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def end(self, history: Sequence[Record], status: str) -> None:
        """The run is over: ``status`` is "done" or "failed"; the whole history, where it is done."""


class CSVLogger:
    """metrics.csv in the run folder, a row an epoch; at the end it has what metrics.jsonl has.

    Args:
        run: the run.
    """

    def __init__(self, run: RunFolder) -> None:
        self.path = run.root / "metrics.csv"
        self.rows: list[dict[str, Any]] = [] if not self.path.exists() else pd.read_csv(self.path).to_dict("records")  # type: ignore[assignment]

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Add a row; those of a step that is told again are replaced."""
        self.rows = [row for row in self.rows if row.get("epoch", 0) < step] + [{"epoch": step, **values}]
        self._write(self.rows)

    def end(self, history: Sequence[Record], status: str) -> None:
        """Write the history in place of what was told on the way."""
        if status == "done":
            self._write(history)

    def _write(self, rows: Sequence[Record]) -> None:
        columns = dict.fromkeys(name for row in rows for name in row)
        write_text(self.path, pd.DataFrame([dict(row) for row in rows], columns=list(columns)).to_csv(index=False, lineterminator="\n"))


class TensorBoardLogger:
    """Event files in the run folder's tensorboard/.

    Args:
        run: the run.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, run: RunFolder) -> None:
        require("tensorboard", "tensorboard", "logger=tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(log_dir=str(run.root / "tensorboard"))
        self.writer.add_text("config", "\n".join(f"    {line}" for line in _config_text(run).splitlines()))

    def record(self, values: Mapping[str, float], step: int) -> None:
        """One scalar a number."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, history: Sequence[Record], status: str) -> None:
        """Close the event file."""
        self.writer.close()


class MLflowLogger:
    """A run on the MLflow server that ``MLFLOW_TRACKING_URI`` names, in the experiment ``MLFLOW_EXPERIMENT_NAME`` (default: evenhand).

    Options become parameters, versions and hashes tags. A run that is taken up after a kill goes on under the same id, which
    run.json keeps.

    Args:
        run: the run.
        client: an ``mlflow.MlflowClient``; default: one of the environment's settings.

    Raises:
        DependencyError: mlflow is not installed.
    """

    def __init__(self, run: RunFolder, client: Any = None) -> None:
        self.client = client or require("mlflow", "mlflow", "logger=mlflow").MlflowClient()
        self.id = self._known(run) or self._begun(run)

    def _known(self, run: RunFolder) -> str | None:
        """The id of this run from before a kill, where the server still has it."""
        known = (run.info.get("mlflow") or {}).get("run_id")
        if known is None:
            return None
        try:
            self.client.update_run(known, status="RUNNING")
        except Exception as error:
            log.warning("the MLflow run %s is not there any more (%s); a new one is begun", known, _first_line(error))
            return None
        return str(known)

    def _begun(self, run: RunFolder) -> str:
        import os

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "evenhand")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self.client.create_experiment(name)
        info = run.info
        tags = {f"version.{package}": text for package, text in package_versions().items()}
        tags |= {name: str(info[name]) for name in ("data_hash", "model_hash", "split_hash") if info.get(name)}
        made = self.client.create_run(experiment, run_name=run.root.name, tags={"evenhand": "train", **tags})
        for option, value in _flat(info.get("config") or {}).items():
            self.client.log_param(made.info.run_id, _key(option), str(value)[:_LONGEST])
        run.update(mlflow={"run_id": made.info.run_id, "experiment": name})
        return str(made.info.run_id)

    def record(self, values: Mapping[str, float], step: int) -> None:
        """One metric a number."""
        for name, value in values.items():
            self.client.log_metric(self.id, _key(name), value, step=step)

    def end(self, history: Sequence[Record], status: str) -> None:
        """Set the run's status."""
        self.client.set_terminated(self.id, "FINISHED" if status == "done" else "FAILED")


KINDS: dict[str, Callable[[RunFolder], EpochLogger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "mlflow": MLflowLogger}
"""``logger=`` -> how it is opened."""
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse before any work a logger whose package is not installed.

    Raises:
        DependencyError: names the package and the extra that brings it.
    """
    for name in names:
        if name in _PACKAGES:
            require(_PACKAGES[name], name, f"logger={name}")


class Loggers:
    """The loggers of one run, told together.

    Args:
        run: the run.
        names: which, out of `KINDS`.

    Raises:
        DependencyError: a package is not installed.
        InputError: a logger cannot be opened, for example because its server does not answer.
    """

    def __init__(self, run: RunFolder, names: Sequence[str]) -> None:
        self.open: dict[str, EpochLogger] = {}
        self.told = 0
        check_loggers(names)
        for name in dict.fromkeys(names):
            try:
                self.open[name] = KINDS[name](run)
            except Exception as error:
                self.end((), "failed")
                raise InputError(f"logger={name} cannot be opened ({_first_line(error)}); put that right, or leave it out") from error

    def log(self, record: Record) -> None:
        """Tell of one epoch's record."""
        self.told += 1
        self._each(lambda logger: logger.record(_numbers(record), _step(record, self.told)))

    def finish(self, history: Sequence[Record], results: Mapping[str, float]) -> None:
        """Tell of the audit's numbers; of the history too where the method told of nothing on the way."""
        if not self.told:
            for record in history:
                self.log(record)
        step = max([_step(record, number) for number, record in enumerate(history, 1)], default=0)
        for name, logger in list(self.open.items()):
            if name != "csv":
                self._try(name, lambda logger=logger: logger.record(results, step))  # type: ignore[misc]
        self.end(history, "done")

    def end(self, history: Sequence[Record], status: str) -> None:
        """Close all of them; a second time does nothing."""
        self._each(lambda logger: logger.end(history, status))
        self.open.clear()

    def _each(self, call: Callable[[EpochLogger], None]) -> None:
        for name, logger in list(self.open.items()):
            self._try(name, lambda logger=logger: call(logger))  # type: ignore[misc]

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.open.pop(name, None)
            log.warning("logger=%s failed and is not told any more; the run goes on (%s)", name, _first_line(error))


@contextlib.contextmanager
def told(run: RunFolder, names: Sequence[str]) -> Iterator[Loggers]:
    """The loggers of a run, closed however it ends.

    Raises:
        DependencyError: a package is not installed.
        InputError: a logger cannot be opened.
    """
    loggers = Loggers(run, names)
    try:
        yield loggers
    finally:
        loggers.end((), "failed")


def audit_numbers(audit: Mapping[str, Any], primary: Sequence[str]) -> dict[str, float]:
    """The overall numbers and primary gaps of an audit under the names that loggers show: ``test/LABEL/auc``.

    Args:
        audit: audit.json.
        primary: the gaps of `AuditConfig.primary`.
    """
    found: dict[str, float] = {}
    for label, block in audit["labels"].items():
        for metric, estimate in block["overall"].items():
            if isinstance(estimate, Mapping) and estimate.get("value") is not None:
                found[f"test/{label}/{metric}"] = float(estimate["value"])
        for attribute, part in block["attributes"].items():
            for metric in primary:
                if (value := part["gaps"].get(metric, {}).get("value")) is not None:
                    found[f"test/{label}/{attribute}/{metric}_gap"] = float(value)
    return found


def _config_text(run: RunFolder) -> str:
    path = run.root / "config.yaml"
    if not path.exists():
        raise RunError(f"{run.root} has no config.yaml")
    return path.read_text(encoding="utf-8")


def _numbers(record: Record) -> dict[str, float]:
    found = {name: value for name, value in record.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return {name: float(value) for name, value in found.items() if name != "epoch" and math.isfinite(value)}


def _step(record: Record, number: int) -> int:
    return int(record.get("epoch", number))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``; a joint attribute's ``*`` becomes ``_x_``."""
    return re.sub(r"[^\w .:/-]", "_", name.replace("*", "_x_"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
