"""The tables of the conversations, and the way from each older layout to this one.

`user_version` in the file says which layout it has. A change of a table is a new version: a step here turns the one
before into it, and the text goes to `tests/chats/schemas`, so that every file that a release wrote can be opened.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path

from localchat.errors import ChatsError

VERSION = 1

# Words are cut at spaces and punctuation, which Chinese, Japanese, Thai and their like do not put between words. So
# each of their characters is indexed as a word of its own, and what is searched becomes a phrase of such characters,
# which finds any part of a text. Korean has spaces, but its particles hang on the words; so it is treated alike.
# What is in the index is taken out of it by the same words: another set of characters needs a new version, and a new
# index.
_UNSPACED = (
    "(["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
    "\uac00-\ud7af"  # hangul
    "])"
)

# Nothing but these triggers writes to the index, so no statement can forget it. It keeps no copy of the texts.
_INDEXED = "{0}.role IN ('user', 'assistant') AND {0}.state <> 'unfinished'"
_TAKE_OUT = "INSERT INTO words (words, rowid, content) SELECT 'delete', old.id, spaced(old.content) WHERE " + (
    _INDEXED.format("old")
)
_PUT_IN = "INSERT INTO words (rowid, content) SELECT new.id, spaced(new.content) WHERE " + _INDEXED.format("new")

_SCHEMA = f"""
CREATE TABLE chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    titled_by TEXT NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    settings TEXT NOT NULL,
    tip INTEGER,
    deleted REAL
);
CREATE INDEX chats_by_time ON chats (updated);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages (id),
    role TEXT NOT NULL,
    name TEXT,
    content TEXT NOT NULL,
    reasoning TEXT,
    state TEXT NOT NULL,
    writer TEXT,
    created REAL NOT NULL,
    outcome TEXT NOT NULL,
    summary TEXT
);
CREATE INDEX messages_of_chat ON messages (chat);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE INDEX messages_sent ON messages (created) WHERE role = 'user';
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'unfinished';

CREATE TABLE attachments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    content TEXT NOT NULL,
    tokens INTEGER
);
CREATE INDEX attachments_of_message ON attachments (message);

-- chat 0: the chat that has not begun
CREATE TABLE drafts (chat INTEGER PRIMARY KEY, draft TEXT NOT NULL);

CREATE VIRTUAL TABLE words USING fts5 (
    content, content = '', tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3'
);
CREATE VIRTUAL TABLE titles USING fts5 (content, content = '', tokenize = 'unicode61 remove_diacritics 2');

CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN {_PUT_IN}; END;
CREATE TRIGGER message_changed AFTER UPDATE OF role, content, state ON messages BEGIN {_TAKE_OUT}; {_PUT_IN}; END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN {_TAKE_OUT}; END;

CREATE TRIGGER chat_added AFTER INSERT ON chats BEGIN
    INSERT INTO titles (rowid, content) VALUES (new.id, spaced(new.title));
END;
CREATE TRIGGER chat_renamed AFTER UPDATE OF title ON chats BEGIN
    INSERT INTO titles (titles, rowid, content) VALUES ('delete', old.id, spaced(old.title));
    INSERT INTO titles (rowid, content) VALUES (new.id, spaced(new.title));
END;
CREATE TRIGGER chat_removed AFTER DELETE ON chats BEGIN
    INSERT INTO titles (titles, rowid, content) VALUES ('delete', old.id, spaced(old.title));
    DELETE FROM drafts WHERE chat = old.id;
END;
"""

Step = Callable[[sqlite3.Connection], None]

STEPS: dict[int, Step] = {}
"""From the version of the key to the next one. A step must not commit: all of them are one transaction."""


@cache
def _unspaced() -> re.Pattern[str]:
    """Compiled when it is first needed: that takes milliseconds, and many texts are ASCII."""
    return re.compile(_UNSPACED)


def spaced(text: str) -> str:
    """`text` as it is indexed and searched: a space on either side of each character that is a word of its own."""
    return text if text.isascii() else _unspaced().sub(r" \1 ", text)


def prepare(connection: sqlite3.Connection, file: Path) -> None:
    """Give the database at `file` the tables of today, whether it is empty or of an older version.

    An older one is copied first, to `chats.db.v<version>-backup`. Raises `ChatsError` for a database of a newer version
    or of another program, and `sqlite3.Error`.
    """
    if _version(connection, file) == VERSION:
        return
    connection.execute("PRAGMA foreign_keys = OFF")  # tables that are built anew would take their rows with them
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it while this one waited for the lock.
        version = _version(connection, file)
        if version == 0:
            run_script(connection, _SCHEMA)
        elif version < VERSION:
            _keep_copy(file, file.with_name(f"{file.name}.v{version}-backup"))
            for step in range(version, VERSION):
                STEPS[step](connection)
            if connection.execute("PRAGMA foreign_key_check").fetchone():
                raise ChatsError(f"parts of {file} are missing: `localchat chats repair` brings back what can be read")
        connection.execute(f"PRAGMA user_version = {VERSION:d}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("PRAGMA foreign_keys = ON")


def run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run several statements within the open transaction (`executescript` would commit it first)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def _version(connection: sqlite3.Connection, file: Path) -> int:
    """The version of the file; 0 where it is empty."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise ChatsError(f"{file} was written by a newer localchat: update localchat to read it")
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise ChatsError(f"{file} belongs to another program: move it away")
    return version


def _keep_copy(file: Path, copy: Path) -> None:
    """Copy the whole database, for the person who wants to go back to the version before."""
    from localchat.chats.backup import write_copy

    # By a connection of its own: SQLite copies nothing from one that is about to write.
    with closing(sqlite3.connect(file)) as source:
        write_copy(source, copy)
