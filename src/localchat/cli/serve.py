"""`localchat serve`: the engine in the foreground, for a person who watches it. (`detached` is the one for clients.)"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

from localchat.cli.options import model_name
from localchat.host.main import HostOptions, run_host
from localchat.paths import paths, private_folder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Listen on 127.0.0.1:PORT too, with a bearer token (0: any free port).",
)
@click.option(
    "--idle",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave after N seconds without a question; not given, it stays until it is ended.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="The context window, in tokens; not given, that of the settings, or it grows with the conversation.",
)
@click.option(
    "--gpu-layers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Layers on GPUs, 0 for none; not given, as the settings say, or as many as fit.",
)
@click.option(
    "-m", "--model", "preload", metavar="NAME", help="Load this model at once, instead of with the first question."
)
def command(
    port: int | None,
    idle: int | None,
    context: int | None,
    gpu_layers: int | None,
    preload: str | None,
) -> None:
    """Run the engine in the foreground.

    With --port it is an OpenAI-compatible server on this machine (/v1/models, /v1/chat/completions). The bearer token
    is LOCALCHAT_TOKEN, or a random one that is printed once.
    """
    terminal = _send_stderr_to_log()
    preload = None if preload is None else model_name(preload)

    def on_ready(address: str, token: str | None) -> None:
        said = [f"localchat: listening at {address}; Ctrl+C ends it"]
        if token and not os.environ.get("LOCALCHAT_TOKEN"):
            said.append(f"localchat: the bearer token is {token}")
        with suppress(OSError):
            os.write(terminal, ("\n".join(said) + "\n").encode())

    try:
        _make_room()
        run_host(HostOptions(idle, port, preload, context, gpu_layers, on_ready=on_ready))
    finally:
        os.dup2(terminal, 2)


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
