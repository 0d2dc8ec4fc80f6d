"""The keeper: what is written reaches the disk in time and in order, and trouble is told and overcome."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localchat.chats import backup
from localchat.chats import keeper as keeping
from localchat.chats.database import Database, connect
from localchat.chats.keeper import Keeper
from localchat.chats.records import ChatSettings, Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsDamaged, ChatsDiskFull, ChatsError, ChatsLocked, NoSuchChat
from localchat.protocol import Message
from tests.chats.system_calls import library, watched_calls
from tests.conftest import wait_for


@pytest.fixture
def keeper(file: Path) -> Iterator[Keeper]:
    one = Keeper(file)
    yield one
    one.close(5)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: what is tested is that it does, not how long it waits."""
    monkeypatch.setattr(keeping, "_RETRY_S", 0.01)


def asked(keeper: Keeper, words: str = "q") -> tuple[int, int]:
    """A chat, and the unfinished answer in it, followed."""
    chat = keeper.call(lambda chats: chats.create(ChatSettings())).result(30)
    _, answer = keeper.call(lambda chats: chats.ask(chat, None, Message("user", words))).result(30)
    keeper.follow(answer)
    return chat, answer


def kept(file: Path, node: int) -> tuple[str, str]:
    """Content and state of a message, as another program sees it."""
    db = sqlite3.connect(file)
    try:
        found: tuple[str, str] = db.execute("SELECT content, state FROM messages WHERE id = ?", (node,)).fetchone()
    finally:
        db.close()
    return found


def answer_of(words: str) -> Message:
    return Message("assistant", words)


class Fault:
    """Lets the transactions of this process fail as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: ChatsError | None = None
        self.tried = 0
        begin = Database._begin

        def failing(database: Database, statement: str) -> sqlite3.Connection:
            if self.error and statement == "BEGIN IMMEDIATE":
                self.tried += 1
                raise self.error
            return begin(database, statement)

        monkeypatch.setattr(Database, "_begin", failing)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


def test_what_is_written_reaches_the_disk_by_itself(keeper: Keeper, file: Path) -> None:
    _, answer = asked(keeper)
    for words in ("a", "ab", "abc"):
        keeper.write(answer, answer_of(words), Outcome(model="m"))
    wait_for(lambda: kept(file, answer) == ("abc", "unfinished"))
    keeper.write(answer, answer_of("abcd"), Outcome())
    wait_for(lambda: kept(file, answer) == ("abcd", "unfinished"))
    keeper.finish(answer, answer_of("abcde"), "done", Outcome()).result(30)
    assert kept(file, answer) == ("abcde", "done")
    assert keeper.trouble == ""


def test_calls_and_ends_are_done_in_order(keeper: Keeper, file: Path) -> None:
    chat, answer = asked(keeper)
    gate = threading.Event()
    keeper.call(lambda chats: gate.wait(30))
    keeper.finish(answer, answer_of("first"), "stopped", Outcome())
    states = [keeper.call(lambda chats: chats.tree(chat).nodes[answer].state)]
    keeper.call(lambda chats: chats.resume(answer))
    states.append(keeper.call(lambda chats: chats.tree(chat).nodes[answer].state))
    last = keeper.finish(answer, answer_of("first and more"), "done", Outcome())
    gate.set()
    last.result(30)
    assert [state.result(30) for state in states] == ["stopped", "unfinished"]
    assert kept(file, answer) == ("first and more", "done")


def test_what_is_over_is_not_opened_again_by_a_late_piece(keeper: Keeper, file: Path) -> None:
    _, answer = asked(keeper)
    over = keeper.finish(answer, answer_of("all"), "done", Outcome())
    keeper.write(answer, answer_of("al"), Outcome())
    over.result(30)
    keeper.write(answer, answer_of("al"), Outcome())
    _, second = asked(keeper)
    keeper.write(second, answer_of("b"), Outcome())
    wait_for(lambda: kept(file, second) == ("b", "unfinished"))
    assert kept(file, answer) == ("all", "done")


def test_errors_come_to_who_asked(keeper: Keeper) -> None:
    with pytest.raises(NoSuchChat):
        keeper.call(lambda chats: chats.tree(99)).result(30)
    with pytest.raises(ZeroDivisionError):
        keeper.call(lambda chats: 1 // 0).result(30)
    with pytest.raises(NoSuchChat):
        keeper.finish(99, answer_of("x"), "done", Outcome()).result(30)
    assert keeper.call(lambda chats: chats.chats()).result(30) == []


@pytest.mark.parametrize("kind", [ChatsDiskFull, ChatsLocked, ChatsError])
def test_trouble_is_told_and_overcome(
    keeper: Keeper, file: Path, fault: Fault, eager: None, kind: type[ChatsError]
) -> None:
    _, answer = asked(keeper)
    fault.error = kind("no room: make some")
    keeper.write(answer, answer_of("a"), Outcome())
    wait_for(lambda: keeper.trouble == "no room: make some" and fault.tried > 2)
    keeper.write(answer, answer_of("abc"), Outcome())
    over = keeper.finish(answer, answer_of("abcd"), "done", Outcome())
    wait_for(lambda: fault.tried > 6)
    assert not over.done()
    assert kept(file, answer) == ("", "unfinished")
    with pytest.raises(kind):
        keeper.call(lambda chats: chats.create(ChatSettings())).result(30)
    fault.error = None
    over.result(30)
    assert (kept(file, answer), keeper.trouble) == (("abcd", "done"), "")


@pytest.mark.skipif(library() is None, reason="this Python hides its SQLite")
def test_a_disk_that_is_full_while_an_answer_streams(keeper: Keeper, file: Path, eager: None) -> None:
    _, answer = asked(keeper)
    text = ""
    with watched_calls() as calls:
        calls.error, calls.only = errno.ENOSPC, ("pwrite64", "pwrite", "write")
        calls.failing = range(1 << 30)
        for number in range(2000):
            text += f"{number} "
            keeper.write(answer, answer_of(text), Outcome())
            if number == 1000:
                wait_for(lambda: "is full" in keeper.trouble)
        over = keeper.finish(answer, answer_of(text), "done", Outcome())
        before = calls.count
        wait_for(lambda: calls.count > before + 2)
        assert not over.done() and "is full" in keeper.trouble
        calls.failing = range(0)
        over.result(30)
        assert (kept(file, answer), keeper.trouble) == ((text, "done"), "")


def test_an_answer_can_go_on_before_its_end_is_on_disk(keeper: Keeper, file: Path, fault: Fault, eager: None) -> None:
    _, answer = asked(keeper)
    fault.error = ChatsDiskFull("full: make room")
    over = keeper.finish(answer, answer_of("half"), "stopped", Outcome())
    wait_for(lambda: fault.tried > 2)
    keeper.follow(answer)
    assert over.cancelled()
    fault.error = None
    wait_for(lambda: kept(file, answer) == ("half", "unfinished"))
    keeper.finish(answer, answer_of("half and half"), "done", Outcome()).result(30)
    assert kept(file, answer) == ("half and half", "done")


def test_closing_saves_what_is_open(file: Path) -> None:
    keeper = Keeper(file)
    _, first = asked(keeper)
    _, second = asked(keeper)
    keeper.write(first, answer_of("as far as it came"), Outcome())
    keeper.finish(second, answer_of("stopped"), "stopped", Outcome())
    late = keeper.call(lambda chats: chats.create(ChatSettings()))
    keeper.close(30)
    assert kept(file, first) == ("as far as it came", "broken")
    assert kept(file, second) == ("stopped", "stopped")
    assert late.result(0) == 3
    with pytest.raises(ChatsError, match="closed"):
        keeper.call(lambda chats: chats.chats()).result(0)
    assert not list(file.parent.glob("writing-*"))


def test_closing_waits_for_room_but_not_for_ever(file: Path, fault: Fault, eager: None) -> None:
    for patience, expected in ((0.3, ""), (30.0, "all of it")):
        keeper = Keeper(file)
        _, answer = asked(keeper)
        fault.error, fault.tried = ChatsDiskFull("full: make room"), 0
        keeper.finish(answer, answer_of("all of it"), "done", Outcome())
        wait_for(lambda: fault.tried > 1)
        closing = threading.Thread(target=keeper.close, args=(patience,))
        closing.start()
        if not expected:
            closing.join(30)
            keeper._thread.join(30)
            assert not closing.is_alive() and not keeper._thread.is_alive()
        fault.error = None
        closing.join(30)
        keeper._thread.join(30)
        assert kept(file, answer)[0] == expected


def test_a_file_that_cannot_be_opened_is_tried_again_with_the_next_call(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"this is not what SQLite wrote" * 100)
    keeper = Keeper(file)
    with pytest.raises(ChatsDamaged):
        keeper.call(lambda chats: chats.chats()).result(30)
    assert "repair" in keeper.trouble
    file.unlink()
    assert keeper.call(lambda chats: chats.chats()).result(30) == []
    assert keeper.trouble == ""
    keeper.close(5)


def test_the_daily_backup_is_made_when_nobody_wants_anything(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_QUIET_S", 0.01)
    monkeypatch.setattr(keeping, "_LOOK_AGAIN_S", 0.01)
    keeper = Keeper(file)
    keeper.call(lambda chats: chats.create(ChatSettings()))
    wait_for(lambda: backup.backups(file))
    # Also of a chat that stays open for days.
    file.with_name("chats.db.backup").rename(file.with_name("chats.db.backup-2"))
    wait_for(lambda: len(backup.backups(file)) == 2)
    keeper.close(5)
    assert {copy.path.name for copy in backup.backups(file)} == {"chats.db.backup", "chats.db.backup-2"}


def test_a_backup_stops_at_once_for_who_wants_something(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_QUIET_S", 0.01)
    monkeypatch.setattr(backup, "_PAGES", 1)
    steps: list[int] = []
    going, gate = threading.Event(), threading.Event()
    begun: list[int] = []
    real = backup.write_copy

    def slow(source: sqlite3.Connection, copy: Path, asks: Callable[[], bool], **options: Path) -> None:
        def ask() -> bool:
            steps.append(1)
            if len(steps) == 2:
                going.set()
                gate.wait(30)
            return asks()

        begun.append(len(steps))
        real(source, copy, ask, **options)

    monkeypatch.setattr(backup, "write_copy", slow)
    chats = Chats(file)
    chats.create(ChatSettings())
    chats.close()
    keeper = Keeper(file)
    assert going.wait(30)
    call = keeper.call(lambda chats: chats.create(ChatSettings()))
    gate.set()
    call.result(30)
    wait_for(lambda: backup.backups(file))
    assert (begun, backup.backups(file)[0].chats) == ([0, 2], 2), "the first one went on, or there was no second one"
    keeper.close(5)
    assert not list(file.parent.glob("*partial*"))


def test_the_backup_finds_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_QUIET_S", 0.01)
    chats = Chats(file)
    with chats.together():
        chat = chats.create(ChatSettings())
        for number in range(300):
            chats.append(chat, None, Message("user", f"{number} " + "word " * 200))
    chats.close()
    content = bytearray(file.read_bytes())
    for page in range(50, len(content) // 4096 - 20):
        content[page * 4096 : page * 4096 + 50] = bytes(50)
    file.write_bytes(content)
    keeper = Keeper(file)
    wait_for(lambda: keeper.damage)
    assert "repair" in keeper.damage
    assert backup.backups(file) == []
    restored = keeper.restore(None).result(30)
    assert (keeper.damage, keeper.trouble) == ("", "")
    assert restored.messages == len(keeper.call(lambda chats: chats.tree(chat)).result(30).nodes) > 20
    keeper.close(5)
    assert restored.aside.stat().st_size == len(content)
    assert time.time() - restored.aside.stat().st_mtime < 1e6
    assert connect(file).execute("PRAGMA integrity_check").fetchone() == ("ok",)
