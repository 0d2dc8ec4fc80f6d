"""The line at the bottom: what is happening (left), and what is true about model, context and memory (right)."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from localchat.chats.reply import Reply
from localchat.safe_text import safe_line
from localchat.tui.actions import key_of
from localchat.tui.words import bar, clipped, duration, fitting, rate, size, tokens

_BETWEEN = "  ·  "
_CONTEXT = "context "
_BAR = 10
_MODEL = 32  # cells that a model's name may take


def state_text(reply: Reply, now: float) -> str:
    """What is happening with a reply, in a few words; the first is the most important, parts end with commas."""
    match reply.state:
        case "waiting":
            return "waiting for the engine"
        case "preparing":
            return safe_line(reply.note) or "fetching a model"
        case "queued":
            return "waiting for its turn"
        case "loading":
            return "loading the model" + _percent(reply) + _left(reply)
        case "reading":
            return _reading(reply)
        case "thinking":
            count = f", {tokens(reply.reasoning_tokens)}" if reply.reasoning_tokens else ""
            return f"thinking {duration(reply.thinking_seconds(now) or 0.0)}{count}"
        case "answering":
            speed = reply.tokens_per_second(now)
            return f"answering {rate(speed)}" if speed else "answering"
        case "stopped":
            return "stopped" + _helps(reply)
        case "failed":
            return "failed" + _helps(reply)
        case "broken":
            return "broken off" + _helps(reply)
        case "done":
            return ""


def facts(
    reply: Reply | None,
    model: str,
    context: int | None,
    used: int | None,
    offline: bool,
    *,
    memory: int | None = None,
    unkept: bool = False,
    mode: str = "",
) -> list[str]:
    """What is worth knowing, the most important first: a narrow screen leaves the last ones out.

    `used` of `context` tokens are taken, `memory` is what the engine holds (bytes). `unkept`: this chat is not written
    to disk. `mode`: what the keys do now, where that is not the usual ("editing", "normal").
    """
    known = [safe_line(mode)] if mode else []
    known += [clipped(safe_line(model), _MODEL)] if model else []
    known += ["offline"] if offline else []
    known += ["not kept"] if unkept else []
    if used is not None:
        known.append(f"{_CONTEXT}{used:,} of {context:,}" if context else f"{_CONTEXT}{used:,}")
    if reply and not reply.running and reply.completion_tokens():
        speed = reply.tokens_per_second(0.0)
        known.append(tokens(reply.completion_tokens()) + (f", {rate(speed)}" if speed else ""))
    if memory:
        known.append(f"memory {size(memory)}")
    return known


class Status(Widget):
    """One line. At its left end stands the first of these that is set: `trouble` (what is wrong and stays wrong),
    `hint` (a word on what the person just did), `state` (the answer), `download` (a model that is on its way).

    `share` is how much of the context window is taken, 0 to 1.
    """

    DEFAULT_CSS = """
    Status {
        /* One line, but not a fixed one: beside a child of fixed height Textual forgets the composer's `max-height`
           in vh when it asks how high the foot is. */
        height: auto;
        min-height: 1;
        max-height: 1;
        color: $muted;
        &.-active { color: $foreground; }
    }
    """

    state: reactive[str] = reactive("")
    hint: reactive[str] = reactive("")
    trouble: reactive[str] = reactive("")
    download: reactive[str] = reactive("")
    share: reactive[float | None] = reactive(None)
    facts: reactive[tuple[str, ...]] = reactive(())

    def render(self) -> RenderResult:
        """The state at the left end, the facts that fit at the right one."""
        left, style = self._left(self.size.width)
        shown = list(self.facts)
        if self.download and (self.trouble or self.hint or self.state):
            shown.insert(0, self.download.split(", ")[0])
        room = self.size.width - cell_len(left) - 3
        while shown and cell_len(_BETWEEN.join(shown)) > room:
            shown.pop()
        right: list[str | tuple[str, str]] = []
        for fact in shown:
            right += [(_BETWEEN, "$faint")] if right else []
            right += [*self._meter(fact, room - cell_len(_BETWEEN.join(shown))), (fact, "$muted")]
        told = Content.assemble(*right)
        space = max(1, self.size.width - cell_len(left) - told.cell_length)
        return Content.assemble((left, style), " " * space, told)

    def _left(self, width: int) -> tuple[str, str]:
        if self.trouble:
            return clipped(safe_line(self.trouble), width), "$error"
        if self.hint:
            return clipped(self.hint, width), "$accent"
        if self.state:
            return fitting(self.state, width), "$accent"
        if self.download:
            return fitting(self.download, width), "$muted"
        return f"{key_of('keys')} keys", "$faint"

    def _meter(self, fact: str, spare: int) -> list[tuple[str, str]]:
        """The context's bar before its figures, where there is room for one."""
        if self.share is None or not fact.startswith(_CONTEXT) or spare <= _BAR:
            return []
        drawn = bar(self.share, _BAR)
        full = drawn.rstrip("─")
        return [(full, "$accent" if self.share > 0.9 else "$muted"), (f"{drawn[len(full) :]} ", "$faint")]


def _percent(reply: Reply) -> str:
    progress = reply.progress
    return f", {min(1.0, progress.done / progress.total):.0%}" if progress and progress.total > 0 else ""


def _left(reply: Reply) -> str:
    if not reply.progress or reply.progress.eta_ms is None:
        return ""
    return f", {duration(reply.progress.eta_ms / 1000 + 0.999)} left"


def _reading(reply: Reply) -> str:
    progress = reply.progress
    if not progress or progress.total <= 0:
        return "reading the prompt"
    text = f"reading {int(progress.done):,} of {int(progress.total):,} tokens{_percent(reply)}{_left(reply)}"
    return text + (f", {reply.cached_tokens:,} from the cache" if reply.cached_tokens else "")


def _helps(reply: Reply) -> str:
    """The keys that help after an answer ended too early."""
    if reply.unsent:
        return f", {key_of('send')} sends it again"
    goes_on = f", {key_of('go_on')} goes on" if reply.text and key_of("go_on") else ""
    return goes_on + (f", {key_of('again')} asks again" if key_of("again") else "")
