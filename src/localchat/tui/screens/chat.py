"""The chat: connects what the person does, the sessions, and the widgets. What can be done is in `chat_actions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.timer import Timer

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatSettings, Draft
from localchat.chats.reply import Reply
from localchat.errors import ChatsDamaged, ChatsError, LocalchatError
from localchat.protocol import Status as EngineStatus
from localchat.safe_text import safe_line
from localchat.settings import settings as own_settings
from localchat.tui.actions import bindings
from localchat.tui.conversation import Item, Prompt
from localchat.tui.exchange import Engine, Prepare, ask_who_answers, look_at_engine, warm_up
from localchat.tui.screens.chat_actions import ChatActions, commands
from localchat.tui.session import Session, settings_with
from localchat.tui.widgets.composer import Composer
from localchat.tui.widgets.status import Status, facts, state_text
from localchat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from localchat.tui.widgets.sidebar import Sidebar

_LOOKS_PER_SECOND = 25
_HINT_S = 4.0
_DRAFT_S = 0.5
_NARROW = 80


class ChatScreen(ChatActions):
    """One chat on the screen; others may go on being answered behind it."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("chat", {})]

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

    @dataclass
    class AnswersAs(Message):
        """The engine told which model answers where none was named."""

        model: str

    @dataclass
    class EngineLooked(Message):
        """What the engine holds, or why it cannot be had."""

        status: EngineStatus | LocalchatError

    def __init__(
        self,
        engine: Engine,
        keeper: Keeper,
        settings: ChatSettings,
        prepare: Prepare | None,
        *,
        clock: Callable[[], float],
        offline: bool,
        chat: int | None = None,
    ) -> None:
        super().__init__()
        self.keeper = keeper
        self._engine = engine
        self._settings = settings
        self._prepare = prepare
        self._clock = clock
        self._offline = offline
        self._asked_for = chat
        self._default_model = ""
        self._last_title: str | None = None
        self._memory: int | None = None
        self._others: dict[int, Session] = {}
        self._editing: tuple[int | None, Draft] | None = None
        self._unkept = ""
        self._quit_until = 0.0
        self._timer: Timer | None = None
        self._hint_timer: Timer | None = None
        self._draft_timer: Timer | None = None
        self._sidebar: Sidebar | None = None
        own = own_settings()
        self.session = self._new_session(settings)
        self.transcript = Transcript(self._shown_model(), offline, thinking_open=own.show_thinking)
        self.composer = Composer(commands=commands(), newline_on_enter=own.newline_on_enter, vim=own.vim)
        self._status = Status()

    def compose(self) -> ComposeResult:
        """The page, and under it the composer and the status line."""
        with Horizontal(), Vertical(classes="desk"):
            yield self.transcript
            with Vertical(classes="foot"):
                yield self.composer
                yield self._status

    def on_mount(self) -> None:
        """Be ready, take up what was left, and have the engine warm up meanwhile."""
        self._timer = self.set_interval(1 / _LOOKS_PER_SECOND, self._look, pause=True)
        self._show_status()
        if self._asked_for is not None:
            self.do(self.open_chat(self._asked_for))
        else:
            self.do(self._take_up())
        if not self._settings.model:
            ask_who_answers(self._engine, lambda model: self.post_message(self.AnswersAs(model)))
        self._warm_up()

    def on_unmount(self) -> None:
        """Let the engine go, and leave everything on disk."""
        self._keep_draft()
        for session in (self.session, *self._others.values()):
            session.view = None
            session.close()

    async def _take_up(self) -> None:
        """A draft that was left in a chat that had not begun, and what can be continued."""
        draft, prompts, last = await self._read(
            lambda chats: (chats.draft(None), chats.prompts(), chats.latest("chat"))
        )
        self.composer.set_history(prompts)
        if draft.text or draft.attachments:
            self.composer.put(draft)
        if last and self.session.chat is None:
            self._last_title = last.title
            self.transcript.welcome(self._shown_model(), self._offline, last.title)

    def _warm_up(self) -> None:
        warm_up(
            self._engine,
            self.session.settings.model,
            self.session.settings.context,
            lambda status: self.post_message(self.EngineLooked(status)),
        )

    def on_chat_screen_answers_as(self, message: AnswersAs) -> None:
        """Name the model that will answer."""
        self._default_model = message.model
        self.transcript.show_model(self._shown_model())
        self._show_status()

    def on_chat_screen_engine_looked(self, message: EngineLooked) -> None:
        """Show what the engine holds."""
        if isinstance(message.status, EngineStatus):
            self._memory = message.status.resident_bytes
            if message.status.model and not self.session.settings.model:
                self._default_model = message.status.model.name
                self.transcript.show_model(self._shown_model())
        self._show_status()

    # What the widgets tell.

    def on_composer_sent(self, message: Composer.Sent) -> None:
        """Send it; where it could not be kept and is sent again all the same, it goes out without."""
        text, attachments = message.text, list(message.attachments)
        if self._unkept and text == self._unkept:
            self.session.keeps = False
        self._unkept = ""
        editing, self._editing = self._editing, None
        if editing:
            self.composer.put(editing[1])
            self.do(self.session.ask(text, attachments, editing[0], edit=True))
        else:
            self.do(self.session.ask(text, attachments))
        self.composer.focus()

    def on_composer_command(self, message: Composer.Command) -> None:
        """Do what a slash command says."""
        self.command(message.name, message.argument)

    def on_composer_changed(self) -> None:
        """Keep the draft, in a moment."""
        if not self._draft_timer and not self._editing:
            self._draft_timer = self.set_timer(_DRAFT_S, self._keep_draft)

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
        import asyncio

        from localchat.client.local import LocalEngine

        if isinstance(self._engine, LocalEngine):
            tokens = await asyncio.to_thread(self._engine.tokenize, attachment.text, self.session.settings.model)
            self.composer.set_tokens(index, len(tokens))

    def on_transcript_typed(self, message: Transcript.Typed) -> None:
        """A person who types wants to write."""
        self.composer.type(message.character)

    def on_transcript_left(self) -> None:
        """Back to writing."""
        self.composer.focus()

    def on_transcript_walked(self, message: Transcript.Walked) -> None:
        """Another version, by mouse."""
        self.do(self.walk(message.node, message.by))

    # The list of chats.

    def action_sidebar(self) -> None:
        """Show the list of chats and go there; from there, put it away."""
        from localchat.tui.widgets.sidebar import Sidebar

        if self._sidebar and self._sidebar.display:
            if self._sidebar.has_focus_within or not self._is_narrow():
                self._hide_sidebar()
            else:
                self._sidebar.focus()
            return
        if not self._sidebar:
            self._sidebar = Sidebar()
            self.query_one(Horizontal).mount(self._sidebar, before=0)
        self._sidebar.display = True
        self._sidebar.set_class(self._is_narrow(), "-over")
        self.do(self.refresh_list())
        self._sidebar.focus()

    def _hide_sidebar(self) -> None:
        if self._sidebar:
            self._sidebar.display = False
        self.composer.focus()

    def _is_narrow(self) -> bool:
        return self.size.width < _NARROW

    def on_resize(self, event: events.Resize) -> None:
        """The list lies over the page where there is no room beside it."""
        if self._sidebar:
            self._sidebar.set_class(event.size.width < _NARROW, "-over")

    async def refresh_list(self) -> None:
        """Read the list of chats anew, where it is shown."""
        if self._sidebar and self._sidebar.display:
            self._sidebar.show(await self._read(lambda chats: chats.chats("chat")), self.session.chat)

    def on_sidebar_opened(self, message: Sidebar.Opened) -> None:
        """Another chat."""
        self.do(self.open_chat(message.chat))
        if self._is_narrow():
            self._hide_sidebar()
        else:
            self.composer.focus()

    def on_sidebar_new_chat(self) -> None:
        """A new chat."""
        self.begin_chat()

    def on_sidebar_left(self) -> None:
        """Back to writing."""
        if self._is_narrow():
            self._hide_sidebar()
        else:
            self.composer.focus()

    def on_sidebar_renamed(self, message: Sidebar.Renamed) -> None:
        """A new title."""
        self.do(self._rename(message.chat, safe_line(message.title)))

    async def _rename(self, chat: int, title: str) -> None:
        if chat == self.session.chat:
            await self.session.rename(title)
        else:
            await self._read(lambda chats: chats.rename(chat, title, "person"))
        await self.refresh_list()

    def on_sidebar_pinned(self, message: Sidebar.Pinned) -> None:
        """To the top, or back."""
        self._then_list(lambda chats: chats.pin(message.chat, message.pinned))

    def on_sidebar_deleted(self, message: Sidebar.Deleted) -> None:
        """Gone, until it is brought back."""
        if message.chat == self.session.chat:
            self.session.stop()
            self.begin_chat(focus=False)
        self._then_list(lambda chats: chats.delete(message.chat))

    def on_sidebar_restored(self, message: Sidebar.Restored) -> None:
        """Brought back."""
        self._then_list(lambda chats: chats.restore(message.chat))

    def _then_list(self, work: Callable[..., object]) -> None:
        async def run() -> None:
            await self._read(work)
            await self.refresh_list()

        self.do(run())

    # Which chat is shown.

    def _new_session(self, settings: ChatSettings) -> Session:
        session = Session(
            self._engine, self.keeper, self._prepare, settings, clock=self._clock, titles=own_settings().titles
        )
        session.view = self
        return session

    def begin_chat(self, *, focus: bool = True) -> None:
        """Show a new chat with the same settings; a draft comes along."""
        self._leave_session()
        self._show_session(self._new_session(self.session.settings))
        if focus:
            self.composer.focus()

    async def open_chat(self, chat: int, at: int | None = None) -> None:
        """Show a chat, at a message of it."""
        if chat != self.session.chat:
            session = self._others.pop(chat, None)
            if not session:
                session = self._new_session(self._settings)
                session.view = None
                await session.open(chat)
            self._keep_draft()
            draft = await self._read(lambda chats: chats.draft(chat))
            self._leave_session()
            self._show_session(session)
            self.composer.put(draft)
            await self.refresh_list()
        if at is not None:
            await self.session.show_node(at)
            self.transcript.focus()

    def _leave_session(self) -> None:
        self._editing = None
        self.session.view = None
        self.session.cancel_errand()
        if self.session.running and self.session.chat is not None:
            # It goes on being answered, and is there when the person comes back.
            self._others[self.session.chat] = self.session
        else:
            self.session.close()

    def _show_session(self, session: Session) -> None:
        self.session, session.view = session, self
        self.shown()
        if session.waiting:
            self.transcript.show_queued(session.waiting[0])
        self.start_looking()

    def take_model(self, name: str) -> None:
        """Let a model answer from now on."""
        self.do(self.session.change(settings_with(self.session.settings, model=name)))
        self._settings = settings_with(self._settings, model=name)
        self.transcript.show_model(self._shown_model())
        self.hint(f"{safe_line(name)} answers from now on")
        self._warm_up()
        self._show_status()

    # What the session tells (`session.View`).

    def shown(self, at: int | None = None) -> None:
        """Put the session's page on the screen."""
        page = self.session.items()
        if page:
            self.transcript.show(page, at)
            self.transcript.set_seen(*self.session.first_seen())
        else:
            self.transcript.welcome(self._shown_model(), self._offline, self._last_title)
        self._show_status()
        self.start_looking()

    def added(self, new: list[Item]) -> None:
        """Put new messages at the end of the page."""
        self.transcript.add(*new)

    def named(self, node: int) -> None:
        """A message has its number."""
        self.transcript.changed(node)

    def ended(self, reply: Reply) -> None:
        """Show how an answer ended."""
        self._clear_hint()
        self.transcript.update(self._clock())
        self.transcript.set_seen(*self.session.first_seen())
        look_at_engine(self._engine, lambda status: self.post_message(self.EngineLooked(status)))

    def refused(self, text: str, attachments: list[Attachment], error: LocalchatError) -> None:
        """Give a message back to the composer, and say why."""
        self.composer.give_back(text, attachments)
        said = safe_line(error.message)
        if isinstance(error, ChatsDamaged):
            self.hint(said)
            self.offer_backup(error)
        elif isinstance(error, ChatsError):
            self._unkept = text
            self.hint(f"not sent: {said} (Enter again sends it without keeping it)", lasting=True)
        else:
            self.hint(said)

    def offer_backup(self, error: ChatsDamaged) -> None:
        """Let the person choose what becomes of a damaged database."""

    def queued(self, text: str | None) -> None:
        """Show the message that waits."""
        self.transcript.show_queued(text)

    def full(self) -> None:
        """Let the person choose what happens with a window that is full."""
        from localchat.tui.screens.choose import Choice, ChooseScreen

        choices = [
            Choice("s", "Slide", "the oldest messages are no longer sent to the model; they stay here", "slide"),
            Choice("m", "Summarise", "the model sums the older messages up, and sees the summary instead", "summarise"),
            Choice("n", "Nothing", "shorten your message, or begin a new chat", ""),
        ]
        self.app.push_screen(
            ChooseScreen("The context window is full. What shall the model see?", choices), self._chosen
        )

    def _chosen(self, choice: str | None) -> None:
        if choice == "slide":
            self.do(self._slide())
        elif choice == "summarise":
            self.action_summarise()

    async def _slide(self) -> None:
        await self.session.change(settings_with(self.session.settings, overflow="slide"))
        await self.session.again()

    def listed(self) -> None:
        """The list of chats has changed."""
        self.do(self.refresh_list())

    # Editing an earlier message.

    def begin_edit(self, node: int, prompt: Prompt) -> None:
        """Put a message into the composer, to be sent beside the old one."""
        self._keep_draft()
        if not self._editing:
            self._editing = (self.session.tree.nodes[node].parent, self.composer.draft())
        else:
            self._editing = (self.session.tree.nodes[node].parent, self._editing[1])
        self.composer.put(Draft(prompt.text, prompt.attachments))
        self.composer.focus()
        self._show_status()

    def leave_edit(self) -> None:
        """Put the composer back as it was before an earlier message was edited."""
        if self._editing:
            self.composer.put(self._editing[1])
            self._editing = None
            self._show_status()

    def _keep_draft(self) -> None:
        if self._draft_timer:
            self._draft_timer.stop()
            self._draft_timer = None
        if not self._editing and self.session.keeps:
            draft, chat = self.composer.draft(), self.session.chat
            self.keeper.call(lambda chats: chats.keep_draft(chat, draft))

    # The rest.

    def start_looking(self) -> None:
        """Look in on the engine regularly, while there is something to see."""
        if self._timer:
            self._timer.resume()

    def _look(self) -> None:
        """Take in and show what has come since the last look."""
        for session in (self.session, *self._others.values()):
            session.look()
        self._others = {chat: session for chat, session in self._others.items() if session.busy}
        self.transcript.update(self._clock())
        self._show_status()
        if self._timer and not (self.session.busy or self._others):
            self._timer.pause()

    def action_interrupt(self) -> None:
        """Copy what is selected; else stop the answer; else, pressed twice, quit."""
        now = self._clock()
        if selected := self.get_selected_text() or self.composer.selected_text:
            self._copy(selected, "the selection")
            self.clear_selection()
        elif self.session.busy:
            self.session.stop()
        elif now < self._quit_until:
            self.app.exit()
        else:
            self._quit_until = now + _HINT_S
            self.hint("Ctrl C once more quits")

    def _show_status(self) -> None:
        reply, now = self.session.last_reply, self._clock()
        errand = self.session.errand
        if errand:
            self._status.state = f"{errand.what}: {state_text(errand.reply, now)}"
        else:
            self._status.state = state_text(reply, now) if reply else ""
        used = reply.usage.total_tokens if reply and reply.usage else None
        self._status.trouble = self.keeper.trouble if self.session.keeps else ""
        context = reply.context if reply else None
        self._status.share = used / context if used and context else None
        self._status.facts = tuple(
            facts(
                reply,
                self._shown_model(),
                context,
                used,
                self._offline,
                memory=self._memory,
                unkept=not self.session.keeps,
                mode="editing an earlier message (Esc leaves)" if self._editing else self.composer.mode.lower(),
            )
        )

    def _shown_model(self) -> str:
        """The model's name; of a file's path only the file's."""
        reply = self.session.last_reply
        model = self.session.settings.model or (reply.model if reply else "") or self._default_model
        name = model.rsplit("/", 1)[-1] if model.startswith(("/", "~", ".")) else model
        return name.removesuffix(".gguf")

    def hint(self, text: str, *, lasting: bool = False) -> None:
        """Say something in the status line: for a while, or until something else happens (`lasting`)."""
        self._status.hint = text
        if self._hint_timer:
            self._hint_timer.stop()
            self._hint_timer = None
        if not lasting:
            self._hint_timer = self.set_timer(_HINT_S, self._clear_hint)

    def _clear_hint(self) -> None:
        self._status.hint = ""
