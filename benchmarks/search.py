"""Search over 100,000 messages (aim: 50 ms), opening a chat of 2,000 (300 ms) and the database (a few ms).

    python benchmarks/search.py [messages]

The database is built once, in the temporary folder, from a seed: words of a made-up vocabulary with the frequencies
that words of a language have, messages of 5 to 400 words, one in fifty in Chinese characters.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import machine

from localchat.chats.records import ChatSettings
from localchat.chats.store import Chats
from localchat.protocol import Message

MESSAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
LONG_CHAT = 2_000
USUAL_CHAT = 50
ROUNDS = 10
QUERIES = 20
"""Queries of each kind a round: their median and 95th percentile count."""


class Words:
    """A vocabulary, the n-th word being 1/n as frequent as the first."""

    def __init__(self, dice: random.Random) -> None:
        parts = [a + b for a, b in itertools.product("bcdfghklmnprstvwz", "aeiou")]
        self.all = list(dict.fromkeys("".join(dice.choices(parts, k=dice.randint(1, 4))) for _ in range(60_000)))
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, len(self.all) + 1)))
        self._dice = dice

    def some(self, count: int) -> list[str]:
        """So many of them, as they come in a text."""
        return self._dice.choices(self.all, cum_weights=self._weights, k=count)


def built(file: Path, words: Words, dice: random.Random) -> None:
    """Fill a new database."""
    now = time.time()
    chats = Chats(file)
    written = 0
    while written < MESSAGES:
        size = LONG_CHAT if not written else USUAL_CHAT
        with chats.together():
            chat = chats.create(ChatSettings(), title=" ".join(words.some(4)), titled_by="model")
            parent = None
            for number in range(size):
                length = dice.randint(5, 60) if number % 2 == 0 else dice.randint(20, 400)
                text = " ".join(words.some(length))
                if dice.random() < 0.02:
                    text = "".join(chr(dice.randint(0x4E00, 0x5200)) for _ in range(length))
                message = Message("assistant" if number % 2 else "user", text)
                parent = chats.append(chat, parent, message, created=now - (MESSAGES - written) * 60)
                written += 1
        print(f"\r{written:,} of {MESSAGES:,}", end="", file=sys.stderr)
    chats.close()


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    dice = random.Random(20261122)
    words = Words(dice)
    file = Path(tempfile.gettempdir()) / "localchat-benchmarks" / f"search-{MESSAGES}" / "chats.db"
    if not file.exists():
        partial = file.with_name("building.db")
        partial.unlink(missing_ok=True)
        built(partial, words, dice)
        partial.rename(file)
    top, middle, rare = words.all[:20], words.all[500:2000], words.all[20_000:]
    pick = dice.choice
    kinds: dict[str, Callable[[Chats], object]] = {
        "a word that is everywhere": lambda chats: chats.search(pick(top)),
        "a usual word": lambda chats: chats.search(pick(middle)),
        "a rare word": lambda chats: chats.search(pick(rare)),
        "one letter": lambda chats: chats.search(pick("bcdfghklmnprstvwz")),
        "two letters": lambda chats: chats.search(pick(top)[:2]),
        "three words": lambda chats: chats.search(f"{pick(top)} {pick(middle)} {pick(middle)}"),
        "a phrase": lambda chats: chats.search(f'"{pick(top)} {pick(top)}"'),
        "two words that are everywhere": lambda chats: chats.search(f"{pick(top)} {pick(top)}"),
        "two Chinese characters": lambda chats: chats.search("".join(pick(list(map(chr, range(0x4E00, 0x5200)))) * 2)),
        "nothing found": lambda chats: chats.search("xyzzy"),
        "all chats": lambda chats: chats.chats(),
        "prompts": lambda chats: chats.prompts(),
        f"a chat of {LONG_CHAT:,} messages": lambda chats: chats.tree(1),
    }
    results: dict[str, list[float]] = {name: [] for name in ["opening the database", *kinds]}
    for number in range(ROUNDS):
        results["opening the database"].append(timed(lambda: Chats(file).close()))
        chats = Chats(file)
        for name, work in kinds.items():
            times = [timed(work, chats) for _ in range(QUERIES if number else 1)]
            results[name] += times if number else []
        chats.close()
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}, {MESSAGES:,} messages, {file.stat().st_size / 1e6:.0f} MB\n")
    print("| | median ms | 95th percentile |\n|---|---|---|")
    for name, values in results.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.quantiles(values, n=20)[-1]:.2f} |")


if __name__ == "__main__":
    main()
