"""What is known is found: the longest common prefix, and which sequence a prompt gets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localchat.engine.prefix_cache import PrefixCache, Sequence, common_prefix
from localchat.tuning import SEQUENCES

tokens = st.lists(st.integers(0, 3), max_size=40)
MANY = settings(max_examples=300, deadline=None, print_blob=True)


@MANY
@given(tokens, tokens, tokens)
def test_the_common_prefix_is_what_a_loop_would_find(shared: list[int], left: list[int], right: list[int]) -> None:
    left, right = shared + left, shared + right
    expected = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        expected += 1
    assert common_prefix(left, right) == common_prefix(right, left) == expected


def test_equal_empty_and_contained_lists() -> None:
    assert common_prefix([], []) == common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2]) == common_prefix([1, 2], [1, 2, 3]) == 2


class Cells:
    """A context that only remembers what its sequences hold, and refuses what a real one would get wrong."""

    def __init__(self, *, cuttable: bool = True) -> None:
        self.sequences = SEQUENCES
        self.held: dict[int, list[int]] = {index: [] for index in range(SEQUENCES)}
        self._cuttable = cuttable

    def cut(self, sequence: int, length: int) -> bool:
        if not self._cuttable and length < len(self.held[sequence]):
            return False
        del self.held[sequence][length:]
        return True

    def forget(self, sequence: int) -> None:
        self.held[sequence] = []

    def share(self, source: int, target: int, length: int) -> None:
        assert self.held[target] == []
        assert length <= len(self.held[source])
        self.held[target] = self.held[source][:length]

    def first_position(self, sequence: int) -> int:
        return 0 if self.held[sequence] else -1


def read(cells: Cells, sequence: Sequence, prompt: list[int]) -> None:
    rest = prompt[len(sequence.tokens) :]
    sequence.tokens += rest
    cells.held[sequence.id] += rest


def known(cache: PrefixCache) -> list[list[int]]:
    return [sequence.tokens for sequence in cache._sequences if sequence.tokens]


@MANY
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.booleans(), st.integers(0, 9)), max_size=40
    ),
    st.booleans(),
)
def test_the_cache_never_believes_what_the_context_does_not_hold(
    work: list[tuple[list[int], bool, int]], is_recurrent: bool
) -> None:
    cells = Cells(cuttable=not is_recurrent)
    cache = PrefixCache(cells, is_recurrent=is_recurrent)  # type: ignore[arg-type]
    busy: list[Sequence] = []
    for prompt, stays, other in work:
        before = {sequence.id: list(sequence.tokens) for sequence in cache._sequences if sequence.busy}
        best = max((common_prefix(known, prompt) for known in known(cache)), default=0)
        sequence = cache.take(prompt)
        if sequence is None:
            assert len(busy) == SEQUENCES
            cache.release(busy.pop(other % len(busy)))
            continue
        assert sequence.tokens == prompt[: len(sequence.tokens)]
        assert len(sequence.tokens) < len(prompt)
        if not is_recurrent:
            assert len(sequence.tokens) == min(best, len(prompt) - 1)
        # Whoever is at work keeps what it has.
        assert all(cache._sequences[index].tokens == held for index, held in before.items())
        read(cells, sequence, prompt)
        assert all(cells.held[each.id] == each.tokens for each in cache._sequences)
        if stays:
            busy.append(sequence)
        else:
            cache.release(sequence)
        if other == 0:
            cache.evict()


def test_eviction_takes_the_one_left_the_longest_ago_and_never_a_busy_one() -> None:
    cells = Cells()
    cache = PrefixCache(cells)  # type: ignore[arg-type]
    taken = [cache.take([n, n, n]) for n in range(4)]
    for n, sequence in enumerate(taken):
        assert sequence
        read(cells, sequence, [n, n, n])
        sequence.used = float(n)
    for sequence in taken[1:3]:
        assert sequence
        sequence.busy = False
    assert cache.evict()
    assert known(cache) == [[0, 0, 0], [2, 2, 2], [3, 3, 3]]
    assert cache.evict()
    assert not cache.evict()
    assert known(cache) == [[0, 0, 0], [3, 3, 3]]


def filled(cells: Cells, prompts: list[list[int]]) -> PrefixCache:
    """A cache in which each prompt has been read, the first the longest ago."""
    cache = PrefixCache(cells)  # type: ignore[arg-type]
    taken = [cache.take(prompt) for prompt in prompts]
    for n, (sequence, prompt) in enumerate(zip(taken, prompts, strict=True)):
        assert sequence
        read(cells, sequence, prompt)
        cache.release(sequence)
        sequence.used = float(n)
    return cache


def test_a_prompt_like_nothing_known_takes_the_place_of_what_was_left_the_longest_ago() -> None:
    cells = Cells()
    prompts = [[n] * 5 for n in range(SEQUENCES)]
    cache = filled(cells, prompts)
    assert cache.take([99, 99])
    assert known(cache) == prompts[1:]


def test_the_only_free_sequence_keeps_the_little_it_shares() -> None:
    cells = Cells()
    cache = filled(cells, [[n] * 9 for n in range(SEQUENCES)])
    for sequence in cache._sequences[1:]:
        sequence.busy = True
    again = cache.take([0, 0, 0, 99])
    assert again
    assert again.tokens == cells.held[again.id] == [0, 0, 0]


def test_of_two_that_hold_the_same_the_free_one_is_taken() -> None:
    cells = Cells()
    cache = filled(cells, [[1] * 9, [1] * 9])
    cache._sequences[0].busy = True
    taken = cache.take([1] * 9)
    assert taken is cache._sequences[1]


@pytest.mark.parametrize(("first", "expected"), [(0, 8), (4, 8), (5, 0), (8, 0)])
def test_a_sliding_window_that_has_moved_past_the_fork_is_of_no_use(first: int, expected: int) -> None:
    cells = Cells()
    cells.first_position = lambda sequence: first  # type: ignore[method-assign]
    cache = PrefixCache(cells, n_swa=4)  # type: ignore[arg-type]
    sequence = cache.take([1] * 9)
    assert sequence
    read(cells, sequence, [1] * 9)
    cache.release(sequence)
    again = cache.take([1] * 8 + [2])
    assert again
    assert len(again.tokens) == expected
