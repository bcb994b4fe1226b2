"""Addresses, the journal that repairs itself, locks, and storages that are not there."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path

import optuna
import pytest

from evenhand.errors import ConfigError, DiskFullError, InputError, RunError
from evenhand.search import load_study
from evenhand.search.storage import Journal, booking, close_storage, find_address, open_storage, patiently


def test_addresses(tmp_path):
    assert find_address(None, tmp_path).path == tmp_path / "study.journal"
    assert find_address("a/b.log", None).path == Path("a/b.log")
    assert find_address("folder", None).path == Path("folder/study.journal")
    assert find_address("a.db", None).url == "sqlite:///a.db"
    address = find_address("postgresql://me@host:5433/studies", None)
    assert (address.kind, address.url) == ("postgresql", "postgresql+psycopg://me@host:5433/studies")


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("postgresql://me:secret@host/studies", r"storage=postgresql://me:\*\*\*@host/studies holds a password"),
        ("mysql://me@host/studies", "is a mysql address; a study lives in"),
        ("://nothing", "cannot be read as an address"),
        (None, "give out=FOLDER or storage="),
    ],
)
def test_addresses_that_are_refused(storage, said):
    with pytest.raises(ConfigError, match=said) as error:
        find_address(storage, None)
    assert "secret" not in str(error.value)


def test_a_database_that_is_not_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RunError, match=rf"postgresql://me@127.0.0.1:{port}/x cannot be opened \(.*(refused|failed)"):
        open_storage(find_address(f"postgresql://me@127.0.0.1:{port}/x", None))


def test_files_that_hold_no_study(tmp_path):
    (tmp_path / "text.journal").write_text("this is\nno journal\n")
    with pytest.raises(RunError, match=r"text.journal cannot be opened"):
        open_storage(find_address(str(tmp_path / "text.journal"), None))
    for text in ("one line\n", "a line without an end"):
        (tmp_path / "mine.log").write_text(text)
        with pytest.raises(RunError, match=r"mine.log cannot be opened \(it holds something else than a study's journal\)"):
            open_storage(find_address(str(tmp_path / "mine.log"), None))
        assert (tmp_path / "mine.log").read_text() == text, "nothing is added, and nothing is taken for a record that was cut short"
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(RunError, match=r"text.db cannot be opened \(file is not a database\)"):
        open_storage(find_address(str(tmp_path / "text.db"), None))
    with pytest.raises(InputError, match="does not exist"):
        load_study(str(tmp_path / "none.journal"))
    assert not (tmp_path / "none.journal").exists()
    study = optuna.create_study(study_name="mine", storage=open_storage(find_address(str(tmp_path / "a.journal"), None)))
    assert load_study(str(tmp_path / "a.journal"), "mine").study_name == study.study_name
    with pytest.raises(InputError, match="holds no study 'search'; it holds: mine"):
        load_study(str(tmp_path / "a.journal"))


def test_a_record_that_was_cut_short_is_taken_back(tmp_path):
    """A kill or a full disk left half a line: it is cut off by the next writer, and readers do not mind it."""
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_storage(find_address(str(path), None)))
    study.add_trial(optuna.create_trial(value=1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    again = optuna.load_study(study_name="s", storage=open_storage(find_address(str(path), None)))
    assert len(again.trials) == 1
    again.add_trial(optuna.create_trial(value=2.0))
    assert [trial.value for trial in load_study(str(path), "s").trials] == [1.0, 2.0]
    assert path.read_bytes().startswith(whole + b'{"op_code":4')
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_full_disk_leaves_no_half_records(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    journal.append_logs([{"a": 1}])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left on device"):
        journal.append_logs([{"b": 2}, {"c": 3}])
    monkeypatch.undo()
    journal.append_logs([{"d": 4}])
    assert list(journal.read_logs(0)) == [{"a": 1}, {"d": 4}]


def test_many_writers_lose_nothing(tmp_path):
    journals = [Journal(tmp_path / "j") for _ in range(4)]

    def write(k):
        for number in range(25):
            journals[k].append_logs([{"writer": k, "number": number}])

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(journals[0].read_logs(0))
    assert [[record["number"] for record in found if record["writer"] == k] for k in range(4)] == [list(range(25))] * 4


def test_one_worker_at_a_time_takes_a_trial(storage):
    address = find_address(storage, None)
    opened = [open_storage(address) for _ in range(2)]
    inside: list[str] = []

    def second():
        with booking(address, opened[1], "s"):
            inside.append("second")

    thread = threading.Thread(target=second)
    with booking(address, opened[0], "s"):
        thread.start()
        time.sleep(0.5)
        inside.append("first")
    thread.join()
    assert inside == ["first", "second"]
    for one in opened:
        close_storage(one)


@pytest.mark.slow
def test_a_database_that_is_restarted_is_waited_for(postgres):
    address = find_address(postgres.database("restart"), None)
    opened = open_storage(address)
    study = optuna.create_study(study_name="s", storage=opened)
    postgres.stop()
    threading.Timer(1.0, postgres.start).start()
    patiently(lambda: study.add_trial(optuna.create_trial(value=1.0)), address, 60.0)
    assert len(study.trials) == 1
    close_storage(opened)
