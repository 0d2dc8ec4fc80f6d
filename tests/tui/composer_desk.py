"""A composer alone on a screen, for its tests: what it posts is written down, Esc goes to it as in the chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.pilot import Pilot

from localchat.tui.terminal import driver
from localchat.tui.theme import DARK
from localchat.tui.widgets.chips import Chips
from localchat.tui.widgets.completion import Completion
from localchat.tui.widgets.composer import Composer
from localchat.tui.widgets.field import Field

COMMANDS = (
    ("new", "", "Begin a new chat"),
    ("model", "[NAME]", "Choose another model"),
    ("system", "TEXT", "Set the system prompt of this chat"),
    ("settings", "", "System prompt, sampling, presets"),
    ("help", "", "All keys"),
    ("attach", "FILE", "Attach a file"),
)


class Desk(App[None]):
    """`posted` holds what the composer posted, `said` its sentences."""

    CSS = "Screen { align: center bottom; background: $background; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "escape", priority=True, show=False)]

    def __init__(self, folder: Path, commands: Sequence[tuple[str, str, str]] = COMMANDS, **options: bool) -> None:
        super().__init__(driver_class=driver())
        self.register_theme(DARK)
        self.theme = DARK.name
        self.animation_level = "none"
        self.composer = Composer(commands, folder=folder, **options)
        self.composer.cursor_blink = False
        self.posted: list[Composer.Sent | Composer.Command | Composer.Attached | Composer.Left] = []
        self.said: list[str] = []
        self.changes = 0
        self.escapes: list[bool] = []

    def compose(self) -> ComposeResult:
        yield self.composer

    @property
    def field(self) -> Field:
        return self.composer.query_one(Field)

    @property
    def chips(self) -> Chips:
        return self.composer.query_one(Chips)

    @property
    def offered(self) -> list[str]:
        return [choice.label for choice in self.composer.query_one(Completion).choices]

    @property
    def shown(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.screen._compositor.render_strips())

    def of(self, kind: type) -> list:
        return [message for message in self.posted if isinstance(message, kind)]

    async def until(self, pilot: Pilot[None], condition: Callable[[], object]) -> None:
        for _ in range(2000):
            if condition():
                await pilot.pause()
                return
            await pilot.pause(0.005)
        raise AssertionError(f"waited in vain; on the screen is\n{self.shown}")

    async def paste(self, pilot: Pilot[None], text: str) -> None:
        self.field.post_message(events.Paste(text))
        await pilot.pause()

    def action_escape(self) -> None:
        self.escapes.append(self.composer.escape())

    def on_composer_sent(self, message: Composer.Sent) -> None:
        self.posted.append(message)

    def on_composer_command(self, message: Composer.Command) -> None:
        self.posted.append(message)

    def on_composer_attached(self, message: Composer.Attached) -> None:
        self.posted.append(message)

    def on_composer_left(self, message: Composer.Left) -> None:
        self.posted.append(message)

    def on_composer_said(self, message: Composer.Said) -> None:
        self.said.append(message.text)

    def on_composer_changed(self) -> None:
        self.changes += 1
