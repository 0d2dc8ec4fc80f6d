"""The file of the conversations: opened privately, written durably, and every failure of SQLite as one of our errors.

Knows SQLite and the file system, and nothing of what is kept. One `Database` belongs to one thread.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from localchat.chats import schema
from localchat.errors import (
    ChatsDamaged,
    ChatsDiskFull,
    ChatsError,
    ChatsLocked,
    ChatsReadOnly,
    LocalchatError,
)
from localchat.paths import private_folder

PATIENCE_S = 5.0
"""How long a statement waits for another program that writes, seconds."""

FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite's calls raise. Its messages quote a damaged file, and where that is no text, Python says so instead."""

_SCANT = 1 << 16
"""Free bytes below which a disk counts as full: less than a transaction may need."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SETUP = (
    "PRAGMA journal_mode = TRUNCATE",  # not WAL: several versions of SQLite can damage a WAL database that two write to
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS: to the disk, not to its cache
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",  # no words of a chat in /tmp
)


class Database:
    """One connection to the file at `file`, which is made if need be, with the tables of today.

    Raises the kinds of `ChatsError`, here and from both context managers.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._depth = 0
        self._connection = self._open()

    def close(self) -> None:
        """Close the file; nothing can be read or written afterwards."""
        with suppress(sqlite3.Error):
            self._connection.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block ends, or nothing of it where that failed. May be nested."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """What is read in the block is one state of the file, whatever others write meanwhile. May be nested."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        if self._depth:
            yield self._connection
            return
        try:
            connection = self._begin(begin)
            self._depth += 1
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                self._depth -= 1
                if connection.in_transaction:
                    with suppress(*FAULTS):
                        connection.execute("ROLLBACK")
        except FAULTS as error:
            raise translated(error, self.file) from error

    def _begin(self, begin: str) -> sqlite3.Connection:
        """Begin a transaction on the file that has the name now: a backup may have been put into its place.

        That may also have happened while this waited for the lock.
        """
        while True:
            if not self._is_in_place():
                self._connection.close()
                self._connection = self._open()
            self._connection.execute(begin)
            if self._is_in_place():
                return self._connection
            self._connection.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        try:
            private_folder(self.file.parent)
        except LocalchatError as error:
            raise ChatsReadOnly(error.message) from error
        try:
            make_private(self.file)
            connection = connect(self.file)
            try:
                for statement in _SETUP:
                    connection.execute(statement)
                schema.prepare(connection, self.file)
                status = self.file.stat()
            except BaseException:
                connection.close()
                raise
        except (*FAULTS, OSError) as error:
            raise translated(error, self.file) from error
        self._identity = (status.st_dev, status.st_ino)
        return connection

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one of that name."""
        try:
            status = self.file.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity


def connect(file: Path) -> sqlite3.Connection:
    """A bare connection that begins and ends no transaction by itself, with the function that the index needs."""
    connection = sqlite3.connect(file, timeout=PATIENCE_S, isolation_level=None)
    connection.create_function("spaced", 1, schema.spaced, deterministic=True)
    return connection


def make_private(file: Path) -> None:
    """Make `file`, if need be, so that only this user can read it (0600) whatever the umask. Raises `OSError`.

    SQLite gives the files that it puts beside it the same mode. One that is there is not opened: closing it again
    would release the locks that another connection of this process holds.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        with suppress(FileExistsError):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(descriptor, 0o600)
            os.close(descriptor)
    else:
        if mode & 0o077:
            with suppress(OSError):
                file.chmod(mode & 0o700)


def translated(error: sqlite3.Error | UnicodeDecodeError | OSError, file: Path) -> ChatsError:
    """The error for the person; whoever wrote a wrong statement gets his own back."""
    if isinstance(error, UnicodeDecodeError):
        return _damaged(file)
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return _disk_full(file)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _read_only(file)
        return ChatsError(f"cannot use {file} ({error.strerror}): check the disk it lies on")
    # Extended codes carry the plain one in their lowest byte. What Python itself finds has no code: text that is none.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        if isinstance(error, sqlite3.OperationalError):
            return _damaged(file)
        raise error
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and _is_full(file.parent):
        return _disk_full(file)  # SQLite does not say why it could not make its journal
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return ChatsLocked(f"another program holds {file}: wait until it is done, or end it, and try again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return _read_only(file)
        case sqlite3.SQLITE_FULL:
            return _disk_full(file)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(file)
        case sqlite3.SQLITE_IOERR:
            return ChatsError(f"the disk failed to read or write {file}: check its health and free space")
    return ChatsError(f"cannot use {file} ({error}): `localchat chats repair` may help")


def _is_full(folder: Path) -> bool:
    import shutil

    with suppress(OSError):
        return shutil.disk_usage(folder)[2] < _SCANT
    return False


def _disk_full(file: Path) -> ChatsDiskFull:
    return ChatsDiskFull(f"the disk of {file.parent} is full: make room, and what is not kept yet will be")


def _read_only(file: Path) -> ChatsReadOnly:
    return ChatsReadOnly(f"{file} cannot be written: make it and its folder writable for you")


def _damaged(file: Path) -> ChatsDamaged:
    return ChatsDamaged(f"{file} is damaged: `localchat chats repair` brings back what can be read and the last backup")
