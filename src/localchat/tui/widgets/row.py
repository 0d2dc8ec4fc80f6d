"""One line of the page as it is drawn: margin, mark, the person's rule, text; and what of it is selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.selection import Selection
from textual.strip import Strip

from localchat.tui.widgets.pieces import Edge, Inks
from localchat.tui.widgets.roll import Roll

Mark = Literal["", "message", "block"]

_EDGES = {"": " ", "person": "│", "queued": "╎"}


@dataclass(frozen=True, slots=True)
class Line:
    """What stands on one line: its text (None: nothing), and what is left of it.

    `key` tells lines apart for the selection of text; `last`: a sign at its end says that there is more below.
    """

    text: Strip | None = None
    edge: Edge = ""
    mark: Mark = ""
    key: int = 0
    last: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """How the lines of a page are put together: the column begins at cell `left`, its text is `text` cells wide."""

    inks: Inks
    left: int
    text: int
    width: int

    def of(self, line: Line, span: tuple[int, int] | None, selection: Style | None) -> Strip:
        """A line as it is drawn; `span` are the characters that are selected."""
        inks, edge = self.inks, _EDGES[line.edge]
        strip = line.text or Strip([])
        if span is not None and selection is not None and strip.cell_length:
            start = cell_len(strip.text[: span[0]])
            end = strip.cell_length if span[1] == -1 else cell_len(strip.text[: span[1]])
            strip = Strip.join([strip.crop(0, start), strip.crop(start, end).apply_style(selection), strip.crop(end)])
        margin = [Segment(" " * max(0, self.left - 2), inks.text)]
        if self.left >= 2:
            bar = {
                "": Segment("  ", inks.text),
                "message": Segment("▏ ", inks.muted),
                "block": Segment("▎ ", inks.accent),
            }
            margin.append(bar[line.mark])
        margin.append(Segment(f"{edge} ", inks.accent if edge == "│" else inks.faint))
        body = strip.adjust_cell_length(self.text, inks.text).apply_offsets(0, line.key)
        return Strip([*margin, *body]).adjust_cell_length(self.width, inks.text)

    def with_sign(self, strip: Strip, sign: str) -> Strip:
        """The line with a word at its right end."""
        start = max(0, min(self.width, self.left + self.text + 4) - cell_len(sign))
        return Strip.join([strip.crop(0, start), Strip([Segment(sign, self.inks.accent)])]).adjust_cell_length(
            self.width, self.inks.text
        )


def line_key(sheet: int, piece: int, row: int = 0) -> int:
    """A number for a line of a piece: in the order of the page, and right also when heights above it change."""
    return (sheet << 40) + (piece << 16) + row


def selected(roll: Roll, selection: Selection) -> str:
    """The text of a selection whose lines are keys (see `line_key`)."""
    start, end = selection.start, selection.end
    first = (start.y >> 40, (start.y >> 16) & 0xFFFFFF) if start else (0, 0)
    last = (end.y >> 40, (end.y >> 16) & 0xFFFFFF) if end else (len(roll.sheets), 0)
    lines: list[str] = []
    for index in range(first[0], min(last[0], len(roll.sheets) - 1) + 1):
        sheet = roll.sheets[index]
        pieces = roll.open(sheet)
        for number, piece in enumerate(pieces):
            if not first <= (index, number) <= last:
                continue
            sheet.set(piece, roll.paper)
            if lines:
                lines += [""] * piece.gap
            for row, strip in enumerate(piece.rows or []):
                span = selection.get_span(line_key(index, number, row))
                if span is not None:
                    text = strip.text[span[0] :] if span[1] == -1 else strip.text[span[0] : span[1]]
                    lines.append(text.rstrip())
    return "\n".join(lines)
