"""`localchat batch` as a script sees it: which lines come out, in which order, what is asked, and what a kill costs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from localchat.cli import batch_output, batch_run
from localchat.cli.main import main
from localchat.protocol import ChatRequest
from tests.conftest import forget_home, is_alive, run_cli, start_cli, status_of, stop_host, wait_for
from tests.fake_engine import FakeEngine, Refuse, Step, finish, say, usage, wait
from tests.terminal import Terminal
from tests.tiny_models import LETTERS, write_model

KEYS = ["id", "line", "text", "reasoning", "model", "finish_reason", "seed", "usage", "timings"]


class EchoEngine(FakeEngine):
    """Answers every prompt with itself; one that begins with "hold" once the test says so (`go` with the prompt)."""

    refusal: Callable[[str], Refuse | None] = staticmethod(lambda prompt: None)

    def _next(self, request: ChatRequest) -> Iterator[Step]:
        self.requests.append(request)
        prompt = request.messages[-1].text()
        if refused := self.refusal(prompt):
            yield refused
            return
        yield from wait(prompt) if prompt.startswith("hold") else []
        yield from [*say(f"so: {prompt}"), *finish(), *usage()]

    def prompts(self) -> list[str]:
        return sorted(request.messages[-1].text() for request in self.requests)


@pytest.fixture
def engine() -> Iterator[EchoEngine]:
    with EchoEngine() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LOCALCHAT_HOME for questions to the fake engine, which need nothing in it."""
    return tmp_path / "home"


def batch(engine: FakeEngine, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: the start of one costs more than most of these batches."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    command = ["localchat", "batch", "--engine", engine.url, *arguments]
    interrupted = signal.getsignal(signal.SIGINT)  # which a command that is over no longer can be
    with (
        patch.object(sys, "argv", command),
        patch.dict(os.environ, LOCALCHAT_HOME=str(home)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        forget_home()
        main()
    signal.signal(signal.SIGINT, interrupted)
    forget_home()
    out.flush()
    return subprocess.CompletedProcess(command, ended.value.code, out.buffer.getvalue().decode(), err.getvalue())


def prompts(folder: Path, *lines: object) -> str:
    """A file with these lines: text as it is, anything else as JSON."""
    file = folder.parent / "prompts.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


def numbered(count: int) -> list[object]:
    return [{"id": number, "prompt": f"p{number}"} for number in range(count)]


def printed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def kept_answers(home: Path) -> int:
    """How many answers are kept in a home."""
    db = sqlite3.connect(home / "batches" / "answers.db")
    try:
        return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # it is only being made
    finally:
        db.close()


# What comes out


def test_every_line_is_answered_by_one_line_in_order(engine: EchoEngine, folder: Path) -> None:
    done = batch(engine, prompts(folder, *numbered(30)), home=folder)
    lines = printed(done.stdout)
    assert [line["text"] for line in lines] == [f"so: p{number}" for number in range(30)]
    assert [(line["id"], line["line"]) for line in lines] == [(number, number + 1) for number in range(30)]
    assert list(lines[0]) == KEYS and lines[0]["seed"] == 7
    assert lines[0]["usage"] == {"prompt_tokens": 24, "cached_tokens": 0, "completion_tokens": 12}
    assert done.returncode == 0
    assert done.stderr.startswith("localchat: 30 answered, 360 tokens in ")


FORMS = {
    "text": ('"hi"', ["hi"]),
    "prompt": ('{"prompt": "hi"}', ["hi"]),
    "system": ('{"prompt": "hi", "system": "be brief"}', ["be brief", "hi"]),
    "messages": ('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}', ["s", "hi"]),
    "openai": (
        '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": '
        '{"model": "x", "user": "me", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}}',
        ["hi"],
    ),
    "nulls": ('{"prompt": "hi", "messages": null, "system": null, "temperature": null}', ["hi"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_line_can_have_several_forms(engine: EchoEngine, folder: Path, form: str) -> None:
    line, asked = FORMS[form]
    done = batch(engine, prompts(folder, line), home=folder)
    assert (done.returncode, printed(done.stdout)[0]["text"]) == (0, "so: hi")
    assert [message.text() for message in engine.requests[0].messages] == asked


def test_what_a_line_says_wins_over_the_options(engine: EchoEngine, folder: Path) -> None:
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "temperature": 0, "seed": 5, "max_tokens": 9, "stop": "x", "system": "t", "thinking": False},
    ]
    options = ("-s", "s", "--temperature", "1", "--max-tokens", "4", "-o", "stop", "y", "-o", "top_k", "3")
    assert batch(engine, prompts(folder, *lines), *options, home=folder).returncode == 0
    first, second = sorted(engine.requests, key=lambda request: request.messages[-1].text())
    assert (first.temperature, first.max_tokens, first.seed, first.stop, first.top_k) == (1, 4, None, ["y"], 3)
    assert (second.temperature, second.max_tokens, second.seed, second.stop, second.top_k) == (0, 9, 5, "x", 3)
    assert [request.messages[0].text() for request in (first, second)] == ["s", "t"]
    assert second.localchat and second.localchat.thinking is False


@pytest.mark.parametrize(("options", "asked"), [((), ["fake-1b", "other"]), (("-m", "mine"), ["mine", "mine"])])
def test_a_model_that_is_typed_answers_all(
    engine: EchoEngine, folder: Path, options: tuple[str, ...], asked: list[str]
) -> None:
    batch(engine, prompts(folder, {"prompt": "a"}, {"prompt": "b", "model": "other"}), *options, home=folder)
    assert sorted(request.model for request in engine.requests) == asked


def test_files_stand_before_every_prompt(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("content\n")
    lines = prompts(folder, '"first"', {"messages": [{"role": "user", "content": "second"}]})
    batch(engine, lines, "-f", str(tmp_path / "a.txt"), home=folder)
    assert engine.prompts() == [f"a.txt:\n```\ncontent\n```\n\n{words}" for words in ("first", "second")]


def test_keys_that_are_not_ours_come_back_with_the_answer(engine: EchoEngine, folder: Path) -> None:
    done = batch(
        engine, prompts(folder, {"id": [1], "prompt": "a", "label": "\x1b[2J\u202e", "n_words": 3}), home=folder
    )
    (line,) = printed(done.stdout)
    assert (line["id"], line["extra"]) == ([1], {"label": "\x1b[2J\u202e", "n_words": 3})
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout


BROKEN = {
    "no json": ("what is this", "not valid JSON"),
    "torn": ('{"prompt": "a', "not valid JSON"),
    "no utf-8": ('"\udcff"', "not valid JSON"),
    "number": ("7", "a prompt in quotes"),
    "list": ('["a"]', "not a list"),
    "deep": ("[" * 50_000 + "]" * 50_000, "nested too deeply"),
    "nothing asked": ('{"id": 1}', "neither a prompt nor messages"),
    "both": ('{"prompt": "a", "messages": []}', "both a prompt and messages"),
    "empty": ('" "', "the prompt is empty"),
    "no messages": ('{"messages": []}', "at least one"),
    "answered": ('{"messages": [{"role": "assistant", "content": "a"}]}', "end with a question"),
    "role": ('{"messages": [{"role": "king", "content": "a"}]}', "messages[0].role"),
    "image": ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages[0].content"),
    "misspelt": ('{"prompt": "a", "temprature": 0}', "did you mean temperature?"),
    "wrong kind": ('{"prompt": "a", "max_tokens": "many"}', "max_tokens: it takes a whole number"),
    "out of range": ('{"prompt": "a", "temperature": -1}', "temperature: it takes a number of at least 0"),
    "other url": ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "only requests to /v1/chat"),
    "model": ('{"prompt": "a", "model": 7}', "model: it takes text"),
}


def test_a_broken_line_fails_alone(engine: EchoEngine, folder: Path) -> None:
    lines = [line for line, _ in BROKEN.values()]
    file = Path(prompts(folder))
    file.write_bytes("\n\n".join([*lines, '"good"']).encode(errors="surrogateescape"))
    done = batch(engine, str(file), home=folder)
    found = printed(done.stdout)
    for (name, (_, said)), line in zip(BROKEN.items(), found, strict=False):
        assert said in line["error"]["message"] and line["error"]["code"] == "invalid_request", name
    assert [line["line"] for line in found] == [*range(1, 2 * len(found), 2)]
    assert found[-1]["text"] == "so: good"
    assert done.returncode == 1
    assert f"1 answered, {len(BROKEN)} failed" in done.stderr
    assert engine.prompts() == ["good"]


def test_a_refusal_fails_its_line_alone(engine: EchoEngine, folder: Path) -> None:
    engine.refusal = lambda prompt: Refuse(400, "context_length_exceeded", "too long") if prompt == "p2" else None
    done = batch(engine, prompts(folder, *numbered(5)), home=folder)
    lines = printed(done.stdout)
    assert [line.get("text") for line in lines] == ["so: p0", "so: p1", None, "so: p3", "so: p4"]
    assert lines[2] == {"id": 2, "line": 3, "error": {"code": "context_length_exceeded", "message": "too long"}}
    assert done.returncode == 1
    assert len(engine.requests) == 5


def test_a_server_that_is_busy_is_asked_again(
    engine: EchoEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "_WAITS_S", (0.0,))
    engine.refusal = lambda prompt: Refuse(429, "busy", "later") if len(engine.requests) == 1 else None
    done = batch(engine, prompts(folder, '"a"'), home=folder)
    assert (done.returncode, engine.prompts()) == (0, ["a", "a"])


def test_a_server_that_is_not_there_ends_the_run(
    engine: EchoEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "_WAITS_S", (0.0,))
    engine.die()
    done = batch(engine, prompts(folder, *numbered(3)), home=folder)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.startswith("localchat: cannot reach http://127.0.0.1:") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["", "\n  \n", "\ufeff\n"], ids=["nothing", "blank", "mark"])
def test_no_lines_are_no_error(engine: EchoEngine, folder: Path, content: str) -> None:
    file = Path(prompts(folder))
    file.write_text(content)
    done = batch(engine, str(file), home=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "localchat: 0 answered\n")


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(engine: EchoEngine, folder: Path) -> None:
    done = run_cli("batch", "--engine", engine.url, home=folder, input='\ufeff"a"\r\n"b"')
    assert [line["text"] for line in printed(done.stdout)] == ["so: a", "so: b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "there is no file none.jsonl"),
        (["/"], "is a folder"),
        (["-", "-f", "-"], "both the prompts and a file"),
        (["-o", "temprature", "1"], "did you mean temperature?"),
        (["--parallel", "0"], "--parallel"),
        (["a", "b"], "unexpected extra argument"),
        (["--output", "/none/answers.jsonl"], "cannot write /none/answers.jsonl"),
        (["--output", "/dev/full"], "is no plain file"),
    ],
    ids=["missing", "folder", "two stdin", "option", "parallel", "arguments", "output", "device"],
)
def test_what_cannot_be_asked_for_is_one_sentence(
    engine: EchoEngine, folder: Path, arguments: list[str], said: str
) -> None:
    done = batch(engine, *arguments, home=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_utf_16_is_refused_with_the_way_out(engine: EchoEngine, folder: Path) -> None:
    file = Path(prompts(folder))
    file.write_bytes('"a"\n'.encode("utf-16"))
    done = batch(engine, str(file), home=folder)
    assert done.returncode == 2 and "iconv" in done.stderr


def test_prompts_at_a_terminal_are_a_mistake(folder: Path) -> None:
    terminal = Terminal("batch", home=folder)
    assert terminal.end() == 2
    assert b"there are no prompts" in terminal.output


# Side by side


def test_answers_leave_in_order_however_they_come(engine: EchoEngine, folder: Path) -> None:
    running = start_cli(
        "batch", "--engine", engine.url, "--parallel", "2", prompts(folder, '"hold"', *numbered(5)), home=folder
    )
    assert running.stdout
    wait_for(lambda: (folder / "batches" / "answers.db").exists() and kept_answers(folder) == 5)
    # And yet nothing of them was printed.
    os.set_blocking(running.stdout.fileno(), False)
    assert running.stdout.read() is None
    os.set_blocking(running.stdout.fileno(), True)
    engine.go("hold")
    out, _ = running.communicate(timeout=30)
    assert [line["line"] for line in printed(out.decode())] == [1, 2, 3, 4, 5, 6]


def test_as_completed_waits_for_nobody(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, '"hold"', *numbered(5))
    running = start_cli("batch", "--engine", engine.url, "--as-completed", lines, home=folder)
    assert running.stdout
    early = sorted(json.loads(running.stdout.readline())["line"] for _ in range(5))
    engine.go("hold")
    out, _ = running.communicate(timeout=30)
    assert (early, json.loads(out)["line"]) == ([2, 3, 4, 5, 6], 1)


def test_no_more_are_asked_at_a_time_than_was_said(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, *[f'"hold {number}"' for number in range(9)])
    running = start_cli("batch", "--engine", engine.url, "--parallel", "3", lines, home=folder)
    for number in range(9):
        wait_for(lambda: len(engine.requests) == min(9, number + 3))  # noqa: B023
        engine.go(f"hold {number}")
    assert running.wait(timeout=30) == 0
    assert len(engine.requests) == 9


def test_lines_are_answered_while_more_are_to_come(engine: EchoEngine, folder: Path) -> None:
    running = start_cli("batch", "--engine", engine.url, home=folder, stdin=subprocess.PIPE)
    assert running.stdin and running.stdout
    for word in ("a", "b"):
        running.stdin.write(f'"{word}"\n'.encode())
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["text"] == f"so: {word}"
    running.stdin.close()
    assert running.wait(timeout=30) == 0


def test_a_person_sees_how_far_it_is(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    lines, out = prompts(folder, *numbered(3), "broken", '"hold"'), tmp_path / "answers"
    command = f'"{sys.executable}" -m localchat batch --engine {engine.url} "{lines}" > "{out}"'
    terminal = Terminal(home=folder, command=["bash", "-c", command])
    terminal.read_until("4 of 5, 1 failed, ")
    engine.go("hold")
    assert terminal.end() == 1
    assert "4 answered, 1 failed" in terminal.screen() and "of 5" not in terminal.screen()


# Broken off, and going on


def cut_short(engine: EchoEngine, home: Path, *options: str, until: Callable[[], bool] = lambda: True) -> list[str]:
    """Run a batch of eight lines of which the third and the last two hold, until all are asked, the others are answered
    and `until` is true; kill it. Returns the arguments of the command.
    """
    words = ["p0", "p1", "hold 2", "p3", "p4", "p5", "hold 6", "hold 7"]
    lines = prompts(home, *[{"id": word, "prompt": word} for word in words])
    arguments = ["batch", "--engine", engine.url, lines, *options]
    running = start_cli(*arguments, home=home)
    wait_for(lambda: (home / "batches" / "answers.db").exists() and kept_answers(home) == 5)
    wait_for(lambda: len(engine.requests) == 8 and until())
    running.kill()
    running.wait(timeout=60)
    return arguments


@pytest.mark.parametrize("options", [(), ("--as-completed",)], ids=["ordered", "as completed"])
def test_after_a_kill_only_what_is_missing_is_asked(engine: EchoEngine, folder: Path, options: tuple[str, ...]) -> None:
    arguments = cut_short(engine, folder, *options)
    engine.requests.clear()
    for number in (2, 6, 7):
        engine.go(f"hold {number}")
    done = run_cli(*arguments, home=folder)
    lines = printed(done.stdout)
    assert sorted(line["line"] for line in lines) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(line["text"] == f"so: {line['id']}" for line in lines)
    assert engine.prompts() == ["hold 2", "hold 6", "hold 7"]
    assert (done.returncode, "8 answered (5 of them before)" in done.stderr) == (0, True)


def test_kept_answers_follow_what_is_asked_and_not_where_it_stands(engine: EchoEngine, folder: Path) -> None:
    cut_short(engine, folder)
    engine.requests.clear()
    lines = [{"id": "new", "prompt": "p5"}, {"prompt": "p0", "label": 1}, {"prompt": "p1", "temperature": 0}]
    done = batch(engine, prompts(folder, *lines), home=folder)
    assert [(line["id"], line["line"], line["text"]) for line in printed(done.stdout)] == [
        ("new", 1, "so: p5"),
        (None, 2, "so: p0"),
        (None, 3, "so: p1"),
    ]
    assert engine.prompts() == ["p1"]  # another temperature is another question
    assert kept_answers(folder) == 3  # those of the batch that is not finished


def test_other_options_are_other_questions(engine: EchoEngine, folder: Path) -> None:
    cut_short(engine, folder)
    for option in (("--seed", "1"), ("-s", "be brief"), ("-m", "other")):
        engine.requests.clear()
        batch(engine, prompts(folder, '"p0"'), *option, home=folder)
        assert engine.prompts() == ["p0"], option


def test_the_same_question_twice_is_asked_twice(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, *[{"id": "same", "prompt": "p"}] * 3, {"id": "bad"})
    done = batch(engine, lines, home=folder)
    assert [(line["id"], line["line"]) for line in printed(done.stdout)] == [
        ("same", 1),
        ("same", 2),
        ("same", 3),
        ("bad", 4),
    ]
    assert len(engine.requests) == 3
    again = batch(engine, lines, home=folder)  # one line failed, so the others are kept
    assert (again.stdout, len(engine.requests)) == (done.stdout, 3)


def test_a_finished_batch_leaves_nothing(engine: EchoEngine, folder: Path) -> None:
    for _ in range(2):
        assert batch(engine, prompts(folder, '"a"'), home=folder).returncode == 0
        assert kept_answers(folder) == 0
    assert len(engine.requests) == 2
    assert sorted(path.name for path in (folder / "batches").iterdir() if path.stat().st_size) == ["answers.db"]


def test_what_is_kept_is_the_persons_alone(engine: EchoEngine, folder: Path) -> None:
    cut_short(engine, folder)
    assert (folder / "batches").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (folder / "batches").iterdir()} == {0o600}


def test_no_log_keeps_nothing_and_takes_nothing(engine: EchoEngine, folder: Path) -> None:
    cut_short(engine, folder)
    engine.requests.clear()
    done = batch(engine, "-n", prompts(folder, '"p0"', "broken"), home=folder)
    assert (done.returncode, engine.prompts(), kept_answers(folder)) == (1, ["p0"], 5)
    assert engine.requests[0].localchat and engine.requests[0].localchat.keep is False
    other = folder / "other"
    batch(engine, "-n", prompts(folder, '"p0"'), home=other)
    assert not other.exists()


def test_prune_shows_and_removes_what_is_kept(engine: EchoEngine, folder: Path) -> None:
    cut_short(engine, folder)
    shown = run_cli("prune", home=folder)
    assert shown.stdout.startswith("unfinished batch") and shown.stdout.endswith("batches/answers.db\n")
    assert kept_answers(folder) == 5
    assert run_cli("prune", "--yes", home=folder).stdout.endswith(" freed.\n")
    assert not list((folder / "batches").iterdir())
    assert run_cli("prune", home=folder).stdout == "There is nothing to remove.\n"


def test_prune_leaves_a_running_batch_alone(engine: EchoEngine, folder: Path) -> None:
    running = start_cli("batch", "--engine", engine.url, prompts(folder, '"a"', '"hold"'), home=folder)
    wait_for(lambda: (folder / "batches").exists() and kept_answers(folder) == 1)
    assert run_cli("prune", "--yes", home=folder).stdout == "There is nothing to remove.\n"
    engine.go("hold")
    assert running.wait(timeout=30) == 0


def test_answers_that_nobody_came_back_for_go(engine: EchoEngine, folder: Path) -> None:
    import sqlite3

    cut_short(engine, folder)
    db = sqlite3.connect(folder / "batches" / "answers.db")
    db.execute("UPDATE answers SET kept = kept - 31 * 86400 WHERE line < 3")
    db.commit()
    db.close()
    batch(engine, prompts(folder, '"other"'), home=folder)
    assert kept_answers(folder) == 3


@pytest.mark.parametrize(
    "damage", [b"", b"SQLite format 3\0 and then nothing", b"x" * 5000], ids=["empty", "cut", "else"]
)
def test_kept_answers_that_are_damaged_cost_no_more_than_themselves(
    engine: EchoEngine, folder: Path, damage: bytes
) -> None:
    cut_short(engine, folder)
    (folder / "batches" / "answers.db").write_bytes(damage)
    done = batch(engine, prompts(folder, '"p0"'), home=folder)
    assert (done.returncode, printed(done.stdout)[0]["text"]) == (0, "so: p0")
    assert kept_answers(folder) == 0


def test_where_nothing_can_be_kept_it_is_said(engine: EchoEngine, folder: Path) -> None:
    folder.mkdir()
    (folder / "batches").write_text("in the way")
    done = batch(engine, prompts(folder, '"a"'), home=folder)
    assert (done.returncode, printed(done.stdout)[0]["text"]) == (0, "so: a")
    assert "answers cannot be kept" in done.stderr


def test_ctrl_c_says_how_far_it_is_and_how_to_go_on(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, *numbered(3), '"hold"')
    running = start_cli("batch", "--engine", engine.url, lines, home=folder)
    assert running.stdout and running.stderr
    for _ in range(3):
        running.stdout.readline()
    wait_for(lambda: len(engine.requests) == 4)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, b"")
    assert err == b"localchat: stopped at 3 of 4: the same command goes on from there\n"
    assert engine.closed_early.wait(60)


def test_ctrl_c_while_lines_are_awaited(engine: EchoEngine, folder: Path) -> None:
    running = start_cli("batch", "--engine", engine.url, home=folder, stdin=subprocess.PIPE)
    assert running.stdin and running.stdout
    running.stdin.write(b'"a"\n')
    running.stdin.flush()
    assert running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert running.stderr and running.stderr.read() == b"localchat: stopped at 1: the same command goes on from there\n"


def test_a_reader_that_has_enough_ends_it_quietly(engine: EchoEngine, folder: Path) -> None:
    running = start_cli("batch", "--engine", engine.url, prompts(folder, *numbered(3), '"hold"', '"x"'), home=folder)
    assert running.stdout and running.stderr
    running.stdout.readline()
    running.stdout.close()
    engine.go("hold")
    assert (running.wait(timeout=30), running.stderr.read()) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_no_answer(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, '"a"')
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        running = start_cli("batch", "--engine", engine.url, lines, home=folder, stdout=full)
        assert running.wait(timeout=30) == 1
    assert running.stderr
    said = running.stderr.read().decode()
    assert "cannot write the answers (No space left on device)" in said and "Traceback" not in said
    done = batch(engine, lines, home=folder)
    assert (printed(done.stdout)[0]["text"], len(engine.requests)) == ("so: a", 1)


def test_a_closed_standard_output_is_named(engine: EchoEngine, folder: Path) -> None:
    shell = 'exec "$@" >&-'
    command = [sys.executable, "-m", "localchat", "batch", "--engine", engine.url, prompts(folder, '"a"')]
    environment = {**os.environ, "LOCALCHAT_HOME": str(folder)}
    done = subprocess.run(["sh", "-c", shell, "sh", *command], env=environment, capture_output=True, timeout=30)
    assert (done.returncode, b"standard output is closed" in done.stderr) == (1, True), done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
def test_a_run_that_was_stopped_for_a_while_goes_on(engine: EchoEngine, folder: Path) -> None:
    lines = prompts(folder, *numbered(3), '"hold"')
    running = start_cli("batch", "--engine", engine.url, lines, home=folder)
    assert running.stdout
    for _ in range(3):
        running.stdout.readline()
    running.send_signal(signal.SIGSTOP)
    engine.go("hold")
    running.send_signal(signal.SIGCONT)
    out, _ = running.communicate(timeout=30)
    assert (json.loads(out)["text"], running.returncode) == ("so: hold", 0)


# Into a file


def test_a_file_goes_on_where_it_was_torn(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    answers, lines = tmp_path / "answers.jsonl", prompts(folder, *numbered(6))
    arguments = (lines, "--output", str(answers), "-n")
    assert batch(engine, *arguments, home=folder).returncode == 0
    whole = answers.read_bytes()
    starts = [0, *[at + 1 for at, byte in enumerate(whole) if byte == 10]]
    for cut, asked in ((0, 6), (starts[2], 4), (starts[2] - 1, 5), (starts[3] + 20, 3), (starts[6], 0)):
        answers.write_bytes(whole[:cut])
        engine.requests.clear()
        done = batch(engine, *arguments, home=folder)
        assert (done.returncode, answers.read_bytes(), len(engine.requests)) == (0, whole, asked), cut
    assert done.stdout == ""


def test_a_line_that_changed_in_the_middle_costs_only_itself(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    lines: list[Any] = numbered(6)
    batch(engine, prompts(folder, *lines), "--output", str(answers), home=folder)
    engine.requests.clear()
    lines[2] = {"id": 2, "prompt": "other"}
    lines[4] = {"id": "renamed", "prompt": "p4"}
    del lines[5]
    batch(engine, prompts(folder, *lines), "--output", str(answers), home=folder)
    found = printed(answers.read_text())
    assert [line["id"] for line in found] == [0, 1, 2, 3, "renamed"]
    assert [line["text"] for line in found] == ["so: p0", "so: p1", "so: other", "so: p3", "so: p4"]
    assert engine.prompts() == ["other"]


@pytest.mark.parametrize("options", [(), ("--as-completed",)], ids=["ordered", "as completed"])
def test_in_a_file_failed_lines_are_asked_again(
    engine: EchoEngine, folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = (prompts(folder, *numbered(4)), "--output", str(answers), *options)
    engine.refusal = lambda prompt: Refuse(400, "does_not_fit", "no") if prompt == "p1" else None
    assert batch(engine, *arguments, home=folder).returncode == 1
    engine.refusal = lambda prompt: None
    engine.requests.clear()
    assert batch(engine, *arguments, home=folder).returncode == 0
    found = printed(answers.read_text())
    assert sorted(line["text"] for line in found) == ["so: p0", "so: p1", "so: p2", "so: p3"]
    assert options or [line["line"] for line in found] == [1, 2, 3, 4]
    assert engine.prompts() == ["p1"]


def test_a_kill_leaves_a_file_that_goes_on(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = cut_short(
        engine, folder, "--output", str(answers), until=lambda: answers.read_bytes().count(b"\n") == 2
    )
    assert [line["line"] for line in printed(answers.read_text())] == [1, 2]
    engine.requests.clear()
    for number in (2, 6, 7):
        engine.go(f"hold {number}")
    assert run_cli(*arguments, home=folder).returncode == 0
    assert [line["line"] for line in printed(answers.read_text())] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert engine.prompts() == ["hold 2", "hold 6", "hold 7"]


@pytest.mark.parametrize("options", [(), ("-n",), ("-n", "--as-completed")], ids=["kept", "-n", "-n as completed"])
def test_answers_behind_a_failed_line_outlast_a_kill(
    engine: EchoEngine, folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The file is cut before them: until they are printed again they must be on disk elsewhere, whatever is kept."""
    answers = tmp_path / "answers.jsonl"
    words = ["hold 0", *(f"p{number}" for number in range(6))]
    arguments = (prompts(folder, *[{"id": word, "prompt": word} for word in words]), "--output", str(answers), *options)
    engine.refusal = lambda prompt: Refuse(400, "does_not_fit", "no") if prompt == "hold 0" else None
    assert batch(engine, *arguments, home=folder).returncode == 1
    engine.refusal = lambda prompt: None
    engine.requests.clear()
    running = start_cli("batch", "--engine", engine.url, *arguments, home=folder)
    wait_for(lambda: engine.requests)
    running.kill()
    running.wait()
    engine.requests.clear()
    engine.go("hold 0")
    assert batch(engine, *arguments, home=folder).returncode == 0
    assert engine.prompts() == ["hold 0"]
    assert sorted(line["id"] for line in printed(answers.read_text())) == sorted(words)
    assert not answers.with_name("answers.jsonl.rest").exists()


FOREIGN = (
    '{"text": "mine"}\n',
    "hello\nworld\n",
    "hello",
    '{"text": "mine"}',
    '{"id":7}',
    '{"id":"a","name":"b"',
    "[",
    " {",
)


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("options", [(), ("--as-completed",)], ids=["ordered", "as completed"])
def test_a_file_with_something_else_in_it_is_not_touched(
    engine: EchoEngine, folder: Path, tmp_path: Path, options: tuple[str, ...], content: str
) -> None:
    precious = tmp_path / "notes.jsonl"
    precious.write_text(content)
    done = batch(engine, prompts(folder, '"a"'), "--output", str(precious), *options, home=folder)
    assert (done.returncode, precious.read_text()) == (2, content)
    assert "line 1, is not from `localchat batch`" in done.stderr


@pytest.mark.parametrize(
    "name", [None, 7, -7, 1.5, True, [1, {"a": "b"}], {"doc": 1}, "a", 'quoted "twice" \\ and more', "é"]
)
def test_a_line_torn_anywhere_is_one_of_ours(engine: EchoEngine, folder: Path, tmp_path: Path, name: object) -> None:
    answers, lines = (
        tmp_path / "answers.jsonl",
        prompts(folder, {"id": name, "prompt": "p"} if name is not None else '"p"'),
    )
    batch(engine, lines, "--output", str(answers), "-n", home=folder)
    whole = answers.read_bytes()
    assert all(batch_output._TORN.fullmatch(whole[:cut]) for cut in range(1, len(whole)))


def test_a_file_that_is_finished_leaves_nothing_else(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = cut_short(engine, folder, "--output", str(answers))
    for number in (2, 6, 7):
        engine.go(f"hold {number}")
    assert run_cli(*arguments, home=folder).returncode == 0
    assert kept_answers(folder) == 0
    # A line that failed: the others' answers are in the file and elsewhere, until all is answered.
    engine.refusal = lambda prompt: Refuse(400, "does_not_fit", "no") if prompt == "p1" else None
    other = (prompts(folder, *numbered(4)), "--output", str(tmp_path / "others.jsonl"))
    assert batch(engine, *other, home=folder).returncode == 1
    engine.refusal = lambda prompt: None
    assert batch(engine, *other, home=folder).returncode == 0
    assert kept_answers(folder) == 0


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "answers"])
@pytest.mark.parametrize("options", [(), ("--as-completed",)], ids=["ordered", "as completed"])
def test_prompts_are_not_overwritten_by_their_answers(
    engine: EchoEngine, folder: Path, tmp_path: Path, options: tuple[str, ...], is_empty: bool
) -> None:
    lines = tmp_path / "both.jsonl"
    lines.touch()
    if not is_empty:
        batch(engine, prompts(folder, '"a"'), "--output", str(lines), home=folder)
    before = lines.read_bytes()
    done = batch(engine, str(lines), "--output", str(lines), *options, home=folder)
    assert done.returncode == 2 and "overwrite the prompts" in done.stderr
    assert (lines.read_bytes(), before == b"") == (before, is_empty)


def test_two_runs_do_not_write_one_file(engine: EchoEngine, folder: Path, tmp_path: Path) -> None:
    arguments = (prompts(folder, '"hold"'), "--output", str(tmp_path / "answers.jsonl"))
    running = start_cli("batch", "--engine", engine.url, *arguments, home=folder)
    wait_for(lambda: engine.requests)
    done = batch(engine, *arguments, home=folder)
    assert done.returncode == 2 and "another batch writes to" in done.stderr
    engine.go("hold")
    assert running.wait(timeout=30) == 0


# With this machine's own engine


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks until it is told to stop, in a window of 512 tokens; each byte of a text is one token."""
    path = tmp_path_factory.mktemp("talker") / "talker.gguf"
    return write_model(path, speaks=LETTERS, context=512, layers=2, width=64)


def test_the_starter_answers_side_by_side(warm: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"Name a colour that begins with {letter}.", "max_tokens": 6} for letter in "ABCDEFGH"]
    done = run_cli("batch", prompts(tmp_path / "x", *lines), "--temperature", "0", home=warm)
    found = printed(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [line["line"] for line in found] == [*range(1, 9)]
    assert {line["model"] for line in found} == {"smollm2-135m"}
    assert all(line["text"] and 0 < line["usage"]["completion_tokens"] <= 6 for line in found)
    assert found[0]["timings"]["total_ms"] > 0


def test_a_prompt_that_is_too_long_fails_alone(empty_home: Path, talker: Path, tmp_path: Path) -> None:
    lines = prompts(tmp_path / "x", '"a"', json.dumps("long " * 200), '"b"', {"prompt": "c", "model": "no-such"})
    done = run_cli("batch", lines, "-m", str(talker), "--max-tokens", "4", home=empty_home)
    found = printed(done.stdout)
    assert [line.get("error", {}).get("code") for line in found] == [None, "context_length_exceeded", None, None]
    assert done.returncode == 1
    named = run_cli("batch", home=empty_home, input='{"prompt": "c", "model": "no-such"}')
    assert printed(named.stdout)[0]["error"]["code"] == "model_not_found"


def test_an_engine_that_is_killed_costs_no_line(empty_home: Path, talker: Path, tmp_path: Path) -> None:
    lines = prompts(tmp_path / "x", *[f'"{letter}"' for letter in "abcdef"])
    running = start_cli("batch", lines, "-m", str(talker), "--max-tokens", "300", home=empty_home)
    status = wait_for(
        lambda: (found := status_of(empty_home)) and (found.get("active") or found.get("answered")) and found
    )
    os.kill(status["pid"], signal.SIGKILL)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert [line["usage"]["completion_tokens"] for line in printed(out.decode())] == [300] * 6
    wait_for(lambda: not is_alive(status["pid"]))


def test_a_batch_that_is_killed_leaves_the_engine_idle(empty_home: Path, tmp_path: Path) -> None:
    endless = write_model(tmp_path / "endless.gguf", speaks=LETTERS, context=1 << 16, layers=4, width=256)
    lines = prompts(tmp_path / "x", *[f'"{letter}"' for letter in "abcdef"])
    running = start_cli("batch", lines, "-m", str(endless), "--max-tokens", "30000", home=empty_home)
    wait_for(lambda: (status := status_of(empty_home)) and status.get("active"))
    running.kill()
    running.wait()
    idle = wait_for(lambda: (status := status_of(empty_home)) and not status.get("active") and status)
    assert not idle.get("answered"), "none was answered to its end"
    stop_host(empty_home)


def test_a_model_that_is_no_model_ends_the_run(empty_home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    done = run_cli("batch", "-m", str(broken), home=empty_home, input='"a"\n"b"\n')
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.count("\n") == 1


def test_a_torn_line_swallows_no_answer_that_is_saved_after_it(
    engine: EchoEngine, folder: Path, tmp_path: Path
) -> None:
    answers, words = tmp_path / "answers.jsonl", ["hold 0", "p1", "p2"]
    rest = answers.with_name("answers.jsonl.rest")
    lines = prompts(folder, *[{"id": word, "prompt": word} for word in words])
    arguments = (lines, "--output", str(answers), "-n")
    engine.refusal = lambda prompt: Refuse(400, "does_not_fit", "no") if prompt == "hold 0" else None
    assert batch(engine, *arguments, home=folder).returncode == 1
    engine.refusal = lambda prompt: None
    # A kill tore what was saved, and then what is to be saved.
    whole = answers.read_bytes()
    rest.write_bytes(whole.splitlines()[1][:40])
    answers.write_bytes(whole + whole[:40])
    running = start_cli("batch", "--engine", engine.url, *arguments, home=folder)
    wait_for(lambda: rest.stat().st_size > len(whole))
    running.kill()
    running.wait()
    assert rest.read_bytes() == whole.splitlines()[1][:40] + b"\n" + whole + whole[:40]
    answers.write_bytes(whole)
    engine.requests.clear()
    engine.go("hold 0")
    assert batch(engine, *arguments, home=folder).returncode == 0
    assert engine.prompts() == ["hold 0"]
    assert [line["id"] for line in printed(answers.read_text())] == words
    assert not rest.exists()
