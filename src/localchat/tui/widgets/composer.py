"""Where the person writes: grows with the text, sends on Enter, remembers what was sent."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from localchat.safe_text import safe_text


class Composer(TextArea):
    """A text area whose Enter sends; Ctrl+J, and Shift+Enter where a terminal tells it apart, begin a new line."""

    DEFAULT_CSS = """
    Composer {
        height: auto;
        min-height: 1;
        max-height: 8;
        border: none;
        padding: 0;
        background: $background;
        color: $foreground;
        scrollbar-size-vertical: 1;
        &:focus { border: none; }
        .text-area--placeholder { color: $faint; }
    }
    """

    @dataclass
    class Sent(Message):
        """The person sent `text`; the composer is empty again."""

        text: str

    def __init__(self) -> None:
        super().__init__(
            placeholder="Ask anything",
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
        )
        self._history: list[str] = []
        self._place = 0
        self._draft = ""

    def on_mount(self) -> None:
        """Be ready for the first word."""
        self.focus()

    def give_back(self, text: str) -> None:
        """Put back a message that did not go out, before whatever has been typed since."""
        self.text = f"{text}\n{self.text}" if self.text else text
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        # Not bindings: those could overtake characters that were typed before and are still on their way here.
        if event.key == "enter":
            self._send()
        elif event.key in ("ctrl+j", "shift+enter"):
            self._insert("\n")
        else:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()

    def _send(self) -> None:
        text = self.text
        if not text.strip():
            return
        if not self._history or self._history[-1] != text:
            self._history.append(text)
        self._place, self._draft = len(self._history), ""
        # Emptied here and now: what is typed next belongs to the next message.
        self.text = ""
        self.post_message(self.Sent(text))

    def _insert(self, text: str) -> None:
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)

    def action_cursor_up(self, select: bool = False) -> None:
        """Up a line; from the first one, to the message sent before."""
        if not select and self.navigator.is_first_wrapped_line(self.cursor_location):
            self._recall(self._place - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Down a line; from the last one, to the message sent after."""
        if not select and self.navigator.is_last_wrapped_line(self.cursor_location):
            self._recall(self._place + 1)
        else:
            super().action_cursor_down(select)

    def _recall(self, place: int) -> None:
        if not 0 <= place <= len(self._history):
            return
        if self._place == len(self._history):
            self._draft = self.text
        self._place = place
        self.text = self._history[place] if place < len(self._history) else self._draft
        self.move_cursor(self.document.end)

    async def _on_paste(self, event: events.Paste) -> None:
        # The text area draws what it holds as it is: clean it on the way in.
        event.prevent_default()
        event.stop()
        self._insert(safe_text(event.text.replace("\r\n", "\n").replace("\r", "\n")))
