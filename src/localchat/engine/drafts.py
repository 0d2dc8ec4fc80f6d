"""Prompt lookup: what a text said before after the same words is what it may say next.

Who copies, edits or quotes says long stretches a second time. `Lookup` finds such a stretch in a conversation's own
tokens; `running` puts a few of its tokens behind the pending one, and one batch tells for all of them at once
whether the model would have said them. `DraftPolicy` decides how many, from what steps were seen to cost and how often
the lookup was right; where drafts do not pay there are none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from heapq import merge
from itertools import islice

LONGEST = 15
"""Tokens that are drafted at most for one answer."""

_WORD = 3  # tokens that must be the same before a place is taken for the same
_BITS = 20  # of a token id; the largest vocabularies have 18
_KEY = (1 << _BITS * _WORD) - 1
_CANDIDATES = 8  # earlier places that are compared, the latest first
_FAR = 32  # more tokens in common than this make nothing surer

_READ_AT_ONCE = 4096
"""Tokens that one `follow` takes in, about a millisecond's work: a long prompt that was in the cache comes in bites."""

# How often the lookup is right, by how many tokens agreed before: what is believed before an answer has shown it, and
# how many observations that belief is worth. The first is the token after one that was wrong.
_AGREED = (0, _WORD, 4, 6, 10, 18, _FAR)
_FIRST_CHANCES = (0.15, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95)
_BELIEF = 3.0
_MEMORY = 0.95  # what an observation still counts after the next one
_CLASS = tuple(max(index for index, agreed in enumerate(_AGREED) if agreed <= n) for n in range(_FAR + 1))


class Lookup:
    """Where in `tokens`, which only ever grow, the same was said before. Each token costs the same small time.

    It remembers some 150 bytes a token.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._known = 0
        self._key = 0
        self._latest: dict[int, int] = {}  # three tokens: the place after their latest occurrence
        self._before = array("i")  # place: the one after the occurrence before that, 0 for none
        self._source = 0
        self.agreed = 0
        """How many tokens before the source and before the end of the text are known to be the same."""
        self._right = [chance * _BELIEF for chance in _FIRST_CHANCES]
        self._tried = [_BELIEF] * len(_FIRST_CHANCES)

    def follow(self) -> bool:
        """Take in what was appended; whether that was all of it. Also learns how often the source is right."""
        tokens, latest, before, key = self._tokens, self._latest, self._before, self._key
        start, end = self._known, min(len(self._tokens), self._known + _READ_AT_ONCE)
        is_answer = end - start <= LONGEST + 1
        for place in range(start, end):
            token = tokens[place]
            # Only now is it known what follows on the three tokens before this one.
            if place >= _WORD:
                before.append(latest.get(key, 0))
                latest[key] = place
            else:
                before.append(0)
            if is_answer:
                self._compare(token)
            key = (key << _BITS | token) & _KEY
            if is_answer and self.agreed < _WORD and place >= _WORD:
                self._search(latest.get(key, 0), place + 1)
        self._key, self._known = key, end
        if not is_answer:
            self._source = self.agreed = 0
            if end >= _WORD:
                self._search(latest.get(key, 0), end)
        return end == len(tokens)

    def _compare(self, token: int) -> None:
        """Go on in the source with a token of the answer."""
        if not self._source:
            return
        kind = _CLASS[self.agreed]
        is_right = self._tokens[self._source] == token
        self._right[kind] = self._right[kind] * _MEMORY + is_right
        self._tried[kind] = self._tried[kind] * _MEMORY + 1
        self._source += 1
        self.agreed = min(self.agreed + 1, _FAR) if is_right else 0

    def _search(self, place: int, end: int) -> None:
        """Take the earlier place that has the most tokens in common with the end of the text, if there is one."""
        tokens = self._tokens
        for _ in range(_CANDIDATES):
            if not place:
                break
            common = _WORD
            while common < _FAR and common < place and tokens[place - 1 - common] == tokens[end - 1 - common]:
                common += 1
            # Without one, the old source is kept: a changed word may stand in for one of its words.
            if common > self.agreed:
                self.agreed, self._source = common, place
            place = self._before[place]

    def chances(self) -> Iterator[float]:
        """How likely the first, the first two, … tokens of a draft are right; nothing where there is no draft."""
        if not self._source or self._known < len(self._tokens):
            return
        chance, agreed = 1.0, self.agreed
        while True:
            kind = _CLASS[agreed]
            chance *= self._right[kind] / self._tried[kind]
            yield chance
            agreed = min(agreed + 1, _FAR)

    def draft(self, length: int) -> list[int]:
        """The tokens that followed at the source; where it reaches the end of the text, the text goes round."""
        draft = self._tokens[self._source : self._source + length]
        while len(draft) < length:
            draft += draft[: length - len(draft)]
        return draft


_ALLOWANCE = 0.02
"""The share of its time that an engine may lose by trying drafts that come to nothing."""

_CREDIT_STEPS = 4.0
"""What was gained or not used can be spent later, up to the time of so many plain steps."""

_GAIN = 1.04
"""By how much drafts must be faster before they are used: measured times are not exact."""

_SAMPLES = 5
_PLAIN_EVERY = 32  # steps with drafts after which a plain one is measured
_STALE_AFTER = 400  # steps after which a time that nobody has measured again is forgotten


class _Times:
    """How long steps take by their number of tokens; the median of the last few, because machines hiccup."""

    def __init__(self) -> None:
        self._taken: dict[int, list[float]] = {}
        self._measured: dict[int, int] = {}
        self._steps = 0

    def add(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        samples = self._taken.setdefault(tokens, [])
        samples.append(seconds)
        if len(samples) > _SAMPLES:
            del samples[0]
        self._measured[tokens] = self._steps

    def age(self, tokens: int) -> int:
        """How many steps ago a number of tokens was measured last."""
        return self._steps - self._measured.get(tokens, -_STALE_AFTER)

    def forget_stale(self, least: int) -> None:
        """Let what was slow long ago be tried again, for steps of more than `least` tokens."""
        for tokens in [tokens for tokens in self._taken if tokens > least and self.age(tokens) > _STALE_AFTER]:
            del self._taken[tokens]

    @property
    def largest(self) -> int:
        """The most tokens that were measured."""
        return max(self._taken)

    def of(self, tokens: int) -> float | None:
        """The usual time of so many tokens, None where they were not measured."""
        samples = self._taken.get(tokens)
        return sorted(samples)[len(samples) // 2] if samples else None

    def curve(self, least: int, most: int, token_s: float) -> list[float]:
        """The times of `least` to `most` tokens; `least` was measured, the others are estimated where they were not.

        Between two that were measured, on the line between them; above, each token costs `token_s`, as in reading.
        """
        known = sorted(tokens for tokens in self._taken if least <= tokens)
        times: list[float] = []
        for low, high in zip(known, [*known[1:], most + 1], strict=True):
            start = self.of(low) or 0.0
            end = self.of(high)
            step = token_s if end is None else (end - start) / (high - low)
            times += [start + step * more for more in range(high - low)]
        return times[: most - least + 1]


class DraftPolicy:
    """How many tokens to draft for whom, so that the most tokens come in a second.

    What a step costs is measured by its number of tokens, for each number of threads; nothing is tried that could lose
    more than a fiftieth of the time, or what drafts have gained lately.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], _Times] = {}
        self._times = _Times()
        self._credit: float | None = None

    def lengths(
        self, lookups: list[tuple[Lookup, int]], answers: int, free: int, threads: tuple[int, int], token_s: float
    ) -> list[int]:
        """How many tokens to draft for each of `lookups`, beside which stands how many it can use at most.

        `answers` get a token each in any case, and `free` tokens more have room; `threads` compute (batches of one
        token, of more); `token_s` is what one more token costs where nobody knows better, in seconds.
        """
        lengths = [0] * len(lookups)
        times = self._times = self._tables.setdefault(threads, _Times())
        plain_s = times.of(answers)
        if plain_s is None or self._credit is None or times.age(answers) > _PLAIN_EVERY:
            return lengths
        times.forget_stale(answers)
        # What a long draft costs is only guessed before one of half its length was measured.
        free = min(free, 2 * max(0, times.largest - answers) + 1)
        offers = [
            zip(islice(lookup.chances(), most), [index] * most, strict=False)
            for index, (lookup, most) in enumerate(lookups)
        ]
        curve: list[float] = []
        tokens, best, best_rate = float(answers), 0, answers / plain_s * _GAIN
        order = []
        for count, (chance, index) in enumerate(islice(merge(*offers, reverse=True), free), 1):
            curve = curve or times.curve(answers, answers + free, token_s)
            # Were all of it wrong, so much time would be lost.
            if curve[count] - plain_s > self._credit:
                break
            tokens += chance
            order.append(index)
            if tokens / curve[count] > best_rate:
                best, best_rate = count, tokens / curve[count]
        for index in order[:best]:
            lengths[index] += 1
        return lengths

    def took(self, answers: int, tokens: int, said: int, seconds: float) -> None:
        """A step of so many tokens was computed for `answers`, and `said` of theirs came of it."""
        times = self._times
        times.add(tokens, seconds)
        plain_s, usual_s = times.of(answers), times.of(tokens)
        if plain_s is None or usual_s is None:
            return
        if self._credit is None:
            self._credit = plain_s
        if tokens > answers:
            # By the usual time: a hiccup of the machine is not the drafts' fault.
            self._credit += said / answers * plain_s - usual_s
        self._credit = min(self._credit + _ALLOWANCE * usual_s, _CREDIT_STEPS * plain_s)
