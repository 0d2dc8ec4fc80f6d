"""The terminal chat as an application: its theme, its palette of actions, its way in and its ways out.

Importing this builds nothing; `run` is how the command line opens the chat.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from localchat.chats.keeper import Keeper
from localchat.chats.records import ChatSettings
from localchat.settings import is_offline
from localchat.tui.actions import ACTIONS, checked_keys, key_of
from localchat.tui.aside import Aside
from localchat.tui.exchange import Engine, Prepare
from localchat.tui.screens.chat import ChatScreen
from localchat.tui.terminal import driver
from localchat.tui.theme import ANSI, THEMES, WITHOUT_COLOURS, chosen, is_colourless

_ENDING_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
_CLOSING_S = 5.0
_LEAVING_S = 10.0


class ChatApp(App[None], inherit_bindings=False):
    """The chat. `wanted` goes with new chats; `chat` is the one to open, None a new one.

    `prepare` makes sure that a model is here and verified, where the engine says it is not. `clock` (seconds) is what
    durations and speeds are measured with.
    """

    TITLE = "localchat"
    CSS = WITHOUT_COLOURS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True, id="quit"),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True, id="suspend"),
        Binding("ctrl+p", "command_palette", "Palette", show=False, priority=True, id="palette"),
    ]

    def __init__(
        self,
        engine: Engine,
        wanted: ChatSettings | None = None,
        *,
        chat: int | None = None,
        prepare: Prepare | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(driver_class=driver(), ansi_color=is_colourless() or None)
        for theme in THEMES.values():
            self.register_theme(theme)
        self.theme = ANSI.name if self.no_color else chosen()
        self.keeper = Keeper()
        self._engine = engine
        self._wanted = wanted or ChatSettings()
        self._chat = chat
        self._prepare = prepare
        self._clock = clock
        self._signals: list[signal.Signals] = []
        self.takes_keys = threading.Event()
        self.set_keymap(checked_keys())

    def get_default_screen(self) -> Screen[None]:
        """The chat."""
        return ChatScreen(
            self._engine,
            self.keeper,
            self._wanted,
            self._prepare,
            self.takes_keys,
            clock=self._clock,
            offline=is_offline(),
            chat=self._chat,
        )

    def on_mount(self) -> None:
        """Leave in good order when told to: otherwise the terminal would be left as the chat had set it."""
        asyncio.get_running_loop().set_default_executor(Aside())
        self.app_resume_signal.subscribe(self, self._draw_anew)
        loop = asyncio.get_running_loop()
        for name in _ENDING_SIGNALS:
            number = getattr(signal, name, None)
            # Not every system has them, and a loop outside the main thread cannot take them.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                if number is not None:
                    loop.add_signal_handler(number, partial(self._leave, 128 + number))
                    self._signals.append(number)

    def _leave(self, code: int) -> None:
        """Leave in good order, within some seconds: a terminal that is gone can hold a writer for ever."""
        self.exit(return_code=code)
        guard = threading.Timer(_LEAVING_S, os._exit, (code,))
        guard.daemon = True
        guard.start()

    def _draw_anew(self, _app: App[Any]) -> None:
        """Back from the shell or an editor: of a screen that was cleared behind its back Textual knows nothing."""
        self.call_after_refresh(self.screen.refresh)

    def on_unmount(self) -> None:
        """Give the signals back, and have on disk what was written last."""
        self.keeper.close(_CLOSING_S)
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every action that is more than a key of the composer."""
        for action in ACTIONS:
            if action.method and action.name != "palette":
                yield SystemCommand(action.label, key_of(action.name), partial(self.run_action, action.method, screen))


def run(
    engine: Engine, wanted: ChatSettings | None = None, *, chat: int | None = None, prepare: Prepare | None = None
) -> None:
    """Open the chat and return when the person leaves it; raises `SystemExit` where a signal or a fault ended it."""
    app = ChatApp(engine, wanted, chat=chat, prepare=prepare)
    app.run()
    if app.return_code:
        raise SystemExit(app.return_code)
