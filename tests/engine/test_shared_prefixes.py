"""What several prompts begin with is read once, and nobody waits who has nothing of that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat.engine import job, resident
from localchat.engine.job import Event, Job
from localchat.engine.running import Running
from localchat.engine.sampling import Sampler
from localchat.engine.scheduler import Engine
from localchat.engine.text import Piece
from localchat.errors import LocalchatError
from localchat.protocol import Progress
from localchat.tuning import SEQUENCES
from tests.engine.test_scheduler import LONG_S, OVERHEAD, Ask, Held, Judge, idle, judge  # noqa: F401  (a fixture)
from tests.tiny_models import LETTERS, write_model

SYSTEM = "you answer briefly and to the point. " * 10
KINDS = {
    "plain": {},
    "windowed": {"architecture": "gemma3", "layers": 6, "window": 64, "width": 32},
    "recurrent": {"architecture": "mamba"},
    "hybrid": {"architecture": "lfm2", "layers": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def model(request: pytest.FixtureRequest, folder: Path) -> Path:
    kind = getattr(request, "param", "plain")
    path = folder / f"{kind}.gguf"
    return path if path.exists() else write_model(path, context=4096, speaks=LETTERS, **KINDS[kind])


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """With nothing in memory."""
    shared_engine.unload()
    idle(shared_engine)
    yield shared_engine
    idle(shared_engine)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read 40 tokens at a time, so that there are steps in between."""
    monkeypatch.setattr(Running, "_bite", lambda self, is_watched: 40)


def at_once(engine: Engine, model: Path, *prompts: str, max_tokens: int) -> list[Ask]:
    """Requests of which none is begun with before all are there: the model is not in memory yet."""
    first = Held(engine, model, prompts[0], max_tokens=max_tokens, at="loading")
    asks = [first, *(Ask(engine, model, prompt, max_tokens=max_tokens) for prompt in prompts[1:])]
    first.let_go()
    return asks


def stages(ask: Ask) -> set[str]:
    return {event.stage for _, event in ask.events if isinstance(event, Progress)}


def read_anew(asks: list[Ask]) -> int:
    return sum(ask.end().usage.prompt_tokens - ask.end().report.cached_tokens for ask in asks)


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_what_many_prompts_begin_with_is_read_once(engine: Engine, model: Path, judge: Judge) -> None:  # noqa: F811
    asks = at_once(engine, model, *[SYSTEM + f"{n:02}" * 20 for n in range(12)], max_tokens=25)
    assert all(len(ask.text) == 25 for ask in asks)
    assert read_anew(asks) < len(SYSTEM) + 12 * (40 + OVERHEAD + 16)
    assert all(judge(ask) for ask in asks)
    # They ran side by side, as many as there are sequences.
    first = asks[:8]
    assert max(ask.numbers(Piece)[0] for ask in first) < min(ask.numbers(Piece)[-1] for ask in first)


@pytest.mark.usefixtures("slowly")
def test_who_shares_nothing_does_not_wait_for_those_who_do(engine: Engine, model: Path) -> None:
    prompts = SYSTEM + "a" * 100, SYSTEM + "b" * 100, "hello"
    reader, sharer, short = at_once(engine, model, *prompts, max_tokens=5)
    for ask in (reader, sharer, short):
        ask.end()
    assert read_anew([reader, sharer]) < len(SYSTEM) + 2 * (100 + OVERHEAD)
    assert short.numbers(Piece)[-1] < reader.numbers(Piece)[0] < sharer.numbers(Piece)[0]


@pytest.mark.usefixtures("slowly")
def test_who_shares_little_does_not_wait_either(engine: Engine, model: Path) -> None:
    reader, other = at_once(engine, model, "x" * 30 + "a" * 500, "x" * 30 + "b" * 80, max_tokens=5)
    other.end()
    reader.end()
    assert other.numbers(Piece)[-1] < reader.numbers(Piece)[0]


@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("model", KINDS, indirect=True)
@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_when_the_reader_ends_early_the_next_goes_on_in_its_place(
    engine: Engine,
    model: Path,
    how: str,
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Job.reading
    broken: list[Job] = []

    def fails(self: Job, rate: float) -> None:
        reading(self, rate)
        if broken and self is broken[0] and self.sequence and len(self.sequence.tokens) > 200:
            broken.clear()
            if how == "cancelled":
                engine.cancel(self)
            else:
                self._sink = None  # as when whoever listens has raised
                self.cancelled = True

    monkeypatch.setattr(Job, "reading", fails)
    first = Held(engine, model, SYSTEM + "0" * 40, max_tokens=20, at="loading")
    asks = [first, *(Ask(engine, model, SYSTEM + f"{n}" * 40, max_tokens=20) for n in range(1, 4))]
    broken.append(first.job)
    first.let_go()
    for ask in asks[1:]:
        assert len(ask.text) == 20
        assert judge(ask)
    assert not broken
    # The first had read more than half of it.
    assert read_anew(asks[1:]) < len(SYSTEM) // 2 + 3 * (40 + OVERHEAD + 16)


@pytest.mark.usefixtures("slowly")
def test_nobody_who_waits_for_a_prefix_is_passed_by_one_who_could_take_its_place(engine: Engine, model: Path) -> None:
    """Chains: the second waits for the first, the third for what the second is going to read beyond that."""
    prompts = ["a" * 40, "b" * 200 + "1" * 30, "b" * 200 + "2" * 30, "b" * 200 + "3" * 30]
    asks = at_once(engine, model, *[SYSTEM + prompt for prompt in prompts], max_tokens=3)
    firsts = [ask.end() and ask.numbers(Piece)[0] for ask in asks]
    assert firsts == sorted(firsts)
    assert read_anew(asks) < len(SYSTEM) + 200 + 4 * (40 + OVERHEAD)


@pytest.mark.usefixtures("slowly")
def test_those_who_wait_can_be_cancelled_and_hear_that_they_wait(
    engine: Engine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_PROGRESS_EVERY_S", 0.0)
    all_are_there = threading.Event()

    def sink(event: Event) -> None:
        stage = getattr(event, "stage", "")
        if stage == "loading":
            all_are_there.wait(LONG_S)
        elif stage == "reading" and not asks[2].job.cancelled:
            asks[2].cancel()

    asks = [Ask(engine, model, SYSTEM + "0" * 40, max_tokens=5, sink=sink)]
    asks += [Ask(engine, model, SYSTEM + f"{n}" * 40, max_tokens=5) for n in range(1, 4)]
    all_are_there.set()
    for ask in (asks[0], asks[1], asks[3]):
        assert len(ask.text) == 5
    assert "queued" in stages(asks[3])
    assert not asks[2].so_far


def test_sixteen_short_prompts_run_side_by_side_in_the_first_window(
    engine: Engine,
    model: Path,
    judge: Judge,  # noqa: F811
) -> None:
    most = 0
    stepping = Running.step

    def counted(self: Running, model: resident.Resident) -> list[Job]:
        nonlocal most
        most = max(most, len(self.jobs))
        return stepping(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Running, "step", counted)
        letters = "abcdefghijklmnop"
        asks = at_once(engine, model, *[letter * (50 - OVERHEAD) for letter in letters], max_tokens=64)
        ends = [ask.end() for ask in asks]
    assert [(end.usage.prompt_tokens, end.usage.completion_tokens) for end in ends] == [(50, 64)] * 16
    loaded = engine.loaded()
    assert loaded
    assert loaded.context == 4096
    assert most == SEQUENCES == 16
    assert all(judge(ask) for ask in asks)


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_the_window_grows_under_those_who_run_and_keeps_what_they_share(
    engine: Engine,
    model: Path,
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 768)
    asks = at_once(engine, model, *[SYSTEM + f"{n}" * 60 for n in range(8)], max_tokens=80)
    assert all(len(ask.text) == 80 for ask in asks)
    assert all(judge(ask) for ask in asks)
    assert read_anew(asks) < len(SYSTEM) + 8 * (60 + OVERHEAD + 16)
    loaded = engine.loaded()
    assert loaded
    assert loaded.context > 768
    # All at once, as soon as the prefix was read.
    assert max(ask.numbers(Piece)[0] for ask in asks) < min(ask.numbers(Piece)[-1] for ask in asks)


def test_what_cannot_be_brought_into_the_larger_window_is_read_again(
    engine: Engine,
    model: Path,
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 256)
    monkeypatch.setattr(resident.Context, "restore_all", lambda self, state: False)
    first = Held(engine, model, "x" * 150, max_tokens=100)
    first.wait()
    asks = [first, *(Ask(engine, model, f"{n}" * 150, max_tokens=100) for n in range(5))]
    first.let_go()
    assert all(len(ask.text) == 100 for ask in asks)
    assert all(judge(ask) for ask in asks)


# One fails alone


@pytest.mark.parametrize("what", ["sampler", "sampling"])
def test_a_request_that_fails_in_the_midst_of_others_fails_alone(
    engine: Engine,
    model: Path,
    what: str,
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    making, sampling = Sampler.__init__, Sampler.sample

    def make(self: Sampler, n_vocab: int, options: object) -> None:
        making(self, n_vocab, options)  # type: ignore[arg-type]
        self.is_bad = options.seed == 13  # type: ignore[attr-defined]
        if self.is_bad and what == "sampler":  # type: ignore[attr-defined]
            raise MemoryError

    def sample(self: Sampler, context: object, index: int) -> int:
        token = sampling(self, context, index)
        self.said = getattr(self, "said", 0) + 1  # type: ignore[attr-defined]
        if self.is_bad and self.said == 10:  # type: ignore[attr-defined]
            raise ValueError("a grammar that cannot go on")
        return token

    monkeypatch.setattr(Sampler, "__init__", make)
    monkeypatch.setattr(Sampler, "sample", sample)
    for _ in range(3):  # each time its sequence must be free again
        asks = [
            Ask(engine, model, chr(ord("a") + n) * 40, max_tokens=40, seed=13 if n % 2 else 1) for n in range(SEQUENCES)
        ]
        for n, ask in enumerate(asks):
            if n % 2:
                with pytest.raises(LocalchatError, match="stumbled"):
                    ask.end()
            else:
                assert len(ask.text) == 40
                assert judge(ask)
    deadline = time.monotonic() + LONG_S
    while engine.counts() != (0, 0):
        assert time.monotonic() < deadline
    cache = engine._resident.cache if engine._resident else None
    assert cache
    assert not any(sequence.busy for sequence in cache.sequences)
