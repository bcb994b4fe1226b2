"""One budget over all workers, and the trials of those that died: on a journal file, SQLite and PostgreSQL alike."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from evenhand.errors import RunError
from evenhand.search.ledger import Ledger, Terms, TrialTakenAway, Turn, _place, _start_time, is_gone
from evenhand.search.records import OWNER, is_counted, is_lost, records_of
from evenhand.search.samplers import SeededSampler
from evenhand.search.storage import close_storage, find_address, open_storage


def suggest(trial):
    return {"x": trial.suggest_categorical("x", [0, 1]), "y": trial.suggest_float("y", 0, 1)}


def key(params, number):
    return repr(sorted(params.items()))


@pytest.fixture
def make(storage):
    """A worker's ledger of the same study, each with a connection of its own."""
    address = find_address(storage, None)

    ledgers = []

    def build(**terms):
        opened = open_storage(address)
        options = {"load_if_exists": True, "direction": "maximize", "sampler": SeededSampler("random", 0)}
        study = optuna.create_study(study_name="s", storage=opened, **options)
        ledgers.append(Ledger(study, opened, address, Terms(**{"n_trials": 3, "heartbeat": 0.05, "grace": 0.6, "wait": 5.0, **terms})))
        return ledgers[-1]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield build
    for ledger in ledgers:
        ledger._let_go()
        close_storage(ledger.storage)


def finish(ledger, trial, value=1.0):
    return ledger.finish(trial, TrialState.COMPLETE, [value], {"epochs": 1}, -0.1)


def states(ledger):
    return [record.state for record in records_of(ledger.study.get_trials())]


def test_the_budget_holds_over_two_workers(make):
    first, second = make(), make()
    a, b = first.take(suggest, key), second.take(suggest, key)
    c = make().take(suggest, key)
    assert make().take(suggest, key) is Turn.WAIT
    assert [finish(ledger, trial) for ledger, trial in ((first, a), (second, b))] == [True, True]
    assert second.take(suggest, key) is Turn.WAIT
    assert finish(first, c) or True
    assert second.take(suggest, key) is Turn.DONE
    assert states(first) == ["complete"] * 3


def test_workers_that_rush_in_together_take_no_trial_twice_and_none_too_many(make):
    ledgers = [make(n_trials=7) for _ in range(4)]
    taken: list[int] = []

    def work(ledger):
        while (trial := ledger.take(suggest, key)) is not Turn.DONE:
            if trial is Turn.WAIT:
                time.sleep(0.05)
            elif finish(ledger, trial):
                taken.append(trial.number)

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(7))
    assert states(ledgers[0]) == ["complete"] * 7


def test_the_trial_of_a_process_that_is_gone_is_run_again_at_once_with_the_same_values(make):
    victim, survivor = make(grace=1e6), make(grace=1e6)
    lost = victim.take(suggest, key)
    victim._pulse.stop()
    gone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = f"{_place()}:{gone.pid}:{_start_time(gone.pid)}:x"
    assert not is_gone(name)
    gone.kill()
    gone.wait()
    if not is_gone(name):
        pytest.skip("this platform cannot tell whether a process is gone; there the grace time decides")
    victim.storage.set_trial_system_attr(lost._trial_id, OWNER, name)
    again = survivor.take(suggest, key)
    assert again.params == lost.params
    assert again.number == 1
    assert states(survivor) == ["lost", "running"]
    assert finish(survivor, again)


def test_a_worker_of_another_machine_is_dead_after_the_grace_time_and_not_before(make):
    victim, survivor = make(), make()
    lost = victim.take(suggest, key)
    victim.storage.set_trial_system_attr(lost._trial_id, OWNER, "elsewhere/1-2:7:7:x")
    time.sleep(0.8)
    survivor.rescue()
    time.sleep(0.8)
    survivor.rescue()
    assert states(survivor) == ["running"], "its counter still moves"
    victim._pulse.stop()
    survivor.rescue()
    time.sleep(0.8)
    survivor.rescue()
    assert states(survivor) == ["lost", "waiting"]
    # what it finds after all is dropped, and is no error
    assert not finish(victim, lost)
    with pytest.raises(TrialTakenAway):
        victim.report(lost, 1, 0.5)
    assert states(survivor) == ["lost", "waiting"]


def test_a_worker_that_died_before_its_first_sign_of_life_is_noticed(make):
    survivor = make(grace=0.3)
    survivor.study.ask()
    survivor.rescue()
    time.sleep(0.4)
    survivor.rescue()
    assert states(survivor) == ["lost", "waiting"]


def test_a_trial_that_kills_its_workers_fails_in_the_end(make):
    ledger = make(reruns=1, n_trials=1)
    for _ in range(2):
        trial = ledger.take(suggest, key)
        ledger._let_go()
        ledger.storage.set_trial_system_attr(trial._trial_id, OWNER, ledger.owner)
        ledger.rescue()
    last = records_of(ledger.study.get_trials())[-1]
    assert [last.state, states(ledger)] == ["failed", ["lost", "failed"]]
    assert "its worker died each time" in last.failure
    assert ledger.take(suggest, key) is Turn.DONE


def test_an_interrupted_trial_is_queued_again_and_counts_for_nothing(make):
    ledger = make(reruns=0, n_trials=1)
    trial = ledger.take(suggest, key)
    ledger.give_back(trial, "interrupted")
    assert states(ledger) == ["lost", "waiting"]
    again = ledger.take(suggest, key)
    assert again.params == trial.params
    assert ledger.fail(again, "the loss became nan")
    trials = ledger.study.get_trials()
    assert [is_lost(trials[0]), is_counted(trials[0]), is_lost(trials[1]), is_counted(trials[1])] == [True, False, False, True]
    assert ledger.take(suggest, key) is Turn.DONE


def test_twins_are_earlier_trials_of_the_same_training(make):
    ledger = make(n_trials=9)
    same = lambda trial: {"x": 1}  # noqa: E731
    first, second = ledger.take(same, key), make(n_trials=9).take(same, key)
    assert ledger.twin(first) is None
    assert ledger.twin(second).state == TrialState.RUNNING
    ledger.finish(first, TrialState.COMPLETE, [0.5], {}, None)
    assert ledger.twin(second).values == [0.5]


def test_a_storage_that_goes_away_is_waited_for_and_then_given_up(make, monkeypatch):
    ledger = make(wait=1.0)
    trial = ledger.take(suggest, key)
    real, failures = ledger.storage.set_trial_intermediate_value, []

    def flaky(*arguments):
        failures.append(arguments)
        if len(failures) < 3:
            raise OSError("the network is down")
        return real(*arguments)

    monkeypatch.setattr(type(trial.storage), "set_trial_intermediate_value", lambda self, *arguments: flaky(*arguments))
    assert ledger.report(trial, 1, 0.5) is False
    assert len(failures) == 3

    def away(*arguments):
        raise OSError("the network is down")

    monkeypatch.setattr(type(trial.storage), "set_trial_intermediate_value", lambda self, *arguments: away())
    with pytest.raises(RunError, match=r"has been away for 1 s \(the network is down\); finished trials are in it"):
        ledger.report(trial, 2, 0.5)
    ledger._let_go()


def test_names_of_processes():
    assert not is_gone(f"{_place()}:{os.getpid()}:{_start_time(os.getpid())}:x")
    assert not is_gone("another-machine/1-2:1:1:x")
    assert not is_gone("")


class Always(optuna.pruners.BasePruner):
    """Stops whatever it is asked about."""

    def prune(self, study, trial):
        return True


@pytest.mark.parametrize(("direction", "better", "worse"), [("maximize", 0.9, 0.7), ("minimize", 0.1, 0.3)])
def test_a_trial_that_is_better_than_every_complete_one_is_not_stopped(make, direction, better, worse):
    ledger = make(n_trials=9)
    ledger.study.pruner = Always()
    if direction == "minimize":
        name = {"study_name": "m", "storage": ledger.storage, "direction": direction}
        ledger.study = optuna.create_study(**name, sampler=SeededSampler("random", 0), pruner=Always())
    between = (better + worse) / 2
    first = ledger.take(suggest, key)
    assert ledger.report(first, 1, better), "nothing is complete, so the pruner's word holds"
    finish(ledger, first, between)
    collapsed = ledger.take(suggest, key)
    assert ledger.finish(collapsed, TrialState.COMPLETE, [better], {"epochs": 1}, 0.1)
    ahead = ledger.take(suggest, key)
    assert not ledger.report(ahead, 1, better), "a collapsed trial is nothing to fall behind"
    assert ledger.report(ahead, 2, between)
    assert ledger.report(ahead, 3, worse)
    ledger.study.pruner = optuna.pruners.NopPruner()
    assert not ledger.report(ahead, 4, worse)
