"""Who watches a run is told of every epoch, can end it, and changes nothing by watching."""

import numpy as np
import pytest
import torch

from evenhand.training import StopTraining, train_model
from evenhand.training.predicting import predict_logits
from evenhand.training.selection import pooled_auc


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_watching_changes_nothing_and_tells_of_every_epoch(lab):
    train, val = lab.split(40), lab.split(20, seed=1)
    plain = train_model(lab.model(), train, val, lab.setup())
    seen = []
    watched = train_model(lab.model(), train, val, lab.setup(), watch=seen.append)
    assert same(plain.model.state_dict(), watched.model.state_dict())
    assert [facts.epoch for facts in seen] == [1, 2, 3]
    assert [facts.record for facts in seen] == watched.history == plain.history
    assert seen[-1].best_epoch == watched.best_epoch
    for facts in seen:
        assert facts.val_logits.shape == (20, 1)
        assert pooled_auc(val.y, 1 / (1 + np.exp(-facts.val_logits.astype(float))), "binary") == facts.record["val_auc"]
    kept = predict_logits(watched.model, val.x, 16, torch.device("cpu"))
    assert np.array_equal(kept, seen[watched.best_epoch - 1].val_logits)


def test_the_logits_are_of_the_moving_average_where_that_is_kept(lab):
    seen = []
    outcome = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(ema_decay=0.9, monitor="last"), watch=seen.append)
    kept = predict_logits(outcome.model, lab.split(20, seed=1).x, 16, torch.device("cpu"))
    assert np.array_equal(kept, seen[-1].val_logits)


def test_without_validation_rows_there_are_no_logits(lab):
    seen = []
    train_model(lab.model(), lab.split(40), lab.split(0), lab.setup(max_epochs=1), watch=seen.append)
    assert seen[0].val_logits is None
    assert seen[0].record["val_auc"] is None


def test_a_stop_keeps_the_checkpoint_and_says_why(lab):
    store, told = lab.MemoryStore(), []

    def stop(facts):
        told.append(facts.epoch)
        if facts.epoch == 2:
            raise StopTraining("worse than the median of 7 trials")

    train, val = lab.split(40), lab.split(20, seed=1)
    outcome = train_model(lab.model(), train, val, lab.setup(store=store, max_epochs=5), watch=stop)
    assert (outcome.stopped_epoch, len(outcome.history)) == (2, 2)
    assert "training was stopped after epoch 2 of 5: worse than the median of 7 trials" in outcome.notes
    assert store.get("checkpoint")["epoch"] == 2
    again = train_model(lab.model(), train, val, lab.setup(store=store, max_epochs=5), watch=stop)
    assert told == [1, 2]
    assert (again.history, again.notes, again.best_epoch) == (outcome.history, outcome.notes, outcome.best_epoch)
    assert same(again.model.state_dict(), outcome.model.state_dict())


def test_what_is_kept_after_a_stop_is_the_best_epoch_of_those_that_ran(lab):
    whole = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(max_epochs=2, schedule="constant"))

    def stop(facts):
        if facts.epoch == 2:
            raise StopTraining("enough")

    cut = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(max_epochs=6, schedule="constant"), watch=stop)
    assert (cut.history, cut.best_epoch) == (whole.history, whole.best_epoch)
    assert same(cut.model.state_dict(), whole.model.state_dict())


def test_a_run_killed_while_it_tells_tells_of_that_epoch_again(lab):
    store, told = lab.MemoryStore(), []

    def killed(facts):
        if facts.epoch == 2:
            raise KeyboardInterrupt

    train, val = lab.split(40), lab.split(20, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_model(lab.model(), train, val, lab.setup(store=store), watch=killed)
    outcome = train_model(lab.model(), train, val, lab.setup(store=store), watch=told.append)
    assert [facts.epoch for facts in told] == [2, 3]
    whole = train_model(lab.model(), train, val, lab.setup())
    assert outcome.history == whole.history
    assert same(outcome.model.state_dict(), whole.model.state_dict())


def test_a_checkpoint_from_before_there_was_a_watch_goes_on(lab):
    store = lab.MemoryStore()
    train, val = lab.split(40), lab.split(20, seed=1)

    def killed(facts):
        if facts.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(lab.model(), train, val, lab.setup(store=store), watch=killed)
    state = store.get("checkpoint")
    del state["stopped"]
    store.put("checkpoint", state)
    assert train_model(lab.model(), train, val, lab.setup(store=store)).stopped_epoch == 3
