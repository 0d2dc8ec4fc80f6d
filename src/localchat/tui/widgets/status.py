"""The line at the bottom: what is happening (left), and what is true about model, context and speed (right)."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from localchat.chats.reply import Reply
from localchat.safe_text import safe_line

_BETWEEN = "  ·  "


def state_text(reply: Reply, now: float) -> str:
    """What is happening with a reply, in a few words."""
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
            return f"thinking {duration(reply.thinking_seconds(now) or 0.0)}"
        case "answering":
            speed = reply.tokens_per_second(now)
            return f"answering {_rate(speed)}" if speed else "answering"
        case "stopped":
            return "stopped"
        case "failed":
            return "failed"
        case "done":
            return ""


def facts(reply: Reply | None, model: str, context: int | None, used: int | None, offline: bool) -> list[str]:
    """What is worth knowing, the most important first: a narrow screen leaves the last ones out."""
    known = [safe_line(model)] if model else []
    if used is not None:
        known.append(f"context {used:,} of {context:,}" if context else f"context {used:,}")
    if reply and not reply.running and reply.completion_tokens():
        speed = reply.tokens_per_second(0.0)
        known.append(tokens(reply.completion_tokens()) + (f", {_rate(speed)}" if speed else ""))
    if offline:
        known.insert(1, "offline")
    return known


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def tokens(count: int) -> str:
    """A number of tokens in words."""
    return f"{count:,} token{'' if count == 1 else 's'}"


class Status(Widget):
    """One line. A hint takes the place of the state for as long as it is set."""

    DEFAULT_CSS = """
    Status {
        height: 1;
        color: $muted;
        &.-active { color: $foreground; }
    }
    """

    state: reactive[str] = reactive("")
    hint: reactive[str] = reactive("")
    facts: reactive[tuple[str, ...]] = reactive(())

    def render(self) -> RenderResult:
        """The state at the left end, the facts that fit at the right one."""
        left = self.hint or self.state or "F1 keys"
        room = self.size.width - cell_len(left) - 3
        shown = list(self.facts)
        while shown and cell_len(_BETWEEN.join(shown)) > room:
            shown.pop()
        right = _BETWEEN.join(shown)
        space = max(1, self.size.width - cell_len(left) - cell_len(right))
        left_style = "$accent" if self.hint or self.state else "$faint"
        return Content.assemble((left, left_style), " " * space, (right, "$muted"))


def _rate(tokens_per_second: float) -> str:
    digits = 1 if tokens_per_second < 10 else 0
    return f"{tokens_per_second:.{digits}f} tokens/s"


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
        return "reading"
    text = f"reading {int(progress.done):,} of {int(progress.total):,} tokens{_left(reply)}"
    return text + (f", {reply.cached_tokens:,} from cache" if reply.cached_tokens else "")
