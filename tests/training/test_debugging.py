"""Debug options: rows learnt by heart, epochs cut short, a profile of some steps; and the plateau's own monitor."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError
from evenhand.training import predict_model, train_model
from evenhand.training.debugging import pick_rows
from evenhand.training.selection import pooled_auc


class Counting(torch.nn.Module):
    """Counts the images it is trained on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, x):
        if self.training:
            self.batches.append(x.clone())
        return self.model(x)


def test_rows_are_picked_class_by_class_and_only_labelled_ones():
    y = np.array([[0.0]] * 50 + [[1.0]] * 2 + [[np.nan]] * 8)
    picked = pick_rows(y, 10, 0, "a")
    assert len(picked) == 10
    assert {50, 51} <= set(picked)
    assert picked.max() < 52
    assert (picked == pick_rows(y, 10, 0, "a")).all()
    assert (picked != pick_rows(y, 10, 1, "a")).any()
    classes = pick_rows(np.array([0, 0, 0, 1, 2, -1]), 3, 0, "b")
    assert sorted(np.array([0, 0, 0, 1, 2, -1])[classes]) == [0, 1, 2]


def test_overfit_trains_on_few_rows_and_validates_on_them(lab):
    train, val = lab.split(200), lab.split(60, seed=1)
    model = Counting(lab.model())
    setup = lab.setup(overfit_batches=2, batch_size=8, max_epochs=60, lr=0.02, augment="dermoscopy")
    outcome = train_model(model, train, val, setup)
    seen = {image.numpy().tobytes() for batch in model.batches for image in batch}
    assert len(seen) == 16
    assert outcome.history[-1]["val_auc"] == 1.0
    assert any("same 16 rows" in note for note in outcome.notes)
    # the rest of the rows was not learnt by heart
    scores = predict_model(outcome.model, train.x, 64, torch.device("cpu"), "binary")
    assert pooled_auc(train.y, scores, "binary") < 1.0


def test_limit_cuts_epochs_of_training_and_validation(lab):
    train, val = lab.split(200), lab.split(200, seed=1)
    model = Counting(lab.model())
    outcome = train_model(model, train, val, lab.setup(limit_batches=3, batch_size=8, max_epochs=2))
    assert len(model.batches) == 6
    assert val.x.reads == 2 * 3
    assert len(outcome.history) == 2
    assert all(np.isfinite(record["train_loss"]) for record in outcome.history)
    assert any("at most 3 batches" in note for note in outcome.notes)


def test_a_limit_above_what_there_is_changes_no_number(lab):
    def history(**options):
        return train_model(lab.model(), lab.split(64), lab.split(40, seed=1), lab.setup(**options)).history

    assert history(limit_batches=1000) == history()


def test_limits_work_with_accumulated_batches(lab):
    model = Counting(lab.model())
    train_model(model, lab.split(200), lab.split(0), lab.setup(limit_batches=3, accumulate=2, batch_size=8, max_epochs=1))
    assert len(model.batches) == 3


@pytest.mark.parametrize("n", [4, 20, 200])
def test_a_profile_names_the_stages_and_changes_no_number(lab, n):
    setup = lab.setup(profile=True, batch_size=8, max_epochs=2)
    outcome = train_model(lab.model(), lab.split(n), lab.split(20, seed=1), setup)
    plain = train_model(lab.model(), lab.split(n), lab.split(20, seed=1), replace(setup, trainer=replace(setup.trainer, profile=False),
                                                                                 store=lab.MemoryStore()))
    assert outcome.history == plain.history
    assert plain.artifacts == {}
    table = outcome.artifacts["profile.txt"].decode()
    trace = json.loads(gzip.decompress(outcome.artifacts["profile_trace.json.gz"]))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"read", "forward and backward", "optimiser"} <= names
    assert "forward and backward" in table


def test_a_run_goes_on_with_the_profile_switched_on(lab):
    store = lab.MemoryStore()
    first = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(store=store))
    again = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(store=store, profile=True))
    assert again.history == first.history


def test_negative_numbers_of_batches_are_refused(lab):
    with pytest.raises(ConfigError, match="limit_batches"):
        train_model(lab.model(), lab.split(20), lab.split(0), lab.setup(limit_batches=-1))


@pytest.mark.parametrize(("watched", "drops"), [("train_loss", False), ("monitor", True)])
def test_the_plateau_watches_what_it_is_told(lab, watched, drops):
    """Validation labels are noise, so that their AUC gets no better, while the training loss goes on falling."""
    val = lab.split(40, seed=1)
    val = replace(val, y=np.random.default_rng(3).integers(0, 2, val.y.shape).astype(np.float32))
    options = {"schedule": "plateau", "plateau_patience": 1, "max_epochs": 12, "optimizer": "sgd", "lr": 0.01}
    outcome = train_model(lab.model(), lab.split(64), val, lab.setup(plateau_monitor=watched, **options))
    rates = [record["lr"] for record in outcome.history]
    assert (rates[-1] < rates[0]) == drops


def test_a_plateau_on_what_cannot_be_estimated_falls_back_to_the_training_loss(lab):
    options = {"schedule": "plateau", "plateau_patience": 0, "max_epochs": 4, "optimizer": "sgd", "lr": 0.01}
    setup = lab.setup(plateau_monitor="val_auc", monitor="last", **options)
    rates = [record["lr"] for record in train_model(lab.model(), lab.split(64), lab.split(0), setup).history]
    assert rates[1] == rates[0]


def test_records_are_told_as_epochs_end(lab):
    told = []
    setup = replace(lab.setup(), log=told.append)
    outcome = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), setup)
    assert told == outcome.history


def test_new_options_at_their_defaults_do_not_end_older_runs(lab):
    """A checkpoint knows nothing of options that came later."""
    from evenhand.training.checkpointing import _LATER

    defaults = TrainerConfig()
    assert {name: getattr(defaults, name) for name in _LATER} == _LATER
