"""Claims on pieces of work between processes of several machines, by files only: no locks, no clocks that must agree.

Generation g of a claim is the file ``NAME.g.lease``. It is made with the flag that lets only one maker succeed, which holds on NFS
too, where ``flock`` may not; who makes it has the claim. A thread writes it anew every few seconds. A claim whose file has not
changed for `PATIENCE` seconds *by the observer's own clock*, or whose process is dead on the observer's own machine, or which
was given up, is taken over by making generation g + 1. A holder that was only asleep may therefore wake up beside its successor:
what is done under a claim must do no harm when it is done twice.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0
BEAT = 5.0
_GIVEN_UP = b"given up"


class Claim:
    """A piece of work that this process holds.

    Attributes:
        name: the piece.
        generation: 1 for its first holder.
    """

    def __init__(self, path: Path, name: str, generation: int) -> None:
        self.name = name
        self.generation = generation
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Let others have it at once; nothing happens where it was given up before."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            with suppress(OSError):
                _overwrite(self._path, _GIVEN_UP)

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(BEAT):
            count += 1
            try:
                _overwrite(self._path, _identity() + f" {count:012d}".encode())
            except OSError:  # the work is finished and its folder gone
                return


class Leases:
    """The claims of one folder, as this process sees them.

    Args:
        folder: where the files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[bytes, float]] = {}

    def take(self, name: str) -> Claim | None:
        """The claim on a piece of work, or None where another process holds it.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        last = max((int(file.split(".")[1]) for file in os.listdir(self.folder) if _is_lease(file, name)), default=0)
        if last and not self._ownerless(f"{name}.{last}.lease"):
            return None
        path = self.folder / f"{name}.{last + 1}.lease"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "wb") as file:
            file.write(_identity() + b" 000000000000")
        return Claim(path, name, last + 1)

    def _ownerless(self, file: str) -> bool:
        content = (self.folder / file).read_bytes()
        now = time.monotonic()
        if content == _GIVEN_UP or _is_dead(content):
            return True
        before = self._seen.get(file)
        if before is None or before[0] != content:
            self._seen[file] = (content, now)
            return False
        return now - before[1] > PATIENCE


def _is_lease(file: str, name: str) -> bool:
    parts = file.split(".")
    return len(parts) == 3 and parts[0] == name and parts[2] == "lease" and parts[1].isdigit()


def _overwrite(path: Path, data: bytes) -> None:
    """New content of an existing file, which is never made anew."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _identity() -> bytes:
    """Machine, process and its start: tells whether the holder of a claim on this machine is still there."""
    return f"{_machine()} {os.getpid()} {_started(str(os.getpid()))}".encode()


def _is_dead(content: bytes) -> bool:
    parts = content.decode(errors="replace").split()
    if len(parts) != 4 or parts[0] != _machine() or parts[2] == "0":
        return False
    return _started(parts[1]) != parts[2]


def _machine() -> str:
    """Name of this machine, its boot and its space of process numbers, without blanks."""
    words = [socket.gethostname()]
    for read in (_boot, _pid_space):
        with suppress(OSError):
            words.append(read())
    return "/".join("".join(words[k].split()) for k in range(len(words)))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _pid_space() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: str) -> str:
    """When a process was started, in ticks; ``gone`` where there is none, 0 where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return "0"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone"
    return "gone" if fields[0] in "ZX" else fields[19]
