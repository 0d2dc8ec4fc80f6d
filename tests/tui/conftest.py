"""What the tests of the screen share: a fake engine, a clock that stands still, and waiting for conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from fake_engine import FakeEngine
from textual.pilot import Pilot

from localchat.chats.records import ChatSettings, Draft
from localchat.chats.reply import Reply
from localchat.client import engine_at
from localchat.paths import paths
from localchat.protocol import Message, Role
from localchat.settings import settings
from localchat.tui.app import ChatApp
from localchat.tui.screens.chat import ChatScreen
from localchat.tui.widgets.composer import Composer
from localchat.tui.widgets.status import Status

# Noisy machines: a slow example is not a failed one. A failure prints what reproduces it.
hypothesis.settings.register_profile("screen", deadline=None, print_blob=True)
hypothesis.settings.load_profile("screen")

_PATIENCE = 2000


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A chat on a fake engine, driven as a person would."""

    def __init__(self, engine: FakeEngine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock

    def app(self, **options: object) -> ChatApp:
        rest = {name: options.pop(name) for name in ("prepare", "chat") if name in options}
        wanted = ChatSettings(**options)  # type: ignore[arg-type]
        app = ChatApp(engine_at(self.engine.url), wanted, clock=self.clock, **rest)  # type: ignore[arg-type]
        app.animation_level = "none"
        self.current = app
        return app

    @property
    def screen(self) -> ChatScreen:
        screen = self.current.screen_stack[0]
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def composer(self) -> Composer:
        return self.screen.query_one(Composer)

    @staticmethod
    def settings(**options: object) -> ChatSettings:
        return ChatSettings(**options)  # type: ignore[arg-type]

    @staticmethod
    def message(text: str, role: Role = "user") -> Message:
        return Message(role, text)

    @staticmethod
    def draft(text: str) -> Draft:
        return Draft(text)

    @property
    def status(self) -> Status:
        return self.screen.query_one(Status)

    @property
    def shown(self) -> str:
        """What is on the screen now, as text."""
        return "\n".join(strip.text.rstrip() for strip in self.current.screen._compositor.render_strips())

    async def until(self, pilot: Pilot[None], condition: Callable[[], object]) -> None:
        for _ in range(_PATIENCE):
            if condition():
                await pilot.pause()
                return
            await pilot.pause(0.005)
        raise AssertionError(f"waited in vain; on the screen is\n{self.shown}")

    async def ask(self, pilot: Pilot[None], text: str) -> None:
        """Write a message and send it."""
        self.composer.text = text
        await pilot.press("enter")

    async def answered(self, pilot: Pilot[None]) -> None:
        await self.until(pilot, lambda: self.replies and not self.replies[-1].running)

    @property
    def replies(self) -> list:
        return [item.content for item in self.screen.session.items() if isinstance(item.content, Reply)]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCALCHAT_HOME", str(tmp_path / "home"))
    for name in ("LOCALCHAT_TOKEN", "LOCALCHAT_OFFLINE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    paths.cache_clear()
    settings.cache_clear()
    # A dialog that nobody asked for waits until nobody types.
    monkeypatch.setattr("localchat.tui.screens.choose._CALM_S", -1)
    # A hint stays until it was looked for.
    monkeypatch.setattr("localchat.tui.screens.chat._HINT_S", 3600.0)
    # A title asked for behind an answer would be one more request in every test.
    paths().config.mkdir()
    paths().settings.write_text("titles = false\n")
    yield
    paths.cache_clear()
    settings.cache_clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with FakeEngine() as engine:
        yield Bench(engine, Clock())
