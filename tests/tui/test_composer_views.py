"""How the composer looks: `pytest --snapshot-update` draws the pictures anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from localchat.chats.records import Attachment, Draft
from tests.tui.composer_desk import Desk

SIZE = (80, 16)
LONG = "The first line of what is written, long enough to be wrapped at the end.\n漢字 and e\u0301 👩‍👩‍👧\n\nlast"

Play = Callable[[Desk, Pilot[None]], Awaitable[None]]


@pytest.fixture
def look(tmp_path: Path, snap_compare: Callable[..., bool]) -> Callable[..., None]:
    folder = tmp_path / "work"
    for name in ("README.md", "src/composer.py", "src/completion.py", "src/deep/compare.rs", "notes of a trip.md"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)

    def compare(play: Play, *, size: tuple[int, int] = SIZE, **options: bool) -> None:
        desk = Desk(folder, **options)

        async def run_before(pilot: Pilot[None]) -> None:
            await play(desk, pilot)
            await pilot.pause()

        assert snap_compare(desk, terminal_size=size, run_before=run_before)

    return compare


def test_empty(look: Callable[..., None]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        await pilot.pause()

    look(play)


def test_several_lines_and_a_hint(look: Callable[..., None]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        await desk.paste(pilot, LONG)
        desk.composer.hint = "31 tokens"

    look(play)


def _attached(count: int) -> list[Attachment]:
    files = [
        Attachment("report.pdf", "x" * 40_000, 9_120),
        Attachment("pasted 1", "line\n" * 214),
        Attachment("a very long name of a file that goes on and on.py", "x" * 812),
        *(Attachment(f"part {number}.csv", "x" * 5_000_000, None) for number in range(2, 20)),
    ]
    return files[:count]


@pytest.mark.parametrize(("count", "size"), [(3, SIZE), (16, (60, 20))], ids=["three", "many-small"])
def test_chips(look: Callable[..., None], count: int, size: tuple[int, int]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        desk.composer.put(Draft("What do these say?", _attached(count)))

    look(play, size=size)


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_files(look: Callable[..., None], size: tuple[int, int]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        desk.field.type("see @com")
        await desk.until(pilot, lambda: len(desk.offered) == 3)
        await pilot.press("down")

    look(play, size=size)


@pytest.mark.parametrize("size", [SIZE, (60, 20)], ids=["usual", "small"])
def test_commands(look: Callable[..., None], size: tuple[int, int]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        await pilot.press("/", "down")

    look(play, size=size)


def test_vi(look: Callable[..., None]) -> None:
    async def play(desk: Desk, pilot: Pilot[None]) -> None:
        desk.field.type("some words")
        await pilot.press("escape", "2", "d")

    look(play, vim=True)
