"""The conversations on disk, as calls that return when what they did is there to stay.

Every call is one transaction. Knows tables and what they hold; the texts of search are in `search`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from localchat.chats import rows
from localchat.chats.columns import decoded, encoded, first_words, one_line, text
from localchat.chats.database import Database
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Draft, Hit, Kind, Outcome, State
from localchat.chats.tree import Tree
from localchat.chats.writers import Writers
from localchat.errors import ChatsError, NoSuchChat
from localchat.paths import paths
from localchat.protocol import Message

KEPT_DAYS = 30
"""How long a deleted chat can be restored, days."""

_DAY_S = 86400.0
_NOT_BEGUN = 0


class Chats:
    """The chats in `file` (by default those of this user). Belongs to one thread.

    Raises `ChatsError` and its kinds: locked, read-only, full, damaged, no such chat. An answer whose writer died has
    the state "broken" from the next opening, listing or reading on.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or paths().chats
        self._db = Database(self.file)
        self._writers = Writers(self._db)
        try:
            self._writers.mend()
            self._writers.sweep()
            self.purge(KEPT_DAYS)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file. Answers that are still being written here are marked as broken off."""
        self._writers.close()
        self._db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All calls within the block are one transaction: many messages at the cost of one, all or none of them."""
        with self._db.writing():
            yield

    # Writing

    def create(
        self,
        settings: ChatSettings,
        kind: Kind = "chat",
        title: str = "",
        *,
        titled_by: Literal["words", "model", "person"] = "person",
        created: float | None = None,
    ) -> int:
        """A new chat; its number. Without a title the first message gives it one."""
        now = time.time() if created is None else created
        title = one_line(title)
        with self._db.writing() as db:
            return _number(
                db.execute(
                    "INSERT INTO chats (kind, title, titled_by, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?)",
                    (kind, title, titled_by if title else "words", now, now, encoded(settings)),
                )
            )

    def ask(
        self,
        chat: int,
        parent: int | None,
        message: Message,
        attachments: Sequence[Attachment] = (),
        *,
        model: str = "",
    ) -> tuple[int, int]:
        """Keep the person's message after `parent` (None: at the root), and an unfinished answer: their numbers.

        The answer becomes the tip, and the draft that the message was is gone.
        """
        with self._db.writing() as db:
            kind = self._revive(db, chat)
            first = not db.execute("SELECT 1 FROM messages WHERE chat = ?", (chat,)).fetchone()
            question = self._insert(db, chat, parent, message, attachments=attachments)
            answer = self._insert(db, chat, question, Message("assistant"), "unfinished", Outcome(model=model))
            self._title_by_words(db, chat)
            if kind == "chat":
                drafts = (chat, _NOT_BEGUN if first else chat)
                db.execute("DELETE FROM drafts WHERE chat IN (?, ?)", drafts)
        return question, answer

    def answer_again(self, chat: int, question: int, *, model: str = "") -> int:
        """Another answer to a message, unfinished, beside those there are: its number. It becomes the tip."""
        with self._db.writing() as db:
            self._revive(db, chat)
            return self._insert(db, chat, question, Message("assistant"), "unfinished", Outcome(model=model))

    def resume(self, node: int) -> None:
        """An answer that broke off is being written again."""
        with self._db.writing() as db:
            row = db.execute(
                "SELECT chat, state, writer FROM messages WHERE id = ? AND role = 'assistant'", (_safe(node),)
            ).fetchone()
            if not row:
                raise _no_message(node)
            if row[1] == "unfinished" and self._writers.is_another(row[2]):
                raise ChatsError("another window is still writing this answer: wait until it is done")
            self._revive(db, row[0])
            writer = self._writers.own()
            db.execute("UPDATE messages SET state = 'unfinished', writer = ? WHERE id = ?", (writer, node))

    def save(self, node: int, message: Message, state: State, outcome: Outcome) -> None:
        """Keep an answer as it is now."""
        unfinished = state == "unfinished"
        with self._db.writing() as db:
            writer = self._writers.own() if unfinished else None
            changed = db.execute(
                "UPDATE messages SET content = ?, reasoning = ?, state = ?, writer = ?, outcome = ? WHERE id = ?",
                (*_words(message), state, writer, encoded(outcome), _safe(node)),
            )
            if not changed.rowcount:
                raise _no_message(node)
            if not unfinished:
                db.execute(
                    "UPDATE chats SET updated = max(updated, ?) WHERE id = (SELECT chat FROM messages WHERE id = ?)",
                    (time.time(), node),
                )

    def withdraw(self, chat: int, question: int) -> None:
        """Take back a message that no engine saw, with its empty answers; the tip goes back to where it was asked.

        Raises `ChatsError` where an answer has words, or somebody went on after it.
        """
        with self._db.writing() as db:
            parent, _ = self._message(db, chat, question)
            kept = db.execute(
                """SELECT 1 FROM messages AS answer WHERE parent = ? AND (content <> '' OR reasoning <> ''
                    OR role <> 'assistant' OR EXISTS (SELECT 1 FROM messages WHERE parent = answer.id))""",
                (question,),
            ).fetchone()
            if kept:
                raise ChatsError("this message was answered, so it stays: edit it, and the new one stands beside it")
            db.execute("DELETE FROM messages WHERE parent = ?", (question,))
            db.execute("DELETE FROM messages WHERE id = ?", (question,))
            db.execute("UPDATE chats SET tip = ? WHERE id = ?", (parent, chat))
            if not db.execute("SELECT 1 FROM messages WHERE chat = ?", (chat,)).fetchone():
                db.execute("UPDATE chats SET title = '' WHERE id = ? AND titled_by <> 'person'", (chat,))

    def append(
        self,
        chat: int,
        parent: int | None,
        message: Message,
        state: State = "done",
        *,
        outcome: Outcome | None = None,
        attachments: Sequence[Attachment] = (),
        created: float | None = None,
        summary: str | None = None,
    ) -> int:
        """Keep a message that came from elsewhere: its number. It becomes the tip."""
        with self._db.writing() as db:
            self._revive(db, chat)
            return self._insert(db, chat, parent, message, state, outcome, attachments, created, summary)

    def summarise(self, node: int, summary: str | None) -> None:
        """Have `summary` stand, for the model, in the place of a message and all before it; None takes that back."""
        with self._db.writing() as db:
            value = None if summary is None else text(summary)
            if not db.execute("UPDATE messages SET summary = ? WHERE id = ?", (value, _safe(node))).rowcount:
                raise _no_message(node)

    def go_to(self, chat: int, tip: int | None) -> None:
        """Remember which message is the last of the path that is shown."""
        with self._db.writing() as db:
            if tip is not None:
                self._message(db, chat, tip)
            self._change(db, chat, "tip = ?", tip)

    def rename(self, chat: int, title: str, by: Literal["person", "model"] = "person") -> None:
        """Give a chat a title; a model does not overrule the person. An empty one stands for the first words."""
        title = one_line(title)
        with self._db.writing() as db:
            unless_persons = "" if by == "person" else " AND titled_by <> 'person'"
            self._change(db, chat, "title = title", None)
            if title:
                db.execute(f"UPDATE chats SET title = ?, titled_by = ? WHERE id = ?{unless_persons}", (title, by, chat))
            elif by == "person":
                db.execute("UPDATE chats SET title = '', titled_by = 'words' WHERE id = ?", (chat,))
                self._title_by_words(db, chat)

    def pin(self, chat: int, pinned: bool) -> None:
        """Keep a chat at the top of the list, or no longer."""
        with self._db.writing() as db:
            self._change(db, chat, "pinned = ?", pinned)

    def set_settings(self, chat: int, settings: ChatSettings) -> None:
        """What goes with a chat's requests from now on."""
        with self._db.writing() as db:
            self._change(db, chat, "settings = ?", encoded(settings))

    def delete(self, chat: int) -> None:
        """Take a chat out of lists and search; `restore` brings it back within `KEPT_DAYS` days."""
        with self._db.writing() as db:
            self._change(db, chat, "deleted = ?", time.time())

    def restore(self, chat: int) -> None:
        """Bring back a chat that was deleted."""
        with self._db.writing() as db:
            if not db.execute("UPDATE chats SET deleted = NULL WHERE id = ?", (_safe(chat),)).rowcount:
                raise _no_chat(chat)

    def purge(self, older_than_days: float) -> None:
        """Remove for good what was deleted so many days ago, and chats of that age in which nothing was written.

        Where nothing has to go, nothing is written; a file that cannot be written stays as it is.
        """
        before = time.time() - older_than_days * _DAY_S
        gone = """deleted < :before OR (updated < :before AND NOT EXISTS (SELECT 1 FROM messages WHERE chat = chats.id)
            AND NOT EXISTS (SELECT 1 FROM drafts WHERE chat = chats.id))"""
        with self._db.reading() as db:
            if not db.execute(f"SELECT 1 FROM chats WHERE {gone} LIMIT 1", {"before": before}).fetchone():
                return
        with suppress(ChatsError), self._db.writing() as db:
            db.execute(f"DELETE FROM chats WHERE {gone}", {"before": before})

    def keep_draft(self, chat: int | None, draft: Draft) -> None:
        """Keep what stands in the composer of a chat; None is the chat that has not begun."""
        with self._db.writing() as db:
            if chat is not None:
                self._change(db, chat, "id = id", None)
            number = _NOT_BEGUN if chat is None else chat
            if draft == Draft():
                db.execute("DELETE FROM drafts WHERE chat = ?", (number,))
            else:
                db.execute("INSERT OR REPLACE INTO drafts (chat, draft) VALUES (?, ?)", (number, encoded(draft)))

    # Reading

    def draft(self, chat: int | None) -> Draft:
        """What stood in the composer of a chat; None is the chat that has not begun."""
        with self._db.reading() as db:
            number = _NOT_BEGUN if chat is None else _safe(chat)
            row = db.execute("SELECT draft FROM drafts WHERE chat = ?", (number,)).fetchone()
            return decoded(row[0], Draft) if row else Draft()

    def tree(self, chat: int) -> Tree:
        """All messages of a chat, with the path that was shown last."""
        self._writers.mend()
        with self._db.reading() as db:
            tip = self.info(chat).tip
            return Tree(rows.nodes(db, chat), tip)

    def info(self, chat: int) -> ChatInfo:
        """What a list shows of one chat."""
        with self._db.reading() as db:
            for found in rows.infos(db, "id = ?", (_safe(chat),)):
                return found
        raise _no_chat(chat)

    def chats(self, kind: Kind | None = "chat", limit: int | None = None) -> list[ChatInfo]:
        """The chats of a kind (None: of both): pinned ones first, then those that were used last."""
        self._writers.mend()
        with self._db.reading() as db:
            wanted = "(? IS NULL OR kind = ?) ORDER BY pinned DESC, updated DESC, id DESC LIMIT ?"
            return list(rows.infos(db, wanted, (kind, kind, -1 if limit is None else limit)))

    def latest(self, kind: Kind) -> ChatInfo | None:
        """The chat of a kind that was used last."""
        with self._db.reading() as db:
            return next(rows.infos(db, "kind = ? ORDER BY updated DESC, id DESC LIMIT 1", (kind,)), None)

    def search(self, words: str, limit: int = 50, kind: Kind | None = None) -> list[Hit]:
        """Messages and titles in which all of `words` stand, the best first; see `search.search`."""
        from localchat.chats.search import search

        with self._db.reading() as db:
            return search(db, words, limit, kind)

    def prompts(self, limit: int = 200) -> list[str]:
        """What the person wrote in chats, the oldest first, without repeats in a row."""
        with self._db.reading() as db:
            written = db.execute(
                """SELECT content FROM messages JOIN chats ON chats.id = chat WHERE role = 'user' AND content <> ''
                AND kind = 'chat' AND deleted IS NULL ORDER BY messages.created DESC, messages.id DESC""",
            )
            found: list[str] = []
            for (content,) in written:
                if len(found) == limit:
                    break
                if not found or found[-1] != content:
                    found.append(content)
        return found[::-1]

    # Within a transaction

    def _insert(
        self,
        db: sqlite3.Connection,
        chat: int,
        parent: int | None,
        message: Message,
        state: State = "done",
        outcome: Outcome | None = None,
        attachments: Sequence[Attachment] = (),
        created: float | None = None,
        summary: str | None = None,
    ) -> int:
        if parent is not None:
            self._message(db, chat, parent)
        now = time.time() if created is None else created
        content, reasoning = _words(message)
        node = _number(
            db.execute(
                """INSERT INTO messages
                (chat, parent, role, name, content, reasoning, state, writer, created, outcome, summary) VALUES
                (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (
                    chat,
                    parent,
                    message.role,
                    message.name and text(message.name),
                    content,
                    reasoning,
                    state,
                    self._writers.own() if state == "unfinished" else None,
                    now,
                    encoded(outcome) if outcome else "{}",
                    summary and text(summary),
                ),
            )
        )
        db.executemany(
            "INSERT INTO attachments (message, name, content, tokens) VALUES (?, ?, ?, ?)",
            [(node, text(one.name), text(one.text), one.tokens) for one in attachments],
        )
        db.execute("UPDATE chats SET tip = ?, updated = max(updated, ?) WHERE id = ?", (node, now, chat))
        return node

    def _message(self, db: sqlite3.Connection, chat: int, node: int) -> tuple[int | None, str]:
        """Parent and role of a message of this chat."""
        found: tuple[int | None, str] | None = db.execute(
            "SELECT parent, role FROM messages WHERE id = ? AND chat = ?", (_safe(node), _safe(chat))
        ).fetchone()
        if not found:
            raise _no_message(node)
        return found

    def _change(self, db: sqlite3.Connection, chat: int, change: str, value: object) -> None:
        values = (value, _safe(chat)) if "?" in change else (_safe(chat),)
        if not db.execute(f"UPDATE chats SET {change} WHERE id = ? AND deleted IS NULL", values).rowcount:
            raise _no_chat(chat)

    def _revive(self, db: sqlite3.Connection, chat: int) -> Kind:
        """The kind of a chat that is being written to. One that was deleted elsewhere meanwhile comes back by that."""
        row: tuple[Kind] | None = db.execute("SELECT kind FROM chats WHERE id = ?", (_safe(chat),)).fetchone()
        if not row:
            raise _no_chat(chat)
        db.execute("UPDATE chats SET deleted = NULL WHERE id = ? AND deleted IS NOT NULL", (chat,))
        return row[0]

    def _title_by_words(self, db: sqlite3.Connection, chat: int) -> None:
        """Give a chat without a title the first words that were written in it."""
        row = db.execute(
            """SELECT messages.content, attachments.name FROM messages
            LEFT JOIN attachments ON message = messages.id WHERE chat = ? AND role = 'user'
            ORDER BY messages.id, attachments.id LIMIT 1""",
            (chat,),
        ).fetchone()
        if row:
            title = first_words(row[0]) or one_line(row[1] or "")
            db.execute("UPDATE chats SET title = ?, titled_by = 'words' WHERE id = ? AND title = ''", (title, chat))


def _words(message: Message) -> tuple[str, str | None]:
    thinking = message.reasoning_content
    return text(message.text()), None if thinking is None else text(thinking)


def _number(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _safe(number: int) -> int:
    """A number that SQLite can take; none of its own is larger."""
    return number if abs(number) < 1 << 63 else -1


def _no_chat(chat: int) -> NoSuchChat:
    return NoSuchChat(f"no chat has the number {chat}: `localchat chats list` shows those there are")


def _no_message(node: int) -> NoSuchChat:
    return NoSuchChat(f"no message there has the number {node}: `localchat chats list` shows the chats there are")
