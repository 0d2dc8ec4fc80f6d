"""Rows of the tables as the values of `records`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from localchat.chats.columns import decoded
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Node, Outcome
from localchat.protocol import Message

_INFO = """
    SELECT id, kind, title, titled_by, pinned, created, updated, settings, tip,
        (SELECT count(*) FROM messages WHERE chat = chats.id)
    FROM chats WHERE deleted IS NULL AND """


def infos(db: sqlite3.Connection, rest: str, values: tuple[Any, ...]) -> Iterator[ChatInfo]:
    """The chats that are not deleted and match `rest`: a condition, with what follows it in a query."""
    for id, kind, title, titled_by, pinned, created, updated, settings, tip, messages in db.execute(
        _INFO + rest, values
    ):
        kept = decoded(settings, ChatSettings)
        yield ChatInfo(id, kind, title, titled_by, bool(pinned), created, updated, kept, tip, messages)


def nodes(db: sqlite3.Connection, chat: int) -> list[Node]:
    """The messages of a chat, the oldest first."""
    found = {}
    for id, parent, role, content, reasoning, name, state, created, outcome, summary in db.execute(
        """SELECT id, parent, role, content, reasoning, name, state, created, outcome, summary
        FROM messages WHERE chat = ? ORDER BY id""",
        (chat,),
    ):
        message = Message(role, content, reasoning, name)
        told = Outcome() if outcome == "{}" else decoded(outcome, Outcome)
        found[id] = Node(id, parent, message, state, created, told, [], summary)
    for message_id, name, content, tokens in db.execute(
        """SELECT message, attachments.name, attachments.content, tokens FROM attachments
        JOIN messages ON messages.id = message WHERE chat = ? ORDER BY attachments.id""",
        (chat,),
    ):
        found[message_id].attachments.append(Attachment(name, content, tokens))
    return list(found.values())
