"""The published dermatology experiments as they are typed, on tiny copies of the four sets: raw downloads, training, patch, test elsewhere.

BMFT and SWiFT train on ISIC and patch on an external set; the attribute of the gap may be known in that set alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from evenhand.cli.app import main

RECIPE = (
    "experiment=isic_resnet18", "trainer=cpu", "trainer.max_epochs=1", "trainer.progress=false", "model.pretrained=false",
    "model.input_size=[32,32]", "data.batch_size=32",
)
AUDIT = ("audit.bootstrap=20", "audit.permutations=19", "audit.details=false")
SHORT = ("accelerator=cpu", "data.batch_size=32", "method.impair_epochs=1", "method.importance=batch")
PREPARE = {
    "isic2020": ("--attributes", "sex,age60"),
    "isic2019": ("--split", "patient", "--attributes", "sex,age60"),
    "fitzpatrick17k": ("--attributes", "skin_tone", "--missing", "drop"),
    "ddi": ("--attributes", "skin_tone", "--option", "middle=light"),
    "derm7pt": ("--task", "malignant_melanoma", "--split", "patient"),
}
CASES = [
    pytest.param("fitzpatrick17k", "bmft", "skin_tone", ("ddi",), marks=pytest.mark.slow_sample),
    pytest.param("ddi", "swift", "skin_tone", ("fitzpatrick17k", "derm7pt")),
    pytest.param("derm7pt", "bmft_paper", "sex", ("isic2019", "ddi")),
    pytest.param("isic2019", "swift_paper", "sex", ("derm7pt",)),
]
pytestmark = pytest.mark.slow


def typed(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``prepared(NAME)``: a miniature of the raw download, through ``evenhand prepare NAME``; once a module."""
    folder = tmp_path_factory.mktemp("sets")

    def made(name: str) -> Path:
        out = folder / name
        if not out.exists():
            raw = folder / f"raw_{name}"
            raw.mkdir()
            import_module(f"tests.data.sources.miniatures.{name}").write(raw, patients=60)
            typed("prepare", name, raw, out, "--size", 32, "--workers", 1, *PREPARE[name])
        return out

    return made


@pytest.fixture(scope="module")
def classifier(prepared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network that was trained on ISIC 2020 with the published recipe, for one epoch."""
    out = tmp_path_factory.mktemp("runs") / "isic"
    typed("train", f"data={prepared('isic2020')}", *RECIPE, *AUDIT, f"out={out}")
    return out


@pytest.mark.parametrize(("external", "method", "attribute", "elsewhere"), CASES)
def test_train_on_isic_patch_on_another_set_judge_on_a_third(
    external: str, method: str, attribute: str, elsewhere: tuple[str, ...], prepared: Callable[[str], Path], classifier: Path,
    tmp_path: Path,
) -> None:
    patched, out = tmp_path / "patched", tmp_path / "elsewhere"
    typed(
        "patch", "make", f"method={method}", f"model={classifier}", f"data={prepared(external)}", f"data.attributes={attribute}",
        *SHORT, *AUDIT, f"out={patched}",
    )
    assert json.loads((patched / "patch.json").read_text())["patch"]["result_hash"]
    sets = [f"sets.{name}={prepared(name)}" for name in elsewhere]
    typed("evaluate", f"models.delivered={classifier}", f"models.patched={patched}", *sets, *AUDIT, f"out={out}")
    for name in elsewhere:
        assert (out / name / "compare.html").is_file()
    assert attribute in (out / "transfer.csv").read_text()
