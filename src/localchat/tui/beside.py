"""What a session has its model do beside the conversation, one thing at a time: name the chat, sum up what is old."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from localchat.errors import ContextExceeded, LocalchatError
from localchat.tui.errands import Errand, summary_request, title_from, title_request
from localchat.tui.exchange import Engine

if TYPE_CHECKING:
    from localchat.tui.session import Session

_TITLED_WITHIN = 3
"""A title is asked for behind one of so many first answers."""


class Beside:
    """The errands of one session; `errand` is the one on its way. `titles`: whether chats are named at all."""

    def __init__(self, session: Session, engine: Engine, clock: Callable[[], float], *, titles: bool) -> None:
        self.errand: Errand | None = None
        self._session = session
        self._engine = engine
        self._clock = clock
        self._titles = titles

    def look(self) -> None:
        """Take in what has come since the last look."""
        if self.errand and self.errand.look(self._clock()):
            self.errand = None

    def summarise(self) -> str:
        """Have the older messages summarised, then ask again what did not fit; "" or why that cannot be."""
        path = self._session.tree.path()
        users = [number for number, node in enumerate(path) if node.message.role == "user"]
        if self._session.running:
            return "stop the answer first"
        if len(users) < 2:
            return "there are no older messages to summarise"
        # The last question stays, and the exchange before it where there is more than that.
        end = users[-2] if len(users) > 2 else users[-1]
        older = path[:end]

        def done(text: str) -> None:
            self._session.soon(self._summarised(older[-1].id, text))

        def failed(error: LocalchatError) -> None:
            self._session.tell(lambda view: view.said(f"no summary: {error.message}"))

        asked = summary_request(older, self._session.settings, keep=self._session.kept.keeps)
        self.cancel()
        self.errand = Errand("summarising", self._engine, asked, self._clock(), done, failed)
        return ""

    async def _summarised(self, node: int, text: str) -> None:
        if not text:
            self._session.tell(
                lambda view: view.said("the model gave no summary: try again, or let the oldest messages slide")
            )
            return
        self._session.tree.nodes[node].summary = text
        await self._session.kept.change(lambda chats, _: chats.summarise(node, text))
        self._session.tell(lambda view: view.shown())
        reply = self._session.last_reply
        if reply and isinstance(reply.error, ContextExceeded):
            await self._session.once_more()

    def cancel(self) -> None:
        """Give up a title or a summary that is being made."""
        if self.errand:
            self.errand.stop()
            self.errand = None

    def make_title(self) -> None:
        """Have the chat named, where it has no name but its first words."""
        reply, path = self._session.last_reply, self._session.tree.path()
        answered = [node for node in path if node.message.role == "assistant" and node.message.text()]
        named = self._session.kept.titled_by != "words" or self._session.chat is None
        # Not only behind the first answer: that may have been stopped, or another question was waiting for its end.
        wanted = self._titles and not named and len(answered) <= _TITLED_WITHIN
        # A model that thinks first would be long about it.
        if not wanted or not reply or reply.state != "done" or reply.reasoning:
            return

        def done(text: str) -> None:
            if title := title_from(text):
                self._session.kept.rename(title, "model")
                self._session.kept.soon(lambda chats, chat: chats.rename(chat, title, "model"))
                self._session.tell(lambda view: view.listed())

        self.errand = Errand(
            "naming the chat",
            self._engine,
            title_request(path, self._session.settings, keep=self._session.kept.keeps),
            self._clock(),
            done,
        )
