"""`localchat chat`: the terminal chat, as a screen or (`--plain`) line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from localchat.chats.records import ChatSettings
from localchat.cli.options import ENGINE_OPTION, MODEL_OPTION, SET_OPTION, SYSTEM_OPTION, wishes
from localchat.client import engine_at
from localchat.errors import UsageError
from localchat.settings import settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last chat.")
@click.option("--chat", "chat", type=int, metavar="ID", help="Open this chat (see `localchat chats`).")
@click.option("--plain", is_flag=True, help="Line by line in the terminal's own scrollback: for screen readers too.")
@MODEL_OPTION
@SYSTEM_OPTION
@SET_OPTION
@ENGINE_OPTION
def command(
    go_on: bool,
    chat: int | None,
    plain: bool,
    model: str,
    system: str | None,
    options: tuple[tuple[str, str], ...],
    engine: str | None,
) -> int:
    """Open the terminal chat.

    A chat that is opened again has its own model and settings; those given here are for new ones.
    """
    return open_chat(wishes(model, system, options), engine, go_on=go_on, chat=chat, plain=plain)


def open_chat(
    wanted: ChatSettings,
    engine_url: str | None,
    *,
    go_on: bool = False,
    chat: int | None = None,
    plain: bool = False,
) -> int:
    """Run the chat until the person leaves it; with `go_on` in the last chat, else in the chat of that number."""
    if go_on and chat is not None:
        raise UsageError("-c goes on with the last chat and --chat with another one: give one of the two")
    if not (sys.stdin.isatty() and (plain or sys.stdout.isatty())):
        raise UsageError("the chat needs a terminal: use `localchat ask` in scripts and pipes")
    engine = engine_at(engine_url or settings().engine)
    if go_on or chat is not None:
        chat = _number(chat)
    if plain:
        from localchat.cli.plain import converse

        return converse(engine, wanted, chat)
    from localchat.tui.app import run

    def prepare(model: str, on_progress: Callable[[str], None]) -> None:
        from localchat.cli.fetching import describe_fetch
        from localchat.models.fetch import ensure

        # No bar: while the screen is drawn, stderr is no terminal to ask how it shows one.
        ensure(model or None, on_progress=lambda state: on_progress(state.notice or describe_fetch(state, drawn=False)))

    run(engine, wanted, chat=chat, prepare=prepare if engine.is_local else None)
    return 0


def _number(chat: int | None) -> int:
    """The number of the chat to open: that one if it exists, or the last one. Raises `ChatsError`, `UsageError`."""
    from contextlib import closing

    from localchat.chats.store import Chats

    with closing(Chats()) as chats:
        found = chats.latest("chat") if chat is None else chats.info(chat)
    if not found:
        raise UsageError("there is no earlier chat to go on with: begin one with `localchat`")
    return found.id
