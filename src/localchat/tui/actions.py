"""Everything a person can do in the chat, in one table: it feeds the key bindings, the command palette and F1."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do: `key` in Textual's spelling, `label` for the palette and the key sheet.

    `method` is the name of the action method of the chat screen (of the app after "app."); without one the key is the
    composer's own, and here only to be listed.
    """

    name: str
    key: str
    label: str
    method: str = ""

    @property
    def key_label(self) -> str:
        """The key as a person reads it."""
        names = {"escape": "Esc", "pageup": "Page Up", "pagedown": "Page Down"}
        return " ".join(names.get(part, part.title()) for part in self.key.split("+"))


ACTIONS = (
    Action("send", "enter", "Send the message"),
    Action("newline", "ctrl+j", "New line (Shift Enter in some terminals)"),
    Action("history", "up", "Your earlier messages, from the first line"),
    Action("stop", "escape", "Stop the answer and keep what came", "stop"),
    Action("retry", "ctrl+r", "Ask again after a stop or a failure", "retry"),
    Action("new_chat", "ctrl+n", "Begin a new chat", "new_chat"),
    Action("thinking", "ctrl+t", "Show or fold the model's thinking", "toggle_thinking"),
    Action("page_up", "pageup", "Scroll back a page", "scroll('page_up')"),
    Action("page_down", "pagedown", "Scroll on a page", "scroll('page_down')"),
    Action("line_up", "alt+up", "Scroll back a line", "scroll('up')"),
    Action("line_down", "alt+down", "Scroll on a line", "scroll('down')"),
    Action("top", "ctrl+home", "Go to the beginning", "scroll('home')"),
    Action("bottom", "ctrl+end", "Go to the end, and stay there", "scroll('end')"),
    Action("interrupt", "ctrl+c", "Copy the selection, else stop; twice: quit", "interrupt"),
    Action("palette", "ctrl+p", "Find an action by its name", "app.command_palette"),
    Action("keys", "f1", "All keys", "keys"),
    Action("quit", "ctrl+q", "Quit", "app.quit"),
)


def bindings() -> list[Binding]:
    """The chat screen's bindings: they come before the composer's own meaning of a key."""
    return [
        Binding(action.key, action.method, action.label, show=False, priority=True, id=action.name)
        for action in ACTIONS
        if action.method and not action.method.startswith("app.")
    ]
