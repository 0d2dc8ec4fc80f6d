"""The `conversations.json` of ChatGPT and of DeepSeek, as chats of ours.

Both are lists of conversations, each a `mapping` of nodes with a parent and children. Neither maker documents it, and
both change it: everything is looked at before it is believed, and what is not understood is left out and counted.
Branches stay branches. ChatGPT spreads one answer over several messages (thoughts, what it says before it uses a tool,
calls, the end): those become one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias

from localchat.chats.exporting import WholeChat
from localchat.chats.records import ChatSettings, Node, Outcome, State
from localchat.protocol import Message

Json: TypeAlias = dict[str, Any]
_CITATION = re.compile("\ue200[^\ue201]*\ue201|[\ue200-\ue206]")
"""ChatGPT's marks for sources: from one private character to another."""


@dataclass(frozen=True)
class _Piece:
    """What one node of a mapping says. A `system` text becomes the chat's system prompt."""

    role: Literal["system", "user", "assistant"]
    text: str = ""
    reasoning: str = ""
    model: str = ""
    state: State = "done"
    created: float | None = None
    thinking_ms: float | None = None

    def then(self, more: _Piece) -> _Piece:
        """One piece of an answer and the next, as one."""
        return replace(
            more,
            text="\n\n".join(part for part in (self.text, more.text) if part),
            reasoning="\n\n".join(part for part in (self.reasoning, more.reasoning) if part),
            model=more.model or self.model,
            created=self.created if self.created is not None else more.created,
            thinking_ms=more.thinking_ms if self.thinking_ms is None else self.thinking_ms,
        )


_Reader: TypeAlias = Callable[[Json, str, Counter[str]], _Piece | None]
"""A message, the role of the one before it, and what could not be taken so far."""


def parse(document: Any) -> tuple[str, list[WholeChat], Counter[str]] | None:
    """Whose export it is, its chats, and a count of what could not be taken; None where it is neither's."""
    if isinstance(document, dict):
        inner = document.get("conversations")
        document = inner if isinstance(inner, list) else [document]
    if not isinstance(document, list):
        return None
    entries = [entry for entry in document if isinstance(entry, dict) and isinstance(entry.get("mapping"), dict)]
    if not entries:
        return None
    left_out: Counter[str] = Counter()
    if len(document) > len(entries):
        left_out["entries that are no conversation"] = len(document) - len(entries)
    is_deepseek = any("inserted_at" in entry for entry in entries)
    chats = [_chat(entry, _deepseek if is_deepseek else _chatgpt, left_out) for entry in entries]
    left_out["empty chats"] += sum(not chat.messages for chat in chats)
    return (
        "DeepSeek" if is_deepseek else "ChatGPT",
        [chat for chat in chats if chat.messages],
        Counter({what: count for what, count in left_out.items() if count}),
    )


def _chat(entry: Json, read: _Reader, left_out: Counter[str]) -> WholeChat:
    mapping = {key: node for key, node in entry["mapping"].items() if isinstance(node, dict)}
    pieces = _Tree(mapping, read, left_out)
    began = _seconds(entry.get("create_time", entry.get("inserted_at")))
    times = [node.created for node in pieces.nodes if node.created]
    began = began if began is not None else min(times, default=0.0)
    for node in pieces.nodes:
        node.created = node.created or began
    title = entry.get("title")
    return WholeChat(
        title=title if isinstance(title, str) and title.strip() else "",
        titled_by="model",
        pinned=bool(entry.get("is_starred") or entry.get("pinned_time")),
        created=began,
        settings=ChatSettings(system=pieces.system),
        tip=pieces.tip(entry.get("current_node")),
        messages=pieces.nodes,
    )


class _Tree:
    """The nodes of a mapping as ours, each after its parent."""

    def __init__(self, mapping: dict[str, Json], read: _Reader, left_out: Counter[str]) -> None:
        self.nodes: list[Node] = []
        self.system: str | None = None
        self._mapping = mapping
        self._ends: dict[str, int] = {}  # which of our nodes shows what a node of the mapping says
        children: dict[str | None, list[str]] = {}
        for key, node in mapping.items():
            parent = node.get("parent")
            children.setdefault(parent if isinstance(parent, str) and parent in mapping else None, []).append(key)
        # Siblings come in the order that the parent names them.
        for key, node in mapping.items():
            named = node.get("children")
            order = {child: place for place, child in enumerate(_list(named)) if isinstance(child, str)}
            children.get(key, []).sort(key=lambda child: order.get(child, len(order)))
        # Each entry: a node, our node before it, and the pieces of an answer that are not written down yet.
        waiting: list[tuple[str, int | None, _Answer | None]] = [
            (key, None, None) for key in reversed(children.get(None, []))
        ]
        while waiting:
            key, before, answer = waiting.pop()
            message = mapping[key].get("message")
            role = "assistant" if answer else self.nodes[before].message.role if before is not None else ""
            piece = read(message, role, left_out) if isinstance(message, dict) else None
            if piece and piece.role == "system":
                self.system = self.system or piece.text or None
            elif piece and piece.role == "user":
                if answer:
                    before = self._written(answer)
                before, answer = self._add(piece, before), None
                self._ends[key] = before
            elif piece:
                answer = _Answer(
                    answer.piece.then(piece) if answer else piece, before, [*(answer.keys if answer else ()), key]
                )
            elif answer:
                answer.keys.append(key)
            after = children.get(key, [])
            if answer and not after:
                self._written(answer)
            waiting += [(child, before, answer) for child in reversed(after)]

    def tip(self, key: object) -> int | None:
        """Our node for the mapping's `key`, or for what comes before it; the last one where it names none."""
        seen: set[str] = set()
        while isinstance(key, str) and key in self._mapping and key not in seen:
            if key in self._ends:
                return self._ends[key]
            seen.add(key)
            key = self._mapping[key].get("parent")
        return len(self.nodes) - 1 if self.nodes else None

    def _written(self, answer: _Answer) -> int | None:
        """Write an answer down, once; where it has come to nothing, what it answers stands in its place."""
        if answer.node is None:
            piece = answer.piece
            answer.node = (
                self._add(piece, answer.before) if piece.text.strip() or piece.reasoning.strip() else answer.before
            )
            if answer.node is not None:
                self._ends.update(dict.fromkeys(answer.keys, answer.node))
        return answer.node

    def _add(self, piece: _Piece, before: int | None) -> int:
        created = piece.created or (self.nodes[before].created if before is not None else 0.0)
        message = Message(piece.role, piece.text, piece.reasoning or None)
        outcome = Outcome(model=piece.model, thinking_ms=piece.thinking_ms) if piece.role == "assistant" else Outcome()
        self.nodes.append(Node(len(self.nodes), before, message, piece.state, created, outcome))
        return len(self.nodes) - 1


@dataclass
class _Answer:
    """An answer that is being put together; `keys` are the nodes of the mapping that it was made of."""

    piece: _Piece
    before: int | None
    keys: list[str]
    node: int | None = None


def _chatgpt(message: Json, before: str, left_out: Counter[str]) -> _Piece | None:
    content, author, about = (_object(message.get(name)) for name in ("content", "author", "metadata"))
    role, kind = author.get("role"), content.get("content_type")
    created, model = _seconds(message.get("create_time")), _string(about.get("model_slug"))
    if role == "tool" or (role == "assistant" and message.get("recipient") not in ("all", None)):
        _count_parts(content, left_out)
        left_out["calls and results of tools"] += 1
        return None
    if (
        about.get("is_visually_hidden_from_conversation")
        or message.get("weight") == 0
        or role not in ("system", "user", "assistant")
    ):
        left_out["hidden messages"] += bool(_chatgpt_text(content, Counter()).strip()) and role != "system"
        return None
    if role == "assistant" and kind == "thoughts":
        thoughts = [_object(one) for one in _list(content.get("thoughts"))]
        said = (
            "\n\n".join(filter(None, (_string(one.get("summary")), _string(one.get("content"))))) for one in thoughts
        )
        return _Piece("assistant", reasoning="\n\n".join(filter(None, said)), model=model, created=created)
    if role == "assistant" and kind == "reasoning_recap":
        return _Piece("assistant", thinking_ms=_milliseconds(about.get("finished_duration_sec")))
    text = _chatgpt_text(content, left_out)
    for reference in map(_object, _list(about.get("content_references"))):
        matched, shown = _string(reference.get("matched_text")), _string(reference.get("alt"))
        if matched.startswith("\ue200"):
            text = text.replace(matched, shown)
    text = _CITATION.sub("", text)
    files = [_object(one) for one in _list(about.get("attachments"))]
    left_out["attached files"] += sum(not _string(one.get("mime_type")).startswith("image/") for one in files)
    if role != "assistant" and not text.strip():
        return None
    whole = message.get("status") in ("finished_successfully", None)
    return _Piece(role, text, model=model, created=created, state="done" if whole or role == "user" else "stopped")


def _chatgpt_text(content: Json, left_out: Counter[str]) -> str:
    _count_parts(content, left_out)
    kind = content.get("content_type")
    if kind == "code" and (code := _string(content.get("text"))):
        language = _string(content.get("language"))
        return f"```{'' if language == 'unknown' else language}\n{code}\n```"
    parts = [
        part if isinstance(part, str) else _string(part.get("text"))
        for part in _list(content.get("parts"))
        if isinstance(part, str) or _object(part).get("content_type") == "audio_transcription"
    ]
    return "\n\n".join(part for part in parts if part) or _string(content.get("text"))


def _count_parts(content: Json, left_out: Counter[str]) -> None:
    for part in _list(content.get("parts")):
        kind = _string(_object(part).get("content_type"))
        if "image" in kind:
            left_out["images"] += 1
        elif "audio_transcription" not in kind and ("audio" in kind or "video" in kind):
            left_out["recordings"] += 1
        elif kind and kind != "audio_transcription":
            left_out["parts of a kind that is not known"] += 1


def _deepseek(message: Json, before: str, left_out: Counter[str]) -> _Piece | None:
    said: dict[str, list[str]] = {}
    for fragment in map(_object, _list(message.get("fragments"))):
        kind, text = _string(fragment.get("type")).upper(), _string(fragment.get("content"))
        if kind in ("REQUEST", "RESPONSE", "ANSWER", "THINK"):
            said.setdefault("RESPONSE" if kind == "ANSWER" else kind, []).append(text)
        else:
            left_out["searches and other tools"] += 1
    left_out["attached files"] += len(_list(message.get("files")))
    left_out["searches and other tools"] += bool(_list(message.get("search_results")))
    created, model = _seconds(message.get("inserted_at")), _string(message.get("model"))
    if said:
        role = "user" if "REQUEST" in said else "assistant"
    else:
        # The older form has no fragments, and not always a role: then the two take turns.
        role = _string(message.get("role")).lower() or ("assistant" if before == "user" else "user")
    if role == "user":
        text = "\n\n".join(said.get("REQUEST", [])) or _string(message.get("content"))
        return _Piece("user", text, created=created) if text.strip() else None
    if role != "assistant":
        left_out["hidden messages"] += 1
        return None
    text = "\n\n".join(said.get("RESPONSE", [])) or ("" if said else _string(message.get("content")))
    thought = "\n\n".join(said.get("THINK", [])) or _string(message.get("reasoning_content"))
    took = _milliseconds(message.get("thinking_elapsed_secs"))
    return _Piece("assistant", text, thought, model, "done", created, took)


def _seconds(value: object) -> float | None:
    """A time in seconds since the epoch, from ChatGPT's number or DeepSeek's ISO date."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError):
            return None
    # Beyond these a date cannot be shown; a time that no chat can have is as good as none.
    return float(value) if isinstance(value, int | float) and 0 < value < 1 << 33 else None


def _milliseconds(seconds: object) -> float | None:
    """A duration in milliseconds, from seconds."""
    return seconds * 1000.0 if isinstance(seconds, int | float) and 0 <= seconds < 1 << 33 else None


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
