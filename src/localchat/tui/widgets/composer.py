"""Where the person writes: text that grows with what is typed, attachments as chips, commands, earlier prompts.

It shows and posts; what is sent, kept or counted is the screen's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import TextArea

from localchat.chats.records import Attachment, Draft
from localchat.errors import LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.commands import Call, SlashCommand, Slip, meaning
from localchat.tui.files import seen_from
from localchat.tui.widgets.chips import Chips
from localchat.tui.widgets.completion import Completion
from localchat.tui.widgets.field import Field, clean
from localchat.tui.widgets.offers import Offers
from localchat.tui.widgets.prompts import Prompts

if TYPE_CHECKING:
    from localchat.tui.vim import Vim

_OTHERS = ("ctrl+j", "alt+enter", "ctrl+enter")
"""What sends where Enter makes a line, and makes a line where Enter sends. Every terminal knows the first."""

_ATTACH = "attach"
"""The command that the composer does itself."""

_FOLD_LINES = 20
_FOLD_CHARACTERS = 2000
_AREA_CHARACTERS = 200_000  # what the text area can wrap and draw while somebody types, in all
_AREA_LINE = 20_000  # and in one line, which is wrapped anew with each key


class Composer(Vertical):
    """The text being written and what goes with it. Enter sends and Ctrl+J makes a line, or with
    `newline_on_enter` the other way round; `commands` are the slash commands; `folder` is where files are looked for.
    """

    DEFAULT_CSS = """
    Composer {
        height: auto;
        width: 100%;
        max-width: 104;
        border: round $border;
        border-subtitle-color: $muted;
        padding: 0 1;
        &:focus-within { border: round $faint; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g", "edit", show=False),
        Binding("f5,alt+u", "unfold", show=False),
    ]

    hint: reactive[str] = reactive("")
    """What is worth knowing about the text (its tokens); shown at the lower edge."""

    @dataclass
    class Sent(Message):
        """The person sent `text` with its attachments; the composer is empty again."""

        text: str
        attachments: list[Attachment]

    @dataclass
    class Command(Message):
        """The person typed a slash command."""

        name: str
        argument: str

    class Changed(Message):
        """The draft is another one: text or attachments changed."""

    class Left(Message):
        """The person goes on to the page."""

    @dataclass
    class Attached(Message):
        """An attachment came; `set_tokens` takes its `index` once its tokens are counted."""

        attachment: Attachment
        index: int

    @dataclass
    class Said(Message):
        """One sentence for the status line."""

        text: str

    def __init__(
        self,
        commands: Sequence[SlashCommand] = (),
        *,
        newline_on_enter: bool = False,
        vim: bool = False,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self._commands = tuple(commands)
        self._sending = _OTHERS if newline_on_enter else ("enter",)
        self._breaking = ("enter", "shift+enter") if newline_on_enter else (*_OTHERS, "shift+enter")
        self._prompts = Prompts()
        self._announced = Draft()
        self._completion = Completion()
        self._chips = Chips()
        self._field = Field(taken=self._take_key, pasted=self.paste, beyond=self._recall)
        self._vim = _vi_keys(self._field) if vim else None
        self._folder = folder or Path.cwd()
        self._offers = Offers(self, self._field, self._completion, commands, self._folder)

    def compose(self) -> ComposeResult:
        """The list of choices above, then chips, then the text."""
        yield self._completion
        yield self._chips
        yield self._field

    def on_mount(self) -> None:
        """Be ready for the first word."""
        self._show_edge()
        self._field.focus()

    # What the screen asks of it.

    @property
    def text(self) -> str:
        """What is written."""
        return self._field.text

    @text.setter
    def text(self, text: str) -> None:
        self._prompts.rest()
        self._write(text)

    @property
    def attachments(self) -> list[Attachment]:
        """What goes with it, as far as it has been read."""
        return self._chips.attachments

    @property
    def selected_text(self) -> str:
        """What is selected of the text."""
        return self._field.selected_text

    @property
    def cursor_blink(self) -> bool:
        """Whether the cursor blinks."""
        return self._field.cursor_blink

    @cursor_blink.setter
    def cursor_blink(self, blink: bool) -> None:
        self._field.cursor_blink = blink

    @property
    def mode(self) -> str:
        """With the keys of vi "NORMAL" or "INSERT", else nothing."""
        return self._vim.mode.upper() if self._vim else ""

    def focus(self, scroll_visible: bool = True) -> Composer:
        """Let the person write."""
        self._field.focus(scroll_visible)
        return self

    def draft(self) -> Draft:
        """Text and attachments as they are now."""
        return Draft(self.text, self.attachments)

    def put(self, draft: Draft) -> None:
        """Write `draft` in the place of what is there; this posts no `Changed`."""
        self._announced = draft
        self._prompts.rest()
        self._write(draft.text if _fits_area(draft.text) else "")
        self._chips.put(draft.attachments)
        if not _fits_area(draft.text):
            self._chips.fold(draft.text)

    def give_back(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
        """Put back a message that did not go out, before whatever has been typed since."""
        now = self.text
        self._write(f"{text}\n{now}" if now and text else text or now)
        self._chips.give_back(attachments)

    def set_history(self, prompts: Sequence[str]) -> None:
        """What was sent before, oldest first."""
        self._prompts = Prompts(prompts)

    def set_tokens(self, index: int, tokens: int) -> None:
        """The length of an attachment, by the index that `Attached` gave it; one that is gone is passed over."""
        self._chips.set_tokens(index, tokens)

    def escape(self, answering: bool = False) -> bool:
        """The person pressed Esc: True where the composer had a use for it. While an answer comes, only a list of
        choices is closed: Esc is for the answer then.
        """
        if self._offers.close():
            return True
        used = self._vim is not None and not answering and self._field.has_focus and self._vim.escape()
        self._show_edge()
        return used

    def attach(self, path: Path) -> None:
        """Read a file and attach it; what is wrong with it is said."""
        self._chips.read(path)

    def type(self, text: str) -> None:
        """Write at the cursor, as if it were typed."""
        self._field.focus()
        self._field.type(text)

    def redo(self) -> None:
        """Do again what was undone."""
        self._field.redo()

    def begin_attaching(self) -> None:
        """Open the list of files, as typing @ does."""
        self._field.focus()
        row, column = self._field.cursor_location
        before = self._field.document[row][:column]
        self._field.type("@" if not before or before[-1].isspace() else " @")

    # Keys.

    def _take_key(self, event: events.Key) -> bool:
        key = event.key
        if self._offers.take_key(key):
            return True
        if key in self._sending:
            self._send()
        elif key in self._breaking:
            self._insert_mode()
            self._field.type("\n")
        elif key in ("tab", "alt+up", "ctrl+up"):
            self.post_message(self.Left())
        elif key == "backspace" and self._at_beginning() and self._chips.last:
            self._chips.drop(self._chips.last.number)
        elif self._vim and self._vim.mode == "normal" and self._vim.press(key, event.character):
            self._show_edge()
        else:
            return False
        return True

    def _at_beginning(self) -> bool:
        return self._field.selection.is_empty and self._field.cursor_at_start_of_text

    def _insert_mode(self) -> None:
        if self._vim:
            self._vim.insert()
            self._show_edge()

    def _recall(self, by: int) -> bool:
        text = self._prompts.step(by, self.text)
        if text is not None:
            self._write(text)
        return text is not None or by < 0

    def _write(self, text: str) -> None:
        self._offers.reset()
        self.hint = ""
        self._field.text = clean(text)
        self._field.move_cursor(self._field.document.end)

    # Sending.

    def _send(self) -> None:
        if waiting := self._chips.waiting:
            self.post_message(self.Said(f"{waiting} is still being read: send when it is there"))
            return
        if not self.text.strip() and not self._chips.last:
            return
        meant = meaning(self.text, self._commands)
        if isinstance(meant, Slip):
            self.post_message(self.Said(safe_line(meant.sentence)))
            return
        self._prompts.add(self.text)
        self._insert_mode()
        # Emptied here and now: what is typed next belongs to the next message.
        self._write("")
        if isinstance(meant, Call):
            if meant.name != _ATTACH:
                self.post_message(self.Command(meant.name, meant.argument))
            elif meant.argument:
                self.attach(seen_from(self._folder, meant.argument))
            else:
                self.begin_attaching()
            return
        attachments = self.attachments
        self._chips.put(())
        self.post_message(self.Sent(meant.text, attachments))

    # Attachments.

    def paste(self, text: str) -> bool:
        """Take in what was pasted, wherever that was: a long one becomes an attachment."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._insert_mode()
        lines = text.count("\n") + (not text.endswith("\n"))
        if lines <= _FOLD_LINES and len(text) <= _FOLD_CHARACTERS:
            self._field.type(text)
            self._offers.offer_pasted(text)
            return True
        self._chips.fold(text)
        return True

    def action_unfold(self, number: int | None = None) -> None:
        """Put an attachment's text (the last one's, unless one is named) where the cursor is."""
        chip = self._chips.last if number is None else self._chips.find(number)
        if chip is None or chip.content is None:
            self.post_message(self.Said("there is no attachment to unfold"))
        elif not _fits_area(chip.content.text):
            self.post_message(self.Said(f"{safe_line(chip.name)} is too long to be edited here: it stays attached"))
        else:
            self._chips.drop(chip.number)
            self._field.type(chip.content.text)
            self._field.focus()

    @on(Chips.Removed)
    def _chip_removed(self, message: Chips.Removed) -> None:
        message.stop()
        self._chips.drop(message.number)
        self._field.focus()

    @on(Chips.Unfolded)
    def _chip_unfolded(self, message: Chips.Unfolded) -> None:
        message.stop()
        self.action_unfold(message.number)

    @on(Chips.Filled)
    def _chip_filled(self, message: Chips.Filled) -> None:
        message.stop()
        self.post_message(self.Attached(message.attachment, message.number))

    @on(Chips.Refused)
    def _file_refused(self, message: Chips.Refused) -> None:
        message.stop()
        self.post_message(self.Said(message.sentence))

    @on(Chips.Changed)
    def _chips_changed(self, message: Chips.Changed) -> None:
        message.stop()
        self._announce()

    # The person's own editor.

    def action_edit(self) -> None:
        """Let the person write in `$VISUAL` or `$EDITOR`."""
        self.run_worker(self._edit(), group="editor", exclusive=True)

    async def _edit(self) -> None:
        from localchat.tui.editor import edit_text

        before = self.text
        try:
            text = await edit_text(self.app, before)
        except LocalchatError as error:
            self.post_message(self.Said(safe_line(error.message)))
        else:
            if text != before:
                fits = _fits_area(text)
                if not fits:
                    self._chips.fold(text)
                    self.post_message(self.Said("the text is too long to be edited here: it is attached"))
                self._offers.reset()
                edited = clean(text) if fits else ""
                self._field.replace(edited, (0, 0), self._field.document.end, maintain_selection_offset=False)
            self._field.focus()

    # What it shows.

    @on(TextArea.Changed)
    def _text_changed(self, message: TextArea.Changed) -> None:
        message.stop()
        self._offers.look()
        self._announce()

    @on(TextArea.SelectionChanged)
    def _cursor_moved(self, message: TextArea.SelectionChanged) -> None:
        message.stop()
        self._offers.look()

    @on(Completion.Taken)
    def _choice_clicked(self, message: Completion.Taken) -> None:
        message.stop()
        self._offers.take(message.choice)
        self._field.focus()

    def _announce(self) -> None:
        draft = self.draft()
        if draft != self._announced:
            self._announced = draft
            self.post_message(self.Changed())

    def watch_hint(self) -> None:
        """Show the hint."""
        self._show_edge()

    def _show_edge(self) -> None:
        mode = self.mode if not self._vim or not self._vim.pending else f"{self.mode} {self._vim.pending}"
        self.border_subtitle = "  ·  ".join(part for part in (mode, safe_line(self.hint)) if part)


def _fits_area(text: str) -> bool:
    """Whether a text can be edited without every key being felt."""
    return len(text) <= _AREA_CHARACTERS and max(map(len, text.split("\n"))) <= _AREA_LINE


def _vi_keys(field: Field) -> Vim:
    """The keys of vi, for those who want them: nobody else waits for the import."""
    from localchat.tui.vim import Vim

    return Vim(field)
