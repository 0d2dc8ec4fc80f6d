"""One chat on the disk, as a session works on it, or (where the person chose so) a chat that is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Draft, Node
from localchat.chats.reply import Reply
from localchat.chats.store import Chats
from localchat.chats.tree import Tree
from localchat.protocol import Message

T = TypeVar("T")


class KeptChat:
    """`number` is None until the first message. With `keeps` off nothing more goes to disk, and messages get numbers
    below zero. Every coroutine may raise `ChatsError`.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.number: int | None = None
        self.title = ""
        self.titled_by = "words"
        self.keeps = True
        self._keeper = keeper
        self._unkept = 0
        self._written = (-1, -1)

    async def open(self, number: int) -> tuple[Tree, ChatSettings]:
        """Take up a chat."""
        info, tree = await self._done(lambda chats: (chats.info(number), chats.tree(number)))
        self._take(info)
        return tree, info.settings

    async def ask(
        self, parent: int | None, message: Message, attachments: list[Attachment], settings: ChatSettings
    ) -> tuple[int, int]:
        """Keep a message and its unfinished answer, in one transaction: their numbers."""
        if not self.keeps:
            return self._next(), self._next()
        known, title = self.number, self.title if self.titled_by == "person" else ""

        def work(chats: Chats) -> tuple[ChatInfo, int, int]:
            with chats.together():
                number = known if known is not None else chats.create(settings, title=title)
                # What else stood in the composer stays: the message may have waited while more was written.
                rest = without(chats.draft(known), message.text(), attachments)
                question, answer = chats.ask(number, parent, message, attachments, model=settings.model)
                if rest != Draft():
                    chats.keep_draft(number, rest)
                return chats.info(number), question, answer

        info, question, answer = await self._done(work)
        self._take(info)
        return question, answer

    async def answer_again(self, question: int) -> int:
        """Keep another unfinished answer: its number."""
        number = self.number
        if not self.keeps or number is None:
            return self._next()
        return await self._done(lambda chats: chats.answer_again(number, question))

    async def resume(self, node: int) -> None:
        """An answer is being written again."""
        if self.keeps and node > 0:
            await self._done(lambda chats: chats.resume(node))

    async def change(self, work: Callable[[Chats, int], object]) -> None:
        """Have something changed about this chat."""
        if (future := self.soon(work)) is not None:
            await done(future)

    def soon(self, work: Callable[[Chats, int], T]) -> Future[T] | None:
        """Have something changed about this chat, without waiting for it; None where it is not kept."""
        number = self.number
        return self._keeper.call(lambda chats: work(chats, number)) if number is not None and self.keeps else None

    def rename(self, title: str, by: str) -> None:
        """Remember a title that was given."""
        self.title, self.titled_by = title, by

    def leave_draft(self, text: str, attachments: list[Attachment]) -> None:
        """Put a message that did not go out before the draft of this chat."""
        number = self.number

        def work(chats: Chats) -> None:
            draft = chats.draft(number)
            if not _begins(draft, text, attachments):
                joined = f"{text}\n{draft.text}" if draft.text else text
                chats.keep_draft(number, Draft(joined, [*attachments, *draft.attachments]))

        self._keeper.call(work)

    # The answer that is being written.

    def follow(self, reply: Reply) -> None:
        """An answer begins, or goes on."""
        self._written = (-1, -1)
        if self.keeps and reply.node is not None:
            self._keeper.follow(reply.node)

    def write(self, reply: Reply, now: float) -> None:
        """What has come of it so far."""
        written = len(reply.text), len(reply.reasoning)
        if written != self._written and self.keeps and reply.node is not None:
            self._written = written
            self._keeper.write(reply.node, reply.message(), reply.outcome(now))

    def finish(self, node: Node) -> None:
        """How it ended."""
        if self.keeps:
            self._keeper.finish(node.id, node.message, node.state, node.outcome)

    async def _done(self, work: Callable[[Chats], T]) -> T:
        return await done(self._keeper.call(work))

    def _take(self, info: ChatInfo) -> None:
        self.number, self.title, self.titled_by = info.id, info.title, info.titled_by

    def _next(self) -> int:
        """A number for a message that is not kept: below zero, where no kept one is."""
        self._unkept -= 1
        return self._unkept


async def done(future: Future[T]) -> T:
    """Wait for what a keeper was asked for; it is done also where nobody waits any more. Raises what it raised."""
    return await asyncio.shield(asyncio.wrap_future(future))


def without(draft: Draft, text: str, attachments: Sequence[Attachment]) -> Draft:
    """What is left of a draft that began with a message which goes out; of another (an older state of it), nothing."""
    if not _begins(draft, text, attachments):
        return Draft()
    return Draft(draft.text[len(text) + 1 :], draft.attachments[len(attachments) :])


def _begins(draft: Draft, text: str, attachments: Sequence[Attachment]) -> bool:
    same = draft.text == text or draft.text.startswith(f"{text}\n")
    return same and draft.attachments[: len(attachments)] == list(attachments)
