"""Search over everything that was written: results while the person types, and one of them to go to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, Static

from localchat.chats.records import Hit
from localchat.errors import LocalchatError
from localchat.safe_text import safe_line, safe_text
from localchat.tui.dates import Clock, when
from localchat.tui.widgets.line_input import LineInput
from localchat.tui.widgets.rows import Rows

Search = Callable[[str], Awaitable[list[Hit]]]

_REST_S = 0.12
"""So long nothing is typed before a search begins."""
_LEFT = 2
_HELP = (
    "Several words: all of them must be there.\n"
    '"Words in quotes": side by side, in this order.\n'
    "The last word may be only the beginning of one."
)
_KEYS = "Enter goes there   Esc leaves"
_WHO = {"user": "you", "assistant": "the model", "title": "title"}


class HitRows(Rows[Hit]):
    """What was found, two lines each: where it stands, and the words around it. `clock` says what today is."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def height_of(self, row: int, width: int) -> int:
        """Two lines, and one that sets it off from the next."""
        return 3

    def draw(self, row: int, width: int, marked: bool) -> list[Content]:
        """Title, who and when; the excerpt with its matches."""
        hit = self.rows[row]
        asked = "ask · " if hit.kind == "ask" else ""
        about = f" · {asked}{_WHO.get(hit.role) or safe_line(hit.role[:20])}"
        if moment := when(hit.created, self._clock()):
            about += f" · {moment}"
        title = Content(safe_line(hit.title[:300]) or "Untitled")
        room = max(8, width - _LEFT - cell_len(about))
        mark = ("› ", "$accent") if marked else ("  ", "")
        head = Content.assemble(mark, title.truncate(room, ellipsis=True), (about, "$muted not bold"))
        excerpt = marked_excerpt(hit, max(1, width - _LEFT))
        return [head.truncate(width), Content.assemble("  ", excerpt), Content("")]


class FindScreen(ModalScreen[Hit | None]):
    """Gives what the person chose to go to, or None.

    `search` is asked with the words as typed; its `LocalchatError`s are shown. `words` stand there at first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,shift+tab", "move(-1)", "Up", show=False, priority=True),
        Binding("down,tab", "move(1)", "Down", show=False, priority=True),
        Binding("pageup", "move_page(-1)", "A page back", show=False),
        Binding("pagedown", "move_page(1)", "A page on", show=False),
        Binding("escape", "leave", "Leave", show=False),
    ]

    DEFAULT_CSS = """
    FindScreen {
        align: center middle;
        background: $background 60%;
        & > Vertical {
            width: 90%;
            max-width: 100;
            height: 90%;
            background: $surface;
            border: round $border;
            padding: 1 1 0 2;
        }
        & LineInput, & LineInput:focus { height: 3; border: round $faint; padding: 0 1; background: $surface; }
        & Rows { margin: 1 0 0 0; background: $surface; }
        & .keys { height: 1; color: $faint; }
    }
    """

    def __init__(self, search: Search, words: str = "", *, clock: Clock = datetime.now) -> None:
        super().__init__()
        self._search = search
        self._line = LineInput(words, "words to find")
        self._rows = HitRows(clock)
        self._keys = Static(_KEYS, classes="keys", markup=False)
        self._timer: Timer | None = None
        self._begun = self._found = ""
        """The words that were searched for last, and those that what is shown was found with."""

    @property
    def _is_new(self) -> bool:
        """Whether what is shown is not yet for the words that stand there."""
        return self._found != self._line.value

    def compose(self) -> ComposeResult:
        """The line, what was found, and the keys."""
        with Vertical():
            yield self._line
            yield self._rows
            yield self._keys

    def on_mount(self) -> None:
        """Write at once; begin with the words that were brought along."""
        self._say(_HELP)
        self._line.focus()
        if self._line.value.strip():
            self._begin()

    # What is found.

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search a moment after the last key; what was being searched is of no use any more."""
        event.stop()
        if self._timer:
            self._timer.stop()
        # The line tells of words that were brought along too, when they are being searched for already.
        if event.value != self._begun:
            self._timer = self.set_timer(_REST_S, self._begin)

    def _begin(self) -> None:
        if self._timer:
            self._timer.stop()
            self._timer = None
        self._begun = self._line.value
        self.run_worker(self._find(self._begun), group="find", exclusive=True)

    async def _find(self, words: str) -> None:
        if not words.strip():
            self._say(_HELP)
        else:
            try:
                hits = await self._search(words)
            except LocalchatError as error:
                self._say(safe_line(error.message), "$error")
            else:
                if hits:
                    self._rows.set_rows(hits, 0)
                    self._rows.scroll_to(y=0, animate=False)
                    count = "1 result" if len(hits) == 1 else f"{len(hits)} results"
                    self._keys.update(Content(f"{count}   {_KEYS}"))
                else:
                    self._say(f"Nothing found.\n\n{_HELP}")
        self._found = words

    def _say(self, text: str, style: str = "$muted") -> None:
        self._rows.note = Content.styled(text, style)
        self._rows.set_rows([])
        self._keys.update(Content(_KEYS))

    # What the keys do.

    def action_move(self, by: int) -> None:
        """Mark the next result, or the one before."""
        self._rows.move(by)

    def action_move_page(self, direction: int) -> None:
        """Mark a result one page on, or back."""
        self._rows.move_page(direction)

    def action_leave(self) -> None:
        """Go nowhere."""
        self.dismiss(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the marked result; where what is shown is not yet for the words that stand there, find those first."""
        event.stop()
        if self._is_new:
            self._begin()
        else:
            self._go()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A click goes there."""
        event.stop()
        self._go()

    def _go(self) -> None:
        if self._rows.marked is not None:
            self.dismiss(self._rows.rows[self._rows.marked])


def marked_excerpt(hit: Hit, width: int) -> Content:
    """The excerpt on one safe line of at most `width` cells, its matches marked; the first match is in it."""
    text, pieces, at = hit.excerpt, [], 0
    # The places count characters of the excerpt as it came, so it is cleaned piece by piece.
    for start, end in sorted(hit.marks):
        start, end = max(at, start), min(end, len(text))
        if start < end:
            pieces += [(text[at:start], "$muted not bold"), (text[start:end], "bold $accent")]
            at = end
    pieces.append((text[at:], "$muted not bold"))
    pieces = [(_one_line(piece), style) for piece, style in pieces]
    before = pieces[0][0] if len(pieces) > 1 else ""
    # At most a third of the line stands before the first match, and that match is shown.
    if cell_len(before) + cell_len(pieces[1][0] if len(pieces) > 1 else "") > width:
        keep = set_cell_size(before[::-1], width // 3)[::-1].lstrip()
        pieces[0] = (f"…{keep}", pieces[0][1])
    return Content.assemble(*pieces).truncate(width, ellipsis=True)


def _one_line(text: str) -> str:
    return safe_text(text).replace("\n", " ").replace("\t", " ")
