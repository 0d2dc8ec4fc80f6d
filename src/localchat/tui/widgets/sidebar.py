"""The list of chats at the left: open, begin, rename, pin, delete and undo, filter by title; all of it by keys.

Values come in by `show`; what the person does goes out as messages. It knows neither the database nor the chat screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from localchat.chats.records import ChatInfo
from localchat.tui.dates import Clock
from localchat.tui.widgets.chat_rows import ChatRows, grouped, matches, plain
from localchat.tui.widgets.line_input import LineInput
from localchat.tui.widgets.rows import Rows

UNDO_S = 10.0
_EMPTY = "Nothing here yet.\n\nWrite a message and press Enter: the chat is kept in this list."
_NO_MATCH = "No title has that.\n\nEsc shows all chats; Ctrl F searches in the messages."
_KEYS = "n new  r rename  p pin\nd delete  / filter  Esc"
_EMPTY_KEYS = "Esc back to writing"
_FILTER_KEYS = "Enter opens\nEsc shows all chats"
_RENAME_KEYS = "Enter keeps the title\nEsc leaves the old one"


class Sidebar(Widget):
    """The chats by day, the current one marked. `-over` is its class where it lies over the page.

    `clock` says what today is. A deleted chat can be brought back for `undo_s` seconds, or until the next action.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="list_up"),
        Binding("down,j", "move(1)", "Down", show=False, id="list_down"),
        Binding("pageup", "move_page(-1)", "A page back", show=False),
        Binding("pagedown", "move_page(1)", "A page on", show=False),
        Binding("home,g", "move_to_end(-1)", "First", show=False),
        Binding("end,G", "move_to_end(1)", "Last", show=False),
        Binding("enter", "open", "Open the chat", show=False, id="list_open"),
        Binding("n", "new", "Begin a new chat", show=False, id="list_new"),
        Binding("r,f2", "rename", "Rename the chat", show=False, id="list_rename"),
        Binding("p", "pin", "Pin it to the top, or no more", show=False, id="list_pin"),
        Binding("d,delete", "delete", "Delete it", show=False, id="list_delete"),
        Binding("u", "undo", "Bring back what was deleted", show=False, id="list_undo"),
        Binding("slash", "filter", "Filter by title", show=False, id="list_filter"),
        Binding("escape", "leave", "Back to writing", show=False, id="list_leave"),
    ]

    DEFAULT_CSS = """
    Sidebar {
        width: 31;
        max-width: 100%;
        height: 100%;
        layout: vertical;
        layers: list edit;
        background: $background;
        border-right: solid $border;
        padding: 1 0 0 1;
        &:focus-within { border-right: solid $faint; }
        &.-over { dock: left; layer: over; width: 36; background: $surface; }
        & > .filter, & > .filter:focus { display: none; padding: 0 1; margin: 0 0 1 0; }
        & > .keys { height: 3; padding: 1 0 0 1; color: $faint; visibility: hidden; }
        &:focus-within > .keys { visibility: visible; }
        & > .title { display: none; layer: edit; background: $panel; }
        & > .title:focus { background: $panel; }
    }
    """

    @dataclass
    class Opened(Message):
        """The person wants to see a chat."""

        chat: int

    @dataclass
    class NewChat(Message):
        """The person wants to begin a chat."""

    @dataclass
    class Renamed(Message):
        """The person gave a chat another title, which is not empty."""

        chat: int
        title: str

    @dataclass
    class Pinned(Message):
        """A chat shall stand at the top (`pinned`), or no more."""

        chat: int
        pinned: bool

    @dataclass
    class Deleted(Message):
        """The person deleted a chat; `Restored` may follow."""

        chat: int

    @dataclass
    class Restored(Message):
        """The person wants a deleted chat back."""

        chat: int

    @dataclass
    class Left(Message):
        """The person is done here."""

    def __init__(self, clock: Clock = datetime.now, *, undo_s: float = UNDO_S, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._clock = clock
        self._undo_s = undo_s
        self._chats: dict[int, ChatInfo] = {}
        self._rows = ChatRows()
        self._rows.can_focus = True
        self._rows.active = False
        self._filter = LineInput(placeholder="title", classes="filter")
        self._title = LineInput(classes="title")
        self._keys = Static(_KEYS, classes="keys", markup=False)
        self._focus_asked = False
        self._renaming: int | None = None
        self._gone: ChatInfo | None = None
        self._gone_timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """The filter (where there is one), the chats, the keys, and over them a title that is being changed."""
        yield self._filter
        yield self._rows
        yield self._keys
        yield self._title

    def on_mount(self) -> None:
        """Draw what `show` brought before."""
        self._fill()
        self.watch(self._rows, "scroll_y", self._place_title, init=False)
        if self._focus_asked:
            self._rows.focus()

    def focus(self, scroll_visible: bool = True) -> Sidebar:
        """Let the keys go to the list."""
        if self._rows.is_mounted:
            self._rows.focus(scroll_visible)
        self._focus_asked = True
        return self

    # What comes in.

    def show(self, chats: Sequence[ChatInfo], current: int | None) -> None:
        """Show these chats, of which `current` is open. The mark, the place and a title being changed stay."""
        self._chats = {chat.id: chat for chat in chats}
        opened = current != self._rows.current
        self._rows.current = current
        self._fill(current if opened and not self.has_focus_within else None)

    @property
    def marked(self) -> int | None:
        """The number of the chat that the keys act on."""
        chat = self._rows.chat_at(self._rows.marked)
        return chat.id if chat else None

    def _fill(self, mark: int | None = None) -> None:
        """Draw the list anew. The chat `mark` is marked and shown, or else the same one as before, at its place."""
        rows = self._rows
        shown = dict(self._chats)
        if self._gone:
            shown[self._gone.id] = self._gone
        rows.gone = self._gone.id if self._gone else None
        words = plain(self._filter.value).split()
        if words:
            shown = {chat.id: chat for chat in shown.values() if chat.id == self._renaming or matches(chat, words)}
        # What the person looks at stays at its place: the marked chat, or the first in view where that one is not.
        before, line = rows.marked, round(rows.scroll_y)
        in_view = before is not None and rows.is_in_view(before)
        seen = before if in_view else rows.first_in_view()
        held_chat, held_at = rows.chat_at(seen), rows.top_of(seen) if seen is not None else 0
        marked_chat = rows.chat_at(before)

        new = grouped(shown.values(), self._clock())
        place = {one.id: row for row, one in enumerate(new) if isinstance(one, ChatInfo)}
        marked = place.get(mark if mark is not None else marked_chat.id if marked_chat else rows.current or -1)
        if marked is None and new:
            # The marked chat has gone: the one that came to its place.
            at = min(before or 0, len(new) - 1)
            marked = at if at in place.values() else at + 1
        held = (place[held_chat.id], held_at) if line and held_chat and held_chat.id in place else None
        rows.note = Content.styled(_NO_MATCH if words else _EMPTY, "$muted")
        rows.set_rows(new, marked, held=held)
        if in_view or mark is not None or before is None:
            rows.show_marked()
        self._place_title()
        self._show_keys()

    # What the keys do.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a title is being changed, the keys of the list rest."""
        if self._renaming is not None and self._title.has_focus:
            return action == "leave"
        return super().check_action(action, parameters)

    def action_move(self, by: int) -> None:
        """Mark the next chat, or the one before."""
        self._rows.move(by)

    def action_move_page(self, direction: int) -> None:
        """Mark a chat one page on, or back."""
        self._rows.move_page(direction)

    def action_move_to_end(self, direction: int) -> None:
        """Mark the last chat, or the first."""
        self._rows.move_to_end(direction)

    def action_open(self) -> None:
        """Open the marked chat."""
        if (chat := self._acted_on()) is not None:
            self._close_filter()
            self.post_message(self.Opened(chat.id))

    def action_new(self) -> None:
        """Begin a new chat."""
        self._forget_gone()
        self.post_message(self.NewChat())

    def action_rename(self) -> None:
        """Change the title of the marked chat, in its row."""
        if (chat := self._acted_on()) is not None:
            self._renaming = chat.id
            self._title.value = chat.title
            self._title.action_end()
            self._title.display = True
            self.screen.set_focus(self._title)
            self._rows.show_marked()
            self._place_title()
            self._show_keys()

    def action_pin(self) -> None:
        """Pin the marked chat to the top, or no more."""
        if (chat := self._acted_on()) is not None:
            self._chats[chat.id] = msgspec.structs.replace(chat, pinned=not chat.pinned)
            self._fill(chat.id)
            self.post_message(self.Pinned(chat.id, not chat.pinned))

    def action_delete(self) -> None:
        """Delete the marked chat; its row stays for a while, for those who did not mean it."""
        if (chat := self._acted_on()) is not None:
            self._chats.pop(chat.id)
            self._gone = chat
            self._gone_timer = self.set_timer(self._undo_s, self._forget_gone)
            self._fill(chat.id)
            self.post_message(self.Deleted(chat.id))

    def action_undo(self) -> None:
        """Bring back the chat that was just deleted."""
        if chat := self._gone:
            self._chats[chat.id] = chat
            self._forget_gone(chat.id)
            self.post_message(self.Restored(chat.id))

    def action_filter(self) -> None:
        """Show only the chats whose title has what is typed."""
        self._forget_gone()
        self._filter.display = True
        self.screen.set_focus(self._filter)
        self._show_keys()

    def action_leave(self) -> None:
        """Leave the title as it was, or show all chats again, or go back to writing: one step each time."""
        if self._renaming is not None:
            self._end_renaming(None)
        elif self._filter.display:
            self._close_filter()
        else:
            self.post_message(self.Left())

    def _acted_on(self) -> ChatInfo | None:
        """The marked chat, if it is still there; an action on it ends the undoing of another."""
        chat = self._rows.chat_at(self._rows.marked)
        if chat is None or (self._gone and chat.id == self._gone.id):
            return None
        self._forget_gone()
        return chat

    def _forget_gone(self, mark: int | None = None) -> None:
        if self._gone_timer:
            self._gone_timer.stop()
        if self._gone:
            self._gone = self._gone_timer = None
            self._fill(mark)

    # The title that is being changed.

    def _place_title(self) -> None:
        """Lay the input over the row that it stands for, or at the edge where that is scrolled out of view."""
        if self._renaming is None:
            return
        row = self._rows.row_of(self._renaming)
        if row is None:
            self._end_renaming(None)
            return
        region = self._rows.region
        line = max(0, min(region.height - 1, self._rows.top_of(row)))
        self._title.styles.width = max(1, self._rows.scrollable_content_region.width - 2)
        self._title.styles.offset = (2, region.y - self.content_region.y + line)

    def _end_renaming(self, typed: str | None) -> None:
        """Put the input away; what was `typed` is the new title."""
        chat, title = self._chats.get(self._renaming or -1), " ".join((typed or "").split())
        self._renaming = None
        if self._title.has_focus:
            self.screen.set_focus(self._rows)
        self._title.display = False
        self._show_keys()
        if chat and title and title != chat.title:
            self._chats[chat.id] = msgspec.structs.replace(chat, title=title, titled_by="person")
            self._fill()
            self.post_message(self.Renamed(chat.id, title))

    def _close_filter(self) -> None:
        if self._filter.display:
            if self._filter.has_focus:
                self.screen.set_focus(self._rows)
            self._filter.display = False
            self._filter.value = ""
            self._fill(self.marked)
            self._show_keys()

    def _show_keys(self) -> None:
        keys = _KEYS if self._rows.rows else _EMPTY_KEYS
        if self._renaming is not None:
            keys = _RENAME_KEYS
        elif self._filter.display:
            keys = _FILTER_KEYS
        self._keys.update(Content(keys))

    # What the parts tell.

    async def on_key(self, event: events.Key) -> None:
        """Follow the keys in the order they came, and hand on what was typed for an input before it had the focus."""
        line = self.screen.focused
        if isinstance(line, LineInput) and (event.is_printable or event.key in ("enter", "backspace")):
            # An input keeps these for itself, so they come from the list.
            event.stop()
            line.post_message(events.Key(event.key, event.character))
            return
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if await self.app.run_action(binding.action, self):
                event.stop()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed."""
        event.stop()
        if event.input is self._filter and self._filter.display:
            self._fill()
            self._rows.move_to_end(-1)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: the title is done, or the filter has found it."""
        event.stop()
        if event.input is self._title:
            # As it was at that moment: what is typed while this waited is not part of it.
            self._end_renaming(event.value)
        else:
            self.action_open()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A click opens."""
        event.stop()
        self.action_open()

    def on_descendant_focus(self) -> None:
        """Show which chat the keys act on."""
        self._rows.active = True

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        """The keys go elsewhere: a title that was being changed is kept, unless only the terminal lost the focus."""
        if self._renaming is not None and event.widget is self._title and self.app.app_focus:
            self._end_renaming(self._title.value)
        self._rows.active = self.has_focus_within

    def on_resize(self) -> None:
        """Keep the input over its row."""
        self.call_after_refresh(self._place_title)
