"""What the composer offers while a word is typed: commands after a slash, files after an @, a file that was pasted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localchat.safe_text import safe_line
from localchat.tui.commands import SlashCommand, fitting
from localchat.tui.files import Files, Found, best, pasted_files
from localchat.tui.widgets.completion import Choice, Completion
from localchat.tui.widgets.field import Field

if TYPE_CHECKING:
    from localchat.tui.widgets.composer import Composer

# An @ at a word's beginning and what follows it up to the cursor; in quotes it may contain blanks.
_NAMING_FILE = re.compile(r'(?:^|(?<=[\s(\[]))@("[^"]*|[^\s"]*)$')


class Offers:
    """Decides what the list of choices shows, and what taking one does to the text."""

    def __init__(
        self, composer: Composer, field: Field, completion: Completion, commands: Sequence[SlashCommand], folder: Path
    ) -> None:
        self._composer = composer
        self._field = field
        self._completion = completion
        self._commands = commands
        self._files = Files(folder)
        self._start: tuple[int, int] | None = None
        self._closed: tuple[int, int] | None = None
        self._named: str | None = None  # what was typed of a command
        self._wanted: str | None = None  # and of a file
        self._searching = False
        self._pasted: tuple[str, list[Path]] | None = None

    # Keys.

    def take_key(self, key: str) -> bool:
        """Use a key for the list, while it is open."""
        if key in ("up", "down", "tab", "enter"):
            # The list may not have heard of the last characters yet, and must not be taken for what it was before them.
            self.look()
        chosen = self._completion.chosen
        if chosen is None:
            return False
        if key in ("up", "down"):
            self._completion.move(1 if key == "down" else -1)
        elif key in ("tab", "enter"):
            if key == "enter" and isinstance(chosen.value, tuple) and self._field.text.strip() == f"/{chosen.value[0]}":
                self.close()
                return False
            self.take(chosen)
        elif key == "escape":
            self.close()
        else:
            return False
        return True

    def close(self) -> bool:
        """Close the list until another word begins; False where it was not open."""
        was_open = self._completion.chosen is not None
        if was_open:
            self._closed = self._start
        self._hide()
        return was_open

    def reset(self) -> None:
        """The text is another one altogether."""
        self._start = self._closed = None
        self._hide()

    def _hide(self) -> None:
        self._named = self._wanted = self._pasted = None
        self._completion.show(())

    # What is offered.

    def look(self) -> None:
        """The text or the cursor changed: offer what fits now."""
        field = self._field
        row, column = field.cursor_location
        before = field.document[row][:column]
        if self._pasted and before.endswith(self._pasted[0]):
            return
        if row == 0 and self._commands and re.fullmatch(r"/[\w-]*", before) and field.document.line_count == 1:
            self._begin((0, 0))
            if self._closed != (0, 0):
                self._show_commands(before[1:])
            return
        naming = _NAMING_FILE.search(before)
        if naming and field.selection.is_empty:
            self._begin((row, naming.start()))
            if self._closed != self._start:
                self._want(naming[1].removeprefix('"'))
                return
        else:
            self._start = self._closed = None
        self._hide()

    def _begin(self, start: tuple[int, int]) -> None:
        if self._start != start:
            self._closed = None
        self._start = start

    def _show_commands(self, typed: str) -> None:
        if typed == self._named:
            return
        self._named, self._wanted, self._pasted = typed, None, None
        self._completion.show(
            [
                Choice(command, f"/{command[0]} {command[1]}".rstrip(), command[2])
                for command in fitting(typed, self._commands)
            ]
        )

    def _want(self, typed: str) -> None:
        """Look for files; while that takes place, the newest wish is the one that counts."""
        if typed == self._wanted:
            return
        self._named = self._pasted = None
        if self._wanted is not None:
            # What is shown already fits at once, or goes.
            shown = {choice.label: choice for choice in self._completion.choices}
            self._completion.show([shown[label] for label in best(typed, shown, len(shown))])
        self._wanted = typed
        if not self._searching:
            self._searching = True
            self._composer.run_worker(self._search(), group="files")

    async def _search(self) -> None:
        try:
            done: str | None = None
            while (typed := self._wanted) is not None and typed != done:
                found = await asyncio.to_thread(self._files.find, typed)
                done = typed
                if self._wanted == typed:
                    self._completion.show([Choice(one, one.shown, "folder" if one.folder else "") for one in found])
        finally:
            self._searching = False

    def offer_pasted(self, text: str) -> None:
        """A line was pasted: if it names files, offer to attach them."""
        if text.strip() and "\n" not in text:
            self._composer.run_worker(self._look_at_pasted(text), group="pasted", exclusive=True)

    async def _look_at_pasted(self, text: str) -> None:
        paths = await asyncio.to_thread(pasted_files, text)
        row, column = self._field.cursor_location
        if paths and self._field.document[row][:column].endswith(text):
            self._pasted = (text, paths)
            names = safe_line(", ".join(path.name for path in paths))
            self._completion.show([Choice(paths, f"Attach {names}", "Esc leaves the path as text")])

    # What taking one does.

    def take(self, choice: Choice) -> None:
        """Do what a choice stands for."""
        match choice.value:
            case Found() as found if found.folder:
                shown = f'@"{found.shown}' if " " in found.shown else f"@{found.shown}"
                self._replace_word(shown)
            case Found() as found:
                self._replace_word("")
                self._composer.attach(found.path)
            case (str(name), str(argument), _):
                self._field.replace(f"/{name} " if argument else f"/{name}", (0, 0), self._field.cursor_location)
                self._field.move_cursor(self._field.document.end)
                self._closed = (0, 0)
                self._hide()
            case list() as paths:
                text = self._pasted[0] if self._pasted else ""
                row, column = self._field.cursor_location
                self._hide()
                self._field.replace("", (row, column - len(text)), (row, column), maintain_selection_offset=False)
                for path in paths:
                    self._composer.attach(path)

    def _replace_word(self, text: str) -> None:
        if self._start is None:
            return
        end = self._field.cursor_location
        result = self._field.replace(text, self._start, end, maintain_selection_offset=False)
        self._field.move_cursor(result.end_location)
        if not text:
            self._hide()
