"""Reading by keys: a marked message or block on the page, and what can be taken from it.

A part of the transcript: it moves the mark and the view, and changes nothing on the page.
"""

from __future__ import annotations

from typing import Literal

from textual import events

from localchat.tui.blocks import Block, Splitter
from localchat.tui.conversation import Item
from localchat.tui.widgets.pieces import Paper
from localchat.tui.widgets.roll import Spot
from localchat.tui.widgets.row import Mark
from localchat.tui.widgets.sheet_view import SheetView
from localchat.tui.widgets.turns import Sheet

Unit = Literal["message", "block", "line", "page"]

_KEPT_LINES = 2
"""So many lines of the page before stay in view when a page is turned."""


class ReadingView(SheetView):
    """Sheets that can be read by keys; `sheets` are those of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.sheets: list[Sheet] = []
        self._marked: Sheet | None = None
        self._block: Spot | None = None

    # The mark.

    def mark_of(self, sheet: Sheet, piece: int, row: int) -> Mark:
        """What stands in the margin beside a line of a piece."""
        in_gap = self.roll is not None and row < sheet.pieces(self.roll.paper)[piece].gap if self.roll else False
        if sheet is not self._marked or not self.has_focus or (in_gap and piece == 0):
            return ""
        if self._block and self.roll:
            marked, _ = self.roll.place(self._block)
            first, end = sheet.group(marked)
            if first <= piece < end and not (in_gap and piece == first):
                return "block"
        return "message"

    def mark(self, sheet: Sheet | None) -> None:
        """Mark a message, or none."""
        self._marked, self._block = sheet, None

    def on_focus(self, event: events.Focus) -> None:
        """Mark the message that is read: at the end of the page the last one, elsewhere one that is in view."""
        if self.following:
            self.mark(self.sheets[-1] if self.sheets else None)
        else:
            self._mark_in_view(last=True)
        self.refresh()

    def on_blur(self, event: events.Blur) -> None:
        """Nothing is marked while the person writes."""
        self.refresh()

    def _mark_in_view(self, *, last: bool) -> None:
        roll = self.roll
        if not roll or not self.sheets:
            return
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.view_height - 1
        if self._marked in self.sheets:
            begins = roll.top_of(self._marked)
            if begins <= bottom and begins + self._marked.height(roll.paper) > top:
                return
        index = min(roll.at(bottom if last else top)[0], len(self.sheets) - 1)
        self.mark(self.sheets[index])

    # Moving.

    def move(self, by: int, unit: Unit) -> None:
        """Go `by` messages, blocks, lines or pages down (up where negative)."""
        roll = self.roll
        if not roll or not self.sheets:
            return
        if unit in ("line", "page"):
            self.scroll_by(by * max(1, self.view_height - _KEPT_LINES) if unit == "page" else by)
            self._block = None
            self._mark_in_view(last=by > 0)
            self.refresh()
            return
        if self._marked not in self.sheets:
            self._mark_in_view(last=True)
        assert self._marked
        if unit == "message":
            self._move_message(by)
        else:
            self._move_block(by)

    def _move_message(self, by: int) -> None:
        assert self._marked and self.roll
        index = self.sheets.index(self._marked) + by
        if index >= len(self.sheets):
            self.to("bottom")
            return
        # Going back within a long message leads to its beginning first.
        begun = self.roll.top_of(self._marked) >= self.scroll_offset.y
        if by == -1 and not begun:
            index += 1
        self.mark(self.sheets[max(0, index)])
        self._bring(self._marked, 0)

    def _move_block(self, by: int) -> None:
        assert self._marked and self.roll
        roll, sheet = self.roll, self._marked
        pieces = roll.open(sheet)
        if self._block:
            number, _ = roll.place(self._block)
            first, end = sheet.group(number)
            start = (end if by > 0 else first - 1) if pieces else 0
        else:
            start = 0 if by > 0 else len(pieces) - 1
        for one, number in roll.walk(sheet, start, 1 if by > 0 else -1):
            if one not in self.sheets or not one.is_stop(number):
                continue
            first, _ = one.group(number)
            self._marked, self._block = one, roll.spot_of(one, first)
            self._bring(one, first)
            return

    def _bring(self, sheet: Sheet, piece: int) -> None:
        """Scroll as little as needed to show a message (piece 0) or a block, or at least its beginning."""
        roll, view = self.roll, self.view_height
        assert roll
        pieces = roll.open(sheet)
        if not pieces:
            self.refresh()
            return
        spot = roll.spot_of(sheet, piece)
        roll.set_around(spot, view, 2 * view)
        begin = roll.top_of(sheet) + sheet.top_of(piece)
        first, end = (0, len(pieces)) if self._block is None else sheet.group(piece)
        height = sum(one.height for one in pieces[first:end])
        top = self.scroll_offset.y
        if begin < top or height >= view:
            self._show_line(spot, 0)
        elif begin + height > top + view:
            self._show_line(spot, view - height)
        else:
            self.settle(None if self.following else roll.spot(top))

    def _show_line(self, spot: Spot, below: int) -> None:
        """Show a spot `below` lines under the top of the view."""
        roll = self.roll
        assert roll
        line = max(0, roll.line_of(spot) - below)
        end = roll.measure() + 1 - self.view_height
        self.following = line >= end
        self.settle(None if self.following else roll.spot(line))

    def to(self, where: Literal["top", "bottom"]) -> None:
        """Go to the first message, or to the end and stay there."""
        if not self.roll:
            self.following = where == "bottom"
            return
        self._block = None
        if where == "bottom":
            self.following = True
            self.mark(self.sheets[-1] if self.sheets else None)
            self.settle(None)
        else:
            self.following = False
            self.mark(self.sheets[0] if self.sheets else None)
            self.settle(self.roll.spot(0))

    # What can be taken from it.

    @property
    def current(self) -> Item | None:
        """The marked message, or the last one while the person writes; None on an empty page."""
        sheet = self._current_sheet()
        return sheet.item if sheet else None

    def current_text(self) -> str:
        """The marked message as it was written."""
        sheet = self._current_sheet()
        return sheet.text() if sheet else ""

    def current_code(self) -> str | None:
        """The marked code block, else the one nearest to the mark in its message; None where it has none."""
        sheet = self._current_sheet()
        if not sheet:
            return None
        from localchat.tui.typeset import code_in

        blocks = _blocks(sheet.text())
        listings = [(number, code) for number, block in enumerate(blocks) if (code := code_in(block)) is not None]
        if not listings:
            return None
        at = self._block.number if self._block and self._block.part == "answer" and self.has_focus else None
        if at is None:
            # The whole message is marked: the listing that was answered last is the one that counts.
            return listings[-1][1]
        return min(listings, key=lambda one: abs(one[0] - at))[1]

    def links(self) -> list[str]:
        """The addresses in the marked message, in order, each once."""
        sheet = self._current_sheet()
        if not sheet:
            return []
        from localchat.tui.typeset import links_in

        return links_in(_blocks(sheet.text()))

    def toggle_this(self) -> None:
        """Open or fold the thinking of the marked answer, or a very long message of the person."""
        sheet = self._current_sheet()
        if sheet:
            self._toggle(sheet)

    def _toggle(self, sheet: Sheet) -> None:
        self.following = False

        def toggle(paper: Paper) -> None:
            sheet.toggle()
            sheet.changed(paper)

        self.change(toggle)
        self.following = self.scroll_offset.y >= self.max_scroll_y

    def _current_sheet(self) -> Sheet | None:
        if self.has_focus and self._marked in self.sheets:
            return self._marked
        return self.sheets[-1] if self.sheets else None


def _blocks(text: str) -> list[Block]:
    """The whole blocks of a message; parts of long ones together: this is done once, on a key, and not shown."""
    from dataclasses import replace

    splitter = Splitter()
    splitter.feed(text)
    blocks: list[Block] = []
    for part in splitter.settled():
        if part.continues:
            blocks[-1] = replace(blocks[-1], source=blocks[-1].source + part.source)
        else:
            blocks.append(part)
    return blocks
