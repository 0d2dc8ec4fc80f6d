"""Conversations from elsewhere: localchat's own JSON, and the `conversations.json` of ChatGPT and DeepSeek.

What kind of file it is shows in its content. `parse` reads a file whole or refuses it; `take_in` puts it into the
database as one transaction, so nothing is ever half imported, and what was there already is recognised and left alone.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from localchat.chats.exporting import FORMAT, VERSION, ExportFile, WholeChat
from localchat.chats.records import Node
from localchat.errors import UsageError
from localchat.safe_text import safe_line

if TYPE_CHECKING:
    from localchat.chats.store import Chats

SIZE_LIMIT_BYTES = 1 << 29
_MEMBER = re.compile(r"(^|/)(conversations[^/]*|localchat[^/]*)\.json$", re.IGNORECASE)
_NO_EXPORT = (
    "is no export of chats that localchat knows: give ChatGPT's or DeepSeek's conversations.json, or the .zip with it, "
    "or a file that `localchat chats export --format json` wrote"
)


@dataclass
class Parsed:
    """What a file holds. `left_out` counts, by its name in the plural, what could not be taken."""

    source: str
    chats: list[WholeChat]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class Taken:
    """What became of the chats of a file: `grown` were there, but with fewer messages."""

    new: int = 0
    grown: int = 0
    known: int = 0
    messages: int = 0


def parse(file: Path) -> Parsed:
    """Read an export. Raises `UsageError` with one sentence where it is none, or not whole."""
    name = safe_line(str(file))
    try:
        raws = _contents(file, name)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {name}: check the name") from error
    except IsADirectoryError as error:
        raise UsageError(f"{name} is a folder: name the conversations.json or the .zip in it") from error
    except OSError as error:
        raise UsageError(f"cannot read {name} ({error.strerror}): make it readable") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{name} is not a whole .zip file ({safe_line(str(error))}): download it again") from error
    parsed = [_parsed(raw, name) for raw in raws]
    whole = parsed[0]
    for more in parsed[1:]:
        whole.chats += more.chats
        whole.left_out += more.left_out
    return whole


def take_in(chats: Chats, parsed: Parsed, on_progress: Callable[[int], object] = lambda done: None) -> Taken:
    """Put everything into the database, or nothing of it; `on_progress` hears of each chat. Raises `ChatsError`.

    A chat is the one that is there already where it began at the same moment with the same message; then only the
    messages that it lacks are added.
    """
    taken = Taken()
    with chats.together():
        there: dict[float, list[int]] = {}
        for info in chats.chats(None):
            there.setdefault(info.created, []).append(info.id)
        for done, chat in enumerate(parsed.chats):
            on_progress(done)
            number = next((one for one in there.get(chat.created, []) if _is_same(chats, one, chat)), None)
            is_new = number is None
            if number is None:
                number = chats.create(
                    chat.settings, chat.kind, chat.title, titled_by=chat.titled_by, created=chat.created
                )
                there.setdefault(chat.created, []).append(number)
            added = _add_messages(chats, number, chat)
            if is_new:
                taken.new += 1
                if chat.pinned:
                    chats.pin(number, True)
            elif added:
                taken.grown += 1
            else:
                taken.known += 1
            taken.messages += added
    return taken


def _is_same(chats: Chats, number: int, chat: WholeChat) -> bool:
    there = [_likeness(node) for node in chats.tree(number).nodes.values() if node.parent is None]
    return any(_likeness(node) in there for node in chat.messages if node.parent is None) or not chat.messages


def _likeness(node: Node) -> tuple[str, str, float]:
    return node.message.role, node.message.text(), node.created


def _add_messages(chats: Chats, number: int, chat: WholeChat) -> int:
    """Add what the chat lacks; how many messages that were."""
    tree = chats.tree(number)
    before = tree.tip
    known: dict[tuple[int | None, tuple[str, str, float]], list[int]] = {}
    for node in tree.nodes.values():
        known.setdefault((node.parent, _likeness(node)), []).append(node.id)
    numbers: dict[int, int] = {}
    added = 0
    for node in chat.messages:
        parent = None if node.parent is None else numbers[node.parent]
        same = known.get((parent, _likeness(node)))
        if same:
            numbers[node.id] = same.pop(0)  # two siblings may be alike, word for word
            continue
        numbers[node.id] = chats.append(
            number,
            parent,
            node.message,
            "broken" if node.state == "unfinished" else node.state,
            outcome=node.outcome,
            attachments=node.attachments,
            created=node.created,
            summary=node.summary,
        )
        added += 1
    if added:
        tip = numbers[chat.tip] if chat.tip is not None else before
        if tip is not None:
            chats.go_to(number, tip)
    return added


def _contents(file: Path, name: str) -> list[bytes]:
    """The JSON documents of a file: itself, or those in it where it is a .zip."""
    from localchat.chats.attachments import opened

    with opened(file, name) as stream:
        if stream.read(4) != b"PK\x03\x04":
            stream.seek(0)
            return [_limited(stream.read(SIZE_LIMIT_BYTES + 1), name)]
        with zipfile.ZipFile(stream) as archive:
            members = [one for one in archive.infolist() if one.filename.lower().endswith(".json") and not one.is_dir()]
            named = [one for one in members if _MEMBER.search(one.filename)]
            chosen = named or (members if len(members) == 1 else [])
            if not chosen:
                raise UsageError(f"{name} holds no conversations.json: {_NO_EXPORT.partition(': ')[2]}")
            left, raws = SIZE_LIMIT_BYTES, []
            for member in sorted(chosen, key=lambda one: one.filename):
                # What a .zip says of its members' sizes need not be true.
                with archive.open(member) as content:
                    raws.append(_limited(content.read(left + 1), name, left))
                left -= len(raws[-1])
            return raws


def _limited(raw: bytes, name: str, limit: int = SIZE_LIMIT_BYTES) -> bytes:
    if len(raw) > limit:
        raise UsageError(f"{name} is larger than {SIZE_LIMIT_BYTES >> 20} MiB, unpacked: split it into several files")
    return raw


def _parsed(raw: bytes, name: str) -> Parsed:
    from localchat.chats import foreign_exports

    try:
        text = raw.decode("utf-8-sig")
        # Not msgspec: exports hold halves of surrogate pairs, which it refuses.
        document = json.loads(text)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not JSON (byte {error.start} is not UTF-8): download or export it again"
        ) from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name} is not JSON, or cut short (line {error.lineno}, column {error.colno}: {error.msg}): "
            "download or export it again"
        ) from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{name} {_NO_EXPORT}") from error
    if isinstance(document, dict) and document.get("format") == FORMAT:
        return Parsed("localchat", _own(document, name))
    parsed = foreign_exports.parse(document)
    if parsed is None:
        raise UsageError(f"{name} {_NO_EXPORT}")
    source, chats, left_out = parsed
    if not chats:
        raise UsageError(f"there is no chat in {name} that could be read: {source} may have changed its format")
    return Parsed(source, chats, left_out)


def _own(document: Any, name: str) -> list[WholeChat]:
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(f"{name} was written by a newer localchat: update localchat to read it")
    try:
        chats = msgspec.convert(document, ExportFile).chats
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} is damaged ({safe_line(str(error))}): export the chats again") from error
    for place, chat in enumerate(chats, 1):
        chat.messages = _in_order(chat, f"{name} is damaged (chat {place}", ": export the chats again")
    return chats


def _in_order(chat: WholeChat, before: str, after: str) -> list[Node]:
    """The messages, each after its parent; siblings stay in their order. Raises `UsageError` for what is no tree."""
    children: dict[int | None, list[Node]] = {}
    for node in chat.messages:
        children.setdefault(node.parent, []).append(node)
    found: dict[int, Node] = {}
    waiting = children.pop(None, [])[::-1]
    while waiting:
        node = waiting.pop()
        found[node.id] = node
        waiting += reversed(children.pop(node.id, []))  # once, should two messages have one number
    if len(found) != len(chat.messages) or (chat.tip is not None and chat.tip not in found):
        raise UsageError(f"{before}: its messages are no tree){after}")
    # In the order in which they were written, as far as that lets every parent come first.
    if all(node.parent is None or node.parent < node.id for node in found.values()):
        return [found[number] for number in sorted(found)]
    return list(found.values())
