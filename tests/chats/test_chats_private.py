"""Nobody else can read the chats (T16): folder 0700, every file 0600, whatever the umask; nothing of them elsewhere."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat.chats import schema
from localchat.chats.backup import backups, keep_daily, restore
from localchat.chats.records import ChatSettings, Outcome
from localchat.chats.store import Chats
from localchat.protocol import Message


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_every_file_is_private_at_every_moment(
    file: Path, umask: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setenv("SQLITE_TMPDIR", str(elsewhere))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    seen: dict[str, int] = {}
    chats = Chats(file)
    with chats.together():
        chat = chats.create(ChatSettings())
        _, answer = chats.ask(chat, None, Message("user", "secret " * 50_000))
        chats.rename(chat, "secret")
        seen |= modes(file.parent)
    seen |= modes(file.parent)
    assert keep_daily(file, lambda: bool(seen.update(modes(file.parent))))
    chats.search("secret")
    chats.save(answer, Message("assistant", "secret"), "done", Outcome())
    restore(backups(file)[0], file)
    seen |= modes(file.parent)
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setitem(schema.STEPS, 1, lambda db: db.execute("ALTER TABLE chats ADD COLUMN folder TEXT"))
    Chats(file).close()
    seen |= modes(file.parent)
    chats.close()
    names = {name.split("-")[0].partition("damaged")[1] or name for name in seen}
    assert {"chats.db", "chats.db-journal", "chats.db.backup", "chats.db.v1-backup", "damaged"} <= names
    assert any(name.startswith("writing-") for name in seen)
    assert any(name.endswith("partial") for name in seen)
    readable = {name: mode for name, mode in seen.items() if mode & 0o177}
    assert not readable
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(elsewhere.iterdir()) == []


def test_what_was_open_to_others_is_closed(file: Path) -> None:
    Chats(file).close()
    file.chmod(0o644)
    file.parent.chmod(0o755)
    Chats(file).close()
    assert (modes(file.parent)["chats.db"], stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
