"""One chat of the plain mode: what it asks, what comes as it comes, and all of it on disk. Only writes to the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as TookTooLong
from typing import TypeVar

import msgspec

from localchat.chats.exporting import ending
from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatSettings, Node
from localchat.chats.reply import Reply
from localchat.chats.requests import request
from localchat.chats.store import Chats
from localchat.chats.tree import Tree
from localchat.cli.ask import open_stream
from localchat.cli.figures import saved
from localchat.cli.progress import ProgressLine, describe
from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.errors import ChatsError, LocalchatError
from localchat.protocol import Chunk, Delta, Message
from localchat.safe_text import safe_line, safe_text

T = TypeVar("T")
_PATIENCE_S = 5.0
_QUIET_S = 2.0


class _Progress(ProgressLine):
    """Progress as lines of their own, now and then, and none of what is over within seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = False
        self._due = time.monotonic() + _QUIET_S

    def show(self, text: str, *, also_plain: bool = False) -> None:
        super().show(text, also_plain=True)


class PlainChat:
    """A chat, new or (`open`) from the disk. `keeps` False: what is said now is not kept, and the person knows."""

    def __init__(
        self, engine: LocalEngine | RemoteEngine, keeper: Keeper, settings: ChatSettings, *, show_thinking: bool
    ) -> None:
        self.settings = settings
        self.chat: int | None = None
        self.tree = Tree()
        self.keeps = True
        self.last: Reply | None = None
        self._engine = engine
        self._keeper = keeper
        self._show_thinking = show_thinking
        self._unkept = 0

    def kept(self, work: Callable[[Chats], T]) -> T:
        """Have something done with the chats on disk. Raises `ChatsError`."""
        try:
            return self._keeper.call(work).result(_PATIENCE_S)
        except TookTooLong as error:
            raise ChatsError("the chats cannot be reached: see whether the disk hangs") from error

    def open(self, chat: int) -> None:
        """Take up a chat. Raises `ChatsError`."""
        info, self.tree = self.kept(lambda chats: (chats.info(chat), chats.tree(chat)))
        self.chat, self.settings, self.keeps, self.last = info.id, info.settings, True, None

    def change(self, settings: ChatSettings) -> None:
        """Other settings from now on. Raises `ChatsError`."""
        if self.chat is not None and self.keeps:
            chat = self.chat
            self.kept(lambda chats: chats.set_settings(chat, settings))
        self.settings = settings

    def go_to(self, tip: int) -> None:
        """Make a message the last one of the path. Raises `ChatsError`."""
        self.tree.go_to(tip)
        if self.chat is not None and self.keeps:
            chat = self.chat
            self.kept(lambda chats: chats.go_to(chat, tip))

    def ask(self, text: str, attachments: Sequence[Attachment], parent: int | None) -> None:
        """Send a message that follows `parent`, and show the answer. Raises `ChatsError` where it cannot be kept."""
        message = Message("user", text)
        if self.keeps:
            chat, settings = self.chat, self.settings

            def keep(chats: Chats) -> tuple[int, int, int]:
                with chats.together():
                    number = chats.create(settings) if chat is None else chat
                    return number, *chats.ask(number, parent, message, attachments, model=settings.model)

            self.chat, question, number = self.kept(keep)
        else:
            question, number = self._number(), self._number()
        self.tree.add(Node(question, parent, message, created=time.time(), attachments=list(attachments)))
        self._answer(self._new_answer(number, question), Reply(time.monotonic()))

    def again(self) -> None:
        """Another answer to the last message, beside the one there is. Raises `ChatsError`."""
        path = self.tree.path()
        question = next(node.id for node in reversed(path) if node.message.role == "user")
        if self.keeps and self.chat is not None:
            chat, model = self.chat, self.settings.model
            number = self.kept(lambda chats: chats.answer_again(chat, question, model=model))
        else:
            number = self._number()
        self._answer(self._new_answer(number, question), Reply(time.monotonic()))

    def go_on(self, node: Node) -> None:
        """Have the model continue an answer that ended too early. Raises `ChatsError`."""
        if self.keeps and node.id > 0:
            self.kept(lambda chats: chats.resume(node.id))
            self._keeper.follow(node.id)
        reply = Reply.of(node)
        reply.resume(time.monotonic())
        self._answer(node, reply)

    def _new_answer(self, number: int, question: int) -> Node:
        node = Node(number, question, Message("assistant"), "unfinished", time.time())
        self.tree.add(node)
        return node

    def _answer(self, node: Node, reply: Reply) -> None:
        """Follow an answer to its end; Ctrl+C stops it, and what came stays."""
        go_on = bool(reply.text or reply.reasoning)
        path = self.tree.path(node.id if go_on else node.parent)
        shown = _Shown(self._show_thinking)
        asked = request(path, self.settings, go_on=go_on, keep=self.keeps)
        try:
            with (
                _Progress() as progress,
                open_stream(self._engine, asked, progress) as stream,
            ):
                for chunk in stream:
                    now = time.monotonic()
                    reply.take(chunk, now)
                    _tell(chunk, reply, progress)
                    for choice in chunk.choices:
                        shown.take(choice.delta, reply, now)
                    if self.keeps and chunk.choices:
                        self._keeper.write(node.id, reply.message(), reply.outcome(now))
            reply.finish(time.monotonic())
        except KeyboardInterrupt:
            reply.stop(time.monotonic())
        except LocalchatError as error:
            reply.fail(error, time.monotonic())
        finally:
            # The terminal may have gone: what came is kept all the same.
            reply.stop(time.monotonic())
            self._over(node, reply)
        shown.end(ending(node), saved(reply))

    def _over(self, node: Node, reply: Reply) -> None:
        outcome = reply.outcome(time.monotonic())
        node.message, node.state, node.outcome = reply.message(), reply.kept_state(), outcome
        self.last = reply
        if self.keeps:
            over = self._keeper.finish(node.id, node.message, node.state, outcome)
            try:
                over.result(_PATIENCE_S)
            except (TookTooLong, ChatsError) as error:
                why = self._keeper.trouble or (error.message if isinstance(error, ChatsError) else "the disk hangs")
                say(f"this answer is not on disk yet: {why}")

    def _number(self) -> int:
        """A number for a message that is not kept: below zero, where no kept one is."""
        self._unkept -= 1
        return self._unkept


class _Shown:
    """An answer on the terminal, under labels."""

    def __init__(self, show_thinking: bool) -> None:
        self._show_thinking = show_thinking
        self._part = ""
        self._last = "\n"

    def take(self, delta: Delta, reply: Reply, now: float) -> None:
        """Show the next piece."""
        if delta.reasoning_content:
            if self._part != "thinking":
                self._begin("thinking", "Thinking: " if self._show_thinking else "Thinking...\n")
            if self._show_thinking:
                self._write(delta.reasoning_content)
        if delta.content:
            if self._part != "answer":
                seconds = reply.thinking_seconds(now)
                long = self._part == "thinking" and seconds is not None and seconds >= 1
                thought = f" after {seconds:.0f} s of thinking" if long else ""
                name = f" ({safe_line(reply.model)})" if reply.model else ""
                self._begin("answer", f"Model{name}{thought}: ")
            self._write(delta.content)

    def end(self, *said: str) -> None:
        """The end of the last line, how the answer ended where it was not of itself, and what else there is to say."""
        if self._last != "\n":
            sys.stdout.write("\n")
        for one in filter(None, said):
            say(one)
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _begin(self, part: str, label: str) -> None:
        if self._last != "\n":
            sys.stdout.write("\n")
        self._part, self._last = part, label[-1]
        sys.stdout.write(label)

    def _write(self, text: str) -> None:
        text = safe_text(text)
        sys.stdout.write(text)
        sys.stdout.flush()
        self._last = text[-1:] or self._last


def say(text: str) -> None:
    """A word of localchat itself, which nobody shall take for the model's."""
    sys.stdout.write(f"[{safe_text(text)}]\n")
    sys.stdout.flush()


def _tell(chunk: Chunk, reply: Reply, progress: ProgressLine) -> None:
    """What the engine reports beside the answer."""
    report = chunk.localchat
    if not report:
        return
    if report.progress:
        progress.show(describe(report.progress, reply.model))
        return
    for warning in report.warnings:
        say(warning)
    if report.dropped_messages:
        say(f"the model no longer sees the first {report.dropped_messages} messages: they did not fit")


def sliding(settings: ChatSettings) -> ChatSettings:
    """The same settings, but for a full window: the oldest messages are left out then."""
    return msgspec.structs.replace(settings, overflow="slide")
