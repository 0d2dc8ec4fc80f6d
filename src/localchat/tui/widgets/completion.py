"""The list that opens above the composer while a file or a command is being named: it shows choices, and which one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from localchat.safe_text import safe_line

_ROWS = 8
_MARK = "› "


@dataclass(frozen=True, slots=True)
class Choice:
    """One line: `label`, and what it is in `note`; `value` is what the composer wants back."""

    value: object
    label: str
    note: str = ""


class Completion(Widget):
    """Hidden while there is nothing to choose. Never has the focus: the composer moves it."""

    DEFAULT_CSS = """
    Completion {
        overlay: screen;
        width: 100%;
        display: none;
        background: $panel;
        color: $foreground;
        padding: 0 1;
    }
    """

    choices: reactive[tuple[Choice, ...]] = reactive(())
    place: reactive[int] = reactive(0)

    @dataclass
    class Taken(Message):
        """A choice was clicked."""

        choice: Choice

    @property
    def chosen(self) -> Choice | None:
        """The choice that would be taken; None while the list is closed."""
        return self.choices[self.place] if self.choices else None

    def show(self, choices: Sequence[Choice]) -> None:
        """Offer `choices`, the first one chosen; none closes the list."""
        self.choices = tuple(choices)
        self.place = 0

    def move(self, steps: int) -> None:
        """Choose another one; after the last comes the first."""
        if self.choices:
            self.place = (self.place + steps) % len(self.choices)

    def watch_choices(self, choices: tuple[Choice, ...]) -> None:
        """Take the room that the choices need, above the composer."""
        height = min(_ROWS, len(choices))
        self.display = bool(choices)
        self.styles.height = height
        self.styles.offset = (0, -height - 1)

    @property
    def _first(self) -> int:
        """The first choice that is in view: the chosen one is, and nothing scrolls without need."""
        return max(0, min(self.place - _ROWS // 2, len(self.choices) - _ROWS))

    def render(self) -> Content:
        """Label and note of each choice in view."""
        width = self.content_size.width - len(_MARK)
        shown = self.choices[self._first : self._first + _ROWS]
        labels = [safe_line(choice.label) for choice in shown]
        column = min(max(map(cell_len, labels), default=0), max(10, width * 2 // 3), width)
        room = width - column - 2
        lines = []
        for choice, label in zip(shown, labels, strict=True):
            note = _beginning(safe_line(choice.note), room) if choice.note and room > 0 else ""
            # The mark too: not every terminal shows the colour.
            mark, style = (_MARK, "bold $accent") if choice is self.chosen else (" " * len(_MARK), "$foreground")
            lines.append(
                Content.assemble((mark + _ending(label, column), style), "  " if note else "", (note, "$muted"))
            )
        return Content("\n").join(lines)

    def on_click(self, event: events.Click) -> None:
        """Take what was clicked."""
        event.stop()
        row = self._first + int(event.y)
        if row < len(self.choices):
            self.post_message(self.Taken(self.choices[row]))


def _ending(text: str, width: int) -> str:
    """`text` in exactly `width` cells; of a path that is too long the end is kept."""
    if cell_len(text) > width:
        text = text[-width:]
        while cell_len(text) > width - 1:
            text = text[1:]
        text = "…" + text
    return set_cell_size(text, width)


def _beginning(text: str, width: int) -> str:
    """`text` in exactly `width` cells, its end left out where it is too long."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
