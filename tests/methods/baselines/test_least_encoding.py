"""Among readings that know the disease about equally well, the one that tells least of the attribute is taken."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from evenhand.config.methods import LeastEncodingConfig, LinearProbeConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Split
from evenhand.methods.baselines.least_encoding import Axes, Candidate, LeastEncoding, attribute_auc, candidate_sizes, choose, probe_auc
from evenhand.methods.baselines.linear_probe import LinearProbe
from evenhand.methods.editing.leakage import LeakageRows, _Condition
from evenhand.methods.fitting import FittedHead, HeadSpec, fit_head
from evenhand.methods.heads import Standardizer

WIDTH, LEADING = 32, 4


class Rows:
    """Images that are their embeddings."""

    shape = (1, 1, WIDTH)

    def __init__(self, features):
        self.features = features.astype(np.float32)
        self.fingerprint = str(hash(self.features.tobytes()))

    def __len__(self):
        return len(self.features)


def planted(n, seed, group_at, group_size=3.0, disease_at=0):
    """Rows whose components, before a fixed rotation, fall in deviation from 3 to 0.3; disease and group each shift one of them."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(0, 2, n), rng.integers(0, 2, n)
    deviation = np.concatenate([np.full(LEADING, 3.0), np.full(WIDTH - LEADING, 0.3)])
    hidden = rng.standard_normal((n, WIDTH)) * deviation
    hidden[:, disease_at] += deviation[disease_at] * 2.0 * (y - 0.5)
    hidden[:, group_at] += deviation[group_at] * group_size * (group - 0.5)
    rotation = np.linalg.qr(np.random.default_rng(9).standard_normal((WIDTH, WIDTH)))[0]
    groups = {"site": Groups("site", ("a", "b"), group.astype(np.int64))}
    return Split(Rows(hidden @ rotation.T), y[:, None].astype(np.float32), groups, np.arange(n), np.arange(n))


@pytest.fixture
def planted_task(make_task):
    def build(**options):
        splits = {name: planted(600, seed, **options) for name, seed in (("train", 1), ("val", 2))}
        return make_task(**splits, attributes=("site",), embed=lambda images: images.features)

    return build


def chosen_and_full(result):
    return next(record for record in result.history if record["chosen"]), result.history[-1]


@pytest.mark.parametrize("given_label", [True, False])
def test_an_attribute_in_components_the_disease_does_not_need_is_cut_off(planted_task, given_label):
    result = LeastEncoding(LeastEncodingConfig(components=[2, 4, 8, 16], given_label=given_label)).fit(planted_task(group_at=20))
    chosen, full = chosen_and_full(result)
    assert chosen["components"] < WIDTH
    assert full["attribute_auc"] > 0.9
    assert chosen["attribute_auc"] < full["attribute_auc"] - 0.3
    assert chosen["val_auc"] >= max(record["val_auc"] for record in result.history) - 0.01
    note = next(note for note in result.notes if "principal components are read" in note)
    assert f"first {chosen['components']} of {WIDTH}" in note
    assert f"{chosen['attribute_auc']:.3f} (all {WIDTH}: {full['val_auc']:.3f} and {full['attribute_auc']:.3f})" in note


def test_what_the_disease_needs_is_kept_however_much_it_tells(planted_task):
    # disease and group shift one leading component: nothing that reads the one misses the other
    task = planted_task(group_at=0, group_size=2.0)
    result = LeastEncoding(LeastEncodingConfig(components=[1, 4, 16])).fit(task)
    chosen, full = chosen_and_full(result)
    enough = [record for record in result.history if record["val_auc"] >= max(r["val_auc"] for r in result.history) - 0.01]
    assert all(record["attribute_auc"] > 0.75 for record in enough)
    assert chosen in enough
    assert chosen["val_auc"] >= full["val_auc"] - 0.01


def test_tolerance_is_what_may_be_given_up(planted_task):
    # the disease sits in a late component too: without it the attribute cannot be read, but neither can the disease
    task = planted_task(group_at=20, disease_at=10)
    strict = LeastEncoding(LeastEncodingConfig(components=[4], tolerance=0.01)).fit(task)
    loose = LeastEncoding(LeastEncodingConfig(components=[4], tolerance=1.0)).fit(task)
    assert chosen_and_full(strict)[0]["components"] == WIDTH
    assert any(f"all {WIDTH} principal components are read" in note for note in strict.notes)
    assert chosen_and_full(loose)[0]["components"] == 4
    assert list(strict.history[0]) == ["components", "l2", "val_auc", "attribute_auc", "chosen"]
    json.dumps(list(strict.history), allow_nan=False)


def test_the_map_on_raw_embeddings_is_standardise_project_probe(planted_task):
    task = planted_task(group_at=20)
    result = LeastEncoding(LeastEncodingConfig(components=[4], l2=0.01)).fit(task)
    assert chosen_and_full(result)[0]["components"] == 4
    x = task.train.x.features
    standard = Standardizer.fit(x)
    data = standard.apply(x).astype(np.float64)
    _, _, axes = np.linalg.svd(data - data.mean(axis=0), full_matrices=False)
    z, z_val = ((standard.apply(rows).astype(np.float64) @ axes[:4].T).astype(np.float32) for rows in (x, task.val.x.features))
    probe = fit_head(z, task.train.y, HeadSpec("binary", ("ill",), l2=0.01, standardize=False))
    by_steps = 1 / (1 + np.exp(-(z_val @ probe.weight.T + probe.bias)))
    np.testing.assert_allclose(result.predict(task.val.x)[0], by_steps, atol=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_all_components_are_the_linear_probe(make_task, kind):
    task = make_task(kind, 3)
    result = LeastEncoding(LeastEncodingConfig(components=[8], l2=0.03)).fit(task)
    plain = LinearProbe(LinearProbeConfig(l2=0.03)).fit(task)
    np.testing.assert_allclose(result.predict(task.val.x)[0], plain.predict(task.val.x)[0], atol=1e-4)


def test_the_attribute_is_read_as_leakage_reads_it(make_task):
    task = make_task("binary", 3)
    x, x_val = task.train.x.features, task.val.x.features
    axes = Axes.fit(x)
    found = attribute_auc(task, "site", axes.components(x), axes.components(x_val), True)
    rows = LeakageRows(task.embed, task.train, task.val, task.val, "binary", ("ill",))
    expected = _Condition(rows, (x, x_val, x_val), "site", 0, 5).record["given_label"]["value"]
    assert found == pytest.approx(expected, abs=0.005)


def test_components_fall_in_variance_and_keep_all_of_it(make_task):
    x = make_task().train.x.features * 5 + 100
    z = Axes.fit(x).components(x)
    deviation = z.std(axis=0)
    assert (np.diff(deviation) <= 1e-5).all()
    assert (deviation**2).sum() == pytest.approx(x.shape[1], rel=1e-4)
    np.testing.assert_allclose(np.corrcoef(z.T), np.eye(x.shape[1]), atol=1e-4)


@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("given_label", [True, False])
def test_runs_for_every_kind(make_task, kind, n_groups, given_label):
    task = make_task(kind, n_groups)
    config = LeastEncodingConfig(components=[2, 4], given_label=given_label, l2=0.03)
    result = LeastEncoding(config).fit(task)
    assert [record["components"] for record in result.history] == [2, 4, 8]
    assert sum(record["chosen"] for record in result.history) == 1
    assert all(0.4 < record["attribute_auc"] <= 1 for record in result.history)
    assert np.isfinite(result.predict(task.val.x)[0]).all()
    assert [dict(record) for record in LeastEncoding(config).fit(task).history] == [dict(record) for record in result.history]


def test_the_strength_of_every_candidate_is_chosen_on_its_components(make_task):
    result = LeastEncoding(LeastEncodingConfig(components=[2])).fit(make_task())
    assert all(record["l2"] > 0 for record in result.history)
    assert any("was chosen by log loss on the 300 validation rows" in note for note in result.notes)


def test_the_choice_counts_chance_as_chance_and_prefers_fewer_components():
    head = FittedHead(np.zeros((1, 1)), np.zeros(1))
    below, chance, best = (Candidate(m, 0.1, a, e, head) for m, a, e in ((16, 0.9, 0.45), (8, 0.895, 0.5), (32, 0.9, 0.8)))
    assert choose([chance, below, best], 0.01) is chance
    assert choose([chance, below, best], 0.0) is below
    assert choose([replace(chance, attribute_auc=0.9), best], 0.0) is best


def test_sizes():
    assert candidate_sizes(None, 64) == [8, 16, 32, 64]
    assert candidate_sizes(None, 6) == [6]
    assert candidate_sizes([4, 4, 1], 6) == [1, 4, 6]


def test_auc_of_classes_is_the_mean_of_each_against_the_rest():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((60, 3)).astype(np.float32), rng.integers(0, 3, 60)
    head = FittedHead(np.eye(3), np.zeros(3))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert probe_auc(head, z, np.append(y[:-1], -1), "multiclass") == pytest.approx(
        np.mean([roc_auc_score(y[:-1] == c, p[:-1, c]) for c in range(3)])
    )
    one_class = np.column_stack([np.zeros(60), y == 1, np.full(60, np.nan)]).astype(np.float32)
    assert probe_auc(head, z, one_class, "multilabel") == pytest.approx(roc_auc_score(y == 1, z[:, 1]))


@pytest.mark.parametrize("wrong", [9, 0, -1])
def test_components_that_do_not_exist_are_refused(make_task, wrong):
    with pytest.raises(MethodError, match=rf"holds {wrong}, but an embedding has 8 numbers, so each must be from 1 to 8; "):
        LeastEncoding(LeastEncodingConfig(components=[4, wrong])).fit(make_task())


def some(split, rows):
    groups = {name: item.take(rows) for name, item in split.groups.items()}
    return Split(type(split.x)(split.x.features[rows]), split.y[rows], groups, split.patient[rows], split.index[rows])


def test_validation_rows_are_needed(make_task):
    task = make_task()
    rows = np.arange(len(task.val))
    with pytest.raises(MethodError, match="chooses by validation rows, but there are none; make a val split"):
        LeastEncoding().fit(replace(task, val=some(task.val, rows < 0)))
    with pytest.raises(MethodError, match=r"'site' can be read is not estimable on 30 validation rows: .*given_label=false, or leace"):
        LeastEncoding().fit(replace(task, val=some(task.val, rows < 30)))
    well = task.val.y[:, 0] == 0
    with pytest.raises(MethodError, match=f"no label has two values among the {well.sum()} validation rows"):
        LeastEncoding().fit(replace(task, val=some(task.val, well)))
    one = replace(task.train, groups={**task.train.groups, "site": Groups("site", ("a", "b"), np.zeros(300, np.int64))})
    with pytest.raises(MethodError, match="'site' has 1 group"):
        LeastEncoding().fit(replace(task, train=one))
