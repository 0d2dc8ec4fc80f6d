"""Checkpoints: states in the middle of what was read, for memories that cannot be cut back to an earlier token.

A recurrent layer has one state, a sliding window the cells of its last tokens. So a conversation whose prompt is
rendered anew without what the model thought, an edited message or another branch would have to be read from its
beginning. What llama.cpp cannot cut of a sequence ("partial") is copied where later prompts are likely to part from it;
the rest stays in the KV cache with its sequence.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from localchat.engine.context import SAFETY_BYTES, Context, State
from localchat.hardware import available_memory

_APART = 16
"""Tokens that are read again rather than remembered twice."""

_NEAREST, _FARTHER = 256, 4
"""Beside the places that a conversation has, so many tokens before the end of a prompt, and so many times farther: who
parts from it somewhere reads at most so many times more than must be read."""

_MOST_BYTES, _MOST_SHARE = 512 << 20, 8
"""The checkpoints of all sequences together have at most so many bytes, and a share of what is free."""


@dataclass(eq=False)
class Checkpoint:
    """What cannot be cut of a sequence, as it was after its first `length` tokens."""

    length: int
    state: State
    used: float = field(default_factory=time.monotonic)


class Holder(Protocol):
    """A sequence; its checkpoints lie in order of their length."""

    id: int
    tokens: list[int]
    checkpoints: list[Checkpoint]


class Checkpoints:
    """Makes the checkpoints of one context's sequences, and keeps them within `limit` bytes: the oldest go first.

    `limit` may be lowered at any time; `keep_within` then makes it true. Forked sequences have checkpoints in common.
    """

    def __init__(self, context: Context, holders: Sequence[Holder]) -> None:
        self._context = context
        self._holders = holders
        self.limit = min(_MOST_BYTES, available_memory() // _MOST_SHARE)

    @property
    def bytes_held(self) -> int:
        """Bytes of all checkpoints."""
        return sum(len(checkpoint.state) for checkpoint in self._all())

    def make(self, holder: Holder) -> None:
        """Remember where a sequence is now; nothing is done where there is no room for it."""
        length = len(holder.tokens)
        if any(length == checkpoint.length for checkpoint in holder.checkpoints):
            return
        size = self._context.state_bytes(holder.id, partial=True)
        if not 0 < size <= self.limit or size + SAFETY_BYTES > available_memory():
            return
        self.keep_within(self.limit - size)
        state = self._context.save(holder.id, partial=True)
        if len(state):
            holder.checkpoints.append(Checkpoint(length, state))

    def keep_within(self, limit: int) -> None:
        """Drop the oldest until all together have at most `limit` bytes."""
        known = sorted(self._all(), key=lambda checkpoint: checkpoint.used)
        held = sum(len(checkpoint.state) for checkpoint in known)
        for checkpoint in known:
            if held <= limit:
                return
            held -= len(checkpoint.state)
            for holder in self._holders:
                holder.checkpoints = [each for each in holder.checkpoints if each is not checkpoint]

    def _all(self) -> set[Checkpoint]:
        return {checkpoint for holder in self._holders for checkpoint in holder.checkpoints}


def last_within(checkpoints: Iterable[Checkpoint], length: int) -> Checkpoint | None:
    """The longest checkpoint of at most `length` tokens."""
    return max((each for each in checkpoints if each.length <= length), key=lambda each: each.length, default=None)


def places(turns: Iterable[int], known: Collection[int], start: int, length: int) -> list[int]:
    """After how many tokens checkpoints are worth making while a prompt of `length` tokens is read from `start` on.

    `turns`: where messages begin and end in it; `known`: where checkpoints are already.
    """
    wanted, distance = {*turns}, _NEAREST
    while distance < length - start:
        wanted.add(length - distance)
        distance *= _FARTHER
    taken = list(known)
    for place in sorted(place for place in wanted if start < place <= length):
        # Of two that are near each other the earlier one serves for both.
        if not any(place - _APART < other <= place for other in taken):
            taken.append(place)
    return taken[len(known) :]
