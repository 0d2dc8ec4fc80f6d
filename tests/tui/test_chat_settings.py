"""The settings of a chat: values are checked as they are typed, presets fill the form, only what is right is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual import events
from textual.app import App
from textual.pilot import Pilot

from localchat.chats.records import ChatSettings
from localchat.errors import UsageError
from localchat.paths import paths
from localchat.protocol import Sampling
from localchat.settings import Preset, settings
from localchat.tui import presets
from localchat.tui.screens.chat_settings import ChatSettingsScreen, _checker
from localchat.tui.theme import THEMES
from localchat.tui.widgets.form import ChoiceField, ValueField
from tests.escapes import PAYLOADS, unsafe

FULL = ChatSettings(
    model="m",
    system="Be brief.\nBe kind.",
    sampling=Sampling(
        temperature=0.25,
        top_p=0.5,
        top_k=40,
        min_p=0.05,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=64,
        frequency_penalty=-0.5,
        presence_penalty=0.5,
        seed=7,
    ),
    max_tokens=500,
    context=4096,
    stop=["END", "a\nb"],
    thinking=False,
    gpu_layers=0,
    overflow="slide",
)


class Stage(App[None]):
    """The form over an empty page."""

    def __init__(self, wanted: ChatSettings | None = None) -> None:
        super().__init__()
        self.register_theme(THEMES["dark"])
        self.theme = "dark"
        self.animation_level = "none"
        self.wanted = wanted or ChatSettings()
        self.given: list[ChatSettings | None] = []

    def on_mount(self) -> None:
        self.form = ChatSettingsScreen(self.wanted)
        for area in (self.form._system, self.form._stop):
            area.cursor_blink = False
        self.push_screen(self.form, self.given.append)

    @property
    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.screen._compositor.render_strips())

    def field(self, name: str) -> ValueField:
        return self.form._values[name]

    async def type(self, pilot: Pilot[None], name: str, text: str) -> None:
        self.field(name).focus()
        self.field(name).text = ""
        await pilot.press(*text)
        await pilot.pause()


async def test_unchanged_is_given_back_as_it_was() -> None:
    for wanted in (FULL, ChatSettings()):
        app = Stage(wanted)
        async with app.run_test(size=(100, 34)) as pilot:
            await pilot.press("ctrl+s")
            await pilot.pause()
        assert app.given == [wanted]


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
async def test_left_without_a_change(key: str) -> None:
    app = Stage(FULL)
    async with app.run_test(size=(100, 34)) as pilot:
        await pilot.press(*"more", key)
        await pilot.pause()
    assert app.given == [None]


async def test_every_field_reaches_its_setting() -> None:
    app = Stage()
    async with app.run_test(size=(100, 34)) as pilot:
        await pilot.press(*"Be", "enter", *"kind.")
        for name in ChatSettingsScreen.__init__.__globals__["_WORDS"]:
            value = getattr(FULL.sampling, name) if name in Sampling.__struct_fields__ else getattr(FULL, name)
            app.field(name).text = f" {value} "
        app.form._thinking.focus()
        await pilot.press("right", "right")
        app.form._overflow.focus()
        await pilot.press("space")
        app.form._stop.focus()
        await pilot.press(*"END", "enter", *"a\\nb", "enter", "enter")
        app.field("seed").focus()
        await pilot.press("enter")
        await pilot.pause()
    (given,) = app.given
    assert given is not None
    assert given.system == "Be\nkind." and given.model == ""
    for name in ChatSettings.__struct_fields__:
        if name not in ("system", "model"):
            assert getattr(given, name) == getattr(FULL, name), name


WRONG = [
    ("temperature", "hot", "it takes a number"),
    ("temperature", "11", "it takes a number of at most 10.0"),
    ("temperature", "nan", "it takes a number of at least 0.0"),
    ("top_p", "-1", "it takes a number of at least 0.0"),
    ("top_k", "1.5", "it takes a whole number"),
    ("repeat_penalty", "0", "it takes a number above 0.0"),
    ("seed", "-1", "it takes a whole number of at least 0"),
    ("max_tokens", "0", "it takes a whole number of at least 1"),
    ("context", "many", "it takes a whole number"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG)
def test_what_is_wrong_is_said_plainly(name: str, text: str, said: str) -> None:
    assert _checker(name)(text) == said
    assert not _checker(name)("1")


async def test_what_is_wrong_is_said_beside_the_field() -> None:
    app = Stage()
    async with app.run_test(size=(100, 34)) as pilot:
        for name, text, said in WRONG[::4]:
            app.field(name).text = text
            await pilot.pause()
            assert said in app.text, name
            app.form._system.focus()
            await pilot.press("ctrl+s")
            assert not app.given and app.focused is app.field(name)._line
            await pilot.press("f2")  # nor is it saved as a preset
            assert not app.form._new_name.has_focus
            app.field(name).text = ""
            await pilot.pause()
            assert said not in app.text, name
        await pilot.press("ctrl+s")
        await pilot.pause()
    assert app.given == [ChatSettings()]


# Presets


async def test_a_preset_fills_the_form() -> None:
    app = Stage(ChatSettings(system="Mine.", sampling=Sampling(top_k=3, seed=7)))
    async with app.run_test(size=(100, 34)) as pilot:
        assert app.form._preset.chosen == ""
        app.form._preset.focus()
        await pilot.press("right")  # the model's own
        await pilot.press("right")
        await pilot.pause()
        assert app.form._preset.chosen == "precise"
        assert (app.field("temperature").text, app.field("top_k").text) == ("0.2", "")
        await app.type(pilot, "temperature", "0.3")
        assert app.form._preset.chosen == ""
        await app.type(pilot, "temperature", "0.2")
        assert app.form._preset.chosen == "precise"
        await pilot.press("enter")
        await pilot.pause()
    assert app.given == [ChatSettings(system="Mine.", sampling=Sampling(temperature=0.2, top_p=0.9, seed=7))]


def own(text: str) -> None:
    paths().settings.parent.mkdir(parents=True, exist_ok=True)
    paths().settings.write_text(text)
    settings.cache_clear()


async def test_presets_of_the_settings() -> None:
    own('[presets.pirate]\nsystem = "Talk like one."\ntemperature = 1\n')
    app = Stage()
    async with app.run_test(size=(100, 34)) as pilot:
        app.form._preset.focus()
        await pilot.press("left")
        await pilot.pause()
        assert app.form._preset.chosen == "pirate" and "Talk like one." in app.text
        await pilot.press("ctrl+s")
        await pilot.pause()
    assert app.given == [ChatSettings(system="Talk like one.", sampling=Sampling(temperature=1))]
    assert paths().settings.read_text() == '[presets.pirate]\nsystem = "Talk like one."\ntemperature = 1\n'


async def test_saved_as_a_preset_and_there_the_next_time() -> None:
    app = Stage()
    async with app.run_test(size=(100, 34)) as pilot:
        await pilot.press(*"Brief.")
        await app.type(pilot, "top_k", "5")
        await pilot.press("f2", *"precise", "enter")
        await pilot.pause()
        assert "precise is built in: take another name" in app.text and app.form._new_name.has_focus
        await pilot.press(*" too", "enter")
        await pilot.pause()
        assert app.form._preset.chosen == "precise too" and not app.form._new_name.has_focus
        await pilot.press("f2", "escape")  # from the name back to the form
        await pilot.pause()
        assert not app.given
    assert presets.presets()["precise too"] == Preset(system="Brief.", top_k=5)
    assert paths().config.joinpath("presets.json").stat().st_mode & 0o777 == 0o600
    presets.keep("precise too", Preset(top_k=6))
    presets.keep("other", Preset(seed=1))
    assert presets.presets()["precise too"] == Preset(top_k=6) and presets.presets()["other"] == Preset(seed=1)


@pytest.mark.parametrize("name", ["", "  ", "x" * 41, "precise", "hand"])
def test_a_name_that_cannot_be_taken(name: str) -> None:
    own("[presets.hand]\ntop_k = 1\n")
    with pytest.raises(UsageError):
        presets.keep(name, Preset())
    assert not paths().config.joinpath("presets.json").exists()


@pytest.mark.parametrize("content", ["{", '{"a": {"top_p": 3}}', '{"a": {"system": "\\ud800"}}', "[]"])
def test_a_damaged_file_is_never_written_over(content: str) -> None:
    own("")
    file = paths().config / "presets.json"
    file.write_text(content)
    with pytest.raises(UsageError, match="correct it, or remove it"):
        presets.keep("new", Preset())
    assert file.read_text() == content


async def test_a_damaged_file_is_named() -> None:
    own("")
    (paths().config / "presets.json").write_text("{")
    app = Stage()
    async with app.run_test(size=(150, 34)) as pilot:
        await pilot.pause()
        assert "correct it, or remove it" in " ".join(app.text.replace("│", "").split())
        assert app.form._preset.options == [*presets.BUILT_IN]


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    own("")
    (paths().config / "presets.json").mkdir()
    with pytest.raises(UsageError, match=r"presets\.json"):
        presets.keep("new", Preset())


# Small screens, hostile text


async def test_every_field_can_be_reached_on_a_small_screen() -> None:
    app = Stage(FULL)
    async with app.run_test(size=(60, 20)) as pilot:
        await pilot.pause()
        seen = []
        for _ in range(len(app.form._values) + 5):
            focused = app.focused
            assert focused is not None
            await pilot.pause()
            region = focused.region
            assert 0 < region.y < 20 and region.bottom <= 20, focused
            seen.append(focused)
            await pilot.press("tab")
        assert len(set(seen)) == len(app.form._values) + 5
        assert "Ctrl S takes these" in app.text


async def test_nothing_drives_the_terminal() -> None:
    everything = " ".join(PAYLOADS)
    own("")
    presets.keep("hostile", Preset(system=everything))
    wanted = ChatSettings(model=everything, system=everything, stop=[everything])
    app = Stage(wanted)
    async with app.run_test(size=(100, 34)) as pilot:
        await pilot.pause()
        assert not unsafe(app.text)
        for area in (app.form._system, app.form._stop):
            area.focus()
            area.post_message(events.Paste(everything))
            await pilot.pause()
            assert not unsafe(app.text)
        line = app.field("seed").focus()._line
        line.post_message(events.Paste(everything))
        await pilot.pause()
        assert not unsafe(app.text)
        await pilot.press("f2")
        app.form._new_name.post_message(events.Paste(everything))
        await pilot.pause()
        assert not unsafe(app.text)


@pytest.mark.parametrize("width", [20, 40, 100])
async def test_a_choice_shows_what_is_chosen_in_any_width(width: int) -> None:
    class Sample(App[None]):
        def compose(self):  # type: ignore[no-untyped-def]
            yield ChoiceField("preset", [PAYLOADS[0], "one", "two", "漢" * 20], "two")

    app = Sample()
    app.register_theme(THEMES["dark"])
    app.theme = "dark"
    async with app.run_test(size=(width, 3)) as pilot:
        await pilot.pause()
        text = app.screen._compositor.render_strips()[0].text
        assert not unsafe(text) and ("two" in text or width == 20)


@pytest.mark.parametrize("size", [(100, 34), (60, 20), (200, 50)], ids=["usual", "small", "huge"])
def test_the_form(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    app = Stage(FULL)

    async def play(pilot: Pilot[None]) -> None:
        await app.type(pilot, "top_p", "7")

    assert snap_compare(app, terminal_size=size, run_before=play)


def test_the_form_of_a_new_chat(snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(Stage(), terminal_size=(80, 34))
