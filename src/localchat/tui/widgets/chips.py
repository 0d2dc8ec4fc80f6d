"""What goes with the message that is being written, each attachment as a chip that can be removed or unfolded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.cells import cell_len
from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget

from localchat.chats.records import Attachment
from localchat.errors import LocalchatError
from localchat.safe_text import safe_line

_PASTED = "pasted "
_ROWS = 3
_NAME_CELLS = 32
_CROSS = " ×"
_GAP = "  "


@dataclass(slots=True)
class Chip:
    """An attachment, or one that is still being read (`content` None).

    `number` is its own and never used again; `lines` are those of a paste.
    """

    number: int
    name: str
    content: Attachment | None = None
    lines: int = 0

    @property
    def label(self) -> str:
        """What it says: "notes.md · 1,234 tokens", "pasted 1, 214 lines · 12 kB"."""
        name = shortened(safe_line(self.name) or "attachment", _NAME_CELLS)
        if self.content is None:
            return f"{name} · reading"
        if self.lines > 1:
            name += f", {self.lines:,} lines"
        if self.content.tokens is not None:
            return f"{name} · {self.content.tokens:,} token{'' if self.content.tokens == 1 else 's'}"
        return f"{name} · {size_of(self.content.text)}"


def size_of(text: str) -> str:
    """How much text that is, for a person: characters stand for bytes."""
    count = len(text)
    if count < 1000:
        return f"{count} characters" if count != 1 else "1 character"
    return f"{count / 1000:,.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` cells, its middle left out: the end of a file's name says what it is."""
    if cell_len(text) <= width:
        return text
    half = (width - 1) // 2
    head, tail = text[:half], text[-half:]
    while cell_len(head) > half:
        head = head[:-1]
    while cell_len(tail) > half:
        tail = tail[1:]
    return f"{head}…{tail}"


class Chips(Widget):
    """Rows of chips; takes no room without one. A click on × removes, a click on the name unfolds."""

    DEFAULT_CSS = """
    Chips { height: auto; width: 100%; }
    """

    @dataclass
    class Removed(Message):
        """The × of a chip was clicked."""

        number: int

    @dataclass
    class Unfolded(Message):
        """The name of a chip was clicked."""

        number: int

    @dataclass
    class Filled(Message):
        """An attachment came."""

        attachment: Attachment
        number: int

    @dataclass
    class Refused(Message):
        """A file could not be attached; why, in one sentence."""

        sentence: str

    class Changed(Message):
        """There are other attachments than before."""

    def __init__(self) -> None:
        super().__init__()
        self._chips: list[Chip] = []
        self._numbers = 0

    # What is attached.

    @property
    def attachments(self) -> list[Attachment]:
        """All that have been read."""
        return [chip.content for chip in self._chips if chip.content is not None]

    @property
    def waiting(self) -> str:
        """The name of a file that is still being read, or nothing."""
        return next((chip.name for chip in self._chips if chip.content is None), "")

    @property
    def last(self) -> Chip | None:
        """The one that was attached last."""
        return self._chips[-1] if self._chips else None

    def find(self, number: int) -> Chip | None:
        """The chip of this number."""
        return next((chip for chip in self._chips if chip.number == number), None)

    def put(self, attachments: Sequence[Attachment]) -> None:
        """These and no others."""
        self._chips = []
        self.give_back(attachments)

    def give_back(self, attachments: Sequence[Attachment]) -> None:
        """These before those that are there."""
        later, self._chips = self._chips, []
        for attachment in attachments:
            self._fill(self._new(attachment.name), attachment)
        self._chips += later
        self._show()

    def fold(self, text: str) -> None:
        """Attach a long text under a name of its own."""
        taken = {chip.name for chip in self._chips}
        number = next(number for number in range(1, len(taken) + 2) if f"{_PASTED}{number}" not in taken)
        attachment = Attachment(f"{_PASTED}{number}", text)
        self._fill(self._new(attachment.name), attachment)
        self._show()

    def read(self, path: Path) -> None:
        """Attach a file, as soon as it has been read."""
        chip = self._new(safe_line(path.name))
        self._show()
        self.run_worker(self._read(chip, path), group="attachments")

    def drop(self, number: int) -> None:
        """Take one away."""
        self._chips = [chip for chip in self._chips if chip.number != number]
        self._show()

    def set_tokens(self, number: int, tokens: int) -> None:
        """How long an attachment is; one that is gone is passed over."""
        chip = self.find(number)
        if chip and chip.content is not None:
            chip.content = msgspec.structs.replace(chip.content, tokens=tokens)
            self._show()

    def _new(self, name: str) -> Chip:
        self._numbers += 1
        chip = Chip(self._numbers, name)
        self._chips.append(chip)
        return chip

    def _fill(self, chip: Chip, attachment: Attachment) -> None:
        chip.content = attachment
        if attachment.name.startswith(_PASTED):
            chip.lines = attachment.text.count("\n") + (not attachment.text.endswith("\n"))
        self.post_message(self.Filled(attachment, chip.number))

    async def _read(self, chip: Chip, path: Path) -> None:
        from localchat.chats.attachments import read

        try:
            attachment = await asyncio.to_thread(read, path)
        except LocalchatError as error:
            self.post_message(self.Refused(safe_line(error.message)))
            self.drop(chip.number)
        else:
            if chip in self._chips:
                self._fill(chip, attachment)
                self._show()

    def _show(self) -> None:
        self.display = bool(self._chips)
        self.refresh(layout=True)
        self.post_message(self.Changed())

    # How it looks.

    def on_mount(self) -> None:
        """Take no room yet."""
        self.display = bool(self._chips)

    def _rows(self, width: int) -> tuple[int, list[list[tuple[int, str, Chip]]]]:
        """How many chips have no room (the first ones), and for each row its chips with their column and label."""
        hidden = 0
        while True:
            rows: list[list[tuple[int, str, Chip]]] = [[]]
            column = cell_len(_more(hidden))
            for chip in self._chips[hidden:]:
                label = shortened(chip.label, max(4, width - 4))
                room = cell_len(label) + 2 + len(_CROSS)
                if column and column + room > width:
                    rows.append([])
                    column = 0
                rows[-1].append((column, label, chip))
                column += room + len(_GAP)
            if len(rows) <= _ROWS or hidden >= len(self._chips) - 1:
                return hidden, rows
            hidden += 1

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as the chips fill."""
        return len(self._rows(width)[1]) if self._chips else 0

    def render(self) -> RenderResult:
        """Each chip as a small panel."""
        hidden, rows = self._rows(self.content_size.width)
        lines = []
        for number, row in enumerate(rows):
            parts: list[str | tuple[str, str]] = [(_more(hidden), "$muted")] if number == 0 else []
            for place, (_, label, chip) in enumerate(row):
                quiet = "$muted on $panel" if chip.content is None else "$foreground on $panel"
                parts += [_GAP if place else "", (f" {label}", quiet), (f"{_CROSS} ", "$muted on $panel")]
            lines.append(Content.assemble(*parts))
        return Content("\n").join(lines)

    def on_click(self, event: events.Click) -> None:
        """Remove or unfold what was clicked."""
        event.stop()
        _, rows = self._rows(self.content_size.width)
        row = rows[int(event.y)] if 0 <= event.y < len(rows) else []
        for column, label, chip in row:
            cross = column + 1 + cell_len(label)
            if column <= event.x < cross:
                self.post_message(self.Unfolded(chip.number))
            elif cross <= event.x < cross + len(_CROSS) + 1:
                self.post_message(self.Removed(chip.number))


def _more(hidden: int) -> str:
    return f"{hidden} more{_GAP}" if hidden else ""
