"""All messages of a page one under the other, as one long roll of lines of which only what is near the eye is set.

Heights of what was not set are guessed. A `Spot` is a place in the text that keeps its meaning when guesses turn out
wrong, when parts become whole blocks, and when the width changes; so the line under the eye can stay where it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from localchat.tui.widgets.pieces import Paper, Part, Piece
from localchat.tui.widgets.turns import Sheet

_OPEN_SHEETS = 48
"""So many messages keep their lines; those that were looked at longest ago are closed."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Line `row` (of `rows`) of the `number`th block of a part of a message."""

    sheet: Sheet
    part: Part | None
    number: int
    row: int
    rows: int


class Roll:
    """The sheets, the oldest first, on `paper`."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self.sheets: list[Sheet] = []
        self._ends: list[int] = []
        self._opened: dict[Sheet, None] = {}

    def measure(self) -> int:
        """Take in what has changed in the sheets' heights; the height of all of them, in lines."""
        self._ends = list(accumulate(sheet.height(self.paper) for sheet in self.sheets))
        return self._ends[-1] if self._ends else 0

    def use(self, paper: Paper) -> None:
        """Go on with other paper: nothing is set on it yet."""
        self.paper = paper
        for sheet in self.sheets:
            sheet.close(forget=True)
        self._opened.clear()

    def open(self, sheet: Sheet) -> list[Piece]:
        """The pieces of a sheet, which is kept open for a while."""
        self._opened.pop(sheet, None)
        self._opened[sheet] = None
        return sheet.pieces(self.paper)

    def close_the_oldest(self) -> None:
        """Let the pieces go of sheets that nobody looked at for long."""
        for sheet in list(self._opened)[: max(0, len(self._opened) - _OPEN_SHEETS)]:
            del self._opened[sheet]
            sheet.close()

    def top_of(self, sheet: Sheet) -> int:
        """The line that a sheet begins at."""
        index = self.sheets.index(sheet)
        return self._ends[index] - sheet.height(self.paper)

    def at(self, line: int) -> tuple[int, int, int]:
        """The sheet that has a line, which piece of it, and which line of the piece (a gap's lines come first)."""
        line = max(0, min(line, self._ends[-1] - 1))
        index = min(bisect_right(self._ends, line), len(self.sheets) - 1)
        sheet = self.sheets[index]
        self.open(sheet)
        # Opening may have corrected the height: what is above stays where it was.
        top = self._ends[index - 1] if index else 0
        piece, row = sheet.find(min(line - top, sheet.height(self.paper) - 1))
        return index, piece, row

    def spot(self, line: int) -> Spot | None:
        """The place in the text that a line shows."""
        if not self.sheets:
            return None
        index, piece, row = self.at(line)
        sheet = self.sheets[index]
        return self.spot_of(sheet, piece, row) if self.open(sheet) else Spot(sheet, None, 0, 0, 1)

    def spot_of(self, sheet: Sheet, piece: int, row: int = 0) -> Spot:
        """The place of a line of a piece of an open sheet."""
        pieces = self.open(sheet)
        first, end = sheet.group(piece)
        part = pieces[piece].part
        number = sum(1 for one in pieces[:first] if one.part == part and not one.continues)
        above = sum(one.height for one in pieces[first:piece])
        return Spot(sheet, part, number, above + row, sum(one.height for one in pieces[first:end]))

    def place(self, spot: Spot, *, stretched: bool = False) -> tuple[int, int]:
        """The piece of its (open) sheet that a spot is in now, and the line of the piece.

        `stretched`: the width has changed, so that a line in the middle of a block is again about there.
        """
        pieces, sheet = self.open(spot.sheet), spot.sheet
        starts = [n for n, one in enumerate(pieces) if one.part == spot.part and not one.continues]
        if not starts:
            return 0, 0
        first, end = sheet.group(starts[min(spot.number, len(starts) - 1)])
        row = spot.row
        if stretched:
            row = row * sum(piece.height for piece in pieces[first:end]) // max(1, spot.rows)
        for number in range(first, end):
            height = pieces[number].height
            if row < height or number == end - 1:
                return number, min(row, max(0, height - 1))
            row -= height
        return first, 0

    def line_of(self, spot: Spot) -> int:
        """The line that shows a spot."""
        piece, row = self.place(spot)
        return self.top_of(spot.sheet) + spot.sheet.top_of(piece) + row if self.open(spot.sheet) else 0

    def walk(self, sheet: Sheet, piece: int, by: int) -> Iterator[tuple[Sheet, int]]:
        """The pieces from one onwards (1) or backwards (-1), itself first, over all sheets."""
        index = self.sheets.index(sheet)
        while True:
            pieces = self.open(self.sheets[index])
            while 0 <= piece < len(pieces):
                yield self.sheets[index], piece
                piece += by
            index += by
            if not 0 <= index < len(self.sheets):
                return
            piece = 0 if by > 0 else len(self.open(self.sheets[index])) - 1

    def set_around(self, spot: Spot | None, above: int, below: int, *, stretched: bool = False) -> Spot | None:
        """Set at least so many lines above and below a spot (None: the end); returns the spot as it is now."""
        if not self.sheets:
            return None
        sheet = spot.sheet if spot else self.sheets[-1]
        piece, row = self.place(spot) if spot else (len(self.open(sheet)) - 1, 0)
        if stretched and spot:
            first, end = sheet.group(piece)
            for number in range(first, end):
                sheet.set(sheet.pieces(self.paper)[number], self.paper)
            piece, row = self.place(spot, stretched=True)
        for by, wanted in ((1, below + row), (-1, above + (0 if spot else below))):
            for one, number in self.walk(sheet, piece, by):
                content = one.pieces(self.paper)[number]
                one.set(content, self.paper)
                if by > 0 or spot is None or (one, number) != (sheet, piece):
                    wanted -= content.height
                if wanted <= 0:
                    break
        self.measure()
        pieces = sheet.pieces(self.paper)
        return self.spot_of(sheet, piece, min(row, pieces[piece].height - 1)) if spot and pieces else None
