"""Who is writing an answer: a small locked file beside the database, which the kernel frees when its program dies.

An answer in the database names the file of its writer. Where that can be locked by another, the writer is dead.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from localchat.locks import FileLock


class Writer:
    """The program as a writer of answers, until `close`. Raises `OSError` where the file cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.name = f"writing-{os.getpid()}-{os.urandom(6).hex()}"
        self._lock = FileLock(folder / self.name, remove=True)
        self._lock.acquire()

    def close(self) -> None:
        """Write no more: whatever still names this writer was left behind by it."""
        self._lock.release()


def is_dead(folder: Path, name: str | None) -> bool:
    """Whether the writer of that name has ended; its file is then removed. False where that cannot be told."""
    if not name:
        return True
    lock = FileLock(folder / name, remove=True)
    with suppress(OSError):
        if lock.acquire(blocking=False):
            lock.release()
            return True
    return False


def sweep(folder: Path) -> None:
    """Remove the files of dead writers whose answers were all finished."""
    for file in folder.glob("writing-*"):
        is_dead(folder, file.name)
