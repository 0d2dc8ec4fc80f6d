"""A page of typeset Markdown that may still be growing: only its last block is ever set again.

It holds lines, not child widgets, so that showing one more token costs the same at line 20 and at line 2,000.
"""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from localchat.safe_text import safe_text
from localchat.tui.blocks import Block, Splitter
from localchat.tui.typeset import Look, References, Typesetter, references_in


class Page(Widget):
    """Markdown text: `append` while it comes, `finish` when it is whole.

    Lines are set for the width the page has; before it has one, and after it changed, all of them at once.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"page--{field.name.replace('_', '-')}" for field in fields(Look) if field.name != "text"
    }

    DEFAULT_CSS = """
    Page {
        width: 100%;
        height: auto;
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
    }
    """

    def __init__(self, text: str = "", *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._splitter = Splitter()
        self._settled: list[Block] | None = None
        self._typesetter: Typesetter | None = None
        self._rows: list[Strip] = []
        self._frozen_blocks = 0
        self._frozen_rows = 0
        self._frozen: dict[Block, list[Strip]] = {}
        if text:
            self._splitter.feed(safe_text(text))

    @property
    def source(self) -> str:
        """The text so far, as Markdown."""
        frozen = "".join(block.source for block in self._splitter.frozen)
        tail, held = self._splitter.tail()
        return frozen + "".join(block.source for block in tail) + held

    def append(self, text: str) -> None:
        """Show more text."""
        self._splitter.feed(safe_text(text))
        self._settled = None
        if self._typesetter:
            before, unchanged = len(self._rows), self._frozen_rows
            self._set_tail()
            self._show(before, unchanged)

    def finish(self) -> None:
        """The text is complete: set it once more as a whole, where parts or late addresses make a difference."""
        self._settled = self._splitter.settled()
        if self._typesetter:
            before = len(self._rows)
            self._set_all()
            self._show(before, 0)
        self._frozen = {}

    def _show(self, rows_before: int, unchanged: int) -> None:
        if len(self._rows) != rows_before:
            self.refresh(layout=True)
        else:
            self.refresh(Region(0, unchanged, self.size.width, max(0, rows_before - unchanged)))

    def _set_all(self) -> None:
        """Set every block anew, but for those that are frozen and would not change."""
        self._rows, self._frozen_blocks, self._frozen_rows = [], 0, 0
        if self._settled is None:
            self._set_tail()
            return
        references = references_in(self._settled)
        previous: Block | None = None
        for block in self._settled:
            unchanged = not references or "[" not in block.source
            self._add(block, previous, self._frozen.get(block) if unchanged else None, references)
            previous = block

    def _set_tail(self) -> None:
        """Set what has been finished since the last time, and what is unfinished."""
        frozen = self._splitter.frozen
        del self._rows[self._frozen_rows :]
        previous = frozen[self._frozen_blocks - 1] if self._frozen_blocks else None
        for block in frozen[self._frozen_blocks :]:
            self._frozen[block] = self._add(block, previous)
            previous = block
        self._frozen_blocks, self._frozen_rows = len(frozen), len(self._rows)
        for block in self._splitter.tail()[0]:
            self._add(block, previous)
            previous = block

    def _add(
        self,
        block: Block,
        previous: Block | None,
        strips: list[Strip] | None = None,
        references: References | None = None,
    ) -> list[Strip]:
        """Add a block's lines, set before (`strips`) or now, and the gap before them."""
        assert self._typesetter is not None
        if strips is None:
            strips = self._typesetter.block(block, references)
        if strips and self._rows and self._typesetter.gap_before(block, previous):
            self._rows.append(Strip.blank(self._typesetter.width, self._typesetter.look.text))
        self._rows += strips
        return strips

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of lines at `width`; sets them where they were set for another."""
        if width and (self._typesetter is None or self._typesetter.width != width):
            self._typesetter, self._frozen = Typesetter(self.app.console, self._look(), width), {}
            self._set_all()
        return len(self._rows)

    def notify_style_update(self) -> None:
        """Set everything anew in new colours."""
        super().notify_style_update()
        if self._typesetter and self.is_attached and self._look() != self._typesetter.look:
            self._typesetter = Typesetter(self.app.console, self._look(), self._typesetter.width)
            self._frozen = {}
            self._set_all()

    def _look(self) -> Look:
        def component(name: str) -> Style:
            return self.get_component_rich_style(f"page--{name.replace('_', '-')}", partial=True)

        parts = {field.name: component(field.name) for field in fields(Look) if field.name != "text"}
        text = self.rich_style
        return Look(text=text, **{**parts, "panel": text + parts["panel"]})

    def render_line(self, y: int) -> Strip:
        """The line `y` of the page, padded to its width, with what is selected marked."""
        width = self.size.width
        base = self._typesetter.look.text if self._typesetter else self.rich_style
        if y >= len(self._rows):
            return Strip.blank(width, base)
        strip = self._rows[y]
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(y)) is not None:
            # A selection counts characters, a strip cells.
            start = cell_len(strip.text[: span[0]])
            end = strip.cell_length if span[1] == -1 else cell_len(strip.text[: span[1]])
            mark = self.screen.get_component_rich_style("screen--selection")
            strip = Strip.join([strip.crop(0, start), strip.crop(start, end).apply_style(mark), strip.crop(end)])
        return strip.adjust_cell_length(width, base).apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, as it stands on the page."""
        text = "\n".join(row.text.rstrip() for row in self._rows)
        return selection.extract(text), "\n"
