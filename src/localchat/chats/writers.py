"""Who is writing an answer: a small locked file beside the database, which the kernel frees when its program dies.

An answer in the database names the file of its writer. Where that can be locked by another, the writer is dead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from localchat.chats.database import Database, translated
from localchat.errors import ChatsError
from localchat.locks import FileLock


class Writers:
    """The program as a writer of answers, and what became of the others, as the database at `db` knows them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._folder = db.file.parent
        self._name = ""
        self._lock: FileLock | None = None

    def own(self) -> str:
        """The name under which this program writes. Raises `ChatsError` where its file cannot be made."""
        if not self._lock:
            name = f"writing-{os.getpid()}-{os.urandom(6).hex()}"
            lock = FileLock(self._folder / name, remove=True)
            try:
                lock.acquire()
            except OSError as error:
                raise translated(error, self._db.file) from error
            self._name, self._lock = name, lock
        return self._name

    def close(self) -> None:
        """Write no more: what is unfinished here has broken off."""
        if self._lock:
            with suppress(ChatsError):
                self._break_off([self._name])
            self._lock.release()
            self._lock = None

    def mend(self) -> None:
        """Mark the answers whose writer died as broken off. What cannot be written stays as it is."""
        with self._db.reading() as db:
            named = [name for (name,) in db.execute("SELECT DISTINCT writer FROM messages WHERE state = 'unfinished'")]
        if dead := [name for name in named if self._is_dead(name)]:
            with suppress(ChatsError):
                self._break_off(dead)

    def sweep(self) -> None:
        """Remove the files of dead writers whose answers were all finished."""
        for file in self._folder.glob("writing-*"):
            self._is_dead(file.name)

    def is_another(self, name: str | None) -> bool:
        """Whether the writer of that name lives, and is not this program."""
        return name != self._name and not self._is_dead(name)

    def _is_dead(self, name: str | None) -> bool:
        """Whether the writer of that name has ended; its file is then removed. False where that cannot be told."""
        if not name:
            return True
        lock = FileLock(self._folder / name, remove=True)
        with suppress(OSError):
            if lock.acquire(blocking=False):
                lock.release()
                return True
        return False

    def _break_off(self, names: Sequence[str | None]) -> None:
        with self._db.writing() as db:
            db.executemany(
                "UPDATE messages SET state = 'broken', writer = NULL WHERE state = 'unfinished' AND writer IS ?",
                [(name,) for name in names],
            )
