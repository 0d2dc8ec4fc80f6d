"""Each open, write, truncation and removal of SQLite fails once, or from then on (T5): what was acknowledged stays."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localchat.chats.database import Database, connect
from localchat.chats.records import ChatSettings, Draft, Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsDamaged, ChatsDiskFull, ChatsError, ChatsLocked, ChatsReadOnly
from localchat.protocol import Message
from tests.chats.system_calls import Calls, library, watched_calls

needs_library = pytest.mark.skipif(library() is None, reason="this Python hides its SQLite")


class Session:
    """What a person does in a few minutes; `known` is what localchat said is kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[int, str] = {}
        self.titles: dict[int, str] = {}
        self.failures: list[ChatsError] = []

    def run(self) -> None:
        chats = self._try(Chats, self.file) or self._try(Chats, self.file)
        if not chats:
            return
        for number in range(2):
            self.talk(chats, f"question {number} " + "long " * 3000 * number)
        chats.close()

    def talk(self, chats: Chats, words: str) -> None:
        chat = self._try(chats.create, ChatSettings(), title="untitled")
        if not chat:
            return
        self.titles[chat] = "untitled"
        self._try(chats.keep_draft, chat, Draft(words))
        asked = self._try(chats.ask, chat, None, Message("user", words))
        if not asked:
            return
        self.known[asked[0]] = words
        answer = "all of the answer"
        for text, state in (("all", "unfinished"), ("all of the", "unfinished"), (answer, "done")):
            failures = len(self.failures)
            self._try(chats.save, asked[1], Message("assistant", text), state, Outcome())
            if text == answer and len(self.failures) == failures:
                self.known[asked[1]] = answer
        failures = len(self.failures)
        self._try(chats.rename, chat, "titled")
        if len(self.failures) == failures:
            self.titles[chat] = "titled"

    def _try(self, call: Callable[..., Any], *arguments: object, **named: object) -> Any:
        try:
            return call(*arguments, **named)
        except ChatsError as error:
            self.failures.append(error)
            return None

    def check(self) -> None:
        """What was acknowledged is there, in a sound file."""
        chats = Chats(self.file)
        nodes = {node.id: node for info in chats.chats() for node in chats.tree(info.id).nodes.values()}
        assert {number: nodes[number].message.text() for number in self.known} == self.known
        assert {info.id: info.title for info in chats.chats() if info.id in self.titles} == self.titles
        for node in self.known:
            assert node in {hit.node for hit in chats.search(nodes[node].message.text()[:20])}
        chats.close()
        database = sqlite3.connect(self.file)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()


def fail_at(folder: Path, calls: Calls, failing: range, error: int) -> bool:
    """Run a session in which some calls fail; whether any did."""
    session = Session(folder / "chats.db")
    calls.count, calls.failing, calls.error, calls.happened = 0, failing, error, False
    session.run()
    happened, calls.failing = calls.happened, range(0)
    for failure in session.failures:
        assert failure.message.endswith(("will be", "free space", "for you", "may help", "try again", "lies on"))
    session.check()
    return happened


def all_faults(folder: Path, step: int, first: int) -> None:
    ends = [errno.ENOSPC, errno.EIO, errno.EACCES]
    with watched_calls() as calls:
        for error in ends:
            number = first
            while fail_at(folder / f"{error}-{number}", calls, range(number, number + 1), error):
                number += step
            assert number > 20
        number = first
        while fail_at(folder / f"full-{number}", calls, range(number, 1 << 30), errno.ENOSPC):
            number += step


@needs_library
def test_each_system_call_fails_once(tmp_path: Path, dice: object) -> None:
    all_faults(tmp_path, 13, dice.randrange(13))  # type: ignore[attr-defined]


@needs_library
@pytest.mark.slow
def test_each_system_call_fails_once_in_full(tmp_path: Path) -> None:
    all_faults(tmp_path, 1, 0)


@needs_library
def test_a_full_disk_is_named_and_passes(chats: Chats) -> None:
    with watched_calls() as calls:
        calls.only, calls.failing, calls.error = ("pwrite64", "pwrite", "write"), range(1 << 30), errno.ENOSPC
        with pytest.raises(ChatsDiskFull, match="is full"):
            chats.create(ChatSettings())
        calls.failing = range(0)
        assert chats.create(ChatSettings()) == 1


@needs_library
def test_a_disk_without_room_for_one_more_file_is_named(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_calls() as calls:
        calls.only, calls.failing, calls.error = ("open",), range(1 << 30), errno.ENOSPC
        with pytest.raises(ChatsReadOnly):
            chats.create(ChatSettings())
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: (1000, 1000, 0))
        with pytest.raises(ChatsDiskFull):
            chats.create(ChatSettings())


def test_a_full_file_is_named(chats: Chats) -> None:
    chats._db._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(ChatsDiskFull):
        chats.create(ChatSettings(), title="x" * 100_000)
    assert chats.chats() == []


def test_another_program_that_holds_the_file_is_named(chats: Chats, file: Path) -> None:
    chats._db._connection.execute("PRAGMA busy_timeout = 1")
    other = connect(file)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ChatsLocked, match="another program"):
        chats.create(ChatSettings())
    with pytest.raises(ChatsLocked):
        chats.chats()
    other.execute("ROLLBACK")
    other.close()
    assert chats.create(ChatSettings()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_can_be_read(chats: Chats, file: Path) -> None:
    chat = chats.create(ChatSettings())
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        reading = Chats(file)
        assert [info.id for info in reading.chats()] == [chat]
        with pytest.raises(ChatsReadOnly, match="cannot be written"):
            reading.create(ChatSettings())
        reading.close()
    finally:
        file.parent.chmod(0o700)


def test_a_file_that_cannot_be_written_can_be_read(file: Path) -> None:
    chats = Chats(file)
    chat, question = chats.create(ChatSettings()), Message("user", "hello")
    chats.ask(chat, None, question)
    chats._db._connection.execute("PRAGMA query_only = ON")
    assert [info.id for info in chats.chats()] == [chat]
    with pytest.raises(ChatsReadOnly, match="cannot be written"):
        chats.create(ChatSettings())
    chats.close()


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8000])
def test_what_is_no_database_is_named(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ChatsDamaged, match="repair"):
        Chats(file)
    assert file.read_bytes() == content


def test_a_folder_or_another_programs_database_is_left_alone(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(ChatsError):
        Chats(file)
    other = file.parent / "other.db"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE bookmarks (url)")
    database.close()
    with pytest.raises(ChatsError, match="another program"):
        Chats(other)


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ChatsReadOnly, match="cannot use the folder"):
        Chats(tmp_path / "home" / "chats" / "chats.db")


def test_a_file_that_was_replaced_or_removed_is_not_written_to_any_more(chats: Chats, file: Path) -> None:
    chats.create(ChatSettings(), title="old")
    new = Chats(file.parent / "new.db")
    new.create(ChatSettings(), title="new")
    new.close()
    (file.parent / "new.db").replace(file)
    assert [info.title for info in chats.chats()] == ["new"]
    chats.create(ChatSettings(), title="newer")
    file.unlink()
    assert chats.chats() == []
    assert chats.create(ChatSettings(), title="newest") == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_is_replaced_while_one_waits_for_it_is_not_written_to(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (file, file.with_name("new.db")):
        Chats(name).close()
    holder = connect(file)
    holder.execute("BEGIN IMMEDIATE")
    looked = threading.Event()
    real = Database._is_in_place

    def looking(database: Database) -> bool:
        answer = real(database)
        if threading.current_thread() is writer:
            looked.set()
        return answer

    def write() -> None:
        chats = Chats(file)
        monkeypatch.setattr(Database, "_is_in_place", looking)
        chats.create(ChatSettings(), title="kept")
        chats.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert looked.wait(30)
    file.with_name("new.db").replace(file)
    holder.execute("ROLLBACK")
    holder.close()
    writer.join(30)
    chats = Chats(file)
    assert [info.title for info in chats.chats()] == ["kept"]
    chats.close()
