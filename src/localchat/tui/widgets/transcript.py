"""The conversation as a person reads it: message after message, held at its end until the person scrolls away.

One widget draws all lines itself; of a long conversation only what is near the eye is ever set. What it knows of the
chat is what `show`, `add` and their like put in; what the person wants goes out as messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.selection import Selection

from localchat.tui.actions import bindings, key_of
from localchat.tui.conversation import Item, Prompt
from localchat.tui.widgets.pieces import Paper, Piece
from localchat.tui.widgets.reading import ReadingView
from localchat.tui.widgets.row import line_key
from localchat.tui.widgets.sheet_view import BELOW, MARGIN
from localchat.tui.widgets.turns import Manner, Notice, PromptSheet, ReplySheet, Sheet, sheet_for
from localchat.tui.widgets.welcome import welcome_words


class Transcript(ReadingView):
    """The messages of a chat. `key` names the key of an action, for what helps after a failure."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("page")]

    can_focus = True
    FOCUS_ON_CLICK = False

    @dataclass
    class Walked(Message):
        """The person wants to see another version of a message: that before it (-1) or after it (1)."""

        node: int
        by: int

    @dataclass
    class Typed(Message):
        """A character was typed that is no key of the page: it belongs to the composer."""

        character: str

    class Left(Message):
        """The person wants to go back to writing."""

    def __init__(
        self,
        model: str,
        offline: bool,
        *,
        thinking_open: bool = False,
        figures_open: bool = False,
        key: Callable[[str], str] = key_of,
    ) -> None:
        super().__init__()
        self.manner = Manner(thinking_open, figures_open, key)
        self._offline = offline
        self._last: str | None = None
        self._seen: tuple[int | None, str] = (None, "")
        self._queued: Sheet | None = None
        self._welcome: Notice | None = None
        self.welcome(model, offline)

    # What is on the page.

    @property
    def items(self) -> list[Item]:
        """The messages on the page."""
        return [sheet.item for sheet in self.sheets if sheet.item]

    def welcome(self, model: str, offline: bool, last: str | None = None) -> None:
        """Begin an empty page: who will answer, the keys that matter, and the title of the last chat."""
        self._offline, self._last = offline, last
        self.sheets, self._queued = [], None
        self._welcome = Notice(welcome_words(model, offline, last, self.manner.key), self.manner)
        self._begin(self._welcome)

    def on_page(self) -> list[Sheet]:
        """All sheets of the page, the first one on top."""
        return [*self.sheets, *(sheet for sheet in (self._welcome, self._queued) if sheet)]

    def show_model(self, model: str) -> None:
        """Name the model that will answer, where the page is still empty."""
        if self._welcome:
            self._welcome.words = welcome_words(model, self._offline, self._last, self.manner.key)
            self.change(self._welcome.changed)

    def show(self, items: Sequence[Item], at: int | None = None) -> None:
        """Replace the page: shown from its end, or from the message whose number is `at`."""
        self._welcome = self._queued = None
        self.sheets = [sheet_for(item, self.manner) for item in items]
        self._rule()
        sheet = next((one for one in self.sheets if one.item and one.item.node == at), None) if at is not None else None
        self._begin(sheet)

    def add(self, *items: Item) -> None:
        """Add messages at the end, and follow what comes."""
        self._welcome = None
        self.sheets += [sheet_for(item, self.manner) for item in items]
        self._rule()
        self.following = True
        self.change()

    def update(self, now: float) -> None:
        """Show what is new in the last answer."""
        if self.sheets and isinstance(last := self.sheets[-1], ReplySheet):
            self.change(lambda paper: last.update(now, paper))

    def withdraw(self) -> None:
        """Take back the person's last message; what became of it stays."""
        for number in range(len(self.sheets) - 1, -1, -1):
            if isinstance(self.sheets[number], PromptSheet):
                del self.sheets[number]
                break
        self.change()

    def show_queued(self, text: str | None) -> None:
        """Show the message that waits for the end of the answer, or no more."""
        prompt = Prompt(text or "")
        self._queued = None if text is None else PromptSheet(Item(None, prompt), prompt, self.manner, queued=True)
        self.change()

    def set_seen(self, first_seen: int | None, why: str) -> None:
        """Draw a rule labelled `why` before the message with this number: above it the model sees nothing."""
        if self._seen == (first_seen, why):
            return
        self._seen = (first_seen, why)

        def mark(paper: Paper) -> None:
            for sheet in self._rule():
                sheet.changed(paper)

        self.change(mark)

    def changed(self, node: int | None) -> None:
        """What stands around a message has changed: its number, its place among its siblings, its state."""

        def redraw(paper: Paper) -> None:
            for sheet in self.sheets:
                if sheet.item and sheet.item.node == node:
                    sheet.changed(paper)

        self._rule()
        self.change(redraw)

    def toggle_thinking(self, only_current: bool = False) -> None:
        """Show the thinking of all answers, or fold it; or only that of the marked one (there a long message too)."""
        if only_current:
            self.toggle_this()
            return
        self.manner.thinking_open = not self.manner.thinking_open

        def fold(paper: Paper) -> None:
            for sheet in self.sheets:
                if isinstance(sheet, ReplySheet) and sheet.reply.reasoning:
                    sheet.follow_manner()
                    sheet.changed(paper)

        self.change(fold)

    def toggle_figures(self) -> None:
        """Show the figures of all answers, or no more."""
        self.manner.figures_open = not self.manner.figures_open

        def figures(paper: Paper) -> None:
            for sheet in self.sheets:
                if isinstance(sheet, ReplySheet):
                    sheet.changed(paper)

        self.change(figures)

    @property
    def thinking_open(self) -> bool:
        """Whether the thinking of all answers stands open."""
        return self.manner.thinking_open

    def _begin(self, at: Sheet | None = None) -> None:
        self.mark(at if at in self.sheets else None)
        self.begin(at)

    def _rule(self) -> list[Sheet]:
        """Put the label of what the model sees where it belongs; the sheets that this has changed."""
        node, why = self._seen
        changed: list[Sheet] = []
        for number, sheet in enumerate(self.sheets):
            label = why if number and node is not None and sheet.item and sheet.item.node == node else ""
            if sheet.seen != label:
                sheet.seen = label
                changed.append(sheet)
        return changed

    @property
    def more_below(self) -> bool:
        """Whether an answer is being written below what is in view."""
        last = self.sheets[-1] if self.sheets else None
        running = isinstance(last, ReplySheet) and last.reply.running
        return running and not self.following and self.scroll_offset.y < self.max_scroll_y

    # The person's hands.

    def on_key(self, event: events.Key) -> None:
        """Give back what is no key of the page."""
        bound = self.screen.active_bindings.get(event.key)
        if event.key == "escape" and not (bound and bound.node is self):
            event.stop()
            self.post_message(self.Left())
        elif event.is_printable and event.character and not bound:
            event.stop()
            self.post_message(self.Typed(event.character))

    def on_click(self, event: events.Click) -> None:
        """Open, fold, or walk to a sibling; twice selects a block, three times a message."""
        event.stop()
        event.prevent_default()
        roll, line = self.roll, event.y + self.scroll_offset.y
        if not roll or not self.sheets or line >= self.virtual_size.height - 1:
            return
        if event.y == self.view_height - 1 and self.more_below and event.x >= self.size.width - len(BELOW) - 2:
            self.to("bottom")
            return
        index, number, within = roll.at(line)
        sheet = roll.sheets[index]
        if event.chain > 1:
            self._select(index, number, whole=event.chain > 2)
        elif pieces := sheet.pieces(roll.paper):
            piece = pieces[number]
            if within >= piece.gap:
                self._clicked(sheet, piece, event.x - self.column[0] - MARGIN)

    def _clicked(self, sheet: Sheet, piece: Piece, column: int) -> None:
        if piece.part in ("fold", "thinking"):
            self._toggle(sheet)
        elif piece.part == "siblings" and sheet.item and sheet.item.node is not None:
            by = sheet.sibling_at(column)
            if by:
                self.post_message(self.Walked(sheet.item.node, by))

    def _select(self, index: int, number: int, *, whole: bool) -> None:
        assert self.roll
        sheet = self.roll.sheets[index]
        first, end = (0, len(sheet.pieces(self.roll.paper))) if whole else sheet.group(number)
        marks = Offset(0, line_key(index, first)), Offset(0, line_key(index, end))
        self.screen.selections = {self: Selection(*marks)}
