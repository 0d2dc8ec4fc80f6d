"""`localchat chat`: the terminal chat."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from localchat.cli.options import (
    ENGINE_OPTION,
    MODEL_OPTION,
    SET_OPTION,
    SYSTEM_OPTION,
    Wishes,
    wishes,
)
from localchat.client import engine_at
from localchat.errors import UsageError
from localchat.settings import settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@MODEL_OPTION
@SYSTEM_OPTION
@SET_OPTION
@ENGINE_OPTION
def command(model: str, system: str | None, options: tuple[tuple[str, str], ...], engine: str | None) -> int:
    """Open the terminal chat."""
    return open_chat(wishes(model, system, options), engine)


def open_chat(wanted: Wishes, engine_url: str | None) -> int:
    """Run the chat until the person leaves it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the chat needs a terminal: use `localchat ask` in scripts and pipes")
    from localchat.tui.app import run

    engine = engine_at(engine_url or settings().engine)

    def prepare(model: str, on_progress: Callable[[str], None]) -> None:
        from localchat.cli.fetching import describe_fetch
        from localchat.models.fetch import ensure

        ensure(model or None, on_progress=lambda state: on_progress(state.notice or describe_fetch(state)))

    run(engine, wanted.chat_settings(), prepare=prepare if engine.is_local else None)
    return 0
