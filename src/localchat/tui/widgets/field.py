"""The text area of the composer: its keys in the order they were pressed, whole characters, clean text."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.cells import split_graphemes
from textual import events
from textual.binding import Binding, BindingType
from textual.document._document import Location
from textual.widgets import TextArea

from localchat.safe_text import safe_text

_LONG_LINE = 5000  # characters; in a longer line characters that are made of several are not looked for


def clean(text: str) -> str:
    """Text from outside as the area may hold it: it draws what it holds as it is."""
    return safe_text(text.replace("\r\n", "\n").replace("\r", "\n"))


class Field(TextArea):
    """Asks its owner first: `taken` for each key, `pasted` for each paste; `beyond` when the cursor would leave it
    upwards (-1) or downwards (1). Each says whether it saw to it.
    """

    DEFAULT_CSS = """
    Field {
        height: auto;
        min-height: 1;
        max-height: 34vh;
        border: none;
        padding: 0;
        background: $background;
        color: $foreground;
        scrollbar-size-vertical: 1;
        &:focus { border: none; }
        .text-area--placeholder { color: $faint; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        # What the shell's line editor has, and the text area lacks or gives to keys that are the chat's.
        Binding("alt+b", "cursor_word_left", show=False),
        Binding("alt+f", "cursor_word_right", show=False),
        Binding("alt+d,ctrl+delete", "delete_word_right", show=False),
        Binding("ctrl+underscore,alt+z", "undo", show=False),
        Binding("alt+a", "select_all", show=False),
    ]

    def __init__(
        self,
        *,
        taken: Callable[[events.Key], bool],
        pasted: Callable[[str], bool],
        beyond: Callable[[int], bool],
    ) -> None:
        super().__init__(
            placeholder="Ask anything",
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
        )
        self.match_cursor_bracket = False
        self._taken = taken
        self._pasted = pasted
        self._beyond = beyond

    def type(self, text: str) -> None:
        """Put text where the cursor is, in the place of what is selected."""
        self.replace(clean(text), *self.selection, maintain_selection_offset=False)

    async def _on_key(self, event: events.Key) -> None:
        # The area's own bindings too are followed here and now: on their usual way they could be overtaken by
        # characters that were typed later.
        if self._taken(event) or await self._bound(event):
            event.stop()
            event.prevent_default()
        else:
            await super()._on_key(event)

    async def _bound(self, event: events.Key) -> bool:
        for key in event.aliases:
            for binding in self._bindings.key_to_bindings.get(key, ()):
                if await self.app.run_action(binding.action, self):
                    return True
        return False

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        if not self._pasted(event.text):
            self.type(event.text)

    def action_cursor_up(self, select: bool = False) -> None:
        """Up a line; from the first one, beyond."""
        if select or not self.navigator.is_first_wrapped_line(self.cursor_location) or not self._beyond(-1):
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Down a line; from the last one, beyond."""
        if select or not self.navigator.is_last_wrapped_line(self.cursor_location) or not self._beyond(1):
            super().action_cursor_down(select)

    def _recompute_cursor_offset(self) -> None:
        # While an undo makes the text shorter, the cursor is still where it was, perhaps beyond the end; if the
        # scrollbar goes at that moment, Textual asks where the cursor is on the screen, and would fail.
        location = self.clamp_visitable(self.cursor_location)
        self._cursor_offset = self.wrapped_document.location_to_offset(location)

    # An emoji, or a letter with its accents, can be several code points: the cursor steps over all of them.

    def get_cursor_left_location(self) -> Location:
        """One character to the left, as a person counts them."""
        row, column = self.cursor_location
        line = self.document[row]
        if column == 0 or line.isascii() or len(line) > _LONG_LINE:
            return super().get_cursor_left_location()
        return row, max(start for start, _, _ in split_graphemes(line)[0] if start < column)

    def get_cursor_right_location(self) -> Location:
        """One character to the right, as a person counts them."""
        row, column = self.cursor_location
        line = self.document[row]
        if column >= len(line) or line.isascii() or len(line) > _LONG_LINE:
            return super().get_cursor_right_location()
        return row, min(end for _, end, _ in split_graphemes(line)[0] if end > column)
