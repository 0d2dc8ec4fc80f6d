"""Partials: what is kept after a crash, whatever it left; the journal, the spans and the tasks below them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from localchat.errors import Interrupted
from localchat.models.transfer.journal import Journal, Unit
from localchat.models.transfer.partial import Partial, Pin
from localchat.models.transfer.spans import Spans
from localchat.models.transfer.tasks import Tasks

CONTENT = random.Random(7).randbytes(5_000_000)
PIN = Pin(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def opened(folder: Path, pin: Pin = PIN) -> Partial:
    partial = Partial(folder / "x.gguf", pin)
    partial.open(lambda _: None, None)
    return partial


def write(partial: Partial, *spans: tuple[int, int]) -> None:
    for start, end in spans:
        partial.write(start, CONTENT[start:end])


def test_bytes_may_come_in_any_order(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    cuts = [0, 1, 1_000_000, 1_700_000, 3_000_000, 4_999_999, 5_000_000]
    spans = list(pairwise(cuts))
    random.Random(1).shuffle(spans)
    for number, span in enumerate(spans):
        assert not partial.complete
        write(partial, span)
        assert partial.done == sum(end - start for start, end in spans[: number + 1])
    assert partial.complete and partial.matches and partial.sha256 == PIN.sha256
    partial.discard()
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(first, (0, 1_000_000), (2_000_000, 3_000_000), (4_000_000, 5_000_000))
    # No close: the process died.
    told: list[int] = []
    second = Partial(tmp_path / "x.gguf", PIN)
    second.open(told.append, None)
    assert second.done == 3_000_000 == told[-1] and second.front == 1_000_000
    assert second.missing == [(1_000_000, 2_000_000), (3_000_000, 4_000_000)]
    write(second, *second.missing)
    assert second.matches
    first.close()
    second.close()
    assert opened(tmp_path).complete, "and a complete one needs nothing more"


def damage_tail(folder: Path) -> None:
    journal = folder / "x.gguf.partial.journal"
    journal.write_bytes(journal.read_bytes()[:-30])


def damage_middle(folder: Path) -> None:
    journal = folder / "x.gguf.partial.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"\xff\0 nonsense\n", b"0 99999999 " + b"0" * 64 + b"\n"]))


def damage_bytes(folder: Path) -> None:
    with (folder / "x.gguf.partial").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"\0")


def lose_bytes(folder: Path) -> None:
    os.truncate(folder / "x.gguf.partial", 2_999_999)


@pytest.mark.parametrize("damage", [damage_tail, damage_middle, damage_bytes, lose_bytes])
def test_what_a_power_cut_leaves_is_looked_at(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """The last of three units is lost, or is not what the journal says; the other two count."""
    first = opened(tmp_path)
    write(first, (0, 1_000_000), (1_000_000, 2_000_000), (2_000_000, 3_000_000))
    first.close()
    damage(tmp_path)
    second = opened(tmp_path)
    assert second.missing == [(2_000_000, 5_000_000)]
    write(second, (2_000_000, 5_000_000))
    second.close()
    # The line that was cut short did not spoil the one that came after it.
    third = opened(tmp_path)
    assert third.complete and third.matches


def test_a_lost_journal_loses_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(first, (3_000_000, 4_000_000))
    first.close()
    (tmp_path / "x.gguf.partial.journal").unlink()
    assert opened(tmp_path).missing == [(0, 5_000_000)]


def test_a_partial_of_the_first_version_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.partial").write_bytes(CONTENT[:2_345_678])
    (tmp_path / "x.gguf.partial.json").write_text(json.dumps({"sha256": PIN.sha256, "size": PIN.size}))
    first = opened(tmp_path)
    assert first.missing == [(2_345_678, 5_000_000)]
    first.close()
    second = opened(tmp_path)
    write(second, *second.missing)
    assert second.matches


def test_a_partial_of_another_file_is_thrown_away(tmp_path: Path) -> None:
    write(opened(tmp_path), (0, 1_000_000))
    other = opened(tmp_path, Pin("0" * 64, PIN.size))
    assert other.done == 0 and other.path.stat().st_size == 0
    other.close()
    assert opened(tmp_path).done == 0


def test_nothing_is_lost_by_stopping_the_look_at_it(tmp_path: Path) -> None:
    write(opened(tmp_path), (0, 1_000_000), (1_000_000, 2_000_000))
    stopped = Partial(tmp_path / "x.gguf", PIN)
    with pytest.raises(Interrupted):
        stopped.open(lambda _: None, lambda: True)
    stopped.close()
    assert opened(tmp_path).done == 2_000_000


def test_wrong_bytes_are_set_aside(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    partial.write(0, bytes(PIN.size))
    assert partial.complete and not partial.matches
    partial.quarantine()
    assert partial.damaged.read_bytes() == bytes(PIN.size) and partial.done == 0
    write(partial, (0, PIN.size))
    assert partial.matches


def test_without_a_promise_any_bytes_of_the_size_will_do(tmp_path: Path) -> None:
    partial = opened(tmp_path, Pin("", PIN.size))
    write(partial, (0, PIN.size))
    assert partial.matches and partial.sha256 == PIN.sha256


def test_only_what_has_no_gap_before_it_survives_a_cut(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    write(partial, (0, 1_000_000), (2_000_000, 3_000_000))
    partial.cut()
    assert partial.missing == [(1_000_000, 5_000_000)]
    partial.close()
    assert opened(tmp_path).missing == [(1_000_000, 5_000_000)]


def test_the_journal_believes_no_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    good = Unit(5, 10, "ab" * 32)
    lines = [b"5 10 " + b"ab" * 32, b"5 10 " + b"AB" * 32, b"5 0 " + b"ab" * 32, b"95 10 " + b"ab" * 32, b"-5 1 x", b""]
    path.write_bytes(b"\n".join(lines))
    assert Journal(path).read(100) == [good]
    assert Journal(tmp_path / "none").read(100) == []


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_the_set_of_their_bytes(seed: int) -> None:
    chance = random.Random(seed)
    spans, there = Spans(), set[int]()
    for _ in range(40):
        start = chance.randrange(100)
        end = chance.randint(start + 1, 101)
        if chance.random() < 0.8:
            end = min(end, start + 8)
        spans.add(start, end)
        there |= set(range(start, end))
        assert spans.total == len(there)
        assert spans.front == next(byte for byte in range(102) if byte not in there)
        missing = spans.missing(101)
        assert {byte for first, last in missing for byte in range(first, last)} == set(range(101)) - there
        assert all(left[1] < right[0] for left, right in pairwise(missing))


@pytest.mark.parametrize("seed", range(5))
def test_tasks_bring_each_byte_once_whoever_fails(seed: int) -> None:
    """Several threads take, drop and split tasks; the bytes that they accept are each byte that was missing."""
    size = 20_000_000
    tasks = Tasks([(100, 5_000_000), (6_000_000, size)], 3_000_000)
    brought: list[tuple[int, int]] = []

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while task := tasks.take(lambda: False):
            while task.left and chance.random() > 0.1:
                start = task.at
                count = tasks.accept(task, chance.randrange(1, 300_000))
                brought.append((start, start + count))
            tasks.give_back(task)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert tasks.left == 0 and tasks.accepted == 4_999_900 + 14_000_000
    spans = Spans()
    for start, end in brought:
        spans.add(start, end)
    assert spans.missing(size) == [(0, 100), (5_000_000, 6_000_000)] and spans.total == tasks.accepted
