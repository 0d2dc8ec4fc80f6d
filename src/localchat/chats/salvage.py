"""What can still be read of a damaged database, row by row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from localchat.chats.database import FAULTS, connect

# A message that is over is not written again, so the backup's is as good as the damaged file's and safer.
_TABLES = {
    "chats": "",
    "messages": "WHERE messages.state IS NOT excluded.state OR messages.summary IS NOT excluded.summary",
    "attachments": "WHERE false",
    "drafts": "",
}
_KEYS = {"drafts": "chat"}


def salvage(damaged: sqlite3.Connection, into: Path) -> int:
    """Add what `damaged` holds and the database at `into` lacks; the number of messages that came by that.

    A message whose parent is lost becomes a root, one whose chat is lost gets a new chat; a chat keeps its title even
    where all its messages are lost. Raises `FAULTS`.
    """
    with closing(connect(into)) as target:
        target.execute("PRAGMA foreign_keys = OFF")
        target.execute("BEGIN IMMEDIATE")
        before = _count(target)
        for table, rule in _TABLES.items():
            key = _KEYS.get(table, "id")
            columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
            names, places = ", ".join(columns), ", ".join("?" * len(columns))
            changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name != key)
            put = f"INSERT INTO {table} ({names}) VALUES ({places}) ON CONFLICT ({key}) DO UPDATE SET {changes} {rule}"
            for row in _rows(damaged, table, key, names, _top(damaged, target, table, key)):
                with suppress(sqlite3.IntegrityError):
                    target.execute(put, row)
        # A message is younger than its parent; so no circle can come out of a damaged page.
        target.execute(
            """UPDATE messages SET parent = NULL WHERE parent IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM messages AS above
            WHERE above.id = messages.parent AND above.chat = messages.chat AND above.id < messages.id
            )"""
        )
        target.execute("DELETE FROM attachments WHERE message NOT IN (SELECT id FROM messages)")
        target.execute(
            """INSERT INTO chats (id, kind, title, titled_by, created, updated, settings)
            SELECT chat, 'chat', 'Recovered', 'model', min(created), max(created), '{}' FROM messages
            WHERE chat NOT IN (SELECT id FROM chats) GROUP BY chat"""
        )
        target.execute(
            """UPDATE chats SET tip = (SELECT max(id) FROM messages WHERE chat = chats.id)
            WHERE tip NOT IN (SELECT id FROM messages)"""
        )
        came = _count(target) - before
        target.execute("COMMIT")
    return came


def _rows(damaged: sqlite3.Connection, table: str, key: str, names: str, top: int) -> Iterator[tuple[object, ...]]:
    """Each row that can be read. Asked for one by one, because a scan would end at the first damaged page."""
    for number in range(top + 1):
        with suppress(*FAULTS):
            if row := damaged.execute(f"SELECT {names} FROM {table} WHERE {key} = ?", (number,)).fetchone():
                yield row


def _top(damaged: sqlite3.Connection, target: sqlite3.Connection, table: str, key: str) -> int:
    """The highest number that a row may have."""
    found = [0]
    for db, query in (
        (damaged, f"SELECT max({key}) FROM {table}"),
        (damaged, f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"),
        (target, f"SELECT max({key}) FROM {table}"),
    ):
        with suppress(*FAULTS):
            found += [value for (value,) in db.execute(query) if isinstance(value, int)]
    return min(max(found), 10_000_000)


def _count(db: sqlite3.Connection) -> int:
    count: int = db.execute("SELECT count(*) FROM messages").fetchone()[0]
    return count
