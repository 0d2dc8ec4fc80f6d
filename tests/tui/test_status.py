"""The status line: every state in words, facts that give way, and what takes precedence at its left end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult

from localchat.chats.reply import Reply
from localchat.errors import EngineFailed
from localchat.paths import paths
from localchat.protocol import Choice, Chunk, Delta, Progress, Report, Timings, Usage
from localchat.settings import settings
from localchat.tui.theme import THEMES
from localchat.tui.widgets.status import Status, facts, key_of, state_text
from localchat.tui.words import bar, duration, fitting, size
from tests.escapes import PAYLOADS, unsafe


def said(text: str = "", reasoning: str = "", **report: object) -> Chunk:
    delta = Delta(content=text or None, reasoning_content=reasoning or None)
    return Chunk(choices=[Choice(delta=delta)], localchat=Report(**report))  # type: ignore[arg-type]


def heard(stage: str, done: float, total: float, eta_ms: float | None = None, **report: object) -> Chunk:
    return Chunk(localchat=Report(progress=Progress(stage, done, total, eta_ms), **report))  # type: ignore[arg-type]


def reply(*chunks: Chunk) -> Reply:
    made = Reply(100.0)
    for number, chunk in enumerate(chunks):
        made.take(chunk, 100.0 + number)
    return made


def ended(how: str, *chunks: Chunk, unsent: bool = False) -> Reply:
    made = reply(*chunks)
    if how == "failed":
        made.fail(EngineFailed("it died: ask again"), 110.0)
    elif how == "stopped":
        made.stop(110.0)
    else:
        made.state = how  # type: ignore[assignment]
    made.unsent = unsent
    return made


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (reply(), "waiting for the engine"),
        (reply(heard("queued", 0, 0)), "waiting for its turn"),
        (reply(heard("loading", 43, 100)), "loading the model, 43%"),
        (reply(heard("loading", 43, 100, 2100)), "loading the model, 43%, 3 s left"),
        (reply(heard("loading", 0, 0)), "loading the model"),
        (reply(heard("reading", 0, 0)), "reading the prompt"),
        (reply(heard("reading", 512, 2000, 2300)), "reading 512 of 2,000 tokens, 26%, 3 s left"),
        (
            reply(heard("reading", 512, 2000, 90_000, cached_tokens=1200)),
            "reading 512 of 2,000 tokens, 26%, 1 min 30 s left, 1,200 from the cache",
        ),
        (reply(said(reasoning="hm"), said(reasoning="m")), "thinking 4 s, 2 tokens"),
        (reply(said("a")), "answering"),
        (reply(*[said("a") for _ in range(9)]), "answering 2.0 tokens/s"),
        (ended("stopped"), "stopped, Ctrl R asks again"),
        (ended("stopped", said("a")), "stopped, Ctrl O goes on, Ctrl R asks again"),
        (ended("failed", said("a")), "failed, Ctrl O goes on, Ctrl R asks again"),
        (ended("failed", unsent=True), "failed, Enter sends it again"),
        (ended("broken", said("a")), "broken off, Ctrl O goes on, Ctrl R asks again"),
        (ended("done", said("a")), ""),
    ],
)
def test_every_state_in_words(made: Reply, text: str) -> None:
    assert state_text(made, 104.0) == text


def test_the_persons_own_keys_are_named() -> None:
    paths().settings.parent.mkdir(parents=True, exist_ok=True)
    paths().settings.write_text('[keys]\nagain = "ctrl+y,f9"\ngo_on = ""\n')
    settings.cache_clear()
    assert state_text(ended("stopped", said("a")), 0.0) == "stopped, Ctrl Y asks again"
    assert key_of("no such action") == ""
    paths().settings.write_text("newline_on_enter = true\n")
    settings.cache_clear()
    assert state_text(ended("failed", unsent=True), 0.0) == "failed, Ctrl J sends it again"


def test_facts_with_the_most_important_first() -> None:
    made = reply(
        said("a"), Chunk(usage=Usage(1000, 240, 1240), localchat=Report(timings=Timings(tokens_per_second=34)))
    )
    made.finish(110.0)
    assert facts(made, "qwen3-4b", 8192, 1240, True, memory=1_234_000_000, unkept=True, mode="editing") == [
        "editing",
        "qwen3-4b",
        "offline",
        "not kept",
        "context 1,240 of 8,192",
        "240 tokens, 34 tokens/s",
        "memory 1.2 GB",
    ]
    assert facts(None, "", None, None, False) == []
    assert facts(None, "m", None, 12, False) == ["m", "context 12"]


def test_a_long_name_leaves_room_for_the_rest() -> None:
    (name,) = facts(None, "owner/repository-with-a-very-long-name-Instruct-GGUF:Q4_K_M", None, None, False)
    assert cell_len(name) <= 32 and name.endswith("…")
    assert cell_len(facts(None, "漢" * 40, None, None, False)[0]) <= 32


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (98_362_432, "98 MB"), (999_600_000, "1.0 GB"), (1_234_000_000, "1.2 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "────"), (0.01, "━───"), (0.5, "━━──"), (0.99, "━━━─"), (1, "━━━━"), (7, "━━━━"), (-1, "────")],
)
def test_a_bar_is_full_only_when_all_is_there(share: float, text: str) -> None:
    assert bar(share, 4) == text


def test_the_last_parts_give_way_first() -> None:
    text = "reading 512 of 2,000 tokens, 26%, 3 s left, 1,200 from the cache"
    assert fitting(text, 100) == text
    assert fitting(text, 45) == "reading 512 of 2,000 tokens, 26%, 3 s left"
    assert fitting(text, 30) == "reading 512 of 2,000 tokens"
    assert fitting(text, 12) == "reading 512…"


class Sample(App[None]):
    """A status line and nothing else."""

    def __init__(self, **values: object) -> None:
        super().__init__()
        self.register_theme(THEMES["dark"])
        self.theme = "dark"
        self.values = values

    def compose(self) -> ComposeResult:
        yield Status()

    def on_mount(self) -> None:
        status = self.query_one(Status)
        for name, value in self.values.items():
            setattr(status, name, value)


def line(app: App[None]) -> str:
    return app.screen._compositor.render_strips()[0].text


FACTS = ("qwen3-4b", "offline", "context 1,240 of 8,192", "240 tokens, 34 tokens/s", "memory 1.2 GB")


async def shown(width: int, **values: object) -> str:
    app = Sample(**values)
    async with app.run_test(size=(width, 3)) as pilot:
        await pilot.pause()
        return line(app)


async def test_facts_give_way_from_the_right() -> None:
    whole = await shown(110, facts=FACTS, share=0.15)
    assert whole.startswith("F1 keys ") and whole.endswith("34 tokens/s  ·  memory 1.2 GB")
    assert "━" not in whole
    assert "━───────── context 1,240 of 8,192" in await shown(130, facts=FACTS, share=0.15)
    assert (await shown(60, facts=FACTS, share=0.15)).endswith("qwen3-4b  ·  offline  ·  context 1,240 of 8,192")
    narrow = await shown(60, facts=FACTS, state="reading 512 of 2,000 tokens, 26%, 3 s left")
    assert narrow.startswith("reading 512 of 2,000 tokens, 26%, 3 s left ") and narrow.endswith(" qwen3-4b")
    assert cell_len(await shown(20, facts=FACTS, state="reading 512 of 2,000 tokens, 26%, 3 s left")) == 20


async def test_what_takes_precedence_at_the_left() -> None:
    values = {"download": "fetching qwen3-4b: 34%, 2.5 GB, 12 s left"}
    assert (await shown(100, **values)).startswith("fetching qwen3-4b: 34%, 2.5 GB, 12 s left ")
    values["state"] = "answering"
    both = await shown(100, facts=FACTS, **values)
    assert both.startswith("answering ") and " fetching qwen3-4b: 34%  ·  qwen3-4b" in both
    values["hint"] = "copied"
    assert (await shown(100, **values)).startswith("copied ")
    values["trouble"] = "this answer is not on disk: the disk is full, make room"
    assert (await shown(100, **values)).startswith("this answer is not on disk: the disk is full, make room ")
    assert (await shown(20, **values)).rstrip() == "this answer is not…"


async def test_nothing_drives_the_terminal() -> None:
    everything = " ".join(PAYLOADS)
    named = [fact for text in PAYLOADS for fact in facts(None, text, None, None, False, mode=text)]
    assert not [text for text in named if unsafe(text) or "\n" in text]
    preparing = reply()
    preparing.prepare(everything)
    assert not unsafe(state_text(preparing, 0.0))
    assert not unsafe(await shown(200, trouble=everything))


@pytest.mark.parametrize(("name", "width"), [("small", 60), ("usual", 100), ("huge", 200)])
def test_the_look(snap_compare: Callable[..., bool], name: str, width: int) -> None:
    values = {
        "facts": FACTS,
        "share": 0.15,
        "state": "reading 512 of 2,000 tokens, 26%, 3 s left, 1,200 from the cache",
    }
    assert snap_compare(Sample(**values), terminal_size=(width, 3))
