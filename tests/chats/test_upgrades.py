"""Every layout that a release wrote opens (T17), and a kill in the middle of a migration loses nothing.

`schemas/v<number>.sql` is a database of each version with something in each table. When the layout changes, the current
one is dumped there first (`python -m tests.chats.test_upgrades`), then `schema.VERSION` goes up by one.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import localchat
from localchat.chats import schema
from localchat.chats.backup import backups
from localchat.chats.database import connect
from localchat.chats.records import Attachment, ChatSettings, Draft, Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsError
from localchat.protocol import Message, Sampling

SCHEMAS = Path(__file__).parent / "schemas"

MIGRATE = """
import os, signal, sys
from pathlib import Path
from localchat.chats import backup, database, schema
from localchat.chats.store import Chats

database.PATIENCE_S = 60

file, point = Path(sys.argv[1]), sys.argv[2]

def reach(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

def to_2(db):
    reach("first step")
    db.execute("ALTER TABLE chats ADD COLUMN folder TEXT NOT NULL DEFAULT 'inbox'")
    reach("after the first step")

def to_3(db):
    db.execute("CREATE TABLE new (id INTEGER PRIMARY KEY, name TEXT, text TEXT)")
    db.execute("INSERT INTO new SELECT id, name, content FROM attachments")
    reach("between tables")
    db.execute("UPDATE messages SET content = content || ' (moved)' WHERE role = 'user'")
    db.execute("INSERT INTO new (name, text) SELECT 'filler', hex(zeroblob(500000))")
    db.execute("DROP TABLE new")
    reach("the end")

write_copy = backup.write_copy
def copying(source, copy, *rest):
    write_copy(source, copy.with_name(copy.name + ".partial"), *rest)
    reach("half a copy")
    copy.with_name(copy.name + ".partial").unlink()
    write_copy(source, copy, *rest)
    reach("a copy")
backup.write_copy = copying

schema.VERSION = 3
schema.STEPS = {1: to_2, 2: to_3}
Chats(file).close()
reach("afterwards")
"""

POINTS = ["half a copy", "a copy", "first step", "after the first step", "between tables", "the end", "afterwards"]


def build(script: Path, file: Path) -> None:
    """A database as the release of that version left it."""
    file.parent.mkdir(mode=0o700)
    database = connect(file)
    database.executescript(script.read_text())
    database.close()


def layout(database: sqlite3.Connection) -> dict[str, str]:
    return dict(
        database.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE '%\\_%' ESCAPE '\\'"
        )
    )


def check(file: Path, suffix: str = "") -> None:
    """All that stands in the schema's script is there, and can be gone on with."""
    chats = Chats(file)
    (info,) = chats.chats()
    assert (info.title, info.titled_by, info.pinned, info.messages) == ("Bread", "person", True, 3)
    assert info.settings == ChatSettings("m", "Be brief.", Sampling(temperature=0.5))
    tree = chats.tree(info.id)
    texts = [(node.message.role, node.message.text(), node.state, node.summary) for node in tree.path()]
    assert texts == [
        ("user", f"How long in the oven? 日本{suffix}", "done", None),
        ("assistant", "An hour.", "stopped", "All of it"),
    ]
    question, answer = tree.path()
    assert question.attachments == [Attachment("recipe.txt", "flour", 3)]
    assert (answer.message.reasoning_content, answer.outcome) == ("hm", Outcome("m", "stop", cached_tokens=7))
    assert [tree.nodes[node].message.text() for node in tree.siblings(answer.id)] == ["An hour.", "Two hours."]
    assert (chats.draft(None), chats.draft(info.id)) == (Draft("new"), Draft("more"))
    assert [hit.role for hit in chats.search("oven")] == ["user"]
    assert [hit.role for hit in chats.search("日本")] == ["user"]
    assert [hit.role for hit in chats.search("bread")] == ["title"]
    assert [found.id for found in chats.chats("ask")] == [2]
    with pytest.raises(KeyError), chats.together():
        chats.ask(info.id, answer.id, Message("user", "and then?"))
        raise KeyError
    chats.close()


@pytest.mark.parametrize("script", sorted(SCHEMAS.glob("v*.sql")), ids=lambda script: script.stem)
def test_every_old_layout_opens_and_becomes_todays(script: Path, file: Path, tmp_path: Path) -> None:
    build(script, file)
    check(file)
    Chats(tmp_path / "new" / "chats.db").close()
    assert layout(connect(file)) == layout(connect(tmp_path / "new" / "chats.db"))
    assert connect(file).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_layout_that_changes_gets_a_new_number() -> None:
    newest = SCHEMAS / f"v{schema.VERSION}.sql"
    with TemporaryDirectory() as folder:
        build(newest, Path(folder) / "old" / "chats.db")
        Chats(Path(folder) / "chats.db").close()
        old, new = connect(Path(folder) / "old" / "chats.db"), connect(Path(folder) / "chats.db")
        assert layout(old) == layout(new), "raise schema.VERSION and write a step; see the top of this file"


def migrate(file: Path, point: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(localchat.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", MIGRATE, str(file), point], env=environment).returncode


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_in_a_migration_loses_nothing(file: Path, point: str) -> None:
    build(SCHEMAS / "v1.sql", file)
    assert migrate(file, point) == -signal.SIGKILL
    if point != "afterwards":
        assert connect(file).execute("PRAGMA user_version").fetchone() == (1,)
        check(file)
        assert migrate(file, "none") == 0
    database = connect(file)
    assert database.execute("PRAGMA user_version").fetchone() == (3,)
    assert database.execute("SELECT DISTINCT folder FROM chats").fetchall() == [("inbox",)]
    assert database.execute("SELECT count(*) FROM messages WHERE content LIKE '% (moved)'").fetchone() == (2,)
    database.close()
    with pytest.raises(ChatsError, match="newer localchat"):
        Chats(file)
    (copy,) = backups(file)
    assert (copy.path.name, copy.chats) == ("chats.db.v1-backup", 2)
    copy.path.replace(file)
    check(file)


def test_a_step_that_fails_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(SCHEMAS / "v1.sql", file)

    def lose(database: sqlite3.Connection) -> None:
        database.execute("ALTER TABLE chats ADD COLUMN folder TEXT")
        database.execute("DELETE FROM chats WHERE id = 1")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", 2)
        patch.setattr(schema, "STEPS", {1: lose})
        with pytest.raises(ChatsError, match="are missing"):
            Chats(file)
    check(file)


def test_two_programs_that_migrate_at_once(file: Path) -> None:
    build(SCHEMAS / "v1.sql", file)
    environment = {**os.environ, "PYTHONPATH": str(Path(localchat.__file__).parents[1])}
    command = [sys.executable, "-c", MIGRATE, str(file), "none"]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(150) for process in processes] == [0, 0, 0]
    database = connect(file)
    assert database.execute("SELECT count(*) FROM messages WHERE content LIKE '%(moved) (moved)'").fetchone() == (0,)
    database.close()


def test_two_programs_that_make_the_file_at_once(file: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from localchat.chats import database
        from localchat.chats.store import Chats
        from localchat.chats.records import ChatSettings
        database.PATIENCE_S = 60
        Chats(Path(sys.argv[1])).create(ChatSettings())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(localchat.__file__).parents[1])}
    processes = [subprocess.Popen([sys.executable, "-c", script, str(file)], env=environment) for _ in range(4)]
    assert [process.wait(150) for process in processes] == [0] * 4
    chats = Chats(file)
    assert len(chats.chats()) == 4
    chats.close()


def dump(target: Path) -> None:
    """Write the current layout, with something in each table, as a script."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "chats.db"
        chats = Chats(file)
        settings = ChatSettings("m", "Be brief.", Sampling(temperature=0.5))
        chat = chats.create(settings, title="Bread")
        asked = Message("user", "How long in the oven? 日本")
        question, first = chats.ask(chat, None, asked, [Attachment("recipe.txt", "flour", 3)])
        outcome = Outcome("m", "stop", cached_tokens=7)
        chats.save(first, Message("assistant", "An hour.", "hm"), "stopped", outcome)
        second = chats.answer_again(chat, question)
        chats.save(second, Message("assistant", "Two hours."), "done", Outcome())
        chats.go_to(chat, first)
        chats.summarise(first, "All of it")
        chats.pin(chat, True)
        chats.keep_draft(None, Draft("new"))
        chats.keep_draft(chat, Draft("more"))
        ask = chats.create(ChatSettings(), "ask")
        _, answer = chats.ask(ask, None, Message("user", "quick?"))
        chats.save(answer, Message("assistant", "Yes."), "done", Outcome())
        chats.close()
        database = connect(file)
        lines = [f"PRAGMA user_version = {schema.VERSION};"]
        inserts, made = [], []
        for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
            if name == "sqlite_sequence" or (kind == "table" and "_" in name):
                continue
            made.append(f"{sql};")
            if kind == "table" and "VIRTUAL" not in sql:
                for (row,) in database.execute(_insert(database, name)):
                    inserts.append(row)
        target.write_text("\n".join([*lines, *made, *inserts, ""]))


def _insert(database: sqlite3.Connection, table: str) -> str:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    values = " || ', ' || ".join(f"quote({column})" for column in columns)
    return f"SELECT 'INSERT INTO {table} ({', '.join(columns)}) VALUES (' || {values} || ');' FROM {table}"


if __name__ == "__main__":
    dump(SCHEMAS / f"v{schema.VERSION}.sql")
