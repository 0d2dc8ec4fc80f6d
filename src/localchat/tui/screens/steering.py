"""Steering the conversation: stop, ask again, go on, edit, walk between versions, and what the model sees of it."""

from __future__ import annotations

from msgspec.structs import replace

from localchat.chats.records import Draft
from localchat.tui.conversation import Item, Prompt
from localchat.tui.screens.parts import ChatParts


class Steering(ChatParts):
    """The part of the chat screen that steers answers."""

    # The answer.

    def action_stop(self) -> None:
        """Stop the answer at once; what came stays. Else leave what is being edited."""
        if self.composer.escape(answering=self.session.busy):
            return
        if self.session.busy:
            self.session.stop()
        elif not self.composer.has_focus_within:
            self.composer.focus()
        else:
            self.leave_edit()

    def action_again(self) -> None:
        """Another answer to the last question; in vi's normal mode the key is that of redo."""
        if self.composer.mode == "NORMAL" and self.composer.has_focus_within:
            self.composer.redo()
            return
        if self.session.running or not self.session.items():
            self.hint("stop the answer first" if self.session.running else "there is nothing to ask again")
            return
        self.do(self.session.again())

    def action_again_this(self) -> None:
        """Another answer to the question at the mark."""
        if (node := self._marked()) is not None:
            self.do(self.session.again(node))

    def action_go_on(self) -> None:
        """Go on with the last answer."""
        reply = self.session.last_reply
        self._go_on(reply.node if reply else None)

    def action_go_on_this(self) -> None:
        """Go on with the answer at the mark."""
        self._go_on(self._marked())

    def _go_on(self, node: int | None) -> None:
        if node is None or self.session.running:
            self.hint("there is nothing to go on with")
        elif why := self.session.can_go_on(node):
            self.hint(why)
        else:
            self.do(self.session.go_on(node))

    def action_edit(self) -> None:
        """Edit the last message."""
        mine = [item for item in self.session.items() if isinstance(item.content, Prompt)]
        self._edit(mine[-1] if mine else None)

    def action_edit_this(self) -> None:
        """Edit the message at the mark."""
        self._edit(self.transcript.current)

    def _edit(self, item: Item | None) -> None:
        if not item or item.node is None or not isinstance(item.content, Prompt):
            self.hint("choose a message of yours to edit")
        elif self.session.running:
            self.hint("stop the answer first")
        else:
            self.begin_edit(item.node, item.content)

    def begin_edit(self, node: int, prompt: Prompt) -> None:
        """Put a message into the composer, to be sent beside the old one."""
        self.keep_draft()
        draft = self.editing[1] if self.editing else self.composer.draft()
        self.editing = self.session.tree.nodes[node].parent, draft
        self.composer.put(Draft(prompt.text, prompt.attachments))
        self.composer.focus()
        self.show_status()

    def leave_edit(self) -> None:
        """Put the composer back as it was before an earlier message was edited."""
        if self.editing:
            self.composer.put(self.editing[1])
            self.editing = None
            self.keep_draft()
            self.show_status()

    def action_walk(self, by: int) -> None:
        """Go to another version of the message at the mark."""
        if (node := self._marked()) is not None:
            self.do(self.walk(node, by))

    async def walk(self, node: int, by: int) -> None:
        """Go to the version `by` places on."""
        if self.session.running:
            self.hint("stop the answer first")
        elif not await self.session.walk(node, by):
            self.hint("there is no other version on that side")

    def _marked(self) -> int | None:
        item = self.transcript.current
        if self.session.running:
            self.hint("stop the answer first")
            return None
        if not item or item.node is None:
            self.hint("choose a message first")
            return None
        return item.node

    # What the model sees.

    def full(self) -> None:
        """Let the person choose what happens with a window that is full."""
        from localchat.tui.screens.choose import Choice, ChooseScreen

        choices = [
            Choice("s", "Slide", "the oldest messages are no longer sent to the model; they stay here", "slide"),
            Choice("m", "Summarise", "the model sums the older messages up, and sees the summary instead", "summarise"),
            Choice("n", "Nothing", "shorten your message, or begin a new chat", ""),
        ]
        question = "The context window is full. What shall the model see?"
        self.app.push_screen(ChooseScreen(question, choices, unasked=True), self._chosen)

    def _chosen(self, choice: str | None) -> None:
        if choice == "slide":
            self.do(self._slide())
        elif choice == "summarise":
            self.action_summarise()

    async def _slide(self) -> None:
        await self.session.change(replace(self.session.settings, overflow="slide"))
        await self.session.once_more()

    def action_overflow(self) -> None:
        """What happens when the window is full."""
        slides = self.session.settings.overflow == "slide"
        said = "when the window is full: you are asked" if slides else "when the window is full: the oldest messages go"
        self.change_settings(replace(self.session.settings, overflow="error" if slides else "slide"), said)

    def action_summarise(self) -> None:
        """Put a summary in the place of the older messages."""
        if why := self.session.beside.summarise():
            self.hint(why)
        else:
            self.start_looking()
