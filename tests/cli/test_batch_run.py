"""A batch with engines that do what real ones do rarely (die of one prompt, vanish, take long), and with many lines."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localchat.chats.records import ChatSettings
from localchat.cli import batch_journal, batch_run
from localchat.cli.batch_journal import Journal
from localchat.cli.batch_lines import Form, Line, Model
from localchat.cli.batch_run import Run
from localchat.cli.progress import ProgressLine
from localchat.errors import EngineFailed
from localchat.paths import paths
from localchat.protocol import ChatRequest, Completion, CompletionChoice, CompletionMessage


class LocalEngine:
    """An engine in this process; `answer_to` says what happens with a prompt."""

    is_local = True

    def __init__(self, answer_to: Callable[[str], str]) -> None:
        self.asked: list[str] = []
        self.most = 0
        self._answer_to = answer_to
        self._active = 0
        self._lock = threading.Lock()

    def answer(self, request: ChatRequest) -> Completion:
        prompt = request.messages[-1].text()
        with self._lock:
            self.asked.append(prompt)
            self._active += 1
            self.most = max(self.most, self._active)
        try:
            message = CompletionMessage(self._answer_to(prompt))
            return Completion(id="", created=0, model="m", choices=[CompletionChoice(message, "stop")])
        finally:
            with self._lock:
                self._active -= 1


class Collected:
    """Answers, as they leave."""

    with_keys = shares_screen = False

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def has(self, line: Line) -> bool:
        return False

    def write(self, answer: bytes) -> None:
        self.raw.append(answer)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in b"".join(self.raw).splitlines()]


def nothing() -> None:
    pass


def a_run(
    engine: LocalEngine, output: Collected, *, prepare: Callable[[], None] = nothing, keeps: bool = False, **more: Any
) -> tuple[Run, Journal]:
    resolve = {"": Model("m", "identity")}.__getitem__
    journal = Journal(print, keeps=keeps)
    form = Form(ChatSettings(), [], resolve, where="", model_wins=True, keep=True)
    options = {"parallel": 4, "ordered": True, **more}
    return Run(engine, form, journal, output, ProgressLine(), prepare, **options), journal  # type: ignore[arg-type]


def lines(count: int) -> io.BytesIO:
    return io.BytesIO(b"".join(b'"p%d"\n' % number for number in range(count)))


def test_of_those_beside_a_prompt_that_kills_the_engine_none_is_lost() -> None:
    crashed = threading.Condition()
    crashes = 0

    def dies_of_p5(prompt: str) -> str:
        nonlocal crashes
        with crashed:
            before = crashes
            if prompt == "p5":
                crashed.wait(0.05)
                crashes += 1
                crashed.notify_all()
                raise EngineFailed("it died")
            if crashed.wait_for(lambda: crashes > before, 0.02):
                raise EngineFailed("it died beside me")
        return prompt

    engine, output = LocalEngine(dies_of_p5), Collected()
    run, _ = a_run(engine, output)
    run.follow(lines(12))
    assert [line.get("text") for line in output.lines] == [None if n == 5 else f"p{n}" for n in range(12)]
    assert output.lines[5]["error"] == {"code": "engine_failed", "message": "it died"}
    assert engine.asked.count("p5") == 3
    assert all(engine.asked.count(f"p{number}") <= 2 for number in range(12) if number != 5)


def test_without_an_engine_the_run_ends_with_its_reason() -> None:
    def die(prompt: str) -> str:
        raise EngineFailed("it died")

    def gone_after_all() -> None:
        starts.append(1)
        if len(starts) > 1:
            raise EngineFailed("it cannot start")

    starts: list[int] = []
    engine, output = LocalEngine(die), Collected()
    run, _ = a_run(engine, output, prepare=gone_after_all)
    with pytest.raises(EngineFailed, match="it cannot start"):
        run.follow(lines(1000))
    assert len(engine.asked) < 10 and not output.raw


def test_no_more_lines_are_read_than_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "_WAITING_LINES", 50)
    go = threading.Event()

    def first_one_takes_long(prompt: str) -> str:
        if prompt == "p0":
            go.wait(20)
        return prompt

    def look() -> None:
        deadline = time.monotonic() + 20
        while len(engine.asked) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # for what must not come
        seen.extend([len(engine.asked), len(output.raw)])
        go.set()

    seen: list[int] = []
    engine, output = LocalEngine(first_one_takes_long), Collected()
    run, _ = a_run(engine, output)
    watching = threading.Thread(target=look)
    watching.start()
    run.follow(lines(2000))
    watching.join()
    assert 50 <= seen[0] <= 50 + 4 * batch_run._AHEAD and seen[1] == 0
    assert [line["text"] for line in output.lines] == [f"p{number}" for number in range(2000)]


def test_no_more_are_asked_at_a_time_than_was_said() -> None:
    together = threading.Barrier(3)

    def first_ones_meet(prompt: str) -> str:
        if prompt in ("p0", "p1", "p2"):
            together.wait(60)
        return prompt

    engine, output = LocalEngine(first_ones_meet), Collected()
    run, _ = a_run(engine, output, parallel=3)
    run.follow(lines(30))
    assert engine.most == 3 and len(output.lines) == 30


def test_an_error_that_nobody_foresaw_fails_its_line_alone() -> None:
    def stumble(prompt: str) -> str:
        return prompt if prompt != "p1" else str(1 / 0)

    engine, output = LocalEngine(stumble), Collected()
    run, _ = a_run(engine, output)
    run.follow(lines(3))
    assert [line.get("text") for line in output.lines] == ["p0", None, "p2"]
    assert engine.asked.count("p1") == 3


def test_a_clock_that_jumps_back_takes_nothing_away(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for moment in (now, now - 400 * 86400, now + 20 * 86400):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        journal = Journal(print, keeps=True)
        journal.keep(b"k", 1, b"answer")
        journal.close(finished=False)
    monkeypatch.setattr(time, "time", lambda: now + 25 * 86400)
    journal = Journal(print, keeps=True)
    assert [journal.take(b"k", 1), journal.take(b"k", 1), journal.take(b"k", 1)] == [b"answer", b"answer", None]
    journal.close(finished=True)


def test_of_two_runs_at_once_none_takes_the_others_answers(empty_home: Path) -> None:
    first, second = Journal(print, keeps=True), Journal(print, keeps=True)
    first.keep(b"k", 1, b"mine")
    first.save()
    assert second.take(b"k", 1) is None
    first.close(finished=False)
    second.keep(b"k", 1, b"another")
    second.save()
    third = Journal(print, keeps=True)
    assert (third.take(b"k", 1), third.take(b"k", 1)) == (b"mine", None)
    third.close(finished=True)
    second.close(finished=False)
    last = Journal(print, keeps=True)
    assert (last.take(b"k", 1), last.take(b"k", 1)) == (b"another", None)
    last.close(finished=True)


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.slow
def test_a_hundred_thousand_lines_take_no_more_memory_than_some(empty_home: Path) -> None:
    count = 100_000

    class Counted(Collected):
        lines_written = 0

        def write(self, answer: bytes) -> None:
            for one in answer.splitlines():
                self.lines_written += 1
                assert b'"line":%d,' % self.lines_written in one

    def follow(engine: LocalEngine, number: int) -> int:
        output = Counted()
        run, journal = a_run(engine, output, keeps=True)
        run.follow(lines(number))
        journal.close(finished=False)
        return output.lines_written

    engine = LocalEngine(lambda prompt: "word " * 100)
    assert follow(engine, 5_000) == 5_000
    before = most_memory()
    assert follow(engine, count) == count
    again = LocalEngine(lambda prompt: "never")
    assert (follow(again, count), again.asked) == (count, [])
    assert most_memory() - before < 40 << 20


def test_a_finished_run_leaves_nothing_in_a_file_that_it_lost(
    empty_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_off = Journal(print, keeps=True)
    for line in range(1, 6):
        broken_off.keep(bytes([line]), line, b"an old answer")
    broken_off.close(finished=False)
    other = Journal(print, keeps=True)  # of another batch, that is running
    other.keep(bytes([3]), 3, b"not this run's")
    other.save()

    run = Journal(print, keeps=True)
    assert run.take(bytes([1]), 1) == b"an old answer"
    run.keep(bytes([9]), 9, b"a new answer")
    run.save()
    run._db.execute("PRAGMA max_page_count = 1")
    run.keep(bytes([8]), 8, bytes(1 << 20))
    run.save()
    assert "not kept from here on (database or disk is full)" in capsys.readouterr().out
    assert run.take(bytes([2]), 2) is None, "it is asked again"
    assert run.take(bytes([3]), 3) is None
    run.close(finished=True)
    other.close(finished=False)
    assert capsys.readouterr().out == ""

    later = Journal(print, keeps=True)
    assert [later.take(bytes([line]), line) for line in (1, 2, 9, 8)] == [None] * 4
    assert later.take(bytes([3]), 3) == b"not this run's"
    assert later.take(bytes([4]), 4) == later.take(bytes([5]), 5) == b"an old answer", "of questions not in that run"
    later.close(finished=True)


def test_answers_that_a_finished_run_cannot_remove_are_named(
    empty_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_off = Journal(print, keeps=True)
    broken_off.keep(b"k", 1, b"an old answer")
    broken_off.close(finished=False)
    for lose in (True, False):
        run = Journal(print, keeps=True)
        assert run.take(b"k", 1) == b"an old answer"
        if lose:
            run._db.execute("PRAGMA max_page_count = 1")
            run.keep(b"l", 2, bytes(1 << 20))
        with contextlib.closing(sqlite3.connect(paths().batches / "answers.db", isolation_level=None)) as busy:
            run._db.execute("PRAGMA busy_timeout = 1")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(batch_journal, "_PATIENCE_S", 0.01)
                busy.execute("BEGIN EXCLUSIVE")
                run.close(finished=True)
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 1 + lose
        assert "cannot be removed (database is locked)" in said[-1] and "`localchat prune` removes it" in said[-1]
