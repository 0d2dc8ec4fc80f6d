"""The key sheet: every action with its key, from the table of actions."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from localchat.tui.actions import ACTIONS


class KeySheet(ModalScreen[None]):
    """All keys on one sheet; Esc or F1 puts it away."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,ctrl+c", "dismiss", "Close", show=False)]

    DEFAULT_CSS = """
    KeySheet {
        align: center middle;
        background: $background 60%;
        & > VerticalScroll {
            width: 64;
            max-width: 100%;
            height: auto;
            max-height: 100%;
            background: $surface;
            padding: 1 2;
            scrollbar-size-vertical: 1;
        }
        & Static { height: auto; }
    }
    """

    def compose(self) -> ComposeResult:
        """The sheet."""
        lines: list[tuple[str, str]] = []
        for action in ACTIONS:
            lines += [(f"{action.key_label:<12}", "$accent"), (f"{action.label}\n", "$foreground")]
        with VerticalScroll():
            yield Static(Content.assemble(*lines).rstrip(), markup=False)
