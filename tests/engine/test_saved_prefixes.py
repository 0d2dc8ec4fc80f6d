"""What was read once is not read again by another engine, the answers are the same, and no fault reaches llama.cpp.

An answer after what came from the disk is compared with one after the same tokens in memory: the same numbers in the
same batches, so they are equal to the last bit, whatever the processor.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from localchat.engine import resident, saved_prefixes, scheduler
from localchat.engine.job import Event, Finished, ModelSpec
from localchat.engine.prefix_saver import PrefixSaver
from localchat.engine.scheduler import Engine
from localchat.engine.text import Piece
from localchat.errors import LocalchatError
from localchat.prefixes import PrefixStore
from localchat.protocol import ChatRequest, Extras, Message
from localchat.tuning import Tuning
from tests.tiny_models import LETTERS, write_model

CAP = 1 << 30
LONG_S = 60.0


def spec_of(path: Path, tuning: Tuning = Tuning(), *, is_hashed: bool = True) -> ModelSpec:  # noqa: B008
    status = path.stat()
    version = (status.st_size, status.st_mtime_ns, status.st_ino)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if is_hashed else ""
    return ModelSpec(path.stem, path, version=version, sha256=sha256, tuning=tuning)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def model(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else write_model(path, architecture=architecture, speaks=LETTERS)

    return model


@pytest.fixture
def tiny(models: Callable[[str], Path]) -> ModelSpec:
    return spec_of(models("llama"))


Open = Callable[[], Engine]


@pytest.fixture
def reopen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """An engine as after a restart: the one before it is closed, and has saved what it read, however slow the machine
    is just now.
    """
    for module, limit in (
        (saved_prefixes, "_LOADING_S"),
        (saved_prefixes, "_RESCUE_S"),
        (resident, "_SAVING_S"),
        (scheduler, "_LAST_SAVING_S"),
    ):
        monkeypatch.setattr(module, limit, LONG_S)
    monkeypatch.setattr(Engine._unload, "__defaults__", (LONG_S,))
    engines: list[Engine] = []

    def reopened() -> Engine:
        if engines:
            engines[-1].close()
            engines[-1]._thread.join(LONG_S)
        engines.append(Engine(1, saver=PrefixSaver(tmp_path / "prefixes", CAP)))
        return engines[-1]

    yield reopened
    engines[-1].close()


class Answer:
    """One answer: its text, and what is said of the cache."""

    def __init__(self, engine: Engine, spec: ModelSpec, *turns: str, tokens: int = 24, keep: bool = True) -> None:
        roles = ["user", "assistant"] * len(turns)
        messages = [Message(role, turn) for role, turn in zip(roles, turns, strict=False)]  # type: ignore[arg-type]
        request = ChatRequest(messages=messages, temperature=0, max_tokens=tokens, localchat=Extras(keep=keep))
        events: list[Event] = []
        ended = threading.Event()

        def take(event: Event) -> None:
            events.append(event)
            if isinstance(event, (Finished, LocalchatError)):
                ended.set()

        engine.submit(spec, request, take)
        assert ended.wait(LONG_S)
        end = events[-1]
        assert isinstance(end, Finished), end
        self.text = "".join(event.content for event in events if isinstance(event, Piece))
        self.report, self.prompt = end.report, end.usage.prompt_tokens
        self.cached = end.report.cached_tokens or 0


def written(engine: Engine) -> None:
    """Wait until all that was to be saved is on disk."""
    deadline = time.monotonic() + LONG_S
    while engine._saver and not engine._saver.is_empty:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def text_of(length: int, seed: int = 1) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefghijklmnop ") for _ in range(length))


def saved_in(folder: Path) -> PrefixStore:
    store = PrefixStore(folder / "prefixes", CAP)
    store.load()
    return store


def test_after_a_restart_nothing_is_read_again_and_the_answer_is_the_same(reopen: Open, tiny: ModelSpec) -> None:
    engine, question = reopen(), text_of(700)
    first = Answer(engine, tiny, question)
    assert (first.cached, first.report.restored_from, first.report.saved_ms) == (0, None, 0)
    live = Answer(engine, tiny, question)
    assert (live.cached, live.report.restored_from) == (live.prompt - 1, "memory")
    assert live.report.saved_ms > 0
    again = Answer(reopen(), tiny, question)
    assert (again.cached, again.report.restored_from) == (again.prompt - 1, "disk")
    assert again.report.saved_ms > 0
    assert again.text == live.text


def test_the_starter_says_the_same_with_and_without_the_cache(reopen: Open, starter: Path) -> None:
    spec, engine = spec_of(starter), reopen()
    turns = ["The sea is deep. " * 40 + "Is it?", "It is.", "How deep is it? Count from one to ten."]
    Answer(engine, spec, *turns, tokens=1)
    live = Answer(engine, spec, *turns, tokens=40)
    again = Answer(reopen(), spec, *turns, tokens=40)
    assert (again.cached, again.report.restored_from) == (again.prompt - 1, "disk")
    assert again.text == live.text


def test_a_branch_takes_what_it_shares_also_from_the_middle_of_a_chunk(reopen: Open, tiny: ModelSpec) -> None:
    question = text_of(700)
    Answer(reopen(), tiny, question)
    branch = question[:400] + text_of(300, seed=2)
    engine = reopen()
    first = Answer(engine, tiny, branch)
    assert first.report.restored_from == "disk"
    assert 400 <= first.cached < 420
    engine = reopen()
    for text in (question, branch):
        again = Answer(engine, tiny, text)
        assert again.cached == again.prompt - 1, "the one takes from memory what they share, and the rest from the disk"


@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2"])
def test_memories_that_cannot_be_cut_are_saved_whole(
    reopen: Open, models: Callable[[str], Path], architecture: str
) -> None:
    spec, engine, question = spec_of(models(architecture)), reopen(), text_of(500)
    first = Answer(engine, spec, question)
    live = Answer(engine, spec, question, first.text, "and then?")
    again = Answer(reopen(), spec, question, first.text, "and then?")
    assert again.report.restored_from == "disk"
    assert again.cached >= 500
    assert again.text == live.text
    other = Answer(reopen(), spec, question[:-10] + text_of(10, seed=3))
    assert other.report.restored_from == "disk", "from a checkpoint in its middle"


def test_a_rest_of_a_second_is_enough_and_an_engine_that_dies_loses_nothing_then(
    reopen: Open, tiny: ModelSpec, tmp_path: Path
) -> None:
    engine = reopen()
    Answer(engine, tiny, text_of(700))
    deadline = time.monotonic() + LONG_S
    while sum(len(entry.tokens) for entry in saved_in(tmp_path).index.entries()) < 700:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_larger_window_would_lose_and_another_model_is_saved(
    reopen: Open, tiny: ModelSpec, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 256)
    monkeypatch.setattr(scheduler, "_IDLE_S", 1000.0)
    engine, short = reopen(), text_of(90)
    Answer(engine, tiny, short, tokens=1)
    Answer(engine, tiny, text_of(90, seed=3), tokens=1)
    Answer(engine, tiny, text_of(600, seed=2), tokens=1)
    written(engine)
    assert Answer(engine, tiny, short).report.restored_from == "disk"
    Answer(engine, spec_of(models("gemma3")), "hello")
    written(engine)
    assert Answer(engine, tiny, short).report.restored_from == "disk"


def test_nothing_of_a_private_request_is_written(reopen: Open, tiny: ModelSpec, tmp_path: Path) -> None:
    engine, question, secret = reopen(), text_of(300), text_of(300, seed=2)
    first = Answer(engine, tiny, question)
    Answer(engine, tiny, question, first.text, secret, keep=False)
    Answer(engine, tiny, secret, keep=False)
    engine = reopen()
    kept = b"".join(bytes(entry.tokens) for entry in saved_in(tmp_path).index.entries())
    assert bytes(b for token in secret.encode() for b in (token, 0, 0, 0))[:200] not in kept
    assert Answer(engine, tiny, secret, keep=False).cached < 32
    # Who asks the same and does not mind has said so.
    Answer(engine, tiny, secret)
    assert Answer(reopen(), tiny, secret).report.restored_from == "disk"


def test_a_private_conversation_that_moves_into_a_larger_window_stays_private(
    reopen: Open, tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 256)
    engine = reopen()
    Answer(engine, tiny, text_of(200), keep=False)
    Answer(engine, tiny, text_of(600, seed=2), tokens=1)
    reopen()
    kept = saved_in(tmp_path).index.entries()
    assert kept
    assert not any(bytes(text_of(200)[:20].encode()) in bytes(entry.tokens)[::4] for entry in kept)


def test_flipped_and_cut_files_cost_reading_and_nothing_else(reopen: Open, tiny: ModelSpec, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw, question = random.Random(seed), text_of(700)
    engine = reopen()
    Answer(engine, tiny, question, tokens=1)
    live = Answer(engine, tiny, question)
    for round_ in range(6):
        reopen()
        for path in (tmp_path / "prefixes").rglob("*.kv"):
            content = bytearray(path.read_bytes())
            if round_ % 2:
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            else:
                del content[draw.randrange(len(content)) :]
            if draw.random() < 0.7:
                path.write_bytes(content)
        again = Answer(reopen(), tiny, question)
        # (Read in other pieces, sums round differently: only what is all there can be compared letter by letter.)
        assert again.text == live.text or again.cached < again.prompt - 1


def test_another_model_or_tuning_gets_nothing_of_it(reopen: Open, tiny: ModelSpec, tmp_path: Path) -> None:
    question = text_of(300)
    flash = spec_of(tiny.path, Tuning(flash_attention=True))
    Answer(reopen(), flash, question)
    other = spec_of(write_model(tmp_path / "other.gguf", speaks=LETTERS, seed=2))
    assert Answer(reopen(), other, question).cached == 0
    plain = spec_of(tiny.path, Tuning(flash_attention=False))
    engine = reopen()
    assert Answer(engine, plain, question).cached == 0
    live = Answer(engine, plain, question)
    again = Answer(reopen(), plain, question)
    assert (again.report.restored_from, again.text) == ("disk", live.text), "also where values lie transposed"
    assert Answer(reopen(), flash, question).report.restored_from == "disk"


def test_a_file_that_nobody_hashed_is_hashed_when_there_is_time(
    reopen: Open, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_IDLE_S", 0.01)
    spec, question = spec_of(tiny.path, is_hashed=False), text_of(300)
    engine = reopen()
    Answer(engine, spec, question)
    deadline = time.monotonic() + LONG_S
    while engine._saver is None or not engine._saver.sha256(spec):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Answer(reopen(), spec, question).report.restored_from == "disk"
    assert Answer(reopen(), tiny, question).report.restored_from == "disk", "it is the same model"


def test_a_file_that_nobody_hashed_is_hashed_before_the_engine_leaves(reopen: Open, tiny: ModelSpec) -> None:
    """Who stops the engine soon after the first answer, each time, would else never get anything back."""
    spec, question = spec_of(tiny.path, is_hashed=False), text_of(300)
    Answer(reopen(), spec, question)
    assert Answer(reopen(), spec, question).report.restored_from == "disk"


def test_only_the_last_conversation_stays_where_others_would_slow_it(
    reopen: Open, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary attention looks at all cells up to the last one in use: what is on disk leaves the window."""
    monkeypatch.setattr(scheduler, "_IDLE_S", 0.01)
    monkeypatch.setattr(scheduler, "_SETTLING_S", 0.01)
    monkeypatch.setattr(saved_prefixes, "_CHEAP_MS", 0.0)
    plain = spec_of(tiny.path, Tuning(flash_attention=False))
    engine, questions = reopen(), [text_of(300, seed) for seed in range(3)]
    texts = [Answer(engine, plain, question).text for question in questions]

    def held() -> list[int]:
        resident = engine._resident
        assert resident
        return [sequence.id for sequence in resident.cache.sequences if sequence.tokens]

    deadline = time.monotonic() + LONG_S
    while len(held()) > 1:
        assert time.monotonic() < deadline, held()
        time.sleep(0.01)
    again = [Answer(engine, plain, question) for question in reversed(questions)]
    assert [one.report.restored_from for one in again] == ["memory", "disk", "disk"]
    assert [one.text for one in again] == texts[::-1]


def test_what_is_no_longer_on_disk_is_not_let_go(reopen: Open, tiny: ModelSpec, tmp_path: Path) -> None:
    question = text_of(300)
    Answer(reopen(), tiny, question)
    engine = reopen()
    assert Answer(engine, tiny, question).report.restored_from == "disk"
    held = engine._resident
    assert held
    (sequence,) = (sequence for sequence in held.cache.sequences if sequence.tokens)
    assert held.saved.has(sequence)
    for file in saved_in(tmp_path).files():
        file.unlink()
    assert not held.saved.has(sequence)


def test_what_was_cleared_is_not_written_again_by_an_engine_that_has_it_in_memory(
    reopen: Open, tiny: ModelSpec, tmp_path: Path
) -> None:
    engine, question = reopen(), text_of(300)
    Answer(engine, tiny, question)
    saved_in(tmp_path).clear()
    reopen()
    assert not saved_in(tmp_path).files()


def test_what_was_cleared_does_not_come_back_with_a_larger_window(
    reopen: Open, tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 512)
    engine = reopen()
    Answer(engine, tiny, text_of(200))
    before = engine.loaded()
    saved_in(tmp_path).clear()
    Answer(engine, tiny, text_of(900, seed=2), keep=False)
    after = engine.loaded()
    assert before and after and before.context < after.context
    reopen()
    assert not saved_in(tmp_path).files()


def test_what_is_dear_is_saved_before_it_is_forgotten(
    reopen: Open, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_IDLE_S", 1000.0)
    monkeypatch.setattr(saved_prefixes, "_RESCUE_MS", 1.0)
    monkeypatch.setattr(saved_prefixes, "_CHEAP_MS", 1.0)
    engine, question = reopen(), text_of(1000)
    Answer(engine, tiny, question, tokens=1)
    for seed in range(2, 20):  # more conversations than sequences
        Answer(engine, tiny, text_of(40, seed), tokens=1)
    written(engine)
    assert Answer(engine, tiny, question, tokens=1).report.restored_from == "disk"


def test_a_full_window_makes_room_for_what_comes_from_the_disk(reopen: Open, tiny: ModelSpec) -> None:
    question = text_of(1500)
    Answer(reopen(), tiny, question, tokens=1)
    engine = reopen()
    Answer(engine, tiny, text_of(1500, seed=2), tokens=1)
    assert Answer(engine, tiny, question, tokens=1).report.restored_from == "disk"


def test_without_a_cache_on_disk_memory_is_all_there_is(tiny: ModelSpec, tmp_path: Path) -> None:
    engine = Engine(1, saver=PrefixSaver(tmp_path / "prefixes", 0))
    try:
        question = text_of(300)
        Answer(engine, tiny, question)
        assert Answer(engine, tiny, question).report.restored_from == "memory"
    finally:
        engine.close()
    assert not (tmp_path / "prefixes").exists()


def test_a_folder_that_was_removed_while_the_engine_ran_is_filled_again(
    reopen: Open, tiny: ModelSpec, tmp_path: Path
) -> None:
    question = text_of(600)
    Answer(reopen(), tiny, question)
    engine = reopen()
    first = Answer(engine, tiny, question)
    shutil.rmtree(tmp_path / "prefixes")
    Answer(engine, tiny, question, first.text, "and then?")
    assert Answer(reopen(), tiny, question).report.restored_from == "disk"


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_comes_from_the_disk_takes_no_more_memory_than_there_is(
    reopen: Open, models: Callable[[str], Path], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, question = spec_of(models(architecture)), text_of(900)
    Answer(reopen(), spec, question)
    engine = reopen()
    monkeypatch.setattr(saved_prefixes.SavedPrefixes, "_spare", lambda self: 1000)
    assert Answer(engine, spec, question).cached == 0
    engine.close()


@pytest.mark.parametrize("holds", [1, 2, 9])
def test_no_more_is_read_ahead_than_memory_holds(holds: int) -> None:
    """Of entries of 100 bytes; what was given out is held until the next is asked for."""
    entries = [SimpleNamespace(size=100, number=number) for number in range(6)]
    lock, held, most = threading.Lock(), 0, 0

    def payload(entry: SimpleNamespace) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.01)
        return int(entry.number)

    store, given = SimpleNamespace(payload=payload), []
    for _, got in saved_prefixes._read_ahead(store, entries, holds * 100 + 99):  # type: ignore[arg-type]
        given.append(got)
        time.sleep(0.02)
        with lock:
            held -= 1
    assert given == list(range(6)) and most <= min(holds, 1 + saved_prefixes._READ_AHEAD)
    assert not list(saved_prefixes._read_ahead(store, entries, 99))  # type: ignore[arg-type]
