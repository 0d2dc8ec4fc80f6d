"""The links of a message in full, and opening one: nothing is opened that was not shown to its last character."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from localchat.safe_text import safe_line
from localchat.tui.links import Address, address, open_in_browser
from localchat.tui.screens.dialog import Dialog
from localchat.tui.widgets.rows import Rows

_LEFT = 2
_KEYS = "Enter opens it in your browser   y copies it   Esc leaves"


class LinkRows(Rows[Address]):
    """Addresses, each on as many lines as it needs, its host emphasised."""

    def height_of(self, row: int, width: int) -> int:
        """All of the address, what there is to say about it, and an empty line."""
        return len(self._lines(row, width)) + 1

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """The address, its host in the network's letters, and why it may not be opened."""
        first, *others = self._lines(row, width)
        mark = ("› ", "$accent") if marked else ("  ", "")
        return [
            Content.assemble(mark, first),
            *(Content.assemble("  ", line) for line in others),
            Content(""),
        ]

    def _lines(self, row: int, width: int) -> list[Content]:
        one, room = self.rows[row], max(8, width - _LEFT)
        parts = ((one.before, "$muted not bold"), (one.host, "bold $accent"), (one.after, "$foreground not bold"))
        lines = Content.assemble(*parts).fold(room)
        if one.network_host:
            lines += Content.styled(f"on the network: {one.network_host}", "$muted not bold").fold(room)
        if one.why:
            lines += Content.styled(f"not opened: {one.why}", "$muted not bold").wrap(room)
        return lines


class LinkScreen(Dialog[None]):
    """Shows `links` and opens or copies one. `open` and `copy` get an address on a thread and say what they did."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k,shift+tab", "move(-1)", "Up", show=False),
        Binding("down,j,tab", "move(1)", "Down", show=False),
        Binding("pageup", "scroll(-1)", "A page back", show=False),
        Binding("pagedown", "scroll(1)", "A page on", show=False),
        Binding("enter", "open", "Open it", show=False),
        Binding("y,c", "copy", "Copy it", show=False),
        Binding("escape,q,ctrl+c", "leave", "Leave", show=False),
    ]

    DEFAULT_CSS = """
    LinkScreen {
        & > .dialog { width: 90%; max-width: 100; }
        & LinkRows { height: auto; scrollbar-gutter: stable; }
        & .keys { margin: 0 0 1 0; }
    }
    """

    def __init__(
        self,
        links: Sequence[str],
        open: Callable[[str], str] = open_in_browser,
        copy: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__()
        self._links = links
        self._open = open
        self._copy = copy or self._to_clipboard
        self._rows = LinkRows()
        self._said = Static(Content(_KEYS), classes="keys", markup=False)
        self._read: dict[int, int] = {}

    def compose(self) -> ComposeResult:
        """The addresses, and what can be done with them."""
        with Vertical(classes="dialog"):
            yield self.question("Links in this message" if len(self._links) > 1 else "The link in this message")
            yield self._rows
            yield self._said

    def on_mount(self) -> None:
        """Show the addresses."""
        self._rows.set_rows([address(link) for link in self._links], 0 if self._links else None)
        self._rows.refresh(layout=True)
        self.watch(self._rows, "scroll_y", self._note_read)
        self._fit()

    def on_resize(self) -> None:
        """Use the room that there is."""
        self._fit()

    def _fit(self) -> None:
        # The frame, the heading and the keys take eight lines.
        self._rows.styles.max_height = max(1, self.size.height - 8)
        self.call_after_refresh(self._note_read)

    def _note_read(self) -> None:
        """Remember how far the marked address has been in view, without a gap from its beginning on."""
        if (row := self._rows.marked) is not None:
            top, height = self._rows.top_of(row), self._rows.scrollable_content_region.height
            read = self._read.get(row, 0)
            if -top <= read:
                self._read[row] = max(read, min(self._height(row), height - top))

    def _height(self, row: int) -> int:
        return self._rows.height_of(row, self._rows.scrollable_content_region.width) - 1

    def action_move(self, by: int) -> None:
        """Mark the next address, or the one before."""
        self._rows.move(by)
        self._say(_KEYS)
        self._note_read()

    def action_scroll(self, direction: int) -> None:
        """Scroll through a long address."""
        page = max(1, self._rows.scrollable_content_region.height - 1)
        self._rows.scroll_relative(y=direction * page, animate=False)

    def action_leave(self) -> None:
        """Leave."""
        self.dismiss(None)

    def action_open(self) -> None:
        """Open the marked address, once all of it has been in view."""
        row = self._rows.marked
        if row is None:
            return
        self._note_read()
        if self._read.get(row, 0) < self._height(row):
            self.action_scroll(1)
            self._say("The address goes on: Enter again, once you have seen all of it")
            return
        one = self._rows.rows[row]
        if one.target:
            self._do(self._open, one.target, "Opening …")
        else:
            self._say(f"Not opened: {one.why}")

    def action_copy(self) -> None:
        """Copy the marked address."""
        if self._rows.marked is not None:
            one = self._rows.rows[self._rows.marked]
            self._do(self._copy, one.target or one.shown, "Copying …")

    def _do(self, work: Callable[[str], str], target: str, meanwhile: str) -> None:
        async def run() -> None:
            self._say(await asyncio.to_thread(work, target))

        self._say(meanwhile)
        self.run_worker(run(), group="link", exclusive=True)

    def _to_clipboard(self, text: str) -> str:
        from localchat.tui.clipboard import copy

        return copy(text, self.app)

    def _say(self, text: str) -> None:
        self._said.update(Content(safe_line(text) if text != _KEYS else text))
