"""Files are written whole or not at all, and one process at a time."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evenhand.errors import DiskFullError, RunError
from evenhand.files import disk_errors, locked, write_atomic, write_text


def test_the_folder_is_made_and_only_the_file_is_in_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "é\r\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\xc3\xa9\r\n"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_rights_are_those_of_a_plain_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_atomic(tmp_path / "a", b"old")
    for code, error in ((errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, RunError)):

        def fail(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(error) as caught:
                write_atomic(tmp_path / "a", b"new")
        assert type(caught.value) is error
        assert (os.listdir(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"old")


def test_other_errors_pass_through() -> None:
    with pytest.raises(PermissionError), disk_errors(Path("x")):
        raise PermissionError


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*; choose another output folder"):
        write_atomic(tmp_path / "a" / "b", b"")


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = f"import time; from evenhand.files import locked\nwith locked({str(lock)!r}): print('held', flush=True); time.sleep(60)"
    waited = []
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def kill() -> None:
            waited.append(time.monotonic())
            holder.kill()

        with locked(lock, waiting=kill):
            assert len(waited) == 1
    assert not lock.exists()
