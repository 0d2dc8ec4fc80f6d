"""The page by itself as pictures: what a chat, its marks and its endings look like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual.pilot import Pilot

from localchat.chats.records import Attachment
from localchat.errors import LocalchatError
from localchat.protocol import Timings, Usage
from tests.tui.pages import ANSWER, PageApp, answer, prompt, say

Compare = Callable[..., bool]
FIGURES = {
    "usage": Usage(1240, 210, 1450),
    "cached_tokens": 1200,
    "timings": Timings(tokens_per_second=23.4, total_ms=9100),
}
THOUGHT = {"reasoning": "The person asks about the sky.\n\n- keep it **short**", "reasoning_tokens": 12}


def put(app: PageApp) -> None:
    notes = Attachment("notes.md", "x" * 12_000, 3400)
    app.page.show(
        [
            prompt("An older question.", 1),
            answer("An older answer.", 2, model="qwen3-4b", **FIGURES),
            prompt("Why is the sky blue?\nA short answer, please.", 3, 2, 3, notes, Attachment("", "y" * 40)),
            answer(ANSWER, 4, 1, 2, model="qwen3-4b", _thinking_from=0.0, _thinking_until=12.0, **THOUGHT, **FIGURES),
        ]
    )
    app.page.set_seen(3, "the model no longer sees what is above")


@pytest.mark.parametrize("size", [(100, 34), (60, 20)], ids=["usual", "small"])
def test_reading(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = PageApp(figures_open=True)

    async def play(pilot: Pilot[None]) -> None:
        put(app)
        app.page.focus()
        await pilot.pause()
        for _ in range(3):
            app.page.move(-1, "block")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=play)


def test_a_message_is_marked_and_thinking_is_open(snap_compare: Compare) -> None:
    app = PageApp(thinking_open=True)

    async def play(pilot: Pilot[None]) -> None:
        put(app)
        app.page.focus()
        app.page.show_queued("And at dusk?")
        await pilot.pause()

    assert snap_compare(app, terminal_size=(100, 44), run_before=play)


def test_endings(snap_compare: Compare) -> None:
    app = PageApp()

    async def play(pilot: Pilot[None]) -> None:
        app.page.show(
            [
                answer("Because the air scat", 1, state="broken"),
                answer("Because the air scat", 2, state="stopped"),
                answer("", 3, state="stopped"),
                answer("Because", 4, state="failed", error=LocalchatError("the engine ran out of memory")),
                answer("Because the air scat", 5, finish_reason="length"),
                answer("", 6),
            ]
        )
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=play)


def test_more_comes_below(snap_compare: Compare) -> None:
    app = PageApp()

    async def play(pilot: Pilot[None]) -> None:
        item = answer(state="waiting")
        app.page.add(prompt("\n".join(f"A long question, line {n}." for n in range(80))), item)
        say(item.content, ANSWER)  # type: ignore[arg-type]
        app.page.update(0.0)
        app.page.move(-1, "page")
        await pilot.pause()

    assert snap_compare(app, terminal_size=(80, 24), run_before=play)
