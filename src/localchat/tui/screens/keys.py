"""The key sheet: every action with its keys, grouped by where they work, from the table of actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from localchat.tui.actions import ACTIONS, Action, Where, key_label, own_keys

_TITLES: dict[Where, str] = {
    "chat": "Everywhere",
    "composer": "While writing",
    "page": "While reading",
    "sidebar": "In the list of chats",
}
_COLUMNS: tuple[tuple[Where, ...], ...] = (("chat",), ("composer", "page", "sidebar"))
_TWO_FROM = 100  # columns of the terminal from which on the sheet stands in two
_KEYS = 16  # cells for the keys of an action


class KeySheet(ModalScreen[None]):
    """All keys on one sheet, as the person's settings have them; Esc or F1 puts it away."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,ctrl+c", "dismiss", "Close", show=False)]

    DEFAULT_CSS = """
    KeySheet {
        align: center middle;
        background: $background 60%;
        & > VerticalScroll {
            width: 68;
            max-width: 100%;
            height: auto;
            max-height: 100%;
            background: $surface;
            border: round $border;
            padding: 0 1 0 2;
            scrollbar-size-vertical: 1;
        }
        & Horizontal { height: auto; }
        & Static { width: 100%; height: auto; padding: 0 1 0 0; }
        &.-wide > VerticalScroll { width: 100%; max-width: 132; }
        &.-wide Horizontal > Static { width: 1fr; }
        & .second { display: none; }
        &.-wide .second { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._columns = [Static(markup=False), Static(classes="second", markup=False)]

    def compose(self) -> ComposeResult:
        """The sheet in one column or two, and how to put it away."""
        with VerticalScroll():
            with Horizontal():
                yield from self._columns
            yield Static(Content.styled("Esc closes", "$faint"), markup=False)

    def on_mount(self) -> None:
        """Lay the sheet out."""
        self._lay_out()

    def on_resize(self) -> None:
        """Lay the sheet out for the new width."""
        self._lay_out()

    def _lay_out(self) -> None:
        wide = self.size.width >= _TWO_FROM
        self.set_class(wide, "-wide")
        # Borders, padding and the scrollbar take seven cells.
        width = (min(self.size.width, 132) - 7) // 2 - 1 if wide else min(self.size.width, 68) - 7
        self._columns[0].update(
            sheet(_COLUMNS[0] if wide else [where for column in _COLUMNS for where in column], width)
        )
        self._columns[1].update(sheet(_COLUMNS[1], width) if wide else "")


def sheet(places: Sequence[Where], width: int) -> Content:
    """The actions of some places, one below the other, in `width` cells."""
    lines: list[Content] = []
    for place in places:
        lines.append(Content.styled(_TITLES[place], "$muted bold"))
        for action in ACTIONS:
            if action.where == place and (pressed := _pressed(action)):
                lines += _entry(pressed, action, width)
        lines.append(Content(""))
    return Content("\n").join(lines)


def _pressed(action: Action) -> str:
    """What to press; the slash command where an action has no key."""
    return key_label(own_keys(action)) or (f"/{action.slash}" if action.slash else "")


def _entry(pressed: str, action: Action, width: int) -> list[Content]:
    """An action's lines: keys at the left, and what they do, folded beside them."""
    room = max(8, width - _KEYS)
    folded = Content(action.label).wrap(room)
    if action.slash and (by_name := f"  /{action.slash}") and cell_len(folded[-1].plain + by_name) <= room:
        # Its slash command too, where that takes no line of its own.
        folded[-1] = Content.assemble(folded[-1], (by_name if not pressed.startswith("/") else "", "$faint"))
    keys = Content.styled(pressed, "$accent")
    if cell_len(pressed) >= _KEYS:
        return [keys, *(Content.assemble(" " * _KEYS, line) for line in folded)]
    first, *rest = folded
    return [
        Content.assemble(keys, " " * (_KEYS - cell_len(pressed)), first),
        *(Content.assemble(" " * _KEYS, line) for line in rest),
    ]
