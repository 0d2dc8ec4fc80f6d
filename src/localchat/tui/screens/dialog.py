"""What all small dialogs share: a quiet box in the middle, over the dimmed page."""

from __future__ import annotations

from typing import TypeVar

from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from localchat.safe_text import safe_line, safe_text

R = TypeVar("R")


class Dialog(ModalScreen[R]):
    """A box on top of the page. Its parts: `.question`, `.what` (what it is about), `.keys` (what to press)."""

    DEFAULT_CSS = """
    Dialog {
        align: center middle;
        background: $background 60%;
        & > .dialog {
            width: 72;
            max-width: 100%;
            height: auto;
            max-height: 100%;
            background: $surface;
            border: round $border;
            padding: 1 1 0 2;
            scrollbar-size-vertical: 1;
        }
        & .question { height: auto; text-style: bold; margin: 0 0 1 0; padding: 0 1 0 0; }
        & .what { height: auto; color: $muted; margin: 0 0 1 0; padding: 0 1 0 0; }
        & .keys { height: auto; color: $faint; margin: 1 0 1 0; padding: 0 1 0 0; }
        & Rows { background: $surface; scrollbar-gutter: auto; }
    }
    """

    @staticmethod
    def question(text: str) -> Static:
        """The one line that a dialog asks or says."""
        return Static(Content(safe_line(text)), classes="question", markup=False)

    @staticmethod
    def what(text: str) -> Static:
        """What there is to know about it."""
        return Static(Content(safe_text(text)), classes="what", markup=False)

    @staticmethod
    def keys(text: str) -> Static:
        """Which keys do what."""
        return Static(Content(text), classes="keys", markup=False)
