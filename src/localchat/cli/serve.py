"""`localchat serve`: the engine in the foreground, or detached when a client starts it. Only this module starts a host."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from localchat.errors import LocalchatError
from localchat.host.main import HostOptions, run_host
from localchat.paths import paths, private_folder
from localchat.settings import settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(0, 65535), help="Listen on 127.0.0.1:PORT too, with a bearer token.")
@click.option("--idle", type=click.IntRange(min=1), help="Leave after this many seconds without a question.")
@click.option("--context", type=click.IntRange(min=1), help="The context window, in tokens.")
@click.option("-m", "--model", "preload", metavar="NAME", help="Load this model at once.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def command(
    port: int | None,
    idle: int | None,
    context: int | None,
    preload: str | None,
    socket_path: Path | None,
    ready_fd: int | None,
) -> None:
    """Run the engine in the foreground.

    With --port it is an OpenAI-compatible server on this machine (/v1/models, /v1/chat/completions). The bearer token is
    LOCALCHAT_TOKEN, or a random one that is printed once.
    """
    context = context or settings().context
    socket_path = socket_path or paths().socket
    if ready_fd is not None:
        _serve_detached(HostOptions(socket_path, idle, port, preload, context, on_demand=True), ready_fd)
        return
    from localchat.cli.options import model_name

    terminal = _send_stderr_to_log()
    preload = None if preload is None else model_name(preload)

    def on_ready(address: str, token: str | None) -> None:
        said = [f"localchat: listening at {address}; Ctrl+C ends it"]
        if token and "LOCALCHAT_TOKEN" not in os.environ:
            said.append(f"localchat: the bearer token is {token}")
        with suppress(OSError):
            os.write(terminal, ("\n".join(said) + "\n").encode())

    try:
        _make_room()
        run_host(HostOptions(socket_path, idle, port, preload, context, on_ready=on_ready))
    finally:
        os.dup2(terminal, 2)


def _serve_detached(options: HostOptions, ready_fd: int) -> None:
    """Run for a client that waits at a pipe: "ok" once we listen, else the error's code and message."""

    def answer(text: str) -> None:
        with suppress(OSError):
            os.write(ready_fd, text.encode())
            os.close(ready_fd)

    from dataclasses import replace

    try:
        run_host(replace(options, on_ready=lambda address, token: answer("ok")))
    except LocalchatError as error:
        answer(f"{error.code}\n{error.message}")
        raise


def _send_stderr_to_log() -> int:
    """Native code writes to descriptor 2 as it likes: that goes to the log. Returns a descriptor of the terminal."""
    private_folder(paths().state)
    terminal = os.dup(2)
    log = os.open(paths().host_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr.flush()
    return terminal


def _make_room() -> None:
    """End a host that a client once started and nobody is using now; one that answers somebody stays."""
    from localchat.client.local import LocalEngine

    engine = LocalEngine()
    running = engine.status()
    if running and running.on_demand and not running.active and not running.queued:
        engine.stop()
