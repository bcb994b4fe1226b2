"""The synthetic cohort: determinism, structure, the planted correlation, twins, and what is written."""

from __future__ import annotations

import dataclasses
import errno

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.data.synthetic import Cohort, SyntheticConfig, dependence, make_cohort, make_table, write_cohort
from evenhand.errors import ConfigError, DiskFullError, InputError


def small(**changes: object) -> SyntheticConfig:
    return dataclasses.replace(SyntheticConfig(n_patients=12, size=16), **changes)


@pytest.mark.parametrize("kind", ["chest", "skin"])
def test_same_configuration_gives_the_same_bytes(kind: str) -> None:
    one, two = make_cohort(small(kind=kind)), make_cohort(small(kind=kind))
    assert one.images.tobytes() == two.images.tobytes()
    assert one.twins.tobytes() == two.twins.tobytes()
    pd.testing.assert_frame_equal(one.table, two.table)
    assert make_cohort(small(kind=kind, seed=1)).images.tobytes() != one.images.tobytes()


@pytest.mark.parametrize(("kind", "channels", "size"), [("chest", 1, 16), ("skin", 3, 16), ("chest", 1, 224), ("skin", 3, 224)])
def test_shapes_and_contrast(kind: str, channels: int, size: int) -> None:
    cohort = make_cohort(small(kind=kind, size=size, n_patients=3))
    assert cohort.images.shape == (len(cohort.table), channels, size, size) == cohort.twins.shape
    assert cohort.images.dtype == np.uint8
    assert cohort.images.std(axis=(1, 2, 3)).min() > 10  # something is drawn in every image


@pytest.mark.parametrize("kind", ["chest", "skin"])
@pytest.mark.parametrize("shortcuts", [("texture",), ("marker",), ("intensity",), ()])
def test_a_twin_differs_from_its_image_in_the_trace_alone(kind: str, shortcuts: tuple[str, ...]) -> None:
    cohort = make_cohort(small(kind=kind, shortcuts=shortcuts, size=32))
    differs = (cohort.images != cohort.twins).mean(axis=(1, 2, 3))
    if not shortcuts:
        assert differs.max() == 0
    elif shortcuts == ("marker",):
        assert (differs > 0).all()
        assert differs.max() < 0.15  # a corner
    else:
        assert differs.min() > 0.3  # the whole field, less what is clipped
    # whoever carries the trace, drawing the other world gives the twin back
    swapped = make_cohort(small(kind=kind, shortcuts=shortcuts, size=32, traced_groups=("B",)))
    np.testing.assert_array_equal(swapped.images[swapped.table["trace"] != cohort.table["trace"]],
                                  cohort.twins[swapped.table["trace"] != cohort.table["trace"]])


def test_zero_strength_and_zero_signal_are_invisible() -> None:
    weak = make_cohort(small(shortcut_strength=0.0))
    np.testing.assert_array_equal(weak.images, weak.twins)
    healthy = make_cohort(small(signal=0.0, prevalence={"A": 0.0, "B": 0.0}))
    ill = make_cohort(small(signal=0.0, prevalence={"A": 1.0, "B": 1.0}))
    assert ill.table["disease"].all()
    np.testing.assert_array_equal(healthy.images, ill.images)
    assert (make_cohort(small(prevalence={"A": 1.0, "B": 1.0})).images != healthy.images).any()


def test_the_table_keeps_the_contract_of_patients() -> None:
    config = SyntheticConfig(n_patients=400, images_per_patient=(1, 3), missing_age=0.25)
    table = make_table(config)
    one_each = table.groupby("patient_id")[["split", "label", "group", "disease", "trace"]].nunique()
    assert (one_each == 1).all().all()
    assert table.groupby("patient_id").size().isin([1, 2, 3]).all()
    patients = table.drop_duplicates("patient_id")
    assert patients["split"].value_counts().to_dict() == {"train": 240, "test": 100, "val": 60}
    assert patients["group"].value_counts().to_dict() == {"A": 200, "B": 200}
    assert table["image"].is_unique
    assert 0.15 < patients["age"].isna().mean() < 0.35
    assert patients["age"].dropna().between(20, 90).all()


def test_the_planted_correlation_is_in_train_and_not_in_a_balanced_test() -> None:
    config = SyntheticConfig(n_patients=40_000, images_per_patient=(1, 1), label_noise={"B": 0.2})
    table = make_table(config)
    disease = table.groupby(["split", "group"])["disease"].mean()
    assert disease["train", "A"] == pytest.approx(0.55, abs=0.015)
    assert disease["train", "B"] == pytest.approx(0.15, abs=0.015)
    assert disease["test", "A"] == pytest.approx(0.35, abs=0.02)
    assert disease["test", "B"] == pytest.approx(0.35, abs=0.02)
    flipped = (table["label"] != table["disease"]).groupby(table["group"]).mean()
    assert flipped["A"] == 0
    assert flipped["B"] == pytest.approx(0.2, abs=0.01)
    assert table.groupby("group")["trace"].mean()["A"] == pytest.approx(0.95, abs=0.01)
    assert table.groupby("group")["trace"].mean()["B"] == pytest.approx(0.05, abs=0.01)
    biased = make_table(dataclasses.replace(config, balanced_test=False))
    assert biased[biased["split"] == "test"].groupby("group")["disease"].mean()["A"] == pytest.approx(0.55, abs=0.02)


def test_more_than_two_groups_and_twins_of_the_other_kind() -> None:
    config = small(prevalence={"a": 0.5, "b": 0.2, "c": 0.2}, group_shares={"a": 0.5, "b": 0.25, "c": 0.25}, traced_groups=("b",))
    cohort = make_cohort(config)
    other = dict(zip(cohort.table["group"], cohort.twin_table["group"], strict=True))
    assert other == {"a": "b", "b": "c", "c": "b"}
    assert (cohort.twin_table["trace"] == 1 - cohort.table["trace"]).all()
    assert (cohort.twin_table["twin_of"] == cohort.table["image"]).all()


def test_without_twins_nothing_else_changes() -> None:
    with_twins, without = make_cohort(small()), make_cohort(small(), twins=False)
    np.testing.assert_array_equal(with_twins.images, without.images)
    assert len(without.twins) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "brain"}, "kind is 'brain'"),
        ({"size": 4}, "size is 4"),
        ({"images_per_patient": (3, 1)}, "images_per_patient"),
        ({"prevalence": {"A": 1.2}, "traced_groups": ("A",)}, r"'A' is 1.2, but must lie in \[0, 1\]"),
        ({"fidelity": -0.1}, "fidelity"),
        ({"traced_groups": ("C",)}, "not keys of prevalence"),
        ({"group_shares": {"A": 0.5, "B": 0.6}}, "sum to 1"),
        ({"shortcuts": ("colour",)}, "may hold only texture, marker, intensity"),
        ({"fractions": (0.5, 0.5, 0.5)}, "three shares"),
    ],
)
def test_wrong_settings_are_refused_with_the_rule(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_dependence_by_hand() -> None:
    found = dependence([0.1, 0.6, 0.9, 0.4], [0.2, 0.4, 0.9, 0.5], 0.5, ["x", "x", "y", None])
    assert (found.flip_rate, found.n) == (0.5, 4)
    assert found.score_shift == pytest.approx(0.1)
    assert found.groups["x"].flip_rate == 0.5
    assert found.groups["x"].score_shift == pytest.approx(0.15)
    assert found.groups["y"] == dataclasses.replace(found.groups["y"], flip_rate=0.0, score_shift=0.0, n=1)
    assert set(found.groups) == {"x", "y"}
    with pytest.raises(InputError, match="2 scores and 1 twin scores"):
        dependence([0.1, 0.2], [0.1], 0.5)


def test_written_files_are_the_cohort(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for kind in ("chest", "skin"):
        cohort = make_cohort(small(kind=kind, n_patients=3))
        table = pd.read_csv(write_cohort(cohort, tmp_path / kind))
        twins = pd.read_csv(tmp_path / kind / "twins.csv")
        pd.testing.assert_frame_equal(table, cohort.table, check_dtype=False)
        for frame, arrays in ((table, cohort.images), (twins, cohort.twins)):
            for path, pixels in zip(frame["image"], arrays, strict=True):
                stored = np.asarray(Image.open(tmp_path / kind / path))
                np.testing.assert_array_equal(stored[None] if kind == "chest" else stored.transpose(2, 0, 1), pixels)
        assert not list((tmp_path / kind).glob("*.tmp"))


def test_a_full_disk_is_said_and_leaves_no_table(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    cohort: Cohort = make_cohort(small(n_patients=2))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(DiskFullError, match="no space left"):
        write_cohort(cohort, tmp_path)
    assert not (tmp_path / "metadata.csv").exists()
    assert not list(tmp_path.glob("*.tmp"))
