"""Search: from words as a person types them to the messages in which they stand.

Knows the index (`schema`), how its tokenizer cuts words, and how a line around a match is cut for a list.
"""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterator

from localchat.chats.columns import text
from localchat.chats.records import Hit, Kind
from localchat.chats.schema import spaced
from localchat.safe_text import safe_line

_MOST_TERMS = 32
_RANKED = 1000
"""What is found more often than this is not weighed, and only the newest of it is looked at."""
_MOST_TITLES = 10
_FADES_DAYS = 90
"""After so many days half of what being new counts for is gone."""
_EXCERPT = 120
_BEFORE = 40
"""Characters of an excerpt, and how many of them stand before the first match."""
_DAY_S = 86400.0

_WORD = r"[^\W_]"
_ACCENT = "\u0300"


def search(db: sqlite3.Connection, typed: str, limit: int, kind: Kind | None) -> list[Hit]:
    """The messages and titles that hold everything in `typed`, the best first, deleted chats left out.

    Several words all have to be there, "several words" in quotes side by side; the last word may be the beginning of
    one. A title is found as a hit on its chat's tip with role "title"; titles come first. Raises `sqlite3.Error`.
    """
    terms = list(_terms(typed))
    if not terms or limit < 1:
        return []
    query = " ".join(f'"{spaced(words)}"{"*" if begins else ""}' for words, begins in terms)
    pattern = _pattern(terms)
    # To weigh a word costs a walk over all its places, and one that stands everywhere tells nothing: there time ranks.
    often = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    weight = "bm25(words)" if db.execute(often, (query, _RANKED)).fetchone()[0] < _RANKED else "-1.0"
    # Rows come newest first out of the index, so no more are read than are ranked.
    found = db.execute(
        f"""SELECT words.rowid, messages.created, {weight} FROM words
        JOIN messages ON messages.id = words.rowid JOIN chats ON chats.id = chat
        WHERE words MATCH ? AND deleted IS NULL AND (? IS NULL OR kind = ?) ORDER BY words.rowid DESC LIMIT ?""",
        (query, kind, kind, _RANKED),
    ).fetchall()
    now = time.time()
    found.sort(key=lambda row: row[2] * (1 + 0.5 ** (max(0.0, now - row[1]) / _DAY_S / _FADES_DAYS)))
    hits = []
    for node, created, _ in found[:limit]:
        chat, kind_of, title, role, content = db.execute(
            "SELECT chat, kind, title, role, content FROM messages JOIN chats ON chats.id = chat WHERE messages.id = ?",
            (node,),
        ).fetchone()
        hits.append(Hit(chat, node, kind_of, title, role, created, *_excerpt(content, pattern)))
    titled = db.execute(
        """SELECT chats.id, tip, kind, title, created, titled_by FROM titles JOIN chats ON chats.id = titles.rowid
        WHERE titles MATCH ? AND deleted IS NULL AND tip IS NOT NULL AND (? IS NULL OR kind = ?)
        ORDER BY updated DESC LIMIT ?""",
        (query, kind, kind, min(limit, _MOST_TITLES)),
    )
    # A title made of the first words is found with the message that it comes from.
    told = {hit.chat for hit in hits}
    named = [
        Hit(chat, tip, kind_of, title, "title", created, *_excerpt(title, pattern))
        for chat, tip, kind_of, title, created, titled_by in titled
        if titled_by != "words" or chat not in told
    ]
    return (named + hits)[:limit]


def _terms(typed: str) -> Iterator[tuple[str, bool]]:
    """What is looked for: a word or phrase each, and whether it may be the beginning of a longer word."""
    parts = list(re.finditer(r'"([^"]*)("?)|([^\s"]+)', text(typed[:1000]).replace("\0", " ")))
    words = [(part[1] if part[3] is None else part[3], not part[2]) for part in parts]
    words = [(word, opened) for word, opened in words if re.search(_WORD, word)]
    for number, (word, opened) in enumerate(words[:_MOST_TERMS], 1):
        yield word, opened and number == len(words)


class _Folded(dict[int, str]):
    """Each character as the index's tokenizer sees it, one for one: small, without accents."""

    def __missing__(self, code: int) -> str:
        decomposed = unicodedata.normalize("NFD", chr(code))
        # A syllable of hangul falls apart into letters, not into one with marks.
        base = decomposed[0] if all(map(_is_mark, decomposed[1:])) else chr(code)
        small = base.lower()
        self[code] = folded = _ACCENT if _is_mark(base) else small if len(small) == 1 else base
        return folded


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


_folded = _Folded()


def _fold(content: str) -> str:
    return content.lower() if content.isascii() else content.translate(_folded)


def _pattern(terms: list[tuple[str, bool]]) -> re.Pattern[str]:
    """What matches one of the terms in a folded text."""
    alternatives = []
    for words, begins in terms:
        tokens = re.findall(_WORD + "+", spaced(_fold(words).replace(_ACCENT, "")))
        single = [spaced(token) != token for token in tokens]
        found = "" if not single or single[0] else f"(?<!{_WORD})"
        for number, token in enumerate(tokens):
            found += (r"[\W_]*" if single[number - 1] or single[number] else r"[\W_]+") if number else ""
            found += "".join(re.escape(character) + _ACCENT + "*" for character in token)
        if tokens and not single[-1]:
            found += f"(?:{_WORD}|{_ACCENT})*" if begins else f"(?!{_WORD})"
        if found:
            alternatives.append(found)
    return re.compile("|".join(alternatives) or r"(?!)")


def _excerpt(content: str, pattern: re.Pattern[str]) -> tuple[str, list[tuple[int, int]]]:
    """One line of `content` around its first match, and where the matches in it are."""
    first = pattern.search(_fold(content))
    start = max(0, first.start() - 4 * _EXCERPT) if first else 0
    line = safe_line(content[start : start + 9 * _EXCERPT])
    matches = [match.span() for match in pattern.finditer(_fold(line)) if match.end() > match.start()]
    begin = max(0, min(matches[0][0] - _BEFORE, len(line) - _EXCERPT)) if matches else 0
    end = begin + _EXCERPT
    head = "…" if start or begin else ""
    tail = "…" if end < len(line) or start + 9 * _EXCERPT < len(content) else ""
    shift = len(head) - begin
    marks = [(left + shift, min(right, end) + shift) for left, right in matches if begin <= left < end]
    return head + line[begin:end] + tail, marks
