"""Backups: made daily and only of what is sound; restoring one loses nothing that can still be read."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from localchat.chats import backup
from localchat.chats.backup import Backup, backups, check, keep_daily, restore
from localchat.chats.records import Attachment, ChatSettings, Draft, Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsDamaged, ChatsError
from localchat.locks import FileLock
from localchat.protocol import Message

PAGE = 4096


def fill(chats: Chats, count: int, words: str = "word ") -> list[int]:
    """Chats of four messages."""
    made = []
    with chats.together():
        for number in range(count):
            chat = chats.create(ChatSettings(), title=f"chat {number}")
            tip = chats.append(
                chat, None, Message("user", f"{words * 300} first"), attachments=[Attachment("a", "b" * 500)]
            )
            tip = chats.append(chat, tip, Message("assistant", words * 500))
            tip = chats.append(chat, tip, Message("user", words * 20))
            chats.append(chat, tip, Message("assistant", f"{words * 500} last"))
            made.append(chat)
    return made


def never() -> bool:
    return False


def age(copy: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(copy, (then, then))


def damage(file: Path, pages: range) -> None:
    content = bytearray(file.read_bytes())
    assert len(content) > pages.stop * PAGE
    for page in pages:
        content[page * PAGE : page * PAGE + 100] = b"\xee" * 100
    file.write_bytes(content)


def is_sound(file: Path) -> bool:
    database = sqlite3.connect(file)
    try:
        sound = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return sound and not database.execute("PRAGMA foreign_key_check").fetchall()
    finally:
        database.close()


def test_a_copy_a_day_and_the_one_before(chats: Chats, file: Path) -> None:
    assert backups(file) == []
    newest, before = file.with_name("chats.db.backup"), file.with_name("chats.db.backup-2")
    for number in range(1, 5):
        fill(chats, 1)
        assert keep_daily(file, never)
        fill(chats, 1)
        assert keep_daily(file, never)
        assert [copy.chats for copy in backups(file)] == ([1] if number == 1 else [2 * number - 1, 2 * number - 3])
        if number > 1:
            age(before, 2)
        age(newest, 1.1)
    assert [copy.path for copy in backups(file)] == [newest, before]
    assert abs(backups(file)[0].made - (time.time() - 1.1 * 86400)) < 3600
    assert [is_sound(copy.path) for copy in backups(file)] == [True, True]


def test_an_empty_file_is_not_copied_so_that_the_first_chats_are(chats: Chats, file: Path) -> None:
    assert keep_daily(file, never)
    assert backups(file) == []
    fill(chats, 2)
    assert keep_daily(file, never)
    assert [copy.chats for copy in backups(file)] == [2]


def test_one_program_makes_the_copy(chats: Chats, file: Path) -> None:
    fill(chats, 1)
    with FileLock(file.with_name("chats.db.backup-lock")):
        assert keep_daily(file, never)
    assert backups(file) == []


@pytest.mark.parametrize("when", [0, 1, 5])
def test_a_copy_that_is_not_wanted_now_leaves_nothing(
    chats: Chats, file: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    fill(chats, 20)
    monkeypatch.setattr(backup, "_INSTRUCTIONS", 100)
    asked = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) > when

    assert not keep_daily(file, wanted)
    assert backups(file) == []
    assert not list(file.parent.glob("*partial*"))
    assert keep_daily(file, never)


def test_a_damaged_file_does_not_take_the_place_of_a_copy(chats: Chats, file: Path) -> None:
    fill(chats, 30)
    keep_daily(file, never)
    chats.close()
    age(file.with_name("chats.db.backup"), 2)
    damage(file, range(60, 70))
    with pytest.raises(ChatsDamaged):
        keep_daily(file, never)
    assert [copy.chats for copy in backups(file)] == [30]
    assert not list(file.parent.glob("*partial*"))


def test_no_room_for_a_copy(chats: Chats, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    fill(chats, 1)
    monkeypatch.setattr(backup, "make_private", full)
    with pytest.raises(ChatsError, match="full"):
        keep_daily(file, never)


def test_a_backup_and_what_is_newer_in_the_damaged_file(chats: Chats, file: Path) -> None:
    made = fill(chats, 30)
    question, answer = chats.ask(made[0], None, Message("user", "pending"))
    keep_daily(file, never)
    chats.save(answer, Message("assistant", "zebra " * 10), "done", Outcome(model="m"))
    chats.rename(made[1], "renamed")
    chats.keep_draft(None, Draft("typed"))
    (later,) = fill(chats, 1, "giraffe ")
    chats.close()
    wanted = Chats(file)
    tree = {node.id: node for node in wanted.tree(later).nodes.values()}
    wanted.close()
    damage(file, range(40, 60))
    restored = restore(backups(file)[0], file)
    assert restored.messages == 4
    assert restored.aside.exists() and restored.aside.name.startswith("chats.db.damaged-")
    chats = Chats(file)
    assert len(chats.chats()) == 31
    assert all(len(chats.tree(chat).path()) >= 2 for chat in made)
    assert chats.tree(made[0]).nodes[answer].message.text().startswith("zebra")
    assert chats.info(made[1]).title == "renamed"
    assert chats.draft(None) == Draft("typed")
    assert {node.id: node for node in chats.tree(later).nodes.values()} == tree
    assert len(chats.search("giraffe")) == 4
    assert question < later or chats.create(ChatSettings()) > later
    chats.close()
    assert is_sound(file)
    assert not list(file.parent.glob("*partial*"))


def test_without_a_backup_what_can_be_read_is_kept(chats: Chats, file: Path) -> None:
    fill(chats, 40)
    chats.close()
    damage(file, range(50, 80))
    restored = restore(None, file)
    chats = Chats(file)
    assert 40 < restored.messages == sum(info.messages for info in chats.chats()) < 160
    chats.close()
    assert is_sound(file)


def test_a_file_that_is_nothing_any_more(chats: Chats, file: Path) -> None:
    fill(chats, 3)
    keep_daily(file, never)
    chats.close()
    file.write_bytes(os.urandom(5000))
    restored = restore(backups(file)[0], file)
    assert restored.messages == 0
    assert restored.aside.stat().st_size == 5000
    chats = Chats(file)
    assert len(chats.chats()) == 3
    chats.close()


def test_a_message_whose_chat_is_lost_gets_a_new_one(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    database = chats._db._connection
    database.execute("PRAGMA foreign_keys = OFF")
    database.execute("DELETE FROM chats WHERE id = 2")
    database.execute("DELETE FROM messages WHERE id = 2")
    chats.close()
    restore(None, file)
    chats = Chats(file)
    assert [(info.title, info.messages) for info in chats.chats()] == [("Recovered", 4), ("chat 0", 3)]
    assert [len(chats.tree(1).path()), len(chats.tree(2).path())] == [2, 4]
    chats.close()
    assert is_sound(file)


def test_who_has_the_file_open_goes_on_with_the_new_one(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    keep_daily(file, never)
    restore(backups(file)[0], file)
    chats.create(ChatSettings(), title="after")
    other = Chats(file)
    assert len(other.chats()) == len(chats.chats()) == 3
    other.close()


def test_a_journal_of_the_damaged_file_is_not_played_into_the_new_one(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    keep_daily(file, never)
    chats.close()
    file.write_bytes(b"\xee" * 3000)
    journal = file.with_name("chats.db-journal")
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\xff" * 2000)
    restore(backups(file)[0], file)
    assert not journal.exists() or not journal.stat().st_size
    assert is_sound(file)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("fails", ["replace", "rename"])
def test_a_restoration_that_fails_leaves_the_file_where_it_was(
    chats: Chats, file: Path, monkeypatch: pytest.MonkeyPatch, links: bool, fails: str
) -> None:
    fill(chats, 2)
    keep_daily(file, never)
    chats.close()
    file.with_name("chats.db-journal").touch()
    real = getattr(Path, fails)
    failed = []

    def failing(path: Path, target: Path) -> Path:
        if not failed:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return real(path, target)  # type: ignore[no-any-return]

    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(Path, fails, failing)
        if not links:
            patch.setattr(os, "link", no_links)
        with pytest.raises(ChatsError, match="Input/output"):
            restore(backups(file)[0], file)
    assert failed
    chats = Chats(file)
    assert len(chats.chats()) == 2
    chats.close()
    assert not list(file.parent.glob("*partial*"))
    assert restore(backups(file)[0], file).messages == 0


def test_checking_finds_damage_in_tables_and_in_the_index(chats: Chats, file: Path) -> None:
    fill(chats, 20)
    check(file)
    chats._db._connection.execute("DELETE FROM words_data WHERE id = (SELECT max(id) FROM words_data)")
    chats.close()
    with pytest.raises(ChatsDamaged, match="repair"):
        check(file)
    restored = restore(None, file)
    assert restored.messages == 80
    check(file)
    damage(file, range(30, 40))
    with pytest.raises(ChatsDamaged):
        check(file)


def test_messages_that_point_in_a_circle_are_taken_apart(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    chats._db._connection.execute("UPDATE messages SET parent = 4 WHERE id = 1")
    chats._db._connection.execute("UPDATE messages SET parent = 3 WHERE id = 6")
    chats.close()
    restore(None, file)
    chats = Chats(file)
    assert [len(chats.tree(1).path()), len(chats.tree(2).path())] == [4, 3]
    chats.close()


def test_a_chat_whose_messages_are_lost_keeps_its_title(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    chats._db._connection.execute("DELETE FROM messages WHERE chat = 1 OR id = 8")
    chats.close()
    restore(None, file)
    chats = Chats(file)
    assert [(info.title, info.tip, info.messages) for info in chats.chats()] == [("chat 1", 7, 3), ("chat 0", None, 0)]
    assert chats.tree(1).path() == []
    assert [hit.chat for hit in chats.search("chat")] == [2]
    chats.close()


def test_backups_that_cannot_be_read_are_not_offered(chats: Chats, file: Path) -> None:
    fill(chats, 2)
    keep_daily(file, never)
    file.with_name("chats.db.backup-2").write_bytes(b"broken" * 1000)
    file.with_name("chats.db.backup.partial").write_bytes(b"")
    assert [type(copy) for copy in backups(file)] == [Backup]


def test_damage_that_sqlite_cannot_name_in_text(chats: Chats, file: Path) -> None:
    fill(chats, 3)
    keep_daily(file, never)
    chats.close()
    content = file.read_bytes()
    file.write_bytes(content.replace(b"CREATE TABLE", b"CREATE \xff\xfe\xc3TE"))
    with pytest.raises(ChatsDamaged):
        Chats(file)
    restore(backups(file)[0], file)
    chats = Chats(file)
    assert len(chats.chats()) == 3
    chats.close()


def test_any_damage_ends_in_a_sound_file(tmp_path: Path, dice: random.Random) -> None:
    for number in range(12):
        file = tmp_path / str(number) / "chats.db"
        chats = Chats(file)
        fill(chats, 15)
        keep_daily(file, never)
        fill(chats, 5)
        chats.close()
        content = bytearray(file.read_bytes())
        for _ in range(dice.choice([1, 5, 50])):
            start = dice.randrange(len(content))
            content[start : start + dice.choice([1, 16, 4096])] = dice.randbytes(dice.choice([1, 16, 4096]))
        if dice.random() < 0.3:
            del content[dice.randrange(len(content)) :]
        file.write_bytes(content)
        restored = restore(backups(file)[0], file)
        assert restored.aside.read_bytes() == content
        chats = Chats(file)
        assert len(chats.chats()) >= 15
        for info in chats.chats():
            chats.tree(info.id).path()
        assert {len(chats.tree(chat).nodes) for chat in range(1, 16)} == {4}
        assert len(chats.search("word", limit=200)) >= 60
        chats.close()
        assert is_sound(file)
