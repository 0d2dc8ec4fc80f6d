"""Reading: scrolling, the mark, what is folded, copying, links, and how it all looks."""

from __future__ import annotations

import asyncio
from typing import Literal

from localchat.tui.screens.parts import ChatParts
from localchat.tui.theme import next_theme, remember
from localchat.tui.widgets.reading import Unit


class Looking(ChatParts):
    """The part of the chat screen that is about reading."""

    # Looking.

    def action_toggle_thinking(self) -> None:
        """Show or fold the thinking of all answers."""
        self.transcript.toggle_thinking()

    def action_toggle_this(self) -> None:
        """Show or fold the thinking of the answer at the mark."""
        self.transcript.toggle_thinking(only_current=True)

    def action_toggle_figures(self) -> None:
        """Show or hide the figures of each answer."""
        self.transcript.toggle_figures()

    def action_scroll(self, where: Literal["top", "bottom", "page_up", "page_down"]) -> None:
        """Scroll the page; at its end it follows the answer again."""
        if where in ("top", "bottom"):
            self.transcript.to(where)
        else:
            self.transcript.move(-1 if where == "page_up" else 1, "page")

    def action_read(self) -> None:
        """Go up into the page."""
        if self.session.items():
            self.transcript.focus()
        else:
            self.hint("there is nothing to read yet")

    def action_write(self) -> None:
        """Back to the composer."""
        self.composer.focus()

    def action_move(self, by: int, unit: Unit) -> None:
        """Move the mark."""
        self.transcript.move(by, unit)

    def action_copy(self) -> None:
        """Copy the message at the mark, or the last answer."""
        item = self.transcript.current
        reply = self.session.last_reply
        self.copy(self.transcript.current_text() if item else reply.text if reply else "", "the message")

    def action_copy_code(self) -> None:
        """Copy the code block at the mark."""
        self.copy(self.transcript.current_code() or "", "the code")

    def copy(self, text: str, what: str) -> None:
        """Put text where the person can paste it, and say how."""
        if not text:
            self.hint(f"there is nothing to copy: {what} is not there")
            return
        from localchat.tui.clipboard import copy

        async def run() -> None:
            self.hint(f"{what}: {await asyncio.to_thread(copy, text, self.app)}")

        self.do(run())

    def action_link(self) -> None:
        """Show the links of the message at the mark."""
        links = self.transcript.links()
        if not links:
            self.hint("this message has no links")
            return
        from localchat.tui.screens.links import LinkScreen

        self.app.push_screen(LinkScreen(links))

    def action_keys(self) -> None:
        """Show the sheet of keys."""
        from localchat.tui.screens.keys import KeySheet

        self.app.push_screen(KeySheet())

    def action_theme(self) -> None:
        """The next theme, remembered for the next time."""
        self.app.theme = next_theme(self.app.theme)
        remember(self.app.theme)
        self.hint(f"theme: {self.app.theme}")

    def action_attach(self) -> None:
        """Begin to name a file to attach."""
        self.composer.begin_attaching()

    def action_editor(self) -> None:
        """Write in the person's own editor."""
        self.do(self.composer.run_action("edit"))
