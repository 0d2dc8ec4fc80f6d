"""Conversations as files for elsewhere: Markdown for people and other programs, JSON with everything for localchat.

Knows records and the tree, and no database.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from localchat import __version__
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Kind, Node
from localchat.chats.requests import in_fence
from localchat.chats.tree import Tree
from localchat.safe_text import safe_line

FORMAT = "localchat chats"
VERSION = 1
"""Goes up where an older localchat could not read the file as it is meant; fields that it may ignore do not count."""


class WholeChat(msgspec.Struct, kw_only=True):
    """A chat with everything that is kept of it. Numbers of messages mean something only within the chat."""

    title: str = ""
    titled_by: Literal["words", "model", "person"] = "person"
    kind: Kind = "chat"
    pinned: bool = False
    created: float = 0.0
    updated: float = 0.0
    settings: ChatSettings = ChatSettings()
    tip: int | None = None
    messages: list[Node] = []

    @classmethod
    def of(cls, info: ChatInfo, tree: Tree) -> WholeChat:
        """A chat as it is kept."""
        return cls(
            title=info.title,
            titled_by=info.titled_by,
            kind=info.kind,
            pinned=info.pinned,
            created=info.created,
            updated=info.updated,
            settings=info.settings,
            tip=tree.tip,
            messages=list(tree.nodes.values()),
        )


class ExportFile(msgspec.Struct, kw_only=True):
    """The JSON document; `localchat` is the version that wrote it."""

    format: str = FORMAT
    version: int = VERSION
    localchat: str = __version__
    chats: list[WholeChat] = []


def as_json(chats: Sequence[WholeChat]) -> bytes:
    """A JSON document from which `importing` makes the same chats again, every branch and figure included."""
    return msgspec.json.format(msgspec.json.encode(ExportFile(chats=list(chats))), indent=1) + b"\n"


def as_markdown(info: ChatInfo, tree: Tree, *, every_branch: bool = False) -> str:
    """A chat as Markdown: the path from root to tip, or every branch, each message with its number and what it follows.

    Messages are given as they are, so headings and fences in them stay what they were.
    """
    parts = [f"# {safe_line(info.title) or 'Untitled'}", " · ".join(_about(info, tree))]
    if info.settings.system:
        parts += ["**System prompt**", _quoted(info.settings.system)]
    for node in every_message(tree) if every_branch else tree.path():
        parts.append(f"## {speaker(node)}" + (f" {_place(tree, node)}" if every_branch else ""))
        parts += _message(node)
    return "\n\n".join(parts) + "\n"


def document(info: ChatInfo, tree: Tree, file: Path) -> bytes:
    """A chat in the form that the name of its file asks for: JSON, or else Markdown."""
    if file.suffix.lower() == ".json":
        return as_json([WholeChat.of(info, tree)])
    # Half a character, as a model can leave one, is no text that could be encoded.
    return as_markdown(info, tree).encode(errors="replace")


def write(file: Path, raw: bytes, *, over: bool = False) -> None:
    """Write a file for the person's eyes only (0600), in the place of one that is there only with `over`.

    Raises `OSError`, `FileExistsError` among them.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if over else os.O_EXCL)
    with os.fdopen(os.open(file, flags, 0o600), "wb") as target:
        target.write(raw)


def file_name(info: ChatInfo, ending: str) -> str:
    """A name for a chat's file: its number, which is unique, and what of its title every file system takes."""
    words = re.sub(r"[^\w-]+", "-", safe_line(info.title).lower()).strip("-_")
    # File systems count bytes.
    return f"{info.id}-{words.encode()[:80].decode(errors='ignore')}".rstrip("-_") + f".{ending}"


def every_message(tree: Tree) -> Iterator[Node]:
    """All messages of a tree, each branch to its end before the next one begins."""
    open_nodes = [node for node in reversed(list(tree.nodes.values())) if node.parent is None]
    children: dict[int, list[Node]] = {}
    for node in tree.nodes.values():
        if node.parent is not None:
            children.setdefault(node.parent, []).append(node)
    while open_nodes:
        node = open_nodes.pop()
        yield node
        open_nodes += reversed(children.get(node.id, []))


def speaker(node: Node) -> str:
    """Who said it, as a label."""
    if node.message.role == "user":
        return "You"
    if node.message.role == "assistant":
        return f"Model ({safe_line(node.outcome.model)})" if node.outcome.model else "Model"
    return node.message.role.title()


def ending(node: Node) -> str:
    """How an answer ended where it did not come to its own end; "" where it did."""
    if node.state == "stopped":
        return "stopped"
    if node.state == "failed":
        return f"broke off: {safe_line(node.outcome.error or 'for a reason that was not kept')}"
    if node.state in ("broken", "unfinished"):
        return "broke off: the program that wrote it ended"
    return "ended at its limit of tokens" if node.outcome.finish_reason == "length" else ""


def thinking_label(node: Node) -> str:
    """What stands above a model's thinking."""
    took = node.outcome.thinking_ms
    return f"Thinking ({took / 1000:.1f} s)" if took else "Thinking"


def date(seconds: float) -> str:
    """A time as a person reads it, in the local zone."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "no date"  # a file that was imported may say anything


def models(tree: Tree) -> list[str]:
    """The models that answered on the path, in the order of their first answer."""
    return list(dict.fromkeys(safe_line(node.outcome.model) for node in tree.path() if node.outcome.model))


def fenced(attachment: Attachment) -> str:
    """An attachment: its name, then its text."""
    return f"**{safe_line(attachment.name) or 'piped in'}**\n\n{in_fence(attachment.text)}"


def _about(info: ChatInfo, tree: Tree) -> Iterable[str]:
    yield date(info.created)
    yield from models(tree)
    yield "1 message" if info.messages == 1 else f"{info.messages} messages"


def _message(node: Node) -> Iterator[str]:
    yield from map(fenced, node.attachments)
    if thought := node.message.reasoning_content:
        yield f"<details>\n<summary>{thinking_label(node)}</summary>\n\n{thought.strip()}\n\n</details>"
    if text := node.message.text().strip("\n"):
        yield text
    if said := ending(node):
        yield f"*({said})*"


def _place(tree: Tree, node: Node) -> str:
    siblings = tree.siblings(node.id)
    version = f", version {siblings.index(node.id) + 1} of {len(siblings)}" if len(siblings) > 1 else ""
    after = f", after {node.parent}" if node.parent is not None else ""
    return f"(message {node.id}{after}{version})"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
