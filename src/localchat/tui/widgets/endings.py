"""What stands under an answer: how it ended and the key that helps, and its figures on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from localchat.chats.reply import Reply
from localchat.safe_text import safe_line
from localchat.tui.widgets.pieces import Part, Words
from localchat.tui.words import brief, duration, tokens


def ending(reply: Reply, key: Callable[[str], str]) -> Iterator[tuple[Part, Words]]:
    """What a reader should know about how an answer came to its end; `key` names the key of an action."""
    helps = f" ({key('go_on')} goes on)" if reply.text.strip() else f" ({key('again')} asks again)"
    for warning in reply.warnings:
        yield "notes", [(safe_line(warning), "muted")]
    if reply.dropped_messages:
        yield "notes", [(f"the model no longer saw the first {reply.dropped_messages} messages", "muted")]
    if (saved := reply.saved_seconds) is not None:
        yield "notes", [(f"read {tokens(reply.cached_tokens or 0)} from cache, saved {duration(saved)}", "muted")]
    if reply.state == "broken":
        yield "notes", [(reply.note or f"broke off: the program ended in the middle{helps}", "muted")]
    elif reply.state == "stopped":
        when = " before the message was sent" if reply.unsent else helps
        yield "notes", [(f"stopped{when}", "muted")]
    elif reply.state == "failed":
        said = safe_line(reply.error.message) if reply.error else "it failed"
        if reply.unsent:
            helps = f" ({key('send')} sends it again)"
        elif reply.text.strip():
            helps = f" ({key('go_on')} goes on, {key('again')} asks again)"
        elif said.endswith("ask again"):
            helps = f" ({key('again')})"
        yield "error", [(said + helps, "error")]
    elif reply.finish_reason == "length":
        full = reply.usage and reply.context and reply.usage.total_tokens >= reply.context
        why = "the context window is full" if full else "the limit of tokens was reached"
        yield "notes", [(f"cut off: {why}{helps}", "muted")]
    elif not reply.text.strip():
        yield "notes", [(f"the model gave no answer ({key('again')} asks again)", "muted")]


def figures(reply: Reply) -> str:
    """The figures of an answer in one line; those that nobody told are left out."""
    known: list[str] = []
    if reply.usage:
        known.append(f"{tokens(reply.usage.prompt_tokens)} read")
    if reply.cached_tokens is not None:
        place = " the disk" if reply.restored_from == "disk" else ""
        saved = f" ({brief(reply.saved_ms / 1000)} saved)" if reply.saved_ms else ""
        known.append(f"{reply.cached_tokens:,} from{place} cache{saved}")
    if made := reply.completion_tokens():
        known.append(f"{made:,} made")
    if reply.drafted_tokens:
        known.append(f"{reply.accepted_tokens:,} of {reply.drafted_tokens:,} drafted tokens accepted")
    if speed := reply.tokens_per_second(0.0):
        known.append(f"{speed:.{1 if speed < 10 else 0}f} tokens/s")
    if reply.timings and reply.timings.total_ms:
        known.append(duration(reply.timings.total_ms / 1000))
    if reply.model:
        known.append(safe_line(reply.model).rsplit("/", 1)[-1].removesuffix(".gguf"))
    return " · ".join(known)
