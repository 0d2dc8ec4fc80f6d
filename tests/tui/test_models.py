"""The model picker and the first screen of a machine without a model, over downloads from a hub on this machine."""

# Fixtures are imported by their names, and named again as arguments.
# ruff: noqa: F811

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual import events
from textual.app import App
from textual.pilot import Pilot

from localchat.errors import UsageError
from localchat.models import store
from localchat.models.overview import Row
from localchat.paths import paths
from localchat.settings import settings
from localchat.tui.downloads import Download, Downloads
from localchat.tui.model_list import Heading, Overview, Typed, about, lines, look, path_typed, recommended
from localchat.tui.screens.models import ModelPicker
from localchat.tui.theme import THEMES
from localchat.tui.widgets.first_model import FirstModel
from localchat.tui.widgets.model_rows import ModelRows
from tests.escapes import PAYLOADS, unsafe
from tests.loopback_hub import LoopbackHub
from tests.models.conftest import FILE, REPO, Offer, bigger, forget, hub, offer  # noqa: F401

GB = 1_000_000_000
SIZES = [(100, 32), (60, 20), (200, 50)]


def row(name: str, size: float, memory: float, speed: float | None, **more: object) -> Row:
    known = {"quantization": "Q4_K_M", "abilities": ["chat"], "license": "Apache-2.0", "fits": "yes", "context": 4096}
    known |= {"parameters": int(size * 2 * GB), "trained": 32768, **more}
    return Row(name=name, size=int(size * GB), memory=int(memory * GB), tokens_per_second=speed, **known)  # type: ignore[arg-type]


HERE = row("smollm2-135m", 0.098, 0.217, 84, quantization="Q4_1", installed=True, verified=True)
BEST = row("qwen3-8b", 5.0, 5.8, 9, recommended="the largest that fits well and answers about as fast as one reads (9)")
ROWS = (
    HERE,
    row("mine/model", 1.1, 1.3, None, installed=True, estimated=True, license=None),
    row("smollm2-1.7b", 1.1, 1.9, 34),
    row("qwen3-4b", 2.5, 3.2, 16, abilities=["chat", "thinking"]),
    BEST,
    row("deepseek-r1-distill-qwen-14b", 9.0, 10.0, 4, fits="tight", abilities=["chat", "thinking"]),
    row("qwen2.5-coder-32b", 19.9, 21.0, 1, fits="no", abilities=["chat", "code"]),
)
OVERVIEW = Overview(ROWS, "smollm2-135m", 12 * GB, True)
EMPTY = Overview((row("smollm2-135m", 0.098, 0.217, 84), *ROWS[2:]), "smollm2-135m", 12 * GB, False)


@pytest.fixture
def home(own_home: None) -> Path:
    """The folder of every test here, which the models' own fixtures ask for."""
    forget()
    return paths().config


class Stage(App[None]):
    """Shows a picker, or the first screen, over a page."""

    def __init__(self, show: Callable[[Downloads], ModelPicker | FirstModel]) -> None:
        super().__init__()
        for theme in THEMES.values():
            self.register_theme(theme)
        self.theme = "dark"
        self.animation_level = "none"
        self.downloads = Downloads()
        self.shown = show(self.downloads)
        self.given: list[str | None] = []
        self.chosen: list[str] = []

    def on_mount(self) -> None:
        if isinstance(self.shown, ModelPicker):
            self.shown._line.cursor_blink = False
            self.push_screen(self.shown, self.given.append)
        else:
            self.mount(self.shown)
            self.shown.focus()

    def on_first_model_chosen(self, event: FirstModel.Chosen) -> None:
        self.chosen.append(event.name)

    @property
    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.screen._compositor.render_strips())

    @property
    def rows(self) -> ModelRows:
        return self.screen.query_one(ModelRows)

    @property
    def marked(self) -> str:
        assert self.rows.marked is not None
        line = self.rows.rows[self.rows.marked]
        assert not isinstance(line, Heading)
        return line.name


def picker(current: str = "smollm2-135m", look: Callable[[], Overview] = lambda: OVERVIEW) -> Stage:
    return Stage(lambda downloads: ModelPicker(current, downloads, look))


def first(look: Callable[[], Overview] = lambda: EMPTY) -> Stage:
    return Stage(lambda downloads: FirstModel(downloads, look))


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No thread of a test fetches on into the next one."""
    made: list[Downloads] = []
    begin = Downloads.__init__

    def noted(self: Downloads, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Downloads, "__init__", noted)
        yield
    for downloads in made:
        downloads.close()


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.005)
    raise AssertionError(f"waited in vain; on the screen is\n{pilot.app.text}")  # type: ignore[attr-defined]


async def filled(pilot: Pilot[None]) -> None:
    await until(pilot, lambda: pilot.app.rows.rows)  # type: ignore[attr-defined]


# What is listed


def test_installed_first_then_what_fits() -> None:
    found = [line.text if isinstance(line, Heading) else line.name for line in lines(OVERVIEW, "")]
    assert found == [
        "On this machine",
        "smollm2-135m",
        "mine/model",
        "Recommended for this machine",
        "qwen3-8b",
        "To fetch",
        "smollm2-1.7b",
        "qwen3-4b",
        "deepseek-r1-distill-qwen-14b",
    ]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("QWEN 4b", ["qwen3-4b", "deepseek-r1-distill-qwen-14b"]),
        ("thinking", ["qwen3-4b", "deepseek-r1-distill-qwen-14b"]),
        ("coder", ["qwen2.5-coder-32b"]),
        ("q4_1", ["smollm2-135m"]),
        ("nothing like it", []),
        ("owner/repo:Q4_K_M", ["owner/repo:Q4_K_M"]),
        ("owner/repo", ["owner/repo"]),
        ("qwen3-4b:q8_0", ["qwen3-4b:q8_0"]),
        ("https://example.org/x.gguf", ["https://example.org/x.gguf"]),
        ("mine/model", ["mine/model"]),
        ("a b/c", []),
    ],
)
def test_filtered_as_one_types(words: str, names: list[str]) -> None:
    assert [line.name for line in lines(OVERVIEW, words) if not isinstance(line, Heading)] == names


def test_a_path_is_taken_where_there_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    monkeypatch.chdir(tmp_path)
    assert path_typed(str(file)) == path_typed("./x.gguf") == str(file)
    assert path_typed("/no/such.gguf") is path_typed("x.gguf") is path_typed("") is None


def test_what_is_offered_first_is_the_best_and_quicker_ones() -> None:
    assert [one.name for one in recommended(EMPTY)] == ["qwen3-8b", "qwen3-4b", "smollm2-1.7b"]
    assert recommended(Overview((), "", 0, True)) == []


def test_what_there_is_to_know() -> None:
    assert about(BEST, OVERVIEW).startswith("recommended here: the largest that fits well and answers ")
    assert "needs 5.8 GB of memory with a context of 4,096 tokens, 12.0 GB are free: it fits" in about(BEST, OVERVIEW)
    assert about(BEST, OVERVIEW).endswith("the speed is a guess until this machine is measured")
    assert "guess" not in about(BEST, EMPTY)
    assert "it does not fit" in about(ROWS[-1], OVERVIEW)


def test_the_real_overview(hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    offer(bigger)
    found = look()
    assert found.starter == "tiny" and found.available > 0
    assert "tiny" in [one.name for one in found.rows] and not any(one.installed for one in found.rows)
    assert recommended(found)


# The picker


async def test_opens_at_once_and_fills() -> None:
    known = threading.Event()

    def slow() -> Overview:
        assert known.wait(60)
        return OVERVIEW

    app = picker(look=slow)
    async with app.run_test(size=(90, 30)) as pilot:
        await until(pilot, lambda: "looking at this machine" in app.text)
        await pilot.press(*"qwen")
        known.set()
        await filled(pilot)
        assert app.marked == "qwen3-8b"


async def test_an_installed_one_is_given_at_once() -> None:
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        assert app.marked == "smollm2-135m" and "in use" in app.text
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.given)
    assert app.given == ["mine/model"] and not app.downloads.known


@pytest.mark.parametrize("key", ["escape", "f3", "ctrl+c"])
async def test_leaves_without_a_choice(key: str) -> None:
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        await pilot.press("x")  # a letter, where nothing is on its way
        assert app.shown._line.value == "x"  # type: ignore[union-attr]
        await pilot.press(key)
        await until(pilot, lambda: app.given)
    assert app.given == [None]


async def test_a_path_that_is_typed_is_given(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        app.shown.post_message(events.Paste(str(tmp_path / "x.gguf")))
        await until(pilot, lambda: app.shown._line.value)  # type: ignore[union-attr]
        await pilot.press("enter")
        await until(pilot, lambda: app.given)
    assert app.given == [str(tmp_path / "x.gguf")]


async def test_fetched_while_one_does_other_things(hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    offer(bigger)
    hub.bytes_per_second = 20_000
    app = picker("", look)
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        await pilot.press(*"tiny")
        await until(pilot, lambda: app.marked == "tiny")
        await pilot.press("enter")
        await until(pilot, lambda: "fetching tiny" in app.text and "%" in app.text)
        # With an empty filter `x` stops it; what came is kept.
        await pilot.press(*["backspace"] * 4)
        await until(pilot, lambda: "x stops it" in app.text and app.marked == "tiny")
        await pilot.press("x")
        await until(pilot, lambda: "tiny: stopped, what came is kept" in app.text)
        hub.bytes_per_second = None
        await pilot.press("enter")
        await until(pilot, lambda: any(isinstance(one, Row) and one.installed for one in app.rows.rows))
        assert app.marked == "tiny"
        await pilot.press("enter")
        await until(pilot, lambda: app.given)
    assert app.given == ["tiny"] and store.find("tiny").size == len(bigger)


async def test_a_name_of_a_hub_is_typed_and_fetched(hub: LoopbackHub, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        app.shown.post_message(events.Paste(f"{REPO}:Q8_0"))
        await until(pilot, lambda: "fetch someone/Tiny-GGUF:Q8_0" in app.text)
        await pilot.press("enter")
        await until(pilot, lambda: (one := app.downloads.of(f"{REPO}:Q8_0")) and one.stage == "here")
        await pilot.press("enter")
        await until(pilot, lambda: app.given)
    assert store.find(str(app.given[0])).path.name == FILE


async def test_why_it_cannot_be_had_is_said(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    settings.cache_clear()
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        await pilot.press(*"a/b", "enter")
        await until(pilot, lambda: "failed" in app.text and "stay offline" in app.text)
        await pilot.press("enter")  # and again
        await until(pilot, lambda: "stay offline" in app.text)
    assert hub.connections == 0


async def test_a_catalogue_that_is_wrong_is_named() -> None:
    def wrong() -> Overview:
        raise UsageError("models.toml, line 3: the key name is missing")

    app = picker(look=wrong)
    async with app.run_test(size=(90, 30)) as pilot:
        await until(pilot, lambda: "models.toml, line 3: the key name is missing" in app.text)
        await pilot.press("enter", "x", "down", "pagedown")
        await pilot.press("escape")
        await until(pilot, lambda: app.given)


async def test_the_mouse_takes_one() -> None:
    app = picker()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        await pilot.click(ModelRows, offset=(10, 2))
        await until(pilot, lambda: app.given)
    assert app.given == ["mine/model"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_line_fits(width: int) -> None:
    long = row("owner/" + "long-name-" * 20, 1, 1, 1, quantization="UD-Q4_K_XL_LONG", recommended="x")
    wide = row("漢字" * 40, 1, 1, 1, estimated=True)
    rows = ModelRows("", lambda _name: Download("x", "fetching", 1, 3))
    rows.rows = [Heading("On this machine"), long, wide, Typed("owner/" + "漢" * 200), *ROWS]
    for number in range(len(rows.rows)):
        for content in rows.draw(number, width, True):
            assert content.cell_length <= width and "\n" not in content.plain
    assert cell_len(rows.draw(1, width, False)[0].plain) <= width


async def test_names_do_not_drive_the_terminal() -> None:
    hostile = [
        row(text, 1, 1, 1, quantization=text, license=text, abilities=[text], recommended=text) for text in PAYLOADS
    ]
    overview = Overview(tuple(hostile), PAYLOADS[0], 1, False)
    for one in hostile:
        assert not unsafe(about(one, overview)) and "\n" not in about(one, overview)
    app = picker(PAYLOADS[3], lambda: overview)
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        app.shown.post_message(events.Paste(" ".join(PAYLOADS)))
        for _ in range(len(PAYLOADS) // 20 + 2):
            assert not unsafe(app.text)
            await pilot.press("pagedown")
    app = first(lambda: overview)
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        for text in PAYLOADS[:3]:
            app.downloads._known[text] = Download(text, "fetching", 1, 2, notice=text)
        await until(pilot, lambda: "fetching" in app.text)
        assert not unsafe(app.text)


# The first screen


async def test_the_starter_comes_first(hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 20_000
    starter = offer(bigger)
    large = row("no-such-model", 5, 6, 9, recommended="it is large")
    app = first(lambda: Overview((row(starter, 0.004, 0.1, 90), large), starter, 12 * GB, False))
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        assert app.marked == starter and "the starter" in app.text
        await pilot.press("down", "enter")
        await until(pilot, lambda: "━" in app.text and "fetching tiny" in app.text)
        await until(pilot, lambda: "no-such-model waits for the download before it" in app.text)
        hub.bytes_per_second = None
        await until(pilot, lambda: "tiny is here" in app.text)
        await until(pilot, lambda: app.downloads.of("no-such-model").stage == "failed")  # type: ignore[union-attr]
    assert app.chosen == ["no-such-model"]
    assert [one.name for one in app.downloads.known] == [starter, "no-such-model"]


async def test_the_starter_alone_and_stopped(hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 20_000
    offer(bigger)
    app = first(lambda: Overview((row("tiny", 0.004, 0.1, 90),), "tiny", 12 * GB, False))
    async with app.run_test(size=(60, 20)) as pilot:
        await filled(pilot)
        await pilot.press("x")  # nothing to stop yet
        await pilot.press("enter")
        await until(pilot, lambda: "━" in app.text)
        await pilot.press("x")
        await until(pilot, lambda: "stopped, what came is kept" in app.text)
    assert app.chosen == ["tiny"]


async def test_offline_it_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    app = first()
    async with app.run_test(size=(90, 30)) as pilot:
        await filled(pilot)
        assert "localchat import FILE" in app.text


async def test_a_wrong_catalogue_on_the_first_screen() -> None:
    def wrong() -> Overview:
        raise UsageError("models.toml, line 3: the key name is missing")

    app = first(wrong)
    async with app.run_test(size=(90, 30)) as pilot:
        await until(pilot, lambda: "the key name is missing" in app.text)
        await pilot.press("enter", "down", "x")
    assert not app.chosen


def test_neither_brings_what_is_slow() -> None:
    script = (
        "import sys, localchat.tui.screens.models, localchat.tui.widgets.first_model; "
        "print([name for name in sys.modules if name.startswith(('huggingface', 'localchat.models', 'sqlite3'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# How they look


def under_way(app: Stage) -> None:
    app.downloads._known["smollm2-1.7b"] = Download(
        "smollm2-1.7b", "fetching", 374_000_000, 1_100_000_000, 12.3e6, 59.0
    )
    app.downloads._known["qwen3-4b"] = Download("qwen3-4b")


@pytest.mark.parametrize("size", SIZES, ids=["usual", "small", "huge"])
def test_the_picker(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    app = picker()

    async def play(pilot: Pilot[None]) -> None:
        await filled(pilot)
        under_way(app)
        await pilot.press("down", "down", "down")
        await until(pilot, lambda: "34%" in app.text)

    assert snap_compare(app, terminal_size=size, run_before=play)


def test_the_picker_with_a_name_typed(snap_compare: Callable[..., bool]) -> None:
    app = picker()

    async def play(pilot: Pilot[None]) -> None:
        await filled(pilot)
        await pilot.press(*"owner/repo:Q4_K_M")

    assert snap_compare(app, terminal_size=(80, 24), run_before=play)


@pytest.mark.parametrize("size", SIZES, ids=["usual", "small", "huge"])
def test_no_model_yet(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    assert snap_compare(first(), terminal_size=size, run_before=filled)


def test_the_first_model_on_its_way(snap_compare: Callable[..., bool]) -> None:
    app = first()

    async def play(pilot: Pilot[None]) -> None:
        await filled(pilot)
        app.downloads._known["smollm2-135m"] = Download("smollm2-135m", "fetching", 44_000_000, 98_000_000, 8.1e6, 6.0)
        app.downloads._known["qwen3-8b"] = Download("qwen3-8b")
        await until(pilot, lambda: "45%" in app.text)

    assert snap_compare(app, terminal_size=(80, 24), run_before=play)
