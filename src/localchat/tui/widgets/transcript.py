"""The conversation as a person reads it: message after message, held at its end until the person scrolls away.

One widget draws all lines itself; of a long conversation only what is near the eye is ever set. What it knows of the
chat is what `show`, `add` and their like put in; what the person wants goes out as messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.geometry import Offset, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from localchat.tui.conversation import Item, Prompt
from localchat.tui.typeset import Look
from localchat.tui.widgets.pieces import Inks, Paper, Piece
from localchat.tui.widgets.reading import Reading
from localchat.tui.widgets.roll import Roll, Spot
from localchat.tui.widgets.row import Row, line_key, selected
from localchat.tui.widgets.turns import Manner, Notice, PromptSheet, ReplySheet, Sheet, sheet_for
from localchat.tui.widgets.welcome import welcome_words

COLUMN = 104
"""The widest column of text, with the person's rule and the space at both sides."""

_LEFT, _RIGHT = 2, 2
_LEAST_TEXT = 8
_BELOW = " ↓ more below "


def action_key(name: str) -> str:
    """The key of an action as a person reads it."""
    from localchat.tui.actions import ACTIONS

    return next((action.key_label for action in ACTIONS if action.name == name), "")


class Transcript(Reading, ScrollView):
    """The messages in a column of readable width. `key` names the key of an action, for what helps after a failure."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"page--{field.name.replace('_', '-')}" for field in fields(Look) if field.name != "text"),
        *(f"page--{field.name}" for field in fields(Inks) if field.name != "text"),
    }

    DEFAULT_CSS = """
    Transcript {
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
        key: Callable[[str], str] = action_key,
    ) -> None:
        super().__init__()
        self.manner = Manner(thinking_open, figures_open, key)
        self.following = True
        self._offline = offline
        self._last: str | None = None
        self._seen: tuple[int | None, str] = (None, "")
        self._sheets: list[Sheet] = []
        self._queued: Sheet | None = None
        self._welcome: Notice | None = None
        self._roll: Roll | None = None
        self._at: int | None = None
        self._placing = False
        self.welcome(model, offline)

    # What is on the page.

    @property
    def items(self) -> list[Item]:
        """The messages on the page."""
        return [sheet.item for sheet in self._sheets if sheet.item]

    def welcome(self, model: str, offline: bool, last: str | None = None) -> None:
        """Begin an empty page: who will answer, the keys that matter, and the title of the last chat."""
        self._offline, self._last = offline, last
        self._sheets, self._queued = [], None
        self._welcome = Notice(welcome_words(model, offline, last, self.manner.key), self.manner)
        self._begin()

    def show_model(self, model: str) -> None:
        """Name the model that will answer, where the page is still empty."""
        if self._welcome:
            self._welcome.words = welcome_words(model, self._offline, self._last, self.manner.key)
            self._change(self._welcome.changed)

    def show(self, items: Sequence[Item], at: int | None = None) -> None:
        """Replace the page: shown from its end, or from the message whose number is `at`."""
        self._welcome = self._queued = None
        self._sheets = [sheet_for(item, self.manner) for item in items]
        self._rule()
        self._begin(at)

    def add(self, *items: Item) -> None:
        """Add messages at the end, and follow what comes."""
        self._welcome = None
        self._sheets += [sheet_for(item, self.manner) for item in items]
        self._rule()
        self.following = True
        self._change()

    def update(self, now: float) -> None:
        """Show what is new in the last answer."""
        if self._sheets and isinstance(last := self._sheets[-1], ReplySheet):
            self._change(lambda paper: last.update(now, paper))

    def withdraw(self) -> None:
        """Take back the person's last message; what became of it stays."""
        for number in range(len(self._sheets) - 1, -1, -1):
            if isinstance(self._sheets[number], PromptSheet):
                del self._sheets[number]
                break
        self._change()

    def show_queued(self, text: str | None) -> None:
        """Show the message that waits for the end of the answer, or no more."""
        prompt = Prompt(text or "")
        self._queued = None if text is None else PromptSheet(Item(None, prompt), prompt, self.manner, queued=True)
        self._change()

    def set_seen(self, first_seen: int | None, why: str) -> None:
        """Draw a rule labelled `why` before the message with this number: above it the model sees nothing."""
        if self._seen == (first_seen, why):
            return
        self._seen = (first_seen, why)

        def mark(paper: Paper) -> None:
            for sheet in self._rule():
                sheet.changed(paper)

        self._change(mark)

    def changed(self, node: int | None) -> None:
        """What stands around a message has changed: its number, its place among its siblings, its state."""

        def redraw(paper: Paper) -> None:
            for sheet in self._sheets:
                if sheet.item and sheet.item.node == node:
                    sheet.changed(paper)

        self._rule()
        self._change(redraw)

    def toggle_thinking(self, only_current: bool = False) -> None:
        """Show the thinking of all answers, or fold it; or only the marked answer's (a long message of the person's)."""
        if only_current:
            self.toggle_this()
            return
        self.manner.thinking_open = not self.manner.thinking_open

        def fold(paper: Paper) -> None:
            for sheet in self._sheets:
                if isinstance(sheet, ReplySheet) and sheet.reply.reasoning:
                    sheet.follow_manner()
                    sheet.changed(paper)

        self._change(fold)

    def toggle_figures(self) -> None:
        """Show the figures of all answers, or no more."""
        self.manner.figures_open = not self.manner.figures_open

        def figures(paper: Paper) -> None:
            for sheet in self._sheets:
                if isinstance(sheet, ReplySheet):
                    sheet.changed(paper)

        self._change(figures)

    @property
    def thinking_open(self) -> bool:
        """Whether the thinking of all answers stands open."""
        return self.manner.thinking_open

    def _rule(self) -> list[Sheet]:
        """Put the label of what the model sees where it belongs; the sheets that this has changed."""
        node, why = self._seen
        changed: list[Sheet] = []
        for number, sheet in enumerate(self._sheets):
            label = why if number and node is not None and sheet.item and sheet.item.node == node else ""
            if sheet.seen != label:
                sheet.seen = label
                changed.append(sheet)
        return changed

    # Laying out: guesses, what is near the eye, and where the page stands.

    def _begin(self, at: int | None = None) -> None:
        """Lay out a page whose messages are all others than before."""
        self._at = at
        self.following = at is None
        self.forget_mark()
        if self._roll:
            self._roll = Roll(self._roll.paper)
        if self.is_attached and self.screen.selections:
            self.screen.clear_selection()
        self._change()

    def _change(self, change: Callable[[Paper], object] | None = None) -> None:
        """Make a change, and keep the line under the eye where it is, or the end in view while it is followed."""
        roll = self._roll
        if roll is None:
            self._lay_out()
            return
        spot = self._top_spot()
        if change:
            change(roll.paper)
        self._fill(roll)
        self._settle(spot)

    def _fill(self, roll: Roll) -> None:
        fixed = [sheet for sheet in (self._welcome, self._queued) if sheet]
        roll.sheets = [*self._sheets, *fixed]
        roll.measure()

    def _top_spot(self) -> Spot | None:
        """The place in the text at the top of the view, or None while the end is followed."""
        roll = self._roll
        if self.following or not roll or not roll.sheets:
            return None
        return roll.spot(self.scroll_offset.y)

    def _lay_out(self) -> None:
        """Take new paper, where the width or the colours have changed."""
        width = self._text_width()
        if not self.is_attached or width <= 0:
            return
        look, inks = self._look(), self._inks()
        if self._roll and self._roll.paper.is_like(width, look, inks):
            return
        spot = self._top_spot()
        paper = Paper(self.app.console, look, inks, width)
        if self._roll:
            self._roll.use(paper)
        else:
            self._roll = Roll(paper)
        self._fill(self._roll)
        self._settle(spot, stretched=True)

    def _settle(self, spot: Spot | None, *, stretched: bool = False) -> None:
        """Set what is near the eye, and put `spot` (None: the end) where it belongs."""
        roll, view = self._roll, self._view_height()
        if roll is None or view <= 0:
            return
        if spot and spot.sheet not in roll.sheets:
            spot = None
        if self._at is not None:
            sheet = next((one for one in self._sheets if one.item and one.item.node == self._at), None)
            self._at = None
            if sheet:
                roll.open(sheet)
                roll.measure()
                spot = Spot(sheet, sheet.pieces(roll.paper)[0].part, 0, 0, 1) if sheet.pieces(roll.paper) else None
                self.mark_sheet(sheet)
            self.following = spot is None
        if not self._sheets:
            # The welcome is read from its beginning.
            spot, self.following = roll.spot(0), False
        spot = roll.set_around(spot, view, 2 * view, stretched=stretched)
        lines = roll.measure() + 1
        line = max(0, lines - view) if spot is None else roll.line_of(spot)
        roll.close_the_oldest()
        self._put(lines, min(line, max(0, lines - view)))

    def _put(self, lines: int, line: int) -> None:
        """Be `lines` long, and show them from `line` on."""
        self._placing = True
        try:
            size = Size(self.scrollable_content_region.width, lines)
            if size != self.virtual_size:
                self.virtual_size = size
            if self.scroll_offset.y != line or self.scroll_y != self.scroll_target_y:
                self.scroll_to(y=line, animate=False, force=True)
            self.refresh()
        finally:
            self._placing = False

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The person scrolls: set what comes near, and hold still or follow."""
        super().watch_scroll_y(old_value, new_value)
        if self._placing or round(old_value) == round(new_value) or not self._roll:
            return
        self.following = round(new_value) >= self.max_scroll_y
        self._settle(self._top_spot())

    def on_resize(self) -> None:
        """Set everything for the new width."""
        self._lay_out()
        self._settle(self._top_spot())

    def notify_style_update(self) -> None:
        """Set everything anew in new colours."""
        super().notify_style_update()
        if self._roll and self.is_attached:
            self._lay_out()

    def _view_height(self) -> int:
        return self.scrollable_content_region.height

    def _column(self) -> tuple[int, int]:
        """The first cell of the column, and how wide it is."""
        full = self.size.width + self.styles.scrollbar_size_vertical
        if self.show_vertical_scrollbar or self.styles.scrollbar_gutter == "stable":
            full = self.outer_size.width
        column = min(COLUMN, full - _LEFT - _RIGHT)
        return max(0, (full - column) // 2), column

    def _text_width(self) -> int:
        return max(_LEAST_TEXT, self._column()[1] - _LEFT - _RIGHT) if self.size.width else 0

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
        roll, width = self._roll, self.scrollable_content_region.width
        if not roll or not roll.sheets:
            return Strip.blank(width, self.rich_style)
        line = y + self.scroll_offset.y
        row = Row(self._inks(), self._column()[0], roll.paper.width, width)
        if line >= self.virtual_size.height - 1:
            strip = row.blank()
        else:
            index, piece, within = roll.at(line)
            sheet = roll.sheets[index]
            content = sheet.pieces(roll.paper)[piece] if sheet.pieces(roll.paper) else None
            mark = self.mark_of(sheet, piece, within)
            key = line_key(index, piece, max(0, within - (content.gap if content else 0)))
            selection = self.text_selection
            span = selection.get_span(key) if selection else None
            strip = row.of(content, within, mark, key, span, self._selection_style)
        if y == self._view_height() - 1 and self.more_below:
            strip = row.with_sign(strip, _BELOW)
        return strip

    @property
    def _selection_style(self) -> Style:
        return self.screen.get_component_rich_style("screen--selection")

    @property
    def more_below(self) -> bool:
        """Whether an answer is being written below what is in view."""
        last = self._sheets[-1] if self._sheets else None
        running = isinstance(last, ReplySheet) and last.reply.running
        return running and not self.following and self.scroll_offset.y < self.max_scroll_y

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, as it stands on the page."""
        if not self._roll:
            return None
        return selected(self._roll, selection), "\n"

    # The person's hands.

    def on_key(self, event: events.Key) -> None:
        """Give back what is no key of the page."""
        if event.key in self.screen.active_bindings:
            return
        if event.key == "escape":
            event.stop()
            self.post_message(self.Left())
        elif event.is_printable and event.character:
            event.stop()
            self.post_message(self.Typed(event.character))

    def on_click(self, event: events.Click) -> None:
        """Open, fold, or walk to a sibling; twice selects a block, three times a message."""
        event.prevent_default()
        roll, line = self._roll, event.y + self.scroll_offset.y
        if not roll or not self._sheets or line >= self.virtual_size.height - 1:
            return
        if event.y == self._view_height() - 1 and self.more_below and event.x >= self.size.width - len(_BELOW) - 2:
            self.to("bottom")
            return
        index, number, within = roll.at(line)
        sheet = roll.sheets[index]
        if event.chain > 1:
            self._select(index, number, whole=event.chain > 2)
        elif pieces := sheet.pieces(roll.paper):
            piece = pieces[number]
            if within >= piece.gap:
                self._clicked(sheet, piece, event.x - self._column()[0] - _LEFT)

    def _clicked(self, sheet: Sheet, piece: Piece, column: int) -> None:
        if piece.part in ("fold", "thinking"):
            self._toggle(sheet)
        elif piece.part == "siblings" and sheet.item and sheet.item.node is not None:
            by = sheet.sibling_at(column)
            if by:
                self.post_message(self.Walked(sheet.item.node, by))

    def _select(self, index: int, number: int, *, whole: bool) -> None:
        assert self._roll
        sheet = self._roll.sheets[index]
        first, end = (0, len(sheet.pieces(self._roll.paper))) if whole else sheet.group(number)
        marks = Offset(0, line_key(index, first)), Offset(0, line_key(index, end))
        self.screen.selections = {self: Selection(*marks)}
