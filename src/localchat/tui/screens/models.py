"""The model picker: what is on this machine, what fits it, and downloads that go on while the person chats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from localchat.errors import LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.downloads import Download, Downloads, describe
from localchat.tui.model_list import Heading, Overview, Typed, about, lines, look, path_typed, place_of
from localchat.tui.widgets.line_input import LineInput
from localchat.tui.widgets.model_rows import ModelRows, header
from localchat.tui.widgets.rows import Rows

if TYPE_CHECKING:
    from localchat.models.overview import Row

_LOOKS_PER_SECOND = 4


class _FilterLine(LineInput):
    """Where the person filters. `x` goes to `stops` first, which says whether there was something to stop."""

    def __init__(self, stops: Callable[[], bool], placeholder: str) -> None:
        super().__init__("", placeholder)
        self._stops = stops

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "x" and self._stops():
            event.stop()
            event.prevent_default()
        else:
            await super()._on_key(event)


class ModelPicker(ModalScreen[str | None]):
    """Gives the name of a model that is here, to chat with from now on, or None.

    `current` is the name of the one that answers now. A model that is not here begins to come, through `downloads`, and
    the person may leave meanwhile. `look` finds out what there is; it runs on a thread.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,ctrl+p,shift+tab", "move(-1)", "Up", show=False, priority=True),
        Binding("down,ctrl+n,tab", "move(1)", "Down", show=False, priority=True),
        Binding("pageup", "move_page(-1)", "A page back", show=False, priority=True),
        Binding("pagedown", "move_page(1)", "A page on", show=False, priority=True),
        Binding("ctrl+home", "move_to_end(-1)", "The first", show=False, priority=True),
        Binding("ctrl+end", "move_to_end(1)", "The last", show=False, priority=True),
        Binding("escape,f3,ctrl+c", "leave", "Leave", show=False, priority=True),
    ]

    DEFAULT_CSS = """
    ModelPicker {
        align: center middle;
        background: $background 60%;
        & > Vertical {
            width: 100%;
            max-width: 104;
            height: 90%;
            max-height: 40;
            background: $surface;
            border: round $border;
            padding: 0 1 0 2;
        }
        & LineInput, & LineInput:focus { margin: 0 0 1 0; }
        & ModelRows { background: $surface; }
        & .header { height: 1; }
        & .about { height: auto; min-height: 3; max-height: 9; color: $muted; margin: 1 0 0 0; }
        & .keys { height: 1; color: $faint; }
    }
    """

    def __init__(self, current: str, downloads: Downloads, look: Callable[[], Overview] = look) -> None:
        super().__init__()
        self._current = current
        self._downloads = downloads
        self._look = look
        self._overview: Overview | None = None
        self._seen: list[Download] = []
        self._problem = ""
        self._line = _FilterLine(self._cancels, "filter, or OWNER/REPO:QUANT of a hub, or a path to a GGUF file")
        self._header = Static(classes="header", markup=False)
        self._rows = ModelRows(current, downloads.of)
        self._about = Static(classes="about", markup=False)
        self._keys = Static(classes="keys", markup=False)

    def compose(self) -> ComposeResult:
        """The filter, the models, and what there is to know about the marked one."""
        with Vertical():
            yield self._line
            yield self._header
            yield self._rows
            yield self._about
            yield self._keys

    def on_mount(self) -> None:
        """Be there at once, and fill when it is known what there is."""
        self._line.focus()
        self._rows.note = Content.styled("looking at this machine …", "$muted")
        self._seen = self._downloads.known
        self.set_interval(1 / _LOOKS_PER_SECOND, self._look_in)
        self.watch(self._rows, "marked", self._say)
        self._refill()

    def on_resize(self) -> None:
        """Set the columns' names over the columns."""
        self.call_after_refresh(self._show_header)

    # What there is.

    def _refill(self) -> None:
        self.run_worker(self._find_out(), group="look", exclusive=True)

    async def _find_out(self) -> None:
        try:
            self._overview = await asyncio.to_thread(self._look)
            self._problem = ""
        except LocalchatError as error:
            self._problem = safe_line(error.message)
        self._show()

    def _look_in(self) -> None:
        """Show how far the downloads are; a model that has come is one of those that are here."""
        known = self._downloads.known
        if known == self._seen:
            return
        arrived = {one.name for one in known if one.stage == "here"} - {
            one.name for one in self._seen if one.stage == "here"
        }
        self._seen = known
        self._rows.redraw()
        self._say()
        if arrived:
            self._refill()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as the person types."""
        event.stop()
        self._show()

    def _show(self) -> None:
        """List what matches; the mark stays where it was, else goes to the model in use, else to the first."""
        kept = self._marked
        found = lines(self._overview, self._line.value) if self._overview else []
        place = place_of(found, kept.name) if kept else None
        if place is None and not self._line.value.strip():
            place = place_of(found, self._current)
        if place is None:
            place = next((number for number, line in enumerate(found) if not isinstance(line, Heading)), None)
        self._rows.note = self._nothing()
        self._rows.set_rows(found, place)
        self._rows.show_marked()
        self._show_header()
        self._say()

    def _nothing(self) -> Content:
        if self._problem:
            return Content.styled(self._problem, "$error")
        if not self._overview:
            return Content.styled("looking at this machine …", "$muted")
        return Content.styled("no model goes by that; OWNER/REPO:QUANT takes one from a hub", "$muted")

    def _show_header(self) -> None:
        self._header.update(header(self._rows.scrollable_content_region.width))

    @property
    def _marked(self) -> Row | Typed | None:
        number = self._rows.marked
        line = self._rows.rows[number] if number is not None and number < len(self._rows.rows) else None
        return None if line is None or isinstance(line, Heading) else line

    def _say(self) -> None:
        """What there is to know about the marked model, and what the keys do to it."""
        line = self._marked
        download = self._downloads.of(line.name) if line else None
        told, colour = "", "$muted"
        if download and (download.running or download.stage in ("failed", "stopped")):
            told = describe(download) + (
                f"; {safe_line(download.notice)}" if download.running and download.notice else ""
            )
            colour = "$error" if download.stage == "failed" else "$foreground"
        elif isinstance(line, Typed):
            told = "Enter looks for it at the hub, and fetches it if it fits this machine"
        elif line and self._overview:
            told = about(line, self._overview)
        self._about.update(Content.styled(told, colour))
        here = line is not None and not isinstance(line, Typed) and line.installed
        does = "" if line is None else "Enter takes it   " if here else "Enter fetches it   "
        if download and download.running:
            does = "x stops it, what came is kept   " if not self._line.value else ""
        self._keys.update(Content(f"{does}↑ ↓ choose   Esc leaves"))

    # What keys do.

    def _cancels(self) -> bool:
        """Stop the download of the marked model; False where there is none, or `x` is a letter to filter by."""
        line = self._marked
        download = self._downloads.of(line.name) if line else None
        if self._line.value or not line or not download or not download.running:
            return False
        self._downloads.cancel(line.name)
        self._look_in()
        return True

    def action_move(self, by: int) -> None:
        """Mark the model above or below."""
        self._rows.move(by)

    def action_move_page(self, direction: int) -> None:
        """Mark a model a page away."""
        self._rows.move_page(direction)

    def action_move_to_end(self, direction: int) -> None:
        """Mark the first or the last model."""
        self._rows.move_to_end(direction)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the marked model, or the file that was typed."""
        event.stop()
        if path := path_typed(self._line.value):
            self.dismiss(path)
        else:
            self._take()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A click takes a model."""
        event.stop()
        self._take()

    def _take(self) -> None:
        line = self._marked
        if line is None:
            return
        download = self._downloads.of(line.name)
        if download and download.stage == "here":
            self.dismiss(download.installed)
        elif not isinstance(line, Typed) and line.installed:
            self.dismiss(line.name)
        else:
            self._downloads.begin(line.name)
            self._look_in()

    def action_leave(self) -> None:
        """Choose nothing; downloads go on."""
        self.dismiss(None)
