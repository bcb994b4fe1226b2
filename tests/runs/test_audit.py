"""`evenhand.audit` from Python: columns of any name, files written, nothing written on an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evenhand
from evenhand.errors import ConfigError, GateError, InputError, TableError
from evenhand.runs.audit import audit

FEW = {"bootstrap": 60, "permutations": 60}


def _frame(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    return pd.DataFrame(
        {"case": y, "prob": 0.3 * y + 0.7 * rng.random(n), "who": np.arange(n) // 2, "sex": np.tile(["f", "f", "m", "m"], n // 4)}
    )


def test_it_is_one_import_away() -> None:
    assert evenhand.audit is audit


def test_files_are_written(tmp_path: Path) -> None:
    result = audit(_frame(), "case", "prob", ["sex"], patient="who", threshold=0.5, out=tmp_path / "out", **FEW)
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == result.to_json()
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    tables = {item.name for item in (tmp_path / "out" / "tables").iterdir()}
    assert tables == {f"{name}.csv" for name in ("estimates", "gaps", "verdicts", "intersections", "explained", "power")}
    assert result.to_json()["n_patients"] == 100


def test_a_failed_gate_comes_after_everything_is_written(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        audit(_frame(), "case", "prob", "sex", fail_if="sex.auc.worst < 0.999", out=tmp_path, **FEW)
    assert (tmp_path / "report.html").exists()


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    frame = _frame()
    for options, words in (
        ({"groups": ["sexx"]}, "did you mean 'sex'"),
        ({"label": "cas"}, "did you mean 'case'"),
        ({"fail_if": "sex.auk > 1"}, "did you mean 'auc'"),
        ({"bins": {"age": (0, 1)}}, "not among the groups"),
        ({"threshold": "best"}, "is not one of youden"),
        ({"score": ["prob", "prob"], "label": ["case", "case", "case"]}, "do not fit"),
    ):
        with pytest.raises((TableError, ConfigError), match=words):
            audit(frame, **{"label": "case", "score": "prob", "groups": ["sex"], "out": tmp_path / "out", **FEW, **options})
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .it is a file"):
        audit(_frame(), "case", "prob", "sex", out=tmp_path / "out", **FEW)


def test_classes_by_score_columns(tmp_path: Path) -> None:
    frame = _frame()
    frame["dx"] = np.where(frame.case == 1, "mel", "nv")
    frame = frame.assign(p_mel=frame.prob, p_nv=1 - frame.prob)
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = audit(tmp_path / "a.csv", "dx", ["p_mel", "p_nv"], "sex", **FEW).to_json()
    assert set(found["labels"]) == {"mel", "nv", "macro"}
    with pytest.raises(ConfigError, match="names no class"):
        audit(frame, "dx", ["p_mel", "sex"], "sex", **FEW)


def test_the_contracts_columns_need_no_names() -> None:
    frame = _frame().rename(columns={"case": "y_true", "prob": "y_score"}).assign(sex__group=lambda item: item.sex)
    assert list(audit(frame, **FEW).to_json()["labels"]["label"]["attributes"]) == ["sex"]


def test_no_torch() -> None:
    code = "import sys, evenhand, evenhand.cli.audit; evenhand.audit, evenhand.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
