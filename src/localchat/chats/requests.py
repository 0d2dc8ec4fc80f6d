"""From a path of messages to the request that an engine gets: what of a conversation the model shall see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from localchat.chats.records import Attachment, ChatSettings, Node
from localchat.protocol import ChatRequest, Extras, Message, StreamOptions

_SUMMARY = "What was said before, in short:\n\n"


def request(path: Sequence[Node], settings: ChatSettings, *, go_on: bool = False, keep: bool = True) -> ChatRequest:
    """The request for an answer to `path`, which ends with a message of the person.

    With `go_on` it ends with an answer that broke off, and the model is to continue it. Without `keep` the engine
    leaves nothing of it on the disk.
    """
    seen, summary = visible(path)
    system = "\n\n".join(part for part in (settings.system, summary and _SUMMARY + summary) if part)
    messages = [Message("system", system)] if system else []
    messages += [as_sent(node, with_thinking=go_on and node is path[-1]) for node in seen]
    return ChatRequest(
        messages=messages,
        model=settings.model,
        stream=True,
        stream_options=StreamOptions(include_usage=True),
        max_tokens=settings.max_tokens,
        stop=settings.stop or None,
        localchat=Extras(
            thinking=settings.thinking,
            context=settings.context,
            gpu_layers=settings.gpu_layers,
            overflow=settings.overflow,
            continue_final=go_on,
            began=path[0].created or None,
            progress=True,
            keep=keep,
        ),
        **msgspec.structs.asdict(settings.sampling),
    )


def visible(path: Sequence[Node]) -> tuple[list[Node], str | None]:
    """The messages of a path that are sent, and the summary that stands for those before them.

    A message that never got an answer is left out, and so is that answer: many chat templates refuse two messages of
    one role in a row.
    """
    start = max((number + 1 for number, node in enumerate(path[:-1]) if node.summary is not None), default=0)
    summary = path[start - 1].summary if start else None
    rest = path[start:]
    seen: list[Node] = []
    for node, after in zip(rest, [*rest[1:], None], strict=False):
        if after is None:
            seen.append(node)
        elif node.message.role == "assistant":
            if node.message.text():
                seen.append(node)
        elif after.message.role == "assistant" and (after.message.text() or after is path[-1]):
            seen.append(node)
    return seen, summary


def as_sent(node: Node, *, with_thinking: bool = False) -> Message:
    """A message as the engine gets it: attachments before the words.

    Thinking is not sent back, unless the model is to go on with it: services that speak this protocol refuse it.
    """
    message = node.message
    if message.role == "assistant":
        return message if with_thinking else msgspec.structs.replace(message, reasoning_content=None)
    return msgspec.structs.replace(message, content=composed(message.text(), node.attachments))


def composed(words: str, attachments: Iterable[Attachment]) -> str:
    """One prompt: what is attached, each with its name, and the words last.

    What is long comes first and what changes comes last, so that a second question about the same text finds it read.
    """
    parts = [_fenced(attachment) if attachment.name else attachment.text for attachment in attachments]
    if words.strip():
        parts.append(words)
    return "\n\n".join(parts)


def _fenced(attachment: Attachment) -> str:
    """A file as the prompt shows it: its name, then its text."""
    return f"{attachment.name}:\n{in_fence(attachment.text)}"


def in_fence(text: str) -> str:
    """A text in a fence that the text cannot close."""
    text = text.rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text}\n{fence}"
