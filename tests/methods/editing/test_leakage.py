"""Fooled and hidden on rows where both are known, the noise control, and the reader of pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scenes import SIDE, Encoder, scene_split
from sklearn.metrics import roc_auc_score

from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.edits.base import Bounds
from evenhand.edits.composition import Composition
from evenhand.edits.planes import PixelEdit
from evenhand.edits.spectral import SpectralEdit
from evenhand.errors import MethodError
from evenhand.methods.base import Split
from evenhand.methods.editing.group_auc import Draws, GroupAUC, difference
from evenhand.methods.editing.leakage import FOLDS, LeakageRows, _Condition, deal_patients, measure_leakage, summary, with_labels
from evenhand.methods.editing.noise import NoiseControl, is_constant
from evenhand.methods.editing.pixel_reader import PixelReader, read_pixels
from evenhand.report.edit_page import leakage_sections
from evenhand.report.leakage_table import leakage_records
from evenhand.runs.edit_measure import measure_lines

GRID = (1, SIDE, SIDE)


def embed(images):
    with torch.no_grad():
        return Encoder()(images.batch(slice(None))).numpy()


def rows_of(**options):
    splits = [scene_split(n, seed, **options) for n, seed in ((200, 0), (80, 1), (160, 2))]
    return LeakageRows(embed, *splits, "binary", ("ill",))


class Smooth(SpectralEdit):
    """Takes the finest pattern out of every image."""

    def change(self, images):
        return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (0, 1, 0, 1), mode="replicate"), 2, stride=1)


def smooth():
    return Smooth(GRID, Bounds(), bands=4)


@pytest.fixture(scope="module")
def measured():
    return measure_leakage(rows_of(together=0.5), smooth(), ("site",), n_bootstrap=50)


def test_what_is_taken_out_is_hidden_and_noise_of_its_size_hides_nothing(measured):
    found = measured["attributes"]["site"]
    value = {name: found[name]["hidden"]["given_label"]["value"] for name in ("none", "edit", "noise")}
    assert value["none"] > 0.95
    assert value["edit"] < 0.75
    assert value["noise"] > 0.9
    assert found["change"]["given_label"]["upper"] < -0.2
    assert found["change"]["given_label"]["value"] == pytest.approx(value["edit"] - value["none"])
    assert found["none"]["fooled"]["accuracy"] > 0.95
    assert found["edit"]["fooled"]["accuracy"] < 0.7


def test_what_is_hidden_only_in_the_rows_the_edit_was_trained_on_is_found_in_others():
    rows = rows_of(together=0.5)
    training = rows.train.x.fingerprint
    noise = np.random.default_rng(0).standard_normal((len(rows.train), 6)).astype(np.float32)

    def overfitted(images):
        return noise if images.fingerprint == training else embed(images)

    found = measure_leakage(replace(rows, embed=overfitted), smooth(), ("site",), n_bootstrap=50)["attributes"]["site"]["none"]
    assert found["hidden"]["overall"]["value"] < 0.8
    assert found["unseen"]["overall"]["value"] > 0.95
    assert found["unseen"]["given_label"]["value"] > 0.95


def test_heads_on_unseen_rows_read_nothing_where_nothing_is(measured):
    rows = rows_of(together=0.5)
    rng = np.random.default_rng(1)

    def blind(images):
        return rng.standard_normal((len(images), 4)).astype(np.float32)

    found = measure_leakage(replace(rows, embed=blind), smooth(), ("site",), n_bootstrap=100, controls=False)["attributes"]["site"]["edit"]
    assert abs(found["unseen"]["overall"]["value"] - 0.5) < 0.15
    change = measured["attributes"]["site"]["change_unseen"]["given_label"]
    assert change["upper"] < -0.2


def test_heads_on_unseen_rows_do_not_read_less_than_nothing():
    values = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        splits = [scene_split(n, 3 * seed + k, together=0.2) for k, n in enumerate((40, 20, 90))]
        noise = {split.x.fingerprint: rng.standard_normal((len(split), 2)).astype(np.float32) for split in splits}
        rows = LeakageRows(lambda images, noise=noise: noise[images.fingerprint], *splits, "binary", ("ill",))
        found = _Condition(rows, rows.embeddings(None), "site", seed, 0).unseen()[0]
        values.append([found["overall"]["value"], found["given_label"]["value"]])
    mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    assert (error < 0.03).all()
    assert (np.abs(mean - 0.5) < 3 * error).all(), mean


def test_only_pairs_that_one_head_read_are_compared():
    split = scene_split(90, 0)
    codes, rng = split.groups["site"].codes, np.random.default_rng(0)
    part = rng.integers(0, 3, len(split))
    score = rng.random(len(split)) + 0.4 * codes
    shifted = score + 100 * part
    found = GroupAUC(split, "site", 0, 50, part).overall(np.stack([-shifted, shifted], axis=1))
    each = [(roc_auc_score(codes[part == k], score[part == k]), np.prod(np.bincount(codes[part == k]))) for k in range(3)]
    assert found["value"] == pytest.approx(np.average([auc for auc, _ in each], weights=[pairs for _, pairs in each]))
    assert found["lower"] < found["value"] < found["upper"]
    whole = GroupAUC(split, "site", 0, 50).overall(np.stack([-shifted, shifted], axis=1))
    assert whole["value"] == pytest.approx(roc_auc_score(codes, shifted))


@pytest.fixture(scope="module")
def few():
    """Embeddings of 50 images that are noise, of a draw in which heads on unseen rows come out below 0.5 under the edit alone."""
    splits = [scene_split(n, seed, together=0.2) for n, seed in ((60, 0), (20, 1), (50, 2))]
    draws = {}

    def noise(images):
        key = images.fingerprint
        draws.setdefault(key, np.random.default_rng([2, len(draws)]).standard_normal((len(images), 8)).astype(np.float32))
        return draws[key]

    edit = PixelEdit(GRID)
    edit.load_vector(torch.full((edit.n_parameters,), 0.02))
    return measure_leakage(LeakageRows(noise, *splits, "binary", ("ill",)), edit, ("site",), n_bootstrap=200)


def test_an_auc_below_half_on_few_rows_is_doubted_and_is_no_success(few):
    found = few["attributes"]["site"]
    low = found["edit"]["unseen"]["overall"]
    assert low["upper"] < 0.5
    assert low["note"] == "below 0.5 with the whole interval"
    assert found["change_unseen"]["overall"] == {"value": None, "lower": None, "upper": None, "reason": f"an AUC {low['note']}"}
    assert found["change"]["overall"]["value"] == pytest.approx(
        found["edit"]["hidden"]["overall"]["value"] - found["none"]["hidden"]["overall"]["value"]
    ), "no AUC below 0.5 is in it"
    assert f"edit, unseen overall {low['value']:.3f} [{low['lower']:.3f}, {low['upper']:.3f}], n = 50" in found["doubt"]
    assert "no evidence that anything is hidden" in found["doubt"]
    assert found["doubt"] in summary(few)[0]
    json.dumps(few, allow_nan=False)


def test_a_doubt_is_printed_written_and_on_the_page(few, tmp_path):
    said = few["attributes"]["site"]["doubt"]
    (tmp_path / "measure.json").write_text(json.dumps({**few, "transfer": dict.fromkeys(("encoder", "labels", "data"))}))
    lines = measure_lines(tmp_path)
    assert f"  AUC {said}." in lines
    assert any(line.strip().startswith("edit minus no edit") and "not estimable" in line for line in lines)
    records = {(record["condition"], record["measure"]): record for record in leakage_records(few)}
    assert records["edit", "unseen_auc"]["reason"] == "below 0.5 with the whole interval"
    assert records["edit", "unseen_auc_change"]["value"] is None
    assert [part.text for part in leakage_sections(few)[0].parts].count(f"AUC {said}.") == 1


@pytest.mark.parametrize(("value", "spread", "doubted"), [(0.3, 0.04, True), (0.3, 0.2, False), (0.49, 0.003, False), (0.44, 0.01, True)])
def test_what_lies_just_below_half_on_many_rows_is_not_doubted(value, spread, doubted):
    replicates = value + spread * np.random.default_rng(0).standard_normal(500)
    assert Draws(value, replicates).below_half is doubted
    change = difference(Draws(value, replicates), Draws(0.9, replicates + 0.9 - value))
    assert (change["value"] is None) is doubted


def test_what_is_above_half_is_not_doubted(measured):
    assert "doubt" not in measured["attributes"]["site"]
    assert not any(line.startswith("AUC below") for part in leakage_sections(measured)[0].parts for line in [part.text])


def test_parts_have_every_cell_alike():
    rng = np.random.default_rng(0)
    cells = np.repeat(rng.integers(0, 4, 60), 2)
    part = deal_patients(np.repeat(np.arange(60), 2), 0, cells)
    table = np.array([[(cells[part == fold] == cell).sum() for fold in range(FOLDS)] for cell in range(4)])
    assert (table.max(axis=1) - table.min(axis=1) <= 2).all()
    assert (part[::2] == part[1::2]).all()


def test_patients_are_dealt_whole_and_evenly():
    patient = np.repeat(np.arange(100, 131), 3)
    part = deal_patients(patient, 0)
    sizes = [len(np.unique(patient[part == fold])) for fold in range(FOLDS)]
    assert sum(sizes) == 31
    assert max(sizes) - min(sizes) <= 1
    assert (deal_patients(patient, 0) == part).all()
    assert (deal_patients(patient, 1) != part).any()


def test_the_report_is_json_with_counts_and_says_both_numbers(measured):
    json.dumps(measured, allow_nan=False)
    assert (measured["n_train"], measured["n"], measured["n_patients"]) == (200, 160, 80)
    sizes = [measured["visibility"][name]["l2"] for name in ("edit", "noise")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    (sentence,) = summary(measured)
    assert "fooled" in sentence
    assert "hidden" in sentence
    assert "n = 160" in sentence


def test_an_attribute_that_follows_the_label_is_read_overall_and_not_beyond_it():
    rows = rows_of(together=0.5)
    rng = np.random.default_rng(0)

    def coded(split):
        codes = np.where(rng.random(len(split)) < 0.85, split.y[:, 0], 1 - split.y[:, 0]).astype(np.int64)
        return replace(split, groups={"age": Groups("age", ("old", "young"), codes)})

    rows = replace(rows, train=coded(rows.train), val=coded(rows.val), test=coded(rows.test))
    found = measure_leakage(rows, PixelEdit(GRID), ("age",), n_bootstrap=100, controls=False)["attributes"]["age"]["edit"]["hidden"]
    assert found["overall"]["value"] > 0.75
    assert found["given_label"]["lower"] < 0.5 < found["given_label"]["upper"]


def test_within_labels_it_is_the_mean_weighted_by_rows():
    split = scene_split(300, 3, n_groups=2, missing=0.1)
    auc = GroupAUC(split, "site", 0, 20)
    scores = np.random.default_rng(0).random((300, 2))
    found = auc.within(scores, "binary", 0, "ill", ("0", "1"))
    codes, y = split.groups["site"].codes, split.y[:, 0]
    each = {value: (codes >= 0) & (y == value) for value in (0, 1)}
    expected = {value: roc_auc_score(codes[rows], scores[rows, 1]) for value, rows in each.items()}
    for value in (0, 1):
        assert found["within"][str(value)]["value"] == pytest.approx(expected[value])
        assert found["within"][str(value)]["n"] == each[value].sum()
    weights = [each[value].sum() for value in (0, 1)]
    assert found["given_label"]["value"] == pytest.approx(np.average([expected[0], expected[1]], weights=weights))
    assert found["given_label"]["lower"] < found["given_label"]["value"] < found["given_label"]["upper"]


def test_more_groups_are_the_mean_of_each_against_the_rest():
    split = scene_split(300, 3, n_groups=3)
    scores = np.random.default_rng(0).random((300, 3))
    codes = split.groups["site"].codes
    expected = np.mean([roc_auc_score(codes == group, scores[:, group]) for group in range(3)])
    assert GroupAUC(split, "site", 0, 5).overall(scores)["value"] == pytest.approx(expected)


def test_few_patients_give_no_number():
    split = scene_split(12, 3)
    assert GroupAUC(split, "site", 0, 5).overall(np.random.default_rng(0).random((12, 2)))["value"] is None
    rows = rows_of()
    empty = replace(rows, test=replace(rows.test, index=np.zeros(0, np.int64)))
    with pytest.raises(MethodError, match="choose another split"):
        measure_leakage(empty, PixelEdit(GRID), ("site",))


@dataclass
class Numbers:
    """Stand-in images that are their own embeddings."""

    z: np.ndarray
    fingerprint: str = "numbers"
    shape: tuple[int, int, int] = GRID

    def __len__(self):
        return len(self.z)

    def batch(self, positions):
        return torch.full((len(self.z[positions]), *GRID), 0.5)


def numbers(n, seed, turned):
    """The group moves the first number, under label 1 the other way round where ``turned``."""
    rng = np.random.default_rng(seed)
    y, codes = rng.integers(0, 2, n), rng.integers(0, 2, n)
    z = rng.standard_normal((n, 5)).astype(np.float32)
    z[:, 0] += 1.5 * (2 * codes - 1) * np.where(turned & (y == 1), -1, 1)
    return Split(Numbers(z), y.astype(np.float32)[:, None], {"site": Groups("site", ("a", "b"), codes)}, np.arange(n), np.arange(n))


def given_label(turned, n_val=150):
    splits = [numbers(n, seed, turned) for n, seed in ((300, 0), (n_val, 1), (400, 2))]
    held = {id(split.x): split.x.z for split in splits}
    rows = LeakageRows(lambda images: held[id(getattr(images, "source", images))], *splits, "binary", ("ill",))
    return measure_leakage(rows, PixelEdit(GRID), ("site",), n_bootstrap=5, controls=False)["attributes"]["site"]["edit"]["hidden"]


def test_a_trace_that_turns_round_with_the_label_is_read_within_each_value():
    found = given_label(turned=True)
    assert found["overall"]["value"] < 0.6
    assert found["given_label"]["value"] > 0.95  # one slope for both values reads nothing here
    assert set(found["labels"]["ill"]["slopes"].values()) == {"own"}
    assert given_label(turned=True, n_val=0)["given_label"]["value"] < 0.75  # nothing to choose on: one slope
    assert given_label(turned=False)["given_label"]["value"] > 0.95


def test_other_labels_are_measured_with_the_same_edit():
    rows = rows_of(together=0.5)
    other = replace(rows, **{name: with_labels(getattr(rows, name), 1 - getattr(rows, name).y) for name in ("train", "val", "test")})
    edit = PixelEdit(GRID)
    first, second = (measure_leakage(r, edit, ("site",), n_bootstrap=5, controls=False)["attributes"]["site"] for r in (rows, other))
    hidden = [item["edit"]["hidden"]["labels"]["ill"]["within"] for item in (first, second)]
    assert hidden[0]["0"]["value"] == pytest.approx(hidden[1]["1"]["value"], abs=0.01)


def test_noise_has_the_size_of_the_change_image_by_image():
    images = torch.rand(5, *GRID) * 0.2 + 0.4
    for edit in (smooth(), PixelEdit(GRID)):
        if isinstance(edit, PixelEdit):
            edit.load_vector(torch.linspace(-0.1, 0.1, SIDE * SIDE))
        noise = NoiseControl(edit, 3)
        own, other = ((part(images) - images).flatten(1) for part in (edit, noise))
        torch.testing.assert_close(own.norm(dim=1), other.norm(dim=1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(noise(images[2:3])[0], noise(images)[2])  # the batch does not matter
        same = torch.corrcoef(other[:2])[0, 1]
        assert same > 0.99 if is_constant(edit) else abs(same) < 0.5
        assert not torch.equal(NoiseControl(edit, 4)(images), noise(images))


@pytest.mark.parametrize("kind", ["filter", "faint plane"])
def test_noise_keeps_its_size_where_black_pixels_and_rounding_take_of_it(kind):
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.6
    images[..., :16] = 0  # a dark half, as radiographs have
    images = (images * 255).round() / 255
    grid, bounds = (1, 32, 32), Bounds(rounding="8bit")
    edit = SpectralEdit(grid, bounds, bands=8) if kind == "filter" else PixelEdit(grid, bounds)
    vector = torch.full((8,), -1.0) if kind == "filter" else torch.zeros(32 * 32).index_fill(0, torch.arange(0, 32 * 32, 4), 2 / 255)
    edit.load_vector(vector)
    sizes = [(part(images) - images).flatten(1).norm(dim=1) for part in (edit, NoiseControl(edit, 0))]
    torch.testing.assert_close(sizes[1], sizes[0], rtol=0.02, atol=0)


def test_noise_has_a_plane_a_channel_where_the_edit_has():
    images = torch.full((2, 3, SIDE, SIDE), 0.5)
    for per_channel in (False, True):
        edit = PixelEdit((3, SIDE, SIDE), per_channel=per_channel)
        edit.load_vector(torch.full((edit.n_parameters,), 0.1))
        change = NoiseControl(Composition([edit]), 0)(images) - images
        assert torch.equal(change[:, 0], change[:, 1]) is not per_channel


def test_which_edits_are_constant():
    plane, filtered = PixelEdit(GRID), SpectralEdit(GRID, bands=4)
    assert is_constant(Composition([plane, plane]))
    assert not is_constant(Composition([plane, filtered]))


def test_a_reader_of_pixels_finds_a_pattern_until_it_is_gone():
    train, val, test = (scene_split(n, seed, together=0.5, missing=0.1) for n, seed in ((160, 0), (60, 1), (80, 2)))
    trainer = TrainerConfig(max_epochs=5, lr=0.01, monitor="val_loss", progress=False, accelerator="cpu")
    found = read_pixels(
        train, val, test, "site", smooth(), kind="binary", labels=("ill",), trainer=trainer, batch_size=16, n_bootstrap=20
    )
    json.dumps(found, allow_nan=False)
    assert found["none"]["overall"]["value"] > 0.9
    assert found["edit"]["overall"]["value"] < found["none"]["overall"]["value"] - 0.15
    assert found["change"]["given_label"]["upper"] < 0
    assert 40_000 < found["n_parameters"] < 60_000


def test_the_reader_starts_the_same_and_leaves_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second = PixelReader(3, 4, seed=2), PixelReader(3, 4, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.head.weight, second.head.weight)
    assert first(torch.rand(2, 3, 64, 64)).shape == (2, 4)
