"""Puts text on the person's clipboard: with a helper program where one can work, else through the terminal (OSC 52).

The text goes to a helper through a pipe, never as an argument that other users of the machine could read. Over ssh only
a forwarded X display or the terminal lead to the person's own clipboard.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from textual.app import App

from localchat.safe_text import safe_text

_PATIENCE_S = 3.0

TERMINAL_BYTES = 74_994
"""More than this some terminals do not take: they allow 100,000 characters, and base64 needs four for three bytes."""

_SCREEN_CHUNK = 512
"""GNU screen forwards strings of at most 768 bytes."""


@dataclass(frozen=True, slots=True)
class _Helper:
    command: list[str]
    encoding: str = "utf-8"
    environment: dict[str, str] = field(default_factory=dict)
    told: str = ""


def copy(text: str, app: App[Any]) -> str:
    """Copy what was shown of `text`; says in a few words how. May take seconds: to be called in a thread of its own."""
    # Control characters would act where the text is pasted: into a shell, for example.
    text = safe_text(text)
    environment = os.environ
    for helper in _helpers(environment):
        if _ran(helper, text):
            return f"copied with {helper.command[0]}{helper.told}"
    for sequence in terminal_sequences(text, environment):
        app.call_from_thread(partial(_write, app, sequence))
    said = "sent to the terminal (OSC 52): if it is not there, the terminal does not allow it"
    if len(text.encode()) > TERMINAL_BYTES:
        said += f", or takes no more than {TERMINAL_BYTES // 1000} kB"
    return said


def terminal_sequences(text: str, environment: Mapping[str, str]) -> Iterator[str]:
    """What makes the terminal set its clipboard, also from inside tmux and GNU screen."""
    data = base64.b64encode(text.encode()).decode()
    sequence = f"\x1b]52;c;{data}\x07"
    if "TMUX" in environment:
        # tmux takes the plain one with `set-clipboard on` and forwards the wrapped one with `allow-passthrough on`.
        yield sequence
        yield "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    elif "STY" in environment:
        chunks = [sequence[start : start + _SCREEN_CHUNK] for start in range(0, len(sequence), _SCREEN_CHUNK)]
        yield "".join(f"\x1bP{chunk}\x1b\\" for chunk in chunks)
    else:
        yield sequence


def _helpers(environment: Mapping[str, str]) -> Iterator[_Helper]:
    """The programs that can reach the person's clipboard from here, the likeliest first."""
    far = "SSH_CONNECTION" in environment or "SSH_TTY" in environment
    candidates: list[_Helper] = []
    if not far:
        if sys.platform == "darwin":
            candidates.append(_Helper(["pbcopy"], environment={"LC_CTYPE": "UTF-8"}))
        if "WSL_DISTRO_NAME" in environment or sys.platform == "win32":
            # It takes UTF-8 for the code page of old, but knows UTF-16 by its mark.
            candidates.append(_Helper(["clip.exe"], "utf-16"))
        if environment.get("WAYLAND_DISPLAY"):
            candidates.append(_Helper(["wl-copy"]))
    display = environment.get("DISPLAY", "")
    if display and not (far and display.startswith(":")):
        candidates += [
            _Helper(["xclip", "-selection", "clipboard"]),
            _Helper(["xsel", "--clipboard", "--input"]),
        ]
    if "TMUX" in environment:
        # tmux keeps it as its own, and hands it on to the terminal that it runs in.
        candidates.append(
            _Helper(["tmux", "load-buffer", "-w", "-"], told=", which passes it on where that is allowed")
        )
    return (helper for helper in candidates if shutil.which(helper.command[0]))


def _ran(helper: _Helper, text: str) -> bool:
    try:
        done = subprocess.run(
            helper.command,
            input=text.encode(helper.encoding),
            # Helpers stay in the background to hand the text out: a pipe that they hold would keep us waiting.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            env={**os.environ, **helper.environment},
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _write(app: App[Any], sequence: str) -> None:
    # The application's own way of copying knows no multiplexer.
    if app._driver is not None:
        app._driver.write(sequence)
