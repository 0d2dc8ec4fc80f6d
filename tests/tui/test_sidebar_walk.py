"""A person's walk through the chats: the list, another chat, its title, deletion and undo, search and the jump."""

from __future__ import annotations

import pytest
from fake_engine import say, wait
from textual.pilot import Pilot

from localchat.chats.store import Chats
from localchat.tui.screens.find import FindScreen, HitRows
from localchat.tui.screens.links import LinkScreen
from localchat.tui.widgets.chat_rows import UNDO
from localchat.tui.widgets.sidebar import Sidebar
from tests.tui.conftest import Bench


async def two_chats(bench: Bench, pilot: Pilot[None]) -> None:
    """A chat about herbs, and then one about the sky, which is open."""
    bench.engine.script(say("Basil, of course."))
    bench.engine.script(say("Because the air scatters blue light."))
    bench.engine.script(say("On its way"), wait("never"))
    await bench.ask(pilot, "Which herb goes with tomatoes?")
    await bench.answered(pilot)
    await pilot.press("ctrl+n")
    await bench.ask(pilot, "Why is the sky blue?")
    await bench.until(pilot, lambda: "scatters" in bench.shown)
    await bench.answered(pilot)


def kept() -> dict[str, bool]:
    """The titles on disk, and whether each is pinned."""
    chats = Chats()
    try:
        return {info.title: info.pinned for info in chats.chats("chat")}
    finally:
        chats.close()


def searched(bench: Bench) -> bool:
    """Whether all that stands there was searched for: before that, Enter does so and goes nowhere."""
    screen = bench.current.screen
    assert isinstance(screen, FindScreen)
    return not screen._is_new and not screen._timer


@pytest.mark.parametrize("size", [(110, 30), (60, 20)], ids=["beside", "over"])
async def test_open_rename_pin_delete_and_undo(bench: Bench, size: tuple[int, int]) -> None:
    async with bench.app().run_test(size=size) as pilot:
        await two_chats(bench, pilot)
        await pilot.press("ctrl+b")
        await bench.until(pilot, lambda: "Today" in bench.shown)
        sidebar = bench.screen.query_one(Sidebar)
        assert sidebar.has_focus_within

        await pilot.press("down", "enter")
        await bench.until(pilot, lambda: "Basil, of course." in bench.shown)
        await bench.until(pilot, lambda: bench.composer.has_focus_within)

        await pilot.press("ctrl+b")
        await bench.until(pilot, lambda: sidebar.has_focus_within)
        await pilot.press("r", *" and rice", "enter")
        await bench.until(pilot, lambda: any(title.endswith("and rice") for title in kept()))
        await pilot.press("p")
        await bench.until(pilot, lambda: "Pinned" in bench.shown and any(kept().values()))

        await pilot.press("d")
        await bench.until(pilot, lambda: UNDO in bench.shown and len(kept()) == 1)
        # It was the open one: a new chat is on the page, and the keys stay in the list.
        await bench.until(pilot, lambda: sidebar.has_focus_within)
        await pilot.press("u")
        await bench.until(pilot, lambda: UNDO not in bench.shown and len(kept()) == 2)
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.composer.has_focus_within)


async def test_the_list_keys_are_not_the_chats_while_it_has_the_focus(bench: Bench) -> None:
    async with bench.app().run_test(size=(110, 30)) as pilot:
        await two_chats(bench, pilot)
        await bench.ask(pilot, "And more?")
        await bench.until(pilot, lambda: "On its way" in bench.shown)
        await pilot.press("ctrl+b")
        await bench.until(pilot, lambda: "Today" in bench.shown)
        sidebar = bench.screen.query_one(Sidebar)
        await pilot.press("slash", *"herb", "escape")
        await bench.until(pilot, lambda: "sky" in bench.shown)
        assert sidebar.has_focus_within
        await pilot.press("f2", *"!", "enter")
        await bench.until(pilot, lambda: any(title.endswith("!") for title in kept()))
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.composer.has_focus_within)
        # The answer went on meanwhile.
        assert bench.replies[-1].running
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.replies[-1].state == "stopped")


async def test_find_and_jump(bench: Bench) -> None:
    async with bench.app().run_test(size=(110, 30)) as pilot:
        await two_chats(bench, pilot)
        await pilot.press("ctrl+f")
        await bench.until(pilot, lambda: isinstance(bench.current.screen, FindScreen))
        await pilot.press(*"basil")
        await bench.until(pilot, lambda: "1 result" in bench.shown and searched(bench))
        await pilot.press("enter")
        await bench.until(pilot, lambda: "Basil, of course." in bench.shown and "scatters" not in bench.shown)
        assert bench.screen.transcript.current.content.text == "Basil, of course."


async def test_find_with_words_from_the_composer(bench: Bench) -> None:
    async with bench.app().run_test(size=(110, 30)) as pilot:
        await two_chats(bench, pilot)
        await bench.ask(pilot, "/find tomatoes")
        await bench.until(pilot, lambda: isinstance(bench.current.screen, FindScreen))
        await bench.until(pilot, lambda: "result" in bench.shown and searched(bench))
        assert bench.current.screen.query_one(HitRows).rows[0].title.startswith("Which herb")
        await pilot.press("enter")
        await bench.until(pilot, lambda: "Basil, of course." in bench.shown)


async def test_the_links_of_an_answer(bench: Bench) -> None:
    bench.engine.script(say("See [Rayleigh](https://example.org/rayleigh) or [this](https://аррӏе.com/)."))
    async with bench.app().run_test(size=(110, 30)) as pilot:
        await bench.ask(pilot, "Where can I read on?")
        await bench.answered(pilot)
        await pilot.press("ctrl+up", "u")
        await bench.until(pilot, lambda: isinstance(bench.current.screen, LinkScreen))
        assert "https://example.org/rayleigh" in bench.shown
        assert "xn--80ak6aa92e.com" in bench.shown
        await pilot.press("escape")
        assert bench.current.screen is bench.screen


async def test_the_list_folds_away_where_the_screen_becomes_narrow_and_comes_back(bench: Bench) -> None:
    async with bench.app().run_test(size=(110, 30)) as pilot:
        await two_chats(bench, pilot)
        await pilot.press("ctrl+b")
        await bench.until(pilot, lambda: "Today" in bench.shown)
        sidebar = bench.screen.query_one(Sidebar)
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.composer.has_focus_within)
        await pilot.resize_terminal(70, 24)
        await bench.until(pilot, lambda: not sidebar.display)
        await pilot.resize_terminal(110, 30)
        await bench.until(pilot, lambda: sidebar.display and "Today" in bench.shown)
        # Whoever is in it stays in it.
        await pilot.press("ctrl+b")
        await bench.until(pilot, lambda: sidebar.has_focus_within)
        await pilot.resize_terminal(70, 24)
        await bench.until(pilot, lambda: sidebar.has_class("-over"))
        assert sidebar.display and sidebar.has_focus_within
