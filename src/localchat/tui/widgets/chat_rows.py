"""The chats as rows under headings of days: grouping, order, filter, and how each one looks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from textual.content import Content

from localchat.chats.records import ChatInfo
from localchat.safe_text import safe_line
from localchat.tui.dates import day_group
from localchat.tui.widgets.rows import Rows

UNDO = "deleted, u undoes"
_LONGEST_TITLE = 300
_LEFT = 2  # cells before a title: the mark of the current chat stands there


class ChatRows(Rows[ChatInfo | str]):
    """Chats, and headings (strings) among them. `current` is open now; `gone` was deleted and can be brought back."""

    def __init__(self) -> None:
        super().__init__()
        self.current: int | None = None
        self.gone: int | None = None

    def chat_at(self, row: int | None) -> ChatInfo | None:
        """The chat in a row, if it holds one."""
        found = self.rows[row] if row is not None else None
        return found if isinstance(found, ChatInfo) else None

    def row_of(self, chat: int | None) -> int | None:
        """The row that a chat is in."""
        rows = enumerate(self.rows)
        return next((row for row, one in rows if isinstance(one, ChatInfo) and one.id == chat), None)

    def height_of(self, row: int, width: int) -> int:
        """One line; an empty one before each heading but the first."""
        return 2 if row and isinstance(self.rows[row], str) else 1

    def can_mark(self, row: int) -> bool:
        """Every chat, and no heading."""
        return isinstance(self.rows[row], ChatInfo)

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """A heading, or the mark and the title of a chat."""
        one = self.rows[row]
        if isinstance(one, str):
            heading = Content.styled(f" {one}", "$muted").truncate(width, ellipsis=True)
            return [Content(""), heading] if row else [heading]
        title = shown_title(one)
        mark = ("› ", "$muted") if marked else ("  ", "")
        if one.id == self.gone:
            room = width - _LEFT - len(UNDO) - 1
            struck = Content.styled(title, "$faint strike").truncate(max(0, room), ellipsis=True, pad=True)
            return [Content.assemble(mark, struck, " ", (UNDO, "$muted")).truncate(width)]
        current = one.id == self.current
        style = "$accent" if current else "$foreground" if marked or one.title else "$muted"
        mark = ("▎ ", "$accent") if current else mark
        return [Content.assemble(mark, (title, style)).truncate(width, ellipsis=True)]


def shown_title(chat: ChatInfo) -> str:
    """The title of a chat as one safe line; a chat may have none yet."""
    return safe_line(chat.title[:_LONGEST_TITLE]) or "Untitled"


def grouped(chats: Iterable[ChatInfo], now: datetime) -> list[ChatInfo | str]:
    """The pinned chats and then the others, the newest first, under a heading for each group."""
    rows: list[ChatInfo | str] = []
    heading = ""
    for chat in sorted(chats, key=lambda chat: (not chat.pinned, -chat.updated)):
        group = "Pinned" if chat.pinned else day_group(chat.updated, now)
        if group != heading:
            heading = group
            rows.append(heading)
        rows.append(chat)
    return rows


def matches(chat: ChatInfo, words: Iterable[str]) -> bool:
    """Whether each of the words (from `plain`) stands somewhere in the chat's title."""
    title = plain(chat.title[:_LONGEST_TITLE])
    return all(word in title for word in words)


@lru_cache(maxsize=20_000)
def plain(text: str) -> str:
    """`text` without case and accents, so that "cafe" finds "Café"."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(part for part in parts if not unicodedata.combining(part))
