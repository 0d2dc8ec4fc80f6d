"""What stands on the page before the first message: who will answer, and the keys that matter."""

from __future__ import annotations

from collections.abc import Callable

from localchat.safe_text import safe_line
from localchat.tui.widgets.pieces import Ink, Words


def welcome_words(model: str, offline: bool, last: str | None, key: Callable[[str], str]) -> Words:
    """The welcome. `last` is the title of the chat that can be continued, `key` names the key of an action."""
    words: list[tuple[str, Ink]] = [
        ("localchat\n\n", "accent"),
        (safe_line(model) or "The default model", "strong"),
        (" will answer", "muted"),
        ("; nothing leaves this machine: offline is set\n\n" if offline else ".\n\n", "muted"),
    ]
    keys = [
        (key("send"), f"sends; {key('newline')} begins a new line"),
        (key("stop"), "stops an answer and keeps what came"),
    ]
    if last is not None:
        keys.append((key("last_chat"), f"continues your last chat: {safe_line(last) or 'untitled'}"))
    keys.append((key("keys"), "shows every other key"))
    wide = max(len(name) for name, _ in keys)
    for number, (name, what) in enumerate(keys):
        words += [(f"{name:<{wide}}  ", "text"), (what + ("\n" if number < len(keys) - 1 else ""), "muted")]
    return words
