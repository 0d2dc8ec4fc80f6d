"""Nothing that a model, an engine or a person says reaches the terminal as a control sequence, however it is split."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable

import pytest
from fake_engine import Refuse, progress, say, think, usage, wait
from rich.segment import Segment
from textual import events

from localchat.protocol import Choice, Chunk, Delta, Report
from tests.tui.conftest import Bench

PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07",  # writes the clipboard
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]0;title\x1b\\",
    "\x9b2J",  # the same with one-character C1 controls
    "\x9d52;c;aGVsbG8=\x9c",
    "\x1b[?1049l\x1bc",
    "\x1bP+q544e\x1b\\",
    "\x08\x7f\x0b\x0c\x00\x0e",
    "\u202eevil\u2066",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
]
EVERYTHING = " ".join(PAYLOADS)


def assert_clean(bench: Bench) -> None:
    """Every character on the screen is one that a terminal draws."""
    for strip in bench.current.screen._compositor.render_strips():
        for segment in strip:
            assert isinstance(segment, Segment)
            assert not segment.control
            assert not segment.style or not segment.style.link
            bad = [character for character in segment.text if unicodedata.category(character) in ("Cc", "Cf", "Cs")]
            assert not bad, (bad, segment.text)


@pytest.mark.parametrize("size", [(90, 40), (60, 20)])
async def test_in_every_view(bench: Bench, size: tuple[int, int]) -> None:
    code = f"```{PAYLOADS[0]}\n{EVERYTHING}\n```\n\n"
    markdown = f"{EVERYTHING}\n\n- {EVERYTHING}\n\n{code}|{EVERYTHING}|b|\n|-|-|\n|{EVERYTHING}|\n"
    warned = [Chunk(model=EVERYTHING, localchat=Report(warnings=[EVERYTHING]))]
    bench.engine.models = [EVERYTHING]
    bench.engine.script(
        progress("loading", 1, 2), think(EVERYTHING, by=1), say(markdown, by=1), warned, wait("a"), usage()
    )
    bench.engine.script([Refuse(500, "engine_failed", EVERYTHING)])
    async with bench.app().run_test(size=size) as pilot:
        await bench.until(pilot, lambda: "will answer" in bench.shown)
        assert_clean(bench)
        await pilot.press("ctrl+t")
        bench.composer.post_message(events.Paste(EVERYTHING))
        await bench.until(pilot, lambda: bench.composer.text)
        assert_clean(bench)
        await pilot.press("enter")
        await bench.until(pilot, lambda: bench.replies and bench.replies[-1].warnings)
        await pilot.pause()
        bench.engine.go("a")
        await bench.answered(pilot)
        for key in ("ctrl+home", *["pagedown"] * 12):
            await pilot.press(key)
            await pilot.pause()
            assert_clean(bench)
        await bench.ask(pilot, "next")
        await bench.until(pilot, lambda: bench.status.state.startswith("failed"))
        assert_clean(bench)


async def test_split_at_every_character(bench: Bench) -> None:
    steps = [Chunk(choices=[Choice(delta=Delta(content=character))]) for character in EVERYTHING * 2]
    bench.engine.script(*[[step] for step in steps])
    async with bench.app().run_test(size=(90, 30)) as pilot:
        await bench.ask(pilot, "go")
        while not bench.replies or bench.replies[-1].running:
            await pilot.pause(0.005)
            assert_clean(bench)
        assert_clean(bench)
        assert bench.replies[-1].text == EVERYTHING * 2


async def test_while_a_model_is_fetched(bench: Bench) -> None:
    bench.engine.script([Refuse(404, "model_not_found", "no model is here")])
    bench.engine.script(say("ok"))

    seen = threading.Event()

    def prepare(model: str, tell: Callable[[str], None]) -> None:
        tell(EVERYTHING)
        seen.wait(60)

    async with bench.app(prepare=prepare, model=EVERYTHING).run_test(size=(90, 30)) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: bench.replies[-1].note)
        assert_clean(bench)
        seen.set()
        await bench.answered(pilot)
        assert_clean(bench)
