"""What `ask` keeps: the question before it is sent, the answer however it ends; and how a conversation goes on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from localchat.chats.records import Node
from localchat.chats.store import Chats
from localchat.protocol import Message
from tests.cli.patient import run_patiently, start_patiently
from tests.conftest import run_cli, wait_for
from tests.fake_engine import MODEL, FakeEngine, Pause, fail, say, think, wait

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def ask(engine: FakeEngine, *arguments: str, home: Path, **options: object) -> Done:
    return run_patiently("ask", "--engine", engine.url, *arguments, home=home, **options)


def kept(home: Path) -> list[list[Node]]:
    """The paths of all questions that were kept, the oldest first."""
    file = home / "chats" / "chats.db"
    if not file.exists():
        return []
    with closing(Chats(file)) as chats:
        return [chats.tree(info.id).path() for info in reversed(chats.chats("ask"))]


def said(path: list[Node]) -> list[tuple[str, str, str]]:
    return [(node.message.role, node.message.text(), node.state) for node in path]


def sent(engine: FakeEngine) -> list[tuple[str, str]]:
    return [(message.role, message.text()) for message in engine.requests[-1].messages]


def test_a_question_is_kept_with_its_answer_figures_and_files(engine: FakeEngine, home: Path, tmp_path: Path) -> None:
    engine.script(think("Hm."), say("An answer."))
    (tmp_path / "a.txt").write_text("in a file\n")
    done = ask(engine, "-f", str(tmp_path / "a.txt"), "What?", home=home, input="piped\n")
    assert (done.stdout, done.stderr, done.returncode) == ("An answer.\n", "", 0)
    [[question, answer]] = kept(home)
    assert question.message == Message("user", "What?")
    assert [(one.name, one.text) for one in question.attachments] == [("a.txt", "in a file\n"), ("", "piped")]
    assert answer.message == Message("assistant", "An answer.", "Hm.")
    assert (answer.state, answer.outcome.model, answer.outcome.finish_reason, answer.outcome.seed) == (
        "done",
        MODEL,
        "stop",
        7,
    )
    assert run_cli("chats", home=home).stdout == "There are no chats yet: `localchat` begins one.\n"


def test_the_question_is_on_disk_before_the_engine_has_it(engine: FakeEngine, home: Path) -> None:
    engine.script(wait("go"), say("ok"))
    running = start_patiently("ask", "--engine", engine.url, "Where is it?", home=home)
    while not engine.requests:
        assert running.poll() is None
    assert said(kept(home)[0]) == [("user", "Where is it?", "done"), ("assistant", "", "unfinished")]
    running.kill()
    running.communicate()
    assert said(kept(home)[0])[1] == ("assistant", "", "broken")


def killed_while_answering(home: Path, dice: random.Random) -> None:
    """Ask, and kill -9 at a random moment; what the engine was asked is there, and what was read soon is while more of
    it comes.
    """
    with FakeEngine() as engine:
        text = "".join(f"word{number} " for number in range(6000))  # two minutes of it, and no more than a pipe holds
        engine.script(*([*say(piece), Pause(0.01)] for piece in re.findall("....", text)))
        before = len(kept(home))
        running = start_patiently("ask", "--engine", engine.url, "Where?", home=home)
        time.sleep(dice.uniform(0.05, 2.5))
        assert running.stdout
        os.set_blocking(running.stdout.fileno(), False)
        shown = (running.stdout.read() or b"").decode()
        if shown:
            wait_for(lambda: any(path[-1].message.text().startswith(shown) for path in kept(home)[before:]))
            time.sleep(dice.uniform(0, 0.6))  # saves come each half a second
        running.kill()
        running.wait()
        paths = kept(home)
        assert len(paths) == before + 1 or not engine.requests
        if engine.requests:
            question, answer = paths[-1]
            assert question.message.text() == "Where?"
            assert text.startswith(answer.message.text())
            assert answer.state == "broken"
            assert answer.message.text().startswith(shown)
        running.stdout.close()
        assert running.stderr
        running.stderr.close()


def check_database(home: Path) -> None:
    with closing(sqlite3.connect(home / "chats" / "chats.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("count", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_loses_no_question_and_only_the_last_of_the_answer(home: Path, count: int) -> None:
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(count):
        killed_while_answering(home, dice)
    if (home / "chats" / "chats.db").exists():
        check_database(home)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(engine: FakeEngine, home: Path) -> None:
    engine.script(say("half an "), wait("never"))
    running = start_patiently("ask", "--engine", engine.url, "hi", home=home)
    assert running.stdout and os.read(running.stdout.fileno(), 100) == b"half an "
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")
    assert said(kept(home)[0])[1] == ("assistant", "half an ", "stopped")


def test_an_answer_whose_reader_has_enough_is_kept(engine: FakeEngine, home: Path) -> None:
    engine.script(say("one\n"), wait("go"), say("two\n" * 100_000, by=4000), wait("never"))
    running = start_patiently("ask", "--engine", engine.url, "hi", home=home)
    assert running.stdout and os.read(running.stdout.fileno(), 4) == b"one\n"
    running.stdout.close()
    engine.go("go")
    assert running.wait(timeout=60) == 0
    [[_, answer]] = kept(home)
    assert answer.state == "stopped" and answer.message.text().startswith("one\ntwo\n")


def test_an_answer_that_fails_is_kept_with_the_reason(engine: FakeEngine, home: Path) -> None:
    engine.script(say("half"), fail("engine_failed", "it broke"), end=False)
    assert ask(engine, "hi", home=home).returncode == 7
    [[_, answer]] = kept(home)
    assert (answer.message.text(), answer.state, answer.outcome.error) == ("half", "failed", "it broke")


@pytest.mark.parametrize("how", ["-n", "--no-log", "setting"])
def test_nothing_is_kept_where_that_is_not_wanted(engine: FakeEngine, home: Path, how: str) -> None:
    engine.script(say("ok"))
    home.mkdir()
    if how == "setting":
        (home / "settings.toml").write_text("keep_asks = false\n")
    done = ask(engine, *([] if how == "setting" else [how]), "--json", "hi", home=home)
    assert json.loads(done.stdout)["chat"] is None
    assert not (home / "chats").exists()
    # Nor shall the engine keep what it has read.
    extras = engine.requests[-1].localchat
    assert extras is not None
    assert not extras.keep


def test_continuing_sends_what_was_said_with_the_same_settings(engine: FakeEngine, home: Path) -> None:
    engine.script(think("Hm."), say("Red."))
    first = ask(engine, "-m", "m1", "-s", "Be brief.", "--temperature", "0.5", "--json", "A colour?", home=home)
    assert json.loads(first.stdout)["chat"] == 1
    ask(engine, "-c", "Another?", home=home)
    assert sent(engine) == [("system", "Be brief."), ("user", "A colour?"), ("assistant", "Red."), ("user", "Another?")]
    assert engine.requests[-1].messages[2].reasoning_content is None
    assert (engine.requests[-1].model, engine.requests[-1].temperature) == ("m1", 0.5)
    ask(engine, "-c", "-m", "m2", "-s", "", "--temperature", "0", "And?", home=home)
    assert sent(engine)[0] == ("user", "A colour?") and len(sent(engine)) == 5
    assert (engine.requests[-1].model, engine.requests[-1].temperature) == ("m2", 0)
    [path] = kept(home)
    assert [node.message.text() for node in path] == ["A colour?", "Red.", "Another?", "Red.", "And?", "Red."]


def test_a_pipe_continues_too_and_so_does_another_conversation(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "one", home=home)
    ask(engine, "two", home=home)
    ask(engine, "-c", home=home, input="more\n")
    assert sent(engine) == [("user", "two"), ("assistant", "ok"), ("user", "more")]
    ask(engine, "--chat", "1", "back", home=home)
    assert sent(engine) == [("user", "one"), ("assistant", "ok"), ("user", "back")]
    ask(engine, "-c", "-n", "unkept", home=home)
    assert sent(engine)[-1] == ("user", "unkept") and len(sent(engine)) == 5
    assert sorted(len(path) for path in kept(home)) == [4, 4]


def test_a_failed_question_is_not_sent_again(engine: FakeEngine, home: Path) -> None:
    engine.script(fail("engine_failed", "it broke"), end=False)
    ask(engine, "one", home=home)
    ask(engine, "-c", "two", home=home)
    assert sent(engine) == [("user", "two")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-c", "hi"), "there is no earlier question to continue: ask one without -c"),
        (("--chat", "7", "hi"), "no chat has the number 7"),
        (("-c", "--chat", "1", "hi"), "give one of the two"),
        (("--chat", "x", "hi"), "--chat"),
    ],
)
def test_nothing_to_continue(engine: FakeEngine, home: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = ask(engine, *arguments, home=home)
    assert (done.stdout, done.returncode) == ("", 2)
    assert complaint in done.stderr and done.stderr.count("\n") == 1
    assert engine.requests == []


def broken(home: Path, how: str) -> None:
    file = home / "chats" / "chats.db"
    if how == "damaged":
        file.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    elif how == "no database":
        file.write_bytes(b"a text file\n" * 100)
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "newer":
        with closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA user_version = 99")
    elif how == "read-only":
        file.chmod(0o400)
        file.parent.chmod(0o500)


@pytest.mark.parametrize("how", ["damaged", "no database", "a folder", "newer", "read-only"])
def test_trouble_with_the_disk_costs_a_line_and_never_the_answer(engine: FakeEngine, home: Path, how: str) -> None:
    if how == "read-only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    engine.script(say("ok"))
    ask(engine, "hi", home=home)
    broken(home, how)
    done = ask(engine, "hi", home=home)
    assert (done.stdout, done.returncode) == ("ok\n", 0)
    assert done.stderr.startswith("localchat: this question is not kept: ") and done.stderr.count("\n") == 1
    continued = ask(engine, "-c", "hi", home=home)
    assert continued.returncode != 0 and continued.stderr.count("\n") == 1 and "Traceback" not in continued.stderr


@pytest.mark.slow
def test_a_locked_file_costs_a_line_and_never_the_answer(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "hi", home=home)
    with closing(sqlite3.connect(home / "chats" / "chats.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        done = run_cli("ask", "--engine", engine.url, "hi", home=home)
        assert (done.stdout, done.returncode) == ("ok\n", 0)
        assert done.stderr.startswith("localchat: this ") and "is not kept" in done.stderr
        assert done.stderr.count("\n") == 1
        holder.execute("ROLLBACK")
    assert run_cli("chats", "list", "--asks", "--json", home=home).returncode == 0


def test_a_pdf_is_read_and_a_pipe_that_a_shell_opened(engine: FakeEngine, home: Path, tmp_path: Path) -> None:
    from tests.chats.test_attachments import pdf

    engine.script(say("ok"))
    (tmp_path / "a.pdf").write_bytes(pdf("Page text"))
    ask(engine, "-f", str(tmp_path / "a.pdf"), "what?", home=home)
    assert sent(engine) == [("user", "a.pdf:\n```\nPage text\n```\n\nwhat?")]
    script = f'"{sys.executable}" -m localchat ask -n --engine {engine.url} -f <(echo from a command) "what?"'
    environment = {**os.environ, "LOCALCHAT_HOME": str(home)}
    done = subprocess.run(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "from a command\n```\n\nwhat?" in sent(engine)[0][1]


def test_a_fifo_is_refused_and_does_not_hang(engine: FakeEngine, home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/zero"):
        done = ask(engine, "-f", name, "what?", home=home)
        assert done.returncode == 2 and "a device or a pipe" in done.stderr


def test_piped_input_without_end_is_refused(engine: FakeEngine, home: Path) -> None:
    with Path("/dev/zero").open("rb") as endless:
        done = ask(engine, "what?", home=home, stdin=endless)
    assert done.returncode == 2 and "standard input is too large" in done.stderr
