"""Whether the places that models are fetched from answer: the hub, and the index that pip asks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from localchat.cli.doctor.report import Finding
from localchat.errors import Interrupted
from localchat.models import hub
from localchat.models.transfer.transport import TransportError, host_of, request

_LIMIT_S = 3.0
_ADVICE = "look at the connection and its proxy; without one, models come by `localchat import`"

_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_USUAL_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
"""Prints the index that pip asks where it was told nothing: no command of pip's does."""


def hub_answers() -> Iterator[Finding]:
    """Whether the hub answers, and whether there is a token for it (which is never shown)."""
    address = hub.endpoint()
    yield _answers("hub", address)
    has_token = any(name.lower() == "authorization" for name in hub.identity())
    yield Finding(
        "ok", "token", "there is one for the hub" if has_token else "none: only models that ask for consent need one"
    )


def index_answers() -> Iterator[Finding]:
    """Whether the package index answers, as some models can be had there."""
    try:
        told = _said([*_PIP, "config", "list"]).splitlines()
        settings = dict(line.split("=", 1) for line in told if "=" in line)
        address = next(
            # A variable of the environment counts more than what a file says of a command, and of all of them.
            (
                value.strip("'\"")
                for kind in (":env:", "download", "global")
                if (value := settings.get(f"{kind}.index-url"))
            ),
            "",
        )
        address = address or _said([sys.executable, "-c", _USUAL_INDEX])
    except (OSError, subprocess.SubprocessError):
        yield Finding("warning", "index", "pip does not tell which package index it asks", "see that pip is installed")
        return
    if address.startswith("file:"):
        yield Finding("ok", "index", "pip asks a folder of this machine")
    else:
        yield _answers("index", address)


def _said(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=2 * _LIMIT_S, check=True
    )
    return done.stdout.strip()


def _answers(what: str, address: str) -> Finding:
    host, began = host_of(address), time.monotonic()
    try:
        reply = request("HEAD", address, {}, cancelled=lambda: time.monotonic() - began > _LIMIT_S)
        reply.close()
    except Interrupted:
        return Finding("warning", what, f"{host} does not answer within {_LIMIT_S:.0f} s", _ADVICE)
    except TransportError as error:
        return Finding("warning", what, error.reason, _ADVICE)
    if reply.status >= 500:
        return Finding("warning", what, f"{host} answers {reply.status}", "try again later")
    return Finding("ok", what, f"{host} answers in {(time.monotonic() - began) * 1000:.0f} ms")
