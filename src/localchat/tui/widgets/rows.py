"""A list that draws only the rows in view: the list of chats, what was found, and choices are made of it.

Rows are values of any kind; a subclass says how high each one is and how it looks. Opening 5,000 takes a few
milliseconds, where an OptionList takes half a second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget

R = TypeVar("R")


class Rows(ScrollView, Generic[R], can_focus=False, inherit_bindings=False):
    """Rows from top to bottom, one of which is marked. Whoever owns it calls `move` and the like when keys are pressed.

    `active`: the keys go here, so the mark is shown. `note` stands in the place of rows where there are none.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--row", "rows--hover", "rows--marked"}

    DEFAULT_CSS = """
    Rows {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        & > .rows--hover { background: $panel 50%; }
        & > .rows--marked { background: $panel; text-style: bold; }
    }
    """

    marked: reactive[int | None] = reactive(None)
    hovered: reactive[int | None] = reactive(None)
    active: reactive[bool] = reactive(True)
    note: reactive[Content] = reactive(Content)

    @dataclass
    class Chosen(Message):
        """The person clicked a row."""

        rows: Widget
        row: int

    def __init__(self, *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self.rows: Sequence[R] = ()
        self._tops: list[int] = []
        self._drawn: dict[tuple[int, bool, bool], list[Strip]] = {}

    # What a subclass says about its rows.

    def height_of(self, row: int, width: int) -> int:
        """The number of lines that a row takes in `width` cells, at least one."""
        return 1

    def can_mark(self, row: int) -> bool:
        """Whether a row can be chosen: a heading cannot."""
        return True

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """The lines of a row, none wider than `width` cells, without a line break."""
        raise NotImplementedError

    # What is shown.

    def set_rows(self, rows: Sequence[R], marked: int | None = None, *, held: tuple[int, int] | None = None) -> None:
        """Show other rows, one of them marked. `held`: a row, and at how many lines from the top it stands."""
        self.rows = rows
        self.hovered = None
        self.set_reactive(Rows.marked, marked)
        self._lay_out()
        if held is not None:
            self.scroll_to(y=self._tops[held[0]] - held[1], animate=False)

    def redraw(self) -> None:
        """Draw the rows in view anew: something else than the rows themselves changed how they look."""
        self._drawn.clear()
        self.refresh()

    def top_of(self, row: int) -> int:
        """How many lines below the upper edge a row begins; negative or beyond the height where it is out of view."""
        return self._tops[row] - self.scroll_offset.y

    def is_in_view(self, row: int) -> bool:
        """Whether the first line of a row can be seen."""
        return 0 <= self.top_of(row) < self.scrollable_content_region.height

    def first_in_view(self) -> int | None:
        """The first row in view that can be marked."""
        first = self._row_at(self.scroll_offset.y)
        return None if first is None else self._markable(first, 1)

    def show_marked(self) -> None:
        """Scroll so that the marked row is in view, with the heading above it where one stands right there."""
        if self.marked is None or not self.is_mounted:
            return
        above = self.marked
        while above > 0 and not self.can_mark(above - 1):
            above -= 1
        for row in (above, self.marked):
            region = Region(0, self._tops[row], 1, self._end_of(self.marked) - self._tops[row])
            if row == self.marked or region.height <= self.scrollable_content_region.height:
                self.scroll_to_region(region, animate=False, force=True, immediate=True, x_axis=False)

    # What keys do.

    def move(self, by: int) -> None:
        """Mark the next row (1) or the one before (-1)."""
        start = (self.marked + by) if self.marked is not None else (0 if by > 0 else len(self.rows) - 1)
        self._mark(self._markable(start, by))

    def move_page(self, direction: int) -> None:
        """Mark the row about a page on (1) or back (-1)."""
        if self.marked is None:
            self.move(direction)
            return
        page = max(1, self.scrollable_content_region.height - 1)
        row = self._row_at(max(0, min(self._height() - 1, self._tops[self.marked] + direction * page)))
        if row is not None:
            found = self._markable(row, direction)
            self._mark(self._markable(row, -direction) if found is None else found)

    def move_to_end(self, direction: int) -> None:
        """Mark the last row (1) or the first one (-1)."""
        self._mark(self._markable(len(self.rows) - 1 if direction > 0 else 0, -direction))

    def _mark(self, row: int | None) -> None:
        if row is not None:
            self.marked = row
            self.show_marked()

    def _markable(self, row: int, direction: int) -> int | None:
        while 0 <= row < len(self.rows):
            if self.can_mark(row):
                return row
            row += 1 if direction > 0 else -1
        return None

    # How it is drawn.

    def render_line(self, y: int) -> Strip:
        """The line `y` from the upper edge."""
        width = self.scrollable_content_region.width
        plain = self.get_visual_style("rows--row")
        if not self.rows:
            lines = Visual.to_strips(self, self.note, max(1, width - 1), None, plain) if self.note else []
            blank = Strip.blank(1, plain.rich_style)
            return Strip.join([blank, lines[y]] if y < len(lines) else [blank]).adjust_cell_length(
                width, plain.rich_style
            )
        line = self.scroll_offset.y + y
        row = self._row_at(line)
        if row is None:
            return Strip.blank(width, plain.rich_style)
        strips = self._strips(row, width)
        inner = line - self._tops[row]
        return strips[inner] if inner < len(strips) else Strip.blank(width, plain.rich_style)

    def _strips(self, row: int, width: int) -> list[Strip]:
        marked, hovered = self.active and row == self.marked, row == self.hovered and self.can_mark(row)
        if (found := self._drawn.get((row, marked, hovered))) is None:
            names = ["rows--row", *(["rows--marked"] if marked else ["rows--hover"] if hovered else [])]
            style = self.get_visual_style(*names)
            found = [
                strip.adjust_cell_length(width, style.rich_style)
                for content in self.draw(row, width, marked)
                for strip in Visual.to_strips(self, content, max(1, width), 1, style)
            ]
            if len(self._drawn) > 1000:
                self._drawn.clear()
            self._drawn[row, marked, hovered] = found
        return found

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """All rows, where the height is automatic."""
        return sum(self.height_of(row, width) for row in range(len(self.rows)))

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width
        heights = (self.height_of(row, width) for row in range(len(self.rows)))
        self._tops = list(accumulate(heights, initial=0))
        self._drawn.clear()
        self.virtual_size = Size(width, self._height())
        self.refresh()

    def _height(self) -> int:
        return self._tops[-1] if self._tops else 0

    def _end_of(self, row: int) -> int:
        return self._tops[row + 1]

    def _row_at(self, line: int) -> int | None:
        return bisect_right(self._tops, line) - 1 if 0 <= line < self._height() else None

    def on_resize(self) -> None:
        """Lay the rows out for the new width, and keep the marked one in view."""
        self._lay_out()
        self.show_marked()

    def notify_style_update(self) -> None:
        """Draw anew in new colours."""
        super().notify_style_update()
        self._drawn.clear()

    def watch_active(self) -> None:
        """Show or hide the mark."""
        self.refresh()

    # The mouse.

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Show which row a click would choose."""
        self.hovered = self._row_under(event)

    def on_leave(self) -> None:
        """The mouse is elsewhere."""
        self.hovered = None

    def on_click(self, event: events.Click) -> None:
        """Choose the row under the mouse."""
        row = self._row_under(event)
        if row is not None and self.can_mark(row):
            self.marked = row
            self.post_message(self.Chosen(self, row))

    def _row_under(self, event: events.MouseEvent) -> int | None:
        offset = event.get_content_offset(self)
        return None if offset is None else self._row_at(offset.y + self.scroll_offset.y)
