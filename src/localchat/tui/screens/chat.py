"""The chat: connects what the person does, the conversation, the exchange with the engine, and the widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from localchat.chats.reply import Reply
from localchat.protocol import Chunk
from localchat.tui.actions import bindings
from localchat.tui.conversation import Conversation
from localchat.tui.exchange import Ended, Engine, Exchange, Preparation, Prepared, Preparing, ask_who_answers
from localchat.tui.screens.keys import KeySheet
from localchat.tui.widgets.composer import Composer
from localchat.tui.widgets.status import Status, facts, state_text
from localchat.tui.widgets.transcript import Transcript

_LOOKS_PER_SECOND = 25
_HINT_S = 3.0


class ChatScreen(Screen[None]):
    """One conversation on the screen, and the answer that is on its way, if one is."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings()]

    DEFAULT_CSS = """
    ChatScreen {
        background: $background;
        color: $foreground;
        & > .foot { height: auto; align-horizontal: center; padding: 0 2; }
        & .box { width: 100%; max-width: 104; height: auto; border: round $border; padding: 0 1; }
        & .box:focus-within { border: round $faint; }
        & Status { width: 100%; max-width: 104; padding: 0 2; }
    }
    """

    @dataclass
    class AnswersAs(Message):
        """The engine told which model answers where none was named."""

        model: str

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        preparation: Preparation,
        *,
        clock: Callable[[], float],
        offline: bool,
        thinking_open: bool,
    ) -> None:
        super().__init__()
        self.conversation = conversation
        self._engine = engine
        self._preparation = preparation
        self._clock = clock
        self._offline = offline
        self._model = conversation.model
        self._exchange: Exchange | None = None
        self._reply: Reply | None = None
        self._queued: str | None = None
        self._quit_until = 0.0
        self._timer: Timer | None = None
        self._hint_timer: Timer | None = None
        self._transcript = Transcript(self._shown_model(), offline, thinking_open=thinking_open)
        self._composer = Composer()
        self._status = Status()

    def compose(self) -> ComposeResult:
        """The page, and under it the composer and the status line."""
        yield self._transcript
        with Vertical(classes="foot"):
            with Vertical(classes="box"):
                yield self._composer
            yield self._status

    def on_mount(self) -> None:
        """Be ready, and find out who will answer."""
        self._timer = self.set_interval(1 / _LOOKS_PER_SECOND, self._look, pause=True)
        self._show_status()
        if not self._model:
            ask_who_answers(self._engine, lambda model: self.post_message(self.AnswersAs(model)))

    def on_unmount(self) -> None:
        """Let the engine go."""
        if self._exchange:
            self._exchange.stop()

    def on_chat_screen_answers_as(self, message: AnswersAs) -> None:
        """Name the model that will answer."""
        self._model = self._model or message.model
        self._transcript.show_model(self._shown_model())
        self._show_status()

    def on_composer_sent(self, message: Composer.Sent) -> None:
        """Ask, or let the message wait for the end of the answer; there is room for one that waits."""
        if not self._exchange:
            self._ask(message.text)
        elif self._queued is None:
            self._queued = message.text
            self._transcript.show_queued(message.text)
        else:
            self._composer.give_back(message.text)
            self._hint("one message is waiting already; this one stays here")

    # What the person can do: the methods of the table in actions.py.

    def action_stop(self) -> None:
        """Stop the answer at once; what came stays."""
        # First what has come, so that the end that the stopping itself brings about is not taken for the answer's.
        self._take_in()
        if self._exchange and self._reply:
            self._exchange.stop()
            self._reply.stop(self._clock())
            self._over(self._reply, unsent=self._preparation.needed)

    def action_retry(self) -> None:
        """Ask again what was stopped or failed."""
        if self._exchange or not self.conversation.can_retry():
            self._hint("there is nothing to ask again")
            return
        turn = self.conversation.retry(self._clock())
        self._transcript.add_attempt(turn.reply)
        self._begin(turn.reply)

    def action_new_chat(self) -> None:
        """Begin a new chat with the same model; a draft stays."""
        self.action_stop()
        self.conversation, self._reply = self.conversation.empty_copy(), None
        self._transcript.welcome(self._shown_model(), self._offline)
        self._show_status()
        self._composer.focus()

    def action_toggle_thinking(self) -> None:
        """Show or fold the thinking of all answers."""
        self._transcript.toggle_thinking()

    def action_scroll(self, where: str) -> None:
        """Scroll the page; at its end it follows the answer again."""
        transcript = self._transcript
        page = max(1, transcript.scrollable_content_region.height - 2)
        if where == "end":
            transcript.anchor()
        elif where == "home":
            transcript.scroll_home(animate=False)
        else:
            rows = {"up": -1, "down": 1, "page_up": -page, "page_down": page}[where]
            transcript.scroll_relative(y=rows, animate=False)

    def action_interrupt(self) -> None:
        """Copy what is selected; else stop the answer; else, pressed twice, quit."""
        now = self._clock()
        if selected := self.get_selected_text() or self._composer.selected_text:
            self.app.copy_to_clipboard(selected)
            self.clear_selection()
            self._hint("copied, if this terminal allows it")
        elif self._exchange:
            self.action_stop()
        elif now < self._quit_until:
            self.app.exit()
        else:
            self._quit_until = now + _HINT_S
            self._hint("Ctrl+C once more quits")

    def action_keys(self) -> None:
        """Show the sheet of keys."""
        self.app.push_screen(KeySheet())

    # The exchange.

    def _ask(self, text: str) -> None:
        turn = self.conversation.ask(text, self._clock())
        self._transcript.add_turn(turn)
        self._begin(turn.reply)

    def _begin(self, reply: Reply) -> None:
        self._reply = reply
        self._exchange = Exchange(self._engine, self.conversation.request(), self._preparation)
        assert self._timer
        self._timer.resume()
        self._look()

    def _look(self) -> None:
        """Take in and show what has come since the last look."""
        self._take_in()
        self._transcript.update_reply(self._clock())
        self._show_status()

    def _take_in(self) -> None:
        reply, now = self._reply, self._clock()
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
                self._over(reply, unsent=event.unsent)

    def _over(self, reply: Reply, *, unsent: bool) -> None:
        """An answer has come to its end, one way or another."""
        self._exchange = None
        self._clear_hint()
        assert self._timer
        self._timer.pause()
        reply.unsent = unsent
        self._transcript.update_reply(self._clock())
        if unsent:
            # The engine never saw the message: it goes back to where it was written.
            turn = self.conversation.turns.pop()
            self._transcript.withdraw_prompt()
            self._composer.give_back(turn.prompt.text())
        queued, self._queued = self._queued, None
        if queued is not None:
            self._transcript.show_queued(None)
            if reply.state == "done":
                self._ask(queued)
            else:
                self._composer.give_back(queued)
        self._show_status()

    # The status line.

    def _show_status(self) -> None:
        reply = self._reply
        if reply and reply.model:
            self._model = reply.model
        usage = next((turn.reply.usage for turn in reversed(self.conversation.turns) if turn.reply.usage), None)
        context = next((turn.reply.context for turn in reversed(self.conversation.turns) if turn.reply.context), None)
        self._status.state = state_text(reply, self._clock()) if reply else ""
        used = usage.total_tokens if usage else None
        self._status.facts = tuple(facts(reply, self._shown_model(), context, used, self._offline))

    def _shown_model(self) -> str:
        """The model's name; of a file's path only the file's."""
        name = self._model.rsplit("/", 1)[-1] if self._model.startswith(("/", "~", ".")) else self._model
        return name.removesuffix(".gguf")

    def _hint(self, text: str) -> None:
        self._status.hint = text
        if self._hint_timer:
            self._hint_timer.stop()
        self._hint_timer = self.set_timer(_HINT_S, self._clear_hint)

    def _clear_hint(self) -> None:
        self._status.hint = ""
