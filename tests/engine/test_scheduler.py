"""The engine's thread: many requests in one batch, the right text for each, cancelled at once, and nothing kills it.

Most tests ask a small random model on a vocabulary of bytes: one letter is one token, so every count is known, and its
greedy answer depends on everything it has read, so that a wrong cell of the KV cache shows in the text. That an answer
is the same alone and batched is not promised, so answers are judged (`judge`) and not compared.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from localchat.engine import prefix_cache, resident, seats
from localchat.engine import prompt as prompt_module
from localchat.engine import running as running_module
from localchat.engine.context import NoRoom
from localchat.engine.job import Event, Finished, Job, ModelSpec, version_of
from localchat.engine.model import Model, _size_with_shards
from localchat.engine.prefix_cache import PrefixCache
from localchat.engine.running import Running
from localchat.engine.scheduler import Engine
from localchat.engine.task import Task
from localchat.engine.templates import TemplateRenderer
from localchat.engine.text import Piece
from localchat.errors import ContextExceeded, DamagedFile, DoesNotFit, EngineFailed, Interrupted, LocalchatError
from localchat.protocol import ChatRequest, Extras, Message, Progress, Sampling
from localchat.tuning import SEQUENCES
from tests.engine.reference import Reference, chatml_tokens
from tests.tiny_models import BYTES, END, LETTERS, vocabulary_of, write_model

LONG_S = 60.0
"""How long a test waits for something that takes milliseconds on an idle machine."""

ROUNDING = 0.25
"""Logits closer than this may change places; their standard deviation is about eight."""

OVERHEAD = 19
"""Tokens of ChatML around one user message: `<user\\n`, `>\\n`, `<assistant\\n`, where each mark is one token."""


FRANCE = (Message("system", "You are a helpful assistant."), Message("user", "What is the capital of France?"))


class Ask:
    """One request and everything that came of it."""

    order = 0
    lock = threading.Lock()

    def __init__(
        self,
        engine: Engine,
        model: Path | ModelSpec,
        *turns: str | Message,
        sink: Callable[[Event], None] | None = None,
        **options: object,
    ) -> None:
        messages = [turn if isinstance(turn, Message) else Message("user", turn) for turn in turns]
        options.setdefault("temperature", 0)
        self.events: list[tuple[int, Event]] = []
        self._sink = sink
        self._news = threading.Condition()
        self.engine = engine
        self.turns = messages
        spec = model if isinstance(model, ModelSpec) else ModelSpec(model.stem, model)
        self.job: Job = engine.submit(spec, ChatRequest(messages=messages, **options), self._take)

    def _take(self, event: Event) -> None:
        with Ask.lock:
            Ask.order += 1
            number = Ask.order
        with self._news:
            self.events.append((number, event))
            self._news.notify_all()
        if self._sink:
            self._sink(event)

    def wait_for(self, *kinds: type) -> Event:
        """The first event of these kinds."""

        def found() -> Event | None:
            return next((event for _, event in self.events if isinstance(event, kinds)), None)

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, LONG_S), f"nothing but {self.events[-3:]}"
        event = found()
        assert event is not None
        return event

    def end(self) -> Finished:
        event = self.wait_for(Finished, LocalchatError)
        if isinstance(event, LocalchatError):
            raise event
        assert isinstance(event, Finished)
        assert self.events[-1][1] is event
        return event

    @property
    def text(self) -> str:
        self.end()
        return self.so_far

    @property
    def so_far(self) -> str:
        return "".join(event.content for _, event in self.events if isinstance(event, Piece))

    def numbers(self, kind: type) -> list[int]:
        return [number for number, event in self.events if isinstance(event, kind)]

    def cancel(self) -> None:
        self.engine.cancel(self.job)

    def cancel_in_mid_batch(self, patch: pytest.MonkeyPatch, least: int = 1) -> None:
        """Have it cancelled while the next batch of at least so many tokens is computed."""
        decode = resident.Context.decode

        def cancelled(context: resident.Context) -> None:
            if context._batch.n_tokens >= least:
                self.cancel()
            decode(context)

        patch.setattr(resident.Context, "decode", cancelled)


class Held(Ask):
    """The engine stands still at the first event of a kind, or stage, until this is let go: however late the test's
    thread comes, that is when it acts.
    """

    def __init__(
        self, engine: Engine, model: Path | ModelSpec, *turns: str | Message, at: type | str = Piece, **options: object
    ) -> None:
        self._at = at
        self._reached, self._gate = threading.Event(), threading.Event()
        super().__init__(engine, model, *turns, sink=self._hold, **options)

    def _hold(self, event: Event) -> None:
        if isinstance(event, self._at) if isinstance(self._at, type) else getattr(event, "stage", "") == self._at:
            self._reached.set()
            self._gate.wait(LONG_S)
            self._gate.set()

    def wait(self) -> None:
        """Wait until the engine stands still."""
        assert self._reached.wait(LONG_S), f"nothing but {self.events[-3:]}"

    def let_go(self) -> None:
        self._gate.set()


Judge = Callable[[Ask], bool]


def idle(engine: Engine) -> None:
    deadline = time.monotonic() + LONG_S
    while engine.counts() != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """Speaks letters without end."""
    return write_model(folder / "tiny.gguf", speaks=LETTERS)


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    return write_model(folder / "other.gguf", speaks=LETTERS, seed=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        idle(request.getfixturevalue("engine"))


@pytest.fixture
def fresh(engine: Engine) -> Engine:
    """The engine with nothing in memory."""
    engine.unload()
    idle(engine)
    assert engine.loaded() is None
    return engine


@pytest.fixture
def small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows begin at 256 tokens, so that they grow early."""
    monkeypatch.setattr(resident, "_STARTING_CONTEXT", 256)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """Says whether each token of an answer is the one that a plain computation of the whole text finds likeliest.

    Not by comparing with another run: sums in another order round differently, so that an answer alone and in a batch
    need not be the same, and in a tie a step aside changes all that follows. A wrong cell of the cache costs far more
    than rounding does.
    """
    references: dict[Path, Reference] = {}

    def is_right(ask: Ask) -> bool:
        path = ask.job.spec.path
        if path not in references:
            references[path] = Reference(path)
        answer = list(ask.so_far.encode())
        regrets = references[path].regrets(chatml_tokens(*ask.turns), answer) if answer else np.zeros(1)
        return bool(regrets.max() < ROUNDING and regrets.mean() < ROUNDING / 10)

    yield is_right
    for reference in references.values():
        reference.close()


def test_the_judge_notices_a_text_that_answers_something_else(engine: Engine, tiny: Path, judge: Judge) -> None:
    ask = Ask(engine, tiny, "a" * 50, max_tokens=60)
    ask.end()
    assert judge(ask)
    ask.turns = [Message("user", "b" * 50)]
    assert not judge(ask)


# Answers


def test_a_real_model_answers_and_stops_by_itself(starter: Path) -> None:
    engine = Engine(2)
    try:
        ask = Ask(engine, starter, *FRANCE, max_tokens=200)
        assert "Paris" in ask.text
        end = ask.end()
        assert end.reason == "stop"
        assert "<|im_end|>" not in ask.text
        spec = ModelSpec("starter", starter)
        # The end-of-generation token is counted, and is no text.
        assert end.usage.completion_tokens == len(engine.tokenize(spec, ask.text).result(LONG_S)) + 1
        assert end.usage.total_tokens == end.usage.prompt_tokens + end.usage.completion_tokens
        stages = {event.stage for _, event in ask.events if isinstance(event, Progress)}
        assert "loading" in stages
        again = Ask(engine, starter, *FRANCE, max_tokens=200)
        assert again.end().report.cached_tokens == again.end().usage.prompt_tokens - 1
    finally:
        engine.close()


def test_counts_are_exact(engine: Engine, tiny: Path) -> None:
    ask = Ask(engine, tiny, "hello", max_tokens=37)
    assert len(ask.text) == 37
    usage = ask.end().usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (OVERHEAD + 5, 37)
    assert ask.end().reason == "length"
    # A letter is a token, and each piece says how many there were by then.
    so_far = [event.tokens for _, event in ask.events if isinstance(event, Piece)]
    assert so_far == list(range(1, 38))


def test_one_token_is_one_token(engine: Engine, tiny: Path) -> None:
    ask = Ask(engine, tiny, "hello", max_tokens=1)
    assert len(ask.text) == ask.end().usage.completion_tokens == 1


def test_an_end_token_stops_the_answer_and_is_counted(engine: Engine, folder: Path) -> None:
    model = write_model(folder / "ends.gguf", speaks=(*LETTERS[:6], END))
    ask = Ask(engine, model, "hello", max_tokens=1000, temperature=1, seed=1)
    assert ask.end().reason == "stop"
    assert ask.end().usage.completion_tokens == len(ask.text) + 1


def test_stop_strings_end_the_answer_exactly_before_them(engine: Engine, tiny: Path) -> None:
    Ask(engine, tiny, "tell", max_tokens=120).end()  # so that all that follow find the same tokens read
    whole = Ask(engine, tiny, "tell", max_tokens=120).text
    for start, size in ((0, 1), (0, 4), (5, 1), (17, 3), (40, 8), (118, 2)):
        stop = whole[start : start + size]
        ask = Ask(engine, tiny, "tell", max_tokens=120, stop=["never said", stop])
        assert ask.text == whole[: whole.find(stop)]
        assert ask.end().reason == "stop"
        # Computing ends with the token that completes the string.
        assert ask.end().usage.completion_tokens == whole.find(stop) + size
    held = Ask(engine, tiny, "tell", max_tokens=120, stop=whole[110:] + "never")
    assert (held.text, held.end().reason) == (whole, "length")


def test_the_same_seed_gives_the_same_answer(engine: Engine, tiny: Path) -> None:
    def asked_alone(**options: int) -> Ask:
        # With nothing read before: other cells would be summed in another order, and round differently.
        engine.unload()
        ask = Ask(engine, tiny, "story", temperature=4.0, max_tokens=60, **options)
        ask.end()
        return ask

    drawn = [asked_alone() for _ in range(2)]
    seeds = [ask.end().report.seed for ask in drawn]
    assert seeds[0] != seeds[1]
    assert drawn[0].text != drawn[1].text
    for ask, seed in zip(drawn, seeds, strict=True):
        assert asked_alone(seed=seed).text == ask.text
    zero = [asked_alone(seed=0) for _ in range(2)]
    assert zero[0].text == zero[1].text
    assert zero[0].end().report.seed == 0
    assert asked_alone(seed=1).text != zero[0].text


def test_the_makers_sampling_is_used_where_the_person_says_nothing(engine: Engine, tiny: Path, judge: Judge) -> None:
    # The sampling belongs to the request's own spec, not to the one that the model was loaded with.
    for temperature, greedy in ((0, True), (9, False), (0, True)):
        spec = ModelSpec("tiny", tiny, Sampling(temperature=temperature))
        ask = Ask(engine, spec, "hello", max_tokens=60, temperature=None)
        ask.end()
        assert judge(ask) == greedy


# Several at once


def test_two_requests_at_once_both_progress(starter: Path) -> None:
    engine = Engine(1)
    try:
        first = Held(engine, starter, "Count from one to one thousand.", max_tokens=120)
        first.wait()
        second = Ask(engine, starter, "Write a long story.", max_tokens=40)
        first.let_go()
        second.end()
        first.end()
        mine, theirs = first.numbers(Piece), second.numbers(Piece)
        between = [number for number in mine if theirs[0] < number < theirs[-1]]
        assert mine[0] < theirs[0] < mine[-1]
        assert len(between) >= len(theirs) // 3
    finally:
        engine.close()


def test_more_requests_than_sequences_all_get_their_own_answer(engine: Engine, tiny: Path, judge: Judge) -> None:
    prompts = [f"question number {n}" for n in range(3 * SEQUENCES)]
    asks = [Ask(engine, tiny, prompt, max_tokens=30 + n) for n, prompt in enumerate(prompts)]
    texts = [ask.text for ask in asks]
    assert len(set(texts)) > SEQUENCES
    for n in range(len(asks)):
        assert judge(asks[n])


def test_a_short_question_does_not_wait_for_a_long_prompt_to_be_read(
    starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_BITE_WHILE_ANSWERING_S", 0.01)  # many bites on a fast machine too
    engine = Engine(1)
    try:
        talking = Held(engine, starter, "Count to one hundred.", max_tokens=400)
        talking.wait()
        reading = Ask(engine, starter, "word " * 300, max_tokens=1)
        talking.let_go()
        reading.end()
        began = next(number for number, event in reading.events if getattr(event, "stage", "") == "reading")
        # While the prompt was being read, the answer in progress went on.
        assert sum(began < number < reading.numbers(Finished)[0] for number in talking.numbers(Piece)) >= 3
        talking.cancel()
        idle(engine)
    finally:
        engine.close()


@pytest.mark.parametrize("patient", [False, True])
def test_who_is_watched_gets_a_token_after_every_bite_of_anothers_prompt(
    fresh: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge, patient: bool
) -> None:
    """One of many gives way: all are sooner through."""
    monkeypatch.setattr(running_module, "_BITE_WHILE_ANSWERING_S", 0.0)
    monkeypatch.setattr(running_module, "_BITE_S", 1e6)
    extras = Extras(patient=patient)
    answering = Held(fresh, tiny, "hello", max_tokens=200, localchat=extras)
    answering.wait()
    reading = Ask(fresh, tiny, "x" * 500, max_tokens=1, localchat=extras)
    answering.let_go()
    first = reading.wait_for(Piece) and reading.numbers(Piece)[0]
    before = sum(number < first for number in answering.numbers(Piece))
    assert before <= 5 if patient else before >= 500 // running_module._MIN_BITE_WHILE_ANSWERING
    assert judge(answering) and judge(reading)


def test_requests_for_another_model_wait_their_turn_and_get_it(engine: Engine, tiny: Path, other: Path) -> None:
    asks = [Ask(engine, model, "hello", max_tokens=40) for model in (tiny, other, tiny, other)]
    assert [ask.text for ask in asks[:2]] == [ask.text for ask in asks[2:]]
    assert asks[0].text != asks[1].text
    loaded = engine.loaded()
    assert loaded
    assert loaded.path == str(other)


@pytest.mark.usefixtures("small_start")
@pytest.mark.parametrize("can_move", [True, False])
def test_two_long_prompts_that_had_to_wait_for_each_other_do_so_only_once(
    fresh: Engine, tiny: Path, judge: Judge, can_move: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all where all that is there can move into a larger window."""
    if not can_move:
        monkeypatch.setattr(resident.Resident, "grow", lambda self, n_ctx: False)
    for letters in ("ab", "cd"):
        asks = [Held(fresh, tiny, letter * 500, max_tokens=400) for letter in letters]
        for ask in asks:
            ask.let_go()
        for ask in asks:
            assert len(ask.text) == 400
            assert judge(ask)
        first, second = (ask.numbers(Piece) for ask in asks)
        assert (second[0] < first[-1]) == (can_move or letters == "cd")


def test_who_was_let_in_by_a_wrong_sum_waits_until_another_has_ended(
    fresh: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would step aside and be let in again for ever, and nobody would get on."""
    short = write_model(tmp_path / "short.gguf", speaks=LETTERS, context=512)
    monkeypatch.setattr(PrefixCache, "cells_to_add", lambda self, tokens: 0)
    monkeypatch.setattr(Running, "tokens", lambda self, resident: 0)
    asks = [Ask(fresh, short, letter * 300, max_tokens=150) for letter in "ab"]
    assert [len(ask.text) for ask in asks] == [150, 150]


def test_everybody_who_waits_is_told(engine: Engine, tiny: Path, other: Path) -> None:
    running = Held(engine, tiny, "hello", max_tokens=1000)
    running.wait()
    waiting = [Ask(engine, other, "hello", max_tokens=5) for _ in range(3)]
    running.let_go()
    for ask in waiting:
        event = ask.wait_for(Progress)
        assert isinstance(event, Progress)
        assert event.stage == "queued"
        ask.end()
        assert ask.numbers(Progress)[0] < running.numbers(Finished)[0]


def test_a_file_that_was_replaced_is_loaded_anew(engine: Engine, tmp_path: Path, judge: Judge) -> None:
    texts = []
    for seed in (5, 6):
        path = write_model(tmp_path / "new.gguf", speaks=LETTERS, seed=seed)
        path = path.replace(tmp_path / "model.gguf")
        spec = ModelSpec("model", path, version=version_of(path.stat()))
        texts.append(Ask(engine, spec, "hello", max_tokens=40).text)
        assert Ask(engine, spec, "hello", max_tokens=1).end().report.cached_tokens
    assert texts[0] != texts[1]


# Cancelling (the threat model's T15)


@pytest.mark.parametrize("where", ["between two tokens", "in the middle of one"])
def test_a_request_cancelled_in_mid_answer_ends_without_a_word(
    engine: Engine, tiny: Path, judge: Judge, where: str
) -> None:
    ask = Held(engine, tiny, "hello", max_tokens=1900)
    ask.wait()
    with pytest.MonkeyPatch.context() as patch:
        if where == "between two tokens":
            ask.cancel()
        else:
            ask.cancel_in_mid_batch(patch)
        ask.let_go()
        idle(engine)
    assert len(ask.so_far) == 1
    assert not ask.numbers(Finished)
    assert judge(ask)
    after = Ask(engine, tiny, "hello", max_tokens=20)
    after.end()
    assert judge(after)


def test_cancelling_a_real_model_frees_the_engine_soon(starter: Path) -> None:
    engine = Engine(2)
    try:
        waits = []
        for prompt, at in (("Count to one thousand.", Piece), ("word " * 1700, "reading")) * 3:
            ask = Held(engine, starter, f"{len(waits)} {prompt}", max_tokens=300, at=at)
            ask.wait()
            with pytest.MonkeyPatch.context() as patch:
                ask.cancel_in_mid_batch(patch)
                began = time.monotonic()
                ask.let_go()
                idle(engine)
            waits.append(time.monotonic() - began)
            assert not ask.numbers(Finished)
        # An unlucky scheduler may cost one wait or two, never most of them.
        assert sorted(waits)[len(waits) // 2] < 2.0, waits
        assert "Paris" in Ask(engine, starter, *FRANCE, max_tokens=60).text
    finally:
        engine.close()


def test_cancelling_one_request_leaves_the_others_their_text(engine: Engine, tiny: Path, judge: Judge) -> None:
    asks = [Ask(engine, tiny, f"prompt {n}", max_tokens=200) for n in range(6)]
    asks[0].wait_for(Piece)
    for ask in asks[::2]:
        ask.cancel()
    for n in (1, 3, 5):
        asks[n].end()
        assert judge(asks[n])


def test_a_request_cancelled_in_the_queue_never_begins(engine: Engine, tiny: Path, other: Path) -> None:
    running = Held(engine, tiny, "hello", max_tokens=600)
    running.wait()
    waiting = Ask(engine, other, "hello", max_tokens=5)
    waiting.cancel()
    running.let_go()
    running.end()
    idle(engine)
    assert not waiting.events


@pytest.mark.parametrize("kind", ["tiny", "recurrent"])
def test_the_computation_is_stopped_only_where_that_costs_nobody_else(
    engine: Engine, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[resident.Resident] = []
    monkeypatch.setattr(resident.Resident, "abort", lambda self: stops.append(self))
    model = request.getfixturevalue(kind)
    steady, running = (Held(engine, model, prompt, max_tokens=1000) for prompt in ("hello", "you"))
    steady.let_go()
    waiting = Ask(engine, request.getfixturevalue("other"), "hello", max_tokens=5)
    running.wait()
    waiting.cancel()
    assert not stops
    running.cancel()
    assert len(stops) == (kind == "tiny")
    running.let_go()
    assert steady.end().usage.completion_tokens == 1000


def test_a_request_cancelled_while_its_model_loads_does_not_answer(fresh: Engine, tiny: Path, judge: Judge) -> None:
    holder: list[Ask] = []
    known = threading.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "loading" and known.wait(LONG_S):
            holder[0].cancel()

    holder.append(Ask(fresh, tiny, "hello", sink=on_event))
    known.set()
    idle(fresh)
    (ask,) = holder
    assert ask.numbers(Progress)
    assert not ask.numbers(Finished)
    assert all(isinstance(event, (Progress, Interrupted)) for _, event in ask.events)
    after = Ask(fresh, tiny, "hello", max_tokens=5)
    assert len(after.text) == 5
    assert judge(after)


# What was read is not read again


def test_a_repeated_prompt_reads_one_token(fresh: Engine, tiny: Path, judge: Judge) -> None:
    first = Ask(fresh, tiny, "the same question", max_tokens=30)
    assert first.end().report.cached_tokens == 0
    second = Ask(fresh, tiny, "the same question", max_tokens=30)
    end = second.end()
    assert end.report.cached_tokens == end.usage.prompt_tokens - 1
    details = end.usage.prompt_tokens_details
    assert details
    assert details.cached_tokens == end.report.cached_tokens
    assert judge(first)
    assert judge(second)


def test_a_conversation_that_goes_on_reads_only_what_is_new(fresh: Engine, tiny: Path, judge: Judge) -> None:
    first = Ask(fresh, tiny, "begin", max_tokens=50)
    turns = ("begin", Message("assistant", first.text), "and then?")
    second = Ask(fresh, tiny, *turns, max_tokens=50)
    # All but the last token of the answer, which was chosen and not yet computed.
    assert second.end().report.cached_tokens == first.end().usage.total_tokens - 1
    second.end()
    assert judge(second)


def test_a_fork_of_an_idle_conversation_keeps_both(fresh: Engine, tiny: Path, judge: Judge) -> None:
    common, tail = "c" * 60, "t" * 200
    Ask(fresh, tiny, common + tail, max_tokens=1).end()
    fork = Ask(fresh, tiny, common + "x", max_tokens=40)
    assert fork.end().report.cached_tokens == len("<user\n") + 60
    fork.end()
    assert judge(fork)
    again = Ask(fresh, tiny, common + tail, max_tokens=40)
    assert again.end().report.cached_tokens == again.end().usage.prompt_tokens - 1
    again.end()
    assert judge(again)


def test_a_fork_of_a_running_conversation_shares_its_beginning(fresh: Engine, tiny: Path, judge: Judge) -> None:
    prompt = "p" * 300
    running = Held(fresh, tiny, prompt, max_tokens=1200)
    running.wait()
    fork = Ask(fresh, tiny, prompt + "x", max_tokens=40)
    running.let_go()
    assert fork.end().report.cached_tokens == len("<user\n") + 300
    assert judge(fork)
    running.end()
    assert fork.numbers(Finished)[0] < running.numbers(Finished)[0]
    assert judge(running)


def test_going_back_in_a_conversation_cuts_it_without_a_trace(fresh: Engine, tiny: Path, judge: Judge) -> None:
    Ask(fresh, tiny, "a" * 100 + "b" * 50, max_tokens=30).end()
    back = Ask(fresh, tiny, "a" * 100, max_tokens=30)
    assert back.end().report.cached_tokens == len("<user\n") + 100
    back.end()
    assert judge(back)


def test_old_conversations_are_forgotten_when_the_window_is_full(fresh: Engine, folder: Path, judge: Judge) -> None:
    model = write_model(folder / "narrow.gguf", context=512, speaks=LETTERS)
    prompts = [f"{n}" * 200 for n in range(8)]
    for prompt in prompts * 2:
        ask = Ask(fresh, model, prompt, max_tokens=100)
        assert ask.end().reason == "length"
        assert len(ask.text) == 100
        assert judge(ask)
    # The last one is still known, the first of them is not; all are answered right.
    assert Ask(fresh, model, prompts[-1], max_tokens=5).end().report.cached_tokens > 200
    assert Ask(fresh, model, prompts[0], max_tokens=5).end().report.cached_tokens < 20


# The window


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(engine: Engine, tiny: Path) -> None:
    with pytest.raises(ContextExceeded, match=f"{OVERHEAD + 2040} tokens.* 2048") as caught:
        Ask(engine, tiny, "x" * 2040).end()
    assert "new chat" in caught.value.message
    with pytest.raises(ContextExceeded, match=f"{OVERHEAD + 290} tokens.* 300.*larger context .*2048"):
        Ask(engine, tiny, "x" * 290, localchat=Extras(context=300)).end()
    assert Ask(engine, tiny, "x" * (2047 - OVERHEAD), max_tokens=9).end().usage.completion_tokens == 1


def test_messages_that_are_too_long_by_themselves_are_refused_before_they_are_rendered(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ask(engine, tiny, "hello", max_tokens=1).end()
    monkeypatch.setattr(TemplateRenderer, "render", lambda *_, **__: 1 // 0)
    with pytest.raises(ContextExceeded, match=r"has 200000 tokens.* 2048"):
        Ask(engine, tiny, "x" * 150_000, Message("assistant", "x" * 5000), "x" * 50_000).end()


def test_megabytes_are_refused_before_they_are_tokenized(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ask(engine, tiny, "hello", max_tokens=1).end()
    seen, tokenize = [], Model.tokenize

    def watched(self: Model, text: str, *, parse_special: bool) -> list[int]:
        seen.append(len(text))
        return tokenize(self, text, parse_special=parse_special)

    monkeypatch.setattr(Model, "tokenize", watched)
    with pytest.raises(ContextExceeded, match=r"about 5000000 tokens.* 2048"):
        Ask(engine, tiny, "x" * 2_000_000, Message("assistant", "y" * 5000), "z" * 3_000_000).end()
    assert sum(seen) < 200_000


def test_what_only_seems_too_long_is_counted(engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_module, "_LONG", 100)
    monkeypatch.setattr(prompt_module, "_SAMPLE", 10)
    text = "x" * (2000 - OVERHEAD)
    assert Ask(engine, tiny, text, max_tokens=9).end().usage.prompt_tokens == 2000
    with pytest.raises(ContextExceeded, match=f"has {OVERHEAD + 2040} tokens"):
        Ask(engine, tiny, "x" * 2040).end()


def test_sliding_does_not_tokenize_what_can_never_fit(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ask(engine, tiny, "hello", max_tokens=1).end()
    monkeypatch.setattr(TemplateRenderer, "render", lambda *_, **__: 1 // 0)
    with pytest.raises(ContextExceeded, match=r"about 3000000 tokens.* 2048"):
        Ask(engine, tiny, "x", Message("assistant", "y"), "z" * 3_000_000, localchat=Extras(overflow="slide")).end()


def test_one_of_many_lets_those_go_first_that_a_person_waits_for(fresh: Engine, tiny: Path) -> None:
    gate = threading.Event()
    blocker = Ask(fresh, tiny, "wait", max_tokens=1, sink=lambda event: gate.wait(LONG_S))
    blocker.wait_for(object)
    many = [Ask(fresh, tiny, f"{n}" * 9, max_tokens=3, localchat=Extras(patient=True)) for n in range(SEQUENCES + 4)]
    person = Ask(fresh, tiny, "now", max_tokens=3)
    other = Ask(fresh, tiny, "and now", max_tokens=3)
    gate.set()
    for ask in (*many, person, other):
        ask.end()
    firsts = [ask.numbers(Piece)[0] for ask in (person, other, *many[-5:])]
    assert firsts == sorted(firsts), "the last of the many were not let in before"


def test_who_comes_first_while_one_of_many_is_let_in_loses_nothing(
    fresh: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    """The queue changes while the engine is at the door: loading, rendering and growing take their time."""
    inside, go_on = threading.Event(), threading.Event()
    letting_in = Engine._let_in

    def slow(self: Engine, work: Job | Task) -> object:
        if isinstance(work, Job) and not go_on.is_set():
            inside.set()
            go_on.wait(LONG_S)
        return letting_in(self, work)

    monkeypatch.setattr(Engine, "_let_in", slow)
    patient = [Ask(fresh, tiny, word * 9, max_tokens=5, localchat=Extras(patient=True)) for word in "ab"]
    assert inside.wait(LONG_S)
    person = Ask(fresh, tiny, "now", max_tokens=5)
    cancelled = Ask(fresh, tiny, "or not", max_tokens=5)
    cancelled.cancel()
    go_on.set()
    for ask in (*patient, person):
        assert len(ask.text) == 5 and judge(ask)
    idle(fresh)
    resident_ = fresh._resident
    assert resident_ and not any(sequence.busy for sequence in resident_.cache.sequences)


def test_an_explicit_context_is_a_limit(engine: Engine, tiny: Path) -> None:
    Ask(engine, tiny, "x", max_tokens=1500).end()
    for limit in (256, 300, 1000):
        ask = Ask(engine, tiny, "hello", localchat=Extras(context=limit))
        assert ask.end().reason == "length"
        assert ask.end().usage.total_tokens == limit


def test_the_engines_own_context_is_a_limit_too(tiny: Path) -> None:
    engine = Engine(1, context=512)
    try:
        assert Ask(engine, tiny, "hello").end().usage.total_tokens == 512
        loaded = engine.loaded()
        assert loaded
        assert loaded.context == 512
        with pytest.raises(ContextExceeded, match="512"):
            Ask(engine, tiny, "x" * 600).end()
    finally:
        engine.close()


def test_a_sliding_request_drops_the_oldest_turns_and_says_how_many(engine: Engine, tiny: Path, judge: Judge) -> None:
    turns = [Message("user" if n % 2 == 0 else "assistant", f"{n}" * 50) for n in range(9)]
    ask = Ask(engine, tiny, *turns, max_tokens=10, localchat=Extras(context=300, overflow="slide"))
    end = ask.end()
    assert end.report.dropped_messages > 0
    assert end.report.dropped_messages % 2 == 0
    assert end.usage.prompt_tokens <= 290
    ask.turns = turns[end.report.dropped_messages :]
    ask.end()
    assert judge(ask)


@pytest.mark.usefixtures("small_start")
def test_the_window_grows_in_mid_answer_and_the_answer_goes_on(fresh: Engine, tiny: Path, judge: Judge) -> None:
    ask = Ask(fresh, tiny, "hello")
    end = ask.end()
    assert end.usage.total_tokens == 2048
    assert end.report.context == 2048
    assert (end.reason, end.report.cached_tokens) == ("length", 0)
    assert len(ask.text) == 2048 - OVERHEAD - 5
    ask.end()
    assert judge(ask)


@pytest.mark.usefixtures("small_start")
def test_the_window_grows_for_a_long_prompt_and_the_conversation_stays_known(
    fresh: Engine, tiny: Path, judge: Judge
) -> None:
    first = Ask(fresh, tiny, "begin", max_tokens=100)
    first.end()
    loaded = fresh.loaded()
    assert loaded
    assert loaded.context == 256
    turns = ("begin", Message("assistant", first.text), "x" * 700)
    second = Ask(fresh, tiny, *turns, max_tokens=50)
    assert second.end().report.cached_tokens == first.end().usage.total_tokens - 1
    loaded = fresh.loaded()
    assert loaded
    # It grew by doubling; what prompt and answer may share is more.
    assert (loaded.context, second.end().report.context) == (1024, 2048)
    second.end()
    assert judge(second)


@pytest.mark.usefixtures("small_start")
def test_a_large_allowance_makes_no_large_window(fresh: Engine, tiny: Path) -> None:
    ask = Held(fresh, tiny, "hello", max_tokens=2000)
    ask.wait()
    loaded = fresh.loaded()
    ask.cancel()
    ask.let_go()
    assert loaded
    assert loaded.context <= 1024


@pytest.mark.usefixtures("small_start")
def test_the_conversation_that_needs_a_larger_window_moves_into_it(fresh: Engine, tiny: Path) -> None:
    mine = Ask(fresh, tiny, "begin", max_tokens=100)
    mine.end()
    Ask(fresh, tiny, "something else", max_tokens=10).end()
    turns = ("begin", Message("assistant", mine.text), "x" * 700)
    assert Ask(fresh, tiny, *turns, max_tokens=5).end().report.cached_tokens == mine.end().usage.total_tokens - 1


@pytest.mark.usefixtures("small_start")
def test_a_prompt_that_fits_is_answered_where_memory_forbids_room_for_a_long_answer(
    fresh: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    Ask(fresh, tiny, "hello", max_tokens=5).end()
    monkeypatch.setattr(resident, "available_memory", lambda: 0)
    ask = Ask(fresh, tiny, "x" * 150)
    assert (ask.end().reason, ask.end().usage.total_tokens) == ("length", 256)
    assert judge(ask)


@pytest.mark.usefixtures("small_start")
def test_where_memory_forbids_a_comfortable_window_the_smallest_that_holds_the_prompt_is_made(
    fresh: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    make = resident.Context

    def refuse(model: object, n_ctx: int, *rest: object) -> object:
        if n_ctx > 768:
            raise DoesNotFit("1 GiB are free")
        return make(model, n_ctx, *rest)

    monkeypatch.setattr(resident, "Context", refuse)
    ask = Ask(fresh, tiny, "x" * 600)
    assert (ask.end().reason, ask.end().usage.total_tokens) == ("length", 768)
    assert judge(ask)


@pytest.mark.usefixtures("small_start")
def test_the_window_grows_while_several_answer(fresh: Engine, tiny: Path, judge: Judge) -> None:
    asks = [Ask(fresh, tiny, f"prompt {n}", max_tokens=400 + 100 * n) for n in range(4)]
    for ask in asks:
        ask.end()
        assert judge(ask)


def test_several_answers_that_do_not_fit_together_still_end_with_the_right_text(
    fresh: Engine, folder: Path, judge: Judge
) -> None:
    model = write_model(folder / "tight.gguf", context=512, speaks=LETTERS)
    asks = [Ask(fresh, model, f"{n}" * 40, max_tokens=350) for n in range(5)]
    aside = 0
    stepping = Running.step

    def counted(self: Running, model: resident.Resident) -> list[Job]:
        nonlocal aside
        stepped = stepping(self, model)
        aside += len(stepped)
        return stepped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Running, "step", counted)
        late = [Ask(fresh, model, f"{n}" * 60, max_tokens=200 if n % 2 else 420) for n in range(5, 9)]
        everybody = [*asks, *late]
        ends = [ask.end() for ask in everybody]
    assert aside > 0
    for n, (ask, end) in enumerate(zip(everybody, ends, strict=True)):
        assert end.reason == "length"
        assert judge(ask)
        assert len(ask.text) == end.usage.completion_tokens == (350 if n < 5 else 200 if n % 2 else 420)


def test_where_memory_forbids_a_larger_window_the_answer_ends_there(
    fresh: Engine, tiny: Path, small_start: None, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    monkeypatch.setattr(seats, "ANSWER_RESERVE", 16)
    ask = Held(fresh, tiny, "hello")
    ask.wait()
    monkeypatch.setattr(resident, "available_memory", lambda: 0)
    ask.let_go()
    end = ask.end()
    assert end.reason == "length"
    assert 256 <= end.usage.total_tokens < 2048
    with pytest.raises(DoesNotFit, match="GiB"):
        Ask(fresh, tiny, "x" * 1500).end()
    # What is in memory goes on working.
    after = Ask(fresh, tiny, "hello", max_tokens=5)
    assert len(after.text) == 5
    assert judge(after)


def test_a_window_that_cannot_be_made_fails_one_request_and_the_next_makes_another(
    fresh: Engine, tiny: Path, small_start: None, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    monkeypatch.setattr(seats, "ANSWER_RESERVE", 16)
    make = resident.Context

    def refuse(model: object, n_ctx: int, *rest: object) -> object:
        if n_ctx > 256:
            raise EngineFailed("no window today")
        return make(model, n_ctx, *rest)

    monkeypatch.setattr(resident, "Context", refuse)
    ask = Ask(fresh, tiny, "hello")
    # The old window is made again, so that what was said stands.
    assert (ask.end().reason, ask.end().usage.total_tokens) == ("length", 256)
    after = Ask(fresh, tiny, "hello", max_tokens=5)
    assert len(after.text) == 5
    assert judge(after)


@pytest.mark.usefixtures("small_start")
def test_a_window_that_cannot_grow_under_a_request_is_not_made_anew_at_every_token(
    fresh: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    make, sizes = resident.Context, []

    def refuse(model: object, n_ctx: int, *rest: object) -> object:
        sizes.append(n_ctx)
        if n_ctx > 256:
            raise DoesNotFit("0.1 GiB are free")
        return make(model, n_ctx, *rest)

    monkeypatch.setattr(resident, "Context", refuse)
    long = Ask(fresh, tiny, "hello", max_tokens=150)
    long.wait_for(Piece)
    waiting = Ask(fresh, tiny, "x" * 200, max_tokens=5)
    assert len(long.text) == 150 and judge(long)
    tried = len(sizes)
    assert len(waiting.text) == 5 and judge(waiting)
    assert tried <= 4 < len(long.text)


# Loading


def test_unload_gives_the_model_back_and_the_next_request_loads_it(engine: Engine, tiny: Path, judge: Judge) -> None:
    Ask(engine, tiny, "hello", max_tokens=20).end()
    engine.unload()
    idle(engine)
    assert engine.loaded() is None
    after = Ask(engine, tiny, "hello", max_tokens=20)
    after.end()
    assert judge(after)


def test_unload_waits_for_running_answers(engine: Engine, tiny: Path) -> None:
    ask = Ask(engine, tiny, "hello", max_tokens=800)
    ask.wait_for(Piece)
    engine.unload()
    after = Ask(engine, tiny, "hello", max_tokens=10)
    assert len(ask.text) == 800
    assert len(after.text) == 10
    assert after.end().report.cached_tokens == 0


def test_load_keeps_a_model_warm_with_the_wanted_window(fresh: Engine, tiny: Path) -> None:
    fresh.load(ModelSpec("tiny", tiny), 1024).result(LONG_S)
    loaded = fresh.loaded()
    assert loaded
    assert (loaded.context, loaded.context_trained, loaded.architecture) == (1024, 2048, "llama")
    assert loaded.kv_bytes == Model(tiny).kv_bytes_estimate(1024)
    assert loaded.file_bytes == tiny.stat().st_size
    ask = Ask(fresh, tiny, "hello", max_tokens=5)
    ask.end()
    assert not [event for _, event in ask.events if isinstance(event, Progress) and event.stage == "loading"]


def test_load_asks_for_no_more_than_the_model_was_trained_for(fresh: Engine, tiny: Path) -> None:
    fresh.load(ModelSpec("tiny", tiny), 1 << 30).result(LONG_S)
    loaded = fresh.loaded()
    assert loaded
    assert loaded.context == 2048


def test_the_size_of_shards_is_found_whatever_their_name(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m[a]*-0000{part}-of-00002.gguf").write_bytes(b"1234")
    assert _size_with_shards(tmp_path / "m[a]*-00001-of-00002.gguf") == 8


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "not there", "folder", "tensors"])
def test_a_damaged_file_fails_alone(engine: Engine, tiny: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.gguf"
    whole = tiny.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1000])
    elif damage == "garbage":
        path.write_bytes(random.Random(1).randbytes(5000))
    elif damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()
    elif damage == "tensors":
        path.write_bytes(whole.replace(b"token_embd.weight", b"token_embd.wEight"))
    waiting = [Ask(engine, path, "hello"), Ask(engine, tiny, "hello", max_tokens=5), Ask(engine, path, "hello")]
    for ask in waiting[::2]:
        with pytest.raises(DamagedFile, match=r"bad\.gguf"):
            ask.end()
    assert waiting[1].text
    future = engine.tokenize(ModelSpec("bad", path), "x")
    with pytest.raises(DamagedFile):
        future.result(LONG_S)
    assert len(Ask(engine, tiny, "hello", max_tokens=5).text) == 5


def test_tokenize_counts_content_only(engine: Engine, tiny: Path) -> None:
    tokens = engine.tokenize(ModelSpec("tiny", tiny), "a<|im_end|>é\0").result(LONG_S)
    assert tokens == list("a<|im_end|>é\0".encode())


# Nothing kills the thread


def test_a_listener_that_raises_ends_its_own_request_only(engine: Engine, tiny: Path) -> None:
    def raises(event: Event) -> None:
        raise RuntimeError("gone")

    for letter, kind in zip("abcd", (Piece, Progress, Finished, LocalchatError), strict=True):
        good = Ask(engine, tiny, "good", max_tokens=100)
        bad = Ask(
            engine, tiny, letter * (9000 if kind is LocalchatError else 1500), max_tokens=100,
            sink=lambda event, kind=kind: raises(event) if isinstance(event, kind) else None,
        )  # fmt: skip
        assert len(good.text) == 100
        idle(engine)
        assert isinstance(bad.events[-1][1], kind)
    assert Ask(engine, tiny, "hello", max_tokens=5).text


def test_an_unforeseen_error_in_a_step_ends_what_runs_and_the_next_request_works(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    ask = Held(engine, tiny, "hello", max_tokens=1900)
    ask.wait()
    with monkeypatch.context() as patch:
        patch.setattr(resident.Context, "begin", lambda self: 1 // 0)
        ask.let_go()
        with pytest.raises(LocalchatError, match="ZeroDivisionError"):
            ask.end()
    after = Ask(engine, tiny, "hello", max_tokens=20)
    after.end()
    assert judge(after)


def test_an_unforeseen_error_while_letting_in_fails_one_request(
    engine: Engine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prefix_cache.PrefixCache, "take", lambda self, tokens: 1 // 0)
        with pytest.raises(LocalchatError, match="ZeroDivisionError"):
            Ask(engine, tiny, "hello").end()
    assert Ask(engine, tiny, "hello", max_tokens=5).text


def test_a_future_that_nobody_waits_for_any_more_troubles_nobody(engine: Engine, tiny: Path) -> None:
    spec = ModelSpec("tiny", tiny)
    gate = threading.Event()
    blocker = Ask(engine, tiny, "x", max_tokens=1, sink=lambda _: gate.wait(LONG_S))
    queued = engine.tokenize(spec, "hello")
    assert queued.cancel()
    gate.set()
    blocker.end()
    # Cancelled while it runs, whether it then ends well or badly.
    well = Task(spec, None, lambda _: well.future.cancel())
    badly = Task(spec, None, lambda _: badly.future.cancel() and 1 // 0)
    for task in (well, badly):
        engine._enqueue(task)
        idle(engine)
        assert task.future.cancelled()
    assert Ask(engine, tiny, "hello", max_tokens=5).text


def test_closing_fails_what_is_on_its_way_and_takes_nothing_more(tiny: Path, other: Path) -> None:
    engine = Engine(1)

    def hold(event: Event) -> None:
        while isinstance(event, Piece) and not engine._closing:
            time.sleep(0.001)

    running = Ask(engine, tiny, "hello", max_tokens=1900, sink=hold)
    running.wait_for(Piece)
    waiting = Ask(engine, other, "hello")
    loading = engine.load(ModelSpec("other", other))
    engine.unload()
    engine.close()
    for ask in (running, waiting):
        assert isinstance(ask.events[-1][1], EngineFailed)
    with pytest.raises(EngineFailed):
        loading.result(0)
    with pytest.raises(EngineFailed):
        Ask(engine, tiny, "hello")
    assert engine.loaded() is None
    # Another engine in the same process is not touched by that, its `unload` included.
    second = Engine(1)
    try:
        Ask(second, tiny, "hello", max_tokens=5).end()
        second.unload()
        idle(second)
        assert second.loaded() is None
    finally:
        second.close()


@pytest.mark.usefixtures("small_start")
def test_any_mixture_of_requests_ends_with_the_right_texts(
    fresh: Engine, tiny: Path, other: Path, judge: Judge
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    asked: list[tuple[Ask, int]] = []
    for _ in range(60):
        model = other if chance.random() < 0.1 else tiny
        prompt = chance.choice("abc") * chance.randrange(1, 300) + chance.choice("xyz") * chance.randrange(3)
        size = chance.randrange(1, 300)
        ask = Ask(fresh, model, prompt, max_tokens=size)
        asked.append((ask, size))
        if chance.random() < 0.5:
            time.sleep(chance.random() / 50)
        if chance.random() < 0.3:
            ask.cancel()
        if chance.random() < 0.05:
            fresh.unload()
    idle(fresh)
    for ask, size in asked:
        if not ask.job.cancelled:
            assert len(ask.text) == size, seed
        assert judge(ask), (seed, ask.turns)


# Memories of other kinds


@pytest.fixture(scope="module")
def windowed(folder: Path) -> Path:
    """A sliding window of 64 tokens in five layers of six."""
    return write_model(
        folder / "windowed.gguf", architecture="gemma3", layers=6, window=64, width=32, context=2048, speaks=LETTERS
    )


@pytest.fixture(scope="module")
def recurrent(folder: Path) -> Path:
    return write_model(folder / "recurrent.gguf", architecture="mamba", speaks=LETTERS)


def test_the_memory_of_a_sliding_window_is_not_overestimated(fresh: Engine, windowed: Path) -> None:
    fresh.load(ModelSpec("windowed", windowed), 2048).result(LONG_S)
    loaded = fresh.loaded()
    assert loaded
    estimate = Model(windowed).kv_bytes_estimate(2048)
    assert loaded.kv_bytes / 4 < estimate <= loaded.kv_bytes


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_other_memories_give_the_right_text_after_going_on_back_and_forking(
    fresh: Engine, kind: str, request: pytest.FixtureRequest, judge: Judge
) -> None:
    model = request.getfixturevalue(kind)
    first = Ask(fresh, model, "a" * 300, max_tokens=100)
    on = ("a" * 300, Message("assistant", first.text), "b" * 30)
    went_on = Ask(fresh, model, *on, max_tokens=60)
    assert went_on.end().report.cached_tokens == first.end().usage.total_tokens - 1
    went_on.end()
    assert judge(went_on)
    for turns in (
        ("a" * 300,),
        ("a" * 299 + "x",),
        ("a" * 150,),
        ("a" * 30 + "y" * 300,),
        on,
        ("a" * 300,),
        ("a" * 20,),
    ):
        ask = Ask(fresh, model, *turns, max_tokens=60)
        ask.end()
        assert judge(ask)
        assert ask.end().report.cached_tokens < ask.end().usage.prompt_tokens


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_other_memories_serve_several_at_once(
    fresh: Engine, kind: str, request: pytest.FixtureRequest, judge: Judge
) -> None:
    model = request.getfixturevalue(kind)
    prompts = [chr(ord("a") + n) * (40 + 30 * n) for n in range(12)]
    asks = [Ask(fresh, model, prompt, max_tokens=120) for prompt in prompts]
    for ask in asks:
        ask.end()
        assert judge(ask)


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_other_memories_survive_being_cancelled(
    fresh: Engine, kind: str, request: pytest.FixtureRequest, judge: Judge
) -> None:
    model = request.getfixturevalue(kind)
    for _ in range(10):
        ask = Ask(fresh, model, "h" * 80, max_tokens=1500)
        steady = Ask(fresh, model, "h" * 80, max_tokens=400)
        ask.wait_for(Piece)
        ask.cancel()
        assert len(steady.text) == 400
        assert judge(steady)


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
@pytest.mark.usefixtures("small_start")
def test_other_memories_move_into_a_larger_window(
    fresh: Engine, kind: str, request: pytest.FixtureRequest, judge: Judge
) -> None:
    model = request.getfixturevalue(kind)
    ask = Ask(fresh, model, "hello", max_tokens=1200)
    assert len(ask.text) == 1200
    ask.end()
    assert judge(ask)


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(starter: Path) -> None:
    engine = Engine(2)
    process = psutil.Process()
    try:
        sizes = []
        for n in range(260):
            Ask(engine, starter, f"{n}: say a word", max_tokens=3, temperature=0.9, repeat_penalty=1.1).end()
            sizes.append(process.memory_info().rss)
        # The first sixty fill every sequence and every pool.
        assert sizes[-1] - sizes[60] < 8 << 20
    finally:
        engine.close()


@pytest.mark.slow
def test_a_tiny_model_on_the_real_vocabulary_survives_a_thousand_mixed_requests(starter: Path, folder: Path) -> None:
    model = write_model(folder / "words.gguf", vocabulary=vocabulary_of(starter), width=32)
    engine = Engine(1)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    try:
        for _ in range(50):
            asks = [
                Ask(engine, model, "word " * chance.randrange(1, 300), max_tokens=chance.randrange(1, 80))
                for _ in range(20)
            ]
            for ask in chance.sample(asks, 6):
                ask.cancel()
            idle(engine)
            for ask in asks:
                if not ask.job.cancelled:
                    ask.end()
    finally:
        engine.close()


def test_the_byte_vocabulary_is_what_these_tests_count_on(engine: Engine, tiny: Path) -> None:
    assert len(BYTES.tokens) == 259
    ask = Ask(engine, tiny, "", max_tokens=1)
    assert ask.end().usage.prompt_tokens == OVERHEAD


def test_a_file_that_is_replaced_while_its_request_waits_is_not_loaded(
    engine: Engine, tiny: Path, tmp_path: Path
) -> None:
    """It was verified as what it was before, and what is saved would be saved in its name."""
    path = write_model(tmp_path / "model.gguf", speaks=LETTERS, seed=5)
    meant = ModelSpec("model", path, version=version_of(path.stat()))
    gate = threading.Event()
    blocker = Ask(engine, tiny, "wait", max_tokens=1, sink=lambda event: gate.wait(LONG_S))
    blocker.wait_for(object)
    asked = Ask(engine, meant, "hello", max_tokens=5)
    write_model(tmp_path / "new.gguf", speaks=LETTERS, seed=6).replace(path)
    gate.set()
    with pytest.raises(EngineFailed, match="the file of model was replaced meanwhile: ask again"):
        asked.end()
    now = ModelSpec("model", path, version=version_of(path.stat()))
    assert Ask(engine, now, "hello", max_tokens=5).end().usage.completion_tokens == 5


def test_other_parts_behind_the_same_first_are_another_model(tiny: Path) -> None:
    one, other, unknown = (ModelSpec("model", tiny, sha256=sha256) for sha256 in ("a" * 64, "b" * 64, ""))
    assert one.is_same(one) and one.is_same(unknown) and not one.is_same(other)


def test_an_answer_that_ends_for_want_of_room_lets_those_in_who_stepped_aside(engine: Engine, tiny: Path) -> None:
    Ask(engine, tiny, "hello", max_tokens=1).end()
    idle(engine)
    counted = engine._running.ended
    gate = threading.Event()
    held = Ask(engine, tiny, "hello", max_tokens=9, sink=lambda event: gate.wait(LONG_S))
    held.wait_for(Piece)
    resident_ = engine._resident
    assert resident_
    resident_.context.decode, decode = _no_room, resident_.context.decode  # type: ignore[method-assign]
    try:
        gate.set()
        assert held.end().reason == "length"
    finally:
        resident_.context.decode = decode  # type: ignore[method-assign]
    assert engine._running.ended == counted + 1


def _no_room() -> None:
    raise NoRoom
