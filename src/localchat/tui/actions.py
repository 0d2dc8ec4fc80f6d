"""Everything a person can do in the chat, in one table: it feeds bindings, command palette, slash commands and F1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

from localchat.errors import UsageError
from localchat.paths import paths
from localchat.safe_text import safe_line
from localchat.settings import settings

Where = Literal["chat", "composer", "page", "sidebar"]

_NAMES = {
    "escape": "Esc",
    "pageup": "Page Up",
    "pagedown": "Page Down",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "slash": "/",
    "at": "@",
    "underscore": "_",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do: `key` in Textual's spelling (several with commas; "" for none), `label` for palette and F1.

    `method` is the name of the action method of the chat screen (of the app after "app."); without one the key is a
    widget's own, and here only to be listed. `where` the key works: everywhere in the chat, or while composer, page
    (reading mode) or sidebar has the focus. `slash` is its name as a slash command, whose `argument` is named ("" for
    none; in brackets where it may be left out).
    """

    name: str
    key: str
    label: str
    method: str = ""
    where: Where = "chat"
    slash: str = ""
    argument: str = ""

    def keys(self, own: dict[str, str]) -> str:
        """The keys in Textual's spelling: the person's `own`, where they set some for this action."""
        return own.get(self.name, self.key)


def key_label(keys: str) -> str:
    """Keys in Textual's spelling as a person reads them: "Ctrl R", "Page Up"; alternatives with a comma."""
    return ", ".join(_one_label(key.strip()) for key in keys.split(",") if key.strip())


def _one_label(key: str) -> str:
    *held, last = key.split("+")
    # A single letter is pressed as it stands: y is not Y.
    name = _NAMES.get(last) or (last if len(last) == 1 and not held else last.title())
    return " ".join([*(part.title() for part in held), name])


ACTIONS = (
    # Writing.
    Action("send", "enter", "Send the message", where="composer"),
    Action("newline", "ctrl+j", "New line (Shift Enter too, where the terminal reports it)", where="composer"),
    Action("history", "up", "Your earlier messages, from the first line", where="composer"),
    Action("attach", "at", "Attach a file: type @ and a part of its name", "attach", "composer", "attach", "FILE"),
    Action("command", "slash", "A command: type / and a part of its name", where="composer"),
    Action("editor", "ctrl+g", "Write in your own editor", "editor", "composer", "editor"),
    Action("unfold", "f5,alt+u", "Unfold the last attachment into the text", where="composer"),
    Action("drop", "backspace", "Remove the last attachment, from the beginning of the text", where="composer"),
    Action("undo", "ctrl+underscore,alt+z", "Undo (Ctrl Y does it again)", where="composer"),
    Action("word", "alt+b,alt+f", "A word back, a word on", where="composer"),
    Action("delete_word", "ctrl+w,alt+d", "Delete the word before, the word after", where="composer"),
    Action("delete_line", "ctrl+u,ctrl+k", "Delete to the line's beginning, to its end", where="composer"),
    Action("select_all", "alt+a", "Select everything", where="composer"),
    # The answer.
    Action("stop", "escape", "Stop the answer and keep what came", "stop", slash="stop"),
    Action("again", "ctrl+r", "Ask again: another answer beside the last one", "again", slash="retry"),
    Action("go_on", "ctrl+o", "Go on with an answer that ended too early", "go_on", slash="continue"),
    Action("edit", "f2", "Edit your last message: the old one stays beside it", "edit", slash="edit"),
    # Chats.
    Action("new_chat", "ctrl+n", "Begin a new chat", "new_chat", slash="new"),
    Action("last_chat", "ctrl+l", "Go on with your last chat", "last_chat", slash="last"),
    Action("sidebar", "ctrl+b", "Your chats", "sidebar", slash="chats"),
    Action("find", "ctrl+f", "Search in everything", "find", slash="find", argument="[WORDS]"),
    Action("title", "", "Give this chat a title", "title", slash="title", argument="[TITLE]"),
    Action("export", "", "Write this chat to a file (.md or .json)", "export", slash="export", argument="[FILE]"),
    Action("delete", "", "Delete this chat (it can be undone)", "delete", slash="delete"),
    # The model.
    Action("model", "f3", "Choose another model", "model", slash="model", argument="[NAME]"),
    Action("settings", "f4", "System prompt, sampling, presets", "settings", slash="settings"),
    Action("system", "", "Set the system prompt of this chat", "system", slash="system", argument="TEXT"),
    Action("set", "", "Set a sampling value of this chat", "set", slash="set", argument="NAME VALUE"),
    Action(
        "think", "f6", "Let the model think: its own way, yes, no", "think", slash="think", argument="[on|off|auto]"
    ),
    Action("overflow", "", "When the window is full: ask me, or slide", "overflow", slash="overflow"),
    Action("summarise", "", "Put a summary in the place of the older messages", "summarise", slash="summarise"),
    # Looking.
    Action("thinking", "ctrl+t", "Show or fold the model's thinking", "toggle_thinking"),
    Action("figures", "f7", "Show or hide the figures of each answer", "toggle_figures", slash="figures"),
    Action("theme", "f8", "The next theme: dark, light, high contrast, ANSI", "theme", slash="theme"),
    Action("page_up", "pageup", "Scroll back a page", "scroll('page_up')"),
    Action("page_down", "pagedown", "Scroll on a page", "scroll('page_down')"),
    Action("top", "ctrl+home", "Go to the beginning", "scroll('top')"),
    Action("bottom", "ctrl+end", "Go to the end, and stay there", "scroll('bottom')"),
    Action("read", "ctrl+up,alt+up,tab", "Go up into the page, and read by keys", "read", "composer"),
    Action("interrupt", "ctrl+c", "Copy the selection, else stop; twice: quit", "interrupt"),
    Action("palette", "ctrl+p", "Find an action by its name", "app.command_palette"),
    Action("keys", "f1", "All keys", "keys", slash="help"),
    Action("suspend", "ctrl+z", "Suspend to the shell (`fg` comes back)", "app.suspend_process"),
    Action("quit", "ctrl+q", "Quit", "app.quit", slash="quit"),
    # Reading by keys: while the page has the focus.
    Action("message_up", "up,k", "The message before", "move(-1, 'message')", "page"),
    Action("message_down", "down,j", "The message after", "move(1, 'message')", "page"),
    Action("block_up", "shift+up,K", "The block before", "move(-1, 'block')", "page"),
    Action("block_down", "shift+down,J", "The block after", "move(1, 'block')", "page"),
    Action("page_top", "home,g", "The first message", "scroll('top')", "page"),
    Action("page_bottom", "end,G", "The last message", "scroll('bottom')", "page"),
    Action("sibling_before", "left,h", "The version before", "walk(-1)", "page"),
    Action("sibling_after", "right,l", "The version after", "walk(1)", "page"),
    Action("copy", "y", "Copy the message", "copy", "page", "copy"),
    Action("copy_code", "c", "Copy the code block", "copy_code", "page", "code"),
    Action("edit_this", "e", "Edit your message: the old one stays beside it", "edit_this", "page"),
    Action("again_this", "r", "Ask this again: another answer beside it", "again_this", "page"),
    Action("go_on_this", "o", "Go on with this answer", "go_on_this", "page"),
    Action("thinking_this", "t", "Show or fold this answer's thinking", "toggle_this", "page"),
    Action("link", "u", "Show the links of the message, and open one", "link", "page", "links"),
    Action("write", "escape,tab,i", "Back to writing", "write", "page"),
    # The list of chats: its own keys, listed here.
    Action("list_open", "enter", "Open the chat", where="sidebar"),
    Action("list_new", "n", "Begin a new chat", where="sidebar"),
    Action("list_rename", "r,f2", "Rename it", where="sidebar"),
    Action("list_pin", "p", "Pin it to the top", where="sidebar"),
    Action("list_delete", "d,delete", "Delete it", where="sidebar"),
    Action("list_undo", "u", "Bring back what was deleted last", where="sidebar"),
    Action("list_filter", "slash", "Filter by title", where="sidebar"),
    Action("list_leave", "escape", "Back to writing", where="sidebar"),
)


def bindings(where: Where) -> list[Binding]:
    """The bindings of one place; Textual's keymap puts the person's own keys into them.

    Those of the chat come before the composer's own meaning of a key; those of the page work only where it has the
    focus.
    """
    here = [action for action in ACTIONS if action.where == where and action.key and action.method]
    return [
        Binding(one.key, f"screen.{one.method}", one.label, show=False, priority=where == "chat", id=one.name)
        for one in here
        if not one.method.startswith("app.")
    ]


def slash_commands() -> list[tuple[str, str, str]]:
    """Name, argument and label of each slash command."""
    return [(action.slash, action.argument, action.label) for action in ACTIONS if action.slash]


def by_slash(name: str) -> Action | None:
    """The action behind a slash command."""
    return next((action for action in ACTIONS if action.slash == name), None)


def key_of(action: str) -> str:
    """The first key of an action as a person reads it: their own, where they set one; "" where it has none."""
    found = next((one for one in ACTIONS if one.name == action), None)
    return key_label(own_keys(found).partition(",")[0]) if found else ""


def own_keys(action: Action) -> str:
    """The keys of an action in Textual's spelling, as the person's settings have them."""
    own = settings()
    swapped = {"send": "ctrl+j", "newline": "enter"} if own.newline_on_enter else {}
    return action.keys({**swapped, **own.keys})


def checked_keys() -> dict[str, str]:
    """The person's own keys, by action. Raises `UsageError` for a name that is none, and for the keys of writing."""
    keys = settings().keys
    known = {action.name for action in ACTIONS if action.where != "composer"}
    for name in keys:
        where = f"{paths().settings}: [keys]"
        if any(action.name == name for action in ACTIONS) and name not in known:
            raise UsageError(f"{where} {name}: the keys of writing are fixed; see newline_on_enter and vim")
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]}?" if close else "known are " + ", ".join(sorted(known))
            raise UsageError(f"{where} has no action {safe_line(name)!r}: {meant}")
    return keys
