"""Drafts: the lookup finds what a plain search finds, they are used only where they pay, and they change no answer.

The policy is judged by a made-up clock. Exactness is judged with drafts that are right for some tokens and then wrong,
so that every way to end in the middle of one is met: `oracle` knows what the model will say.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localchat.engine import running
from localchat.engine.drafts import _CANDIDATES, _FAR, _READ_AT_ONCE, _WORD, LONGEST, DraftPolicy, Lookup
from localchat.engine.job import Finished
from localchat.engine.model import Model
from localchat.engine.scheduler import Engine
from localchat.engine.text import Piece
from localchat.errors import LocalchatError
from localchat.protocol import Extras, Message
from tests.engine.reference import Reference
from tests.engine.test_scheduler import Ask, Held, Judge, folder, idle, judge, tiny  # noqa: F401  (fixtures)
from tests.tiny_models import CHATML, END, LETTERS, write_model

# The lookup


def in_common(tokens: list[int], place: int, end: int) -> int:
    """How many tokens before two places are the same."""
    common = 0
    while common < min(place, _FAR) and tokens[place - 1 - common] == tokens[end - 1 - common]:
        common += 1
    return common


class PlainLookup:
    """The same by plain search: stay where the last token was foreseen, else take the longest of the latest places."""

    def __init__(self) -> None:
        self.source = self.agreed = 0

    def search(self, tokens: list[int]) -> None:
        end = len(tokens)
        places = [p for p in range(end - 1, _WORD - 1, -1) if tokens[p - _WORD : p] == tokens[-_WORD:]]
        for place in places[:_CANDIDATES]:
            if (common := in_common(tokens, place, end)) > self.agreed:
                self.source, self.agreed = place, common

    def follow(self, tokens: list[int]) -> None:
        if self.source:
            is_right = tokens[self.source] == tokens[-1]
            self.source, self.agreed = self.source + 1, min(self.agreed + 1, _FAR) if is_right else 0
        if self.agreed < _WORD:
            self.search(tokens)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=80))
def test_the_lookup_finds_what_a_plain_search_finds(prompt: list[int], answer: list[int]) -> None:
    tokens, plain = list(prompt), PlainLookup()
    lookup = Lookup(tokens)
    assert lookup.follow()
    if len(prompt) > LONGEST + 1:
        plain.search(tokens)
    else:
        for end in range(1, len(prompt) + 1):
            plain.follow(prompt[:end])
    for token in answer:
        tokens.append(token)
        plain.follow(tokens)
        assert lookup.follow()
        assert lookup.agreed == plain.agreed
        if plain.source:
            assert lookup.draft(1) == tokens[plain.source : plain.source + 1]
            assert len(lookup.draft(LONGEST)) == LONGEST
        assert bool(next(lookup.chances(), 0)) == bool(plain.source)


def test_a_text_that_goes_round_is_drafted_round_and_round() -> None:
    lookup = Lookup([9, 1, 2, 3, 4, 1, 2, 3])
    lookup.follow()
    assert lookup.draft(7) == [4, 1, 2, 3, 4, 1, 2]


def test_the_longest_of_several_places_is_taken_and_not_the_latest() -> None:
    lookup = Lookup([7, 8, 1, 2, 3, 50, 0, 0, 1, 2, 3, 60, 0, 0, 0, 0, 0, 7, 8, 1, 2, 3])
    lookup.follow()
    assert lookup.draft(1) == [50]
    assert lookup.agreed == 5


def test_after_a_changed_word_the_source_goes_on_behind_it() -> None:
    text = list(range(100, 130))
    tokens = [*text, *text[:10]]
    lookup = Lookup(tokens)
    lookup.follow()
    tokens.append(999)
    lookup.follow()
    assert lookup.draft(3) == text[11:14]
    assert lookup.agreed == 0


def test_a_long_prompt_is_taken_in_by_bites_and_each_token_once() -> None:
    random.seed(1)
    tokens = [random.randrange(50000) for _ in range(3 * _READ_AT_ONCE)] * 2
    lookup = Lookup(tokens)
    assert [lookup.follow() for _ in range(6)] == [False] * 5 + [True]
    assert not list(Lookup(tokens).chances())
    assert lookup.draft(2) == tokens[:2]
    assert len(lookup._latest) <= len(tokens)
    assert len(lookup._before) == len(tokens)


# The policy


class Machine:
    """A clock for the policy: `seconds` says how long a step of so many tokens takes after so much time."""

    def __init__(self, seconds: Callable[[int, float], float]) -> None:
        self.policy = DraftPolicy()
        self.seconds = seconds
        self.now = self.plain = 0.0
        self.lengths: list[int] = []
        self.when: list[float] = []

    def say(self, prompt: list[int], answer: list[int]) -> None:
        """Answer with drafts; `plain` is how long it would have taken without."""
        tokens = list(prompt)
        lookup = Lookup(tokens)
        while not lookup.follow():
            pass
        at = 0
        while at < len(answer):
            lookup.follow()
            wish = (lookup, min(LONGEST, len(answer) - at - 1))
            (length,) = self.policy.lengths([wish], 1, LONGEST, (2, 2), 0.003)
            draft, said = lookup.draft(length), 0
            for place in range(length + 1):
                tokens.append(answer[at + said])
                said += 1
                if place == length or draft[place] != tokens[-1]:
                    break
            at += said
            seconds = self.seconds(1 + length, self.now)
            self.plain += said * self.seconds(1, self.now)
            self.now += seconds
            self.lengths.append(length)
            self.when.append(self.now)
            self.policy.took(1, 1 + length, said, seconds)

    @property
    def gain(self) -> float:
        return self.plain / self.now


def rising(per_token: float, plain: float = 0.015) -> Callable[[int, float], float]:
    """Each further token in a batch costs `per_token` of what a single one costs."""
    return lambda tokens, now: plain * (1 + per_token * (tokens - 1))


def novel(words: int, seed: int = 1) -> list[int]:
    """Text of common three-word phrases that each go on in another way: a lookup finds much, and all of it is wrong."""
    draw = random.Random(seed)
    phrases = [[draw.randrange(100) for _ in range(_WORD)] for _ in range(20)]
    text: list[int] = []
    while len(text) < words:
        text += [*draw.choice(phrases), draw.randrange(1000, 50000)]
    return text


FILE = [random.Random(2).randrange(50000) for _ in range(600)]


def edited(every: int) -> list[int]:
    """The file with each so-manieth token changed."""
    return [60000 if place % every == every - 1 else token for place, token in enumerate(FILE)]


@pytest.mark.parametrize(("per_token", "least"), [(0.1, 3.0), (0.3, 1.8), (0.5, 1.3)])
def test_copying_is_faster_where_batches_pay(per_token: float, least: float) -> None:
    machine = Machine(rising(per_token))
    machine.say(FILE, FILE)
    assert machine.gain > least
    changed = Machine(rising(per_token))
    changed.say(FILE, edited(12))
    assert 1 + (least - 1) / 3 < changed.gain < machine.gain


@pytest.mark.parametrize("per_token", [0.1, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("text", ["novel", "edited at every third word", "copied"])
def test_drafts_never_cost_more_than_a_fiftieth(per_token: float, text: str) -> None:
    answers = {"novel": novel(600), "edited at every third word": edited(3), "copied": FILE}
    machine = Machine(rising(per_token))
    machine.say(FILE if text != "novel" else novel(600, seed=7), answers[text])
    assert machine.gain > 0.975
    if per_token >= 1.0:
        # Only that it may have become otherwise is tried now and then.
        assert sum(length > 0 for length in machine.lengths[50:]) <= 6


def test_what_was_gained_is_not_gambled_away() -> None:
    machine = Machine(rising(0.3))
    machine.say(FILE, FILE)
    before = machine.plain - machine.now
    spent = machine.now
    machine.say(novel(600, seed=7), novel(300))
    lost = before - (machine.plain - machine.now)
    assert lost < 0.03 * (machine.now - spent)


def test_a_noisy_clock_does_not_lead_astray() -> None:
    noise = random.Random(3)

    def noisy(per_token: float) -> Callable[[int, float], float]:
        exact = rising(per_token)
        # One step in twenty takes five times as long, as on a machine that does other things too.
        return lambda tokens, now: exact(tokens, now) * noise.uniform(0.9, 1.1) * (5 if noise.random() < 0.05 else 1)

    def expected(machine: Machine, per_token: float) -> float:
        exact = rising(per_token)
        return (len(FILE) * exact(1, 0)) / sum(exact(1 + length, 0) for length in machine.lengths)

    pays, does_not = Machine(noisy(0.2)), Machine(noisy(1.2))
    pays.say(FILE, FILE)
    does_not.say(FILE, FILE)
    assert expected(pays, 0.2) > 1.8
    assert expected(does_not, 1.2) > 0.96


def test_the_policy_follows_a_machine_that_changes() -> None:
    cheap, dear = rising(0.15), rising(1.5, plain=0.03)
    machine = Machine(lambda tokens, now: (dear if 3.0 < now < 20.0 else cheap)(tokens, now))
    for _ in range(8):
        machine.say(FILE, FILE)

    def drafted(start: float, end: float) -> float:
        lengths = [n for n, at in zip(machine.lengths, machine.when, strict=True) if start < at < end]
        return sum(lengths) / max(1, len(lengths))

    assert drafted(0.5, 3.0) > 8
    assert drafted(5.0, 20.0) < 0.1
    # It is tried again now and then, and found to pay again.
    assert machine.now > 32.0
    assert drafted(32.0, machine.now) > 8


def test_side_by_side_the_surest_get_the_room_that_is_left() -> None:
    sure, unsure = Lookup([*FILE, *FILE[:100]]), Lookup([*novel(80), *novel(80, seed=2)[:43]])
    for lookup in (sure, unsure):
        while not lookup.follow():
            pass
    policy = DraftPolicy()
    # Nothing is drafted before a plain step was timed, nor while its loss could not be borne.
    assert policy.lengths([(sure, 5)], 2, 6, (1, 1), 0.001) == [0]
    for _ in range(200):
        policy.took(2, 2, 2, 0.02)
    # How long many take is not guessed from how long few take.
    assert policy.lengths([(sure, 5)], 2, 6, (1, 1), 0.001) == [1]
    policy.took(2, 8, 8, 0.03)
    lengths = policy.lengths([(unsure, 15), (sure, 5)], 2, 6, (1, 1), 0.001)
    assert lengths[1] == 5
    assert sum(lengths) <= 6
    assert policy.lengths([(sure, 15)], 2, 3, (1, 1), 0.001) == [3]
    # Other numbers of threads have times of their own.
    assert policy.lengths([(sure, 15)], 2, 3, (2, 2), 0.001) == [0]


# Answers


class Oracle(Lookup):
    """Knows what will be said; every other draft is right to its end, the others go wrong after `right` tokens."""

    said: ClassVar[dict[bytes, tuple[int, list[int]]]] = {}
    """Questions, with the length of the prompt and the tokens of the answer."""

    right = 2
    drafts = 0

    def follow(self) -> bool:
        return True

    def draft(self, length: int) -> list[int]:
        text = bytes(token for token in self._tokens if token < 256)
        for question, (prompt, answer) in Oracle.said.items():
            if question in text:
                foreseen = answer[len(self._tokens) - prompt :][:length]
                Oracle.drafts += 1
                if Oracle.drafts % 2:
                    foreseen[Oracle.right :] = [ord("?")] * len(foreseen[Oracle.right :])
                return foreseen
        return []


class Eager(DraftPolicy):
    """Drafts as much as it may."""

    def lengths(
        self, lookups: list[tuple[Lookup, int]], answers: int, free: int, threads: tuple[int, int], token_s: float
    ) -> list[int]:
        return [min(most, free // len(lookups)) for _, most in lookups]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "DraftPolicy", Eager)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, eager: None) -> type[Oracle]:
    monkeypatch.setattr(running, "Lookup", Oracle)
    monkeypatch.setattr(Oracle, "said", {})
    monkeypatch.setattr(Oracle, "drafts", 0)
    return Oracle


@pytest.fixture
def engine(oracle: type[Oracle]) -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    idle(engine)
    engine.close()


def plain(model: Path, *turns: str | Message, **options: object) -> Ask:
    """The same answer without drafts."""
    engine = Engine(1, drafts=False)
    try:
        ask = Ask(engine, model, *turns, **options)
        ask.end()
        assert ask.end().report.drafted_tokens == 0
        return ask
    finally:
        engine.close()


def foresee(model: Path, question: str, **options: object) -> Ask:
    """Let the oracle know what the answer will be."""
    ask = plain(model, question, **options)
    remember(question, ask)
    return ask


def remember(question: str, ask: Ask) -> None:
    assert ask.job.prompt
    length = len(ask.job.prompt.tokens)
    Oracle.said[question.encode()] = (length, ask.job.tokens[length:])


@pytest.fixture(scope="module")
def slides(folder: Path) -> Path:  # noqa: F811
    return write_model(folder / "slides.gguf", architecture="gemma3", speaks=LETTERS, window=32)


@pytest.mark.parametrize("kind", ["tiny", "slides"])
def test_drafts_change_no_answer(
    kind: str,
    engine: Engine,
    judge: Judge,  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(kind)
    before = foresee(model, "hello there", max_tokens=200)
    ask = Ask(engine, model, "hello there", max_tokens=200)
    assert len(ask.text) == len(before.text) == 200
    assert judge(ask)
    report, usage = ask.end().report, ask.end().usage
    assert 50 < report.accepted_tokens < report.drafted_tokens
    assert usage.completion_tokens == 200
    so_far = [event.tokens for _, event in ask.events if isinstance(event, Piece)]
    assert so_far == list(range(1, 201))
    # What the cache holds now is what was said: an answer that builds on it is right too.
    turns = ("hello there", Message("assistant", ask.text), "and then?")
    after = Ask(engine, model, *turns, max_tokens=60)
    assert after.end().report.cached_tokens > 190
    assert judge(after)


@pytest.mark.parametrize("limit", [1, 2, 3, 16, 17, 18, 33])
def test_a_limit_in_the_middle_of_a_draft_is_exact(engine: Engine, tiny: Path, limit: int) -> None:  # noqa: F811
    foresee(tiny, "hello there", max_tokens=60)
    ask = Ask(engine, tiny, "hello there", max_tokens=limit)
    assert len(ask.text) == ask.end().usage.completion_tokens == limit
    assert ask.end().reason == "length"


def test_a_stop_string_in_the_middle_of_a_draft_is_exact(engine: Engine, tiny: Path) -> None:  # noqa: F811
    whole = foresee(tiny, "hello there", max_tokens=60).text
    for start, size in ((0, 1), (2, 1), (5, 4), (17, 2), (40, 7)):
        stop = whole[start : start + size]
        ask = Ask(engine, tiny, "hello there", max_tokens=60, stop=stop)
        assert ask.text == whole[: whole.find(stop)]
        assert ask.end().reason == "stop"
        assert ask.end().usage.completion_tokens == whole.find(stop) + size
    assert Oracle.drafts


def test_an_end_token_is_never_drafted_and_ends_the_answer(engine: Engine, folder: Path) -> None:  # noqa: F811
    model = write_model(folder / "ends_soon.gguf", speaks=(*LETTERS[:6], END))
    options = {"max_tokens": 300, "temperature": 1, "seed": 1}
    before = foresee(model, "hello there", **options)
    Oracle.said[b"hello there"][1].extend((END, *b"never said"))
    ask = Ask(engine, model, "hello there", **options)
    assert (ask.text, ask.end().reason) == (before.text, "stop")
    assert ask.end().usage.completion_tokens == len(ask.text) + 1
    assert ask.end().report.accepted_tokens
    again = Ask(engine, model, "hello there", Message("assistant", ask.text), "go on", max_tokens=5)
    assert again.end().report.cached_tokens > len(ask.text)


def test_the_window_ends_in_the_middle_of_a_draft(engine: Engine, tiny: Path, judge: Judge) -> None:  # noqa: F811
    window = Extras(context=256)
    foresee(tiny, "hello there", localchat=window)
    ask = Ask(engine, tiny, "hello there", localchat=window)
    assert ask.end().reason == "length"
    assert ask.end().usage.total_tokens == 256
    assert ask.end().report.accepted_tokens
    assert judge(ask)


def test_a_full_window_does_without_drafts_before_it_forgets(engine: Engine, tiny: Path) -> None:  # noqa: F811
    window = Extras(context=256)
    foresee(tiny, "hello there", localchat=window, max_tokens=100)
    kept = Ask(engine, tiny, "k" * 105, localchat=window, max_tokens=1)
    kept.end()
    ask = Ask(engine, tiny, "hello there", localchat=window, max_tokens=96)
    assert len(ask.text) == 96
    # 124 + 30 + 96 cells are 250 of 256; with a draft of 15 it would have been more.
    assert Ask(engine, tiny, "k" * 105, localchat=window, max_tokens=1).end().report.cached_tokens == 123


def test_cancelled_in_the_middle_of_a_draft_the_next_answer_is_right(
    engine: Engine,
    tiny: Path,  # noqa: F811
    judge: Judge,  # noqa: F811
) -> None:
    foresee(tiny, "hello there", max_tokens=1500)
    for drafted in (1, 5, LONGEST):
        ask = Held(engine, tiny, "hello there", max_tokens=1500)
        ask.wait()
        with pytest.MonkeyPatch.context() as patch:
            ask.cancel_in_mid_batch(patch, 1 + drafted)
            ask.let_go()
            idle(engine)
        assert not ask.numbers(Finished)
        after = Ask(engine, tiny, "hello there", max_tokens=40)
        after.end()
        assert judge(after)


def test_thinking_in_a_draft_is_split_from_the_answer(engine: Engine, folder: Path) -> None:  # noqa: F811
    template = CHATML.replace("assistant\\n'", "assistant\\n<think>'") + "{# </think> #}"
    model = write_model(folder / "thinks.gguf", template=template, speaks=(ord("<"), *LETTERS))
    before = foresee(model, "hello there", max_tokens=60)

    def thought(ask: Ask) -> str:
        return "".join(event.reasoning for _, event in ask.events if isinstance(event, Piece))

    ask = Ask(engine, model, "hello there", max_tokens=60)
    ask.end()
    assert len(thought(ask)) == 60
    assert (thought(ask), ask.so_far) == (thought(before), before.so_far)
    assert ask.end().report.accepted_tokens


def test_several_answers_with_drafts_share_the_outputs(engine: Engine, tiny: Path, judge: Judge) -> None:  # noqa: F811
    questions = [f"question {n}" for n in range(7)]
    for question in questions:
        foresee(tiny, question, max_tokens=50)
    asks = [Ask(engine, tiny, question, max_tokens=50) for question in questions]
    for ask in asks:
        assert len(ask.text) == 50
        assert judge(ask)
    assert any(ask.end().report.accepted_tokens for ask in asks)


@pytest.mark.parametrize("options", [{}, {"repeat_penalty": 1.3, "presence_penalty": 0.5, "repeat_last_n": 32}])
def test_seeded_answers_are_the_same_token_by_token(engine: Engine, tiny: Path, options: dict[str, float]) -> None:  # noqa: F811
    """The random state and the memory for repetitions go on once for each token that is said."""
    same = 0
    plain_engine = Engine(1, drafts=False)
    try:
        for seed in range(12):
            drawn = {"temperature": 2.0, "seed": seed, "max_tokens": 40, **options}
            before = Ask(plain_engine, tiny, "hello there", **drawn)
            before.end()
            remember("hello there", before)
            ask = Ask(engine, tiny, "hello there", **drawn)
            same += ask.text == before.text
            assert ask.end().report.drafted_tokens
    finally:
        plain_engine.close()
    # Kernels round a batch otherwise than a single token: once in a great while that falls between two choices.
    assert same >= 11


def test_a_recurrent_model_is_never_drafted_for(engine: Engine, folder: Path) -> None:  # noqa: F811
    model = write_model(folder / "recurs.gguf", architecture="mamba", speaks=LETTERS)
    foresee(model, "hello there", max_tokens=30)
    ask = Ask(engine, model, "hello there", max_tokens=30)
    assert len(ask.text) == 30
    assert ask.end().report.drafted_tokens == 0


def test_one_answer_that_stumbles_ends_alone(
    engine: Engine,
    tiny: Path,  # noqa: F811
    judge: Judge,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foresee(tiny, "hello there", max_tokens=400)
    piece, stumbled = Model.piece, threading.Event()
    good = Held(engine, tiny, "hello there", max_tokens=400)
    bad = Held(engine, tiny, "another", max_tokens=400)
    good.let_go()

    def broken(model: Model, token: int) -> bytes:
        if bad.job.generated > 3 and bad.job.sampler and not stumbled.is_set() and engine._running.jobs[-1] is bad.job:
            stumbled.set()
            raise ValueError("no such piece")
        return piece(model, token)

    bad.wait()
    monkeypatch.setattr(Model, "piece", broken)
    bad.let_go()
    ended = [ask for ask in (good, bad) if isinstance(ask.wait_for(Finished, LocalchatError), LocalchatError)]
    assert len(ended) == 1
    other = good if ended[0] is bad else bad
    assert len(other.text) == 400
    assert judge(other)


CODE = """Repeat this code:

def area_of(width: int, height: int) -> int:
    return width * height

def volume_of(width: int, height: int, depth: int) -> int:
    return area_of(width, height) * depth
"""
BEGUN = "def area_of(width: int, height: int) -> int:\n    return"


def test_the_starter_copies_the_same_code_with_drafts(starter: Path, eager: None) -> None:
    turns = (Message("user", CODE), Message("assistant", BEGUN))
    options = {"max_tokens": 48, "localchat": Extras(continue_final=True)}
    engine = Engine(2)
    try:
        ask = Ask(engine, starter, *turns, **options)
        report = ask.end().report
    finally:
        engine.close()
    assert report.accepted_tokens > 15
    assert ask.job.prompt
    tokens, reference = ask.job.tokens, Reference(starter)
    try:
        start = len(ask.job.prompt.tokens)
        # Not compared with an answer without drafts: in a tie, a batch may round to the other side.
        assert reference.regrets(tokens[:start], tokens[start:]).max() < 0.5
    finally:
        reference.close()
