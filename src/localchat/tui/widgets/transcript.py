"""The conversation as a person reads it: turn after turn, held at its end until the person scrolls away."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from localchat.chats.reply import Reply
from localchat.safe_text import safe_line
from localchat.tui.conversation import Turn
from localchat.tui.widgets.turns import PromptView, ReplyView


class Welcome(Static):
    """What stands on the page before the first message: who will answer, and the keys that matter."""

    DEFAULT_CSS = """
    Welcome {
        width: 100%;
        max-width: 104;
        height: auto;
        padding: 1 2;
    }
    """

    def __init__(self, model: str, offline: bool) -> None:
        super().__init__(markup=False)
        self._offline = offline
        self.show_model(model)

    def show_model(self, model: str) -> None:
        """Name the model that will answer."""
        answers = safe_line(model) or "The default model"
        where = "nothing leaves this machine: offline is set" if self._offline else ""
        lines = [
            ("localchat\n\n", "bold $accent"),
            (answers, "bold $foreground"),
            (f" will answer{'; ' if where else '.'}{where}\n\n", "$muted"),
            *_key("Enter", "sends; Ctrl J begins a new line\n"),
            *_key("Esc", "stops an answer and keeps what came\n"),
            *_key("F1", "shows every other key"),
        ]
        self.update(Content.assemble(*lines))


class Transcript(VerticalScroll):
    """The turns, the oldest first, in a column of readable width."""

    DEFAULT_CSS = """
    Transcript {
        height: 1fr;
        padding: 0 1 0 2;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        /* As high as the screen at least: an anchored container would push a short page to its bottom. */
        & > .column { height: auto; min-height: 100%; padding: 1 0 0 0; align-horizontal: center; }
    }
    """

    can_focus = False

    def __init__(self, model: str, offline: bool, *, thinking_open: bool) -> None:
        super().__init__()
        self.thinking_open = thinking_open
        self._column = Vertical(classes="column")
        self._current: ReplyView | None = None
        self._prompt: PromptView | None = None
        self._queued: PromptView | None = None
        self._welcome: Welcome | None = Welcome(model, offline)

    def compose(self) -> ComposeResult:
        """The column of turns, an empty page at first."""
        assert self._welcome
        with self._column:
            yield self._welcome

    def welcome(self, model: str, offline: bool) -> None:
        """Begin an empty page again."""
        self._column.remove_children()
        self._current = self._prompt = self._queued = None
        self._welcome = Welcome(model, offline)
        self._column.mount(self._welcome)

    def show_model(self, model: str) -> None:
        """Name the model that will answer, where the page is still empty."""
        if self._welcome:
            self._welcome.show_model(model)

    def add_turn(self, turn: Turn) -> None:
        """Show a message of the person and the answer that is coming, and follow it."""
        if self._welcome:
            self._welcome.remove()
            self._welcome = None
        self._prompt = PromptView(turn.prompt.text())
        self._current = ReplyView(turn.reply, thinking_open=self.thinking_open)
        self._column.mount(self._prompt, self._current)
        self.anchor()

    def add_attempt(self, reply: Reply) -> None:
        """Show another attempt to answer the last message; the ones before stay, dimmed."""
        if self._current:
            self._current.set_old()
        self._current = ReplyView(reply, thinking_open=self.thinking_open)
        self._column.mount(self._current)
        self.anchor()

    def update_reply(self, now: float) -> None:
        """Show what is new in the last answer."""
        if self.is_vertical_scroll_end:
            # Scrolling down at the end lets the anchor go, and nothing would take hold of it again.
            self.anchor()
        if self._current:
            self._current.update(now)

    def withdraw_prompt(self) -> None:
        """The last message goes back to the composer; what became of it stays."""
        if self._prompt:
            self._prompt.remove()
            self._prompt = None

    def show_queued(self, text: str | None) -> None:
        """Show the message that waits for the end of the answer, or no more."""
        if self._queued:
            self._queued.remove()
            self._queued = None
        if text is not None:
            self._queued = PromptView(text, queued=True)
            self._column.mount(self._queued)

    def toggle_thinking(self) -> None:
        """Show the thinking of all answers, or fold it."""
        self.thinking_open = not self.thinking_open
        for view in self.query(ReplyView):
            view.thinking_open = self.thinking_open


def _key(key: str, what: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (f"{key:<7}", "$foreground"), (what, "$muted")
