"""What one turn looks like: the person's message with a rule beside it, and the answer under it."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from localchat.chats.reply import Reply
from localchat.errors import LocalchatError
from localchat.safe_text import safe_line, safe_text
from localchat.tui.widgets.page import Page
from localchat.tui.widgets.status import duration, tokens

_PROMPT_LINES = 60
_PROMPT_CHARS = 8000


class PromptView(Static):
    """What the person wrote, as they wrote it. A very long message shows its beginning and how much follows."""

    DEFAULT_CSS = """
    PromptView {
        width: 100%;
        max-width: 104;
        height: auto;
        margin: 0 0 1 0;
        padding: 0 2 0 1;
        border-left: solid $accent;
        &.-queued { color: $muted; border-left: dashed $faint; }
    }
    """

    def __init__(self, text: str, *, queued: bool = False) -> None:
        content = _shortened(safe_text(text))
        if queued:
            content = Content.assemble(content, ("\nwaits for the end of the answer", "$faint"))
        super().__init__(content, markup=False, classes="-queued" if queued else None)


class ThoughtLine(Static):
    """One line about the model's thinking; a click opens or folds it."""

    DEFAULT_CSS = "ThoughtLine { width: auto; height: 1; color: $muted; margin: 0 0 1 0; display: none; }"

    def on_click(self, event: events.Click) -> None:
        """Open or fold the thinking of this answer."""
        event.stop()
        if isinstance(self.parent, ReplyView):
            self.parent.thinking_open = not self.parent.thinking_open


class ReplyView(Vertical):
    """One attempt to answer: the thinking (folded or open), the answer, and a word on how it ended.

    `update` shows whatever is new in the reply.
    """

    DEFAULT_CSS = """
    ReplyView {
        width: 100%;
        max-width: 104;
        height: auto;
        margin: 0 0 1 0;
        padding: 0 2;
        & > .thought { color: $muted; margin: 0 0 1 0; padding: 0 0 0 2; }
        & > .mark { height: auto; color: $muted; display: none; }
        & > .error { height: auto; color: $error; display: none; }
        &.-old > Page { color: $muted; }
    }
    """

    def __init__(self, reply: Reply, *, thinking_open: bool) -> None:
        super().__init__()
        self.reply = reply
        self._thinking_open = thinking_open
        self._thought_line = ThoughtLine(markup=False)
        self._thought = Page(classes="thought")
        self._page = Page()
        self._error = Static(classes="error", markup=False)
        self._mark = Static(classes="mark", markup=False)
        self._shown = 0
        self._shown_thought = 0
        self._line = ""
        self._now = 0.0
        self._thought_over = False
        self._over = False

    def compose(self) -> ComposeResult:
        """The parts from top to bottom; each one appears when it has something to say."""
        self._thought.display = False
        yield self._thought_line
        yield self._thought
        yield self._page
        yield self._error
        yield self._mark

    @property
    def thinking_open(self) -> bool:
        """Whether the thinking is shown in full."""
        return self._thinking_open

    @thinking_open.setter
    def thinking_open(self, value: bool) -> None:
        self._thinking_open = value
        self._line = ""
        self.update(self._now)

    def update(self, now: float) -> None:
        """Show what has come since the last time."""
        reply, self._now = self.reply, now
        if reply.reasoning.strip():
            self._update_thought(now)
        if len(reply.text) > self._shown:
            self._page.append(reply.text[self._shown :])
            self._shown = len(reply.text)
        if not reply.running and not self._over:
            self._over = True
            self._page.finish()
            self._say(self._mark, "\n".join(_marks(reply)))
            if reply.error:
                self._say(self._error, _error(reply, reply.error))

    def set_old(self) -> None:
        """Another attempt counts now; this one stays to be read."""
        self.add_class("-old")

    def _update_thought(self, now: float) -> None:
        reply = self.reply
        thinking = reply.state == "thinking"
        seconds = duration(reply.thinking_seconds(now) or 0.0)
        line = f"{'▾' if self._thinking_open else '▸'} " + (
            f"thinking {seconds}" if thinking else f"thought for {seconds}, about {tokens(reply.reasoning_tokens)}"
        )
        if line != self._line:
            self._line = line
            self._say(self._thought_line, line)
        self._thought.display = self._thinking_open
        if self._thinking_open and len(reply.reasoning) > self._shown_thought:
            self._thought.append(reply.reasoning[self._shown_thought :])
            self._shown_thought = len(reply.reasoning)
            self._thought_over = False
        if self._thinking_open and not thinking and not self._thought_over:
            self._thought_over = True
            self._thought.finish()

    def _say(self, widget: Static, text: str) -> None:
        widget.update(Content(text))
        widget.display = bool(text)
        if widget is not self._thought_line:
            widget.styles.margin = (1 if self.reply.text.strip() else 0, 0, 0, 0)


def _error(reply: Reply, error: LocalchatError) -> str:
    """What went wrong, and the key that helps."""
    said = safe_line(error.message)
    if reply.unsent:
        return f"{said} (Enter sends it again)"
    return f"{said} (Ctrl+R)" if said.endswith("ask again") else f"{said} (Ctrl+R asks again)"


def _marks(reply: Reply) -> list[str]:
    """What a reader should know about how an answer came to its end."""
    marks = [safe_line(warning) for warning in reply.warnings]
    if reply.dropped_messages:
        marks.append(f"the model no longer saw the first {reply.dropped_messages} messages")
    if reply.state == "stopped":
        again = "" if reply.text else " before the message was sent" if reply.unsent else " (Ctrl+R asks again)"
        marks.append(f"stopped{again}")
    elif reply.state == "done" and reply.finish_reason == "length":
        marks.append("cut off: the limit of tokens was reached")
    elif reply.state == "done" and not reply.text.strip():
        marks.append("the model gave no answer")
    return marks


def _shortened(text: str) -> Content:
    shown = "\n".join(text[:_PROMPT_CHARS].split("\n")[:_PROMPT_LINES])
    if len(shown) == len(text):
        return Content(text)
    rest = text[len(shown) :]
    return Content.assemble(shown, ("\n… ", "$muted"), (f"{len(rest):,} more characters were sent", "$muted"))
