"""The demo from cohort to comparison on a tiny cohort: what it leaves, that it goes on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evenhand.cli.app import main
from evenhand.config.schema import AuditConfig
from evenhand.data.cache import ImageCache
from evenhand.data.synthetic import SyntheticConfig
from evenhand.edits.images import EditedImages
from evenhand.errors import InputError
from evenhand.runs.demo import demo
from evenhand.runs.folder import RunFolder
from evenhand.runs.results import load_predictor

COHORT = SyntheticConfig(n_patients=160, images_per_patient=(1, 1), fractions=(0.4, 0.2, 0.4))
QUICK = AuditConfig(bootstrap=40, permutations=40)
METHODS = ("linear_probe", "reweight", "dne")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "demo"
    result = demo(root, cohort=COHORT, methods=METHODS, audit=QUICK)
    assert [run.method for run in result.runs] == list(METHODS)
    return root


def test_every_step_leaves_its_files(finished: Path) -> None:
    wanted = ["cohort/metadata.csv", "cohort/twins.csv", "synthetic-chest/dataset.yaml", "linear_probe/report.html", "reweight/audit.json",
              "compare/report.html", "compare/report.json", "compare/report.csv"]
    assert not [name for name in wanted if not (finished / name).exists()]


def test_the_same_call_gives_the_same_result_without_training_again(finished: Path) -> None:
    before = (finished / "linear_probe" / "audit.json").stat().st_mtime_ns
    result = demo(finished, cohort=COHORT, methods=METHODS, audit=QUICK)
    assert (finished / "linear_probe" / "audit.json").stat().st_mtime_ns == before
    probe = result.runs[0]
    assert probe.groups["group"]["A"] + probe.groups["group"]["B"] == 64 == probe.dependence.n
    assert 0 <= probe.dependence.flip_rate <= 1
    assert set(probe.dependence.groups) == {"A", "B"}
    assert set(probe.gaps) == {"group", "age"}
    assert result.expected["shortcut"].equalized_odds == pytest.approx(0.9)


def test_the_edit_step_leaves_an_edit_that_is_put_on_images_and_twins(finished: Path) -> None:
    *plain, edited = demo(finished, cohort=COHORT, methods=METHODS, audit=QUICK).runs
    assert not any(run.edit for run in plain)
    assert "fooled" in edited.edit
    assert "hidden" in edited.edit
    loaded = load_predictor(RunFolder(edited.folder))
    assert loaded.edit is not None
    assert loaded.edit.facts["attributes"] == ["group"]
    twins = ImageCache.open(finished / "twins").images()
    by_hand = loaded.predictor.scores_of(loaded.encoder.embed(EditedImages(twins, loaded.edit.edit)))
    np.testing.assert_allclose(loaded.predictor.predict(twins)[0], by_hand, atol=1e-9)


def test_the_patch_step_patches_the_first_method_and_learns_from_rows_that_it_was_not_trained_on(tmp_path: Path) -> None:
    cohort = SyntheticConfig(n_patients=120, images_per_patient=(1, 1), fractions=(0.3, 0.5, 0.2), prevalence={"A": 0.5, "B": 0.5})
    probe, patched = demo(tmp_path / "demo", cohort=cohort, methods=("linear_probe", "bmft"), audit=QUICK).runs
    assert (probe.patch, patched.method) == ("", "bmft")
    assert "evenhand patch revert" in patched.patch
    run = RunFolder(patched.folder)
    counts, own = run.info["n_images"], RunFolder(probe.folder).info["n_images"]
    assert counts["test"] == own["test"]
    assert counts["train"] + counts["val"] == own["val"]
    assert patched.dependence.n == probe.dependence.n


def test_a_patch_needs_something_to_patch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bmft patches the run of the first method"):
        demo(tmp_path / "demo", cohort=COHORT, methods=("bmft",), audit=QUICK)


def test_the_search_step_leaves_a_mask_and_a_network_tuned_with_it(tmp_path: Path) -> None:
    cohort = SyntheticConfig(n_patients=120, images_per_patient=(1, 1), fractions=(0.3, 0.5, 0.2), prevalence={"A": 0.5, "B": 0.5})
    (run,) = demo(tmp_path / "demo", cohort=cohort, methods=("fairtune",), audit=QUICK).runs
    assert run.method == "fairtune"
    assert "parts of 'norms|attention|mlp' are trained" in run.search
    search = RunFolder(tmp_path / "demo" / "search")
    assert search.done
    assert (search.root / "report.html").exists()
    assert (run.folder / "mask.json").read_text() == (search.root / "mask.json").read_text()


def test_other_settings_and_unknown_methods_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other settings"):
        demo(finished, seed=1, cohort=COHORT)
    with pytest.raises(InputError, match="'magic'"):
        demo(tmp_path / "new", methods=("magic",))
    assert not (tmp_path / "new").exists()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        demo(tmp_path, cohort=COHORT)


def test_a_model_that_cannot_see_the_trace_does_not_depend_on_it(tmp_path: Path) -> None:
    invisible = SyntheticConfig(n_patients=80, images_per_patient=(1, 1), shortcut_strength=0.0)
    found = demo(tmp_path / "demo", cohort=invisible, methods=("linear_probe",), audit=QUICK).runs[0].dependence
    assert (found.flip_rate, found.score_shift) == (0, 0)


@pytest.mark.slow
def test_the_command_shows_the_planted_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--methods", "linear_probe,eo_head"]) == 0
    said = capsys.readouterr().out
    assert "linear_probe" in said
    assert "that flip" in said
    assert "compare/report.html" in said.replace("\n", "")
    probe, mitigated = demo(tmp_path / "demo", cohort=SyntheticConfig(), methods=("linear_probe", "eo_head")).runs
    assert 0.80 <= probe.auc["value"] <= 0.95
    assert probe.gaps["group"]["value"] >= 0.15
    assert probe.gaps["group"]["lower"] > 0
    assert mitigated.dependence.flip_rate < probe.dependence.flip_rate
