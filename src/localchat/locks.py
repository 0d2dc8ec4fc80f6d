"""An advisory lock between processes: one file, held by whoever has it locked, freed by the kernel when they die.

It knows nothing of what it protects. A lock that was left behind by a crash is no lock: only the hold counts, not the
file. Two `FileLock` objects exclude each other within one process too.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_S = 0.05


class FileLock:
    """A lock on `path`; the folder must exist, the file is made (0600) and stays.

    With `remove`, the file goes when the lock is released (where the system allows that), for locks that would
    otherwise litter a folder that people look at.
    """

    def __init__(self, path: Path, *, remove: bool = False) -> None:
        self.path = path
        self._remove = remove
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; without `blocking`, return False at once where somebody else holds it.

        Raises `OSError` where the file cannot be made, and `RuntimeError` where this object holds it already.
        """
        if self.held:
            raise RuntimeError(f"{self.path} is already locked by this object")
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                locked = _lock(descriptor, blocking)
            except BaseException:
                os.close(descriptor)
                raise
            if not locked:
                os.close(descriptor)
                return False
            # Whoever held it may have removed the file meanwhile: then this is a lock on a file nobody else will find.
            if _is_at(descriptor, self.path):
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if self._remove:
            # Windows does not remove an open file; it stays, which harms nobody.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        _unlock(descriptor)
        os.close(descriptor)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(descriptor: int, blocking: bool) -> bool:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except OSError:
                if not blocking:
                    return False
                time.sleep(_POLL_S)
            else:
                return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int, blocking: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
