"""What is kept of a conversation, as plain values: the same ones in memory and (encoded) in the database.

A message is `protocol.Message` from the database to the socket; what is added here is its place in the tree and how it
came about. Times are seconds since the epoch, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from localchat.protocol import Count, Message, PositiveCount, Sampling, Timings, Usage

Kind = Literal["chat", "ask"]
"""Chats of the screen, and questions of scripts: listed apart, searched together."""

State = Literal[
    "unfinished",  # an answer that is being written
    "done",
    "stopped",  # the person stopped it
    "failed",  # an error ended it
    "broken",  # the program that wrote it died
]


class ChatSettings(msgspec.Struct, omit_defaults=True, frozen=True):
    """What goes with every request of a chat: model ("" is the engine's own choice), system prompt, sampling, limits in
    tokens, stop strings, whether the model shall think, and what happens when the window is full.
    """

    model: str = ""
    system: str | None = None
    sampling: Sampling = Sampling()
    max_tokens: PositiveCount | None = None
    context: PositiveCount | None = None
    stop: list[str] = []
    thinking: bool | None = None
    gpu_layers: Count | None = None
    overflow: Literal["error", "slide"] = "error"


class Attachment(msgspec.Struct, omit_defaults=True, frozen=True):
    """A text that goes with a message: a file's, or one that was pasted or piped in (`name` "" for what was piped).

    `tokens` is its length for the model it was counted with, None where nobody counted.
    """

    name: str
    text: str
    tokens: int | None = None


class Draft(msgspec.Struct, omit_defaults=True, frozen=True):
    """What stands in the composer."""

    text: str = ""
    attachments: list[Attachment] = []


class Outcome(msgspec.Struct, omit_defaults=True, frozen=True):
    """How an answer came about: which model, its figures, and why it ended (`error_code` is that of `errors`).

    Durations are milliseconds. What was not read again and what was drafted is as in `protocol.Report`.
    """

    model: str = ""
    finish_reason: str | None = None
    error: str | None = None
    error_code: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    context: int | None = None
    cached_tokens: int | None = None
    restored_from: Literal["memory", "disk"] | None = None
    saved_ms: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    dropped_messages: int = 0
    seed: int | None = None
    warnings: list[str] = []
    thinking_ms: float | None = None
    reasoning_tokens: int = 0


class Node(msgspec.Struct):
    """A message in its tree. `message.content` is what was typed or answered; attachments are apart.

    `summary`: a text that stands, for the model, in the place of this message and all before it.
    """

    id: int
    parent: int | None
    message: Message
    state: State = "done"
    created: float = 0.0
    outcome: Outcome = Outcome()
    attachments: list[Attachment] = []
    summary: str | None = None


class ChatInfo(msgspec.Struct, frozen=True):
    """One line of a list of chats. `titled_by`: where the title comes from; `messages` counts the whole tree."""

    id: int
    kind: Kind
    title: str
    titled_by: Literal["words", "model", "person"]
    pinned: bool
    created: float
    updated: float
    settings: ChatSettings
    tip: int | None
    messages: int = 0


class Hit(msgspec.Struct, frozen=True):
    """A message that was found: `excerpt` is one line around what matched, `marks` the matches in it (start, end)."""

    chat: int
    node: int
    kind: Kind
    title: str
    role: str
    created: float
    excerpt: str
    marks: list[tuple[int, int]] = []
