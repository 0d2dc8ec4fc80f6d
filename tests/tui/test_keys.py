"""The key sheet: every action is on it once, with the person's own keys, on any screen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual.app import App
from textual.pilot import Pilot

from localchat.paths import paths
from localchat.settings import settings
from localchat.tui.actions import ACTIONS
from localchat.tui.screens.keys import KeySheet, sheet
from localchat.tui.theme import THEMES

EVERYWHERE = ("chat", "composer", "page", "sidebar")


class Stage(App[None]):
    """The sheet over an empty page."""

    def __init__(self) -> None:
        super().__init__()
        self.register_theme(THEMES["dark"])
        self.theme = "dark"
        self.animation_level = "none"

    def on_mount(self) -> None:
        self.push_screen(KeySheet())

    @property
    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.screen._compositor.render_strips())


def own(text: str) -> None:
    paths().settings.parent.mkdir(parents=True, exist_ok=True)
    paths().settings.write_text(text)
    settings.cache_clear()


@pytest.mark.parametrize("width", [40, 61, 120])
def test_every_action_is_there(width: int) -> None:
    lines = sheet(EVERYWHERE, width).plain.split("\n")
    said = " ".join(" ".join(lines).split())
    for action in ACTIONS:
        assert action.label.split("  ")[0] in said or not (action.key or action.slash), action
    assert max(map(len, lines)) <= width


def test_what_has_no_key_has_its_slash_command() -> None:
    assert any(not action.key and action.slash for action in ACTIONS)
    text = sheet(EVERYWHERE, 120).plain
    for action in ACTIONS:
        if action.slash and not action.key:
            assert f"/{action.slash} " in text


def test_the_persons_own_keys() -> None:
    own('newline_on_enter = true\n[keys]\nagain = "ctrl+y"\nnew_chat = ""\n')
    lines = sheet(EVERYWHERE, 120).plain.split("\n")
    starts = {line.split("  ")[0] for line in lines}
    assert {"Ctrl Y", "/new"} <= starts and not {"Ctrl R", "Ctrl N"} & starts
    assert next(line for line in lines if "Send the message" in line).startswith("Ctrl J")
    assert next(line for line in lines if "New line" in line).startswith("Enter")


@pytest.mark.parametrize("key", ["escape", "f1", "q", "ctrl+c"])
async def test_put_away(key: str) -> None:
    app = Stage()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert isinstance(app.screen, KeySheet)
        await pilot.press(key)
        await pilot.pause()
        assert not isinstance(app.screen, KeySheet)


async def test_scrolled_by_keys_on_a_small_screen_and_laid_out_anew() -> None:
    app = Stage()
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.pause()
        assert "Esc closes" not in app.text and "Everywhere" in app.text
        await pilot.press("end")
        await pilot.pause()
        assert "Esc closes" in app.text and "Everywhere" not in app.text
        await pilot.resize_terminal(200, 60)
        await pilot.pause()
        assert "Esc closes" in app.text and "Everywhere" in app.text
        assert app.text.count("While reading") == 1


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (200, 50)], ids=["usual", "small", "huge"])
def test_the_sheet(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.pause()

    assert snap_compare(Stage(), terminal_size=size, run_before=play)
