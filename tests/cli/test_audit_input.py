"""`evenhand audit` of anybody's table: recognised with no option, and every bad input in one line with nothing written."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

Say = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
FEW = ("--bootstrap", "20", "--permutations", "0", "--metrics", "auc,tpr,fpr", "--no-bounds")
NAMED = ("--label", "y", "--score", "p", "--groups", "sex")
N = 80


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N)
    return pd.DataFrame({
        "pid": [f"secret-{k // 2}" for k in range(N)], "y": y, "p": 0.3 * y + 0.7 * rng.random(N), "sex": np.tile(["f", "m"], N // 2),
        "age": 20 + np.arange(N) % 60, "zip": [f"z{k}" for k in range(N)],
    })  # fmt: skip


def audit_json(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return found


def test_no_option_is_needed_and_the_guess_comes_first(tmp_path: Path, say: Say) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    code, shown, err = say("audit", tmp_path / "t.csv", "-o", tmp_path / "out", *FEW)
    assert code == 0, err
    lines = shown.splitlines()
    assert lines[0].startswith("columns recognised by name")
    assert lines[1:6] == ["  label:    y", "  score:    p", "  patient:  pid", "  groups:   sex, age", "  not used: zip"]
    assert lines[-1].startswith("Report: ")
    assert shown.index("recognised") < shown.index("overall AUC") < shown.index("Report: ")
    made = audit_json(tmp_path / "out")["provenance"]["input"]
    assert made["roles"]["label"] == {"columns": ["y"], "how": "recognised"}
    assert made["quantile_bins"]["age"]["automatic"] is True


def test_every_format_is_the_same_audit(tmp_path: Path, say: Say) -> None:
    frame = table()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "c.csv.gz", index=False, sep=";")
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_json(tmp_path / "e.jsonl", orient="records", lines=True, double_precision=15)
    found = []
    for path in sorted(tmp_path.iterdir()):
        code, _, err = say("audit", path, "-o", tmp_path / "out", *FEW)
        assert code == 0, err
        found.append(audit_json(tmp_path / "out")["labels"]["y"]["overall"]["auc"]["value"])
    assert found == pytest.approx([found[0]] * 5)


def _with(**columns: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**columns)


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...], str]] = {
    "unknown label": (_with(), ("--label", "yy"), "there is no column 'yy' (label); did you mean 'y'?"),
    "unknown score": (_with(), (*NAMED[:2], "--score", "pp"), "there is no column 'pp' (score); did you mean 'p'?"),
    "unknown group": (_with(), (*NAMED[:4], "--groups", "sax"), "there is no column 'sax' (attribute); did you mean 'sex'?"),
    "unknown patient": (_with(), ("--patient", "pidd"), "did you mean 'pid'?"),
    "label of three": (_with(y=np.arange(N) % 3), NAMED, "column 'y' has 26 values that are not 0 or 1 (2)"),
    "label of words": (_with(y=np.where(np.arange(N) % 2, "mel", "nv")), NAMED, "(mel, nv); say which is the positive class"),
    "pos-label": (_with(y=np.where(np.arange(N) % 2, "mel", "nv")), (*NAMED, "--pos-label", "x"), "--pos-label x is not among the values"),
    "score NaN": (lambda f: f.assign(p=f.p.where(f.index != 4)), NAMED, "column 'p' has 1 scores that are empty"),
    "score infinite": (lambda f: f.assign(p=f.p.where(f.index != 4, np.inf)), NAMED, "row 5: p is inf"),
    "logits": (lambda f: f.assign(p=f.p * 8 - 4), NAMED, "they look like logits: add --logits"),
    "percentages": (lambda f: f.assign(p=f.p * 100), (), "they look like percentages: divide them by 100"),
    "two scores": (lambda f: f.assign(score=f.p), (), "columns 'p' and 'score' could both be the score; say which one with --score"),
    "one class": (_with(y=1), NAMED, "every label has one class in the 80 judged rows ('y' has only the value 1)"),
    "no sex": (_with(sex=None), NAMED, "attribute 'sex' is missing in all 80 rows"),
    "many groups": (_with(), (*NAMED[:4], "--groups", "zip"), "has 80 groups, but at most 50 are allowed; merge values"),
    "outside the bins": (_with(), (*NAMED, "--groups", "age", "--bins", "age=0,50"), "30 values outside its bins [0, 50)"),
    "bins": (_with(), ("--bins", "age=qq"), "are not of the form column=edge,edge,… or column=q4"),
    "gate": (_with(), (*NAMED, "--fail-if", "sexx.auc < 1"), "did you mean 'sex'?"),
    "interval": (_with(), ("--interval", "bcaa"), "interval is 'bcaa', but must be one of auto, percentile, bca"),
    "metric": (_with(), ("--metrics", "aucc"), "did you mean 'auc'?"),
    "reference": (_with(), ("--reference", "sex"), "not of the form NAME=VALUE"),
    "on": (_with(), ("--on", "pid"), "there is no metadata to join"),
    "metadata": (_with(), ("--metadata", "nowhere.csv"), "there is no file nowhere.csv"),
    "split": (_with(split="train"), (), "column 'split' has no row 'test' but 'train'"),
    "threads": (_with(), ("--threads", "0"), "invalid value for '--threads'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name: str, tmp_path: Path, refused: Refused) -> None:
    spoil, words, says = BAD[name]
    spoil(table()).to_csv(tmp_path / "t.csv", index=False)
    said = refused(2, "audit", tmp_path / "t.csv", "-o", tmp_path / "out", *FEW[:4], *words)
    assert says in said
    assert not {"y_true", "y_score"} & set(said.replace("'", " ").split())
    assert [item.name for item in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"), (b"", "is empty"), (b"y,p\n", "no rows below its header"), (bytes(range(256)), "not text"),
        ("y,p,sex\n1,0.5,männlich\n".encode("latin-1"), "not UTF-8 (line 2, byte 16 is 0xe4)"), (b"y p\n1 0.5\n", "one column only"),
        (gzip.compress(b"y,p\n1,0.5\n", mtime=0)[:15], "cut off or damaged"),
    ],
)  # fmt: skip
def test_what_is_no_table(content: bytes | None, says: str, tmp_path: Path, refused: Refused) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    said = refused(2, "audit", tmp_path / "t.csv", "-o", tmp_path / "out")
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("out", "says"), [("file", "it is a file"), ("file/deep/er", "not a directory")])
def test_an_output_folder_that_cannot_be_written_is_found_before_computing(
    out: str, says: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("evenhand.runs.audit.evaluate", lambda *_, **__: pytest.fail("computing began"))
    assert says in refused(2, "audit", tmp_path / "t.csv", "-o", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_logits_and_pos_label(tmp_path: Path, say: Say) -> None:
    frame = table()
    frame.to_csv(tmp_path / "p.csv", index=False)
    logits = frame.assign(p=np.log(frame.p / (1 - frame.p)), y=np.where(frame.y, "mel", "nv"))
    logits.to_csv(tmp_path / "l.csv", index=False)
    found = []
    for name, words in (("p.csv", ()), ("l.csv", ("--pos-label", "mel")), ("l.csv", (*NAMED[:4], "--logits", "--pos-label", "mel"))):
        code, shown, err = say("audit", tmp_path / name, "-o", tmp_path / "out", *FEW, *words)
        assert code == 0, err
        data = audit_json(tmp_path / "out")
        assert ("a sigmoid was applied" in shown) == (name == "l.csv")
        assert any("a sigmoid was applied" in note for note in data["provenance"]["notes"]) == (name == "l.csv")
        found.append(data["labels"]["y"]["overall"])
    for other in found[1:]:
        for metric in ("auc", "tpr", "fpr"):
            assert other[metric]["value"] == pytest.approx(found[0][metric]["value"])


def test_metadata(tmp_path: Path, say: Say) -> None:
    frame = table()
    frame.drop(columns=["sex", "age"]).to_csv(tmp_path / "t.csv", index=False)
    frame[["pid"]].iloc[::2].assign(sex=np.tile(["f", "m"], N // 4)).iloc[:-3].to_csv(tmp_path / "m.csv", index=False)
    code, shown, err = say("audit", tmp_path / "t.csv", "-o", tmp_path / "out", "--metadata", tmp_path / "m.csv", "--on", "pid", *FEW)
    assert code == 0, err
    assert "6 rows (3 values of 'pid') have no row in the metadata" in shown
    data = audit_json(tmp_path / "out")
    assert data["labels"]["y"]["attributes"]["sex"]["n_missing"] == 6
    assert data["provenance"]["input"]["metadata"]["columns"] == ["sex"]


def test_what_is_reported_and_not_refused(tmp_path: Path, say: Say) -> None:
    frame = table().assign(image=np.arange(N) // 2, site=["a"] * (N - 1) + ["b"])
    pd.concat([frame, frame.iloc[:3]]).to_csv(tmp_path / "t.csv", index=False)
    code, _, err = say("audit", tmp_path / "t.csv", "-o", tmp_path / "out", *FEW)
    assert code == 0, err
    notes = " | ".join(audit_json(tmp_path / "out")["provenance"]["notes"])
    for words in (
        "3 rows are exact copies", "40 image names stand in several", "'site' has 1 group of one patient: b",
        "there are no validation rows", "40 patients are in more than one group of 'sex'", "'site' has one class only: b",
    ):  # fmt: skip
        assert words in notes
    assert "secret-" not in notes


def test_codes_keep_their_zeros(tmp_path: Path, say: Say) -> None:
    table().assign(site=np.tile(["01", "02"], N // 2)).to_csv(tmp_path / "t.csv", index=False)
    assert say("audit", tmp_path / "t.csv", "-o", tmp_path / "out", *FEW, "--groups", "site")[0] == 0
    assert list(audit_json(tmp_path / "out")["labels"]["y"]["attributes"]["site"]["groups"]) == ["01", "02"]


def test_the_audit_starts_light(tmp_path: Path) -> None:
    code = "import sys, evenhand.cli.audit, evenhand.runs.audit\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"torch", "sklearn", "matplotlib", "timm", "fairlearn", "monai", "nibabel"} & set(done.stdout.split())
