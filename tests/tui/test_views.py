"""Each view of the chat as a picture: the specification of how it looks. `pytest --snapshot-update` draws them anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from fake_engine import fail, progress, say, think, usage, wait
from textual.pilot import Pilot

from tests.tui.conftest import Bench

SIZE = (100, 34)
QUESTION = "Why is the sky blue?\nA short answer, please."
THOUGHT = "The person asks about the sky.\n\n- Rayleigh scattering\n- keep it short\n"
ANSWER = """Sunlight is **scattered** by the air, and *blue* light more than `red` light. See \
[Rayleigh](https://example.org/rayleigh).

## What happens
1. Light enters the air.
2. Short waves scatter:
   - blue, a lot
   - red, hardly
3. You look up.

```python
def scattered(wavelength: float) -> float:
    \"\"\"Rayleigh: the fourth power.\"\"\"
    return 1 / wavelength**4  # relative
```

| Colour | Wavelength | Scattered |
|--------|-----------:|:---------:|
| blue   | 450 nm     | 5.8       |
| red    | 700 nm     | 1.0       |

> The sky is blue because
> the air prefers it.
"""

Play = Callable[[Pilot[None]], Awaitable[None]]
Compare = Callable[..., bool]


@pytest.fixture
def look(bench: Bench, snap_compare: Compare) -> Callable[..., None]:
    """Play something on a fresh chat and compare what is then on the screen."""

    def compare(play: Play, *, size: tuple[int, int] = SIZE, **options: object) -> None:
        async def run_before(pilot: Pilot[None]) -> None:
            await bench.until(pilot, lambda: "will answer" in bench.shown)
            bench.composer.cursor_blink = False
            await play(pilot)
            await pilot.pause()

        assert snap_compare(bench.app(**options), terminal_size=size, run_before=run_before)

    return compare


def test_empty(bench: Bench, look: Callable[..., None]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await bench.until(pilot, lambda: "fake-1b will answer" in bench.shown)

    look(play)


def test_empty_and_offline(bench: Bench, look: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press(*"draft")

    look(play, model="smollm2-135m")


def test_loading(bench: Bench, look: Callable[..., None]) -> None:
    bench.engine.script(progress("loading", 43, 100, 2100), wait("never"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: "43%" in bench.status.state)

    look(play)


def test_reading(bench: Bench, look: Callable[..., None]) -> None:
    bench.engine.script(progress("reading", 512, 2000, 2300, cached_tokens=1200), wait("never"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: "512" in bench.status.state)

    look(play)


def test_thinking(bench: Bench, look: Callable[..., None]) -> None:
    bench.engine.script(think(THOUGHT, by=5), wait("never"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: bench.replies[-1].reasoning == THOUGHT)
        bench.clock.now += 12
        await bench.until(pilot, lambda: "thinking 12 s" in bench.shown)

    look(play)


def test_streaming(bench: Bench, look: Callable[..., None]) -> None:
    half = ANSWER[: ANSWER.index("Rayleigh: the")]
    bench.engine.script(say(half, by=5), wait("never"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: bench.replies[-1].text == half)
        bench.clock.now += 3
        await bench.until(pilot, lambda: "tokens/s" in bench.status.state)
        await bench.ask(pilot, "And at dusk?")
        await pilot.press(*"typing")

    look(play)


@pytest.mark.parametrize("size", [SIZE, (60, 20), (200, 50)], ids=["usual", "small", "huge"])
def test_finished(bench: Bench, look: Callable[..., None], size: tuple[int, int]) -> None:
    bench.engine.script(think(THOUGHT), wait("thought"), say(ANSWER, by=5), usage(1240, 210, context=8192))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: bench.replies[-1].reasoning == THOUGHT)
        bench.clock.now += 12
        bench.engine.go("thought")
        await bench.answered(pilot)

    look(play, size=size)


def test_thinking_open(bench: Bench, look: Callable[..., None]) -> None:
    bench.engine.script(think(THOUGHT), say("Because the air **scatters** blue light."))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.answered(pilot)
        await pilot.press("ctrl+t")
        await bench.until(pilot, lambda: "keep it short" in bench.shown)

    look(play)


def test_stopped(bench: Bench, look: Callable[..., None]) -> None:
    bench.engine.script(say("Because the air scat"), wait("never"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: "scat" in bench.shown)
        await pilot.press("escape")

    look(play)


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_failed_and_asked_again(bench: Bench, look: Callable[..., None], size: tuple[int, int]) -> None:
    bench.engine.script(
        say("Because the"), fail("engine_failed", "the engine ran out of memory: choose a smaller model")
    )
    bench.engine.script(say("Because the air scatters blue light."))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: bench.status.state.startswith("failed"))
        await pilot.press("ctrl+r")
        await bench.answered(pilot)

    look(play, size=size)


def test_failed(bench: Bench, look: Callable[..., None]) -> None:
    told = "the prompt has 9,120 tokens and the context window holds 8,192: shorten it, or set a larger context"
    bench.engine.script(fail("context_length_exceeded", told))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, QUESTION)
        await bench.until(pilot, lambda: bench.status.state.startswith("failed"))

    look(play)


def test_a_narrow_table_and_long_code(bench: Bench, look: Callable[..., None]) -> None:
    wide = "| Name | What it is | Where it is from | Remark |\n|---|---|---|---|\n"
    wide += "| basil | a herb with soft green leaves | central Africa | 漢字 wide |\n| mint | another | Europe | |\n"
    code = "```sh\ncurl --silent --location --output model.gguf 'https://example.org/a/very/long/path'\n```\n"
    bench.engine.script(say(f"{wide}\n{code}"))

    async def play(pilot: Pilot[None]) -> None:
        await bench.ask(pilot, "Herbs?")
        await bench.answered(pilot)

    look(play, size=(60, 24))


def test_key_sheet(bench: Bench, look: Callable[..., None]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("f1")

    look(play, size=(80, 24))
