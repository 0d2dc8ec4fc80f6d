"""The keys of vi's normal mode for a text area: motions, operators, counts, one register.

It knows the text area and nothing of the chat; what it does can be undone like any other edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from textual.document._document import Location
from textual.widgets import TextArea

Mode = Literal["insert", "normal"]
_Reach = Literal["exclusive", "inclusive", "lines"]
_OPERATORS = "dcy"
_WIDEST = 9999  # a count beyond is one that fell asleep on the key


class Vim:
    """Takes keys for `area` while in normal mode; begins in insert mode, where all keys are the area's own."""

    def __init__(self, area: TextArea) -> None:
        self.mode: Mode = "insert"
        self._area = area
        self._count = ""
        self._operator = ""
        self._operator_count = ""
        self._after_g = False
        self._register = ""
        self._register_lines = False

    @property
    def pending(self) -> str:
        """What was typed of a command that is not whole yet."""
        return self._operator_count + self._operator + self._count + ("g" if self._after_g else "")

    def escape(self) -> bool:
        """Leave insert mode, or drop half a command; False where there was nothing to leave."""
        if self.mode == "insert":
            self.mode = "normal"
            row, column = self._area.cursor_location
            self._area.move_cursor((row, max(0, column - 1)))
            return True
        pending = bool(self.pending)
        self._forget()
        return pending

    def insert(self) -> None:
        """Go to insert mode."""
        self._forget()
        self.mode = "insert"

    def press(self, key: str, character: str | None) -> bool:
        """Take a key in normal mode; False where it is none of vi's (arrows, Enter, Ctrl+…)."""
        if key == "ctrl+r":
            self._times(self._area.redo)
        elif key == "backspace":
            self._move("h")
        elif character is None or len(character) != 1 or not character.isprintable():
            return False
        elif character.isdecimal() and character.isascii() and (character != "0" or self._count):
            self._count += character
        elif self._after_g or character == "g":
            self._go(character)
        elif self._operator:
            self._operate(character)
        elif character in _OPERATORS:
            self._operator, self._operator_count, self._count = character, self._count, ""
        elif not self._move(character):
            self._do(character)
            self._forget()
        self._clamp()
        return True

    # Commands.

    def _do(self, key: str) -> None:
        area = self._area
        row, column = area.cursor_location
        line = area.document[row]
        match key:
            case "i":
                self.insert()
            case "a":
                self.insert()
                area.move_cursor((row, min(len(line), column + 1)))
            case "I":
                self.insert()
                area.move_cursor((row, len(line) - len(line.lstrip())))
            case "A":
                self.insert()
                area.move_cursor((row, len(line)))
            case "o":
                self.insert()
                self._put("\n", (row, len(line)), (row, len(line)))
            case "O":
                self.insert()
                self._put("\n", (row, 0), (row, 0))
                area.move_cursor((row, 0))
            case "x":
                self._cut((row, column), (row, min(len(line), column + self._number())))
            case "X":
                self._cut((row, max(0, column - self._number())), (row, column))
            case "D" | "C":
                self._cut((row, column), self._line_end(row + self._number() - 1))
                if key == "C":
                    self.insert()
            case "p" | "P":
                self._paste(after=key == "p")
            case "u":
                self._times(area.undo)

    def _operate(self, key: str) -> None:
        """The second half of an operator: itself (whole lines) or a motion."""
        operator, count = self._operator, self._number() * int(self._operator_count or 1)
        row, _ = self._area.cursor_location
        if key == operator:
            self._lines(operator, row, min(row + min(count, _WIDEST) - 1, self._area.document.line_count - 1))
        elif target := self._target(
            "e" if operator == "c" and key == "w" and self._on_word() else key, count, operating=True
        ):
            self._apply(operator, *target)
        self._forget()

    def _go(self, key: str) -> None:
        """`g` waits for a second one."""
        if not self._after_g:
            self._after_g = True
            return
        self._after_g = False
        if key != "g":
            self._forget()
        elif self._operator:
            self._operate("gg")
        else:
            self._move("gg")

    def _apply(self, operator: str, target: Location, reach: _Reach) -> None:
        here = self._area.cursor_location
        if reach == "lines":
            self._lines(operator, *sorted((here[0], target[0])))
            return
        start, end = sorted((here, target))
        if reach == "inclusive":
            end = (end[0], min(end[1] + 1, len(self._area.document[end[0]])))
        if operator == "y":
            self._keep(self._area.get_text_range(start, end))
            self._area.move_cursor(start)
        else:
            self._cut(start, end)
            if operator == "c":
                self.insert()

    def _lines(self, operator: str, first: int, last: int) -> None:
        """Delete, change or copy whole lines."""
        area, count = self._area, self._area.document.line_count
        end = self._line_end(last)
        self._keep(area.get_text_range((first, 0), end), lines=True)
        if operator == "c":
            self._put("", (first, 0), end)
            self.insert()
        elif operator == "d":
            if last + 1 < count:
                self._put("", (first, 0), (last + 1, 0))
            else:
                self._put("", self._line_end(first - 1) if first else (0, 0), end)
            row = min(first, area.document.line_count - 1)
            line = area.document[row]
            area.move_cursor((row, len(line) - len(line.lstrip())))

    def _paste(self, *, after: bool) -> None:
        text = self._register
        if not text and not self._register_lines:
            return
        area, count = self._area, self._number()
        row, column = area.cursor_location
        if self._register_lines:
            text = "\n".join([text] * count)
            end = self._line_end(row)
            if after:
                self._put("\n" + text, end, end)
            else:
                self._put(text + "\n", (row, 0), (row, 0))
            area.move_cursor((row + after, 0))
        else:
            at = (row, min(column + after, len(area.document[row])))
            self._put(text * count, at, at)
            line, end_column = area.cursor_location
            area.move_cursor((line, max(0, end_column - 1)))

    # Motions.

    def _move(self, key: str) -> bool:
        if key in ("j", "k"):
            # The area's own way: it knows wrapped lines, and what lies beyond the first and the last.
            self._times(self._area.action_cursor_down if key == "j" else self._area.action_cursor_up)
        elif target := self._target(key, self._number()):
            self._area.move_cursor(target[0])
        else:
            return False
        self._forget()
        return True

    def _target(self, key: str, count: int, *, operating: bool = False) -> tuple[Location, _Reach] | None:
        """Where a motion leads, and how much of the way it takes with it; None for what is no motion."""
        document = self._area.document
        row, column = self._area.cursor_location
        line, last = document[row], document.line_count - 1
        match key:
            case "h":
                return (row, max(0, column - count)), "exclusive"
            case "l" | " ":
                return (row, min(len(line), column + count)), "exclusive"
            case "0":
                return (row, 0), "exclusive"
            case "^":
                return (row, len(line) - len(line.lstrip())), "exclusive"
            case "$":
                below = min(row + count - 1, last)
                return (below, len(document[below])), "exclusive"
            case "j" | "k":
                return (max(0, min(last, row + (count if key == "j" else -count))), 0), "lines"
            case "G" | "gg":
                wanted = count - 1 if self._count or self._operator_count else (last if key == "G" else 0)
                return (min(wanted, last), 0), "lines"
            case "w" | "b" | "e":
                return self._word(key, count, operating), "inclusive" if key == "e" else "exclusive"
        return None

    def _word(self, key: str, count: int, operating: bool) -> Location:
        text = self._area.text
        row, column = self._area.cursor_location
        at = start = sum(len(line) + 1 for line in self._area.document.lines[:row]) + column
        step = {"w": next_word, "b": word_before, "e": word_end}[key]
        for _ in range(min(count, _WIDEST)):
            at = step(text, at)
        if key == "w" and operating and (newline := text.rfind("\n", start, at)) >= 0 and not text[newline:at].strip():
            at = max(start, newline)  # an operator does not reach for the next line's first word
        row = text.count("\n", 0, at)
        return row, at - (text.rfind("\n", 0, at) + 1)

    def _on_word(self) -> bool:
        row, column = self._area.cursor_location
        return bool(self._area.document[row][column : column + 1].strip())

    # Small things.

    def _number(self) -> int:
        return min(int(self._count or 1), _WIDEST)

    def _times(self, action: Callable[[], None]) -> None:
        for _ in range(self._number()):
            action()
        self._forget()

    def _forget(self) -> None:
        self._count = self._operator = self._operator_count = ""
        self._after_g = False

    def _line_end(self, row: int) -> Location:
        row = min(row, self._area.document.line_count - 1)
        return row, len(self._area.document[row])

    def _keep(self, text: str, *, lines: bool = False) -> None:
        self._register, self._register_lines = text, lines

    def _cut(self, start: Location, end: Location) -> None:
        if start != end:
            self._keep(self._area.get_text_range(start, end))
            self._put("", start, end)

    def _put(self, text: str, start: Location, end: Location) -> None:
        """One edit, undone by itself."""
        self._area.history.checkpoint()
        self._area.replace(text, start, end, maintain_selection_offset=False)
        self._area.history.checkpoint()

    def _clamp(self) -> None:
        """In normal mode the cursor stands on a character, not behind the last one."""
        row, column = self._area.cursor_location
        longest = len(self._area.document[row]) - 1
        if self.mode == "normal" and column > max(0, longest):
            self._area.move_cursor((row, max(0, longest)), record_width=False)


def _kind(character: str) -> int:
    return 0 if character.isspace() else 1 if character.isalnum() or character == "_" else 2


def next_word(text: str, at: int) -> int:
    """The beginning of the word after the one at `at`; an empty line counts as a word."""
    end = len(text)
    if at < end and (kind := _kind(text[at])):
        while at < end and _kind(text[at]) == kind:
            at += 1
    elif at < end:
        at += 1
        if text[at - 1 : at + 1] == "\n\n":
            return at
    while at < end and not _kind(text[at]):
        if text[at] == "\n" and text[at - 1 : at] == "\n":
            return at
        at += 1
    return at


def word_before(text: str, at: int) -> int:
    """The beginning of the word before `at`, or of the one `at` is in."""
    at -= 1
    while at > 0 and not _kind(text[at]):
        if text[at] == "\n" and text[at - 1] == "\n":
            return at
        at -= 1
    while at > 0 and _kind(text[at - 1]) == _kind(text[at]):
        at -= 1
    return max(0, at)


def word_end(text: str, at: int) -> int:
    """The last character of the word after `at`, or of the one `at` is in the middle of."""
    end = len(text)
    at += 1
    while at < end and not _kind(text[at]):
        at += 1
    while at + 1 < end and _kind(text[at + 1]) == _kind(text[at]):
        at += 1
    return min(at, max(0, end - 1))
