"""Nothing that a model, a server or a file says can drive the terminal: not on the screen, not through a pipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from localchat.protocol import Chunk
from tests.conftest import run_cli
from tests.escapes import PAYLOADS, unsafe
from tests.fake_engine import FakeEngine, fail, finish, progress, say, think, usage
from tests.terminal import Terminal

ALL = "\n".join(f"{number}:{text}" for number, text in enumerate(PAYLOADS))
# What localchat itself may send to a terminal: its progress line and dim thinking.
OWN = re.compile(r"\r\x1b\[K|\x1b\[2m|\x1b\[0m|\r\n")


def raw(*arguments: str, home: Path) -> tuple[str, str]:
    """stdout and stderr of a command, decoded strictly: invalid UTF-8 is a fault too."""
    done = subprocess.run(
        [sys.executable, "-m", "localchat", *arguments],
        env={"PATH": "/usr/bin:/bin", "LOCALCHAT_HOME": str(home), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    return done.stdout.decode(), done.stderr.decode()


def hostile(engine: FakeEngine, by: int | None) -> None:
    """A script in which everything that a server can say tries to drive the terminal."""
    engine.script(
        [Chunk(model=ALL, choices=[])],
        progress("loading", 0.5, 1, 5000),
        think(ALL, by=by),
        say(ALL, by=by),
        finish(ALL),
        usage(warnings=[ALL]),
        [Chunk(model=ALL, choices=[])],
    )


def test_there_are_enough_payloads() -> None:
    assert len(PAYLOADS) >= 200 and all(unsafe(text) for text in PAYLOADS)


@pytest.mark.parametrize("by", [1, 2, 3, 7, None], ids=lambda by: f"split every {by or 'never'}")
def test_a_pipe_carries_nothing_that_drives_a_terminal(tmp_path: Path, by: int | None) -> None:
    with FakeEngine() as engine:
        hostile(engine, by)
        out, err = raw("ask", "--engine", engine.url, "--show-thinking", "--stats", "hi", home=tmp_path)
    assert unsafe(out) == [] and unsafe(err) == []
    assert f"{len(PAYLOADS) - 1}:" in out and f"{len(PAYLOADS) - 1}:" in err


@pytest.mark.parametrize("by", [1, None])
def test_a_terminal_gets_only_our_own_sequences(tmp_path: Path, by: int | None) -> None:
    with FakeEngine() as engine:
        hostile(engine, by)
        terminal = Terminal(
            "ask", "--engine", engine.url, "--show-thinking", "--stats", "hi", home=tmp_path, columns=5000
        )
        assert terminal.end() == 0
    assert unsafe(OWN.sub("\n", terminal.output.decode())) == []
    assert f"{len(PAYLOADS) - 1}:" in terminal.screen()


def test_a_code_block_is_made_safe_too(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        engine.script(say(f"```\n{ALL}\n```\n"))
        out, err = raw("ask", "-x", "--engine", engine.url, "hi", home=tmp_path)
        assert f"{len(PAYLOADS) - 1}:" in out and unsafe(out + err) == []
        engine.script(say(ALL))
        engine.script(say(ALL))
        out, err = raw("ask", "-x", "--engine", engine.url, "hi", home=tmp_path)
        assert out == "" or unsafe(out) == []
        out, err = raw("ask", "-x", "--engine", engine.url, "hi", home=tmp_path)
        assert out == "" and f"{len(PAYLOADS) - 1}:" in err and unsafe(err) == []


def test_json_is_safe_to_print_and_changes_no_value(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        hostile(engine, None)
        out, err = raw("ask", "--json", "--engine", engine.url, "hi", home=tmp_path)
    assert unsafe(out) == [] and unsafe(err) == []
    answer = json.loads(out)
    assert (answer["text"], answer["reasoning"], answer["model"]) == (ALL, ALL, ALL)


def test_what_a_server_complains_of_is_made_safe(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        engine.script(say("x"), fail("engine_failed", ALL), end=False)
        out, err = raw("ask", "--engine", engine.url, "hi", home=tmp_path)
    assert unsafe(out) == [] and unsafe(err) == [] and err.count("\n") == 1


def test_names_of_models_and_files_are_made_safe(tmp_path: Path) -> None:
    for payload in [text for text in PAYLOADS if "\0" not in text and "\ud800" not in text][::70]:
        for arguments in (("-m", payload), ("-f", payload), ("-o", payload, "1"), ("--engine", payload)):
            done = run_cli("ask", *arguments, "hi", home=tmp_path / "h", env={"LOCALCHAT_OFFLINE": "1"})
            assert done.returncode in (2, 3, 4), (arguments, done.stderr)
            assert unsafe(done.stderr) == [] and done.stdout == ""
    run_cli("stop", home=tmp_path / "h")


def test_a_command_that_is_none_is_made_safe(tmp_path: Path) -> None:
    for payload in ["\x1b]0;x\x07", "a\x9bb", "x\u202ey"]:
        done = run_cli(payload, home=tmp_path)
        assert (done.returncode, unsafe(done.stderr)) == (2, [])
