"""Where ordinary attention looks at all cells, no more requests run together than are sooner answered so, and nobody
is slowed by conversations that have ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat.engine import saved_prefixes, seats
from localchat.engine.job import Event, Finished, ModelSpec
from localchat.engine.scheduler import Engine
from localchat.engine.text import Piece
from localchat.tuning import Tuning
from tests.engine.test_scheduler import Ask, Judge, idle, judge  # noqa: F401  (a fixture)
from tests.tiny_models import LETTERS, write_model

ORDINARY, FLASH = Tuning(flash_attention=False), Tuning(flash_attention=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    return write_model(folder / "tiny.gguf", context=4096, speaks=LETTERS)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


class Crowd:
    """Several requests at once, and how many of them were seen answering at the same time."""

    def __init__(self, engine: Engine, model: ModelSpec, number: int) -> None:
        self._answering: set[int] = set()
        self.most = 0
        self._gate = threading.Event()
        # Nothing is computed until all have asked.
        blocker = Ask(engine, model, "wait", max_tokens=1, sink=lambda event: self._gate.wait(60))
        self.asks = [Ask(engine, model, f"{n:02}" * 20, max_tokens=20, sink=self._seen(n)) for n in range(number)]
        self._gate.set()
        blocker.end()
        for ask in self.asks:
            ask.end()

    def _seen(self, number: int):  # type: ignore[no-untyped-def]
        def sink(event: Event) -> None:
            if isinstance(event, Piece):
                self._answering.add(number)
                self.most = max(self.most, len(self._answering))
            elif isinstance(event, Finished):
                self._answering.discard(number)

        return sink


@pytest.mark.parametrize(("scores", "together"), [(0.0, 4), (1e9, 12)])
def test_so_many_run_together_as_are_sooner_answered_so(
    engine: Engine,
    tiny: Path,
    scores: float,
    together: int,
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seats, "_FLOPS_PER_BYTE", scores)
    crowd = Crowd(engine, ModelSpec("tiny", tiny, tuning=ORDINARY), 12)
    assert crowd.most == together
    assert all(judge(ask) for ask in crowd.asks)


def test_a_four_that_was_begun_is_filled(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("tiny", tiny, tuning=ORDINARY)
    engine.load(spec).result(60)
    resident = engine._resident
    assert resident
    model, each = resident.model, 40 + 19 + 20 // 2
    flops = 4 * model.heads * model.head_size * model.n_layer
    # Five can be together, six could not be if it came to that.
    monkeypatch.setattr(seats, "_FLOPS_PER_BYTE", flops * 5 * 5 * (each + 20) / model.file_bytes)
    assert Crowd(engine, spec, 12).most == 8


def test_flash_attention_skips_what_is_masked(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "_FLOPS_PER_BYTE", 0.0)
    assert Crowd(engine, ModelSpec("tiny", tiny, tuning=FLASH), 12).most == 12


def held(engine: Engine) -> int:
    resident = engine._resident
    assert resident
    return sum(1 for sequence in resident.cache.sequences if sequence.tokens)


@pytest.mark.parametrize(("tuning", "kept"), [(ORDINARY, 2), (FLASH, 5)])
def test_what_is_soon_read_again_leaves_the_window(engine: Engine, tiny: Path, tuning: Tuning, kept: int) -> None:
    spec = ModelSpec("tiny", tiny, tuning=tuning)
    questions = [f"{n:02}" * 20 for n in range(5)]
    texts = [Ask(engine, spec, question, max_tokens=10).text for question in questions]
    idle(engine)
    assert held(engine) == kept
    assert Ask(engine, spec, questions[-1], max_tokens=10).end().report.cached_tokens > 40, "the last one is at hand"
    assert [Ask(engine, spec, question, max_tokens=10).text for question in questions] == texts


def test_what_is_dear_to_read_stays(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_prefixes, "_CHEAP_MS", 0.0)
    spec = ModelSpec("tiny", tiny, tuning=ORDINARY)
    for n in range(5):
        Ask(engine, spec, f"{n:02}" * 20, max_tokens=10).end()
    idle(engine)
    assert held(engine) == 5
    assert Ask(engine, spec, "00" * 20, max_tokens=10).end().report.cached_tokens > 40


def test_what_others_hold_too_costs_nothing_to_forget(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions about the same long text: each leaves the window, the text stays with the last."""
    manual, spec = "read this carefully. " * 40, ModelSpec("tiny", tiny, tuning=ORDINARY)
    for ask in [Ask(engine, spec, manual + word, max_tokens=2) for word in ("first", "second", "third", "fourth")]:
        ask.end()
    idle(engine)
    assert held(engine) == 4
    # What the text takes to read is dear, what a question adds is not.
    monkeypatch.setattr(saved_prefixes, "_CHEAP_MS", 100.0)
    monkeypatch.setattr(saved_prefixes.SavedPrefixes, "_cost", lambda self, tokens: float(tokens))
    assert Ask(engine, spec, manual + "fifth", max_tokens=2).end().report.cached_tokens >= len(manual)
    idle(engine)
    assert held(engine) == 2
