"""The host as a client starts it: `localchat serve --detached JSON`.

A person waits for the first answer while this starts, so the options come as one JSON object, without an option
parser to import: `idle` (seconds), `model` (name or "", to load at once), `ready` (the descriptor of a pipe that gets
"ok", or an error's code and message).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from localchat.errors import LocalchatError
from localchat.host.main import HostOptions, run_host


def serve_detached(argument: str) -> int:
    """Run a host for the client that waits at the pipe; nobody else is there to read an error."""
    given = json.loads(argument)

    def answer(text: str) -> None:
        with suppress(OSError):
            os.write(given["ready"], text.encode())
            os.close(given["ready"])

    options = HostOptions(
        given["idle"],
        preload=given["model"],
        on_demand=True,
        on_ready=lambda address, token: answer("ok"),
    )
    try:
        run_host(options)
    except LocalchatError as error:
        answer(f"{error.code}\n{error.message}")
        raise
    return 0
