"""Models as lines in columns: what the picker and the first screen list."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from rich.cells import cell_len
from textual.content import Content

from localchat.safe_text import safe_line
from localchat.tui.downloads import Download
from localchat.tui.model_list import Heading, Typed, is_current, remark, speed
from localchat.tui.widgets.rows import Rows
from localchat.tui.words import clipped_inside, size

if TYPE_CHECKING:
    from localchat.models.overview import Row

Line: TypeAlias = "Heading | Row | Typed"
_LEFT = 2
# From this width on a column is shown, and how wide it is.
_QUANTIZATION, _MEMORY, _WIDE = 84, 66, 66


class ModelRows(Rows[Line]):
    """Models, under headings. `current` is the one that answers now; `download` tells what is on its way. Where a
    `starter` is named, its line says what it is.
    """

    def __init__(self, current: str, download: Callable[[str], Download | None]) -> None:
        super().__init__()
        self.starter = ""
        self._current = current
        self._download = download

    def can_mark(self, row: int) -> bool:
        """Headings cannot be chosen."""
        return not isinstance(self.rows[row], Heading)

    def height_of(self, row: int, width: int) -> int:
        """A heading has a line above it, but for the first."""
        return 2 if row and isinstance(self.rows[row], Heading) else 1

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """Mark, name, figures, and a word at the end."""
        line = self.rows[row]
        if isinstance(line, Heading):
            heading = Content.styled(line.text, "$faint").truncate(width)
            return [Content(""), heading] if row else [heading]
        told, colour = remark(line, self._current, self._download(line.name))
        if not told and line.name == self.starter:
            told = "the starter"
        mark = ("› ", "$accent") if marked else ("  ", "")
        if isinstance(line, Typed):
            text = f"fetch {safe_line(line.name)}"
            drawn = Content.assemble(
                mark, clipped_inside(text, max(8, width - _LEFT - len(told) - 2)), "  ", (told, colour)
            )
            return [drawn.truncate(width)]
        name = safe_line(line.name)
        in_use = is_current(line, self._current)
        figures = [
            safe_line(line.quantization) or "?",
            size(line.size) if line.size else "?",
            _memory(line),
            speed(line),
        ]
        return [_columns(width, mark, name, "$accent" if in_use else "", figures, told, colour)]


def header(width: int) -> Content:
    """The line over the columns."""
    figures = ["quant", "size", "memory", "tokens/s" if width >= _WIDE else "t/s"]
    return _columns(width, ("  ", ""), "model", "", figures, "", "").stylize("$faint")


def _memory(row: Row) -> str:
    return ("~" if row.estimated else "") + size(row.memory) if row.memory else "?"


def _columns(
    width: int,
    mark: tuple[str, str],
    name: str,
    name_style: str,
    figures: list[str],
    told: str,
    colour: str,
) -> Content:
    quantization, weight, memory, tokens = figures
    cells: list[str] = []
    cells += [f"  {clipped_inside(quantization, 9):<9}"] if width >= _QUANTIZATION else []
    cells += [f"{weight:>9}"]
    cells += [f"{memory:>9}"] if width >= _MEMORY else []
    cells += [f"{tokens:>10}" if width >= _WIDE else f"{tokens:>5}"]
    figured = "".join(cells)
    end = 18 if width >= _WIDE else 13
    room = max(8, width - _LEFT - cell_len(figured) - end)
    name = clipped_inside(name, room)
    padding = " " * (room - cell_len(name))
    line = Content.assemble(mark, (name, name_style), padding, (figured, "$muted not bold"), "  ")
    if told:
        line = Content.assemble(line, (told, f"{colour} not bold"))
    return line.truncate(width)
