"""Who answers, and how: the model, its downloads, its settings, and what the engine holds."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace
from textual import on
from textual.message import Message

from localchat.chats.records import ChatSettings
from localchat.client.local import LocalEngine
from localchat.errors import LocalchatError
from localchat.protocol import Sampling
from localchat.protocol import Status as EngineStatus
from localchat.safe_text import safe_line
from localchat.settings import plainly
from localchat.tui.actions import key_of
from localchat.tui.downloads import Download, Downloads, describe
from localchat.tui.exchange import Engine, ask_who_answers, look_at_engine, warm_up
from localchat.tui.screens.parts import ChatParts

if TYPE_CHECKING:
    from localchat.tui.widgets.first_model import FirstModel

_THINKING: tuple[tuple[bool | None, str], ...] = ((None, "as the model likes"), (True, "on"), (False, "off"))
_LIMITS = ("max_tokens", "context", "gpu_layers")


class Answering(ChatParts):
    """The part of the chat screen that knows of models. `wanted` are the settings of chats that begin."""

    engine: Engine
    wanted: ChatSettings
    downloads: Downloads
    default_model = ""
    memory: int | None = None
    offers: FirstModel | None = None

    @dataclass
    class AnswersAs(Message):
        """The engine told which model answers where none was named."""

        model: str

    @dataclass
    class EngineLooked(Message):
        """What the engine holds, or why it cannot be had."""

        status: EngineStatus | LocalchatError

    class NoModel(Message):
        """There is no model on this machine."""

    @dataclass
    class Downloaded(Message):
        """A download got on."""

        download: Download

    def begin_answering(self) -> None:
        """Find out who answers, and have the engine warm up."""
        if not (self.wanted.model and self.engine.is_local):
            ask_who_answers(self.engine, lambda model: self.post_message(self.AnswersAs(model)))
        threading.Thread(target=self._look_for_models, name="models", daemon=True).start()

    def _look_for_models(self) -> None:
        """On a thread: have the engine warm up, or find that there is no model to load."""
        from localchat.models import store

        with suppress(LocalchatError):
            if isinstance(self.engine, LocalEngine) and not self.wanted.model and not store.installed():
                self.post_message(self.NoModel())
                return
        self.warm_up()

    def warm_up(self) -> None:
        """Have the engine load the model of this chat, so that the first answer comes soon."""
        warm_up(self.engine, self.session.settings, self._on_engine)

    def look_at_engine(self) -> None:
        """Find out what the engine holds."""
        look_at_engine(self.engine, self._on_engine)

    def _on_engine(self, status: EngineStatus | LocalchatError) -> None:
        self.post_message(self.EngineLooked(status))

    @on(AnswersAs)
    def _answers_as(self, message: AnswersAs) -> None:
        self.default_model = message.model
        self._show_model()

    @on(EngineLooked)
    def _engine_looked(self, message: EngineLooked) -> None:
        status = message.status
        if isinstance(status, EngineStatus):
            self.memory = status.resident_bytes
            if status.model and not self.session.settings.model:
                self.default_model = status.model.name
        self._show_model()

    @on(NoModel)
    def _no_model(self) -> None:
        """Offer models in the place of the page that has nothing on it yet."""
        from localchat.tui.widgets.first_model import FirstModel

        if self.session.items() or self.offers:
            return
        self.offers = FirstModel(self.downloads)
        self.transcript.display = False
        self.query_one(".desk").mount(self.offers, before=0)
        if not self.composer.text:
            self.offers.focus()

    def show_page(self) -> None:
        """The page again, in the place of what models there are."""
        if self.offers:
            self.offers.remove()
            self.offers = None
            self.transcript.display = True
            self.composer.focus()

    @on(Downloaded)
    def _downloaded(self, message: Downloaded) -> None:
        download = message.download
        current = self.downloads.current
        self.status.download = describe(current) if current else ""
        if download.stage == "here" and self.offers:
            self.show_page()
            self.warm_up()
            self.hint(f"{describe(download)}: you can chat now", lasting=True)
        elif download.stage == "here":
            self.hint(f"{describe(download)}: {key_of('model')} switches to it", lasting=True)
        elif download.stage == "failed" and not self.offers:
            self.hint(f"{safe_line(download.name)} did not come: {key_of('model')} says why", lasting=True)

    def shown_model(self) -> str:
        """The name of the model that answers; of a file's path only the file's."""
        reply = self.session.last_reply
        model = self.session.settings.model or (reply.model if reply else "") or self.default_model
        name = model.rsplit("/", 1)[-1] if model.startswith(("/", "~", ".")) else model
        return name.removesuffix(".gguf")

    def _show_model(self) -> None:
        self.transcript.show_model(self.shown_model())
        self.show_status()

    # The actions.

    def action_model(self) -> None:
        """Choose a model."""
        if not isinstance(self.engine, LocalEngine):
            self.hint("the server of --engine has its own models: /model NAME takes one of them")
            return
        from localchat.tui.screens.models import ModelPicker

        def chosen(name: str | None) -> None:
            if name:
                self.take_model(name)

        self.app.push_screen(ModelPicker(self.shown_model(), self.downloads), chosen)

    def take_model(self, name: str) -> None:
        """Let a model answer from now on, here and in chats that begin."""
        self.wanted = replace(self.wanted, model=name)
        self.change_settings(replace(self.session.settings, model=name), f"{safe_line(name)} answers from now on")
        self.warm_up()
        self._show_model()

    def change_settings(self, settings: ChatSettings | None, said: str = "") -> None:
        """Other settings for this chat, from the next message on."""
        if settings is not None:
            self.do(self.session.change(settings))
            self.hint(said or "these settings count from your next message on")

    def slash_model(self, name: str) -> None:
        """Take this model."""
        self.take_model(name.strip())

    def action_settings(self) -> None:
        """The chat's settings."""
        from localchat.tui.screens.chat_settings import ChatSettingsScreen

        self.app.push_screen(ChatSettingsScreen(self.session.settings), self.change_settings)

    def slash_system(self, text: str) -> None:
        """Set the system prompt."""
        self.change_settings(replace(self.session.settings, system=text.strip() or None))

    def slash_set(self, pair: str) -> None:
        """Set one sampling value or limit."""
        name, _, value = pair.partition(" ")
        sampling = {field: getattr(self.session.settings.sampling, field) for field in Sampling.__struct_fields__}
        try:
            if name in sampling:
                wanted = None if value.strip() in ("", "none") else value.strip()
                new = msgspec.convert({**sampling, name: wanted}, Sampling, strict=False)
                self.change_settings(replace(self.session.settings, sampling=new))
            elif name in _LIMITS:
                other = msgspec.convert({name: value.strip() or None}, ChatSettings, strict=False)
                self.change_settings(replace(self.session.settings, **{name: getattr(other, name)}))
            else:
                self.hint(f"there is no setting {safe_line(name)}: known are {', '.join([*sampling, *_LIMITS])}")
        except msgspec.ValidationError as error:
            self.hint(f"{safe_line(name)}: {_in_words(error)}")

    def action_think(self) -> None:
        """Let the model think in its own way, always, or never."""
        states = [state for state, _ in _THINKING]
        after = states[(states.index(self.session.settings.thinking) + 1) % len(states)]
        said = f"thinking: {dict(_THINKING)[after]}"
        self.change_settings(replace(self.session.settings, thinking=after), said)

    def slash_think(self, word: str) -> None:
        """Thinking on, off, or as the model likes."""
        known = {"on": True, "off": False, "auto": None}
        if word.strip() in known:
            self.change_settings(replace(self.session.settings, thinking=known[word.strip()]))
        else:
            self.hint("/think takes on, off or auto")


def _in_words(error: msgspec.ValidationError) -> str:
    # What is typed is always text: that it is some is no news.
    return safe_line(plainly(str(error).partition(" - at")[0]).removesuffix(", not text"))
