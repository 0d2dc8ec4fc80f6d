"""Memories that cannot be cut back: what is gone on with is what reading afresh would give, and little is read again.

On 32-bit weights the logits of one way of reading differ from those of another by the rounding of the 16-bit KV cache
and of sums in another order (in the same pieces they are equal to the bit); what a wrong cell costs is a hundred times
that, as the first test shows. So answers are the same, token for token, wherever the likeliest token leads by more than
rounding. Quantized weights round far more: gemma-3-270m's logits (Q4_K_M) move by 0.7 when the same prompt is read in
other pieces, with no cache at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localchat.engine import checkpoints
from localchat.engine.checkpoints import Checkpoint, Checkpoints, places
from localchat.engine.context import Context
from localchat.engine.llama import api
from localchat.engine.model import Model
from localchat.engine.prefix_cache import PrefixCache, Sequence
from localchat.engine.scheduler import Engine
from localchat.protocol import Message
from tests.engine.reference import Reference
from tests.engine.test_scheduler import Ask
from tests.tiny_models import LETTERS, write_model

WINDOW = 64
ROUNDING, WRONG = 0.25, 1.0
"""How far logits are apart at most where all is right, and at least where it is not; they spread over tens."""

KINDS = {
    "windowed": {"architecture": "gemma3", "layers": 6, "window": WINDOW, "width": 32},
    "recurrent": {"architecture": "mamba"},
    "hybrid": {"architecture": "lfm2", "layers": 4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        kind: Model(write_model(folder / f"{kind}.gguf", context=4096, speaks=LETTERS, **options))
        for kind, options in KINDS.items()
    }
    yield made
    for model in made.values():
        model.close()


class Machine:
    """A context with its cache, read and asked for logits by hand."""

    def __init__(self, model: Model, n_ctx: int = 2048) -> None:
        self._model = model
        self.context = Context(model, n_ctx, 1)
        self.cache = PrefixCache(self.context, n_swa=model.n_swa, is_recurrent=model.is_recurrent)

    def read(self, sequence: Sequence, tokens: list[int], at_once: int = 200) -> np.ndarray:
        """Read on to the end of `tokens`; the logits after the last."""
        while len(sequence.tokens) < len(tokens):
            start = len(sequence.tokens)
            part = tokens[start : sequence.batch_end(start + at_once)]
            self.context.begin()
            index = self.context.add(part, start, sequence.id, output=start + len(part) == len(tokens))
            self.context.decode()
            sequence.tokens += part
            self.cache.reached(sequence, len(part))
        row = ctypes.cast(api().llama_get_logits_ith(self.context.handle, index), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(row, (self._model.n_vocab,)).copy()

    def take(self, tokens: list[int]) -> Sequence:
        sequence = self.cache.take(tokens)
        assert sequence
        return sequence

    def ask(self, tokens: list[int], marks: tuple[int, ...] = ()) -> tuple[int, np.ndarray]:
        """How many tokens were known, and the logits after all."""
        sequence = self.take(tokens)
        known = len(sequence.tokens)
        self.cache.mark(sequence, marks)
        logits = self.read(sequence, tokens)
        self.cache.release(sequence)
        return known, logits


@pytest.fixture
def machine(models: dict[str, Model], request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(models[request.param])
    yield machine
    machine.context.close()


every_kind = pytest.mark.parametrize("machine", KINDS, indirect=True)


@pytest.fixture
def afresh(machine: Machine) -> Iterator[Callable[[list[int]], np.ndarray]]:
    """The logits after some tokens that a context with nothing else in it has read."""
    other = Machine(machine._model)

    def read(tokens: list[int]) -> np.ndarray:
        while other.cache.evict():
            pass
        return other.ask(tokens)[1]

    yield read
    other.context.close()


Afresh = Callable[[list[int]], np.ndarray]


def letters(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).choice(LETTERS, length)]


def apart(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max())


@pytest.mark.parametrize("machine", ["windowed"], indirect=True)
def test_a_window_that_is_not_whole_would_be_noticed(machine: Machine, afresh: Afresh) -> None:
    """What the other tests rely on: a cut that the cache refuses gives other logits."""
    tokens = letters(600, 1)
    sequence = machine.take(tokens)
    machine.read(sequence, tokens, at_once=40)
    state = machine.context.save(sequence.id)  # without what lies before the window
    machine.context.forget(sequence.id)
    assert machine.context.restore(sequence.id, state)
    # The last token saw 63 others: so does whoever takes its place, but not who takes that of one before it.
    assert machine.cache._has_window(sequence, 599)
    assert not machine.cache._has_window(sequence, 598)
    for length, is_exact in ((599, True), (570, False)):
        assert machine.context.cut(sequence.id, length)
        del sequence.tokens[length:]
        again = tokens[:length] + letters(3, 5)
        difference = apart(machine.read(sequence, again), afresh(again))
        assert difference < ROUNDING if is_exact else difference > WRONG


@every_kind
def test_going_on_back_and_forking_gives_what_reading_afresh_does(machine: Machine, afresh: Afresh) -> None:
    first = letters(700, 1)
    known, logits = machine.ask(first, marks=(300, 500))
    assert known == 0
    assert apart(logits, afresh(first)) < ROUNDING
    ways = [
        ("on", first + letters(50, 2), 700),
        ("back to a checkpoint", first[:600] + letters(100, 3), 500),
        ("to a checkpoint farther back, by a fork", first[:310] + letters(10, 4), 300),
        ("on in what was forked from", first[:600] + letters(100, 3) + letters(30, 5), 700),
        ("on in the fork", first[:310] + letters(10, 4) + letters(200, 6), 320),
        ("the same again", first[:600] + letters(100, 3) + letters(30, 5), 500),
        ("before all checkpoints", first[:200] + letters(100, 7), 0),
    ]
    for what, tokens, expected in ways:
        known, logits = machine.ask(tokens)
        # A window may still be there, by chance of which cells were free.
        assert known == expected or (machine.cache._n_swa and known > expected), what
        assert apart(logits, afresh(tokens)) < ROUNDING, what


@every_kind
def test_a_prefix_is_forked_from_a_sequence_at_work_and_both_go_on(machine: Machine, afresh: Afresh) -> None:
    shared = letters(400, 1)
    prompts = [shared + letters(150, 2 + n) for n in range(4)]
    first = machine.take(prompts[0])
    machine.cache.mark(first, [400])
    machine.read(first, prompts[0][:400])
    # Where it is now, the prefix can be copied; once it has gone on, from the checkpoint.
    second = machine.take(prompts[1])
    logits = [machine.read(first, prompts[0])]
    third, fourth = machine.take(prompts[2]), machine.take(prompts[3])
    others = [second, third, fourth]
    assert [len(sequence.tokens) for sequence in others] == [400] * 3
    logits += [machine.read(sequence, prompt) for sequence, prompt in zip(others, prompts[1:], strict=True)]
    for prompt, found in zip(prompts, logits, strict=True):
        assert apart(found, afresh(prompt)) < ROUNDING
    if not machine._model.n_swa:
        return
    # The cells of windows are not shared: all of them together need no more than their windows.
    for sequence, prompt in zip([first, *others], prompts, strict=True):
        longer = prompt + letters(700, 9)
        assert apart(machine.read(sequence, longer, at_once=64), afresh(longer)) < ROUNDING
        machine.cache.release(sequence)
        machine.cache._forget(sequence)


@every_kind
def test_a_batch_that_was_broken_off_costs_no_more_than_the_way_from_the_last_checkpoint(
    machine: Machine, afresh: Afresh
) -> None:
    tokens = letters(600, 1)
    sequence = machine.take(tokens)
    machine.cache.mark(sequence, [300])
    machine.read(sequence, tokens[:450])
    # As `Running` does it: the batch is computed, but not noted.
    machine.context.begin()
    machine.context.add(letters(100, 8), 450, sequence.id, output=True)
    machine.context.decode()
    machine.cache.cut(sequence, 450)
    assert len(sequence.tokens) == (450 if machine._model.n_swa else 300)
    assert apart(machine.read(sequence, tokens), afresh(tokens)) < ROUNDING


@every_kind
def test_the_oldest_go_when_there_are_too_many_bytes(machine: Machine) -> None:
    tokens = letters(600, 1)
    machine.ask(tokens, marks=(100, 200))
    held = machine.cache.checkpoints.bytes_held
    assert held > 0
    machine.cache.checkpoints.limit = held
    machine.ask(tokens[:100] + letters(300, 2), marks=(250, 350, 390))
    assert 0 < machine.cache.checkpoints.bytes_held <= held
    lengths = {each.length for sequence in machine.cache.sequences for each in sequence.checkpoints}
    assert 390 in lengths
    assert 200 not in lengths
    machine.cache.checkpoints.keep_within(0)
    assert machine.cache.checkpoints.bytes_held == 0
    machine.cache.checkpoints.limit = 0
    machine.ask(letters(100, 3), marks=(50,))
    assert machine.cache.checkpoints.bytes_held == 0


@every_kind
def test_without_free_memory_no_checkpoint_is_made(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "available_memory", lambda: 1 << 20)
    machine.ask(letters(100, 3), marks=(50,))
    assert machine.cache.checkpoints.bytes_held == 0


@every_kind
def test_where_cells_are_missing_the_prompt_is_read_again(
    machine: Machine, afresh: Afresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = letters(700, 1)
    machine.ask(first, marks=(500,))
    monkeypatch.setattr(machine.context, "restore", lambda sequence, state, *, partial: False)
    for tokens in (first[:600] + letters(100, 3), first[:510] + letters(100, 4)):
        _, logits = machine.ask(tokens)
        assert apart(logits, afresh(tokens)) < ROUNDING


def test_a_memory_that_can_be_cut_needs_no_checkpoints(tmp_path: Path) -> None:
    machine = Machine(Model(write_model(tmp_path / "plain.gguf")), 512)
    try:
        machine.ask(letters(100, 1), marks=(50,))
        assert machine.cache.checkpoints.bytes_held == 0
    finally:
        machine.context.close()
        machine._model.close()


# Conversations


THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""What a model thought is left out of later prompts, so that none of them goes on where the last one ended."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_not_read_again_because_thinking_is_left_out_or_a_message_edited(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    path = write_model(tmp_path / "m.gguf", context=4096, speaks=LETTERS, template=THINKS, **KINDS[kind])
    user = [Message("user", letter * 200) for letter in "abcd"]
    turns: list[Message] = []
    conversations = []
    for n in range(3):
        turns = [*turns, user[n]]
        conversations.append((turns, 0 if n == 0 else 200 * n + 200 * (n - 1)))
        turns = [*turns, Message("assistant", f"{n}" * 200)]
    conversations += [
        ([*conversations[2][0][:-1], Message("user", "edited" * 30)], 2 * 400),
        ([*conversations[1][0][:-1], Message("user", "branch" * 30)], 400),
        (conversations[2][0], 2 * 400),  # asked again
    ]
    reference = Reference(path)
    try:
        for messages, known in conversations:
            ask = Ask(engine, path, *messages, max_tokens=150)
            report, prompt = ask.end().report, ask.job.prompt
            assert prompt
            assert known <= report.cached_tokens < len(prompt.tokens)
            answer = ask.job.tokens[len(prompt.tokens) :]
            assert len(answer) == 150
            assert reference.regrets(prompt.tokens, answer).max() < ROUNDING
    finally:
        reference.close()


# Where they are made


def test_places_lie_where_messages_do_and_ever_farther_from_the_end() -> None:
    assert places([], [], 0, 20_000) == [20_000 - 16_384, 20_000 - 4096, 20_000 - 1024, 20_000 - 256]
    assert places([990, 1000], [], 0, 1010) == [1010 - 256, 990]
    assert places([300, 1000], [], 900, 1010) == [1000]
    assert places([990, 1010], [], 0, 1012) == [1012 - 256, 990, 1010]
    assert places([300, 1000], [295], 0, 1010) == [1010 - 256, 1000]
    assert places([7], [], 7, 7) == places([], [], 7, 7) == []


@given(
    st.lists(st.integers(0, 5000), max_size=4),
    st.lists(st.integers(0, 5000), max_size=4),
    st.integers(0, 5000),
    st.integers(1, 5000),
)
def test_places_are_few_ascending_and_within_what_is_read(
    turns: list[int], known: list[int], start: int, more: int
) -> None:
    found = places(turns, known, start, start + more)
    assert found == sorted(set(found))
    assert len(found) <= len(turns) + 6
    assert all(start < place <= start + more for place in found)
    assert all(b - a >= checkpoints._APART for a, b in pairwise(found))


def test_forks_hold_their_common_checkpoints_once() -> None:
    state = (ctypes.c_uint8 * 100)()
    shared, own = Checkpoint(5, state), Checkpoint(9, state)
    holders = [Sequence(0), Sequence(1)]
    holders[0].checkpoints = [shared, own]
    holders[1].checkpoints = [shared]
    kept = Checkpoints(None, holders)  # type: ignore[arg-type]
    assert kept.bytes_held == 200
    shared.used, own.used = 1.0, 2.0
    kept.keep_within(150)
    assert [holder.checkpoints for holder in holders] == [[own], []]
