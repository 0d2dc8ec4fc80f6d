"""One chat as it is worked on: its tree, the answer on its way, what goes to disk, and what the person steers.

No widget is known here: a `view.View` is told what changed. Every message is on disk before an engine hears of it, and
an answer goes there while it comes; where the disk refuses, the person decides whether to go on without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatSettings, Node
from localchat.chats.reply import Reply
from localchat.chats.requests import request
from localchat.chats.tree import Tree
from localchat.errors import ChatsError, ContextExceeded, LocalchatError
from localchat.protocol import ChatRequest, Chunk, Message
from localchat.tui.beside import Beside
from localchat.tui.conversation import Item, first_seen, item_of, items
from localchat.tui.exchange import Ended, Engine, Exchange, Prepare, Prepared, Preparing
from localchat.tui.kept_chat import KeptChat
from localchat.tui.view import View


@dataclass(slots=True, eq=False)
class Waiting:
    """A message on its way to the disk, or one that waits for the end of the answer; with `edit` its place is beside
    the one whose parent is `parent`.
    """

    text: str
    attachments: list[Attachment]
    parent: int | None = None
    edit: bool = False
    insists: bool = False


class Session:
    """A chat, new (`chat` None until its first message) or opened, with `settings` for its requests.

    `running` is the answer on its way. Coroutines may raise `ChatsError` only where they say so.
    """

    def __init__(
        self,
        engine: Engine,
        keeper: Keeper,
        prepare: Prepare | None,
        settings: ChatSettings,
        *,
        clock: Callable[[], float],
        titles: bool = True,
    ) -> None:
        self.settings = settings
        self.kept = KeptChat(keeper)
        self.tree = Tree()
        self.view: View | None = None
        self.running: Reply | None = None
        self.beside = Beside(self, engine, clock, titles=titles)
        self.waiting: Waiting | None = None
        self._engine = engine
        self._prepare = prepare
        self._clock = clock
        self._exchange: Exchange | None = None
        self._replies: dict[int, Reply] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: list[Waiting] = []
        # Whoever begins an answer waits for the disk: two that do at the same moment begin one after the other.
        self._one_by_one = asyncio.Lock()

    # What it is.

    def items(self) -> list[Item]:
        """The messages of the path, as they stand on the page."""
        shown = items(self.tree, self._replies)
        if self.running and self.running.node is None:
            shown += self._beginning
        return shown

    def first_seen(self) -> tuple[int | None, str]:
        """Where the model's sight begins (see `conversation.first_seen`)."""
        return first_seen(self.tree, self._replies)

    def reply(self, node: int) -> Reply:
        """An answer of the tree."""
        return self._replies.get(node) or Reply.of(self.tree.nodes[node])

    @property
    def last_reply(self) -> Reply | None:
        """The answer that is on its way or, failing that, the last one on the path."""
        if self.running:
            return self.running
        node = next((node for node in reversed(self.tree.path()) if node.message.role == "assistant"), None)
        return self.reply(node.id) if node else None

    @property
    def chat(self) -> int | None:
        """The chat's number, None until its first message is kept."""
        return self.kept.number

    @property
    def busy(self) -> bool:
        """Whether there is something to look at: an answer, a title or a summary on its way."""
        beginning = bool(self._asked) or self._one_by_one.locked()
        return beginning or self.running is not None or self.beside.errand is not None

    # Opening.

    async def open(self, chat: int) -> None:
        """Take up a chat from the disk. Raises `ChatsError`."""
        self.tree, self.settings = await self.kept.open(chat)

    def change(self, settings: ChatSettings) -> Coroutine[object, object, None]:
        """Other settings from the next request on: at once here, and soon on disk. May raise `ChatsError`."""
        self.settings = settings
        return self.kept.change(lambda chats, chat: chats.set_settings(chat, settings))

    # Asking.

    def ask(
        self,
        text: str,
        attachments: list[Attachment],
        parent: int | None = None,
        *,
        edit: bool = False,
        insists: bool = False,
    ) -> Coroutine[object, object, None]:
        """Send a message after the tip; with `edit` beside the message whose parent is `parent`.

        While an answer is on its way, one message waits for its end. `busy` from the call on. Where the disk refuses
        it, it is given back, unless the person `insists`: from then on the chat is not kept.
        """
        asked = Waiting(text, attachments, parent, edit, insists)
        self._asked.append(asked)
        return self._ask(asked)

    async def _ask(self, asked: Waiting) -> None:
        async with self._one_by_one:
            if asked in self._asked:
                self._asked.remove(asked)
                await self._ask_now(asked)

    async def _ask_now(self, asked: Waiting) -> None:
        text, attachments = asked.text, asked.attachments
        if self.running:
            if self.waiting is None:
                self.waiting = asked
                self.tell(lambda view: view.queued(text))
            else:
                self._give_back(asked, LocalchatError("one message is waiting already; this one stays here"))
            return
        self.beside.cancel()
        before = self.tree.tip
        parent = asked.parent if asked.edit else before
        message, reply = Message("user", text), Reply(self._clock())
        self._replies, self.running = {}, reply
        prompt = Node(0, parent, message, created=time.time(), attachments=attachments)
        tree = Tree([Node(0, None, message, attachments=attachments)])
        self._beginning = [item_of(tree, tree.nodes[0], {}), Item(None, reply)]
        self._beginning[0].node = None
        if asked.edit:
            self.tree.tip = parent
            self.tell(lambda view: view.shown())
        else:
            self.tell(lambda view: view.added(self._beginning))
        try:
            question, answer = await self._written_down(asked, parent, message)
        except ChatsError as problem:
            error = problem
        else:
            prompt.id = question
            self._hang(prompt, answer, reply)
            self._begin(reply, self._request(self.tree.path(question)))
            self.tell(lambda view: view.listed())
            return
        self.running = None
        self.tree.go_to(before)
        self.tell(lambda view: view.shown())
        self._give_back(asked, error)

    async def _written_down(self, asked: Waiting, parent: int | None, message: Message) -> tuple[int, int]:
        try:
            return await self.kept.ask(parent, message, asked.attachments, self.settings)
        except ChatsError:
            if not asked.insists:
                raise
        self.kept.keeps = False
        return await self.kept.ask(parent, message, asked.attachments, self.settings)

    async def again(self, node: int | None = None) -> None:
        """Another answer to a question (`node`, or the one of the answer `node`; the last one where none is named).

        An attempt that came to nothing is taken up instead of leaving it beside the new one. Raises `ChatsError`.
        """
        async with self._one_by_one:
            await self._again(node)

    async def _again(self, node: int | None) -> None:
        path = self.tree.path()
        target = self.tree.nodes[node] if node is not None else (path[-1] if path else None)
        if target is None or self.running:
            return
        question = target if target.message.role == "user" else self.tree.nodes.get(target.parent or 0)
        if question is None:
            return
        self.beside.cancel()
        said = target.message.text() or target.message.reasoning_content
        empty = target.message.role == "assistant" and not said and target.state != "unfinished"
        reply = Reply(self._clock())
        if empty:
            await self.kept.resume(target.id)
            answer = target
            answer.state = "unfinished"
        else:
            number = await self.kept.answer_again(question.id)
            answer = Node(number, question.id, Message("assistant"), "unfinished", time.time())
            self.tree.add(answer)
        self.tree.go_to(answer.id)
        self._take_up(answer, reply)
        self._begin(reply, self._request(self.tree.path(question.id)))
        self.tell(lambda view: view.shown())

    async def once_more(self) -> None:
        """Ask for what did not fit: the rest of an answer that had begun, or a new one. Raises `ChatsError`."""
        reply = self.last_reply
        if reply and reply.node is not None and reply.text and not self.can_go_on(reply.node):
            await self.go_on(reply.node)
        else:
            await self.again()

    def can_go_on(self, node: int) -> str:
        """Why an answer cannot be continued; "" where it can."""
        target, reply = self.tree.nodes[node], self.reply(node)
        if target.message.role != "assistant":
            return "choose an answer to go on with"
        if not self._engine.goes_on:
            return "this server cannot go on with an answer: ask again instead"
        if target.state == "unfinished":
            return "another window is still writing this answer: open the chat again when it is done"
        if reply.state == "done" and reply.finish_reason != "length":
            return "this answer came to its own end"
        if self.tree.tip_under(node) != node:
            return "the chat has gone on after this answer: ask again instead"
        return ""

    async def go_on(self, node: int) -> None:
        """Have the model continue an answer that ended too early. Raises `ChatsError`."""
        async with self._one_by_one:
            if not self.running:
                await self._go_on(node)

    async def _go_on(self, node: int) -> None:
        self.beside.cancel()
        target = self.tree.nodes[node]
        await self.kept.resume(node)
        self.tree.go_to(node)
        target.state = "unfinished"
        reply = Reply.of(target)
        reply.resume(self._clock())
        self._take_up(target, reply)
        go_on = bool(reply.text or reply.reasoning)
        path = self.tree.path(node) if go_on else self.tree.path(target.parent)
        self._begin(reply, self._request(path, go_on=go_on))
        self.tell(lambda view: view.shown())

    def stop(self) -> None:
        """Stop the answer at once; what came stays."""
        # First what has come, so that the end that the stopping itself brings about is not taken for the answer's.
        self.look()
        if not self.running:
            self.beside.cancel()
            return
        self.running.stop(self._clock())
        if self._exchange:
            unsent = self._exchange.is_preparing
            self._exchange.stop()
            self._over(unsent=unsent)

    async def walk(self, node: int, by: int) -> bool:
        """Go to the sibling `by` places on; False where there is none. Raises `ChatsError`."""
        siblings = self.tree.siblings(node)
        place = siblings.index(node) + by
        if self.running or not 0 <= place < len(siblings):
            return False
        tip = self.tree.tip_under(siblings[place])
        self.tree.go_to(tip)
        self.tell(lambda view: view.shown(siblings[place]))
        await self.kept.change(lambda chats, chat: chats.go_to(chat, tip))
        return True

    async def show_node(self, node: int) -> None:
        """Have a message on the path, whatever branch it is on. Raises `ChatsError`."""
        if node in self.tree.nodes and all(node != one.id for one in self.tree.path()) and not self.running:
            tip = self.tree.tip_under(node)
            self.tree.go_to(tip)
            await self.kept.change(lambda chats, chat: chats.go_to(chat, tip))
        self.tell(lambda view: view.shown(node))

    def rename(self, title: str) -> Coroutine[object, object, None]:
        """Give the chat a title: at once here, and soon on disk. May raise `ChatsError`."""
        self.kept.rename(title, "person")
        return self._renamed(title)

    async def _renamed(self, title: str) -> None:
        await self.kept.change(lambda chats, chat: chats.rename(chat, title, "person"))
        self.tell(lambda view: view.listed())

    # The exchange.

    def look(self) -> None:
        """Take in what has come since the last look; a few dozen times a second, while `busy`."""
        self.beside.look()
        reply, now = self.running, self._clock()
        if not self._exchange or not reply:
            return
        for event in self._exchange.poll():
            if isinstance(event, Chunk):
                reply.take(event, now)
            elif isinstance(event, Preparing):
                reply.prepare(event.note)
            elif isinstance(event, Prepared):
                reply.state = "waiting"
            elif isinstance(event, Ended):
                if event.error:
                    reply.fail(event.error, now)
                else:
                    reply.finish(now)
                self._over(unsent=event.unsent)
                return
        self.kept.write(reply, now)

    def close(self) -> None:
        """Stop, and leave everything to the keeper: what was not sent becomes a draft."""
        self.beside.cancel()
        asked, self._asked = self._asked, []
        for one in asked:
            self.kept.leave_draft(one.text, one.attachments)
        if self.running:
            self.stop()

    def _request(self, path: list[Node], *, go_on: bool = False) -> ChatRequest:
        return request(path, self.settings, go_on=go_on, keep=self.kept.keeps)

    def _begin(self, reply: Reply, what: ChatRequest) -> None:
        if not reply.running:
            # Stopped while it was being written down.
            self._over(unsent=False)
            return
        self.kept.follow(reply)
        self._exchange = Exchange(self._engine, what, self._prepare)

    def _over(self, *, unsent: bool) -> None:
        """An answer has come to its end, one way or another."""
        reply, exchange = self.running, self._exchange
        assert reply and (exchange or not reply.running)
        self.running, self._exchange = None, None
        reply.unsent = unsent
        assert reply.node is not None
        node = self.tree.nodes[reply.node]
        node.message, node.state, node.outcome = reply.message(), reply.kept_state(), reply.outcome(self._clock())
        self.kept.finish(node)
        self.tell(lambda view: view.ended(reply))
        waiting, self.waiting = self.waiting, None
        if unsent:
            self._take_back(node)
        if waiting is not None:
            self.tell(lambda view: view.queued(None))
            if reply.state == "done":
                self.soon(self.ask(waiting.text, waiting.attachments, waiting.parent, edit=waiting.edit))
                return
            ended = "stopped" if reply.state == "stopped" else "the answer did not end well"
            self._give_back(waiting, LocalchatError(f"{ended}: your next message is here again"))
        if isinstance(reply.error, ContextExceeded):
            self.tell(lambda view: view.full())
        elif not unsent:
            self.beside.make_title()

    def _take_back(self, answer: Node) -> None:
        """A message that no engine saw goes back to where it was written; where nobody looks, it stays in the chat."""
        if not self.view or answer.parent is None or self.tree.siblings(answer.id) != [answer.id]:
            return
        question, reply = self.tree.nodes[answer.parent], self._replies[answer.id]
        self.tree.remove(answer.id)
        self.tree.remove(question.id)
        self.kept.soon(lambda chats, chat: chats.withdraw(chat, question.id))
        error = reply.error or LocalchatError("stopped before the message was sent")
        self.tell(lambda view: view.shown())
        self._give_back(Waiting(question.message.text(), question.attachments), error)

    def _give_back(self, asked: Waiting, error: LocalchatError) -> None:
        """A message that did not go out is the person's again: in the composer or, where nobody looks, as a draft."""
        if self.view:
            self.view.refused(asked.text, asked.attachments, error)
        else:
            self.kept.leave_draft(asked.text, asked.attachments)

    def _hang(self, prompt: Node, answer: int, reply: Reply) -> None:
        self.tree.add(prompt)
        node = Node(answer, prompt.id, Message("assistant"), "unfinished", time.time())
        self.tree.add(node)
        for item, number in zip(self._beginning, (prompt.id, answer), strict=True):
            told = item_of(self.tree, self.tree.nodes[number], {})
            item.node, item.place, item.places = number, told.place, told.places
            self.tell(lambda view, number=number: view.named(number))  # type: ignore[misc]
        self._take_up(node, reply)

    def _take_up(self, node: Node, reply: Reply) -> None:
        reply.node = node.id
        self._replies[node.id] = reply
        self.running = reply

    def soon(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` beside whatever happens; what goes wrong is told."""

        async def run() -> None:
            try:
                await work
            except LocalchatError as error:
                said = error.message
                self.tell(lambda view: view.said(said))

        task = asyncio.get_running_loop().create_task(run())
        # The loop itself does not keep a task alive.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell(self, what: Callable[[View], object]) -> None:
        """Tell whoever shows this session."""
        if self.view:
            what(self.view)
