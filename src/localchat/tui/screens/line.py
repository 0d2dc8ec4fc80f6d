"""Asks for one line of text: a title, the name of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from localchat.safe_text import safe_line
from localchat.tui.screens.dialog import Dialog
from localchat.tui.widgets.line_input import LineInput


class LineScreen(Dialog[str | None]):
    """Gives the line without spaces at its ends, or None for Esc.

    `validate` says in a sentence why a line cannot be taken, or returns None; without one, any line that is not empty
    will do.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave", show=False)]

    DEFAULT_CSS = """
    LineScreen {
        & LineInput, & LineInput:focus { border: round $faint; height: 3; padding: 0 1; background: $surface; }
        & .problem { height: auto; color: $error; padding: 0 1; }
    }
    """

    def __init__(
        self, question: str, value: str = "", validate: Callable[[str], str | None] | None = None, what: str = ""
    ) -> None:
        super().__init__()
        self._question = question
        self._what = what
        self._check = validate or (lambda line: None if line else "this cannot be empty: write something, or press Esc")
        self._line = LineInput(value)
        self._problem = Static(classes="problem", markup=False)
        self._refused = False

    def compose(self) -> ComposeResult:
        """The question, the line, and what is wrong with it."""
        with VerticalScroll(classes="dialog", can_focus=False):
            yield self.question(self._question)
            if self._what:
                yield self.what(self._what)
            yield self._line
            yield self._problem
            yield self.keys("Enter takes it, Esc leaves")

    def on_mount(self) -> None:
        """Write at once, after what stands there."""
        self._problem.display = False
        self._line.focus()

    def action_leave(self) -> None:
        """Give no line."""
        self.dismiss(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the line, or say why not."""
        event.stop()
        # As it was at that moment: what is typed while this waited is not part of it.
        line = event.value.strip()
        self._refused = not self._is_good(line)
        if not self._refused:
            self.dismiss(line)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Once a line was refused, say as it changes whether it will do."""
        event.stop()
        if self._refused:
            self._is_good(self._line.value.strip())

    def _is_good(self, line: str) -> bool:
        problem = self._check(line)
        self._problem.update(Content(safe_line(problem or "")))
        self._problem.display = bool(problem)
        return not problem
