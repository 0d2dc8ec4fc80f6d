"""The parts of a form: a value with its name and a word on it, a choice between a few things, lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from localchat.safe_text import safe_line, safe_text
from localchat.tui.widgets.line_input import LineInput

_LONGEST_TEXT = 200_000


class ValueField(Horizontal):
    """A line for one value. `word` says what it means, `empty` what it is when nothing stands there; `check` says in a
    sentence what is wrong with a text, or nothing.
    """

    DEFAULT_CSS = """
    ValueField {
        height: auto;
        & .name { width: 18; height: 1; color: $muted; }
        & LineInput, & LineInput:focus { width: 14; background: $panel; padding: 0 1; }
        & .word { width: 1fr; height: auto; color: $faint; padding: 0 0 0 2; }
        &.-wrong .word { color: $error; display: block; }
        &:focus-within .name { color: $accent; }
    }
    """

    def __init__(self, name: str, value: str, word: str, empty: str, check: Callable[[str], str]) -> None:
        super().__init__()
        self.key = name
        self._word = word
        self._check = check
        self._shown_problem = ""
        self._line = LineInput(value, empty)
        self._said = Static(word, classes="word", markup=False)

    def compose(self) -> ComposeResult:
        """Name, line, and a word on what it means or what is wrong."""
        yield Static(self.key.replace("_", " "), classes="name", markup=False)
        yield self._line
        yield self._said

    @property
    def text(self) -> str:
        """What stands there, without the spaces around it."""
        return self._line.value.strip()

    @text.setter
    def text(self, value: str) -> None:
        self._line.value = value

    @property
    def problem(self) -> str:
        """What is wrong with it, in a sentence; nothing where it is right."""
        return self._check(self.text) if self.text else ""

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Say at once what is wrong."""
        problem = self.problem
        if problem != self._shown_problem:
            self._shown_problem = problem
            self.set_class(bool(problem), "-wrong")
            self._said.update(Content(problem or self._word))

    def focus(self, scroll_visible: bool = True) -> ValueField:
        """Write here."""
        self._line.focus(scroll_visible)
        return self


class ChoiceField(Widget, can_focus=True):
    """One of a few things: ← and → go through them. All of them are shown where there is room, else the chosen one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Before", show=False),
        Binding("right,l,space", "step(1)", "Next", show=False),
    ]

    DEFAULT_CSS = """
    ChoiceField { height: 1; color: $foreground; }
    """

    chosen: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """The person chose something else."""

        field: ChoiceField
        chosen: str

    def __init__(self, name: str, options: Sequence[str], chosen: str) -> None:
        super().__init__()
        self.key = name
        self.options = list(options)
        self.set_reactive(ChoiceField.chosen, chosen)

    def render(self) -> RenderResult:
        """Name and options, the chosen one in the accent."""
        name = Content.styled(f"{self.key:<18}", "$accent" if self.has_focus else "$muted")
        if sum(len(safe_line(option)) + 3 for option in self.options) > self.size.width - 20:
            place = (
                f"  {self.options.index(self.chosen) + 1} of {len(self.options)}" if self.chosen in self.options else ""
            )
            chosen = (safe_line(self.chosen) or "none of them", "$accent")
            line = Content.assemble(name, ("‹ ", "$faint"), chosen, (f" ›{place}", "$faint"))
            return line.truncate(self.size.width, ellipsis=True)
        parts: list[tuple[str, str]] = []
        for option in self.options:
            is_chosen = option == self.chosen
            parts += [
                ("› " if is_chosen else "  ", "$accent"),
                (safe_line(option), "$accent" if is_chosen else "$muted"),
                (" ", ""),
            ]
        return Content.assemble(name, *parts)

    def action_step(self, by: int) -> None:
        """Choose the next one, or the one before."""
        place = self.options.index(self.chosen) if self.chosen in self.options else -1 if by > 0 else 0
        self.chosen = self.options[(place + by) % len(self.options)]
        self.post_message(self.Changed(self, self.chosen))

    def on_click(self) -> None:
        """The next one."""
        self.action_step(1)

    def on_focus(self) -> None:
        """Show that the keys go here."""
        self.refresh()

    def on_blur(self) -> None:
        """The keys go elsewhere."""
        self.refresh()


class Area(TextArea):
    """A few lines of text; Tab leaves it. What is pasted is made safe on its way in."""

    DEFAULT_CSS = """
    Area, Area:focus {
        height: auto;
        min-height: 2;
        max-height: 8;
        border: none;
        padding: 0 1;
        background: $panel;
        color: $foreground;
        scrollbar-size-vertical: 1;
        & .text-area--placeholder { color: $faint; }
    }
    """

    def __init__(self, text: str, placeholder: str) -> None:
        super().__init__(
            safe_text(text),
            placeholder=placeholder,
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
        )

    async def _on_paste(self, event: events.Paste) -> None:
        # The text area draws what it holds as it is.
        event.prevent_default()
        event.stop()
        text = safe_text(event.text[:_LONGEST_TEXT].replace("\r\n", "\n").replace("\r", "\n"))
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)
