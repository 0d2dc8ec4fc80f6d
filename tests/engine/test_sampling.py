"""The sampler chain: whose settings count, and that each of them acts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localchat.engine.context import Context
from localchat.engine.llama import api
from localchat.engine.model import Model
from localchat.engine.sampling import DEFAULTS, Sampler, resolve
from localchat.protocol import Sampling
from tests.tiny_models import LETTERS, write_model

GREEDY = Sampling(temperature=0)


class Desk:
    """A model with a prompt read, and the logits of what follows."""

    def __init__(self, path: Path) -> None:
        self.model = Model(path)
        self.context = Context(self.model, 256, 1)
        self.context.begin()
        self.index = self.context.add(list(b"once upon a time"), 0, 0, output=True)
        self.context.decode()
        row = api().llama_get_logits_ith(self.context.handle, self.index)
        address = ctypes.cast(row, ctypes.POINTER(ctypes.c_float))
        self.logits = np.ctypeslib.as_array(address, (self.model.n_vocab,)).copy()
        self.ranked = [int(token) for token in np.argsort(-self.logits)]

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def draw(self, sampling: Sampling, count: int, read: list[int] | None = None) -> list[int]:
        sampler = Sampler(self.model.n_vocab, resolve(sampling))
        sampler.read(read or [])
        drawn = [sampler.sample(self.context.handle, self.index) for _ in range(count)]
        sampler.close()
        return drawn


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", speaks=LETTERS))
    yield desk
    desk.close()


def test_the_person_comes_before_the_maker_and_the_maker_before_the_engine() -> None:
    person = Sampling(temperature=0.1, top_k=0)
    maker = Sampling(temperature=0.6, top_p=0.9)
    chosen = resolve(person, maker)
    assert (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p) == (0.1, 0, 0.9, DEFAULTS.min_p)


def test_nothing_is_left_open() -> None:
    chosen = resolve()
    assert all(getattr(chosen, name) is not None for name in Sampling.__struct_fields__)


numbers = st.one_of(st.none(), st.floats(0, 1))


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.lists(st.builds(Sampling, temperature=numbers, top_p=numbers, min_p=numbers), max_size=4))
def test_the_first_that_says_something_is_heard(choices: list[Sampling]) -> None:
    chosen = resolve(*choices)
    for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
        said = [getattr(choice, name) for choice in choices if getattr(choice, name) is not None]
        assert getattr(chosen, name) == (said[0] if said else getattr(DEFAULTS, name))


def test_zero_is_a_seed_and_none_is_drawn_anew() -> None:
    assert resolve(Sampling(seed=0)).seed == 0
    drawn = {resolve().seed for _ in range(50)}
    assert len(drawn) > 45
    # llama.cpp takes 2**32 - 1 for "draw one", so that number would not be a seed that can be repeated.
    assert all(seed is not None and 0 <= seed < 0xFFFFFFFF for seed in drawn)


def test_greedy_takes_the_likeliest(desk: Desk) -> None:
    assert desk.draw(GREEDY, 5) == [desk.ranked[0]] * 5


def test_top_k_1_is_greedy_at_any_temperature(desk: Desk) -> None:
    assert desk.draw(Sampling(temperature=10, top_k=1), 20) == [desk.ranked[0]] * 20


def test_a_top_p_of_almost_nothing_is_greedy(desk: Desk) -> None:
    assert desk.draw(Sampling(temperature=1, top_p=0.0), 20) == [desk.ranked[0]] * 20


def test_top_k_keeps_the_likeliest_few(desk: Desk) -> None:
    open_wide = Sampling(temperature=10, top_k=3, top_p=1, min_p=0, seed=1)
    assert set(desk.draw(open_wide, 200)) == set(desk.ranked[:3])


def test_min_p_drops_what_is_far_less_likely(desk: Desk) -> None:
    kept = {token for token in desk.ranked if desk.logits[token] >= desk.logits[desk.ranked[0]] + np.log(0.01)}
    drawn = set(desk.draw(Sampling(temperature=10, top_k=0, top_p=1, min_p=0.01, seed=1), 300))
    assert drawn <= kept
    assert desk.ranked[0] in drawn


def test_a_higher_temperature_spreads_wider(desk: Desk) -> None:
    wide = Sampling(temperature=10, top_k=0, top_p=1, min_p=0, seed=1)
    narrow = Sampling(temperature=0.1, top_k=0, top_p=1, min_p=0, seed=1)
    assert len(set(desk.draw(wide, 300))) > len(set(desk.draw(narrow, 300)))


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFE, 1 << 62])
def test_a_seed_gives_the_same_draws_each_time(desk: Desk, seed: int) -> None:
    free = Sampling(temperature=10, top_k=0, top_p=1, min_p=0, seed=seed)
    assert desk.draw(free, 40) == desk.draw(free, 40)


def test_even_the_number_that_means_random_to_llama_cpp_is_a_seed(desk: Desk) -> None:
    free = Sampling(temperature=10, top_k=0, top_p=1, min_p=0, seed=0xFFFFFFFF)
    assert desk.draw(free, 40) == desk.draw(free, 40)


def test_two_seeds_draw_differently(desk: Desk) -> None:
    free = {"temperature": 10, "top_k": 0, "top_p": 1, "min_p": 0}
    assert desk.draw(Sampling(**free, seed=0), 40) != desk.draw(Sampling(**free, seed=1), 40)


def test_frequency_and_presence_penalties_make_room_for_the_next(desk: Desk) -> None:
    assert len(set(desk.draw(Sampling(temperature=0, frequency_penalty=2), 60))) > 1
    gap = float(desk.logits[desk.ranked[0]] - desk.logits[desk.ranked[1]])
    assert gap > 0
    drawn = desk.draw(Sampling(temperature=0, presence_penalty=2), 60)
    assert (len(set(drawn)) > 1) == (gap < 2)


def test_a_repeat_penalty_makes_the_best_token_less_likely_once_said(desk: Desk) -> None:
    best = desk.ranked[0]
    assert desk.logits[best] > 0
    penalised = Sampling(temperature=0, repeat_penalty=10)
    assert desk.draw(penalised, 2)[0] == best
    assert desk.draw(penalised, 2)[1] != best
    assert desk.draw(penalised, 1, read=[best])[0] != best


def test_what_lies_before_the_repeat_window_is_forgotten(desk: Desk) -> None:
    best, worst = desk.ranked[0], desk.ranked[-1]
    penalised = Sampling(temperature=0, repeat_penalty=10, repeat_last_n=4)
    assert desk.draw(penalised, 1, read=[best, *[worst] * 3])[0] != best
    assert desk.draw(penalised, 1, read=[best, *[worst] * 4])[0] == best
    assert desk.draw(Sampling(temperature=0, repeat_penalty=10, repeat_last_n=0), 1, read=[best]) == [best]


def test_closing_twice_is_harmless(desk: Desk) -> None:
    sampler = Sampler(desk.model.n_vocab, resolve())
    sampler.close()
    sampler.close()


def test_a_chain_is_freed_with_its_sampler(desk: Desk) -> None:
    heavy = resolve(Sampling(repeat_penalty=1.1, repeat_last_n=1 << 16))
    process = psutil.Process()

    def some() -> int:
        for _ in range(200):
            sampler = Sampler(desk.model.n_vocab, heavy)
            sampler.read([1] * 100)
            sampler.close()
        return process.memory_info().rss

    some()
    # One chain remembers 64 Ki tokens, a quarter of a megabyte or more: two hundred leaked would be fifty.
    assert some() - some() < 20 << 20
    before = some()
    assert some() - before < 20 << 20
