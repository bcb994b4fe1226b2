"""Every wrong input that a user can give: one readable line, the right exit code, nothing half-written, and it works once corrected."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from evenhand import optional

from .conftest import SMALL, TINY, N, contents

Say = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
LABEL = ("--label", "label")


def prepare(source: Path, frame: pd.DataFrame, out: Path, *words: str) -> list[str]:
    """The command that prepares a table, which is written beside ``out``."""
    table = out.parent / "table.csv"
    frame.to_csv(table, index=False)
    return ["prepare", "csv", str(table), str(out), "--images", str(source / "images"), *SMALL, *words]


def set_cells(frame: pd.DataFrame, column: str, cells: dict[int, str] | str) -> pd.DataFrame:
    values = frame[column].tolist()
    for row, value in (cells.items() if isinstance(cells, dict) else enumerate([cells] * len(values))):
        values[row] = value
    return frame.assign(**{column: values})


BAD_TABLES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...], str]] = {
    "missing image": (lambda f: set_cells(f, "image", {n: f"nope{n}.png" for n in range(12)}), LABEL, "12 of 48 images are missing"),
    "listed twice": (lambda f: set_cells(f, "image", {3: "./02.png"}), LABEL, "image '02.png' is listed 2 times (rows 3, 4)"),
    "unknown column": (lambda f: f, ("--label", "labl", "--attributes", "sx"), "did you mean 'label'?"),
    "not 0/1": (lambda f: set_cells(f, "label", {4: "2"}), LABEL, "row 5: label is '2'"),
    "one class": (lambda f: set_cells(f, "label", "1"), LABEL, "has one class only in the whole table"),
    "no label": (lambda f: set_cells(f, "label", ""), LABEL, "label 'label' is empty in every row"),
    "two splits": (lambda f: set_cells(f, "split", {1: "test"}), LABEL, "one patient is in the splits test, train (rows 1, 2)"),
    "max groups": (lambda f: f, (*LABEL, "--attributes", "age", "--max-groups", "5"), "more than max_groups = 5; give edges"),
    "max groups of names": (
        lambda f: f.assign(site=[f"s{n}" for n in range(N)]), (*LABEL, "--attributes", "site", "--max-groups", "5"), "merge values"
    ),
    "all missing": (lambda f: set_cells(f, "sex", ""), (*LABEL, "--attributes", "sex"), "attribute 'sex' is missing in all 48 rows"),
    "outside the bins": (lambda f: f, (*LABEL, "--attributes", "age", "--bins", "age=0,40"), "outside its bins [0, 40)"),
    "shares": (lambda f: f, (*LABEL, "--fractions", "1,2"), "must be three shares"),
    "size": (lambda f: f, (*LABEL, "--size", "0"), "size is 0"),
    "no groups": (lambda f: f, (*LABEL, "--attributes", "sex", "--max-groups", "0"), "max_groups is 0"),
    "workers": (lambda f: f, (*LABEL, "--workers", "-3"), "workers is -3"),
    "type": (lambda f: f, (*LABEL, "--size", "abc"), "invalid value for '--size'"),
    "option": (lambda f: f, (*LABEL, "--siz", "3"), "did you mean '--size'?"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_leaves_nothing_and_the_corrected_one_goes_to_the_same_place(
    name: str, source: Path, frame: pd.DataFrame, tmp_path: Path, say: Say, refused: Refused
) -> None:
    spoil, words, says = BAD_TABLES[name]
    out = tmp_path / "out"
    assert says in refused(2, *prepare(source, spoil(frame), out, *words))
    assert not out.exists()
    code, _, _ = say(*prepare(source, frame, out, *LABEL, "--attributes", "sex"))
    assert code == 0


def spoil_images(source: Path, folder: Path) -> Path:
    """The images with one truncated JPEG, one empty file and one that is no image."""
    shutil.copytree(source / "images", folder)
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "00.png").write_bytes(whole[: len(whole) // 2])
    (folder / "01.png").write_bytes(b"")
    (folder / "05.png").write_text("not an image")
    return folder


def test_unreadable_images_are_counted_and_named_or_left_out(
    source: Path, tmp_path: Path, say: Say, refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    images, out = spoil_images(source, tmp_path / "images"), tmp_path / "out"
    typed = ["prepare", "csv", source / "table.csv", out, "--images", images, *SMALL, *LABEL]
    said = refused(2, *typed)
    assert "3 of 48 images" in said
    assert all(name in said for name in ("row 1: ", "00.png: ", "01.png: file is empty", "05.png: not an image"))
    assert not out.exists()
    code, shown, _ = say(*typed, "--keep-going")
    assert code == 0
    assert "45 images" in shown
    assert "3 rows were left out" in caplog.text
    assert pd.read_csv(out / "excluded.csv")["image"].tolist() == ["00.png", "01.png", "05.png"]


def test_no_readable_image_at_all(source: Path, frame: pd.DataFrame, tmp_path: Path, refused: Refused) -> None:
    frame = frame.assign(image=[f"elsewhere/{name}" for name in frame["image"]])
    out = tmp_path / "out"
    assert "none of the 48 images can be read" in refused(2, *prepare(source, frame, out, *LABEL, "--keep-going"))
    assert not out.exists()


def test_tables_that_are_no_tables(source: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("image,label\n")
    for table, says in [("empty.csv", "is empty"), ("header.csv", "has no rows"), ("nope.csv", "is not a file")]:
        typed = ["prepare", "csv", tmp_path / table, tmp_path / "out", "--images", source / "images", *LABEL]
        assert says in refused(2, *typed)
    assert "cannot be read" in refused(2, "prepare", "csv", source / "images" / "00.png", tmp_path / "o", "--images", source, *LABEL)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def bad_checkpoint(kind: str, folder: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    path = folder / ("weights.safetensors" if kind == "truncated safetensors" else "weights.pth")
    state = timm.create_model("test_vit", num_classes=0, img_size=32).state_dict()
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(folder / "owned")}))
    elif kind == "code":
        torch.save({"model": Evil(folder / "owned")}, path)
    elif kind == "truncated safetensors":
        save_file(state, path)
    elif kind == "architecture":
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    else:
        factor = float("nan") if kind == "nan" else 1.0
        torch.save({name: value * factor if value.is_floating_point() else value for name, value in state.items()}, path)
    if "truncated" in kind:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("code", "could run code; it was refused, nothing was run"), ("pickle", "is not run"), ("truncated", "is truncated"),
        ("truncated safetensors", "is truncated"), ("architecture", "does not fit test_vit"),
    ],
)
def test_bad_checkpoints(kind: str, says: str, prepared: Path, tmp_path: Path, say: Say, refused: Refused) -> None:
    path, out = bad_checkpoint(kind, tmp_path), tmp_path / "run"
    assert says in refused(2, "train", f"data={prepared}", *TINY, f"model.checkpoint={path}", f"out={out}")
    assert not (tmp_path / "owned").exists()
    assert not out.exists()
    good = bad_checkpoint("good", tmp_path)
    assert say("train", f"data={prepared}", *TINY, f"model.checkpoint={good}", f"out={out}")[0] == 0


def test_nan_is_a_failed_run_and_correct_weights_end_it(prepared: Path, tmp_path: Path, say: Say, refused: Refused) -> None:
    path, out = bad_checkpoint("nan", tmp_path), tmp_path / "run"
    typed = ["train", f"data={prepared}", *TINY, "method=finetune", "trainer.max_epochs=1", f"model.checkpoint={path}"]
    assert "the loss became nan" in refused(4, *typed, f"out={out}")
    assert "not finite" in refused(4, "train", f"data={prepared}", *TINY, f"model.checkpoint={path}", f"out={tmp_path / 'probe'}")
    assert "holds no finished run" in refused(2, "evaluate", f"model={out}", f"sets.a={prepared}", f"out={tmp_path / 'e'}")


BAD_TRAINING = {
    "unknown option": (["trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
    "unknown preset": (["method=finetun"], "did you mean 'finetune'?"),
    "wrong type": (["trainer.max_epochs=abc"], "must be a whole number"),
    "range": (["trainer.max_epochs=-1"], "must be at least 0"),
    "label": (["data.labels=foo"], "label 'foo' is not in the prepared data set"),
    "attribute": (["data.attributes=foo"], "attribute 'foo' is not in the prepared data set"),
    "input size": (["model.input_size=32"], "must be height and width"),
    "patches": (["model.input_size=[7,7]"], "does not divide"),
    "normalisation": (["model.mean=[0.5]"], "one number a channel"),
    "network": (["model=test_vitt"], "which timm does not know; nearest: test_vit"),
    "augmentation": (["method=finetune", "data.augment=foo"], "must be one of none"),
    "threshold": (["method=finetune", "audit.threshold=foo"], "threshold 'foo' is not one of"),
    "primary": (["method=finetune", "audit.primary=foo"], "primary metric 'foo' is unknown"),
    "confidence": (["method=finetune", "audit.confidence=0"], "must lie in [0.5, 1)"),
    "seeds": (["seeds=1,1"], "names a seed twice"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_options_leave_nothing(name: str, prepared: Path, tmp_path: Path, refused: Refused) -> None:
    words, says = BAD_TRAINING[name]
    said = refused(2, "train", f"data={prepared}", *TINY, *words, f"out={tmp_path / 'run'}")
    assert says in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit.max_groups=2", "data.attributes=sex*age"], "has 4 groups, but at most 2 are allowed"),
        (["audit.threshold=foo"], "threshold 'foo' is not one of"), (["audit.primary=foo"], "primary metric 'foo' is unknown"),
        (["audit.confidence=0"], "must lie in [0.5, 1)"),
    ],
)
def test_an_audit_that_would_be_refused_is_refused_before_training(
    words: list[str], says: str, prepared: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evenhand.runs.train._fit", lambda *_: pytest.fail("training began"))
    assert says in refused(2, "train", f"data={prepared}", *TINY, *words, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_late_refusal_does_not_throw_trained_weights_away(
    prepared: Path, tmp_path: Path, say: Say, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenhand.errors import InputError

    def late(*_: Any) -> None:
        raise InputError("too late")

    out = tmp_path / "run"
    typed = ["train", f"data={prepared}", *TINY, "method=finetune", "trainer.max_epochs=1", f"out={out}"]
    with monkeypatch.context() as patch:
        patch.setattr("evenhand.runs.train.judge", late)
        assert "too late" in refused(2, *typed)
    assert list((out / "checkpoints").iterdir())
    assert say(*typed)[0] == 0


def test_a_run_folder_of_another_configuration(probe: Path, prepared: Path, refused: Refused) -> None:
    before = contents(probe)
    said = refused(2, "train", f"data={prepared}", *TINY, "method=finetune", f"out={probe}")
    assert "method.name was linear_probe, now finetune" in said
    assert contents(probe) == before


def test_outputs_never_fall_into_folders_of_something_else(
    probe: Path, prepared: Path, source: Path, tmp_path: Path, say: Say, refused: Refused
) -> None:
    before, images = contents(probe), contents(source)
    taken = probe / "run.json"
    for out in (probe, taken):
        refused(2, "predict", f"model={probe}", f"data={prepared}", f"out={out}")
        refused(2, "prepare", "csv", source / "table.csv", out, "--images", source / "images", *LABEL)
    refused(2, "train", f"data={prepared}", *TINY, f"out={taken}")
    refused(2, "train", f"data={prepared}", *TINY, f"out={source}")
    refused(2, "evaluate", f"model={probe}", f"sets.a={prepared}", f"out={source}")
    refused(2, "export", f"model={probe}", f"out={source}")
    assert contents(probe) == before
    assert contents(source) == images


def test_torch_and_torchvision_that_do_not_match(
    prepared: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenhand.errors import DependencyError

    def mismatch() -> None:
        raise DependencyError("torch 2.6.0 and torchvision 0.19.0 do not match; install both from one index")

    monkeypatch.setattr(optional, "require_torch", mismatch)
    assert "do not match" in refused(4, "train", f"data={prepared}", *TINY, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "no such command 'trian'; did you mean 'train'?"),
        (["bogus"], "no such command 'bogus'; see `evenhand --help`"),
        (["compare", "a"], "missing option '--out'"),
        (["audit", "a", "-o", "b", "--bootstrap", "x"], "invalid value for '--bootstrap'"),
        (["prepare"], "no source was given; evenhand prepare --list shows the public data sets, csv is your own table"),
        (["train", "data=nowhere"], "no such path"),
        (["train", "method=linear_probe"], "missing: data=…"),
        (["train", "--config-dir", "nowhere"], "no such folder"),
        (["predict"], "missing: model=…"),
    ],
)
def test_typing_errors_are_one_line(words: list[str], says: str, refused: Refused) -> None:
    said = refused(2, *words)
    assert says in said
    assert len(said.splitlines()) == 1


def test_bad_uses_of_a_run(probe: Path, prepared: Path, source: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    out = f"out={tmp_path / 'out'}"
    assert "holds no images" in refused(2, "predict", f"model={probe}", f"data={tmp_path / 'empty'}", out)
    assert "does not exist" in refused(2, "predict", f"model={tmp_path / 'no'}", f"data={prepared}", out)
    assert "holds no run" in refused(2, "predict", f"model={source}", f"data={prepared}", out)
    assert "neither a prepared" in refused(2, "predict", f"model={probe}", f"data={tmp_path / 'no'}", out)
    assert "split=foo has no rows" in refused(2, "predict", f"model={probe}", f"data={prepared}", "split=foo", out)
    assert "sets.NAME=FOLDER" in refused(2, "evaluate", f"model={probe}", out)
    assert "is not a prepared data set" in refused(2, "evaluate", f"model={probe}", f"sets.a={source}", out)
    assert not (tmp_path / "out").exists()


def test_a_set_without_the_label(probe: Path, source: Path, frame: pd.DataFrame, tmp_path: Path, say: Say, refused: Refused) -> None:
    assert say(*prepare(source, frame.drop(columns="label"), tmp_path / "other", "--label", "finding"))[0] == 0
    said = refused(2, "evaluate", f"model={probe}", f"sets.b={tmp_path / 'other'}", f"out={tmp_path / 'out'}")
    assert "has no label 'label', which the run predicts" in said
    assert not (tmp_path / "out").exists()


def test_compare_with_nonsense(probe: Path, source: Path, tmp_path: Path, refused: Refused) -> None:
    page = tmp_path / "page.html"
    for runs, says in [
        ([probe], "two"), ([probe, probe], "two runs are named"), ([probe, tmp_path / "no"], "there is no file"),
        ([probe, source / "table.csv"], "no columns y_true"),
    ]:
        assert says in refused(2, "compare", *runs, "-o", page)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("label", "score", "says"),
    [("label", "age", "outside [0, 1]"), ("label", "sex", "not finite numbers"), ("finding", "age", "not 0 or 1"), ("nope", "age", "nope")],
)
def test_audit_of_a_bad_table(label: str, score: str, says: str, source: Path, tmp_path: Path, refused: Refused) -> None:
    assert says in refused(2, "audit", source / "table.csv", "--label", label, "--score", score, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def child(*words: object, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    typed = [sys.executable, "-m", "evenhand.cli.app", *map(str, words)]
    return subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_no_room_while_caching(source: Path, tmp_path: Path, say: Say) -> None:
    """The operating system refuses the cache file at 4 KB: nothing half-written, and the same command works with room."""
    out = tmp_path / "out"
    typed = ["prepare", "csv", source / "table.csv", out, "--images", source / "images", *SMALL, *LABEL]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = child(*typed, before=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "Traceback" not in err
    assert len(err[err.index("error: "):].splitlines()) == 1
    assert not list(out.rglob("*.*"))
    assert say(*typed)[0] == 0


def interrupted(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[int, str]:
    """Press Ctrl-C once ``ready``: (exit code, standard error)."""
    end = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.wait(60), process.communicate()[1]


@pytest.mark.slow
def test_ctrl_c_in_training_goes_on_with_the_same_numbers(prepared: Path, tmp_path: Path, say: Say) -> None:
    words = ["train", f"data={prepared}", *TINY, "method=finetune", "trainer.max_epochs=12"]
    out = tmp_path / "cut"
    code, err = interrupted(child(*words, f"out={out}"), lambda: (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()))
    assert code == 130, err
    assert "interrupted; the last complete state is saved" in err
    assert "Traceback" not in err
    for folder in (out, tmp_path / "whole"):
        code, _, err = say(*words, f"out={folder}")
        assert code == 0, err
    cut, whole = (pd.read_parquet(folder / "predictions.parquet") for folder in (out, tmp_path / "whole"))
    pd.testing.assert_frame_equal(cut, whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_in_preparing_goes_on(workers: int, source: Path, tmp_path: Path, say: Say) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    rows = []
    for n in range(1500):
        os.link(source / "images" / f"{n % N:02}.png", images / f"{n}.png")
        rows.append({"image": f"{n}.png", "label": n % 2})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    typed = ["prepare", "csv", tmp_path / "table.csv", out, "--images", images, *LABEL, "--size", "512", "--workers", workers]
    code, err = interrupted(child(*typed), lambda: (out / "cache" / "journal.jsonl").exists())
    assert code == 130, err
    assert "Traceback" not in err
    assert not (out / "dataset.yaml").exists()
    code, shown, _ = say(*typed)
    assert code == 0
    assert "1500 images" in shown
