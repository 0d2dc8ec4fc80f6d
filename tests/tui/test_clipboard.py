"""Copying: with which helper, through which terminal, and what of the text. The helpers are programs of our own."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest

from localchat.tui import clipboard
from localchat.tui.clipboard import TERMINAL_BYTES, copy, terminal_sequences
from tests.tui.pages import PageApp

TERMINAL = "sent to the terminal (OSC 52): if it is not there, the terminal does not allow it"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without helpers, without a display, outside of everything."""
    for name in ("WAYLAND_DISPLAY", "DISPLAY", "TMUX", "STY", "SSH_CONNECTION", "SSH_TTY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(clipboard.sys, "platform", "linux")
    monkeypatch.setattr(clipboard, "_PATIENCE_S", 20.0)
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    monkeypatch.setenv("PATH", str(helpers))
    return helpers


def helper(machine: Path, name: str, does: str = "/bin/cat > got") -> Path:
    """A program that keeps what it was told beside itself."""
    path = machine / name
    path.write_text(f'#!/bin/sh\ncd "{machine}"\necho "$@" > arguments\n{does}\n')
    path.chmod(0o755)
    return machine / "got"


async def copied(text: str) -> tuple[str, str]:
    """What is said, and what the terminal got."""
    app = PageApp()
    async with app.run_test():
        written: list[str] = []
        assert app._driver
        app._driver.write = written.append  # type: ignore[method-assign]
        said = await asyncio.to_thread(copy, text, app)
        return said, "".join(part for part in written if "52;" in part)


@pytest.mark.parametrize(
    ("name", "environment", "platform", "encoding"),
    [
        ("wl-copy", {"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}, "linux", "utf-8"),
        ("xclip", {"DISPLAY": ":0"}, "linux", "utf-8"),
        ("xsel", {"DISPLAY": ":0"}, "linux", "utf-8"),
        ("xclip", {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b"}, "linux", "utf-8"),
        ("pbcopy", {}, "darwin", "utf-8"),
        ("clip.exe", {"WSL_DISTRO_NAME": "Debian"}, "linux", "utf-16"),
        ("tmux", {"TMUX": "/tmp/tmux"}, "linux", "utf-8"),
    ],
)
async def test_a_helper_gets_the_text_through_a_pipe(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, environment: dict, platform: str, encoding: str
) -> None:
    monkeypatch.setattr(clipboard.sys, "platform", platform)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    got = helper(machine, name)
    text = "Grüße 漢字\n" * 20_000
    said, sequence = await copied(text)
    assert said.startswith(f"copied with {name}") and not sequence
    assert ("passes it on" in said) == (name == "tmux")
    assert got.read_bytes().decode(encoding) == text
    assert "Gr" not in (machine / "arguments").read_text()


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("wl-copy", {"WAYLAND_DISPLAY": "wayland-0", "SSH_CONNECTION": "a b"}),
        ("xclip", {"DISPLAY": ":0", "SSH_TTY": "/dev/pts/1"}),
        ("wl-copy", {}),
        ("pbcopy", {}),
    ],
)
async def test_a_helper_that_leads_elsewhere_is_not_asked(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, environment: dict[str, str]
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    got = helper(machine, name)
    said, sequence = await copied("words")
    assert said == TERMINAL
    assert sequence == f"\x1b]52;c;{base64.b64encode(b'words').decode()}\x07"
    assert not got.exists()


@pytest.mark.parametrize("does", ["exit 1", "exec /bin/sleep 30", "kill -9 $$"])
async def test_where_one_helper_fails_the_next_one_is_asked(
    machine: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setenv("DISPLAY", ":0")
    run = subprocess.run

    def impatient(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Only with the one that fails in any case."""
        return run(command, **{**options, "timeout": 0.5} if command[0] == "wl-copy" else options)

    monkeypatch.setattr(clipboard.subprocess, "run", impatient)
    helper(machine, "wl-copy", does)
    assert (await copied("words"))[0] == TERMINAL
    helper(machine, "xsel")
    assert (await copied("words"))[0] == "copied with xsel"


async def test_a_helper_that_stays_in_the_background_is_not_waited_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    got = helper(machine, "xclip", "/bin/cat > got; /bin/sleep 40 &")
    assert (await copied("words"))[0] == "copied with xclip"
    assert got.read_text() == "words"


async def test_a_text_too_long_for_some_terminals_is_said(machine: Path) -> None:
    said, sequence = await copied("x" * (TERMINAL_BYTES + 1))
    assert said == TERMINAL + ", or takes no more than 74 kB"
    assert len(sequence) > TERMINAL_BYTES


async def test_what_is_pasted_later_does_not_act(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    got = helper(machine, "xclip")
    await copied("harmless\x1b[201~\nrm -rf /\x9b2J\r")
    assert got.read_text() == "harmless␛[201~\nrm -rf /\ufffd2J"


def test_from_inside_tmux_both_ways_are_tried() -> None:
    plain, wrapped = terminal_sequences("words", {"TMUX": "/tmp/tmux,1,0"})
    assert plain == "\x1b]52;c;d29yZHM=\x07"
    assert wrapped == "\x1bPtmux;\x1b\x1b]52;c;d29yZHM=\x07\x1b\\"


def test_gnu_screen_gets_short_strings() -> None:
    (sequence,) = terminal_sequences("words" * 1000, {"STY": "1.pts"})
    parts = sequence.split("\x1b\\")
    assert parts.pop() == ""
    assert all(part.startswith("\x1bP") and len(part) < 768 for part in parts)
    inner = "".join(part.removeprefix("\x1bP") for part in parts)
    assert inner == next(terminal_sequences("words" * 1000, {}))
