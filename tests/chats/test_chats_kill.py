"""kill -9 while answers stream into the file (T3), and several programs at once (T13)."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import localchat
from localchat.chats.store import Chats
from tests.conftest import wait_for

_MOMENTS = [(0.0, 0.05), (0.0, 0.6), (1.6, 2.2)]
"""Seconds after the first message: while it is kept, in the first answer, and when much of one can be lost."""

STREAM = """
import sys, time
from pathlib import Path
from localchat.chats import database
from localchat.chats.keeper import Keeper
from localchat.chats.records import ChatSettings, Outcome
from localchat.protocol import Message

database.PATIENCE_S = 60
keeper = Keeper(Path(sys.argv[1]))
chat = keeper.call(lambda chats: chats.create(ChatSettings())).result()
tip, number = None, 0
while True:
    number += 1
    words = f"question {number} of {chat} " + "x" * (1 << number % 16)
    question, tip = keeper.call(lambda chats: chats.ask(chat, tip, Message("user", words))).result()
    print("asked", question, tip, len(words), flush=True)
    keeper.follow(tip)
    text = ""
    for token in range(20 if number % 3 == 2 else int(sys.argv[2])):
        text += f"{token} "
        keeper.write(tip, Message("assistant", text), Outcome())
        print("wrote", tip, token, flush=True)
        time.sleep(0.005)
    keeper.finish(tip, Message("assistant", text + "end"), "done", Outcome()).result()
    print("done", tip, flush=True)
"""

TALK = """
import sys
from pathlib import Path
from localchat.chats import database
from localchat.chats.keeper import Keeper
from localchat.chats.records import ChatSettings, Draft, Outcome
from localchat.protocol import Message

database.PATIENCE_S = 60
me, rounds = sys.argv[2], int(sys.argv[3])
keeper = Keeper(Path(sys.argv[1]))
for number in range(rounds):
    chat = keeper.call(lambda chats: chats.create(ChatSettings())).result()
    keeper.call(lambda chats: chats.keep_draft(chat, Draft("draft"))).result()
    question, answer = keeper.call(lambda chats: chats.ask(chat, None, Message("user", f"{me} asks {number}"))).result()
    keeper.follow(answer)
    for token in range(20):
        keeper.write(answer, Message("assistant", "word " * token), Outcome())
        assert not keeper.trouble, keeper.trouble
    assert len(keeper.call(lambda chats: chats.search(f'"{me} asks {number}"')).result()) == 1
    assert keeper.call(lambda chats: chats.tree(chat).nodes[answer].state).result() == "unfinished"
    keeper.finish(answer, Message("assistant", f"{me} hears {number}"), "done", Outcome()).result()
    keeper.call(lambda chats: chats.rename(chat, f"{me} {number}")).result()
    assert keeper.call(lambda chats: chats.chats()).result()
    assert not keeper.trouble, keeper.trouble
keeper.close(30)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(localchat.__file__).parents[1])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@contextmanager
def streaming(file: Path, count: int, tokens: int = 600) -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that stream answers into a file, most of them of that many tokens."""
    processes = [start(STREAM, file, tokens) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def kill_some(file: Path, dice: random.Random, count: int, after_s: tuple[float, float]) -> None:
    """Kill programs that stream into one file at a random moment, and look whether what they said was kept is there."""
    with streaming(file, count) as processes:
        for process in processes:
            assert process.stdout and process.stdout.readline()
        time.sleep(dice.uniform(*after_s))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        said = [line.split() for process in processes for line in (process.communicate()[0]).splitlines()]
    chats = Chats(file)
    nodes = {node.id: node for info in chats.chats() for node in chats.tree(info.id).nodes.values()}
    for line in said:
        match line:
            case ["asked", question, answer, length]:
                assert len(nodes[int(question)].message.text()) == int(length)
                assert int(answer) in nodes
            case ["done", answer]:
                assert (nodes[int(answer)].state, nodes[int(answer)].message.text()[-3:]) == ("done", "end")
    for node in nodes.values():
        if node.message.role == "assistant":
            tokens = node.message.text().removesuffix("end").split()
            assert tokens == [str(number) for number in range(len(tokens))]
    assert not [node for node in nodes.values() if node.state == "unfinished"]
    chats.close()
    assert not list(file.parent.glob("writing-*"))
    database = sqlite3.connect(file)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_an_answer_is_kept_while_it_is_written(file: Path) -> None:
    """What a person has seen is soon on disk, and there it stays: (how soon, is a matter of the machine)."""
    with streaming(file, 1, tokens=10**9) as (process,):
        assert process.stdout and "asked" in process.stdout.readline()
        *_, answer, token = next(line for line in process.stdout if line.endswith(" 300\n")).split()
        with closing(sqlite3.connect(file)) as database:
            query = "SELECT content FROM messages WHERE id = ?"
            wait_for(lambda: f" {token} " in database.execute(query, (int(answer),)).fetchone()[0])
    chats = Chats(file)
    (info,) = chats.chats()
    node = chats.tree(info.id).nodes[int(answer)]
    assert node.state == "broken" and f" {token} " in node.message.text()
    chats.close()


def test_killed_programs_lose_nothing_that_was_sent(file: Path, dice: random.Random) -> None:
    for number in range(3):
        kill_some(file, dice, 5, _MOMENTS[number % 3])


@pytest.mark.slow
def test_killed_programs_lose_nothing_that_was_sent_in_full(tmp_path: Path, dice: random.Random) -> None:
    for number in range(60):
        kill_some(tmp_path / str(number // 10) / "chats.db", dice, 5, _MOMENTS[number % 3])


def four_talk(file: Path, rounds: int) -> None:
    processes = [start(TALK, file, f"program{number}", rounds) for number in range(4)]
    try:
        assert [process.wait(300) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.wait()
    chats = Chats(file)
    infos = chats.chats()
    assert {info.title for info in infos} == {f"program{one} {number}" for one in range(4) for number in range(rounds)}
    for info in infos:
        me, number = info.title.split()
        texts = [node.message.text() for node in chats.tree(info.id).path()]
        assert texts == [f"{me} asks {number}", f"{me} hears {number}"]
    chats.close()


def test_four_programs_write_at_once(file: Path) -> None:
    four_talk(file, 15)


@pytest.mark.slow
def test_four_programs_write_at_once_for_long(file: Path) -> None:
    four_talk(file, 200)
