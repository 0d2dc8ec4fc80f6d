"""Asks the person to choose one of a few things, each with a key and a line that says what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Region

from localchat.safe_text import safe_line
from localchat.tui.screens.dialog import Dialog
from localchat.tui.widgets.rows import Rows

T = TypeVar("T", covariant=True)
R = TypeVar("R")
_CALM_S = 0.7
_LEFT = 5  # cells before a label: the mark and the key


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """One thing to choose: its `key` (one character), what it is, what it does, and the value that it stands for."""

    key: str
    label: str
    explanation: str
    value: T


class ChoiceRows(Rows[Choice[R]]):
    """The choices, each with its explanation under it."""

    DEFAULT_CSS = "ChoiceRows { height: auto; }"

    def height_of(self, row: int, width: int) -> int:
        """The label, and the explanation folded under it."""
        return 1 + len(self._explained(row, width))

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """Mark, key and label; then what it does."""
        choice = self.rows[row]
        mark = ("› ", "$accent") if marked else ("  ", "")
        label = Content.assemble(mark, (f"{choice.key}  ", "$accent"), safe_line(choice.label))
        explained = [Content.assemble(" " * _LEFT, line) for line in self._explained(row, width)]
        return [label.truncate(width, ellipsis=True), *explained]

    def _explained(self, row: int, width: int) -> list[Content]:
        text = safe_line(self.rows[row].explanation)
        return Content.styled(text, "$muted not bold").wrap(max(8, width - _LEFT)) if text else []


class Choosing(Dialog[R]):
    """A question with choices. Enter takes the marked one, a key the one it stands for; Esc gives `away`.

    One that comes `unasked` may come in the middle of a word: it takes nothing until no key has come for a moment.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,shift+tab,left", "move(-1)", "Up", show=False),
        Binding("down,tab,right", "move(1)", "Down", show=False),
        Binding("enter", "take", "Take the marked one", show=False),
        Binding("escape,ctrl+c", "leave", "Leave", show=False),
    ]

    def __init__(
        self,
        question: str,
        choices: Sequence[Choice[R]],
        what: str,
        away: R,
        *,
        marked: int = 0,
        unasked: bool = False,
    ) -> None:
        super().__init__()
        self._question = question
        self._what = what
        self._choices = choices
        self._away = away
        self._first = marked
        self._unasked = unasked
        self._last_key = monotonic()
        self._rows: ChoiceRows[R] = ChoiceRows()

    def compose(self) -> ComposeResult:
        """The question, what there is to know, and the choices."""
        box = VerticalScroll(classes="dialog", can_focus=False)
        with box:
            yield self.question(self._question)
            if self._what:
                yield self.what(self._what)
            yield self._rows
            yield self.keys("Enter takes the marked one, Esc leaves")
        self._box = box

    def on_mount(self) -> None:
        """Mark the first choice, or the one that is safe."""
        self._rows.set_rows(self._choices, self._first)
        self._rows.refresh(layout=True)

    def action_move(self, by: int) -> None:
        """Mark the next choice, or the one before."""
        self._rows.move(by)
        self._show_marked()

    def action_take(self) -> None:
        """Take the marked choice."""
        if self._rows.marked is not None and self._is_meant():
            self.dismiss(self._choices[self._rows.marked].value)

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(self._away)

    def on_key(self, event: events.Key) -> None:
        """The key of a choice takes it."""
        if event.is_printable and self._is_meant():
            for choice in self._choices:
                if event.character == choice.key:
                    event.stop()
                    self.dismiss(choice.value)
                    return

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A click takes a choice."""
        event.stop()
        self.dismiss(self._choices[event.row].value)

    def _is_meant(self) -> bool:
        before, self._last_key = self._last_key, monotonic()
        return not self._unasked or self._last_key - before > _CALM_S

    def _show_marked(self) -> None:
        """Where the box is higher than the terminal: scroll to the marked choice, and to the question at the first."""
        marked = self._rows.marked
        if marked is None:
            return
        top = self._rows.virtual_region.y + self._rows.top_of(marked) if marked else 0
        height = self._rows.height_of(marked, self._rows.scrollable_content_region.width)
        self._box.scroll_to_region(Region(0, top, 1, height), animate=False, force=True)


class ChooseScreen(Choosing[R | None], Generic[R]):
    """Gives the value of what was chosen, or None."""

    def __init__(
        self,
        question: str,
        choices: Sequence[Choice[R]],
        what: str = "",
        *,
        marked: int = 0,
        unasked: bool = False,
    ) -> None:
        super().__init__(question, choices, what, None, marked=marked, unasked=unasked)
