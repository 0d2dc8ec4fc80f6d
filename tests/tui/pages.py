"""A page on its own for tests: an application that shows nothing but a transcript, and messages to put on it."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from localchat.chats.records import Attachment
from localchat.chats.reply import Reply
from localchat.protocol import Choice, Chunk, Delta
from localchat.tui.conversation import Item, Prompt
from localchat.tui.theme import DARK
from localchat.tui.typeset import Typesetter
from localchat.tui.widgets.transcript import Transcript

ANSWER = """Sunlight is **scattered** by the air. See [Rayleigh](https://example.org/r).

## What happens
1. Light enters.
2. Short waves scatter:
   - blue, a lot

```python
def scattered(w: float) -> float:
    return 1 / w**4
```

| Colour | Wavelength |
|---|---:|
| blue | 450 nm |
"""


class PageApp(App[None]):
    """Only a transcript; `told` are the messages that it posts."""

    AUTO_FOCUS = None
    CSS = "Screen { background: $background; color: $foreground; }"

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.register_theme(DARK)
        self.theme = DARK.name
        self.animation_level = "none"
        self.page = Transcript("fake-1b", False, **options)  # type: ignore[arg-type]
        self.told: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.page

    def on_transcript_walked(self, message: Transcript.Walked) -> None:
        self.told.append((message.node, message.by))

    def on_transcript_typed(self, message: Transcript.Typed) -> None:
        self.told.append(message.character)

    def on_transcript_left(self) -> None:
        self.told.append("left")

    @property
    def lines(self) -> list[str]:
        """What is on the screen now, without the scrollbar."""
        width = self.size.width - 1
        return [strip.crop(0, width).text.rstrip() for strip in self.screen._compositor.render_strips()]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines)

    def line_with(self, text: str) -> int:
        return next(number for number, line in enumerate(self.lines) if text in line)


def prompt(text: str, node: int | None = None, place: int = 1, places: int = 1, *attached: Attachment) -> Item:
    return Item(node, Prompt(text, list(attached)), place, places)


def answer(text: str = "", node: int | None = None, place: int = 1, places: int = 1, **more: object) -> Item:
    state = more.pop("state", "done")
    return Item(node, Reply(0.0, node, state, text, **more), place, places)  # type: ignore[arg-type]


def chat(turns: int, text: str = ANSWER) -> list[Item]:
    """A conversation whose messages are numbered from 1."""
    items: list[Item] = []
    for number in range(turns):
        items.append(prompt(f"Question {number}.", 2 * number + 1))
        items.append(answer(f"Answer {number}.\n\n{text}", 2 * number + 2))
    return items


def say(reply: Reply, text: str, now: float = 0.0) -> None:
    """The model says something more."""
    reply.take(Chunk(choices=[Choice(delta=Delta(content=text))]), now)


async def written(app: PageApp, pilot: Pilot[None], text: str, by: int = 40) -> Item:
    """An answer that is written before the eyes, and its end."""
    item = answer(state="waiting")
    app.page.add(prompt("Go."), item)
    for start in range(0, len(text), by):
        say(item.content, text[start : start + by])  # type: ignore[arg-type]
        app.page.update(0.0)
    await pilot.pause()
    return item


class Counted:
    """Counts what is set: `chars` of source in `blocks` blocks."""

    def __init__(self, monkeypatch: object) -> None:
        self.chars = self.blocks = 0
        original: Callable[..., object] = Typesetter.block

        def counting(typesetter: Typesetter, block: object, references: object = None) -> object:
            self.chars += len(block.source)  # type: ignore[attr-defined]
            self.blocks += 1
            return original(typesetter, block, references)

        monkeypatch.setattr(Typesetter, "block", counting)  # type: ignore[attr-defined]

    def clear(self) -> None:
        self.chars = self.blocks = 0
