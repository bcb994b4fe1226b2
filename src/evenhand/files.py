"""Writing without leaving halves behind: atomic files, a lock between processes, and a full disk said plainly."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evenhand.errors import DiskFullError, InputError, RunError

FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space", "quota exceeded" and "file too large" into `DiskFullError`; other errors pass.

    Raises:
        DiskFullError: what was written inside the block did not fit on the disk that holds ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = os.strerror(error.errno or errno.ENOSPC).lower()
        raise DiskFullError(f"cannot write {path}: {reason}; free some space or choose another folder, and run it again") from error


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file completely or not at all: a temporary file in the same folder, synced, then renamed over the target.

    The folder is made where it is not there yet.

    Raises:
        DiskFullError: no space is left; the temporary file is removed and an older file of that name stays as it was.
        RunError: the file cannot be written for another reason (rights, a file where a folder should be).
    """
    path = Path(path)
    with _said(path), disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


def check_folder(path: str | os.PathLike[str]) -> None:
    """Make sure that a folder can be written before anything is computed; nothing stays behind.

    Raises:
        InputError: a file is in the way, or the place cannot be written to.
    """
    folder = Path(path)
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    made: list[Path] = []
    try:
        for part in reversed(absent):
            part.mkdir()
            made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else (error.strerror or str(error)).lower()
        raise InputError(f"{folder} cannot be written ({reason}); choose another output folder") from error
    finally:
        for part in reversed(made):
            part.rmdir()


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); choose another output folder") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as `write_atomic` writes bytes, line ends as they are; raises the same."""
    write_atomic(path, text.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: str | Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock between processes; a second one waits until the first ends, even by ``kill -9``.

    The operating system drops the lock with its process, so there are no stale locks. The file itself is removed at the
    end of the block. Where the platform has no ``fcntl`` (Windows) nothing is locked.

    Args:
        path: the lock file; its folder exists.
        waiting: called once when another process holds the lock; raise in it to give up.
    """
    if sys.platform == "win32":
        yield
        return
    path = Path(path)
    descriptor = _acquire(path, waiting)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _acquire(path: Path, waiting: Callable[[], None]) -> int:
    import fcntl

    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                if not told:
                    waiting()
                    told = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                raise
        # the holder before us removed the file it had locked: lock the one that is there now
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def find_file(path: str | Path, name: str, option: str, *, folder: str, file: str) -> Path:
    """The file that an option names: the path itself, or the file of that name in the folder.

    Args:
        path: what the option says.
        name: the file's name in a folder.
        option: the option, for errors.
        folder: what to give instead of a folder without it.
        file: what to give instead of what does not exist.

    Raises:
        InputError: neither; a folder of several seeds is told apart.
    """
    place = Path(path)
    if place.is_dir():
        if (place / name).is_file():
            return place / name
        seeds = sorted(item.parent.name for item in place.glob(f"seed=*/{name}"))
        hint = f"it has one a seed: name one, as {option}={place / seeds[0]}" if seeds else f"give {folder}"
        raise InputError(f"{option}={place} is a folder without {name}; {hint}")
    if not place.is_file():
        raise InputError(f"{option}={place} does not exist; give {file}")
    return place


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` at the end of the block, or is gone after an error.

    Raises:
        InputError: ``out`` is a file, or not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} is not empty; give an empty or a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield scratch
        if out.exists():
            out.rmdir()
        scratch.rename(out)
        out.chmod(0o755)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
