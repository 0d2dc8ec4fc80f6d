"""What the model has read: which sequence of the KV cache holds which tokens, and how a new prompt can build on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

from localchat.engine.checkpoints import Checkpoint, Checkpoints, last_within, places
from localchat.engine.context import Context, State
from localchat.prefix_index import WORTH

_WORTH_KEEPING = 64
"""Tokens that a prompt must have in common with a conversation for that to stay until the prompt's turn."""

_OUTSTAYED = 400
"""Tokens that others compute while ordinary attention looks at an idle conversation, until that has cost them about as
much as reading it again; `_AS_ONE` tokens of one batch cost no more than one by itself."""

_AS_ONE = 4

_spans = count()


@dataclass(eq=False)
class Sequence:
    """One sequence of the KV cache and the tokens it holds, in order. A busy one belongs to a running request.

    `keep`: its tokens may be saved, says the request that had it last. `restored`: how many of them came from the disk
    when it was taken, and `saved_ms`: what reading again all that it then held would have taken. `marks`: lengths at
    which a batch shall end, so that a checkpoint can be made there. `spans`: which cells it holds, as pairs of a number
    and the position where those cells begin; forked sequences have spans in common, the last is always its own. `left`:
    how much had been computed, in all sequences, when its last request was over.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: float = 0.0
    keep: bool = False
    restored: int = 0
    saved_ms: float = 0.0
    checkpoints: list[Checkpoint] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=lambda: [(next(_spans), 0)])
    left: int = 0

    def batch_end(self, end: int) -> int:
        """Where a batch that would read up to `end` shall end instead."""
        return next((mark for mark in self.marks if len(self.tokens) < mark < end), end)

    def cells(self, length: int | None = None) -> dict[int, tuple[int, int]]:
        """The positions from and to which each span is held, of the first `length` tokens."""
        length = len(self.tokens) if length is None else length
        starts = [*[start for _, start in self.spans[1:]], length]
        return {
            span: (start, min(end, length))
            for (span, start), end in zip(self.spans, starts, strict=True)
            if start < length
        }


class Saved(Protocol):
    """Prefixes on disk."""

    def longest(self, tokens: list[int]) -> int:
        """How many of the first of `tokens` can be restored; always short of the last one."""

    def extend(self, sequence: Sequence, tokens: list[int], make_room: Callable[[], bool]) -> None:
        """Let a sequence that holds a prefix of `tokens` hold a longer one, if that is worth it.

        `make_room` frees cells, False where it cannot. What went wrong may cost the sequence all that it held.
        """

    def rescue(self, sequence: Sequence) -> None:
        """Save a sequence that is about to be forgotten or cut, if that takes no noticeable time."""


class _Reuse(NamedTuple):
    """A prompt can build on the first `length` tokens of a sequence, by way of a checkpoint or as it is."""

    sequence: Sequence
    length: int
    checkpoint: Checkpoint | None = None


class PrefixCache:
    """Hands out sequences so that the longest known prefix of a prompt is never read again.

    `n_swa` is the model's sliding window (0: none). Recurrent models can only go on where a sequence ends, or from a
    checkpoint. `saved` is asked where the disk may know more, and told what is about to be forgotten.
    """

    def __init__(
        self,
        context: Context,
        *,
        n_swa: int = 0,
        is_recurrent: bool = False,
        saved: Saved | None = None,
    ) -> None:
        self._context = context
        self._n_swa = n_swa
        self._is_recurrent = is_recurrent
        self._saved = saved
        self._computed = 0
        self.sequences = [Sequence(index) for index in range(context.sequences)]
        self.checkpoints = Checkpoints(context, self.sequences)

    @property
    def is_stateful(self) -> bool:
        """Whether the memory cannot be cut back everywhere, so that checkpoints are of use."""
        return self._is_recurrent or self._n_swa > 0

    def take(self, tokens: list[int]) -> Sequence | None:
        """A sequence that holds a prefix of `tokens` (as long as possible, always short of the last token).

        None where every sequence is busy. A conversation that shares only its beginning with the prompt is not cut
        back but copied from, as long as there is a sequence for that; cells are shared, a copy costs nothing.
        """
        free = [sequence for sequence in self.sequences if not sequence.busy]
        if not free:
            return None
        best, saved = self._best(tokens), self._saved
        if self._comes_whole(best, tokens):
            # No live conversation need be cut back for it, nor copied from.
            best = _Reuse(best.sequence, 0)
        sequence = self._build_on(best, free)
        sequence.busy = True
        sequence.used = time.monotonic()
        sequence.restored, sequence.saved_ms = 0, 0.0
        if saved:
            try:
                saved.extend(sequence, tokens, self.evict)
            except BaseException:
                # Nobody knows what it holds now, and nobody will release it.
                sequence.busy = False
                self._forget(sequence)
                raise
            if not sequence.tokens:
                self._forget(sequence)
        return sequence

    def mark(self, sequence: Sequence, lengths: Iterable[int]) -> None:
        """Ask for checkpoints after so many tokens of what the sequence is going to read."""
        if self.is_stateful:
            known = len(sequence.tokens)
            sequence.marks = sorted({*sequence.marks, *(length for length in lengths if length > known)})

    def mark_prompt(self, sequence: Sequence, turns: Iterable[int], length: int) -> None:
        """Ask for checkpoints in a prompt of `length` tokens, of which `turns` says where messages begin and end."""
        if self.is_stateful:
            known = [checkpoint.length for checkpoint in sequence.checkpoints]
            self.mark(sequence, places(turns, known, len(sequence.tokens), length))

    def reached(self, sequence: Sequence, computed: int) -> None:
        """So many more tokens of a sequence were computed: where it is at a mark now, a checkpoint is made."""
        length = len(sequence.tokens)
        self._computed += max(1, computed // _AS_ONE)
        if sequence.marks and sequence.marks[0] <= length:
            is_due = length in sequence.marks
            sequence.marks = [mark for mark in sequence.marks if mark > length]
            if is_due:
                self.checkpoints.make(sequence)

    def release(self, sequence: Sequence) -> None:
        """The request is over; what was read stays known."""
        sequence.busy = False
        sequence.marks = []
        sequence.used = time.monotonic()
        sequence.left = self._computed

    def cut(self, sequence: Sequence, length: int) -> None:
        """Go back to the first `length` tokens, whatever was begun after them; where the memory cannot be cut there, to
        the last checkpoint before, or to nothing: the rest must be read again.
        """
        if not (self._has_window(sequence, length) and self._context.cut(sequence.id, length)):
            self._go_back(sequence, last_within(sequence.checkpoints, length))
        else:
            self._shorten(sequence, length)

    def evict(self) -> bool:
        """Forget the conversation that was left the longest ago; False where none is left to forget."""
        if not self._idle:
            return False
        oldest = min(self._idle, key=lambda sequence: sequence.used)
        self._rescue(oldest)
        self._forget(oldest)
        return True

    def compact(self, is_saved: Callable[[Sequence], bool]) -> None:
        """Forget what lies on the disk too, but for the conversation that was used last, and move that to the front.

        For ordinary attention, which looks at all cells up to the last one in use, whoever they belong to.
        """
        latest = max(self._idle, key=lambda sequence: sequence.used, default=None)
        others = [sequence for sequence in self._idle if sequence is not latest and is_saved(sequence)]
        if not latest or not others or self.is_stateful:
            return
        state = self._context.save(latest.id)
        for sequence in others:
            self._forget(sequence)
        self._context.forget(latest.id)
        latest.spans = [(next(_spans), 0)]
        if not self._context.restore(latest.id, state):
            self._forget(latest)

    def forget_recoverable(
        self,
        is_saved: Callable[[Sequence], bool],
        is_cheap: Callable[[int], bool],
        wanted: Iterable[list[int]] = (),
    ) -> None:
        """Forget idle conversations that can be had again: from the disk, or, but for the one used last, by reading so
        many tokens as no other sequence holds; those too that nobody has asked for while others computed much. What one
        of the `wanted` prompts would go on with stays.

        For ordinary attention, as `compact`; while others run nothing can be moved to the front.
        """
        idle = self._idle
        if self.is_stateful or not idle:
            return
        latest = max(idle, key=lambda sequence: sequence.used)
        bases = [best.sequence for best in map(self._best, wanted) if best.length >= _WORTH_KEEPING]
        for sequence in idle:
            if sequence in bases:
                continue
            if is_saved(sequence) or (sequence is not latest and is_cheap(self._cells_alone(sequence))):
                self._forget(sequence)
            elif self._computed - sequence.left >= _OUTSTAYED:
                self._rescue(sequence)
                self._forget(sequence)

    @property
    def _idle(self) -> list[Sequence]:
        """Conversations that no request is at work on."""
        return [sequence for sequence in self.sequences if not sequence.busy and sequence.tokens]

    def _cells_alone(self, sequence: Sequence) -> int:
        """How many cells only this sequence holds."""
        return _cells(self.sequences) - _cells(other for other in self.sequences if other is not sequence)

    @property
    def is_full(self) -> bool:
        """Whether all sequences are at work."""
        return all(sequence.busy for sequence in self.sequences)

    def longest(self, tokens: list[int]) -> int:
        """How many tokens of a prompt are in memory."""
        return self._best(tokens).length

    def cells(self) -> int:
        """How many cells the sequences at work hold together; what they share counts once."""
        return _cells(sequence for sequence in self.sequences if sequence.busy)

    def cells_to_add(self, tokens: list[int]) -> int:
        """How many more they would hold with a prompt that is taken and read now."""
        best = self._best(tokens)
        if self._comes_whole(best, tokens):
            return len(tokens)
        shared = 0
        held = _joined(sequence for sequence in self.sequences if sequence.busy)
        for span, (start, end) in best.sequence.cells(best.length).items():
            if span in held:
                shared += min(end, held[span][1]) - start
        return len(tokens) - shared

    def closest(self, tokens: list[int]) -> Sequence | None:
        """The idle sequence that has most in common with a conversation, else the one that was used last."""
        return max(self._idle, key=lambda each: (common_prefix(each.tokens, tokens), each.used), default=None)

    def adopt(self, before: Sequence, state: State) -> None:
        """Put a sequence of another context, saved whole, into this cache, which is empty."""
        sequence = self.sequences[0]
        if self._context.restore(sequence.id, state):
            sequence.tokens, sequence.checkpoints, sequence.keep = before.tokens, before.checkpoints, before.keep
            sequence.used = time.monotonic()
        else:
            self._forget(sequence)

    def inherit(self, before: PrefixCache, *, holds: bool) -> None:
        """Take over all sequences of another context's cache; this one `holds` their cells already, or nothing."""
        self.sequences[:] = before.sequences
        self._computed = before._computed
        for sequence in () if holds else self.sequences:
            self._forget(sequence)

    def _best(self, tokens: list[int]) -> _Reuse:
        """What a prompt can build on; of two that are as long, the one that need not be copied."""
        reusable = [self._reusable(sequence, tokens) for sequence in self.sequences]
        return max(reusable, key=lambda reuse: (reuse.length, not reuse.sequence.busy))

    def _comes_whole(self, best: _Reuse, tokens: list[int]) -> bool:
        """Whether a prompt will come from the disk, in cells of its own, though memory knows some of it."""
        saved = self._saved
        # As `Saved.extend` goes by: a sequence that shares cells must not be overwritten by one that has its own.
        return bool(saved and self.is_stateful and saved.longest(tokens) >= best.length + WORTH)

    def _reusable(self, sequence: Sequence, tokens: list[int]) -> _Reuse:
        # The last token is always computed anew: its logits choose the first token of the answer.
        length = min(common_prefix(sequence.tokens, tokens), len(tokens) - 1)
        if length <= 0:
            return _Reuse(sequence, 0)
        if self._has_window(sequence, length) and not (self._is_recurrent and length < len(sequence.tokens)):
            return _Reuse(sequence, length)
        checkpoint = last_within(sequence.checkpoints, length)
        return _Reuse(sequence, checkpoint.length if checkpoint else 0, checkpoint)

    def _has_window(self, sequence: Sequence, length: int) -> bool:
        """Whether all that the token after the first `length` looks back at is still there.

        llama.cpp gives a cell of a sliding window to other tokens as soon as no later token of its sequence can see it,
        and drops all before it too: so the earliest position that is left says all, and cutting back is exact.
        """
        if self._is_recurrent or not self._n_swa:
            return True
        return self._context.first_position(sequence.id) <= max(0, length - self._n_swa + 1)

    def _build_on(self, best: _Reuse, free: list[Sequence]) -> Sequence:
        source = best.sequence
        others = [sequence for sequence in free if sequence is not source or not best.length]
        if others and (source.busy or not best.length or best.length * 2 < len(source.tokens)):
            target = _least_wanted(others)
            self._rescue(target)
            self._forget(target)
            if best.length:
                self._fork(best, target)
            return target
        if best.length < len(source.tokens):
            self._rescue(source)
            if best.checkpoint:
                self._go_back(source, best.checkpoint)
            else:
                self.cut(source, best.length)
        return source

    def _fork(self, best: _Reuse, target: Sequence) -> None:
        source, length = best.sequence, best.length
        self._context.share(source.id, target.id, length)
        target.tokens = source.tokens[:length]
        target.spans = [*((span, start) for span, start in source.spans if start < length), (next(_spans), length)]
        target.checkpoints = [each for each in source.checkpoints if each.length <= length]
        if self.is_stateful:
            # Its own copy: cells of a window that two sequences share are given back by neither.
            state = best.checkpoint.state if best.checkpoint else self._context.save(target.id, partial=True)
            if not self._context.restore(target.id, state, partial=True):
                self._forget(target)
        if best.checkpoint:
            best.checkpoint.used = time.monotonic()

    def _go_back(self, sequence: Sequence, checkpoint: Checkpoint | None) -> None:
        """Go back to a checkpoint of the sequence; without one, or without cells for it, all is forgotten."""
        if (
            checkpoint
            and self._context.restore(sequence.id, checkpoint.state, partial=True)
            and self._context.cut(sequence.id, checkpoint.length)
        ):
            checkpoint.used = time.monotonic()
            self._shorten(sequence, checkpoint.length)
        else:
            self._forget(sequence)

    def _shorten(self, sequence: Sequence, length: int) -> None:
        if length < len(sequence.tokens):
            del sequence.tokens[length:]
            sequence.spans = [*(span for span in sequence.spans if span[1] < length), (next(_spans), length)]
            sequence.checkpoints = [each for each in sequence.checkpoints if each.length <= length]

    def _rescue(self, sequence: Sequence) -> None:
        if self._saved and sequence.tokens:
            self._saved.rescue(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._context.forget(sequence.id)
        sequence.tokens = []
        sequence.spans = [(next(_spans), 0)]
        sequence.checkpoints = []


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    low, high = 0, min(len(left), len(right))
    # Halving compares in C: a few slices instead of thousands of steps.
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _least_wanted(sequences: list[Sequence]) -> Sequence:
    """An empty sequence, else the one that was left the longest ago."""
    return min(sequences, key=lambda sequence: (bool(sequence.tokens), sequence.used))


def _joined(sequences: Iterable[Sequence]) -> dict[int, tuple[int, int]]:
    """From and to which positions each span is held by any of the sequences."""
    joined: dict[int, tuple[int, int]] = {}
    for sequence in sequences:
        for span, (start, end) in sequence.cells().items():
            joined[span] = (start, max(end, joined.get(span, (start, end))[1]))
    return joined


def _cells(sequences: Iterable[Sequence]) -> int:
    return sum(end - start for start, end in _joined(sequences).values())
