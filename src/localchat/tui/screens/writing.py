"""Writing: what the composer tells, and the draft, which is on disk soon after every word."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from textual import events
from textual.timer import Timer

from localchat.chats.records import Attachment, Draft
from localchat.client.local import LocalEngine
from localchat.errors import ChatsError, LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.actions import by_slash, key_of
from localchat.tui.exchange import Engine
from localchat.tui.kept_chat import done, without
from localchat.tui.screens.parts import ChatParts
from localchat.tui.widgets.composer import Composer

_DRAFT_S = 0.5
_RETRY_S = 5.0
_COUNTED_CHARS = 400
"""Shorter texts are not worth a count of their tokens."""


class Writing(ChatParts):
    """The part of the chat screen around the composer.

    `unkept` is a message that could not be kept and goes out all the same if it is sent again; `kept_draft` is what the
    disk has of the draft, None where that is not known; `sent_edit` is what was sent last in the place of an earlier
    message, with that one's parent.
    """

    engine: Engine
    unkept: str | None = None
    kept_draft: Draft | None = Draft()
    sent_edit: tuple[str, int | None] | None = None
    _draft_timer: Timer | None = None

    def on_composer_sent(self, message: Composer.Sent) -> None:
        """Send it; where it could not be kept and is sent again all the same, it goes out without."""
        text, attachments = message.text, list(message.attachments)
        insists, self.unkept = text == self.unkept, None
        editing, self.editing = self.editing, None
        self.sent_edit = (text, editing[0]) if editing else None
        if editing:
            self.composer.give_back(editing[1].text, editing[1].attachments)
            self.do(self.session.ask(text, attachments, editing[0], edit=True, insists=insists))
        else:
            self.do(self.session.ask(text, attachments, insists=insists))
        self.composer.focus()

    def on_composer_command(self, message: Composer.Command) -> None:
        """Do what a slash command says."""
        action = by_slash(message.name)
        if not action:
            self.hint(f"there is no command /{safe_line(message.name)}: {key_of('keys')} shows all")
        elif message.argument and action.argument:
            getattr(self, f"slash_{action.name}")(message.argument)
        elif action.argument and not action.argument.startswith("["):
            self.hint(f"/{action.slash} needs more: /{action.slash} {action.argument}")
        else:
            method = action.method if action.method.startswith("app.") else f"screen.{action.method}"
            self.do(self.run_action(method))

    def on_composer_changed(self) -> None:
        """Keep the draft, in a moment."""
        if len(self.composer.text) < _COUNTED_CHARS:
            self.composer.hint = ""
        if not self._draft_timer:
            self._draft_timer = self.set_timer(_DRAFT_S, self._rest)

    def on_paste(self, event: events.Paste) -> None:
        """What is pasted while the page has the focus is meant for the composer."""
        self.composer.focus()
        self.composer.paste(event.text)

    def on_composer_said(self, message: Composer.Said) -> None:
        """Show what the composer has to say."""
        self.hint(message.text)

    def on_composer_left(self) -> None:
        """Up into the page."""
        self.action_read()

    def on_composer_attached(self, message: Composer.Attached) -> None:
        """Count the tokens of an attachment."""
        self.do(self._count(message.attachment, message.index))

    async def _count(self, attachment: Attachment, index: int) -> None:
        if (tokens := await self._tokens(attachment.text)) is not None:
            self.composer.set_tokens(index, tokens)

    def _rest(self) -> None:
        """The person paused in writing."""
        self._draft_timer = None
        self.keep_draft()
        text = self.composer.text
        if len(text) >= _COUNTED_CHARS:
            self.do(self._count_text(text))

    async def _count_text(self, text: str) -> None:
        if (tokens := await self._tokens(text)) is not None and text == self.composer.text:
            self.composer.hint = f"{tokens:,} tokens"

    async def _tokens(self, text: str) -> int | None:
        """How many tokens a text has for the model of this chat; None where the engine is somewhere else."""
        if not isinstance(self.engine, LocalEngine):
            return None
        try:
            model = self.session.settings.model
            return len(await asyncio.to_thread(self.engine.tokenize, text, model, verified_only=True))
        except LocalchatError:
            return None  # nothing that a person must know: the message itself will tell

    def take_back(self, text: str, attachments: list[Attachment]) -> None:
        """Put a message that did not go out into the composer again: as an edit, if it was one."""
        if self.sent_edit and self.sent_edit[0] == text and not self.editing:
            self.editing = self.sent_edit[1], self.composer.draft()
            self.composer.put(Draft(text, attachments))
        else:
            self.composer.give_back(text, attachments)
        self.sent_edit = None

    # Drafts.

    async def put_draft(self, chat: int | None) -> None:
        """Read the draft of a chat, and put it into the composer if that chat is still shown."""
        draft = await self.read(lambda chats: chats.draft(chat))
        if chat == self.session.chat:
            self.take_draft(draft)

    def take_draft(self, draft: Draft) -> None:
        """Take up a draft from the disk, before whatever has been typed meanwhile."""
        self.kept_draft = draft
        if waiting := self.session.waiting:
            draft = without(draft, waiting.text, waiting.attachments)
        if self.composer.draft() == Draft():
            self.composer.put(draft)
        elif draft != Draft():
            self.composer.give_back(draft.text, draft.attachments)
        self.keep_draft()

    def keep_draft(self) -> None:
        """Have what stands in the composer on disk."""
        draft, chat = self._whole_draft(), self.session.chat
        if draft != self.kept_draft and self.session.kept.keeps:
            self.kept_draft = draft
            future = self.keeper.call(lambda chats: chats.keep_draft(chat, draft))
            if self.is_running:
                self.do(self._told(future))

    async def _told(self, future: Future[None]) -> None:
        """Wait for the disk, so that what goes wrong is said, and tried again."""
        try:
            await done(future)
        except ChatsError:
            self.kept_draft = None
            self._draft_timer = self._draft_timer or self.set_timer(_RETRY_S, self._rest)
            raise

    def _whole_draft(self) -> Draft:
        """All that was written here and has not gone out: what waits, what is edited, what stands in the composer."""
        parts = [self.composer.draft()]
        if waiting := self.session.waiting:
            parts.insert(0, Draft(waiting.text, waiting.attachments))
        if self.editing:
            parts.append(self.editing[1])
        text = "\n".join(part.text for part in parts if part.text)
        return Draft(text, [one for part in parts for one in part.attachments])
