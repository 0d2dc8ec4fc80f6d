"""Copies of the conversations, and the way back when their file is damaged.

Two daily copies lie beside the database, and one from before each change of its layout. Nothing here deletes a damaged
file: it is moved aside.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from localchat.chats.database import FAULTS, Database, connect, make_private, translated
from localchat.chats.salvage import salvage
from localchat.errors import ChatsDamaged
from localchat.locks import FileLock
from localchat.paths import paths, sync_folder

_EVERY_S = 86400.0
_PAGES = 256
_INSTRUCTIONS = 10_000
"""How much is copied, and how much of the copy is checked, before it is asked whether somebody waits."""


class Backup(msgspec.Struct, frozen=True):
    """A copy of the whole database: where it lies, when it was made, and how many chats are in it."""

    path: Path
    made: float
    chats: int


class Restored(msgspec.Struct, frozen=True):
    """What a restoration did: where the damaged file lies now, and how many messages came from it beyond the backup."""

    aside: Path
    messages: int


class _Wanted(Exception):
    """The copy has to wait: somebody wants to read or write."""


def backups(file: Path | None = None) -> list[Backup]:
    """The copies that can be read, the newest first."""
    file = file or paths().chats
    found = []
    for path in file.parent.glob(f"{file.name}.*backup*"):
        with suppress(*FAULTS, OSError):
            if re.search(r"\.(v\d+-)?backup(-2)?$", path.name):
                with closing(_reading(path)) as db:
                    (chats,) = db.execute("SELECT count(*) FROM chats WHERE deleted IS NULL").fetchone()
                found.append(Backup(path, path.stat().st_mtime, chats))
    return sorted(found, key=lambda backup: backup.made, reverse=True)


def keep_daily(file: Path, wanted: Callable[[], bool]) -> bool:
    """Copy the database once a day, keep the copy before too; False: `wanted` asked to stop, so come again.

    The copy is checked, so that a damaged file never takes the place of a good one. Raises `ChatsDamaged` where it is.
    """
    newest, before = file.with_name(f"{file.name}.backup"), file.with_name(f"{file.name}.backup-2")
    try:
        if _is_recent(newest):
            return True
        lock = FileLock(file.with_name(f"{file.name}.backup-lock"), remove=True)
        if not lock.acquire(blocking=False):
            return True  # another program is at it
        try:
            with closing(_reading(file)) as source:
                # A copy of nothing would count for a day, and that is the day of the first chats.
                if source.execute("SELECT 1 FROM chats LIMIT 1").fetchone():
                    write_copy(source, newest, wanted, before=before)
        finally:
            lock.release()
    except _Wanted:
        return False
    except (*FAULTS, OSError) as error:
        raise translated(error, file) from error
    return True


def write_copy(
    source: sqlite3.Connection,
    copy: Path,
    wanted: Callable[[], bool] = lambda: False,
    *,
    before: Path | None = None,
) -> None:
    """Write what `source` holds to `copy`, whole and checked when it is there; what was there moves to `before`.

    Raises `FAULTS`, `OSError`, and `ChatsDamaged` where the check finds that the source is.
    """

    def ask(*_: int) -> None:
        if wanted():
            raise _Wanted

    unfinished = _partial(copy)
    try:
        make_private(unfinished)
        with closing(connect(unfinished)) as target:
            source.backup(target, pages=_PAGES, progress=ask)
            target.set_progress_handler(wanted, _INSTRUCTIONS)
            try:
                answer = target.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if wanted():
                    raise _Wanted from error
                raise
        if answer != "ok":
            raise ChatsDamaged("the chats are damaged: `localchat chats repair` brings back what can be read")
        if before and copy.exists():
            copy.replace(before)
        unfinished.replace(copy)
        sync_folder(copy.parent)
    finally:
        unfinished.unlink(missing_ok=True)
        unfinished.with_name(f"{unfinished.name}-journal").unlink(missing_ok=True)


def check(file: Path | None = None) -> None:
    """Read the whole file. Raises `ChatsDamaged` where it is not what SQLite wrote, and other kinds of `ChatsError`."""
    with closing(Database(file or paths().chats)) as database, database.writing() as db:
        for index in ("words", "titles"):
            db.execute(f"INSERT INTO {index} ({index}) VALUES ('integrity-check')")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise ChatsDamaged(f"{database.file} is damaged: `localchat chats repair` brings back what can be read")


def restore(backup: Backup | None, file: Path | None = None) -> Restored:
    """Put a backup (None: an empty file) in the place of the damaged file, with what can still be read from that.

    The damaged file is moved aside; other programs that have it open go on with the new one. Raises `ChatsError`.
    """
    file = file or paths().chats
    aside = file.with_name(f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    prepared = _partial(file)
    try:
        with FileLock(file.with_name(f"{file.name}.restore-lock"), remove=True):
            make_private(prepared)
            if backup:
                with closing(_reading(backup.path)) as source, closing(connect(prepared)) as target:
                    source.backup(target)
            Database(prepared).close()  # brings an older layout up to today's
            with closing(connect(file)) as damaged:
                # Nobody shall write to a file that is about to go, where it still lets itself be locked.
                with suppress(*FAULTS):
                    damaged.execute("BEGIN IMMEDIATE")
                messages = salvage(damaged, prepared)
                _exchange(file, aside, prepared)
    except (*FAULTS, OSError) as error:
        raise translated(error, file) from error
    finally:
        for stray in prepared.parent.glob(f"{prepared.name}*"):
            stray.unlink(missing_ok=True)
    return Restored(aside, messages)


def _exchange(file: Path, aside: Path, prepared: Path) -> None:
    """Put `prepared` in the place of `file` at once, so that no program finds none and begins an empty one."""
    journal, journal_aside = file.with_name(f"{file.name}-journal"), aside.with_name(f"{aside.name}-journal")
    moved: list[tuple[Path, Path]] = []
    try:
        try:
            os.link(file, aside)
        except OSError:  # a file system without hard links
            file.rename(aside)
            moved.append((aside, file))
        # A journal left here would be played into the new file.
        if journal.exists():
            journal.rename(journal_aside)
            moved.append((journal_aside, journal))
        prepared.replace(file)
    except OSError:
        for there, here in moved:
            there.rename(here)
        raise
    sync_folder(file.parent)


def _reading(file: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _is_recent(copy: Path) -> bool:
    """Whether the copy was made within a day. A clock that was set back makes no copy wait for years."""
    try:
        return abs(time.time() - copy.stat().st_mtime) < _EVERY_S
    except FileNotFoundError:
        return False


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.{os.urandom(4).hex()}.partial")
