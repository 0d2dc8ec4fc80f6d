"""What is known is found: the longest common prefix, and which sequence a prompt gets."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localchat.engine.prefix_cache import PrefixCache, Sequence, common_prefix
from localchat.prefix_index import WORTH
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


Kind = Literal["plain", "windowed", "recurrent"]
WINDOW = 4


class Cells:
    """A context that only remembers what its sequences hold, and refuses what a real one would get wrong.

    `held` is what can be cut; `first` the earliest position that a window has left, `state` all that a recurrent state
    has read.
    """

    n_ctx = 1 << 20

    def __init__(self, kind: Kind = "plain") -> None:
        self.sequences = SEQUENCES
        self.kind = kind
        self.held: dict[int, list[int]] = {index: [] for index in range(SEQUENCES)}
        self.first = dict.fromkeys(range(SEQUENCES), 0)
        self.state: dict[int, list[int]] = {index: [] for index in range(SEQUENCES)}

    def cut(self, sequence: int, length: int) -> bool:
        if self.kind == "recurrent" and 0 < length < len(self.state[sequence]):
            return False
        del self.held[sequence][length:]
        del self.state[sequence][length:]
        return True

    def forget(self, sequence: int) -> None:
        self.held[sequence], self.state[sequence], self.first[sequence] = [], [], 0

    def share(self, source: int, target: int, length: int) -> None:
        assert self.held[target] == []
        assert length <= len(self.held[source])
        self.held[target] = self.held[source][:length]
        self.state[target] = list(self.state[source])
        self.first[target] = self.first[source]

    def first_position(self, sequence: int) -> int:
        return self.first[sequence] if self.held[sequence] else -1

    def state_bytes(self, sequence: int, *, partial: bool) -> int:
        assert partial
        return 10

    def save(self, sequence: int, *, partial: bool) -> Any:
        assert partial
        first = max(self.first[sequence], len(self.held[sequence]) - WINDOW)
        return [first, *self.state[sequence], *[None] * 9]

    def restore(self, sequence: int, state: Any, *, partial: bool) -> bool:
        assert partial
        self.first[sequence] = state[0]
        self.state[sequence] = [token for token in state[1:] if token is not None]
        return True

    def read(self, sequence: int, tokens: list[int]) -> None:
        length = len(self.held[sequence])
        if self.kind == "windowed":
            assert self.first[sequence] <= max(0, length - WINDOW + 1)
            self.first[sequence] = max(self.first[sequence], length - WINDOW + 1)
        self.held[sequence] += tokens
        self.state[sequence] += tokens
        if self.kind == "recurrent":
            assert self.held[sequence] == self.state[sequence]


def cache_of(cells: Cells) -> PrefixCache:
    return PrefixCache(
        cells,  # type: ignore[arg-type]
        n_swa=WINDOW if cells.kind == "windowed" else 0,
        is_recurrent=cells.kind == "recurrent",
    )


def read(cache: PrefixCache, cells: Cells, sequence: Sequence, prompt: list[int]) -> None:
    while rest := prompt[len(sequence.tokens) : sequence.batch_end(len(sequence.tokens) + 8)]:
        cells.read(sequence.id, rest)
        sequence.tokens += rest
        cache.reached(sequence, len(rest))


def known(cache: PrefixCache) -> list[list[int]]:
    return [sequence.tokens for sequence in cache.sequences if sequence.tokens]


@MANY
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=12),
            st.booleans(),
            st.integers(0, 9),
            st.lists(st.integers(0, 12), max_size=2),
        ),
        max_size=40,
    ),
    st.sampled_from(get_args(Kind)),
)
def test_the_cache_never_believes_what_the_context_does_not_hold(
    work: list[tuple[list[int], bool, int, list[int]]], kind: Kind
) -> None:
    cells = Cells(kind)
    cache = cache_of(cells)
    busy: list[Sequence] = []
    for prompt, stays, other, marks in work:
        before = {sequence.id: list(sequence.tokens) for sequence in cache.sequences if sequence.busy}
        best = max((common_prefix(known, prompt) for known in known(cache)), default=0)
        promised = cache.longest(prompt)
        sequence = cache.take(prompt)
        if sequence is None:
            assert len(busy) == SEQUENCES
            cache.release(busy.pop(other % len(busy)))
            continue
        assert sequence.tokens == prompt[: len(sequence.tokens)]
        assert len(sequence.tokens) == promised < len(prompt)
        if kind == "plain":
            assert promised == min(best, len(prompt) - 1)
        # Whoever is at work keeps what it has.
        assert all(cache.sequences[index].tokens == held for index, held in before.items())
        cache.mark(sequence, [mark for mark in marks if mark <= len(prompt)])
        read(cache, cells, sequence, prompt)
        for each in cache.sequences:
            assert cells.held[each.id] == each.tokens
            assert [checkpoint.length for checkpoint in each.checkpoints if checkpoint.length > len(each.tokens)] == []
        if stays:
            busy.append(sequence)
        else:
            cache.release(sequence)
        if other == 0:
            cache.evict()
        if other == 2:
            cache.forget_recoverable(lambda sequence: len(sequence.tokens) % 2 == 0, lambda tokens: tokens < 4)
        if other == 1 and len(sequence.tokens) > 2:
            # As after a batch that was broken off.
            cells.read(sequence.id, [9])
            cache.cut(sequence, len(sequence.tokens))
            assert cells.held[sequence.id] == sequence.tokens


@MANY
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.booleans()), max_size=30))
def test_cells_count_once_where_they_are_shared(work: list[tuple[list[int], bool]]) -> None:
    """Against a context that gives each cell a number of its own."""

    class Numbered(Cells):
        last = 0

        def __init__(self) -> None:
            super().__init__()
            self.cells: dict[int, list[int]] = {index: [] for index in range(SEQUENCES)}

        def cut(self, sequence: int, length: int) -> bool:
            del self.cells[sequence][length:]
            return super().cut(sequence, length)

        def forget(self, sequence: int) -> None:
            self.cells[sequence] = []
            super().forget(sequence)

        def share(self, source: int, target: int, length: int) -> None:
            self.cells[target] = self.cells[source][:length]
            super().share(source, target, length)

        def read(self, sequence: int, tokens: list[int]) -> None:
            for _ in tokens:
                self.last += 1
                self.cells[sequence].append(self.last)
            super().read(sequence, tokens)

    cells = Numbered()
    cache = cache_of(cells)
    for prompt, stays in work:
        held = cache.cells()
        more = cache.cells_to_add(prompt)
        sequence = cache.take(prompt)
        if sequence is None:
            return
        read(cache, cells, sequence, prompt)
        assert cache.cells() == len({cell for each in cache.sequences if each.busy for cell in cells.cells[each.id]})
        assert cache.cells() == held + more
        if not stays:
            cache.release(sequence)


def test_eviction_takes_the_one_left_the_longest_ago_and_never_a_busy_one() -> None:
    cells = Cells()
    cache = cache_of(cells)
    taken = [cache.take([n, n, n]) for n in range(4)]
    for n, sequence in enumerate(taken):
        assert sequence
        read(cache, cells, sequence, [n, n, n])
        sequence.used = float(n)
    for sequence in taken[1:3]:
        assert sequence
        sequence.busy = False
    assert cache.evict()
    assert known(cache) == [[0, 0, 0], [2, 2, 2], [3, 3, 3]]
    assert cache.evict()
    assert not cache.evict()
    assert known(cache) == [[0, 0, 0], [3, 3, 3]]


def test_what_can_be_had_again_is_forgotten_but_for_the_one_used_last() -> None:
    cells = Cells("plain")
    cache = filled(cells, [[1] * 9, [2] * 3, [3] * 5, [4] * 4])
    shared = cache.take([3] * 5 + [5])
    assert shared
    cache.forget_recoverable(lambda sequence: False, lambda tokens: tokens < 5)
    # The long one is dear, the second and third are not, the last one may well go on.
    assert sorted(map(len, known(cache))) == [4, 5, 9]
    cache.release(shared)
    cache.forget_recoverable(lambda sequence: len(sequence.tokens) == 5, lambda tokens: False)
    assert sorted(map(len, known(cache))) == [4, 9], "what is saved goes, even the one used last"


def test_what_nobody_asks_for_while_others_compute_much_is_forgotten() -> None:
    cells = Cells("plain")
    cache = filled(cells, [[1] * 9, [2] * 9])
    cache._saved = disk = Disk(cells, [])
    busy = cache.take([3] * 2000)
    assert busy
    for length in range(1, 500):
        cells.read(busy.id, [3])
        busy.tokens.append(3)
        cache.reached(busy, 1)
        cache.forget_recoverable(lambda sequence: False, lambda tokens: False)
        assert len(known(cache)) in ([3] if length < 390 else [1] if length >= 400 else [1, 2, 3])
    assert disk.rescued == [[1] * 9, [2] * 9]


def test_what_waits_keeps_what_it_will_go_on_with() -> None:
    cells = Cells("plain")
    cache = filled(cells, [[1] * 100, [2] * 100, [3] * 100, [4] * 100])
    cache.forget_recoverable(lambda sequence: True, lambda tokens: True, [[2] * 100 + [5], [3] * 63 + [5]])
    assert known(cache) == [[2] * 100]


def filled(cells: Cells, prompts: list[list[int]]) -> PrefixCache:
    """A cache in which each prompt has been read, the first the longest ago."""
    cache = cache_of(cells)
    taken = [cache.take(prompt) for prompt in prompts]
    for n, (sequence, prompt) in enumerate(zip(taken, prompts, strict=True)):
        assert sequence
        read(cache, cells, sequence, prompt)
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
    for sequence in cache.sequences[1:]:
        sequence.busy = True
    again = cache.take([0, 0, 0, 99])
    assert again
    assert again.tokens == cells.held[again.id] == [0, 0, 0]


def test_of_two_that_hold_the_same_the_free_one_is_taken() -> None:
    cells = Cells()
    cache = filled(cells, [[1] * 9, [1] * 9])
    cache.sequences[0].busy = True
    taken = cache.take([1] * 9)
    assert taken is cache.sequences[1]


@pytest.mark.parametrize(("first", "expected"), [(0, 8), (5, 8), (6, 0), (8, 0)])
def test_a_sliding_window_that_has_moved_past_the_fork_is_of_no_use(first: int, expected: int) -> None:
    """The token after 8 others sees the three before it, with a window of 4."""
    cells = Cells("windowed")
    cache = cache_of(cells)
    sequence = cache.take([1] * 9)
    assert sequence
    read(cache, cells, sequence, [1] * 9)
    cache.release(sequence)
    cells.first[sequence.id] = first
    again = cache.take([1] * 8 + [2])
    assert again
    assert len(again.tokens) == expected


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_a_memory_that_cannot_be_cut_goes_back_to_the_last_checkpoint_before(kind: Kind) -> None:
    cells = Cells(kind)
    cache = cache_of(cells)
    prompt = list(range(100))
    sequence = cache.take(prompt)
    assert sequence
    cache.mark(sequence, [30, 60, 100])
    read(cache, cells, sequence, prompt)
    assert [checkpoint.length for checkpoint in sequence.checkpoints] == [30, 60, 100]
    cache.release(sequence)
    again = cache.take([*range(70), *[0] * 100])
    assert again is sequence
    assert again.tokens == list(range(60))
    assert [checkpoint.length for checkpoint in again.checkpoints] == [30, 60]
    cache.release(again)
    # Two thirds would be lost: it is copied, and both can be gone on with.
    fork = cache.take([*range(20), 5])
    assert fork
    assert fork is not sequence
    assert fork.tokens == []
    shorter = cache.take([*range(31), 5])
    assert shorter
    assert shorter.tokens == list(range(30))


class Disk:
    """Knows one prefix; `fails`: what comes of it costs the sequence all it had."""

    def __init__(self, cells: Cells, prefix: list[int], *, fails: bool = False) -> None:
        self.prefix = prefix
        self.rescued: list[list[int]] = []
        self._cells, self._fails = cells, fails

    def longest(self, tokens: list[int]) -> int:
        return common_prefix(self.prefix, tokens[:-1])

    def extend(self, sequence: Sequence, tokens: list[int], make_room: Any) -> None:
        assert sequence.busy
        if self.longest(tokens) > len(sequence.tokens):
            sequence.restored = 0 if self._fails else self.longest(tokens) - len(sequence.tokens)
            sequence.tokens = [] if self._fails else tokens[: self.longest(tokens)]
            self._cells.held[sequence.id] = self._cells.state[sequence.id] = list(sequence.tokens)

    def rescue(self, sequence: Sequence) -> None:
        self.rescued.append(list(sequence.tokens))


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("fails", [False, True])
def test_the_disk_is_asked_for_what_is_not_in_memory(kind: Kind, fails: bool) -> None:
    cells = Cells(kind)
    cache = cache_of(cells)
    disk = Disk(cells, list(range(300)), fails=fails)
    cache._saved = disk
    live = cache.take([*range(50), 7, 7])
    assert live
    disk.prefix = []
    read(cache, cells, live, [*range(50), 7, 7])
    disk.prefix = list(range(300))
    taken = cache.take([*range(400)])
    assert taken
    assert taken is not live
    assert taken.tokens == list(range(0 if fails else 300))
    assert cells.held[taken.id] == taken.tokens
    # What can be cut is forked from memory, and only the rest comes from the disk.
    assert taken.restored == (0 if fails else 250 if kind == "plain" else 300)
    assert live.tokens == [*range(50), 7, 7]


def test_what_is_forgotten_or_cut_could_have_been_saved_first() -> None:
    cells = Cells()
    cache = filled(cells, [[n] * 9 for n in range(SEQUENCES)])
    cache._saved = disk = Disk(cells, [])
    assert cache.take([3] * 7 + [1])
    assert cache.take([99, 99])
    assert cache.evict()
    assert disk.rescued == [[3] * 9, [0] * 9, [1] * 9]


def test_what_goes_wrong_on_the_way_from_the_disk_leaves_no_sequence_busy() -> None:
    cells = Cells()
    cache = filled(cells, [[1] * 9])
    cache._saved = disk = Disk(cells, [])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(disk, "extend", lambda *_: (_ for _ in ()).throw(RuntimeError("no thread")))
        cache.take([1] * 20)
    assert not any(sequence.busy for sequence in cache.sequences)
    assert known(cache) == [] == [held for held in cells.held.values() if held]


class WholeStates:
    """Saved prefixes that know the first `known` tokens of every prompt, and bring them back in cells of their own."""

    def __init__(self, cells: Cells, known: int) -> None:
        self.cells, self.known = cells, known

    def longest(self, tokens: list[int]) -> int:
        return min(self.known, len(tokens) - 1)

    def extend(self, sequence: Sequence, tokens: list[int], make_room: object) -> None:
        if self.longest(tokens) >= len(sequence.tokens) + WORTH:
            sequence.tokens = tokens[: self.longest(tokens)]
            self.cells.held[sequence.id] = list(sequence.tokens)
            self.cells.state[sequence.id] = list(sequence.tokens)

    def rescue(self, sequence: Sequence) -> None:
        pass


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
@pytest.mark.parametrize("more", [WORTH - 1, WORTH, 2 * WORTH - 1, 2 * WORTH])
def test_cells_that_come_from_the_disk_are_never_counted_as_shared(kind: Kind, more: int) -> None:
    # A request that was let in for cells that it was thought to share stepped aside and came back, for ever.
    cells, shared = Cells(kind), list(range(100))
    disk = WholeStates(cells, 0)
    cache = PrefixCache(
        cells,  # type: ignore[arg-type]
        n_swa=WINDOW if kind == "windowed" else 0,
        is_recurrent=kind == "recurrent",
        saved=disk,
    )
    running = cache.take([*shared, 0])
    assert running
    cache.mark(running, [100])
    read(cache, cells, running, [*shared, 0, 0])
    disk.known = 100 + more
    prompt = [*shared, *range(200, 400)]
    before, expected = cache.cells(), cache.cells_to_add(prompt)
    sequence = cache.take(prompt)
    assert sequence
    read(cache, cells, sequence, prompt)
    assert cache.cells() - before == expected == (300 if more >= WORTH else 200)
