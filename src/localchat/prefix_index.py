"""Which saved pieces of prompts there are, and what a prompt begins with: the prefix cache's list, in memory.

Chunks form trees, each under the key of what it depends on; states that are whole stand for themselves. It knows no
files and no disks (`prefixes`).
"""

from __future__ import annotations

import threading
from array import array
from collections import defaultdict
from collections.abc import Iterable

from localchat.prefix_file import Entry, Header, Kind, entry_id

CHUNK = 256
"""Tokens of a chunk; the last one of a conversation has fewer."""

WORTH = 32
"""Tokens below which neither saving nor restoring is worth the trouble."""


class PrefixIndex:
    """Entries by id, by what they continue, and by what they are. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._children: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
        self._tips: dict[tuple[str, Kind], dict[str, Entry]] = defaultdict(dict)

    def entries(self) -> list[Entry]:
        """All of them."""
        with self._lock:
            return list(self._entries.values())

    def get(self, name: str) -> Entry | None:
        """The entry of this id."""
        return self._entries.get(name)

    def total(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries())

    def add(self, entry: Entry) -> None:
        """Take in an entry."""
        header = entry.header
        with self._lock:
            self._entries[entry.id] = entry
            if header.kind == "chunk":
                self._children[header.key, header.parent][entry.id] = entry
            else:
                self._tips[header.key, header.kind][entry.id] = entry

    def replace(self, entries: Iterable[Entry]) -> None:
        """Know these instead of all that was known."""
        with self._lock:
            self._entries.clear()
            self._children.clear()
            self._tips.clear()
            for entry in entries:
                self.add(entry)

    def forget(self, entry: Entry) -> list[Entry]:
        """Take an entry out, and all that is built on it; returns them."""
        gone, after = [], [entry]
        with self._lock:
            while after:
                one = after.pop()
                gone.append(one)
                header = one.header
                self._entries.pop(one.id, None)
                self._children.get((header.key, header.parent), {}).pop(one.id, None)
                self._tips.get((header.key, header.kind), {}).pop(one.id, None)
                after += self._children.pop((header.key, one.id), {}).values()
        return gone

    def parent(self, header: Header) -> Entry | None:
        """What an entry is built on, if that is there and fits."""
        parent = self._entries.get(header.parent)
        fits = parent and parent.end == header.start and parent.header.key == header.key
        return parent if fits else None

    def ancestors(self, header: Header) -> list[Entry]:
        """All that an entry is built on, the nearest first."""
        ancestors = []
        with self._lock:
            while parent := self.parent(header):
                ancestors.append(parent)
                header = parent.header
        return ancestors

    def chain(self, key: str, tokens: array[int]) -> tuple[list[Entry], int]:
        """The chunks that `tokens` begin with, in order, and how many tokens that covers.

        The last of them may go on otherwise than `tokens` do.
        """
        chain: list[Entry] = []
        parent, at = "", 0
        with self._lock:
            while at < len(tokens):
                # Most often it is the very chunk that these tokens make; all others are compared token by token.
                exact = self._entries.get(entry_id(key, "chunk", parent, tokens[at : at + CHUNK].tobytes()))
                others = [exact] if exact else self._children.get((key, parent), {}).values()
                lengths = [(_common(entry.tokens, tokens, at), entry) for entry in others if entry.header.start == at]
                length, best = max(lengths, key=lambda pair: pair[0], default=(0, None))
                if not best or not length:
                    break
                chain.append(best)
                at += length
                if length < len(best.tokens):
                    break
                parent = best.id
        return chain, at

    def longest(self, key: str, kind: Kind, tokens: array[int]) -> Entry | None:
        """The entry of this kind with most tokens, with all of which `tokens` begin ("whole", "checkpoint")."""
        tips = self._of_kind(key, kind)
        fitting = [tip for tip in tips if tip.end <= len(tokens) and tip.tokens == tokens[: tip.end]]
        return max(fitting, key=lambda tip: tip.end, default=None)

    def beginning_with(self, key: str, kind: Kind, tokens: array[int]) -> Entry | None:
        """An entry of this kind that begins with all of `tokens`; of several, the shortest."""
        tips = self._of_kind(key, kind)
        fitting = [tip for tip in tips if tip.end >= len(tokens) and tip.tokens[: len(tokens)] == tokens]
        return min(fitting, key=lambda tip: tip.end, default=None)

    def has(self, key: str, kind: Kind, tokens: array[int]) -> bool:
        """Whether there is an entry of this kind for exactly these tokens, all from the first on."""
        return entry_id(key, kind, "", tokens.tobytes()) in self._entries

    def superfluous_beside(self, entry: Entry) -> list[Entry]:
        """What a new entry takes the place of: a shorter last chunk, and all but the longest of the earlier states of a
        conversation that is saved whole (from that one, another branch may go on).
        """
        header = entry.header
        if header.kind == "checkpoint":
            return []
        with self._lock:
            children = list(self._children.get((header.key, header.parent), {}).values())
        beside = children if header.kind == "chunk" else self._of_kind(header.key, header.kind)
        shorter = [one for one in beside if one.end < entry.end and one.tokens == entry.tokens[: len(one.tokens)]]
        return shorter if header.kind == "chunk" else sorted(shorter, key=lambda one: one.end)[:-1]

    def least_useful_first(self) -> list[Entry]:
        """In the order in which they should go: the longest unused first, and what is built on an entry before it."""
        useful: dict[str, int] = {}
        by_depth = sorted(self.entries(), key=lambda entry: entry.header.start, reverse=True)
        for entry in by_depth:
            useful[entry.id] = max(useful.get(entry.id, 0), entry.used)
            parent = entry.header.parent
            useful[parent] = max(useful.get(parent, 0), useful[entry.id])
        return sorted(by_depth, key=lambda entry: (useful[entry.id], -entry.header.start))

    def _of_kind(self, key: str, kind: Kind) -> list[Entry]:
        with self._lock:
            return list(self._tips.get((key, kind), {}).values())


def _common(part: array[int], tokens: array[int], at: int) -> int:
    """How many tokens of `part` stand in `tokens` from `at` on."""
    low, high = 0, min(len(part), len(tokens) - at)
    if part[:high] == tokens[at : at + high]:
        return high
    while low < high:  # (halving compares in C)
        middle = (low + high + 1) // 2
        if part[low:middle] == tokens[at + low : at + middle]:
            low = middle
        else:
            high = middle - 1
    return low
