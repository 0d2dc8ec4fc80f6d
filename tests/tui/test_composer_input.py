"""What comes in from the terminal: pastes whole and at once, whatever they contain; keys as before."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from textual import events

from localchat.tui.terminal import InputParser
from tests.terminal import Terminal

BEGIN, END = "\x1b[200~", "\x1b[201~"
NASTY = "a\x1b[31mred\r\x1b[200~ \x1b[I\x1b\x1b[20 and more than thirty-two characters \x1b]52;c;eA==\x07 漢é\nz\x1b"


def _read(*bites: str) -> list[object]:
    parser = InputParser()
    seen: list[object] = []
    for bite in bites:
        for event in parser.feed(bite):
            if isinstance(event, events.Paste):
                seen.append(event.text)
            elif isinstance(event, events.Key):
                seen.append((event.key,))
    return seen


def test_a_paste_is_one_event_whatever_it_contains() -> None:
    assert _read(f"k{BEGIN}{NASTY}{END}\r") == [("k",), NASTY, ("enter",)]


def test_a_paste_may_come_in_bites_of_any_size() -> None:
    data = f"k{BEGIN}{NASTY}{END}\x1b[A{BEGIN}{END}{BEGIN}b{END}l"
    wanted = [("k",), NASTY, ("up",), "", "b", ("l",)]
    assert _read(*data) == wanted
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(200):
        cuts = sorted(dice.randrange(len(data)) for _ in range(dice.randrange(9)))
        bites = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert _read(*(bite for bite in bites if bite)) == wanted, cuts


def test_a_large_paste_is_whole() -> None:
    text = "some words on this line, forty bytes...\n" * 25_000
    assert _read(*[f"{BEGIN}{text}{END}"[at : at + 4096] for at in range(0, len(text) + 12, 4096)]) == [text]


@pytest.mark.parametrize(("sequence", "key"), [("\x1b[13;3u", "alt+enter"), ("\x1b[13;5u", "ctrl+enter")])
def test_enter_with_another_key_where_it_is_reported(sequence: str, key: str) -> None:
    assert _read(sequence) == [(key,)]


def test_alt_enter_of_an_old_terminal() -> None:
    parser = InputParser()
    assert list(parser.feed("\x1b\r")) == []
    parser._timeout_time = 0.0
    assert [event.key for event in parser.tick() if isinstance(event, events.Key)] == ["alt+enter"]
    assert [event.key for event in parser.feed("\r") if isinstance(event, events.Key)] == ["enter"]


_IN_A_TERMINAL = """
import json, sys
from pathlib import Path
from tests.tui.composer_desk import Desk

class Shown(Desk):
    def on_composer_sent(self, message):
        with open(sys.argv[1], "a") as out:
            print(json.dumps([message.text, [a.text for a in message.attachments]]), file=out)
        self.composer.hint = f"sent {len(message.text)}"

    def on_composer_said(self, message):
        self.composer.hint = message.text

Shown(Path.cwd()).run()
"""


def test_in_a_real_terminal(tmp_path: Path) -> None:
    """A paste with a return in it sends nothing, bytes that are no text end nothing, an editor gets the terminal."""
    editor = tmp_path / "editor"
    editor.write_text(
        '#!/bin/sh\ntrap : INT\nstty -a | grep -q "[^-]icanon" || exit 9\necho edits\n'
        "until IFS= read -r line; do :; done\n"
        'printf "%s by hand" "$line" >> "$1"\n'
    )
    editor.chmod(0o700)
    sent = tmp_path / "sent"
    terminal = Terminal(
        home=tmp_path / "home",
        env={"VISUAL": str(editor), "PYTHONPATH": str(Path(__file__).parents[2])},
        command=[sys.executable, "-c", _IN_A_TERMINAL, str(sent)],
    )
    terminal.read_until("sk anything", 20)
    terminal.press(f"{BEGIN}ab\x1b[31m\rcd{END}".encode() + b"\xff\xfe" + b"ef\x1b\r")
    terminal.read_until("ef", 20)
    terminal.press(b"g\r")
    terminal.read_until("sent 16", 20)
    terminal.press(f"{BEGIN}{'x' * 300_000}{END}".encode())
    terminal.read_until("pasted 1", 20)
    terminal.press(b"words\x07")
    terminal.read_until("edits", 20)
    terminal.press(b"\x03")
    terminal.press(b" edited\n")
    terminal.read_until("by hand", 20)
    terminal.press(b"\r")
    terminal.read_until("sent 20", 20)
    terminal.press(b"\x11")
    assert terminal.end() == 0
    assert [json.loads(line) for line in sent.read_text().splitlines()] == [
        ["ab␛[31m\ncd��ef\ng", []],
        ["words edited by hand", ["x" * 300_000]],
    ]
