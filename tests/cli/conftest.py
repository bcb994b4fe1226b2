"""Small images with a visible sign of the label, a table about them, and the command line called in process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.cli.app import main

TINY = [
    "model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
    "audit.bootstrap=20", "audit.permutations=20",
]
N = 48


def small_pixels(positive: bool, rng: np.random.Generator) -> np.ndarray:
    """A noisy 16 px grey image; a bright corner says that it is positive."""
    pixels = rng.integers(0, 200, (16, 16)).astype(np.uint8)
    if positive:
        pixels[:6, :6] = 250
    return pixels


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and table.csv: two images a patient, a label, a class name, sex, age and a split."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for n in range(N):
        patient, positive = n // 2, (n // 2 + n) % 2 == 0
        Image.fromarray(small_pixels(positive, rng)).save(folder / "images" / f"{n:02}.png")
        rows.append({
            "image": f"{n:02}.png", "patient_id": f"secret-{patient}", "label": int(positive), "finding": ("mel", "nev", "bkl")[n % 3],
            "sex": "fm"[patient % 2], "age": 30 + patient * 2, "split": ("train", "train", "val", "test")[patient % 4],
        })
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture
def frame(source: Path) -> pd.DataFrame:
    """The table, every cell as text, to be spoilt."""
    return pd.read_csv(source / "table.csv", dtype="str")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Type a command: (exit code, standard output, what was said on standard error apart from progress)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return code, shown.out, shown.err

    return run


@pytest.fixture
def refused(say: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Type a command that must fail with a code: its one line and at most ten details (and one that counts the rest)."""

    def run(code: int, *words: object) -> str:
        found, _, err = say(*words)
        lines = err[err.index("error: "):].splitlines()
        assert found == code, err
        assert len(lines) <= 12
        assert all(line.startswith("  ") for line in lines[1:])
        assert "unexpected" not in lines[0]
        assert "secret-" not in err
        return "\n".join(lines)

    return run


@pytest.fixture(scope="session")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table prepared with label, sex and binned age."""
    out = tmp_path_factory.mktemp("prepared") / "set"
    words = ["--images", source / "images", "--label", "label", "--attributes", "sex,age", "--bins", "age=0,60,200", *SMALL]
    assert main([str(word) for word in ("prepare", "csv", source / "table.csv", out, *words)]) == 0
    return out


@pytest.fixture(scope="session")
def probe(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished linear probe on it."""
    out = tmp_path_factory.mktemp("runs") / "probe"
    assert main(["train", f"data={prepared}", *TINY, f"out={out}"]) == 0
    return out


SMALL = ("--size", "16", "--workers", "1")


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
