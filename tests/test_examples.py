"""Every example runs end to end and leaves the pages it names."""

import os
import subprocess
import sys

import pytest

PAGES = {
    "audit_scores.py": ["report.html"],
    "edit_behind_an_api.py": ["edit/report.html", "compare.html"],
    "paper_and_corrected.py": ["dne_paper/report.html", "compare.html"],
    "train_and_compare.py": ["linear_probe/report.html", "compare.html"],
}
SLOW = {"edit_behind_an_api.py": [pytest.mark.slow, pytest.mark.slow_sample], "paper_and_corrected.py": [pytest.mark.slow]}
RUNS = [pytest.param(name, marks=SLOW.get(name, [])) for name in sorted(PAGES)]


def test_every_example_is_listed(repository):
    assert sorted(PAGES) == sorted(path.name for path in (repository / "examples").glob("*.py"))


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, repository, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:evenhand"}
    command = [sys.executable, str(repository / "examples" / name), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in PAGES[name]:
        assert "<html" in (tmp_path / "out" / page).read_text(encoding="utf-8")
