"""The search screen: asked as a person types, never with what is out of date, and as pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from textual import events
from textual.pilot import Pilot

from localchat.chats.records import Hit
from localchat.errors import ChatsDamaged
from localchat.tui.screens import find
from localchat.tui.screens.find import FindScreen, HitRows, marked_excerpt
from localchat.tui.widgets.line_input import LineInput
from tests.escapes import PAYLOADS
from tests.tui.stage import HOUR, NOW, WAITING, Stage, assert_clean, still, until

SIZE = (100, 30)


def hit(number: int, excerpt: str, found: str, **other: object) -> Hit:
    start = excerpt.index(found)
    told = {
        "chat": number,
        "node": 100 + number,
        "kind": "chat",
        "title": "Why is the sky blue?",
        "role": "user",
        "created": NOW.timestamp() - number * 7 * HOUR,
        "excerpt": excerpt,
        "marks": [(start, start + len(found))],
    }
    return Hit(**{**told, **other})  # type: ignore[arg-type]


HITS = [
    hit(1, "Why is the sky blue", "blue", role="title"),
    hit(2, "…Short waves scatter more: blue light comes from everywhere, and blue is what we see…", "blue"),
    hit(3, "The blues began in the south", "blues", title="Music for a long drive", role="assistant"),
    hit(4, "print('blue') # " + "x" * 200, "blue", kind="ask", title="colour names in curses, please, all of them"),
    hit(900, "…" + "so it went on " * 12 + "until blue came", "blue", title=""),
    hit(5, "天空为什么是蓝色的 blue 天空为什么是蓝色的天空为什么是蓝色的天空为什么是蓝色的", "blue", title="中文"),
]


class Library:
    """What can be found; each search waits until it is let go, where `waits` says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.given_up: list[str] = []
        self.waits: dict[str, asyncio.Event] = {}

    async def search(self, words: str) -> list[Hit]:
        self.asked.append(words)
        try:
            if words in self.waits:
                await self.waits[words].wait()
        except asyncio.CancelledError:
            self.given_up.append(words)
            raise
        if words == "broken":
            raise ChatsDamaged("the chats are damaged: restore a backup with `localchat chats restore`")
        if words == "many":
            return [hit(number, f"number {number} of many", "many") for number in range(1, 51)]
        return [one for one in HITS if words.strip() in one.excerpt]


class Find(Stage):
    """The search over a page."""

    def __init__(self, words: str = "") -> None:
        self.library = Library()
        super().__init__(dialog=lambda: FindScreen(self.library.search, words, clock=lambda: NOW))

    def found(self, words: str) -> bool:
        """Whether what is shown is what there is for all these words, and not for the first letters of them."""
        assert isinstance(self.screen, FindScreen)
        return self.library.asked[-1:] == [words] and not self.screen._is_new and not self.screen._timer

    @property
    def rows(self) -> HitRows:
        return self.screen.query_one(HitRows)

    @property
    def line(self) -> LineInput:
        return self.screen.query_one(LineInput)


@pytest.fixture
def look(snap_compare: Callable[..., bool]) -> Callable[..., None]:
    def compare(typed: str, shows: str, *keys: str, size: tuple[int, int] = SIZE) -> None:
        app = Find()

        async def play(pilot: Pilot[None]) -> None:
            await pilot.press(*typed)
            await until(pilot, lambda: shows in app.shown and (not typed or app.found(typed)))
            await pilot.press(*keys)
            await still(pilot)

        assert snap_compare(app, terminal_size=size, run_before=play)

    return compare


def test_looks_at_first(look: Callable[..., None]) -> None:
    look("", "Several words")


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_looks_with_results(look: Callable[..., None], size: tuple[int, int]) -> None:
    look("blue", "6 results", "down", size=size)


def test_looks_with_nothing_found(look: Callable[..., None]) -> None:
    look("xyz", "Nothing found")


def test_looks_with_an_error(look: Callable[..., None]) -> None:
    look("broken", "damaged")


async def test_results_come_as_one_types_and_enter_goes_there() -> None:
    app = Find()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press(*"blue")
        await until(pilot, lambda: "6 results" in app.shown and app.found("blue"))
        await pilot.press("down", "down", "up", "enter")
        assert app.answer == HITS[1]


async def test_words_that_were_brought_along_are_searched_at_once() -> None:
    app = Find("blue")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "6 results" in app.shown)
        assert app.line.value == "blue"
        await pilot.press("escape")
        assert app.answer is None


async def test_an_old_search_is_given_up_and_shows_nothing() -> None:
    app = Find("blue")
    app.library.waits["blue"] = asyncio.Event()
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.library.asked == ["blue"])
        await pilot.press("s")
        await until(pilot, lambda: "1 result" in app.shown and app.found("blues"))
        assert "Music" in app.shown
        assert app.library.asked == ["blue", "blues"] and app.library.given_up == ["blue"]


async def test_enter_waits_for_what_belongs_to_the_words() -> None:
    app = Find("blue")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "6 results" in app.shown and app.found("blue"))
        app.library.waits["blues"] = asyncio.Event()
        # The results of "blue" are still shown, and must not be opened in the place of others.
        await pilot.press("s", "enter", "enter")
        assert app.answer == WAITING
        app.library.waits["blues"].set()
        await until(pilot, lambda: "1 result" in app.shown)
        await pilot.press("enter")
        assert app.answer == HITS[2]


async def test_what_comes_late_is_not_opened_for_words_that_were_typed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(find, "_REST_S", 3600)
    app = Find("blue")
    held = app.library.waits["blue"] = asyncio.Event()
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.library.asked == ["blue"])
        await pilot.press("s")
        held.set()
        await until(pilot, lambda: "6 results" in app.shown)
        await pilot.press("enter")
        assert app.answer == WAITING
        await until(pilot, lambda: "1 result" in app.shown)
        await pilot.press("enter")
        assert app.answer == HITS[2]


async def test_typing_goes_on_while_a_search_takes_long() -> None:
    app = Find("blue")
    app.library.waits["blue"] = asyncio.Event()
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.library.asked)
        await pilot.press("left", "left", "x")
        assert app.line.value == "blxue"


async def test_nothing_found_an_error_and_back() -> None:
    app = Find("broken")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "the chats are damaged" in app.shown)
        await pilot.press("enter", "down", "pageup")
        assert app.answer == WAITING
        app.line.value = "xyz"
        await until(pilot, lambda: "Nothing found" in app.shown)
        app.line.value = ""
        await until(pilot, lambda: "Several words" in app.shown and "Nothing found" not in app.shown)


async def test_pages_and_the_mouse() -> None:
    app = Find("many")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "50 results" in app.shown and app.found("many"))
        await pilot.press("pagedown", "pagedown")
        assert app.rows.marked >= 4
        assert app.rows.is_in_view(app.rows.marked)
        await pilot.press("pageup", "pageup", "pageup")
        assert app.rows.marked == 0
        await pilot.click(HitRows, offset=(10, 4))
        assert app.answer.chat == 2


async def test_no_title_or_excerpt_reaches_the_terminal_as_a_control_sequence() -> None:
    app = Find()
    wild = [*PAYLOADS, "\u202ea" * 200, "x" * 50_000, "ﷺ" * 100, "é" * 300]
    hits = [Hit(1, 1, "ask", one, one, 1e12, one, [(0, 3), (2, 90), (-5, 1), (70, 3)]) for one in wild]

    async def search(words: str) -> list[Hit]:
        return hits

    app.library.search = search  # type: ignore[method-assign]
    async with app.run_test(size=(60, 20)) as pilot:
        app.line.post_message(events.Paste("".join(PAYLOADS)))
        await until(pilot, lambda: app.rows.rows)
        for top in range(0, int(app.rows.max_scroll_y), 12):
            app.rows.scroll_to(y=top, animate=False)
            assert_clean(app)


async def test_an_error_is_clean() -> None:
    app = Find()

    async def search(words: str) -> list[Hit]:
        raise ChatsDamaged("".join(PAYLOADS))

    app.library.search = search  # type: ignore[method-assign]
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.press("x")
        await until(pilot, lambda: "Several words" not in app.shown)
        assert_clean(app)


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_the_first_match_is_in_what_is_shown(width: int) -> None:
    for one in HITS:
        shown = marked_excerpt(one, width)
        assert cell_len(shown.plain) <= width
        assert one.excerpt[slice(*one.marks[0])] in shown.plain


def test_marks_count_characters_of_the_excerpt_as_it_came() -> None:
    excerpt = "a\rb\u202e \tcd\x1b needle\n and needle"
    marks = [(start, start + 6) for start in (excerpt.index("needle"), excerpt.rindex("needle"))]
    shown = marked_excerpt(Hit(1, 1, "chat", "", "user", 0.0, excerpt, marks), 80)
    accented = [shown.plain[span.start : span.end] for span in shown.spans if "accent" in str(span.style)]
    assert accented == ["needle", "needle"]
