"""The chat: connects what the person does, the sessions, and the widgets. What can be done is in its parts.

`writing` is about the composer and drafts, `steering` steers answers, `lists` knows other chats, `answering` models and
settings, `looking` is about reading.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatSettings, Draft
from localchat.chats.reply import Reply
from localchat.errors import ChatsDamaged, ChatsError, LocalchatError
from localchat.safe_text import safe_line
from localchat.settings import settings as own_settings
from localchat.tui.actions import bindings, key_of, slash_commands
from localchat.tui.conversation import Item
from localchat.tui.downloads import Downloads
from localchat.tui.exchange import Engine, Prepare
from localchat.tui.screens.answering import Answering
from localchat.tui.screens.lists import Lists
from localchat.tui.screens.looking import Looking
from localchat.tui.screens.steering import Steering
from localchat.tui.screens.writing import Writing
from localchat.tui.session import Session
from localchat.tui.widgets.composer import Composer
from localchat.tui.widgets.status import Status, facts, state_text
from localchat.tui.widgets.transcript import Transcript

_LOOKS_PER_SECOND = 25
_HINT_S = 4.0
_READING = "↑↓ messages, Esc writes, y copies, e edits, r asks again, ←→ versions"


class ChatScreen(Writing, Steering, Lists, Answering, Looking):
    """One chat on the screen; others may go on being answered behind it. `takes_keys`: there is a composer."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("chat")]

    DEFAULT_CSS = """
    ChatScreen {
        background: $background;
        color: $foreground;
        layers: page over;
        & > Horizontal { height: 1fr; }
        & .desk { width: 1fr; height: 100%; }
        & .foot { height: auto; align-horizontal: center; padding: 0 2; }
        & Status { width: 100%; max-width: 104; padding: 0 2; }
    }
    """

    def __init__(
        self,
        engine: Engine,
        keeper: Keeper,
        settings: ChatSettings,
        prepare: Prepare | None,
        takes_keys: Event,
        *,
        clock: Callable[[], float],
        offline: bool,
        chat: int | None = None,
    ) -> None:
        super().__init__()
        self.keeper = keeper
        self.engine = engine
        self.wanted = settings
        self._prepare = prepare
        self._takes_keys = takes_keys
        self._clock = clock
        self._offline = offline
        self._asked_for = chat
        self._last_title: str | None = None
        self._others: list[Session] = []
        self._offered = False
        self._quit_until = 0.0
        self._timer: Timer | None = None
        self._hint_timer: Timer | None = None
        own = own_settings()
        self.session = self._new_session(settings)
        self.downloads = Downloads(lambda download: self.post_message(self.Downloaded(download)))
        self.transcript = Transcript(self.shown_model(), offline, thinking_open=own.show_thinking, key=key_of)
        self.composer = Composer(commands=slash_commands(), newline_on_enter=own.newline_on_enter, vim=own.vim)
        self.status = Status()

    def compose(self) -> ComposeResult:
        """The page, and under it the composer and the status line."""
        with Horizontal(), Vertical(classes="desk"):
            yield self.transcript
            with Vertical(classes="foot"):
                yield self.composer
                yield self.status

    def on_mount(self) -> None:
        """Be ready, take up what was left, and have the engine warm up meanwhile."""
        self.call_after_refresh(self._takes_keys.set)
        self._timer = self.set_interval(1 / _LOOKS_PER_SECOND, self._look, pause=True)
        self.show_status()
        if self._asked_for is not None:
            self.do(self.open_chat(self._asked_for))
        else:
            self.do(self._take_up())
        # After the first picture: what these import would hold it up.
        self.call_after_refresh(self.begin_answering)
        if own_settings().sidebar and not self.is_narrow():
            self.show_sidebar()

    def on_unmount(self) -> None:
        """Let the engine go, and leave everything on disk."""
        self.keep_draft()
        self.downloads.close()
        self.session.waiting = None  # it is a part of the draft now
        for session in (self.session, *self._others):
            session.view = None
            session.close()

    async def _take_up(self) -> None:
        """A draft that was left in a chat that had not begun, and what can be continued."""
        draft, prompts, last = await self.read(lambda chats: (chats.draft(None), chats.prompts(), chats.latest("chat")))
        self.composer.set_history(prompts)
        self.take_draft(draft)
        if last and self.session.chat is None:
            self._last_title = last.title
            self.transcript.welcome(self.shown_model(), self._offline, last.title)

    # What the widgets tell.

    def on_descendant_focus(self) -> None:
        """Tell the keys that work now."""
        self.show_status()

    def on_transcript_typed(self, message: Transcript.Typed) -> None:
        """A person who types wants to write."""
        self.composer.type(message.character)

    def on_transcript_left(self) -> None:
        """Back to writing."""
        self.composer.focus()

    def on_transcript_walked(self, message: Transcript.Walked) -> None:
        """Another version, by mouse."""
        self.do(self.walk(message.node, message.by))

    # Which chat is shown.

    def _new_session(self, settings: ChatSettings) -> Session:
        session = Session(
            self.engine, self.keeper, self._prepare, settings, clock=self._clock, titles=own_settings().titles
        )
        session.view = self
        return session

    def begin_chat(self, *, focus: bool = True) -> None:
        """Show a new chat with the same settings; a draft comes along."""
        settings, draft = self.session.settings, self.composer.draft()
        if self.editing or self.session.waiting or draft == Draft():
            # What stands there belongs to the chat that is left.
            draft = Draft()
            self.keep_draft()
        else:
            self.composer.put(Draft())
            self.keep_draft()
        self._leave_session()
        self._show_session(self._new_session(settings))
        self.composer.put(draft)
        self.do(self.put_draft(None))
        if focus:
            self.composer.focus()

    async def open_chat(self, chat: int, at: int | None = None) -> None:
        """Show a chat, at a message of it."""
        if chat != self.session.chat:
            session = next((session for session in self._others if session.chat == chat), None)
            if session:
                self._others.remove(session)
            else:
                session = self._new_session(self.wanted)
                session.view = None
                await session.open(chat)
            self.keep_draft()
            self._leave_session()
            self._show_session(session)
            self.composer.put(Draft())
            await self.put_draft(chat)
            await self.refresh_list()
        if at is not None:
            await self.session.show_node(at)
            self.transcript.focus()

    def stop_chat(self, chat: int) -> None:
        """Stop the answer that a chat is getting, shown or not."""
        for session in (self.session, *self._others):
            if session.chat == chat:
                session.stop()

    def _leave_session(self) -> None:
        self.editing = None
        self.session.view = None
        self.session.beside.cancel()
        if self.session.busy:
            # It goes on being answered, and is there when the person comes back.
            self._others.append(self.session)

    def _show_session(self, session: Session) -> None:
        self.session, session.view = session, self
        self.shown()
        if session.waiting:
            self.transcript.show_queued(session.waiting.text)
        self.start_looking()

    # What the session tells (`view.View`).

    def shown(self, at: int | None = None) -> None:
        """Put the session's page on the screen."""
        page = self.session.items()
        if page:
            self.show_page()
            self.transcript.show(page, at)
            self.transcript.set_seen(*self.session.first_seen())
        else:
            self.transcript.welcome(self.shown_model(), self._offline, self._last_title)
        self.show_status()
        self.start_looking()

    def added(self, new: list[Item]) -> None:
        """Put new messages at the end of the page."""
        self._clear_hint()
        self.show_page()
        self.transcript.add(*new)

    def named(self, node: int) -> None:
        """A message has its number."""
        self.transcript.changed(node)

    def ended(self, reply: Reply) -> None:
        """Show how an answer ended."""
        self._clear_hint()
        self.transcript.update(self._clock())
        self.transcript.set_seen(*self.session.first_seen())
        self.look_at_engine()

    def refused(self, text: str, attachments: list[Attachment], error: LocalchatError) -> None:
        """Give a message back to the composer, and say why."""
        self.take_back(text, attachments)
        said = safe_line(error.message)
        if isinstance(error, ChatsDamaged):
            self.hint(said)
            self.offer_backup(error)
        elif isinstance(error, ChatsError):
            self.unkept = text
            again = f"{key_of('send')} again sends it without keeping it"
            self.hint(f"{again}; not sent: {said}", lasting=True)
        else:
            self.hint(said)

    def queued(self, text: str | None) -> None:
        """Show the message that waits; on disk it waits as a part of the draft."""
        self.transcript.show_queued(text)
        self.keep_draft()

    def said(self, text: str) -> None:
        """Say it in the status line."""
        self.hint(safe_line(text))

    def listed(self) -> None:
        """The list of chats has changed, and the draft went with the message that was sent."""
        self.kept_draft = None
        self.keep_draft()
        self.do(self.refresh_list())

    # The rest.

    def start_looking(self) -> None:
        """Look in on the engine regularly, while there is something to see."""
        if self._timer:
            self._timer.resume()

    def _look(self) -> None:
        """Take in and show what has come since the last look."""
        for session in (self.session, *self._others):
            session.look()
        self._others = [session for session in self._others if session.busy]
        self.transcript.update(self._clock())
        self.show_status()
        if self._timer and not (self.session.busy or self._others):
            self._timer.pause()

    def action_interrupt(self) -> None:
        """Copy what is selected; else stop the answer; else, pressed twice, quit."""
        now = self._clock()
        if selected := self.get_selected_text() or self.composer.selected_text:
            self.copy(selected, "the selection")
            self.clear_selection()
        elif self.session.busy:
            self.session.stop()
        elif now < self._quit_until:
            self.app.exit()
        else:
            self._quit_until = now + _HINT_S
            self.hint("Ctrl C once more quits")

    def show_status(self) -> None:
        """Bring the status line up to date."""
        reply, now = self.session.last_reply, self._clock()
        errand = self.session.beside.errand
        if errand:
            self.status.state = f"{errand.what}: {state_text(errand.reply, now)}"
        else:
            self.status.state = state_text(reply, now) if reply else ""
        if self.transcript.has_focus and not self.session.busy:
            self.status.state = _READING
        used = reply.usage.total_tokens if reply and reply.usage else None
        self.status.trouble = self.keeper.trouble if self.session.kept.keeps else ""
        if self.keeper.damage and not self._offered:
            self._offered = True
            self.offer_backup(ChatsDamaged(self.keeper.damage))
        context = reply.context if reply else None
        self.status.share = used / context if used and context else None
        self.status.facts = tuple(
            facts(
                reply,
                self.shown_model(),
                context,
                used,
                self._offline,
                memory=self.memory,
                unkept=not self.session.kept.keeps,
                mode="editing an earlier message (Esc leaves)" if self.editing else "",
            )
        )

    def hint(self, text: str, *, lasting: bool = False) -> None:
        """Say something in the status line: for a while, or until something else happens (`lasting`)."""
        self.status.hint = text
        if self._hint_timer:
            self._hint_timer.stop()
            self._hint_timer = None
        if not lasting:
            self._hint_timer = self.set_timer(_HINT_S, self._clear_hint)

    def _clear_hint(self) -> None:
        self.status.hint = ""
