"""`localchat stop`: end the engine and give its memory back."""

from __future__ import annotations

import click

from localchat.client.local import LocalEngine


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """End the engine, running answers included."""
    print("The engine is stopped." if LocalEngine().stop() else "No engine was running.")
