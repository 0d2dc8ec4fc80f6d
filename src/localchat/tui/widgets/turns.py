"""What one message looks like: the person's with a thin rule beside it, an answer with its thinking and how it ended.

A sheet is one message as pieces. It is opened (split into blocks, its pieces made) only when somebody is about to see
it, and closed again later; in between it has a height that may be a guess.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

from localchat.chats.reply import Reply
from localchat.safe_text import safe_line, safe_text
from localchat.tui.conversation import Item, Prompt
from localchat.tui.widgets.endings import ending, figures
from localchat.tui.widgets.page import Page
from localchat.tui.widgets.pieces import Edge, Ink, Paper, Part, Piece, Words, guessed_lines, plain_parts
from localchat.tui.words import duration, tokens

_PROMPT_LINES = 60
_PROMPT_CHARS = 8000
_CHIPS = 8


@dataclass(slots=True)
class Manner:
    """How messages are shown: whether thinking stands open, figures are shown; what the key of an action is called."""

    thinking_open: bool
    figures_open: bool
    key: Callable[[str], str]


class Sheet:
    """One message as pieces, from top to bottom. `height` is in lines, a guess until all pieces are set.

    `seen` labels the rule above it, where the model sees nothing of what stands before ("" for none); what follows its
    first line is the summary that the model sees instead.
    """

    def __init__(self, item: Item | None, manner: Manner) -> None:
        self.item = item
        self.manner = manner
        self.seen = ""
        self.is_open = False
        self._pieces: list[Piece] = []
        self._ends: list[int] | None = None
        self._height: int | None = None

    def height(self, paper: Paper) -> int:
        """How many lines it takes up on `paper`."""
        if self._height is None:
            self._height = self._guess(paper.width)
        return self._height

    def pieces(self, paper: Paper) -> list[Piece]:
        """Its pieces; opens it."""
        if not self.is_open:
            self.is_open = True
            self._arrange(paper)
        return self._pieces

    def close(self, *, forget: bool = False) -> None:
        """Let the pieces go. The height is kept, unless it would not be right any more (`forget`)."""
        self.is_open, self._pieces, self._ends = False, [], None
        if forget:
            self._height = None

    def set(self, piece: Piece, paper: Paper) -> None:
        """Set one of its pieces."""
        if piece.rows is None:
            before = piece.height
            paper.set(piece)
            if piece.height != before:
                self._measure()

    def find(self, row: int) -> tuple[int, int]:
        """The piece that has line `row` of an open sheet, and which of its lines that is."""
        ends = self._ends
        if not ends:
            return 0, 0
        number = min(bisect_right(ends, row), len(ends) - 1)
        return number, row - (ends[number] - self._pieces[number].height)

    def top_of(self, number: int) -> int:
        """The line of an open sheet that its piece `number` begins at."""
        return (self._ends or [0])[number] - self._pieces[number].height

    def group(self, number: int) -> tuple[int, int]:
        """The pieces (first, behind the last) that are one block with piece `number`."""
        first = number
        while first and self._pieces[first].continues:
            first -= 1
        end = number + 1
        while end < len(self._pieces) and self._pieces[end].continues:
            end += 1
        return first, end

    def changed(self, paper: Paper) -> None:
        """Arrange the pieces anew: something about the message has changed."""
        self._height = None
        if self.is_open:
            self._arrange(paper)

    def update(self, now: float, paper: Paper) -> None:
        """Show what has come since the last time."""

    def text(self) -> str:
        """The message as it was written."""
        return ""

    def is_stop(self, number: int) -> bool:
        """Whether somebody who reads block by block stops at piece `number`."""
        piece = self._pieces[number]
        if piece.part == "prompt":
            return number == 0 or self._pieces[number - 1].part != "prompt"
        return piece.part in ("thinking", "thought", "answer") and not piece.continues

    def sibling_at(self, column: int) -> int:
        """Where a click on the line of siblings leads: -1, 1, or 0 (nowhere)."""
        line = _siblings(self.item) if self.item else ""
        if column >= len(line):
            return 0
        return -1 if column < len(line) // 2 else 1

    def toggle(self) -> None:
        """Open or fold what can be folded."""

    def _measure(self) -> None:
        self._ends = list(accumulate(map(attrgetter("height"), self._pieces)))
        self._height = self._ends[-1] if self._ends else 0

    def _arrange(self, paper: Paper) -> None:
        pieces = self._made(paper)
        if self.seen and pieces:
            pieces[0].set_gap(1)
            label, _, summary = self.seen.partition("\n")
            if summary:
                pieces.insert(0, paper.piece("seen", [(safe_text(summary), "muted")], gap=1))
            pieces.insert(0, paper.piece("seen", [(label, "muted")], rule=True))
        if pieces:
            pieces[0].set_gap(1)
        self._pieces = pieces
        self._measure()

    def _made(self, paper: Paper) -> list[Piece]:
        return []

    def _guess(self, width: int) -> int:
        return 0

    def _siblings(self, paper: Paper, edge: Edge) -> list[Piece]:
        if not self.item or self.item.places < 2:
            return []
        return [paper.piece("siblings", [(_siblings(self.item), "muted")], edge=edge)]


class Notice(Sheet):
    """Plain words on the page: what stands there before the first message."""

    def __init__(self, words: Words, manner: Manner) -> None:
        super().__init__(None, manner)
        self.words = words

    def _made(self, paper: Paper) -> list[Piece]:
        return [paper.piece("notes", self.words)]

    def _guess(self, width: int) -> int:
        return 1 + guessed_lines("".join(said for said, _ in self.words), width)


class PromptSheet(Sheet):
    """What the person wrote, as they wrote it. A very long message shows its beginning and how much follows."""

    def __init__(self, item: Item, prompt: Prompt, manner: Manner, *, queued: bool = False) -> None:
        super().__init__(item, manner)
        self.prompt = prompt
        self._queued = queued
        self._unfolded = False

    def text(self) -> str:
        """The message as it was written."""
        return self.prompt.text

    def toggle(self) -> None:
        """Show a very long message whole, or only its beginning."""
        self._unfolded = not self._unfolded

    def _made(self, paper: Paper) -> list[Piece]:
        edge: Edge = "queued" if self._queued else "person"
        text = safe_text(self.prompt.text)
        shown = _beginning(text)
        long = len(shown) < len(text)
        pieces: list[Piece] = []
        if text or not self.prompt.attachments:
            parts = plain_parts(text if self._unfolded else shown)
            ink: Ink = "muted" if self._queued else "text"
            pieces += [paper.piece("prompt", [(part, ink)], edge=edge) for part in parts]
        if long:
            rest = f"{len(text) - len(shown):,} more characters"
            told = f"▾ fold the last {rest}" if self._unfolded else f"▸ {rest} were sent"
            pieces.append(paper.piece("fold", [(told, "muted")], edge=edge))
        attachments = self.prompt.attachments
        chips = [_chip(one.name, one.text, one.tokens) for one in attachments[:_CHIPS]]
        if len(attachments) > _CHIPS:
            chips.append([(f"and {len(attachments) - _CHIPS} more", "muted")])
        pieces += [paper.piece("chips", chip, edge=edge) for chip in chips]
        if self._queued:
            pieces.append(paper.piece("notes", [("waits for the end of the answer", "faint")], edge=edge))
        return pieces + self._siblings(paper, edge)

    def _guess(self, width: int) -> int:
        text = self.prompt.text
        lines = guessed_lines(text if self._unfolded else _beginning(text), width)
        return 1 + lines + min(_CHIPS, len(self.prompt.attachments)) + (self.item is not None and self.item.places > 1)


class ReplySheet(Sheet):
    """One attempt to answer: the thinking (folded or open), the answer, and a word on how it ended."""

    def __init__(self, item: Item, reply: Reply, manner: Manner) -> None:
        super().__init__(item, manner)
        self.reply = reply
        self._own_fold: bool | None = None
        self._now = 0.0
        self._forget()

    def _forget(self) -> None:
        self._answer: Page | None = None
        self._thought: Page | None = None
        self._shown = self._shown_thought = 0
        self._answer_over = self._thought_over = False

    @property
    def thinking_open(self) -> bool:
        """Whether the thinking is shown in full."""
        return self.manner.thinking_open if self._own_fold is None else self._own_fold

    def toggle(self) -> None:
        """Open or fold the thinking of this answer."""
        self._own_fold = not self.thinking_open

    def follow_manner(self) -> None:
        """Show the thinking as that of all answers."""
        self._own_fold = None

    def text(self) -> str:
        """The answer as Markdown."""
        return self.reply.text

    def close(self, *, forget: bool = False) -> None:
        """Let the pieces go."""
        super().close(forget=forget)
        self._forget()

    def update(self, now: float, paper: Paper) -> None:
        """Show what has come since the last time."""
        self._now = now
        if self.is_open:
            self._arrange(paper)
        else:
            self._height = None

    def _made(self, paper: Paper) -> list[Piece]:
        reply = self.reply
        pieces: list[Piece] = []
        if reply.reasoning.strip():
            pieces += self._thinking(paper)
        if self._answer is None:
            self._answer = Page("answer", paper)
        if len(reply.text) > self._shown:
            self._answer.append(reply.text[self._shown :])
            self._shown, self._answer_over = len(reply.text), False
        if not reply.running and not self._answer_over:
            self._answer.finish()
            self._answer_over = True
        body = self._answer.pieces
        if body:
            body[0].set_gap(1)
        pieces += body
        foot = self._foot(paper)
        if foot and body:
            foot[0].set_gap(1)
        return pieces + foot

    def _thinking(self, paper: Paper) -> list[Piece]:
        reply = self.reply
        thinking = reply.state == "thinking"
        seconds = duration(reply.thinking_seconds(self._now) or 0.0)
        made = f"about {tokens(reply.reasoning_tokens)}"
        told = f"thinking {seconds}, {made}" if thinking else f"thought for {seconds}, {made}"
        line = paper.piece("thinking", [(f"{'▾' if self.thinking_open else '▸'} {told}", "muted")])
        if not self.thinking_open:
            return [line]
        if self._thought is None:
            self._thought = Page("thought", paper)
        if len(reply.reasoning) > self._shown_thought:
            self._thought.append(reply.reasoning[self._shown_thought :])
            self._shown_thought, self._thought_over = len(reply.reasoning), False
        if not thinking and not self._thought_over:
            self._thought.finish()
            self._thought_over = True
        if self._thought.pieces:
            self._thought.pieces[0].set_gap(1)
        return [line, *self._thought.pieces]

    def _foot(self, paper: Paper) -> list[Piece]:
        """What stands under an answer that is over."""
        if self.reply.running:
            return []
        told: list[tuple[Part, Words]] = list(ending(self.reply, self.manner.key))
        if self.manner.figures_open and (line := figures(self.reply)):
            told.append(("figures", [(line, "faint")]))
        return [paper.piece(part, words) for part, words in told] + self._siblings(paper, "")

    def _guess(self, width: int) -> int:
        reply = self.reply
        lines = 1 + guessed_lines(reply.text, width) if reply.text.strip() else 0
        lines += 2 if reply.reasoning.strip() else 0
        if self.thinking_open and reply.reasoning:
            lines += guessed_lines(reply.reasoning, width)
        return lines + (not reply.running and reply.state != "done") + bool(self.item and self.item.places > 1)


def sheet_for(item: Item, manner: Manner) -> Sheet:
    """A message as a sheet."""
    if isinstance(item.content, Prompt):
        return PromptSheet(item, item.content, manner)
    return ReplySheet(item, item.content, manner)


def _siblings(item: Item) -> str:
    return f"‹ {item.place} of {item.places} ›"


def _chip(name: str, text: str, count: int | None) -> Words:
    size = _size(len(text.encode("utf-8", "surrogatepass")))
    known = [size] if count is None else [size, tokens(count)]
    return [("▪ ", "accent"), (safe_line(name) or "piped in", "text"), ("  " + "  ".join(known), "muted")]


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:,.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def _beginning(text: str) -> str:
    """Of a very long message the beginning, else all of it."""
    return "\n".join(text[:_PROMPT_CHARS].split("\n")[:_PROMPT_LINES])
