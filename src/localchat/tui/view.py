"""What a session needs of whatever shows it."""

from __future__ import annotations

from typing import Protocol

from localchat.chats.records import Attachment
from localchat.chats.reply import Reply
from localchat.errors import LocalchatError
from localchat.tui.conversation import Item


class View(Protocol):
    """What shows a session: it is told what changed, always in the screen's own thread."""

    def shown(self, at: int | None = None) -> None:
        """The page is another one: `items()` tells it anew; `at` is the message to look at."""

    def added(self, new: list[Item]) -> None:
        """Messages came at the end."""

    def named(self, node: int) -> None:
        """A message was given its number, or its siblings changed."""

    def ended(self, reply: Reply) -> None:
        """An answer has come to its end, one way or another."""

    def refused(self, text: str, attachments: list[Attachment], error: LocalchatError) -> None:
        """A message did not go out: it is the person's again. `ChatsError`: it could not be kept."""

    def queued(self, text: str | None) -> None:
        """A message waits for the end of the answer, or no more."""

    def full(self) -> None:
        """The window is full: the person chooses what happens."""

    def said(self, text: str) -> None:
        """One sentence for the person."""

    def listed(self) -> None:
        """The list of chats changed: a title, a new chat."""
