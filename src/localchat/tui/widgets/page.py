"""Markdown as pieces, while it grows and when it is whole: only its unfinished end is ever set again."""

from __future__ import annotations

from localchat.safe_text import safe_text
from localchat.tui.blocks import Block, Splitter
from localchat.tui.typeset import References, references_in
from localchat.tui.widgets.pieces import Paper, Part, Piece


class Page:
    """Markdown text: `append` while it comes, `finish` when it is whole. `pieces` are its blocks, the oldest first."""

    def __init__(self, part: Part, paper: Paper) -> None:
        self.pieces: list[Piece] = []
        self._part = part
        self._paper = paper
        self._splitter = Splitter()
        self._frozen = 0

    def append(self, text: str) -> None:
        """Take in more text. What was finished before stays as it is."""
        self._splitter.feed(safe_text(text))
        frozen, kept = self._splitter.frozen, self._frozen
        blocks = frozen[kept:] + self._splitter.tail()[0]
        self.pieces[kept:] = self._pieces(blocks, self.pieces[kept:], frozen[kept - 1] if kept else None)
        self._frozen = len(frozen)

    def finish(self) -> None:
        """The text is complete: parts become whole blocks, and late addresses come where they belong.

        More may be appended all the same, where an answer goes on that had ended.
        """
        blocks = self._splitter.settled()
        self.pieces = self._pieces(blocks, self.pieces, None, references_in(blocks))
        self._frozen = 0

    def _pieces(
        self, blocks: list[Block], known: list[Piece], previous: Block | None, references: References | None = None
    ) -> list[Piece]:
        """A piece for each block: a known one where it is of the same block, and no address came late."""
        before: dict[object, list[Piece]] = {}
        for piece in reversed(known):
            before.setdefault(piece.content, []).append(piece)
        pieces: list[Piece] = []
        for block in blocks:
            same = before.get(block)
            if same and not (references and "[" in block.source):
                piece = same.pop()
            else:
                piece = self._paper.piece(self._part, block)
                piece.references = references
            piece.set_gap(self._paper.gap_before(block, previous))
            pieces.append(piece)
            previous = block
        return pieces
