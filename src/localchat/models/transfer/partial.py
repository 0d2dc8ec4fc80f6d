"""A file on its way: the bytes so far, the promise they must keep, and the disk they need.

Beside `file.gguf.partial`, which may have holes, lies a small JSON file that pins size and sha256, so that a later run,
or another source of the same file, can go on, and a journal of the units that were written. After a crash no counter is
trusted: each unit on the disk is hashed again. A partial is never deleted for being old; bytes with the wrong hash are
set aside as `file.gguf.damaged`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localchat.errors import FetchError, Interrupted
from localchat.models.transfer.front_hash import FrontHash
from localchat.models.transfer.journal import Journal, Unit
from localchat.models.transfer.progress import STOPPED
from localchat.models.transfer.spans import Span, Spans
from localchat.models.transfer.sparse_file import SparseFile
from localchat.safe_text import safe_line

if TYPE_CHECKING:
    from concurrent.futures import Future

MARGIN = 64 << 20
"""Bytes that stay free on the disk, for the system and the person's own files."""
UNIT = 512 << 10
"""Bytes of a full unit in the journal: what a connection holds in memory, and loses when the process is killed."""

_CHECKERS = 4
_AHEAD = 2 * _CHECKERS
_POLL_S = 0.05


class Pin(msgspec.Struct, frozen=True):
    """What the finished file must be. `revision` is the hub's commit, where there is one.

    Where nobody promised a `sha256`, it is empty, and any bytes of that size will do.
    """

    sha256: str
    size: int
    revision: str = ""


class _Sidecar(msgspec.Struct, frozen=True):
    sha256: str
    size: int
    revision: str = ""
    url: str = ""
    etag: str = ""
    journal: bool = False
    """Whether the partial may have holes; one of localchat 0.1 has none, and no journal."""


class Partial:
    """The partial of one file, open for writing. Its lock is held by the caller.

    `write` and `from_now_on` may be called by several threads, everything else by one while nobody writes. Every
    method raises `FetchError` where the disk is full or cannot be written.
    """

    def __init__(self, path: Path, pin: Pin) -> None:
        self.final = path
        self.path = path.with_name(path.name + ".partial")
        self.pin = pin
        self._sidecar = path.with_name(path.name + ".partial.json")
        self._journal = Journal(path.with_name(path.name + ".partial.journal"))
        self._file: SparseFile | None = None
        self._hash: FrontHash | None = None
        self._spans = Spans()
        self._lock = threading.Lock()
        self._url = self._etag = ""
        self._unchecked = 0

    @property
    def done(self) -> int:
        """How many bytes are there."""
        return self._spans.total

    @property
    def front(self) -> int:
        """How many bytes are there from the beginning without a gap."""
        return self._spans.front

    @property
    def missing(self) -> list[Span]:
        """What is not there yet, in the order of the file."""
        return self._spans.missing(self.pin.size)

    @property
    def complete(self) -> bool:
        """Whether all bytes are there (whether they are right, `matches` says)."""
        return self.done == self.pin.size

    @property
    def sha256(self) -> str:
        """The sha256 of all bytes, once they are there; waits until they are hashed."""
        while not self.hashed(_POLL_S):
            pass
        return self._open_hash.hexdigest()

    @property
    def matches(self) -> bool:
        """Whether the bytes, once they are there, have the pinned sha256; waits until they are hashed."""
        return self.sha256 == (self.pin.sha256 or self.sha256)

    def hashed(self, seconds: float) -> bool:
        """Whether all bytes without a gap before them are hashed, waited for."""
        with disk_errors(self.final.parent):
            return self._open_hash.wait(self.front, seconds)

    def open(self, on_hashed: Callable[[int], None], cancelled: Callable[[], bool] | None) -> None:
        """Open the file and hash what an earlier run left, if it was for the same size and sha256.

        Raises `Interrupted`; then nothing was changed.
        """
        with disk_errors(self.final.parent):
            self._file = SparseFile(self.path)
            self._hash = FrontHash(self._file)
            known, size = self._read_sidecar(), self._file.size
            if known is None or (known.sha256, known.size) != (self.pin.sha256, self.pin.size) or size > known.size:
                self.restart()
            else:
                self._url, self._etag = known.url, known.etag
                units = self._journal.read(known.size) if known.journal else _plain(size)
                self._journal.begin(self._recheck(units, on_hashed, cancelled))
                self._write_sidecar()
                self._hash.follow(self.front)
            self._check_room()

    def restart(self) -> None:
        """Throw the bytes away and begin anew."""
        with disk_errors(self.final.parent):
            # In this order, so that no crash leaves bytes of one file under the pin of another.
            self._journal.begin()
            self._open_hash.close()
            self._open_file.truncate(0)
            self._hash = FrontHash(self._open_file)
            self._spans = Spans()
            self._url = self._etag = ""
            self._write_sidecar()

    def cut(self) -> None:
        """Keep only what has no gap before it. (What the journal says of the rest will not be believed.)"""
        with disk_errors(self.final.parent):
            front = self.front
            self._open_file.truncate(front)
            self._spans = Spans()
            if front:
                self._spans.add(0, front)

    def etag_for(self, url: str) -> str:
        """The entity tag under which this address sent the bytes so far, or nothing."""
        return self._etag if self._url == url else ""

    def from_now_on(self, url: str, etag: str) -> None:
        """Remember which address sends the bytes, and under which entity tag."""
        with self._lock:
            if (url, etag) != (self._url, self._etag):
                self._url, self._etag = url, etag
                self._write_sidecar()

    def write(self, start: int, data: bytes) -> None:
        """Put bytes in their place and note them in the journal."""
        digest = hashlib.sha256(data).hexdigest()
        with disk_errors(self.final.parent):
            self._open_file.write_at(start, data)
            with self._lock:
                self._journal.add(Unit(start, len(data), digest))
                self._spans.add(start, start + len(data))
                self._open_hash.follow(self._spans.front)
                self._unchecked += len(data)
                if self._unchecked >= MARGIN // 2:
                    self._check_room()

    def quarantine(self) -> None:
        """Set the wrong bytes aside, where a person can look at them, and begin anew."""
        with disk_errors(self.final.parent):
            self._journal.begin()
            self.close()
            self.path.replace(self.damaged)
            self._file = SparseFile(self.path)
            self._hash = FrontHash(self._file)
        self.restart()

    @property
    def damaged(self) -> Path:
        """Where bytes with the wrong hash are kept."""
        return self.final.with_name(self.final.name + ".damaged")

    def close(self) -> None:
        """Close the file; it stays for another time."""
        if self._hash:
            self._hash.close()
        if self._file:
            self._file.close()
        self._journal.close()

    def discard(self) -> None:
        """Remove all traces, once the file itself is in its place."""
        self.close()
        for path in (self.path, self._sidecar, self._journal.path, self.damaged):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _open_file(self) -> SparseFile:
        if self._file is None:
            raise RuntimeError("the partial is not open")
        return self._file

    @property
    def _open_hash(self) -> FrontHash:
        if self._hash is None:
            raise RuntimeError("the partial is not open")
        return self._hash

    def _recheck(
        self, units: list[Unit], on_hashed: Callable[[int], None], cancelled: Callable[[], bool] | None
    ) -> list[Unit]:
        """The units whose bytes are on the disk as the journal says, hashed by several threads.

        The file's own hash takes those without a gap before them from memory on the way.
        """
        from concurrent.futures import ThreadPoolExecutor  # 10 ms that those who fetch nothing need not wait for

        kept: list[Unit] = []
        rest = iter(units)
        waiting: deque[Future[tuple[Unit, bytes] | None]] = deque()
        with ThreadPoolExecutor(_CHECKERS, "localchat-check") as pool:
            while True:
                # Only a few are read ahead, as their bytes wait in memory.
                while len(waiting) < _AHEAD and (unit := next(rest, None)):
                    waiting.append(pool.submit(self._read_unit, unit))
                if not waiting:
                    return kept
                if found := waiting.popleft().result():
                    unit, data = found
                    kept.append(unit)
                    self._spans.add(unit.start, unit.end)
                    if unit.start <= self._open_hash.done < unit.end:
                        self._open_hash.feed(memoryview(data)[self._open_hash.done - unit.start :])
                    on_hashed(self.done)
                if cancelled and cancelled():
                    raise Interrupted(STOPPED)

    def _read_unit(self, unit: Unit) -> tuple[Unit, bytes] | None:
        """A unit with the hash that it has on the disk, and its bytes; None where that is another hash than noted."""
        data = self._open_file.read_at(unit.start, unit.length)
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) != unit.length or sha256 != (unit.sha256 or sha256):
            return None
        return unit._replace(sha256=sha256), data

    def _check_room(self) -> None:
        self._unchecked = 0
        check_room(self.final.parent, self.pin.size - self.done)

    def _read_sidecar(self) -> _Sidecar | None:
        try:
            return msgspec.json.decode(self._sidecar.read_bytes(), type=_Sidecar)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _write_sidecar(self) -> None:
        known = _Sidecar(self.pin.sha256, self.pin.size, self.pin.revision, self._url, self._etag, journal=True)
        temporary = self._sidecar.with_name(self._sidecar.name + ".new")
        with disk_errors(self.final.parent):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(known))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(self._sidecar)


def _plain(size: int) -> list[Unit]:
    """The units of a partial without a journal, as localchat 0.1 left it: without a gap, and nothing known of them."""
    return [Unit(start, min(UNIT, size - start)) for start in range(0, size, UNIT)]


def check_room(folder: Path, needed: int) -> None:
    """Raise `FetchError` where `needed` more bytes and a margin do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed and free < needed + MARGIN:
        needs = f"{_megabytes(needed)} and {_megabytes(MARGIN)} to spare"
        raise _no_room(folder, f"{needs} are needed, {_megabytes(free)} are free")


def _no_room(folder: Path, detail: str) -> FetchError:
    return FetchError(
        f"the disk of {safe_line(str(folder))} is full ({detail}): make room, or move localchat's files to another "
        "disk with LOCALCHAT_HOME"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk can refuse into a `FetchError` of one sentence; wraps writing to `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG):
            raise _no_room(folder, error.strerror or "no space left") from error
        raise FetchError(
            f"cannot write to {safe_line(str(folder))} ({error.strerror}): make it writable, or move localchat's files "
            "elsewhere with LOCALCHAT_HOME"
        ) from error
