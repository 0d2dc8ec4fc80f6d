"""Answers of a batch while it is not finished: what was answered once is not asked again after a kill.

A shell's `> answers.jsonl` empties the file when the same command is given again, so answers are kept here, by what was
asked: a line's number, id and place do not matter. A batch that was finished leaves nothing: whoever gives the same
command later wants new answers.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from localchat.errors import LocalchatError
from localchat.locks import FileLock
from localchat.paths import paths, private_folder

KEPT_DAYS = 30
_FILE = "answers.db"
_RUNS = "run-"
_PATIENCE_S = 5.0
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, run TEXT NOT NULL, line INTEGER NOT NULL, kept REAL NOT NULL,
    answer BLOB NOT NULL
);
DROP INDEX IF EXISTS by_key;
CREATE INDEX IF NOT EXISTS by_question ON answers (key, line);
CREATE INDEX IF NOT EXISTS by_run ON answers (run);
"""
_TEMPORARY = """
CREATE TEMP TABLE dead (name TEXT PRIMARY KEY);
INSERT INTO temp.dead VALUES ('');
CREATE TEMP TABLE taken (id INTEGER PRIMARY KEY);
CREATE TEMP TABLE missed (key BLOB NOT NULL, line INTEGER NOT NULL);
"""
"""What one run knows: whose answers it may take (no run's: those that were brought), which it has taken, and for which
questions it could not look, as the file was lost.
"""

_SETUP = (
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA journal_mode = TRUNCATE",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA temp_store = MEMORY",
)


class Journal:
    """The kept answers, as one run sees and adds to them; of one thread. Trouble with the disk is said once to `say`.

    `keeps` false: nothing is read or written on disk. Each run holds a lock of its own while it lives, and takes only
    answers of runs that are dead: of two batches at once, none takes the other's.
    """

    def __init__(self, say: Callable[[str], object], *, keeps: bool) -> None:
        self.keeps = keeps
        self._say = say
        self._run = f"{_RUNS}{os.getpid()}-{os.urandom(6).hex()}"
        self._lock: FileLock | None = None
        self._is_lost = False
        self._taken_before: list[tuple[int]] = []
        self._db = (self._open() if keeps else None) or _connect(":memory:")

    def take(self, key: bytes, line: int) -> bytes | None:
        """An answer that was kept for `key` and that no line has had yet: rather this line's than another's."""
        return self._take(*_searches(key, line))

    def pass_over(self, key: bytes, line: int, answer: bytes) -> None:
        """Such an answer is printed already: no line may have it, and it goes once all is answered."""
        self._take(("key = ? AND line = ? AND answer = ?", key, line, answer))

    def keep(self, key: bytes, line: int, answer: bytes) -> None:
        """Keep an answer of this run; it is on disk after `save`."""
        if self.keeps:
            try:
                self._insert(key, line, answer, self._run)
            except sqlite3.Error as error:
                self._lose(error)

    def save(self) -> None:
        """Have on disk what was kept."""
        try:
            self._db.commit()
        except sqlite3.Error as error:
            self._lose(error)

    def bring(self, answers: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Take in answers (key, line, answer) that stood elsewhere, for lines to come; they are on disk at once.

        Raises `LocalchatError` where that cannot be: the place that they come from must not be given up then.
        """
        try:
            for key, line, answer in answers:
                if not self._free("key = ? AND line = ? AND answer = ?", key, line, answer):
                    self._insert(key, line, answer, "")
            self._db.commit()
        except sqlite3.Error as error:
            raise LocalchatError(f"the answers so far cannot be kept ({error}): make room on the disk") from error

    def close(self, *, finished: bool) -> None:
        """End the run; `finished`: all was answered and has left, so its answers are removed."""
        try:
            if finished and self._is_lost:
                self._find_again()
            if finished:
                self._db.execute("DELETE FROM answers WHERE run = ? OR id IN (SELECT id FROM temp.taken)", (self._run,))
            self._db.commit()
        except (OSError, sqlite3.Error) as error:
            if finished:
                self._say(
                    f"what was kept of this run cannot be removed ({error}), and the same command would print it "
                    "again: `localchat prune` removes it"
                )
        with suppress(sqlite3.Error):
            self._db.close()
        if self._lock:
            self._lock.release()
            self._lock = None

    def _take(self, *searches: tuple[Any, ...]) -> bytes | None:
        """The first answer that one of the searches (as `_free` has them) finds; from now on it is taken."""
        try:
            row = self._mark(*searches)
            self._db.commit()
        except sqlite3.Error as error:
            self._lose(error)
            row = None
        if self._is_lost and not row:
            with suppress(sqlite3.Error):
                self._db.execute("INSERT INTO temp.missed VALUES (?, ?)", searches[0][1:3])
        return bytes(row[1]) if row else None

    def _mark(self, *searches: tuple[Any, ...]) -> tuple[int, bytes] | None:
        row = next(filter(None, (self._free(*search) for search in searches)), None)
        if row:
            self._db.execute("INSERT INTO temp.taken VALUES (?)", row[:1])
        return row

    def _free(self, where: str, *values: object) -> tuple[int, bytes] | None:
        """Id and content of the first such answer that this run may take and has not taken."""
        row: tuple[int, bytes] | None = self._db.execute(
            f"SELECT id, answer FROM answers WHERE {where} AND run IN (SELECT name FROM temp.dead) "
            "AND id NOT IN (SELECT id FROM temp.taken) ORDER BY id LIMIT 1",
            values,
        ).fetchone()
        return row

    def _insert(self, key: bytes, line: int, answer: bytes, run: str) -> None:
        self._db.execute(
            "INSERT INTO answers (key, run, line, kept, answer) VALUES (?, ?, ?, ?, ?)",
            (key, run, line, time.time(), answer),
        )

    def _lose(self, error: sqlite3.Error) -> None:
        """Go on without the disk: what has been kept stays, what comes is not kept."""
        self._say(f"answers are not kept from here on ({error}): a run that is broken off cannot go on from here")
        with suppress(sqlite3.Error):
            self._db.rollback()
            if not self._is_lost:
                self._taken_before = self._db.execute("SELECT id FROM temp.taken").fetchall()
        with suppress(sqlite3.Error):
            self._db.close()
        self.keeps, self._is_lost = False, True
        self._db = _connect(":memory:")

    def _find_again(self) -> None:
        """Go back to the file that was lost, with all marked as taken that this run took of it, or would have taken.

        Whoever gives the same command later wants new answers, also to what had to be asked again. Raises
        `sqlite3.Error`, `OSError`.
        """
        file = paths().batches / _FILE
        if not file.is_file():
            return
        with closing(self._db) as memory:
            self._db = self._begun(_connect(str(file)))
            self._db.executemany(
                "INSERT INTO temp.taken SELECT id FROM answers WHERE id = ? AND run IN (SELECT name FROM temp.dead)",
                self._taken_before,
            )
            for key, line in memory.execute("SELECT key, line FROM temp.missed"):
                self._mark(*_searches(key, line))

    def _open(self) -> sqlite3.Connection | None:
        """The file, with old answers removed; None where there cannot be one. A damaged file is begun anew."""
        try:
            folder = private_folder(paths().batches)
            self._lock = FileLock(folder / self._run, remove=True)
            self._lock.acquire()
            file = folder / _FILE
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            try:
                return self._begun(_connect(str(file)))
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._say(f"{file} is damaged ({error}) and begun anew: what was kept of batches is lost")
                file.unlink()
                os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
                return self._begun(_connect(str(file)))
        except (OSError, sqlite3.Error, LocalchatError) as error:
            self._say(f"answers cannot be kept ({error}): a run that is broken off would have to begin anew")
            self.keeps, self._is_lost = False, True
            return None

    def _begun(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Find the runs that are dead, and remove what nobody came back for."""
        named = {name for (name,) in db.execute("SELECT DISTINCT run FROM answers")}
        dead = [name for name in named if _is_dead(name)]
        for file in paths().batches.glob(f"{_RUNS}*"):
            _is_dead(file.name)
        db.executemany("INSERT OR IGNORE INTO temp.dead VALUES (?)", [(name,) for name in dead])
        # A clock that was set forward for a while may not remove what came after.
        old = time.time() - KEPT_DAYS * 86400
        db.execute("DELETE FROM answers WHERE kept < ? AND run IN (SELECT name FROM temp.dead)", (old,))
        db.commit()
        return db


def _connect(name: str) -> sqlite3.Connection:
    db = sqlite3.connect(name, timeout=_PATIENCE_S)
    for pragma in _SETUP:
        db.execute(pragma)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        db.close()
        raise sqlite3.OperationalError("it was written by another version of localchat")
    db.executescript(_SCHEMA + f"PRAGMA user_version = {_VERSION};")
    db.executescript(_TEMPORARY)
    return db


def _searches(key: bytes, line: int) -> tuple[tuple[Any, ...], ...]:
    """Where an answer to a question is looked for, as `Journal._free` has it."""
    return ("key = ? AND line = ?", key, line), ("key = ?", key)


def _is_dead(run: str) -> bool:
    """Whether the run of that name has ended; its lock's file is then removed."""
    if not run:
        return True
    lock = FileLock(paths().batches / Path(run).name, remove=True)
    with suppress(OSError):
        if lock.acquire(blocking=False):
            lock.release()
            return True
    return False


def leftover() -> tuple[Path, int] | None:
    """The file of kept answers and its size in bytes, where it holds any and no batch is running; else None."""
    file = paths().batches / _FILE
    try:
        if not file.is_file() or not all(_is_dead(run.name) for run in paths().batches.glob(f"{_RUNS}*")):
            return None
        db = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
        try:
            held = db.execute("SELECT 1 FROM answers LIMIT 1").fetchone()
        finally:
            db.close()
        return (file, file.stat().st_size) if held else None
    except sqlite3.DatabaseError:
        return file, file.stat().st_size  # damaged: nobody can use it
    except OSError:
        return None


def forget() -> int:
    """Remove the kept answers, unless a batch runs by now; the bytes that this freed. Raises `LocalchatError`."""
    found = leftover()
    if not found:
        return 0
    try:
        for file in (found[0], found[0].with_name(f"{_FILE}-journal")):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise LocalchatError(f"cannot remove {found[0]} ({error.strerror}): make its folder writable") from error
    return found[1]
