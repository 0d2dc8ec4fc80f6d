"""The small dialogs: yes or no, one of a few, one line, and the links of a message."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot
from textual.screen import Screen

from localchat.tui import links
from localchat.tui.links import address, open_in_browser
from localchat.tui.screens.choose import Choice, ChooseScreen
from localchat.tui.screens.line import LineScreen
from localchat.tui.screens.links import LinkRows, LinkScreen
from localchat.tui.widgets.line_input import LineInput
from tests.escapes import PAYLOADS
from tests.tui.stage import WAITING, Stage, assert_clean, still, until

SIZE = (80, 24)
CHOICES = [
    Choice("s", "Slide", "the oldest messages are no longer sent to the model; they stay here", 1),
    Choice("m", "Summarise", "the model sums the older messages up, and sees the summary instead", 2),
    Choice("n", "Nothing", "shorten your message, or begin a new chat", 3),
]
WHAT = "It has 9,120 tokens, and the model can see 8,192 of them."
LINKS = [
    "https://example.org/wiki/Rayleigh_scattering?section=2#top",
    "https://bank.example@evil.example/login",
    "https://аррӏе.com/id",
    "mailto:someone@example.org?subject=Hi",
    "file:///etc/passwd",
]
LONG = "https://example.org/" + "very/long/" * 300 + "end"


def ends_well(name: str) -> str | None:
    return None if name.endswith((".md", ".json")) else "the name must end in .md or .json: add one of them"


def choose() -> ChooseScreen[int]:
    return ChooseScreen("The context window is full. What shall the model see?", CHOICES, WHAT)


def line() -> LineScreen:
    return LineScreen(
        "Write this chat to", "Why is the sky blue.md", ends_well, "A .md file to read, a .json to import."
    )


class Browser:
    """Opens nothing, and says what it was asked."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.threads: list[int] = []

    def __call__(self, target: str) -> str:
        self.opened.append(target)
        self.threads.append(threading.get_ident())
        return "Opened in your browser"


# How they look.


@pytest.fixture
def look(snap_compare: Callable[..., bool]) -> Callable[..., None]:
    def compare(dialog: Callable[[], Screen], *keys: str, size: tuple[int, int] = SIZE) -> None:
        async def play(pilot: Pilot[None]) -> None:
            await pilot.press(*keys)
            await still(pilot)

        assert snap_compare(Stage(dialog=dialog), terminal_size=size, run_before=play)

    return compare


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_looks_choose(look: Callable[..., None], size: tuple[int, int]) -> None:
    look(choose, "down", size=size)


def test_looks_line(look: Callable[..., None]) -> None:
    look(line)


def test_looks_line_refused(look: Callable[..., None]) -> None:
    look(line, "backspace", "enter")


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_looks_links(look: Callable[..., None], size: tuple[int, int]) -> None:
    look(lambda: LinkScreen(LINKS), "down", "down", size=size)


def test_looks_a_long_link(look: Callable[..., None]) -> None:
    look(lambda: LinkScreen([LONG]), "enter")


# Yes or no.


# One of a few.


@pytest.mark.parametrize(
    ("keys", "answer"), [("m", 2), ("enter", 1), ("down down enter", 3), ("down up enter", 1), ("escape", None)]
)
async def test_choose(keys: str, answer: int | None) -> None:
    app = Stage(dialog=choose)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press(*keys.split())
        assert app.answer == answer


async def test_what_comes_unasked_takes_nothing_that_was_being_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("localchat.tui.screens.choose.monotonic", lambda: now)
    monkeypatch.setattr("localchat.tui.screens.choose._CALM_S", 0.7)
    app = Stage(dialog=lambda: ChooseScreen("The window is full.", CHOICES, unasked=True))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press(*"some", "enter")
        now += 0.5
        await pilot.press("m")
        assert app.answer == WAITING
        now += 1
        await pilot.press("m")
        assert app.answer == 2


async def test_choose_where_there_is_hardly_room() -> None:
    app = Stage(dialog=choose)
    async with app.run_test(size=(40, 10)) as pilot:
        assert "context window" in app.shown
        await pilot.press("down", "down")
        assert "begin a new chat" in app.shown
        await pilot.press("up", "up")
        assert "context window" in app.shown
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "begin a new chat" in app.shown


# One line.


async def test_a_line_is_taken_without_spaces_at_its_ends() -> None:
    app = Stage(dialog=line)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("home", "space", "X", "end", "space", "enter")
        assert app.answer == "XWhy is the sky blue.md"


async def test_a_line_that_will_not_do_is_refused_until_it_does() -> None:
    app = Stage(dialog=line)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("backspace")
        assert "must end" not in app.shown
        await pilot.press("enter")
        assert "must end" in app.shown
        assert app.answer == WAITING
        await pilot.press("d")
        assert "must end" not in app.shown
        await pilot.press("enter")
        assert app.answer == "Why is the sky blue.md"


async def test_an_empty_line_and_leaving() -> None:
    app = Stage(dialog=lambda: LineScreen("The title of this chat"))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("space", "enter")
        assert "cannot be empty" in app.shown
        await pilot.press("x", "escape")
        assert app.answer is None


async def test_keys_act_in_the_order_they_came() -> None:
    app = Stage(dialog=lambda: LineScreen("The title of this chat", "old"))
    async with app.run_test(size=SIZE) as pilot:
        line = app.screen.query_one(LineInput)
        for key in ("ctrl+u", "n", "x", "backspace", "e", "w", "home", "a", "enter", "z"):
            line.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.answer != WAITING)
        assert app.answer == "anew"


async def test_a_line_takes_a_paste_of_any_size_as_one_line() -> None:
    app = Stage(dialog=lambda: LineScreen("The title of this chat", "a"))
    async with app.run_test(size=SIZE) as pilot:
        app.screen.query_one(LineInput).post_message(events.Paste("b\r\nc\td\x1b[2J" + "x" * 100_000))
        await pilot.pause()
        await pilot.press("y", "enter")
        assert app.answer == "ab c d␛[2J" + "x" * 990


# Links.


async def test_a_link_is_opened_on_enter_only_and_on_a_thread() -> None:
    browser = Browser()
    app = Stage(dialog=lambda: LinkScreen(LINKS, browser))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.click(LinkRows, offset=(5, 0))
        await pilot.press("down", "up", "space")
        assert browser.opened == []
        await pilot.press("enter")
        await until(pilot, lambda: "Opened in your browser" in app.shown)
        assert browser.opened == [LINKS[0]]
        assert browser.threads != [threading.get_ident()]
        await pilot.press("down", "enter")
        assert "Not opened: a name before the @" in app.shown
        await pilot.press("down", "enter")
        await until(pilot, lambda: "Opened in your browser" in app.shown)
        assert browser.opened[1:] == ["https://xn--80ak6aa92e.com/id"]
        await pilot.press("down", "down", "enter")
        assert "Not opened: only http" in app.shown
        await pilot.press("escape")
        assert app.answer is None


async def test_a_long_link_is_opened_only_after_all_of_it_was_shown() -> None:
    browser = Browser()
    app = Stage(dialog=lambda: LinkScreen([LONG], browser))
    async with app.run_test(size=SIZE) as pilot:
        pages = 0
        while "end " not in app.shown:
            await pilot.press("enter")
            assert "The address goes on" in app.shown
            pages += 1
            assert pages < 20
        assert pages > 2
        assert browser.opened == []
        await pilot.press("enter")
        await until(pilot, lambda: browser.opened == [LONG])


async def test_a_link_is_copied() -> None:
    copied: list[str] = []

    def copy(text: str) -> str:
        copied.append(text)
        return "copied\x1b[2J with a helper"

    app = Stage(dialog=lambda: LinkScreen(LINKS, Browser(), copy))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("end", "down", "down", "y")
        await until(pilot, lambda: "with a helper" in app.shown)
        assert copied == ["https://xn--80ak6aa92e.com/id"]
        assert_clean(app)
        await pilot.press("down", "down", "y")
        await until(pilot, lambda: len(copied) == 2)
        assert copied[1] == "file:///etc/passwd"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("http://a.example", "http://a.example"),
        ("HTTPS://A.Example:8443/X?y=%20z#ü", "https://a.example:8443/X?y=%20z#%C3%BC"),
        ("https://bücher.example/ß", "https://xn--bcher-kva.example/%C3%9F"),
        ("https://faß.example", "https://xn--fa-hia.example"),
        ("https://例え。jp", "https://xn--r8jz45g.jp"),
        ("https://[::1]:80/", "https://[::1]:80/"),
        ("https://127.0.0.1/", "https://127.0.0.1/"),
        ("mailto:a@b.example", "mailto:a@b.example"),
        ("mailto:a@b.example?subject=x&body=y", "mailto:a@b.example?subject=x&body=y"),
        # Nothing of these is opened.
        ("mailto:a@b.example?attach=/etc/passwd", ""),
        ("mailto:a@b.example?%61ttach=/etc/passwd", ""),
        ("javascript:alert(1)", ""),
        ("file:///etc/passwd", ""),
        ("data:text/html,x", ""),
        ("ssh://host/", ""),
        ("-https://a.example", ""),
        (" https://a.example", ""),
        ("https:a.example", ""),
        ("https:///a.example", ""),
        ("https://", ""),
        ("https://good.example@evil.example", ""),
        ("https://good.example:x@evil.example", ""),
        ("https://evil.example\\@good.example", ""),
        ("https://good.example\u200b.evil.example", ""),
        ("https://a.example/\u202e", ""),
        ("https://a.example/a b", ""),
        ("https://a.example/\n", ""),
        ("https://ev%69l.example", ""),
        ("https://a℀b.example", ""),
        ("https://a.example:99x/", ""),
        ('https://a.example/"', ""),
        ("", ""),
    ],
)
def test_which_links_may_be_opened(link: str, target: str) -> None:
    found = address(link)
    assert found.target == target
    assert bool(found.why) == (not target)


def test_the_host_is_told_apart() -> None:
    assert [address(link).host for link in LINKS] == ["example.org", "evil.example", "аррӏе.com", "example.org", ""]
    assert address(LINKS[2]).network_host == "xn--80ak6aa92e.com"
    assert address("https://A.example").network_host == ""
    for link in LINKS:
        assert address(link).shown == link


def test_what_is_invisible_in_a_link_is_named() -> None:
    assert address("https://a.example/\u200bx\u202ey").shown == "https://a.example/<U+200B>x<U+202E>y"
    # Letters that run from right to left would show the address in another order than it has.
    assert address("https://a.example/אב").shown == "https://a.example/%D7%90%D7%91"


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A machine whose `xdg-open` is the given script; returns the file that it may write to."""
    monkeypatch.setattr(links.sys, "platform", "linux")
    monkeypatch.setattr(links, "_PATIENCE_S", 60.0)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def install(script: str) -> Path:
        program, written = tmp_path / "xdg-open", tmp_path / "written"
        program.write_text(f"#!/bin/sh\nOUT={written}\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return written

    return install


def test_opening_asks_the_desktop(desktop: Callable[[str], Path]) -> None:
    written = desktop('echo noise; echo noise >&2; (tty || true) > "$OUT"; printf %s "$1" >> "$OUT"')
    assert open_in_browser("https://a.example/?x=1&y=$(id)") == "Opened in your browser"
    assert written.read_text() == "not a tty\nhttps://a.example/?x=1&y=$(id)"


def test_opening_that_fails_says_so(desktop: Callable[[str], Path]) -> None:
    desktop("exit 3")
    assert open_in_browser("https://a.example") == "xdg-open could not open it: y copies the address"


def test_a_browser_that_stays_is_not_waited_for(
    desktop: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = desktop('echo $$ > "$OUT"; exec sleep 60')
    monkeypatch.setattr(links, "_PATIENCE_S", 0.3)
    assert open_in_browser("https://a.example") == "Opened in your browser"
    deadline = time.monotonic() + 20
    while not (written.exists() and written.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(int(written.read_text()), 15)


def test_without_a_desktop_nothing_is_started(desktop: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    written = desktop('touch "$OUT"')
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "No desktop" in open_in_browser("https://a.example")
    assert not written.exists()


# Text from outside.


async def test_nothing_reaches_the_terminal_as_a_control_sequence() -> None:
    everything = " ".join(PAYLOADS)
    choices = [Choice("a", payload, payload, None) for payload in PAYLOADS[::12]]
    dialogs: list[Callable[[], Screen]] = [
        lambda: ChooseScreen(everything[900:1000], choices, everything[1000:1300]),
        lambda: LineScreen(everything[:200], everything, lambda text: everything[200:500], everything[500:600]),
        lambda: LinkScreen([*PAYLOADS[::9], *(f"https://a.example/{payload}" for payload in PAYLOADS[::9])]),
    ]
    for dialog in dialogs:
        app = Stage(dialog=dialog)
        async with app.run_test(size=(60, 20)) as pilot:
            assert_clean(app)
            for key in ("down", "pagedown", "enter"):
                await pilot.press(key)
                assert_clean(app)


async def test_whatever_stands_in_a_line_is_clean() -> None:
    app = Stage(dialog=lambda: LineScreen("The title of this chat", "\x1b[2J"))
    async with app.run_test(size=(60, 20)) as pilot:
        line = app.screen.query_one(LineInput)
        assert "␛[2J" in app.shown
        for payload in PAYLOADS[::4]:
            line.value = payload
            assert_clean(app)
            line.post_message(events.Paste(payload))
            await pilot.pause()
            assert_clean(app)


async def test_every_link_of_the_corpus_is_drawn_clean() -> None:
    hosts = [f"https://{payload}.example/" for payload in PAYLOADS]
    links = [*PAYLOADS, *hosts, *(f"https://a.example/{payload}" for payload in PAYLOADS)]
    app = Stage(dialog=lambda: LinkScreen(links))
    async with app.run_test(size=(60, 20)):
        rows = app.screen.query_one(LinkRows)
        for top in range(0, int(rows.max_scroll_y), 11):
            rows.scroll_to(y=top, animate=False)
            for y in range(rows.size.height):
                assert all(character.isprintable() for character in rows.render_line(y).text)
