"""One line to type into: what titles, filters and searches are typed in."""

from __future__ import annotations

from textual import events
from textual.widgets import Input

from localchat.safe_text import safe_text

_LONGEST = 1000


class LineInput(Input):
    """An input without a frame of its own. What is typed or pasted becomes one safe line, up to 1,000 characters."""

    DEFAULT_CSS = """
    LineInput, LineInput:focus {
        height: 1;
        border: none;
        padding: 0;
        background: transparent;
        background-tint: transparent 0%;
        color: $foreground;
        & > .input--placeholder { color: $faint; }
    }
    """

    def __init__(self, value: str = "", placeholder: str = "", *, classes: str | None = None) -> None:
        super().__init__(value, placeholder, classes=classes, select_on_focus=False)

    def validate_value(self, value: str) -> str:
        """Clean whatever is put in: it is drawn as it is."""
        return _one_line(value)

    def replace(self, text: str, start: int, end: int) -> None:
        """Put `text` in the place of what stands between two places, as far as there is room."""
        room = _LONGEST - (len(self.value) - abs(end - start))
        super().replace(_one_line(text)[: max(0, room)], start, end)

    async def _on_key(self, event: events.Key) -> None:
        # Its bindings are followed here and now: on their usual way they could be overtaken by what is typed later.
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return
        await super()._on_key(event)
        event.prevent_default()

    def _on_paste(self, event: events.Paste) -> None:
        # Textual would take the first line only.
        self.replace(event.text, *self.selection)
        event.stop()
        event.prevent_default()


def _one_line(text: str) -> str:
    """Safe text on one line; spaces at its ends stay, because it is put between others."""
    return safe_text(text[: 4 * _LONGEST]).replace("\n", " ").replace("\t", " ")[:_LONGEST]
