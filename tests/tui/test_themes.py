"""Each theme is readable, all have the same roles, and the choice is kept until the settings say something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from fake_engine import say, think, usage
from textual.app import App, ComposeResult
from textual.color import Color
from textual.filter import NoColor
from textual.pilot import Pilot
from textual.widgets import Static, TextArea

from localchat.client import engine_at
from localchat.paths import paths
from localchat.settings import settings
from localchat.tui import theme as themes
from localchat.tui.app import ChatApp
from localchat.tui.theme import THEMES, WITHOUT_COLOURS
from localchat.tui.widgets.field import Field
from tests.tui.conftest import Bench
from tests.tui.test_views import ANSWER, QUESTION

TEXT = ["foreground", "muted", "accent", "error", "success"]
CODE = ["code-string", "code-number", "code-name", "code-comment"]
COLOURED = [name for name, theme in THEMES.items() if not theme.ansi]


def ratio(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2.2 defines it, from 1 to 21."""

    def luminance(colour: str) -> float:
        found = Color.parse(colour)
        parts = [part / 255 for part in (found.r, found.g, found.b)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(name: str) -> dict[str, str]:
    return {**THEMES[name].to_color_system().generate(), **THEMES[name].variables}


def test_the_ratio_is_that_of_the_standard() -> None:
    assert ratio("#000000", "#ffffff") == pytest.approx(21)
    assert ratio("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", COLOURED)
def test_text_is_readable(name: str) -> None:
    found = colours(name)
    least = 7.0 if name == "contrast" else 4.5  # WCAG AAA, AA
    for role in TEXT + CODE:
        for behind in ("background", "surface", "panel"):
            assert ratio(found[role], found[behind]) >= least, (role, behind)
    for pair in ("block-cursor", "input-cursor"):
        assert ratio(found[f"{pair}-foreground"], found[f"{pair}-background"]) >= least
    # Hints and placeholders: as large text and signs, at least.
    assert ratio(found["faint"], found["background"]) >= (7.0 if name == "contrast" else 3.0)


@pytest.mark.parametrize("name", COLOURED)
def test_what_is_selected_stays_readable(name: str) -> None:
    found = colours(name)
    colour, _, share = found["screen-selection-background"].partition(" ")
    strength = float(share.removesuffix("%") or 100) / 100
    behind = Color.parse(found["background"]).blend(Color.parse(colour), strength).hex
    assert ratio(found["screen-selection-foreground"], behind) >= 4.5


def test_the_terminals_own_colours_only() -> None:
    found = colours("ansi")
    ours = {role: found[role] for role in [*TEXT, *CODE, "background", "surface", "panel", "border", "faint"]}
    assert all(re.fullmatch(r"ansi_(default|(bright_)?[a-z]+)", colour) for colour in ours.values()), ours
    assert all(re.fullmatch(r"ansi_\w+", colour) for colour in THEMES["ansi"].variables.values() if colour != "none")


def test_all_have_the_same_roles() -> None:
    assert len({frozenset(theme.variables) for theme in THEMES.values()}) == 1
    assert all(name == theme.name for name, theme in THEMES.items())


def test_no_colours_but_in_one_place() -> None:
    """A literal colour anywhere else would not follow the theme."""
    folder = Path(themes.__file__).parent
    found = {
        file.name: hits
        for file in folder.rglob("*.py")
        if file.name != "theme.py"
        and (hits := re.findall(r"#[0-9a-fA-F]{6}\b|\bansi_(?!color)\w+|\brgba?\(", file.read_text()))
    }
    assert not found


def test_the_choice_is_kept_until_the_settings_change() -> None:
    assert themes.chosen() == "dark"
    names = ["dark"]
    while (name := themes.next_theme(names[-1])) not in names:
        names.append(name)
    assert names == [*THEMES]
    themes.remember("light")
    assert themes.chosen() == "light"
    paths().settings.write_text('theme = "contrast"\n')
    settings.cache_clear()
    assert themes.chosen() == "contrast"
    themes.remember("ansi")
    assert themes.chosen() == "ansi"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"theme": "x", "instead_of": "dark"}', b"[1]"])
def test_a_spoilt_file_is_no_matter(content: bytes) -> None:
    themes.remember("light")
    file = paths().state / "theme.json"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(content)
    assert themes.chosen() == "dark"


def test_a_choice_that_cannot_be_kept_is_no_matter() -> None:
    (paths().state / "theme.json").mkdir(parents=True)
    themes.remember("light")
    assert themes.chosen() == "dark"


def test_no_colours_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not themes.is_colourless()
    monkeypatch.setenv("NO_COLOR", "1")
    assert themes.is_colourless()
    themes.remember("light")
    with_it = ChatApp(engine_at("http://127.0.0.1:9"))
    assert (with_it.theme, themes.chosen()) == ("ansi", "light")
    assert any(isinstance(one, NoColor) for one in with_it._filters)
    with_it.keeper.close(1)


class Sample(App[None]):
    """Every role of the theme at one place."""

    CSS = WITHOUT_COLOURS + "".join(f".{role} {{ color: ${role}; }}\n" for role in [*TEXT, *CODE, "faint"])
    CSS += """
    .prompt { border-left: solid $accent; padding-left: 1; margin: 1 0; }
    .listing { background: $surface; }
    .marked { background: $block-cursor-background; color: $block-cursor-foreground; }
    TextArea, TextArea:focus { height: 3; border: round $border; background: $background; }
    """

    def __init__(self, name: str) -> None:
        super().__init__(ansi_color=themes.is_colourless() or None)
        for theme in THEMES.values():
            self.register_theme(theme)
        self.theme = name

    def compose(self) -> ComposeResult:
        yield Static("Why is the sky blue?", classes="prompt")
        for role in [*TEXT, "faint"]:
            yield Static(f"{role} text", classes=role)
        for role in CODE:
            yield Static(f"{role} text", classes=f"{role} listing")
        yield Static("the row that is chosen", classes="marked")
        area = TextArea("what is selected here")
        area.cursor_blink = False
        yield area

    def on_mount(self) -> None:
        self.query_one(TextArea).select_line(0)


@pytest.mark.parametrize("name", [*THEMES])
def test_the_look_of(name: str, snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(Sample(name), terminal_size=(60, 20))


@pytest.mark.parametrize("name", [*THEMES])
def test_a_conversation_in(name: str, bench: Bench, snap_compare: Callable[..., bool]) -> None:
    bench.engine.script(think("The person asks about the sky."), say(ANSWER), usage(1240, 210, context=8192))

    async def play(pilot: Pilot[None]) -> None:
        await bench.until(pilot, lambda: "will answer" in bench.shown)
        bench.screen.query_one(Field).cursor_blink = False
        await bench.ask(pilot, QUESTION)
        await bench.answered(pilot)
        for _ in range([*THEMES].index(name)):
            await pilot.press("f8")
        await bench.until(pilot, lambda: bench.current.theme == name)
        bench.screen.hint("")
        await pilot.pause()

    assert snap_compare(bench.app(), terminal_size=(100, 40), run_before=play)


async def test_the_key_goes_on_to_the_next_and_it_is_kept(bench: Bench) -> None:
    bench.engine.script(say(ANSWER))
    async with bench.app().run_test(size=(100, 40)) as pilot:
        await bench.ask(pilot, QUESTION)
        await bench.answered(pilot)
        for name, after in pairwise(COLOURED):
            await pilot.press("f8")
            await bench.until(pilot, lambda: bench.current.theme == after)  # noqa: B023
            await pilot.pause()
            drawn = {
                style.color.triplet.hex
                for strip in bench.current.screen._compositor.render_strips()
                for _, style, _ in strip
                if style and style.color and style.color.triplet
            }
            # Nothing is left of the theme before.
            assert not drawn & {THEMES[name].accent, *(THEMES[name].variables[role] for role in ["muted", *CODE])}
    assert themes.chosen() == "contrast"


async def test_switched_at_once() -> None:
    app = Sample("dark")
    async with app.run_test() as pilot:
        area = app.query_one(TextArea)
        before = area.styles.background
        app.theme = "light"
        await pilot.pause()
        assert area.styles.background != before
        assert area.styles.background.hex.lower() == THEMES["light"].background


async def test_nothing_but_attributes_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Sample("ansi")
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.pause()
        selected = False
        for strip in app.screen._compositor.render_strips():
            for filtered in app._filters:
                if filtered.enabled:
                    strip = strip.apply_filter(filtered, app.screen.styles.background)
            for segment in strip:
                style = segment.style
                assert not style or not style.color or style.color.is_default
                assert not style or not style.bgcolor or style.bgcolor.is_default
                selected |= bool(style and style.reverse and "selected" in segment.text)
        assert selected, "what is selected cannot be told from what is not"
