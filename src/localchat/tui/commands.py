"""What a message that begins with a slash means: a command, a slip, or just text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

SlashCommand = tuple[str, str, str]
"""A command's name, its argument ("" for none), and what it does."""


@dataclass(frozen=True, slots=True)
class Text:
    """To be sent."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A command and what follows it."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class Slip:
    """Neither: `sentence` says why, and what to do."""

    sentence: str


def meaning(text: str, commands: Sequence[SlashCommand]) -> Text | Call | Slip:
    """What to do with a message that is being sent.

    A first word that is no command is text where it is a path or more follows; two slashes stand for one that is meant.
    """
    stripped = text.strip()
    if not stripped.startswith("/"):
        return Text(text)
    if stripped.startswith("//"):
        literal = stripped[1:]
        return Text(literal) if not isinstance(meaning(literal, commands), Text) else Text(text)
    word, *more = stripped[1:].split(maxsplit=1) if stripped[1:2].strip() else [""]
    rest = more[0] if more else ""
    known = {name: argument for name, argument, _ in commands}
    if word in known:
        if rest and not known[word]:
            return Slip(f"/{word} takes nothing after it: remove that, or begin with // to send it as text")
        return Call(word, rest)
    if rest or "/" in word or not word:
        return Text(text)
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    advice = f"perhaps /{near[0]} is meant" if near else "type / to see them all"
    return Slip(f"there is no command /{word[:40]}: {advice}; with // it is sent as text")


def fitting(typed: str, commands: Sequence[SlashCommand]) -> list[SlashCommand]:
    """The commands whose name begins with `typed` (one that is typed to its end comes first: Enter must not make
    /settings of /set), then those that contain it.
    """
    begins = [command for command in commands if command[0].startswith(typed)]
    begins.sort(key=lambda command: command[0] != typed)
    contains = [command for command in commands if typed in command[0] and command not in begins]
    return begins + contains
