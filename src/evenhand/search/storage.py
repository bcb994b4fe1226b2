"""Where a study lives: a journal file, SQLite or PostgreSQL; one lock over all its workers; patience with one that went away.

The journal is Optuna's, with two differences. Its lock is the operating system's, so that a worker killed while it holds
the lock holds up nobody. And a record that a full disk cut short is taken back, so that the file stays readable.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError

from evenhand.errors import ConfigError, EvenhandError, RunError
from evenhand.files import disk_errors, locked
from evenhand.optional import require

log = logging.getLogger(__name__)
T = TypeVar("T")
GONE = (StorageInternalError, OperationalError, InterfaceError, DatabaseError, OSError)
"""What a storage raises that has gone away, for a while or for good."""

_JOURNAL = (".journal", ".log", ".jsonl")
_RECORD = b'{"op_code":'
"""What every record of a journal begins with."""
_SQLITE = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True)
class Address:
    """Where a study lives.

    Attributes:
        kind: "journal", "sqlite" or "postgresql".
        path: the file of a journal or of SQLite.
        url: what SQLAlchemy takes.
        shown: the address for messages, without a password.
    """

    kind: str
    path: Path | None
    url: str
    shown: str


def find_address(storage: str | None, folder: Path | None) -> Address:
    """What ``storage=`` means.

    Args:
        storage: a file, or a URL; None: ``study.journal`` in the folder.
        folder: the search's folder.

    Raises:
        ConfigError: another kind of storage, a password in the URL, or neither storage nor folder.

    Example:
        >>> find_address("sqlite:///study.db", None).kind, find_address(None, Path("out")).path.name
        ('sqlite', 'study.journal')
    """
    if storage is None:
        if folder is None:
            raise ConfigError("a search needs a place for its study: give out=FOLDER or storage=")
        return _journal(folder / "study.journal")
    if "://" not in storage:
        path = Path(storage)
        if path.suffix in _SQLITE:
            return Address("sqlite", path, f"sqlite:///{path}", str(path))
        return _journal(path if path.suffix in _JOURNAL else path / "study.journal")
    return _from_url(storage)


def _journal(path: Path) -> Address:
    return Address("journal", path, "", str(path))


def _from_url(storage: str) -> Address:
    try:
        url = make_url(storage)
    except ArgumentError as error:
        hidden = re.sub(r"//[^@/]*@", "//***@", storage)
        raise ConfigError(f"storage={hidden} cannot be read as an address; write postgresql://USER@HOST/NAME or sqlite:///FILE") from error
    shown = url.render_as_string(hide_password=True)
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database:
        return Address("sqlite", Path(url.database), storage, shown)
    if kind not in ("postgresql", "postgres"):
        raise ConfigError(f"storage={shown} is a {kind} address; a study lives in a journal file, sqlite:///FILE or postgresql://USER@HOST/DB")
    if url.password:
        raise ConfigError(f"storage={shown} holds a password, which would be saved; give it in PGPASSWORD or ~/.pgpass instead")
    require("psycopg", "postgres", "storage=postgresql://…")
    return Address("postgresql", None, url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False), shown)


class Lock:
    """`evenhand.files.locked` as the journal's lock: it ends with its process, by ``kill -9`` too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: AbstractContextManager[None] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        held = locked(self.path)
        held.__enter__()
        self._held = held
        return True

    def release(self) -> None:
        """Give it back."""
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)


class Journal(JournalFileBackend):
    """Optuna's journal file that repairs what a full disk or a kill cut short."""

    def __init__(self, path: Path) -> None:
        lock: Any = JournalFileOpenLock(str(path)) if sys.platform == "win32" else Lock(path.with_name(path.name + ".writing"))
        self.path, self.lock = path, lock
        super().__init__(str(path), lock_obj=lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records, all or none of them."""
        data = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in logs).encode()
        self.lock.acquire()
        try:
            # at the end of the file wherever that is by now: a dashboard that writes a note does not know this lock
            with disk_errors(self.path), os.fdopen(os.open(self.path, os.O_RDWR | os.O_APPEND), "rb+") as file:
                start = _complete(file)
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, start)
                    raise
        finally:
            self.lock.release()


def _complete(file: Any) -> int:
    """Cut a record off that has no end, and stand after the last complete one."""
    end = int(file.seek(0, os.SEEK_END))
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    start, block = end, b""
    while start > 0 and b"\n" not in block:
        start = max(0, start - 65536)
        file.seek(start)
        block = file.read(65536)
    kept = start + block.rfind(b"\n") + 1
    file.truncate(kept)
    file.seek(kept)
    return kept


def open_storage(address: Address) -> BaseStorage:
    """Connect, and make the file or the tables where there are none.

    Raises:
        RunError: the storage cannot be reached or written.
        DiskFullError: no space is left.
    """
    try:
        if address.kind == "journal" and address.path is not None:
            address.path.parent.mkdir(parents=True, exist_ok=True)
            _check_journal(address.path)
            return JournalStorage(Journal(address.path))
        options: dict[str, Any] = {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}
        if address.kind == "sqlite" and address.path is not None:
            address.path.parent.mkdir(parents=True, exist_ok=True)
            options = {"connect_args": {"timeout": 60}}
            with locked(address.path.with_name(address.path.name + ".making")):
                return RDBStorage(address.url, engine_kwargs=options)
        return _tables(address, options)
    except (*GONE, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, EvenhandError):
            raise
        raise RunError(
            f"the study's storage {address.shown} cannot be opened ({reason(error)}); check the address, and that it is running"
        ) from error


def _check_journal(path: Path) -> None:
    """Refuse a file that holds something else, before a record is added to it or its last line taken for one that was cut short."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(len(_RECORD))
    if not _RECORD.startswith(start):
        raise ValueError("it holds something else than a study's journal")


def close_storage(storage: BaseStorage) -> None:
    """Give a database's connections back; a file has none."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _tables(address: Address, options: dict[str, Any]) -> RDBStorage:
    """Workers that start together make the tables together, and one of them fails: it looks again."""
    for attempt in range(5):
        try:
            return RDBStorage(address.url, engine_kwargs=options)
        except DatabaseError as error:
            if isinstance(error, OperationalError) or attempt == 4:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise StorageInternalError("unreachable")


def reason(error: BaseException) -> str:
    """The first line of what went wrong, without addresses of documentation or passwords."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(getattr(cause, "orig", None) or cause).splitlines() if line.strip()]
    return re.sub(r"://[^@\s/]*@", "://", lines[0]) if lines else type(cause).__name__


@contextmanager
def booking(address: Address, storage: BaseStorage, study: str) -> Iterator[None]:
    """Hold a study against its other workers, on this and on other machines, while a trial is taken.

    A file lock beside a journal or SQLite file, an advisory lock of PostgreSQL; both end with their process.
    """
    if address.path is not None:
        with locked(address.path.with_name(f"{address.path.name}.booking")):
            yield
        return
    with _advisory_lock(storage, study) if isinstance(storage, RDBStorage) else nullcontext():
        yield


@contextmanager
def _advisory_lock(storage: RDBStorage, study: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"evenhand.search/{study}".encode()).digest()[:8], "big", signed=True)
    with storage.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
            connection.rollback()


def patiently(action: Callable[[], T], address: Address, wait: float, again: Callable[[], None] = lambda: None) -> T:
    """Do something with a storage, and again with growing pauses while it is away.

    Args:
        action: what to do; it may be done twice in part.
        address: for messages.
        wait: seconds until giving up.
        again: called before every repeat.

    Raises:
        RunError: the storage stayed away; what it holds is kept.
        DiskFullError: no space is left where a study is kept in a file.
    """
    start, pause = time.monotonic(), 0.2
    while True:
        try:
            return action()
        except GONE as error:
            left = wait - (time.monotonic() - start)
            if left <= 0:
                raise RunError(
                    f"the study's storage {address.shown} has been away for {wait:.0f} s ({reason(error)}); finished trials are in it: "
                    "once it is back, the same command goes on"
                ) from error
            log.warning("the study's storage %s is away (%s); trying again for %.0f s", address.shown, reason(error), left)
            time.sleep(min(pause, left))
            pause = min(pause * 2, 10.0)
            again()


def quiet() -> None:
    """Optuna's own lines about every trial are left out: a search says them in its own words."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
