"""What the model has read: which sequence of the KV cache holds which tokens, and how a new prompt can build on it."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field

from localchat.engine.context import Context


@dataclass
class Sequence:
    """One sequence of the KV cache and the tokens it holds, in order. A busy one belongs to a running request."""

    id: int
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: float = 0.0


class PrefixCache:
    """Hands out sequences so that the longest known prefix of a prompt is never read again.

    `n_swa` is the model's sliding window (0: none); recurrent models can only go on where a sequence ends.
    """

    def __init__(self, context: Context, *, n_swa: int = 0, is_recurrent: bool = False) -> None:
        self._context = context
        self._n_swa = n_swa
        self._is_recurrent = is_recurrent
        self._sequences = [Sequence(index) for index in range(context.sequences)]

    def take(self, tokens: list[int]) -> Sequence | None:
        """A sequence that holds a prefix of `tokens` (as long as possible, always short of the last token).

        None where every sequence is busy. A conversation that shares only its beginning with the prompt is not cut
        back but copied from, as long as there is a sequence for that; cells are shared, a copy costs nothing.
        """
        free = [sequence for sequence in self._sequences if not sequence.busy]
        if not free:
            return None
        best = max(self._sequences, key=lambda sequence: (self._reusable(sequence, tokens), not sequence.busy))
        length = self._reusable(best, tokens)
        others = [sequence for sequence in free if sequence is not best or not length]
        if others and (best.busy or not length or length * 2 < len(best.tokens)):
            target = min(others, key=lambda sequence: (bool(sequence.tokens), sequence.used))
            self._forget(target)
            if length:
                self._context.share(best.id, target.id, length)
                target.tokens = best.tokens[:length]
            best = target
        elif length < len(best.tokens):
            self.cut(best, length)
        best.busy = True
        best.used = time.monotonic()
        return best

    def release(self, sequence: Sequence) -> None:
        """The request is over; what was read stays known."""
        sequence.busy = False
        sequence.used = time.monotonic()

    def cut(self, sequence: Sequence, length: int) -> None:
        """Go back to the first `length` tokens; where the memory cannot be cut, everything must be read again."""
        if self._context.cut(sequence.id, length):
            del sequence.tokens[length:]
        else:
            self._forget(sequence)

    def evict(self) -> bool:
        """Forget the conversation that was left the longest ago; False where none is left to forget."""
        idle = [sequence for sequence in self._sequences if not sequence.busy and sequence.tokens]
        if not idle:
            return False
        self._forget(min(idle, key=lambda sequence: sequence.used))
        return True

    def closest(self, tokens: list[int]) -> Sequence | None:
        """The idle sequence that has most in common with a conversation, else the one that was used last."""
        idle = [sequence for sequence in self._sequences if not sequence.busy and sequence.tokens]
        return max(idle, key=lambda each: (common_prefix(each.tokens, tokens), each.used), default=None)

    def adopt(self, tokens: list[int], state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Put a saved sequence into an empty cache (one of a new context)."""
        sequence = self._sequences[0]
        if self._context.restore(sequence.id, state):
            sequence.tokens = tokens
            sequence.used = time.monotonic()
        else:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._context.forget(sequence.id)
        sequence.tokens = []

    def _reusable(self, sequence: Sequence, tokens: list[int]) -> int:
        """How many tokens of `sequence` a prompt can build on."""
        # The last token is always computed anew: its logits choose the first token of the answer.
        length = min(common_prefix(sequence.tokens, tokens), len(tokens) - 1)
        if length <= 0:
            return 0
        if self._is_recurrent:
            return length if length == len(sequence.tokens) and not sequence.busy else 0
        if self._n_swa and self._context.first_position(sequence.id) > max(0, length - self._n_swa):
            return 0
        return length


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
