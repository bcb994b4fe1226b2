"""What was paid for, on disk: the answers of an encoder by image content, and how many images and requests were sent.

A folder with ``log.json`` (which encoder, which width) and segments ``000000.log``, … that are only ever appended to. A segment is a
sequence of frames: a header (magic, kind, n, checksum), then for answers n rows of (key, embedding, checksum). A frame that a kill or a
power cut left unfinished is recognised and dropped, a row whose checksum is wrong is dropped alone; what is left is exact. Keys are in
memory, embeddings are not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evenhand.errors import DiskFullError, InputError, RunError
from evenhand.files import check_folder, disk_errors, locked, write_text

logger = logging.getLogger(__name__)

SCHEMA = "evenhand.paid/2"
SEGMENT_BYTES = 64 * 2**20
KEY_BYTES = 16
_CHECK_BYTES = 8
_MAGIC = b"EvPd"
_HEADER = struct.Struct("<4s4sQ8s")
_SEND, _BACK, _TOTAL, _ROWS = b"send", b"back", b"totl", b"rows"
_ASK, _UNASK, _ASKED = b"asks", b"unas", b"askd"


class ResponseLog:
    """Answers and counts that outlive the process; safe for several threads only under the caller's lock.

    Args:
        folder: made when absent.
        identity: what determines an answer besides the image; a folder belongs to one.
        dim: width of an embedding.
        durable: make every answer safe against a power cut before going on (fsync), not only against a kill.

    Attributes:
        n_sent: images sent so far and not taken back, earlier processes and requests without an answer included.
        n_requests: requests likewise; 0 for those of a folder from before requests were counted.

    Raises:
        RunError: another process has the folder open.
        InputError: the folder holds answers of another encoder, or cannot be written.
    """

    def __init__(self, folder: Path, identity: str, dim: int, durable: bool = True) -> None:
        self.folder, self.dim, self.durable = folder, dim, durable
        self.n_sent = self.n_requests = 0
        self._row = KEY_BYTES + 4 * dim + _CHECK_BYTES
        self._at: dict[bytes, int] = {}
        self._files: dict[int, FileIO] = {}
        self._stack = ExitStack()
        self._open_segment, self._end = -1, SEGMENT_BYTES
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._stack.enter_context(locked(folder / "lock", self._refuse))
            self._check_identity(identity)
            for segment in self._segments():
                self._read_segment(segment)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._at.clear()
        self._stack.close()

    def read(self, key: bytes) -> npt.NDArray[np.float32]:
        """The stored answer (dim,).

        Raises:
            RunError: it can no longer be read as it was written.
        """
        segment, offset = divmod(self._at[key], 2**40)
        row = _read(self._files[segment], offset, self._row)
        if len(row) != self._row or not self._is_whole(row) or row[:KEY_BYTES] != key:
            raise RunError(f"{self._path(segment)} has changed while it was open; restore it, or delete the folder and pay again")
        return np.frombuffer(row, "<f4", self.dim, KEY_BYTES).astype(np.float32)

    def sending(self, n: int) -> None:
        """Count n images before they are sent; a kill does not lose the count."""
        self._append(_SEND, n)
        self.n_sent += n

    def taken_back(self, n: int) -> None:
        """n of the images counted were not sent after all, or refused."""
        self._append(_BACK, n)
        self.n_sent -= n

    def requested(self, n: int) -> None:
        """Count n requests; below 0 take back so many, which were refused or never received."""
        if n:
            self._append(_ASK if n > 0 else _UNASK, abs(n))
            self.n_requests += n

    def answered(self, keys: Sequence[bytes], rows: npt.NDArray[np.float32]) -> None:
        """Keep answers (n, dim); on return they are safe.

        Raises:
            DiskFullError: no space is left; the answers are not kept.
        """
        values = np.ascontiguousarray(rows, dtype="<f4")
        parts = [key + row.tobytes() for key, row in zip(keys, values, strict=True)]
        start = self._append(_ROWS, len(keys), b"".join(part + _check(part) for part in parts))
        for i, key in enumerate(keys):
            self._at[key] = self._open_segment * 2**40 + start + i * self._row

    def check_space(self, n: int) -> None:
        """Make sure before paying that n more answers find space on the disk.

        Raises:
            DiskFullError: there is less; nothing was sent.
        """
        free, needed = shutil.disk_usage(self.folder).free, n * self._row + 2**16
        if free < needed:
            raise DiskFullError(f"{self.folder} has {free} bytes free, but answers to {n} images take {needed}; free some and go on")

    def forget(self) -> None:
        """Drop all answers; the counts of images and requests stay."""
        old = self._segments()
        self._open_segment, self._end = max(old, default=-1), SEGMENT_BYTES
        self._append(_TOTAL, self.n_sent)
        self._append(_ASKED, self.n_requests)
        os.fsync(self._files[self._open_segment].fileno())
        self._at.clear()
        for segment in old:
            if segment in self._files:
                self._files.pop(segment).close()
            self._path(segment).unlink()

    def _append(self, kind: bytes, n: int, payload: bytes = b"") -> int:
        """Write one frame, whole or not at all; where its payload begins."""
        if self._end >= SEGMENT_BYTES:
            self._begin_segment()
        file, path = self._files[self._open_segment], self._path(self._open_segment)
        head = _MAGIC + kind + struct.pack("<Q", n)
        frame = memoryview(head + _check(head) + payload)
        written = 0
        try:
            with disk_errors(path):
                file.seek(self._end)
                while written < len(frame):
                    written += file.write(frame[written:]) or 0
                if payload and self.durable:
                    os.fsync(file.fileno())
        except BaseException:
            file.truncate(self._end)
            raise
        start = self._end + _HEADER.size
        self._end += len(frame)
        return start

    def _begin_segment(self) -> None:
        self._open_segment = max(self._segments(), default=-1) + 1
        path = self._path(self._open_segment)
        with disk_errors(path):
            self._files[self._open_segment] = FileIO(path, "x+")
        self._end = 0
        if self.durable:
            _sync_folder(self.folder)

    def _read_segment(self, segment: int) -> None:
        """Index one segment; what follows an unfinished frame is left alone and never appended to."""
        file = self._files[segment] = FileIO(self._path(segment), "r+")
        size, position, n_bad = self._path(segment).stat().st_size, 0, 0
        for kind, n, start, end in self._frames(file, size):
            if kind == _TOTAL:
                self.n_sent = n
            elif kind == _ASKED:
                self.n_requests = n
            elif kind == _ROWS:
                n_bad += self._index_rows(segment, start, n)
            elif kind in (_ASK, _UNASK):
                self.n_requests += n if kind == _ASK else -n
            else:
                self.n_sent += n if kind == _SEND else -n
            position = end
        if position < size or n_bad:
            text = "%s: %d damaged rows and the last %d bytes, of a write that was cut off, are left out"
            logger.warning(text, self._path(segment).name, n_bad, size - position)
        self._open_segment, self._end = segment, position if position == size else SEGMENT_BYTES

    def _frames(self, file: FileIO, size: int) -> Iterator[tuple[bytes, int, int, int]]:
        position = 0
        while position + _HEADER.size <= size:
            head = _read(file, position, _HEADER.size)
            magic, kind, n, check = _HEADER.unpack(head)
            if magic != _MAGIC or check != _check(head[:-_CHECK_BYTES]):
                return
            start = position + _HEADER.size
            position = start + (n * self._row if kind == _ROWS else 0)
            if position > size:
                self._index_rows(max(self._files), start, (size - start) // self._row)
                return
            yield kind, n, start, position

    def _index_rows(self, segment: int, start: int, n: int) -> int:
        n_bad = 0
        for offset in range(start, start + n * self._row, self._row):
            row = _read(self._files[segment], offset, self._row)
            if self._is_whole(row):
                self._at[row[:KEY_BYTES]] = segment * 2**40 + offset
            else:
                n_bad += 1
        return n_bad

    @staticmethod
    def _is_whole(row: bytes) -> bool:
        return row[-_CHECK_BYTES:] == _check(row[:-_CHECK_BYTES])

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.log") if path.stem.isdigit())

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:06d}.log"

    def _refuse(self) -> None:
        raise RunError(f"{self.folder} is in use by another process; wait until it has ended, or choose another folder")

    def _check_identity(self, identity: str) -> None:
        path = self.folder / "log.json"
        mine = {"schema": SCHEMA, "encoder": identity, "dim": self.dim}
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_text(path, json.dumps(mine, indent=1, sort_keys=True) + "\n")
            return
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); restore it, or choose another folder") from error
        if said != mine:
            raise InputError(f"{self.folder} holds the answers of another encoder, version or width; choose another folder for this one")


def _read(file: FileIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    return file.read(n) or b""


def _check(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK_BYTES).digest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
