"""What no model should say and some do: it neither breaks the page nor slows it. Work is counted, not timed."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from tests.tui.pages import Counted, PageApp, answer, prompt, say

SIZE = (80, 24)
N = 2000

GARBAGE = {
    "a line of 100 kB": "x" * 100_000,
    "words without a line end": "word " * 20_000,
    "a table of 5,000 rows": "|a|b|\n|-|-|\n" + "|1|2|\n" * 5000,
    "a table of 300 columns": "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n" + ("|" + "1|" * 300 + "\n") * 20,
    "an unclosed fence": "```py\n" + "x = 1\n" * 5000,
    "fences in fences": "".join("`" * (3 + n % 40) + f"py{n}\ntext\n" for n in range(500)),
    "nested quotes": "> " * N + "deep\n" + ">" * N,
    "nested lists": "- " * N + "deep",
    "indented lists": "".join("  " * n + "- x\n" for n in range(N // 4)),
    "nested emphasis": "*" * N + "x" + "*" * N + "*a _b " * N,
    "brackets": "[" * N + "![](" * N + "]" * N,
    "code marks": "".join("`" * n + " " for n in range(200)),
    "entities": "&amp" * N + "&#" * N,
    "right to left": "שלום עולם " * N + "\u202e\u2066مرحبا" * N,
    "wide characters": "漢字" * 5 * N,
    "joined characters": "👨\u200d👩\u200d👧\u200d👦" * N,
    "only joiners": "\u200d" * 5 * N,
    "combining characters": "e" + "\u0301" * 5 * N,
    "control sequences": "\x1b[2J\x1b]52;c;AA\x07\x9b1m" * N,
    "lone surrogates": "\ud800\udfff" * N,
    "blank lines": "\n" * 5 * N + "end",
    "rules": "---\n" * N,
    "headings": "# a\n" * N,
    "tabs": "\t" * 5 * N,
    "definitions": "".join(f"[{n}]: http://example.org/{n}\n" for n in range(N)) + "[1] " * N,
    "html": "<div><!--" * N,
}


@pytest.mark.parametrize(
    "name", [name if at % 2 == 0 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(GARBAGE)]
)
async def test_it_is_written_before_the_eyes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GARBAGE[name]
    app = PageApp()
    counted = Counted(monkeypatch)
    async with app.run_test(size=SIZE) as pilot:
        item = answer(state="waiting")
        app.page.add(prompt("Go."), item)
        # Its beginning comes in small pieces, the rest at once: each piece costs about what is in view.
        for start in range(0, 400, 40):
            say(item.content, text[start : start + 40])  # type: ignore[arg-type]
            counted.clear()
            app.page.update(0.0)
            assert counted.chars <= 80_000 and counted.blocks <= 300
        say(item.content, text[400:])  # type: ignore[arg-type]
        counted.clear()
        app.page.update(0.0)
        await pilot.pause()
        assert counted.chars <= 80_000 and counted.blocks <= 300
        item.content.finish(1.0)  # type: ignore[union-attr]
        counted.clear()
        app.page.update(1.0)
        await pilot.pause()
        assert counted.chars <= 80_000 and counted.blocks <= 300
        assert all(cell_len(line) <= SIZE[0] for line in app.lines)
        for _ in range(3):
            app.page.move(-1, "page")
            await pilot.pause()
        await pilot.resize_terminal(40, 12)
        app.page.to("top")
        await pilot.pause()
        assert "Go." in app.shown


@pytest.mark.parametrize(
    "name", [name if at % 5 == 4 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(GARBAGE)]
)
async def test_it_is_read_by_keys(name: str) -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show([prompt(GARBAGE[name], 1), answer(GARBAGE[name], 2, reasoning=GARBAGE[name])], at=1)
        app.page.focus()
        app.page.toggle_thinking()
        for by, unit in [(1, "message"), (1, "block"), (1, "block"), (1, "page"), (-1, "block"), (-1, "message")]:
            app.page.move(by, unit)  # type: ignore[arg-type]
            await pilot.pause()
        app.page.toggle_thinking(only_current=True)
        app.page.to("bottom")
        await pilot.pause()
        assert app.page.current_text() == GARBAGE[name]
        assert (app.page.current_code() is not None) == ("fence" in name)
        assert len(app.page.links()) <= N
