"""An app with nothing on it, to try one widget or dialog at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Static

from localchat.tui.theme import THEMES
from tests.escapes import unsafe

NOW = datetime(2026, 11, 19, 15, 0, tzinfo=ZoneInfo("Europe/Paris"))
HOUR = 3600.0
WAITING = "no answer"


class Stage(App[None]):
    """`widget` beside a page, or what `dialog` makes. `told`: what was posted; `answer`: what the dialog said."""

    CSS = "Screen { layers: page over; background: $background; } #page { width: 1fr; padding: 1 2; color: $muted; }"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, widget: Widget | None = None, dialog: Callable[[], Screen[Any]] | None = None) -> None:
        super().__init__()
        for one in THEMES.values():
            self.register_theme(one)
        self.theme = "dark"
        self.animation_level = "none"
        self.widget, self.dialog = widget, dialog
        self.told: list[object] = []
        self.answer: object = WAITING

    def compose(self) -> ComposeResult:
        with Horizontal():
            if self.widget:
                yield self.widget
            yield Static("The page that lies under it all. " * 40, id="page", markup=False)

    def on_mount(self) -> None:
        if self.dialog:
            self.push_screen(self.dialog(), self.take)
        elif self.widget:
            self.widget.focus()

    def take(self, answer: object) -> None:
        self.answer = answer

    @property
    def lines(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.screen._compositor.render_strips()]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines)


async def still(pilot: Pilot[None]) -> None:
    """No cursor blinks, for a picture that is always the same."""
    for line in pilot.app.screen.query(Input):
        line.cursor_blink = False
    await pilot.pause()


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.005)
    assert isinstance(pilot.app, Stage)
    raise AssertionError(f"waited in vain; on the screen is\n{pilot.app.shown}")


def assert_clean(app: Stage) -> None:
    """Every character on the screen is one that a terminal draws, and nothing is a link."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            assert not segment.control
            assert not segment.style or not segment.style.link
            assert not unsafe(segment.text), segment.text
            assert not {"\n", "\t"} & {*segment.text}, segment.text
