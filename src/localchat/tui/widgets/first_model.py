"""What stands on the page of a machine that has no model yet: what can be fetched, and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from localchat.errors import LocalchatError
from localchat.safe_text import safe_line
from localchat.settings import is_offline
from localchat.tui.downloads import Download, Downloads, describe
from localchat.tui.model_list import Heading, Overview, Typed, about, look, recommended
from localchat.tui.widgets.model_rows import ModelRows, header
from localchat.tui.widgets.rows import Rows
from localchat.tui.words import bar, fitting, size

if TYPE_CHECKING:
    from localchat.models.overview import Row

_LOOKS_PER_SECOND = 4
_BAR = 24


class FirstModel(Vertical, can_focus=True):
    """Offers the starter and what fits this machine; Enter has the marked one fetched, through `downloads`.

    With a larger one the starter comes first, so that one can chat meanwhile. `look` finds out what there is; it runs
    on a thread.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("enter", "take", "Fetch it", show=False),
        Binding("x", "cancel", "Stop it", show=False),
    ]

    DEFAULT_CSS = """
    FirstModel {
        width: 100%;
        max-width: 104;
        height: auto;
        padding: 1 2;
        & Static { height: auto; }
        & .title { color: $accent; margin: 0 0 1 0; }
        & .intro { color: $foreground; margin: 0 0 1 0; }
        & ModelRows { height: auto; scrollbar-gutter: auto; }
        & .header { height: 1; }
        & .about { color: $muted; margin: 1 0 0 0; }
        & .progress { margin: 0 0 1 0; display: none; }
        & .keys { color: $faint; margin: 1 0 0 0; }
    }
    """

    @dataclass
    class Chosen(Message):
        """The person chose a model, and it has begun to come."""

        name: str

    def __init__(self, downloads: Downloads, look: Callable[[], Overview] = look) -> None:
        super().__init__()
        self._downloads = downloads
        self._look = look
        self._overview: Overview | None = None
        self._seen: list[Download] = []
        self._intro = Static(Content("Looking at what fits this machine …"), classes="intro", markup=False)
        self._header = Static(classes="header", markup=False)
        self._rows = ModelRows("", downloads.of)
        self._rows.can_focus = False
        self._about = Static(classes="about", markup=False)
        self._progress = Static(classes="progress", markup=False)
        self._keys = Static(classes="keys", markup=False)

    def compose(self) -> ComposeResult:
        """A word of welcome, the models, and how far they are."""
        yield Static(Content("No model is here yet"), classes="title", markup=False)
        yield self._intro
        yield self._progress
        yield self._header
        yield self._rows
        yield self._about
        yield self._keys

    def on_mount(self) -> None:
        """Be there at once, and fill when it is known what there is."""
        self.set_interval(1 / _LOOKS_PER_SECOND, self._look_in)
        self.watch(self._rows, "marked", self._say)
        self.run_worker(self._find_out(), group="look", exclusive=True)

    def on_resize(self) -> None:
        """Set the columns' names over the columns."""
        self.call_after_refresh(self._show_header)

    async def _find_out(self) -> None:
        try:
            self._overview = await asyncio.to_thread(self._look)
        except LocalchatError as error:
            self._intro.update(Content.styled(safe_line(error.message), "$error"))
            return
        overview = self._overview
        starter = next((row for row in overview.rows if row.name == overview.starter), None)
        rows: list[Heading | Row | Typed] = [*([starter] if starter else []), *recommended(overview)]
        self._intro.update(Content(_introduction(starter)))
        self._rows.starter = overview.starter
        self._rows.set_rows(rows, 0 if rows else None)
        self._rows.refresh(layout=True)
        self._show_header()
        self._say()

    def _show_header(self) -> None:
        self._header.update(header(self._rows.scrollable_content_region.width) if self._rows.rows else "")
        self._show_progress()

    def _say(self) -> None:
        line, overview = self._marked, self._overview
        self._about.update(Content(about(line, overview)) if line and overview else "")
        known = self._downloads.of(line.name) if line else None
        does = (
            ""
            if line is None
            else "x stops it, what came is kept   "
            if known and known.running
            else "Enter fetches it   "
        )
        self._keys.update(Content(f"{does}↑ ↓ choose" if line else ""))

    def _look_in(self) -> None:
        known = self._downloads.known
        if known != self._seen:
            self._seen = known
            self._rows.redraw()
            self._say()
            self._show_progress()

    def _show_progress(self) -> None:
        """A line for each model that was asked for, with a bar where one is on its way."""
        width = self._rows.size.width
        lines: list[Content] = []
        for one in self._downloads.known:
            if one.stage in ("fetching", "verifying") and one.total:
                drawn = bar(one.share, _BAR)
                full = drawn.rstrip("─")
                told = fitting(describe(one), max(20, width - _BAR - 1))
                lines.append(Content.assemble((full, "$accent"), (drawn[len(full) :], "$faint"), " ", told))
            else:
                colour = "$error" if one.stage == "failed" else "$muted"
                lines.append(Content.styled(describe(one), colour))
            if one.running and one.notice:
                lines.append(Content.styled(safe_line(one.notice), "$muted"))
        self._progress.update(Content("\n").join(lines))
        self._progress.display = bool(lines)

    @property
    def _marked(self) -> Row | None:
        number = self._rows.marked
        line = self._rows.rows[number] if number is not None and number < len(self._rows.rows) else None
        return None if line is None or isinstance(line, Heading | Typed) else line

    def action_move(self, by: int) -> None:
        """Mark the model above or below."""
        self._rows.move(by)

    def action_take(self) -> None:
        """Have the marked model fetched, after the starter."""
        line, overview = self._marked, self._overview
        if line is None or overview is None:
            return
        if overview.starter and line.name != overview.starter:
            self._downloads.begin(overview.starter)
        self._downloads.begin(line.name)
        self._look_in()
        self.post_message(self.Chosen(line.name))

    def action_cancel(self) -> None:
        """Stop fetching the marked model."""
        if line := self._marked:
            self._downloads.cancel(line.name)
            self._look_in()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A click takes a model."""
        event.stop()
        self.action_take()


def _introduction(starter: Row | None) -> str:
    if is_offline():
        return (
            "localchat is set to stay offline, so none can be fetched: `localchat import FILE` takes in a GGUF file "
            "that you have, and without --offline (or LOCALCHAT_OFFLINE) one can be chosen here:"
        )
    if not starter:
        return "Choose what fits this machine:"
    much = f" ({size(starter.size)})" if starter.size else ""
    return (
        f"Enter fetches the starter{much}, and you can chat in a minute. Or choose what fits this machine: the starter "
        "comes with it, to chat with meanwhile."
    )
