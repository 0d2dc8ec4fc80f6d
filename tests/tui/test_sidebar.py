"""The list of chats, driven by its keys and the mouse, and as pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

import msgspec
import pytest
from textual import events
from textual.content import Content
from textual.pilot import Pilot

from localchat.chats.records import ChatInfo, ChatSettings
from localchat.tui.dates import day_group, when
from localchat.tui.widgets.chat_rows import UNDO, ChatRows
from localchat.tui.widgets.line_input import LineInput
from localchat.tui.widgets.sidebar import Sidebar
from tests.escapes import PAYLOADS
from tests.tui.stage import HOUR, NOW, Stage, assert_clean, still, until

SIZE = (100, 30)
TITLES = {
    # Title by hours ago.
    1: "Why is the sky blue?",
    5: "Holiday in Brittany: trains, ferries, and where to sleep",
    9: "Bread dough that does not rise",
    20: "漢字の読み方を教えてください",
    30: "שלום עולם",
    60: "Rust lifetimes explained",
    400: "A letter to the landlord",
    800: "",
    12000: "Old plans",
}


def chat(number: int, title: str, hours_ago: float, *, pinned: bool = False) -> ChatInfo:
    at = NOW.timestamp() - hours_ago * HOUR
    return ChatInfo(number, "chat", title, "words", pinned, at, at, ChatSettings(), number, 4)


def usual() -> list[ChatInfo]:
    chats = [chat(number, title, hours) for number, (hours, title) in enumerate(TITLES.items(), 1)]
    return [*chats, chat(50, "Recipes", 700, pinned=True)]


def many(count: int) -> list[ChatInfo]:
    return [chat(number, f"Chat number {number}", number * 2.0) for number in range(1, count + 1)]


class List(Stage):
    """The sidebar beside a page."""

    widget: Sidebar

    def __init__(self, chats: list[ChatInfo], current: int | None = 2, **options: object) -> None:
        super().__init__(Sidebar(lambda: NOW, **options))  # type: ignore[arg-type]
        self.widget.show(chats, current)

    def on_resize(self, event: events.Resize) -> None:
        self.widget.set_class(event.size.width < 80, "-over")

    def keep(self, message: object) -> None:
        self.told.append(message)

    on_sidebar_opened = on_sidebar_new_chat = on_sidebar_renamed = on_sidebar_pinned = keep
    on_sidebar_deleted = on_sidebar_restored = on_sidebar_left = keep

    @property
    def rows(self) -> ChatRows:
        return self.query_one(ChatRows)

    @property
    def line_of_mark(self) -> int:
        assert self.rows.marked is not None
        return self.rows.top_of(self.rows.marked)


# How it looks.


@pytest.fixture
def look(snap_compare: Callable[..., bool]) -> Callable[..., None]:
    def compare(app: List, *keys: str, size: tuple[int, int] = SIZE) -> None:
        async def play(pilot: Pilot[None]) -> None:
            await pilot.press(*keys)
            await still(pilot)

        assert snap_compare(app, terminal_size=size, run_before=play)

    return compare


def test_looks_usual(look: Callable[..., None]) -> None:
    look(List(usual()), "down")


def test_looks_without_the_focus(look: Callable[..., None]) -> None:
    app = List(usual())
    app.on_mount = lambda: None  # type: ignore[method-assign]
    look(app)


def test_looks_filtered(look: Callable[..., None]) -> None:
    look(List(usual()), "slash", *"th la")


def test_looks_filtered_to_nothing(look: Callable[..., None]) -> None:
    look(List(usual()), "slash", *"xyz")


def test_looks_while_renaming(look: Callable[..., None]) -> None:
    look(List(usual()), "down", "r", *" soon")


def test_looks_with_a_deleted_row(look: Callable[..., None]) -> None:
    look(List(usual()), "down", "d")


def test_looks_empty(look: Callable[..., None]) -> None:
    look(List([], None))


def test_looks_small_and_over_the_page(look: Callable[..., None]) -> None:
    look(List(usual()), "down", size=(60, 20))


# What the keys do.


async def test_the_current_chat_is_marked_first_and_enter_opens() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        assert app.widget.marked == 2
        await pilot.press("down", "down", "enter")
        assert app.told == [Sidebar.Opened(4)]
        await pilot.press("k", "k", "k", "k", "k", "enter")
        assert app.told[1:] == [Sidebar.Opened(50)]
        await pilot.press("j", "end", "n", "home", "escape")
        assert app.told[2:] == [Sidebar.NewChat(), Sidebar.Left()]
        assert app.widget.marked == 50


async def test_pages_and_ends() -> None:
    app = List(many(300))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("G")
        assert app.widget.marked == 300
        assert app.rows.is_in_view(app.rows.marked)
        await pilot.press("pageup")
        assert 270 < app.widget.marked < 285
        await pilot.press("g", "pagedown", "pagedown")
        assert 30 < app.widget.marked < 60
        await pilot.press("g", "up")
        assert app.widget.marked == 1
        assert "Today" in app.shown


async def test_renaming_in_place() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("r", *" 2027")
        assert "to sleep 2027" in app.shown
        await pilot.press("enter", "enter")
        title = f"{TITLES[5]} 2027"
        assert app.told == [Sidebar.Renamed(2, title), Sidebar.Opened(2)]
        # Leaving, an empty title, and the same one change nothing.
        await pilot.press("f2", "x", "escape", "r", "ctrl+u", "enter", "r", "space", "enter", "p")
        assert app.told[2:] == [Sidebar.Pinned(2, True)]
        assert app.widget._chats[2].title == title


async def test_what_follows_enter_at_once_is_no_part_of_the_title() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("r", "x")
        line = app.widget._title
        for key, character in (("enter", "\r"), ("k", "k"), ("d", "d")):
            line.post_message(events.Key(key, character))
        await until(pilot, lambda: app.told)
        assert app.told == [Sidebar.Renamed(2, f"{TITLES[5]}x")]


async def test_what_is_typed_faster_than_the_screen_follows_is_not_lost() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        for character in "/bread\r":
            key = {"/": "slash", "\r": "enter"}.get(character, character)
            app.rows.post_message(events.Key(key, character))
        await until(pilot, lambda: app.told)
        assert app.told == [Sidebar.Opened(3)]
        for character in "r twice\r":
            app.rows.post_message(events.Key({" ": "space", "\r": "enter"}.get(character, character), character))
        await until(pilot, lambda: app.told[1:])
        assert app.told[1:] == [Sidebar.Renamed(3, "Bread dough that does not rise twice")]


async def test_a_click_elsewhere_keeps_the_new_title() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("r", "!")
        await pilot.click("ChatRows", offset=(5, 4))
        assert app.told == [Sidebar.Renamed(2, f"{TITLES[5]}!"), Sidebar.Opened(1)]


async def test_pinning_goes_both_ways() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("p")
        assert app.rows.chat_at(1).id == 2
        await pilot.press("p")
        assert app.told == [Sidebar.Pinned(2, True), Sidebar.Pinned(2, False)]
        assert app.widget.marked == 2


async def test_deleting_and_undoing() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("d")
        assert app.told == [Sidebar.Deleted(2)]
        assert UNDO in app.shown
        # The list that the database gives now is without it; its row stays, and so does the mark.
        app.widget.show([one for one in usual() if one.id != 2], None)
        await pilot.press("d", "enter", "r", "p")
        assert UNDO in app.shown
        await pilot.press("u")
        assert app.told[1:] == [Sidebar.Restored(2)]
        assert UNDO not in app.shown
        assert app.widget.marked == 2
        await pilot.press("u")
        assert len(app.told) == 2


async def test_the_next_action_ends_the_undoing() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("d", "down", "d")
        assert app.told == [Sidebar.Deleted(2), Sidebar.Deleted(3)]
        assert app.shown.count(UNDO) == 1
        await pilot.press("u", "u")
        assert app.told[2:] == [Sidebar.Restored(3)]
        assert "Holiday" not in app.shown


async def test_the_undoing_ends_by_itself() -> None:
    app = List(usual(), undo_s=0.05)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: UNDO not in app.shown)
        assert app.widget.marked == 3
        await pilot.press("u")
        assert app.told == [Sidebar.Deleted(2)]


async def test_deleting_the_last_one() -> None:
    app = List([chat(1, "Only one", 1)], undo_s=0.05)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: "Nothing here yet" in app.shown)
        await pilot.press("enter", "r", "p", "d", "u", "down", "pageup", "G")
        assert app.told == [Sidebar.Deleted(1)]


async def test_filtering() -> None:
    app = List([*usual(), chat(60, "Café au lait", 3)])
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("slash", *"CAFE")
        assert app.widget.marked == 60
        assert "Bread" not in app.shown
        await pilot.press("enter")
        assert app.told == [Sidebar.Opened(60)]
        assert "Bread" in app.shown
        # Esc first shows all again, and only then leaves.
        await pilot.press("slash", *"bread", "escape")
        assert "Holiday" in app.shown
        assert app.widget.marked == 3
        assert app.told[1:] == []
        await pilot.press("escape")
        assert app.told[1:] == [Sidebar.Left()]


async def test_the_mouse_shows_and_opens() -> None:
    app = List(usual())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.hover("ChatRows", offset=(5, 6))
        assert app.rows.chat_at(app.rows.hovered).id == 3
        await pilot.click("ChatRows", offset=(5, 6))
        # A heading and the empty line above it open nothing.
        await pilot.click("ChatRows", offset=(5, 2))
        await pilot.click("ChatRows", offset=(5, 3))
        assert app.told == [Sidebar.Opened(3)]


# What stays when the list is refreshed.


async def test_mark_and_place_stay_when_a_title_comes() -> None:
    app = List(many(200))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("pagedown", "pagedown", "up", "up")
        marked, line, scrolled = app.widget.marked, app.line_of_mark, app.rows.scroll_y
        chats = many(200)
        # The model made a title, and a new chat has come on top.
        chats[marked - 2] = msgspec.structs.replace(chats[marked - 2], title="A better title")
        app.widget.show([chat(999, "New", 0), *chats], 999)
        await pilot.pause()
        assert (app.widget.marked, app.line_of_mark) == (marked, line)
        assert app.rows.scroll_y == scrolled + 1
        assert "A better title" in app.shown


async def test_place_stays_where_the_person_scrolled_by_wheel() -> None:
    app = List(many(200))
    async with app.run_test(size=SIZE) as pilot:
        app.rows.scroll_to(y=100, animate=False)
        await pilot.pause()
        before = [line[:28] for line in app.lines[3:20]]
        app.widget.show([chat(999, "New", 0), *many(200)], 999)
        await pilot.pause()
        assert [line[:28] for line in app.lines[3:20]] == before
        assert app.widget.marked == 2


async def test_an_edit_in_progress_stays() -> None:
    app = List(many(200))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("down", "down", "r", *" half a ti")
        chats = [one if one.id != 4 else msgspec.structs.replace(one, title="By the model") for one in many(200)]
        app.widget.show([chat(999, "New", 0), chat(998, "Newer", 0), *chats], 999)
        await pilot.pause()
        line = next(line for line in app.lines if "half a ti" in line)
        assert app.lines.index(line) == app.rows.region.y + app.line_of_mark
        await pilot.press(*"tle", "enter")
        assert app.told == [Sidebar.Renamed(4, "Chat number 4 half a title")]


async def test_an_edit_ends_when_its_chat_has_gone() -> None:
    app = List(many(20))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("r", "x")
        app.widget.show([one for one in many(20) if one.id != 2], 1)
        await pilot.press("enter")
        assert app.told == [Sidebar.Opened(3)]


async def test_the_focus_may_be_asked_for_before_it_is_there() -> None:
    app = Stage()
    async with app.run_test(size=SIZE) as pilot:
        sidebar = Sidebar(lambda: NOW)
        app.mount(sidebar)
        sidebar.focus()
        sidebar.show(usual(), 1)
        await pilot.pause()
        await pilot.press("down")
        assert sidebar.marked == 2


@pytest.mark.parametrize("steps", [60, pytest.param(2000, marks=pytest.mark.slow)])
async def test_any_order_of_keys_and_refreshes(steps: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    keys = ["up", "down", "pageup", "pagedown", "home", "end", "r", "p", "d", "u", "slash", "escape", "enter", "x", "n"]
    app = List(many(40), undo_s=0.01)
    async with app.run_test(size=(90, 14)) as pilot:
        for _ in range(steps):
            if chance.random() < 0.25:
                chats = chance.sample(many(60), chance.randrange(60))
                app.widget.show(chats, chance.choice([None, 1, 70]))
            else:
                await pilot.press(chance.choice(keys))
            rows = app.rows
            assert rows.marked is None or rows.can_mark(rows.marked)
            assert (rows.marked is None) == (not rows.rows)


async def test_of_thousands_only_those_in_view_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = ChatRows.draw

    def counted(self: ChatRows, row: int, width: int, marked: bool) -> list[Content]:
        drawn.append(row)
        return draw(self, row, width, marked)

    monkeypatch.setattr(ChatRows, "draw", counted)
    app = List(many(5000))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("end")
        assert app.widget.marked == 5000
        await pilot.press("slash", *"4999")
        assert app.widget.marked == 4999
        assert len(set(drawn)) < 4 * SIZE[1]


# Text from outside.


async def test_no_title_reaches_the_terminal_as_a_control_sequence() -> None:
    wild = ["𝕏" * 5000, "word" * 30_000, "👨‍👩‍👧 family", "a\tb\nc", "ﷺ" * 40, "e\u0301" * 300]
    chats = [chat(number, title, number / 50) for number, title in enumerate([*PAYLOADS, *wild], 1)]
    app = List(chats)
    async with app.run_test(size=(60, 20)) as pilot:
        for _ in range(len(chats) // 12 + 1):
            assert_clean(app)
            await pilot.press("pagedown")
        await pilot.press("g")
        for _ in range(12):
            await pilot.press("r")
            assert_clean(app)
            await pilot.press("escape", "down")
        await pilot.press("slash")
        app.query_one(".filter", LineInput).post_message(events.Paste("".join(PAYLOADS)))
        await pilot.pause()
        assert_clean(app)


def test_days_and_moments() -> None:
    def at(*when_: int) -> float:
        return datetime(*when_, tzinfo=NOW.tzinfo).timestamp()

    groups = [
        ((2026, 11, 19, 0, 0), "Today", "00:00"),
        ((2026, 11, 20, 1, 0), "Today", "20 Nov 01:00"),
        ((2026, 11, 18, 23, 59), "Yesterday", "yesterday 23:59"),
        ((2026, 11, 16, 0, 0), "This week", "16 Nov 00:00"),
        ((2026, 11, 15, 23, 59), "November", "15 Nov 23:59"),
        ((2026, 2, 3, 4, 5), "February", "3 Feb 04:05"),
        ((2025, 11, 19, 15, 0), "November 2025", "19 Nov 2025"),
    ]
    for moment, group, text in groups:
        assert (day_group(at(*moment), NOW), when(at(*moment), NOW)) == (group, text)
    # The night in which the clocks went forward: a day is what the calendar says, not 24 hours.
    spring = NOW.replace(month=3, day=29, hour=12)
    assert day_group(at(2026, 3, 28, 0, 30), spring) == "Yesterday"
    for nonsense in (float("nan"), float("inf"), 1e30, -1e30):
        assert (day_group(nonsense, NOW), when(nonsense, NOW)) == ("Without a date", "")
