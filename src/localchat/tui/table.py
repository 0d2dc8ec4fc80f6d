"""Sets a table: columns as wide as their cells where there is room, narrower with folded cells where there is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from localchat.tui.typeset import Look

_BETWEEN = 2
_LEAST_COLUMN = 5


@dataclass(slots=True)
class Table:
    """Cells by row, the head first; `aligns` is left, center or right for each column."""

    rows: list[list[Text]] = field(default_factory=list)
    aligns: list[str] = field(default_factory=list)

    def lines(
        self, width: int, console: Console, look: Look, *, wanted: list[int] | None = None, with_head: bool = True
    ) -> list[Text]:
        """The table in `width` cells; `wanted` are the columns' widths where its own cells are not all there is."""
        columns = _fitted(wanted or self.wanted(), width)
        if not columns:
            return self._as_records(width, console, look, with_head)
        lines: list[Text] = []
        for number, row in enumerate(self.rows):
            if number == 0:
                if with_head:
                    lines += self._row([_restyled(cell, look) for cell in row], columns, console, look)
                    rules = (Text("─" * column, look.text + look.rule) for column in columns)
                    lines.append(Text(" " * _BETWEEN, look.text, end="").join(rules))
            else:
                lines += self._row(row, columns, console, look)
        return lines

    def wanted(self) -> list[int]:
        """The width, in cells, that each column would like to have."""
        return [max([1, *(row[n].cell_len for row in self.rows if n < len(row))]) for n in range(len(self.aligns))]

    def _row(self, row: list[Text], columns: list[int], console: Console, look: Look) -> list[Text]:
        cells = []
        for n, column in enumerate(columns):
            cell = row[n] if n < len(row) else Text()
            wrapped = list(cell.wrap(console, column, overflow="fold")) if cell.plain else []
            for line in wrapped:
                line.rstrip()
                _align(line, self.aligns[n], column)
            cells.append(wrapped)
        lines = []
        for number in range(max(1, *(len(cell) for cell in cells))):
            line = Text(style=look.text, end="")
            for n, column in enumerate(columns):
                piece = cells[n][number] if number < len(cells[n]) else Text()
                line.append_text(piece)
                if n < len(columns) - 1:
                    line.append(" " * (column - piece.cell_len + _BETWEEN))
            lines.append(line)
        return lines

    def _as_records(self, width: int, console: Console, look: Look, with_head: bool) -> list[Text]:
        """Too narrow for columns: each row as lines of `head: cell`."""
        head, *rows = self.rows or [[]]
        lines: list[Text] = []
        for number, row in enumerate(rows):
            if number or not with_head:
                lines.append(Text("─" * min(width, _LEAST_COLUMN), look.text + look.rule, end=""))
            for name, cell in zip(head, row, strict=False):
                label = Text(f"{name.plain}: ", look.text + look.heading, end="")
                lines += label.append_text(cell).wrap(console, width, overflow="fold")
        return lines


def _fitted(wanted: list[int], width: int) -> list[int]:
    """The width of each column in `width` cells; none where they cannot stand side by side."""
    room = width - _BETWEEN * (len(wanted) - 1)
    if sum(wanted) <= room:
        return wanted
    if room < _LEAST_COLUMN * len(wanted):
        return []
    # The widest columns give way first, all to the same width.
    low, high = _LEAST_COLUMN, max(wanted)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(column, middle) for column in wanted) <= room:
            low = middle
        else:
            high = middle - 1
    columns = [min(column, low) for column in wanted]
    spare = room - sum(columns)
    for n, column in enumerate(wanted):
        if spare > 0 and column > columns[n]:
            columns[n] += 1
            spare -= 1
    return columns


def _restyled(cell: Text, look: Look) -> Text:
    cell = cell.copy()
    cell.stylize(look.heading)
    return cell


def _align(line: Text, align: str, column: int) -> None:
    space = column - line.cell_len
    if space > 0 and align in ("right", "center"):
        line.pad_left(space if align == "right" else space // 2)
