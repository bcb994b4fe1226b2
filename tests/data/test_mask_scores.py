"""Dice and HD95 of shapes whose answers are known by hand, and what is defined where a mask is empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from evenhand.data.mask_scores import pair_scores, score_masks
from evenhand.errors import ConfigError, ImageError

pytest.importorskip("monai")

IntArray = npt.NDArray[np.int64]


def square(side: int = 10, at: tuple[int, ...] = (5, 5), size: tuple[int, ...] = (40, 40), value: int = 1) -> IntArray:
    mask = np.zeros(size, np.int64)
    mask[tuple(slice(start, start + side) for start in at)] = value
    return mask


def test_a_square_moved_by_3_of_10() -> None:
    dice, distance = pair_scores(square(at=(5, 8)), square(at=(5, 5)))
    assert dice[0] == pytest.approx(0.7)
    # the three rows that stick out lie 3, 2 and 1 from the other's edge; more than 5% of the edge lies 3 away
    assert distance[0] == pytest.approx(3)
    assert [float(part[0]) for part in pair_scores(square(), square())] == [1.0, 0.0]


def test_apart_masks_and_one_inside_the_other() -> None:
    dice, distance = pair_scores(square(4, (2, 2)), square(4, (2, 30)))
    assert dice[0] == 0
    assert distance[0] == pytest.approx(28, abs=0.01)
    inside, _ = pair_scores(square(5, (7, 7)), square(10))
    assert inside[0] == pytest.approx(2 * 25 / (25 + 100))


def test_distances_are_measured_with_the_voxels_size() -> None:
    moved, still = square(8, (6, 6, 9), (24, 24, 24)), square(8, (6, 6, 6), (24, 24, 24))
    for spacing, expected in (((1.0, 1.0, 1.0), 3.0), ((0.5, 0.5, 2.0), 6.0), ((2.0, 0.5, 0.5), 1.5)):
        dice, distance = pair_scores(moved, still, spacing=spacing)
        assert distance[0] == pytest.approx(expected)
        assert dice[0] == pytest.approx(5 / 8)


def test_dice_is_sklearns_f1_of_pixels() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    p, t = (rng.random((30, 30)) < 0.4).astype(int), (rng.random((30, 30)) < 0.5).astype(int)
    assert pair_scores(p, t)[0][0] == pytest.approx(f1_score(t.ravel(), p.ravel()), abs=1e-6)


def test_hd95_is_the_larger_of_the_two_directions_percentiles() -> None:
    from scipy.ndimage import binary_erosion, distance_transform_edt

    rng = np.random.default_rng(3)
    p, t = square(12, (4, 9)), square(15, (11, 6))
    p[rng.integers(0, 40, 5), rng.integers(0, 40, 5)] = 1
    edges = [mask.astype(bool) & ~binary_erosion(mask) for mask in (p, t)]
    there, back = (np.percentile(distance_transform_edt(~edges[1 - i])[edges[i]], 95) for i in (0, 1))
    assert pair_scores(p, t)[1][0] == pytest.approx(max(there, back), abs=1e-4)


def test_empty_masks_are_not_scored_and_a_missed_one_is_dice_0() -> None:
    empty = np.zeros((40, 40), np.int64)
    assert all(np.isnan(part[0]) for part in pair_scores(empty, empty))
    for pair in ((square(), empty), (empty, square())):
        dice, distance = pair_scores(*pair)
        assert dice[0] == 0
        assert np.isnan(distance[0])


def files(folder: Path, which: str, masks: list[IntArray]) -> list[Path | None]:
    paths = []
    for i, mask in enumerate(masks):
        paths.append(folder / f"{which}{i}.npy")
        np.save(paths[-1], mask)
    return list(paths)


def test_a_table_counts_what_is_not_defined(tmp_path: Path) -> None:
    empty = np.zeros((40, 40), np.int64)
    pred = files(tmp_path, "p", [square(at=(5, 8)), empty, empty, square()])
    true = files(tmp_path, "t", [square(value=255), square(value=255), empty, square(value=255)])
    found = score_masks([*pred, None], [*true, true[0]])
    # 1 in predictions and 255 in truth are one foreground
    assert found.classes == ()
    assert found.unit == "pixels"
    assert found.table["dice"].tolist()[:2] == [pytest.approx(0.7), 0.0]
    assert found.table["hd95"].tolist()[0] == pytest.approx(3)
    assert found.table.isna().sum().to_dict() == {"dice": 2, "hd95": 3}
    assert (found.n_empty, found.n_one_empty, found.n_absent) == (1, 1, 1)
    assert len(found.sentences()) == 4


def test_several_classes_are_averaged_over_those_present(tmp_path: Path) -> None:
    both = square(value=1) + square(at=(25, 25), value=2)
    moved = square(value=1) + square(at=(25, 28), value=2)
    only_first = square(value=1)
    found = score_masks(files(tmp_path, "p", [moved, only_first, only_first]), files(tmp_path, "t", [both, both, only_first]))
    assert found.classes == (1, 2)
    assert found.table["dice_1"].tolist() == [1, 1, 1]
    assert found.table["dice"].tolist() == pytest.approx([0.85, 0.5, 1.0])
    # class 2 is missed in the second case: its distance is not defined, and class 1 alone would flatter
    assert found.table["hd95"].tolist() == pytest.approx([1.5, np.nan, 0.0], nan_ok=True)
    assert np.isnan(found.table["hd95_2"].tolist()[2])
    assert found.n_one_empty == 1


def test_spacing_that_is_given_makes_millimetres(tmp_path: Path) -> None:
    pair = files(tmp_path, "p", [square(at=(5, 8))]), files(tmp_path, "t", [square()])
    for spacing, expected in ((0.5, 1.5), ((1.0, 2.0), 6.0)):
        found = score_masks(*pair, spacing=spacing)
        assert found.unit == "mm"
        assert found.table["hd95"][0] == pytest.approx(expected)
    for wrong in (0.0, (1.0, -1.0), (1.0,) * 4, (1.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="spacing"):
            score_masks(*pair, spacing=wrong)


def test_pairs_that_cannot_be_scored_are_all_named(tmp_path: Path) -> None:
    pred = files(tmp_path, "p", [square(), square(), square()])
    true = files(tmp_path, "t", [square(), square(size=(40, 41)), square()])
    assert true[2] is not None
    true[2].write_bytes(b"damaged")
    with pytest.raises(ImageError, match="2 of 3 pairs of masks cannot be scored") as caught:
        score_masks(pred, true)
    assert caught.value.details[0].startswith("row 2: the predicted mask has the shape (40, 40)")
    assert caught.value.details[1].startswith("row 3: the true mask t2.npy cannot be read")


def test_numberings_without_a_class_in_common_are_refused(tmp_path: Path) -> None:
    pred = files(tmp_path, "p", [square(value=1) + square(at=(25, 25), value=2)])
    with pytest.raises(ConfigError, match="none in common"):
        score_masks(pred, files(tmp_path, "t", [square(value=255)]))


def test_progress_is_told_for_both_passes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pair = files(tmp_path, "p", [square()] * 2), files(tmp_path, "t", [square()] * 2)
    score_masks(*pair, progress=lambda *step: seen.append(step))
    assert seen == [("reading masks", 1, 2), ("reading masks", 2, 2), ("scoring masks", 1, 2), ("scoring masks", 2, 2)]


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    shapes = [square(at=(5, 5 + i % 7)) for i in range(120)]
    pair = files(tmp_path, "p", shapes), files(tmp_path, "t", [square()] * 120)
    assert score_masks(*pair, workers=2).table.equals(score_masks(*pair).table)
