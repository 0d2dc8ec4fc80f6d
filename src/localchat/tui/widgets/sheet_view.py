"""A page of sheets that scrolls: draws their lines, sets only what is near the eye, and keeps still what is read.

Knows sheets and how to keep a place in them; which there are, and what keys and mouse do, is for those who build on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import ClassVar

from rich.style import Style
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from localchat.tui.typeset import Look
from localchat.tui.widgets.pieces import Inks, Paper
from localchat.tui.widgets.roll import Roll, Spot
from localchat.tui.widgets.row import Line, Mark, Row, line_key, selected
from localchat.tui.widgets.turns import Sheet

COLUMN = 104
"""The widest column of text, with the person's rule and the space at both sides."""

MARGIN = 2
"""Cells between column and screen, and between column and text, at each side."""

BELOW = " ↓ more below "

_LEAST_TEXT = 8


class SheetView(ScrollView, inherit_bindings=False):
    """Sheets in a column of readable width. `following`: the end is held in view while it grows."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"page--{field.name.replace('_', '-')}" for field in fields(Look) if field.name != "text"),
        *(f"page--{field.name}" for field in fields(Inks) if field.name != "text"),
    }

    DEFAULT_CSS = """
    SheetView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        .page--strong { text-style: bold; color: $code-name; }
        .page--emphasis { text-style: italic; }
        .page--struck { text-style: strike; }
        .page--code { color: $code-name; background: $panel; }
        .page--link { text-style: underline; }
        .page--address { color: $muted; }
        .page--heading { text-style: bold; color: $code-name; }
        .page--marker { color: $muted; }
        .page--quote { color: $muted; text-style: italic; }
        .page--rule { color: $faint; }
        .page--panel { color: $foreground; background: $surface; }
        .page--panel-label { color: $muted; }
        .page--comment { color: $code-comment; text-style: italic; }
        .page--keyword { color: $accent; }
        .page--string { color: $code-string; }
        .page--number { color: $code-number; }
        .page--title { color: $code-name; text-style: bold; }
        .page--muted { color: $muted; }
        .page--faint { color: $faint; }
        .page--accent { color: $accent; }
        .page--error { color: $error; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self.following = True
        self.roll: Roll | None = None
        self._start: Sheet | None = None
        self._placing = False
        self._lines: list[Line] = []

    def on_page(self) -> list[Sheet]:
        """All sheets of the page, the first one on top."""
        return []

    def mark_of(self, sheet: Sheet, piece: int, row: int) -> Mark:
        """What stands in the margin beside a line of a piece."""
        return ""

    @property
    def more_below(self) -> bool:
        """Whether a sign shall say that there is more below what is in view."""
        return False

    @property
    def view_height(self) -> int:
        """How many lines are in view."""
        return self.scrollable_content_region.height

    @property
    def column(self) -> tuple[int, int]:
        """The first cell of the column, and how wide it is."""
        full = self.outer_size.width
        column = min(COLUMN, full - 2 * MARGIN)
        return max(0, (full - column) // 2), column

    # Laying out: guesses, what is near the eye, and where the page stands.

    def begin(self, at: Sheet | None = None) -> None:
        """Lay out a page whose sheets are all others than before: from its end, or from one sheet on."""
        self._start, self.following = at, at is None
        if self.roll:
            self.roll = Roll(self.roll.paper)
        if self.is_attached and self.screen.selections:
            self.screen.clear_selection()
        self.change()

    def change(self, change: Callable[[Paper], object] | None = None) -> None:
        """Make a change, and keep the line under the eye where it is, or the end in view while it is followed."""
        if self.roll is None:
            self._lay_out()
            return
        spot = self._top_spot()
        if change:
            change(self.roll.paper)
        self.roll.sheets = self.on_page()
        self.roll.measure()
        self.settle(spot)

    def settle(self, spot: Spot | None, *, stretched: bool = False) -> None:
        """Set what is near the eye, with `spot` at the top of the view (None: the end at its bottom)."""
        roll, view = self.roll, self.view_height
        if roll is None or view <= 0:
            return
        if self._start:
            pieces = roll.open(self._start)
            roll.measure()
            # An answer of which nothing came yet has no lines to begin at: the end, then.
            spot, self._start = roll.spot_of(self._start, 0) if pieces else None, None
        if spot and spot.sheet not in roll.sheets:
            spot = None
        spot = roll.set_around(spot, view, 2 * view, stretched=stretched)
        # An empty line ends the page.
        lines = roll.measure() + 1
        last = max(0, lines - view)
        line = last if spot is None else min(roll.line_of(spot), last)
        roll.close_the_oldest()
        size, before = Size(self.scrollable_content_region.width, lines), (self.virtual_size, self.scroll_offset.y)
        self._placing = True
        try:
            if size != self.virtual_size:
                self.virtual_size = size
            self.scroll_to(y=line, animate=False, force=True)
        finally:
            self._placing = False
        self._draw(everything=stretched or before != (size, line))

    def _draw(self, *, everything: bool) -> None:
        """Have those lines drawn that are others than before: one more token changes one or two."""
        before, self._lines = self._lines, [self._line(y) for y in range(self.view_height)]
        if everything or len(before) != len(self._lines):
            self.refresh()
            return
        pairs = enumerate(zip(before, self._lines, strict=True))
        regions = [Region(0, y, self.size.width, 1) for y, (old, new) in pairs if old != new]
        if regions:
            self.refresh(*regions)

    def scroll_by(self, lines: int) -> None:
        """Scroll down (up where negative) at once; the end is held in view from when it is reached."""
        self.scroll_to(y=self.scroll_offset.y + lines, animate=False, force=True)
        if lines > 0 and self.scroll_offset.y >= self.max_scroll_y:
            self.following = True

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The person scrolls: set what comes near, and hold still or follow."""
        super().watch_scroll_y(old_value, new_value)
        if self._placing or round(old_value) == round(new_value) or not self.roll:
            return
        self.following = round(new_value) >= self.max_scroll_y
        self.settle(self._top_spot())

    def watch_show_vertical_scrollbar(self, shown: bool) -> None:
        """Tell the bar where the page stands: Textual does so only while it is shown, pages scroll before too."""
        if shown:
            self.vertical_scrollbar.position = self.scroll_y

    def on_resize(self) -> None:
        """Set everything for the new width."""
        self._lay_out()
        self.settle(self._top_spot())

    def notify_style_update(self) -> None:
        """Set everything anew in new colours."""
        super().notify_style_update()
        if self.roll and self.is_attached:
            # Not yet: Textual tells of new styles before it has set those of the components.
            self.call_next(self._lay_out)

    def _top_spot(self) -> Spot | None:
        """The place in the text at the top of the view, or None while the end is followed."""
        return self.roll.spot(self.scroll_offset.y) if self.roll and not self.following else None

    def _lay_out(self) -> None:
        """Take new paper, where the width or the colours have changed."""
        if not self.is_attached or not self.size.width:
            return
        width = max(_LEAST_TEXT, self.column[1] - 2 * MARGIN)
        look, inks = self._look(), self._inks()
        if self.roll and self.roll.paper.is_like(width, look, inks):
            return
        spot = self._top_spot()
        paper = Paper(self.app.console, look, inks, width)
        if self.roll:
            self.roll.use(paper)
        else:
            self.roll = Roll(paper)
        self.roll.sheets = self.on_page()
        self.roll.measure()
        self.settle(spot, stretched=True)

    def _look(self) -> Look:
        parts = {field.name: self._component(field.name) for field in fields(Look) if field.name != "text"}
        text = self.rich_style
        return Look(text=text, **{**parts, "panel": text + parts["panel"]})

    def _inks(self) -> Inks:
        text = self.rich_style
        parts = {field.name: text + self._component(field.name) for field in fields(Inks) if field.name != "text"}
        return Inks(text=text, **parts)

    def _component(self, name: str) -> Style:
        return self.get_component_rich_style(f"page--{name.replace('_', '-')}", partial=True)

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """The line `y` of the view."""
        roll, width = self.roll, self.scrollable_content_region.width
        if not roll or not roll.sheets:
            return Strip.blank(width, self.rich_style)
        row = Row(roll.paper.inks, self.column[0], roll.paper.width, width)
        line = self._line(y)
        span = self.text_selection.get_span(line.key) if self.text_selection else None
        marked = self.screen.get_component_rich_style("screen--selection") if span else None
        strip = row.of(line, span, marked)
        return row.with_sign(strip, BELOW) if line.last else strip

    def _line(self, y: int) -> Line:
        """What stands on the line `y` of the view."""
        roll, at, last = self.roll, y + self.scroll_offset.y, y == self.view_height - 1 and self.more_below
        if not roll or not roll.sheets or at >= self.virtual_size.height - 1:
            return Line(last=last)
        index, number, within = roll.at(at)
        sheet = roll.sheets[index]
        pieces = roll.open(sheet)
        if not pieces:
            return Line(last=last)
        piece = pieces[number]
        mark, row = self.mark_of(sheet, number, within), within - piece.gap
        if row < 0 or piece.rows is None or row >= len(piece.rows):
            return Line(mark=mark, key=line_key(index, number), last=last)
        return Line(piece.rows[row], piece.edge, mark, line_key(index, number, row), last)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, as it stands on the page."""
        return (selected(self.roll, selection), "\n") if self.roll else None
