"""What `ask` keeps: the question before it is sent, the answer while it comes.

Trouble with the disk costs a line on stderr, and never the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Node
from localchat.chats.reply import Reply
from localchat.chats.store import Chats
from localchat.errors import ChatsDiskFull, ChatsError, UsageError
from localchat.protocol import Message

_PATIENCE_S = 2.0
"""How long an answer waits for the question to be on disk, and the end of the program for the answer."""


@dataclass(frozen=True)
class Continued:
    """The conversation that a question goes on with: its path so far, and the model that answered last."""

    info: ChatInfo
    path: list[Node]

    @property
    def model(self) -> str:
        """The model that answered last."""
        return next((node.outcome.model for node in reversed(self.path) if node.outcome.model), "")


class Log:
    """One question and its answer on their way to the disk; `chat` is the number of their conversation, once known.

    One that does not keep (`keeps`) only finds what is continued.
    """

    def __init__(self, say: Callable[[str], object], *, keeps: bool) -> None:
        self.chat: int | None = None
        self.keeps = keeps
        self._say = say
        self._trouble = ""
        self._keeper = Keeper()
        self._asked: Future[tuple[int, int]] | None = None
        self._answer: int | None = None

    def continued(self, chat: int | None) -> Continued:
        """A conversation by its number, or the last question that was kept.

        Raises `ChatsError`, and `UsageError` where none was kept.
        """

        def find(chats: Chats) -> Continued | None:
            info = chats.latest("ask") if chat is None else chats.info(chat)
            return Continued(info, chats.tree(info.id).path()) if info else None

        found = self._keeper.call(find).result()
        if not found:
            raise UsageError("there is no earlier question to continue: ask one without -c")
        return found

    def question(
        self, words: str, attachments: Sequence[Attachment], settings: ChatSettings, before: Continued | None
    ) -> None:
        """Have the question on disk, if that can be done soon."""
        message, model = Message("user", words), settings.model
        parent = before.path[-1].id if before and before.path else None

        def keep(chats: Chats) -> tuple[int, int]:
            with chats.together():
                chat = before.info.id if before else chats.create(settings, "ask")
                return chat, chats.ask(chat, parent, message, attachments, model=model)[1]

        self._asked = self._keeper.call(keep)
        try:
            self._take_number(_PATIENCE_S)
        except TookTooLong:
            pass  # it may still come while the model answers
        except ChatsError as error:
            self._asked = None
            self._trouble = f"this question is not kept: {_reason(error)}"

    def write(self, reply: Reply, now: float) -> None:
        """The answer as it is now."""
        if self._answer is not None:
            self._keeper.write(self._answer, reply.message(), reply.outcome(now))

    def close(self, reply: Reply) -> None:
        """The answer as it ended, if a question was asked, on disk as far as that can be done soon."""
        patience_s = _PATIENCE_S
        try:
            if self._asked:
                self._take_number(_PATIENCE_S)
                assert self._answer is not None
                over = self._keeper.finish(
                    self._answer, reply.message(), reply.kept_state(), reply.outcome(time.monotonic())
                )
                over.result(_PATIENCE_S)
        except TookTooLong:
            self._trouble = f"this answer is not kept: {self._keeper.trouble or 'another program holds the file'}"
            patience_s = 0.0
        except ChatsError as error:
            self._trouble = f"this answer is not kept: {_reason(error)}"
        finally:
            self._keeper.close(patience_s)
        # Where nothing was answered, the reason for that is the one thing to say.
        if self._trouble and (reply.state != "failed" or reply.text):
            self._say(self._trouble)

    def _take_number(self, patience_s: float) -> None:
        assert self._asked
        self.chat, self._answer = self._asked.result(patience_s)


def _reason(error: ChatsError) -> str:
    """Why it was not kept. No program stays to keep it once there is room."""
    return error.message.partition(": ")[0] if isinstance(error, ChatsDiskFull) else error.message
