"""The terminal chat: what a token costs, how late a key is seen, a long chat, memory over many turns, the first screen.

`python benchmarks/screen.py [tokens] [opening] [garbage] [memory] [keys] [first] [--rounds N] [--turns N]`; without
names all but `memory`: 2,000 turns take minutes. Tokens, opening and garbage are measured headless until everything is
painted, tokens in processor time; keys and the first screen in a pseudo-terminal, on a fake engine that speaks the real
protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from common import ROOT, environment, localchat, machine

sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

KINDS = {
    "paragraphs": ("", "Some words that fill a line of the page.\n\n", "word "),
    "list": ("", "- an item with some words\n", "word "),
    "table": ("| a | b |\n|---|---|\n", "| one | two |\n", "| x "),
    "code": ("```python\n", "value = function(1, 'two')  # three\n", "name "),
}
BARE = """
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("ready to go")
Bare().run()
"""
COMPOSER = "sk anything"
"""What shows that the first screen is there; the letter before it is under the cursor."""

TURN_S = 30
"""How often a person asks, for turning memory a turn into memory an hour."""


async def tokens(rounds: int) -> None:
    """One more token at line 2,000 against line 20 of an answer, each kind of text in turn."""
    from tests.tui.pages import PageApp, answer, prompt, say

    took: dict[tuple[str, int], list[float]] = {(kind, lines): [] for kind in KINDS for lines in (20, 2000)}
    app = PageApp()
    async with app.run_test(size=(120, 40)) as pilot:
        for number in range(rounds + 1):
            for kind, (head, line, token) in KINDS.items():
                for lines in (20, 2000):
                    item = answer(head + line * lines, state="answering")
                    app.page.show([prompt("Go."), item])
                    app.page.update(0.0)
                    await pilot.pause()
                    for _ in range(10):
                        say(item.content, token)  # type: ignore[arg-type]
                        # Processor time: the screen is painted at its own pace, and waiting for that costs nothing.
                        began = time.process_time()
                        app.page.update(0.0)
                        await pilot.pause()
                        if number:
                            took[kind, lines].append((time.process_time() - began) * 1000)
    print("\n### One more token in an answer\n\n| | at line 20, ms | at line 2,000, ms | ratio |\n|---|---|---|---|")
    for kind in KINDS:
        few, many = (statistics.median(took[kind, lines]) for lines in (20, 2000))
        print(f"| {kind} | {few:.1f} | {many:.1f} | **{many / few:.2f}** |")


async def opening(rounds: int) -> None:
    """A chat of 2,000 messages against one of 20: from `show` to painted, the page empty before."""
    from tests.tui.pages import ANSWER, PageApp, chat

    took: dict[int, list[float]] = {20: [], 2000: []}
    jumps: list[float] = []
    app = PageApp()
    async with app.run_test(size=(120, 40)) as pilot:
        for number in range(rounds + 1):
            for messages, times in took.items():
                items = chat(messages // 2, ANSWER * 3)
                app.page.welcome("a model", False)
                await pilot.pause()
                began = time.perf_counter()
                app.page.show(items)
                await pilot.pause()
                if number:
                    times.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            app.page.show(items, at=1001)
            await pilot.pause()
            jumps.append((time.perf_counter() - began) * 1000)
    print("\n### Opening a chat\n\n| | median ms | max |\n|---|---|---|")
    for name, times in [("20 messages", took[20]), ("2,000 messages", took[2000]), ("2,000, at a hit", jumps[1:])]:
        print(f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |")


async def garbage(rounds: int) -> None:
    """What no model should say, all of it at once: until it is on the screen, and its end."""
    from tests.tui.pages import PageApp, answer, prompt, say
    from tests.tui.test_garbage import GARBAGE

    took: dict[str, list[float]] = {name: [] for name in GARBAGE}
    app = PageApp()
    async with app.run_test(size=(120, 40)) as pilot:
        for _ in range(rounds):
            for name, text in GARBAGE.items():
                item = answer(state="waiting")
                app.page.show([prompt("Go."), item])
                say(item.content, text)  # type: ignore[arg-type]
                began = time.perf_counter()
                app.page.update(0.0)
                await pilot.pause()
                item.content.finish(1.0)  # type: ignore[union-attr]
                app.page.update(1.0)
                await pilot.pause()
                took[name].append((time.perf_counter() - began) * 1000)
    print("\n### Garbage, come at once, shown and finished\n\n| | median ms |\n|---|---|")
    for name, times in took.items():
        print(f"| {name} | {statistics.median(times):.0f} |")


class Pty:
    """A program in a pseudo-terminal of 100 columns and 34 lines."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.began = time.perf_counter()
        self.process, self._fd = pty.fork()
        if not self.process:
            os.execvpe(command[0], command, {**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 34, 100, 0, 0))

    def until(self, text: str, patience_s: float = 30.0) -> float:
        """Seconds until `text` has been written, from now."""
        began, seen = time.perf_counter(), b""
        while text.encode() not in seen:
            if time.perf_counter() - began > patience_s:
                raise SystemExit(f"{text!r} was not shown; the last of what was: {seen[-500:]!r}")
            if select.select([self._fd], [], [], 0.5)[0]:
                seen = seen[-4096:] + os.read(self._fd, 1 << 16)
        return time.perf_counter() - began

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._fd, keys.encode())

    def rest(self, seconds: float) -> None:
        """Go on for a while, and read what is written."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                os.read(self._fd, 1 << 16)

    def close(self) -> None:
        """End the program."""
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._fd)


def keys(rounds: int) -> None:
    """From a key in the terminal to its character in the terminal's output while 100 tokens come a second."""
    from fake_engine import FakeEngine, pause, say, wait

    took: dict[str, list[float]] = {"at rest": [], "100 tokens/s": []}
    letters = [chr(code) for code in range(0x0430, 0x044F)]
    with FakeEngine() as engine, tempfile.TemporaryDirectory() as home:
        env = environment(Path(home))
        for _ in range(rounds):
            answer = [step for _ in range(3000) for step in (*say("word, "), *pause(0.01))]
            engine.script(answer, wait("never"))
            screen = Pty(localchat("--engine", engine.url), env)
            screen.until(COMPOSER)
            screen.rest(1.0)
            for state, times in took.items():
                for letter in letters:
                    began = time.perf_counter()
                    screen.press(letter)
                    screen.until(letter)
                    times.append((time.perf_counter() - began) * 1000)
                    screen.rest(0.07)
                if state == "at rest":
                    screen.press("\r")
                    screen.until("word,")
                    screen.rest(4.0)
            screen.close()
    print("\n### From a key to the screen\n\n| | median ms | 95th percentile | max |\n|---|---|---|---|")
    for state, times in took.items():
        high = statistics.quantiles(times, n=20)[-1]
        print(f"| {state} | {statistics.median(times):.0f} | **{high:.0f}** | {max(times):.0f} |")


def first(rounds: int) -> None:
    """From the start of the process to the first screen, against a Textual app that shows three words."""
    from fake_engine import FakeEngine

    took: dict[str, list[float]] = {"localchat": [], "bare Textual app": []}
    with FakeEngine() as engine, tempfile.TemporaryDirectory() as home:
        env = environment(Path(home))
        programs = {
            "localchat": (localchat("--engine", engine.url), COMPOSER),
            "bare Textual app": ([sys.executable, "-c", BARE], "ready to go"),
        }
        for number in range(rounds + 1):
            for name, (command, shown) in programs.items():
                screen = Pty(command, env)
                screen.until(shown)
                if number:
                    took[name].append(time.perf_counter() - screen.began)
                screen.close()
    print("\n### The first screen\n\n| | median s | min | max |\n|---|---|---|---|")
    for name, times in took.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")
    ratios = [a / b for a, b in zip(*took.values(), strict=True)]
    print(f"\n- localchat / bare: **{statistics.median(ratios):.2f}**")


ENGINE = """
import sys, threading
from fake_engine import FakeEngine, say, usage
from tests.tui.pages import ANSWER
with FakeEngine() as engine:
    for _ in range(int(sys.argv[1])):
        engine.script(say(ANSWER, by=20), usage())
    print(engine.url, flush=True)
    while not threading.Event().wait(0.2):
        engine.requests.clear()
"""


async def memory(turns: int) -> None:
    """The resident memory of the chat's process over many turns, the engine in a process of its own."""
    import psutil

    from localchat.client import engine_at
    from localchat.tui.app import ChatApp
    from localchat.tui.conversation import Item
    from localchat.tui.widgets.composer import Composer
    from localchat.tui.widgets.transcript import Transcript

    path = os.pathsep.join(str(folder) for folder in (ROOT / "tests", ROOT))
    env = {**os.environ, "PYTHONPATH": path}
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(turns)], env=env, stdout=subprocess.PIPE, text=True)
    assert engine.stdout
    sizes: list[float] = []
    process = psutil.Process()
    app = ChatApp(engine_at(engine.stdout.readline().strip()))
    try:
        async with app.run_test(size=(120, 40)) as pilot:
            page, composer = app.screen.query_one(Transcript), app.screen.query_one(Composer)

            def over(items: list[Item], count: int) -> bool:
                return len(items) == count and not items[-1].content.running  # type: ignore[union-attr]

            for number in range(turns):
                composer.text = f"Question {number}: why is the sky blue?"
                await pilot.press("enter")
                await _until(pilot.pause, lambda count=2 * (number + 1): over(page.items, count))  # type: ignore[misc]
                sizes.append(process.memory_info().rss / 2**20)
                if number % 50 == 0:
                    print(f"turn {number}: {sizes[-1]:.1f} MiB", file=sys.stderr)
    finally:
        engine.kill()
        engine.wait()
    warm = sizes[len(sizes) // 5 :]
    slope = statistics.linear_regression(range(len(warm)), warm).slope
    print(f"\n### Memory of the screen's process\n\n{turns:,} turns in one chat, the first fifth not counted:\n")
    print(f"- {warm[0]:.1f} MiB, at the end {warm[-1]:.1f} MiB: {slope * 1024:.1f} KiB a turn")
    print(f"- at a turn in {TURN_S} s: **{slope * 3600 / TURN_S:.2f} MiB/h** (the conversation itself is part of it)")


async def _until(pause: Callable[[float], Awaitable[None]], condition: Callable[[], bool]) -> None:
    while not condition():
        await pause(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2000)
    chosen = parser.parse_args()
    parts = chosen.parts or ["tokens", "opening", "garbage", "keys", "first"]
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}, {chosen.rounds} rounds")
    # The screen of this process must keep nothing at a person's place.
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALCHAT_HOME"] = home
        with suppress(KeyboardInterrupt):
            if "tokens" in parts:
                asyncio.run(tokens(chosen.rounds))
            if "opening" in parts:
                asyncio.run(opening(chosen.rounds))
            if "garbage" in parts:
                asyncio.run(garbage(chosen.rounds))
            if "memory" in parts:
                asyncio.run(memory(chosen.turns))
        # Programs in a terminal are started from a process with no other threads.
        assert threading.active_count() < 10
        if "keys" in parts:
            keys(chosen.rounds)
        if "first" in parts:
            first(chosen.rounds)


if __name__ == "__main__":
    main()
