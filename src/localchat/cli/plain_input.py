"""What a person types in the plain chat: lines, with editing and history where the terminal can do that.

Nothing of it is written to a history file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import ModuleType

PROMPT = "You: "
_MORE = "... "
_BLOCK = '"""'


class Cut(Exception):
    """The input ended within a message of several lines; `text` is what there was of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Lines:
    """Reads messages from the terminal; `earlier` are what the person sent before, the oldest first."""

    def __init__(self, earlier: Iterable[str] = ()) -> None:
        self._readline = _readline()
        if self._readline:
            for text in earlier:
                self._readline.add_history(text)

    def message(self, begun: str = "") -> str:
        r"""The next message. A line that ends with a backslash goes on, and so does one that opens with three quotes.

        `begun` stands there already, to be changed. Raises `EOFError` at the end of the input, `Cut` where that comes
        within a message, and `KeyboardInterrupt`.
        """
        line = self.line(PROMPT, begun)
        text = ""
        try:
            if line.lstrip().startswith(_BLOCK):
                text = line.lstrip().removeprefix(_BLOCK)
                while not text.rstrip().endswith(_BLOCK):
                    text += "\n" + self.line(_MORE)
                return text.rstrip().removesuffix(_BLOCK).strip("\n")
            text = line
            while text.endswith("\\"):
                text = text[:-1] + "\n"
                text += self.line(_MORE)
            return text
        except EOFError:
            raise Cut(text) from None

    def line(self, prompt: str, begun: str = "") -> str:
        """One line. Raises `EOFError`, `KeyboardInterrupt`."""
        if self._readline and begun:
            self._readline.set_startup_hook(lambda: self._readline and self._readline.insert_text(begun))
        try:
            # What is no UTF-8 comes as lone surrogates, which no message may have.
            return input(prompt).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        finally:
            if self._readline:
                self._readline.set_startup_hook()

    @property
    def can_edit(self) -> bool:
        """Whether a text can be put before the person to be changed."""
        return self._readline is not None


def _readline() -> ModuleType | None:
    """The editing of lines; none on a terminal that cannot move its cursor."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return None
    try:
        import readline
    except ImportError:  # not every Python is built with it
        return None
    # Pasted text of several lines comes in as one message.
    readline.parse_and_bind("set enable-bracketed-paste on")
    return readline
