"""A file on its way: the bytes so far, the promise they must keep, and the disk they need.

Beside `file.gguf.partial` lies a small JSON file that pins size and sha256, so that a later run, or another source of
the same file, can go on. After a crash no counter is trusted: what is on disk is hashed again. A partial is never
deleted for being old; bytes with the wrong hash are set aside as `file.gguf.damaged`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from localchat.errors import FetchError, Interrupted
from localchat.safe_text import safe_line

MARGIN = 64 << 20
"""Bytes that stay free on the disk, for the system and the person's own files."""
_CHUNK = 1 << 20


class Pin(msgspec.Struct, frozen=True):
    """What the finished file must be. `revision` is the hub's commit, where there is one."""

    sha256: str
    size: int
    revision: str = ""


class _Sidecar(msgspec.Struct, frozen=True):
    sha256: str
    size: int
    revision: str = ""
    url: str = ""
    etag: str = ""


class Partial:
    """The partial of one file, open for appending. Its lock is held by the caller.

    Every method raises `FetchError` where the disk is full or cannot be written.
    """

    def __init__(self, path: Path, pin: Pin) -> None:
        self.final = path
        self.path = path.with_name(path.name + ".partial")
        self.pin = pin
        self.done = 0
        self._url = self._etag = ""
        self._sidecar = path.with_name(path.name + ".partial.json")
        self._digest = hashlib.sha256()
        self._descriptor = -1
        self._unchecked = 0

    @property
    def complete(self) -> bool:
        """Whether all bytes are there (whether they are right, `matches` says)."""
        return self.done == self.pin.size

    @property
    def matches(self) -> bool:
        """Whether the bytes have the pinned sha256."""
        return self._digest.hexdigest() == self.pin.sha256

    def open(self, on_hashed: Callable[[int], None], cancelled: Callable[[], bool] | None) -> None:
        """Open the file and hash what an earlier run left, if it was for the same size and sha256."""
        with disk_errors(self.final.parent):
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(self.path, flags, 0o600)
            size = os.fstat(self._descriptor).st_size
            known = self._read_sidecar()
            if known is None or (known.sha256, known.size) != (self.pin.sha256, self.pin.size) or size > known.size:
                self.restart()
            else:
                self._url, self._etag = known.url, known.etag
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                while chunk := os.read(self._descriptor, _CHUNK):
                    self._digest.update(chunk)
                    self.done += len(chunk)
                    on_hashed(self.done)
                    if cancelled and cancelled():
                        raise Interrupted(
                            "stopped: what was fetched so far is kept, and asking again goes on from there"
                        )
            self._check_room()

    def restart(self) -> None:
        """Throw the bytes away and begin anew."""
        with disk_errors(self.final.parent):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.done = 0
        self._digest = hashlib.sha256()
        self._url = self._etag = ""
        self._write_sidecar()

    def etag_for(self, url: str) -> str:
        """The entity tag under which this address sent the bytes so far, or nothing."""
        return self._etag if self._url == url else ""

    def from_now_on(self, url: str, etag: str) -> None:
        """Remember which address sends the bytes, and under which entity tag."""
        if (url, etag) != (self._url, self._etag):
            self._url, self._etag = url, etag
            self._write_sidecar()

    def append(self, chunk: bytes) -> None:
        """Add bytes; what goes beyond the pinned size is left out."""
        chunk = chunk[: self.pin.size - self.done]
        with disk_errors(self.final.parent):
            left = memoryview(chunk)
            while left:
                left = left[os.write(self._descriptor, left) :]
        self._digest.update(chunk)
        self.done += len(chunk)
        self._unchecked += len(chunk)
        if self._unchecked >= MARGIN // 2:
            self._check_room()

    def quarantine(self) -> None:
        """Set the wrong bytes aside, where a person can look at them, and begin anew."""
        with disk_errors(self.final.parent):
            self.close()
            self.path.replace(self.damaged)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self.restart()

    @property
    def damaged(self) -> Path:
        """Where bytes with the wrong hash are kept."""
        return self.final.with_name(self.final.name + ".damaged")

    def close(self) -> None:
        """Close the file; it stays for another time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Remove all traces, once the file itself is in its place."""
        self.close()
        for path in (self.path, self._sidecar, self.damaged):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        self._unchecked = 0
        check_room(self.final.parent, self.pin.size - self.done)

    def _read_sidecar(self) -> _Sidecar | None:
        try:
            return msgspec.json.decode(self._sidecar.read_bytes(), type=_Sidecar)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _write_sidecar(self) -> None:
        known = _Sidecar(self.pin.sha256, self.pin.size, self.pin.revision, self._url, self._etag)
        temporary = self._sidecar.with_name(self._sidecar.name + ".new")
        with disk_errors(self.final.parent):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(known))
            finally:
                os.close(descriptor)
            temporary.replace(self._sidecar)


def check_room(folder: Path, needed: int) -> None:
    """Raise `FetchError` where `needed` more bytes and a margin do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed and free < needed + MARGIN:
        raise _no_room(folder, f"{_megabytes(needed + MARGIN)} are needed and {_megabytes(free)} are free")


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
