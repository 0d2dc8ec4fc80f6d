"""What a page is made of: pieces, each a few lines that belong together, set only when somebody is about to see them.

A piece is a block of Markdown or some plain words. Until it is set it has a guessed height, so that a conversation of
any length has a length at once. Knows how lines are set, and nothing of messages, widgets or scrolling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from localchat.tui.blocks import Block
from localchat.tui.typeset import TAB, Look, References, Typesetter

if TYPE_CHECKING:
    from rich.console import Console

Part = Literal[
    "seen", "prompt", "fold", "chips", "thinking", "thought", "answer", "error", "notes", "figures", "siblings"
]
"""Which part of a message a piece is."""

Edge = Literal["", "person", "queued"]
"""The thin rule left of the text: none, the person's, or that of a message that waits."""

Ink = Literal["text", "muted", "faint", "accent", "error", "strong"]
Words = Sequence[tuple[str, Ink]]

_THOUGHT_INDENT = 2
_RULE_BEFORE = 3


@dataclass(frozen=True, slots=True)
class Inks:
    """The styles of what stands around the answers."""

    text: Style
    muted: Style
    faint: Style
    accent: Style
    error: Style
    strong: Style


@dataclass(slots=True, eq=False)
class Piece:
    """Some lines that belong together. `height` counts `gap` empty lines before them; a guess until `rows` are set.

    `content` is a block of Markdown, plain words, or (`rule`) the label of a thin rule.
    """

    part: Part
    content: Block | Words
    gap: int = 0
    edge: Edge = ""
    rule: bool = False
    references: References | None = None
    rows: list[Strip] | None = None
    height: int = 0

    @property
    def continues(self) -> bool:
        """Whether it is a later part of the block before it."""
        return isinstance(self.content, Block) and self.content.continues

    def set_gap(self, gap: int) -> None:
        """Change the number of empty lines before it."""
        self.height += gap - self.gap
        self.gap = gap


class Paper:
    """Sets pieces in lines of at most `width` cells."""

    def __init__(self, console: Console, look: Look, inks: Inks, width: int) -> None:
        self._console = console
        self._look = look
        self.inks = inks
        self.width = width
        self._typesetter = Typesetter(console, look, width)
        # Thinking is dimmed as a whole, code too.
        faded = {
            field.name: getattr(look, field.name) + inks.muted
            for field in fields(Look)
            if field.name in ("strong", "heading", "code", "panel", "title", "keyword", "string", "number")
        }
        dimmed = replace(look, text=look.text + inks.muted, **faded)
        self._indent = min(_THOUGHT_INDENT, max(0, width - 1))
        self._thoughts = Typesetter(console, dimmed, width - self._indent)

    def is_like(self, width: int, look: Look, inks: Inks) -> bool:
        """Whether it is this wide and has these colours."""
        return (self.width, self._look, self.inks) == (width, look, inks)

    def piece(self, part: Part, content: Block | Words, *, edge: Edge = "", rule: bool = False, gap: int = 0) -> Piece:
        """A piece with a guess of its height."""
        piece = Piece(part, content, gap, edge, rule)
        piece.height = gap + self._guess(content)
        return piece

    def gap_before(self, block: Block, previous: Block | None) -> int:
        """How many empty lines set a block off from the one before it."""
        return int(self._typesetter.gap_before(block, previous))

    def set(self, piece: Piece) -> None:
        """Set the lines of a piece, if they are not yet."""
        if piece.rows is not None:
            return
        content = piece.content
        if not isinstance(content, Block):
            piece.rows = self._rule(content) if piece.rule else self._wrapped(content)
        elif piece.part == "thought":
            margin = Strip.blank(self._indent, self._look.text)
            piece.rows = [Strip.join([margin, strip]) for strip in self._thoughts.block(content, piece.references)]
        else:
            piece.rows = self._typesetter.block(content, piece.references)
        piece.height = piece.gap + len(piece.rows)

    def _wrapped(self, words: Words) -> list[Strip]:
        text = Text.assemble(
            *((said, getattr(self.inks, ink)) for said, ink in words), style=self._look.text, end="", tab_size=TAB
        )
        lines = text.wrap(self._console, self.width, overflow="fold", tab_size=TAB)
        return [Strip(line.render(self._console, end="")).simplify().crop(0, self.width) for line in lines]

    def _rule(self, words: Words) -> list[Strip]:
        label = "".join(said for said, _ in words)
        text = Text("─" * _RULE_BEFORE + " ", self.inks.faint, end="")
        text.append(label, self.inks.muted)
        text.append(" " + "─" * max(0, self.width - text.cell_len - 1), self.inks.faint)
        return [Strip(text.render(self._console, end="")).crop(0, self.width)]

    def _guess(self, content: Block | Words) -> int:
        if not isinstance(content, Block):
            return guessed_lines("".join(said for said, _ in content), self.width)
        lines = guessed_lines(content.source.strip("\n"), max(1, self.width - content.indent))
        if content.kind == "code" and not content.continues:
            # The fences go, a language may come.
            return max(1, lines - 1)
        return lines


def guessed_lines(text: str, width: int) -> int:
    """About how many lines `text` takes up, without setting it."""
    if len(text) <= width and "\n" not in text:
        return 1
    if len(text) < 4096:
        return sum(1 + max(0, len(line) - 1) // width for line in text.split("\n"))
    return text.count("\n") + 1 + len(text) // width


_LINE_OF_2048 = re.compile(r"(?s).{1,2048}")


def plain_parts(text: str, lines: int = 16) -> list[str]:
    """`text` in parts of at most so many lines, a very long line in parts too: so that setting one is little work."""
    parts: list[str] = []
    for start in range(0, len(every := text.split("\n")), lines):
        parts += _LINE_OF_2048.findall("\n".join(every[start : start + lines])) or [""]
    return parts
