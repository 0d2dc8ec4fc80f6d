"""Cuts an answer that is still growing into Markdown blocks, so that what is finished never has to be drawn again.

Knows Markdown's block rules as far as the cuts need them, and nothing of screens. Blank lines belong to the block that
follows them. A finished list item is a block; a block that grows very long (a code listing, a table, a line without an
end) is cut into parts, and `settled` puts the parts together again when the answer is complete. The cuts depend on the
text alone, never on how it arrived; the blocks' sources, one after the other, are the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["prose", "item", "code", "table"]

PART_LINES = 16
PART_CHARS = 2048
"""A block is cut into parts of at most so many lines and (about) characters while it grows."""

MERGE_CHARS, MERGE_LINES = 1 << 13, 256
"""Parts that together are longer than one of these stay apart for good: setting them as one would be felt."""

_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])(?=[ \t]|$)")
_INTERRUPTING_ITEM = re.compile(r" {0,3}([-*+]|1[.)])[ \t]+\S")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_DELIMITER_ROW = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
# A last line of nothing but these may still become a list, a rule, a fence, a table: it waits for its next character.
_UNDECIDED = re.compile(r"[-*_+=`~#>|: \t]+$")
_UNDECIDED_IN_CODE = re.compile(r"[`~ \t]+$")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of Markdown: `source` is its exact text, `indent` the columns by which it is set in.

    `continues`: it is a later part of the block before it; then `opening` holds what a reader of the part must know of
    the start: a code block's opening fence, a table's first part.
    """

    kind: Kind
    source: str
    indent: int = 0
    opening: str = ""
    continues: bool = False


@dataclass(slots=True)
class Splitter:
    """Feed it text as it comes; `frozen` are the blocks that will not change any more, `tail()` is the rest."""

    frozen: list[Block] = field(default_factory=list)
    _kind: Kind | None = None
    _lines: list[str] = field(default_factory=list)
    _size: int = 0
    _indent: int = 0
    _fence: str = ""
    _opening: str = ""
    _continues: bool = False
    _in_list: bool = False
    _inside_line: bool = False
    _unfinished: str = ""

    def feed(self, text: str) -> None:
        """Take the next piece of text."""
        text = self._unfinished + text
        start = 0
        while True:
            end = text.find("\n", start, start + PART_CHARS) + 1
            if not end:
                if len(text) - start < PART_CHARS:
                    break
                end = start + PART_CHARS
            self._take(text[start:end])
            start = end
        self._unfinished = text[start:]

    def tail(self) -> tuple[list[Block], str]:
        """The blocks as they stand after `frozen`, and a last line too short to say what it will be."""
        if (_UNDECIDED_IN_CODE if self._fence else _UNDECIDED).match(self._unfinished):
            return self._with("")._rest(), self._unfinished
        return self._with(self._unfinished)._rest(), ""

    def settled(self) -> list[Block]:
        """All blocks of the complete text, parts put together."""
        blocks: list[Block] = []
        group: list[Block] = []
        for block in self.frozen + self._with(self._unfinished)._rest():
            if not block.continues:
                blocks += _together(group)
                group = []
            group.append(block)
        return blocks + _together(group)

    def _with(self, line: str) -> Splitter:
        """A copy, without `frozen`, that has taken `line` too."""
        copy = replace(self, frozen=[], _lines=self._lines.copy())
        if line:
            copy._take(line)
        return copy

    def _rest(self) -> list[Block]:
        if self._lines:
            self._push()
        return self.frozen

    def _take(self, line: str) -> None:
        """Take one line, or a piece of a very long one."""
        if self._inside_line:
            self._append(line)
        elif self._fence:
            self._append(line)
            if self._closes(line):
                self._fence = ""
                if self._kind == "code":
                    self._end()
        elif not line.strip():
            if self._kind != "item":
                self._end()
            self._append(line)
        elif self._kind is None or self._begins_block(line):
            self._end()
            self._begin(line)
        elif self._kind == "prose" and self._is_table_head(line):
            head = self._lines.pop()
            if any(before.strip() for before in self._lines):
                self._end()
            self._kind, self._in_list = "table", False
            self._append(head)
            self._append(line)
        else:
            self._append(line)
        self._inside_line = not line.endswith("\n")

    def _begins_block(self, line: str) -> bool:
        """Whether a line with text on it ends the open block and begins another."""
        bare = line.rstrip("\n")
        if _FENCE.match(bare) or _HEADING.match(bare):
            return True
        if self._kind == "item":
            after_blank = bool(self._lines) and not self._lines[-1].strip()
            return bool(_RULE.match(bare) or _ITEM.match(bare)) or (after_blank and _indent_of(line) < 2)
        if rule := _RULE.match(bare):
            # Dashes under a paragraph make it a heading.
            return rule[1] != "-" or self._kind == "table"
        return bool(_INTERRUPTING_ITEM.match(line))

    def _begin(self, line: str) -> None:
        """Begin a block with its first line that has text on it."""
        bare = line.rstrip("\n")
        indent = _indent_of(line)
        item = _ITEM.match(bare) if not _RULE.match(bare) and (indent < 4 or self._in_list) else None
        if fence := _FENCE.match(bare):
            self._kind, self._indent, self._fence = "code", indent if self._in_list else min(indent, 3), fence[1]
            self._opening = line
        elif item:
            self._kind, self._indent, self._in_list = "item", indent, True
            if fence := _FENCE.match(bare[item.end() :]):
                self._fence = fence[1]
        elif self._in_list and indent >= 2 and not _RULE.match(bare):
            # A further paragraph of an item that code had interrupted.
            self._kind, self._indent = "item", indent
        else:
            self._kind, self._indent, self._in_list = "prose", 0, False
        self._append(line)
        if self._kind == "prose" and (_HEADING.match(bare) or _RULE.match(bare)) and line.endswith("\n"):
            self._end()

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        if len(self._lines) < PART_LINES and self._size < PART_CHARS:
            return
        # What has become long is cut here, and goes on as a part of the same block.
        kind, in_list = self._kind, self._in_list
        if kind == "table" and not self._opening:
            self._opening = "".join(self._lines).lstrip()
        self._push()
        self._lines, self._size, self._continues, self._in_list = [], 0, kind is not None, in_list

    def _end(self) -> None:
        """Freeze the open block; blank lines at its end open the next one."""
        blanks: list[str] = []
        while self._lines and not self._lines[-1].strip():
            blanks.append(self._lines.pop())
        if self._lines:
            self._push()
        self._kind, self._lines, self._size = None, blanks[::-1], len(blanks)
        self._indent, self._fence, self._opening, self._continues = 0, "", "", False

    def _push(self) -> None:
        opening = self._opening if self._continues else ""
        self.frozen.append(Block(self._kind or "prose", "".join(self._lines), self._indent, opening, self._continues))

    def _closes(self, line: str) -> bool:
        mark = line.strip()
        return len(mark) >= len(self._fence) and not mark.strip(self._fence[0])

    def _is_table_head(self, line: str) -> bool:
        """Whether `line` is the row of dashes that makes a table of the line before it."""
        bare = line.rstrip("\n")
        return (
            "|" in bare
            and bool(_DELIMITER_ROW.match(bare))
            and bool(self._lines)
            and "|" in self._lines[-1]
            and not self._lines[-1].lstrip().startswith(">")
        )


def _indent_of(line: str) -> int:
    start = line[: len(line) - len(line.lstrip(" \t"))]
    return len(start.expandtabs(4))


def _together(parts: list[Block]) -> list[Block]:
    """The parts of one block as one, where that is not too long."""
    source = "".join(part.source for part in parts)
    if len(parts) < 2 or len(source) > MERGE_CHARS or source.count("\n") > MERGE_LINES:
        return parts
    return [replace(parts[0], source=source)]
