"""Draws docs/screenshot.svg, the picture in the README: the real chat, with a fake engine answering.

    python docs/screenshot.py

What is on it is a script, so that the picture changes only when the chat does.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from fake_engine import FakeEngine, say, think, usage, wait  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

from localchat.chats.records import ChatSettings  # noqa: E402
from localchat.chats.store import Chats  # noqa: E402
from localchat.client import engine_at  # noqa: E402
from localchat.protocol import Message  # noqa: E402
from localchat.tui.app import ChatApp  # noqa: E402

MODEL = "qwen3-4b"
DAY_S = 86400.0
EARLIER = (
    ("Sourdough in a cold kitchen", 1.0, True),
    ("A letter to the landlord", 0.02, False),
    ("Regular expressions for dates", 1.1, False),
    ("Why the sky is blue", 1.2, False),
    ("Names for a sailing boat", 3.1, False),
    ("Borrow checker, explained again", 4.0, False),
)
"""Chats in the list: title, age in days, whether it is pinned."""
QUESTION = "How do I find the largest files under a folder, in Python?"
THOUGHT = "They want a short script. pathlib has rglob; heapq.nlargest keeps only what is needed."
ANSWER = """Walk the folder once and keep only the **ten largest** files as you go:

```python
from heapq import nlargest
from pathlib import Path

files = (p for p in Path(".").rglob("*") if p.is_file())
for path in nlargest(10, files, key=lambda p: p.stat().st_size):
    print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path}")
```

- `rglob` yields paths one by one, so even a huge tree needs little memory.
- `nlargest` never sorts more than it has to keep.

| Approach         | Time       | Memory |
|------------------|-----------:|-------:|
| sort all of them | n log n    | all    |
| `nlargest(10)`   | n          | ten    |

> A folder you may not read is skipped silently; pass `on_error` to `Path.walk` if that matters.
"""


def shown(app: ChatApp) -> str:
    """What is on the screen, as text."""
    return app.export_screenshot().replace("&#160;", " ")


async def until(pilot: Pilot[None], app: ChatApp, words: str) -> None:
    """Wait until `words` are on the screen."""
    for _ in range(500):
        if words in shown(app):
            return
        await pilot.pause(0.02)
    raise SystemExit(f"{words!r} never came to the screen")


def fill() -> None:
    """Have some chats in the list."""
    chats = Chats()
    for title, age, pinned in reversed(EARLIER):
        at = time.time() - age * DAY_S
        chat = chats.create(ChatSettings(model=MODEL), title=title, created=at)
        chats.append(chat, None, Message("user", title), created=at)
        chats.pin(chat, pinned)
    chats.close()


async def draw(target: Path) -> None:
    """Play the script and write the picture."""
    now = 1000.0
    with FakeEngine(models=[MODEL]) as engine:
        engine.script(
            think(THOUGHT, by=4),
            wait("thought"),
            think("\n"),
            say(ANSWER, by=4),
            usage(1240, 268, context=8192, speed=31.0),
        )
        app = ChatApp(engine_at(engine.url), ChatSettings(model=MODEL), clock=lambda: now)
        async with app.run_test(size=(128, 36)) as pilot:
            app.animation_level = "none"
            await pilot.press(*[{" ": "space", ",": "comma", "?": "question_mark"}.get(key, key) for key in QUESTION])
            await pilot.press("enter")
            await until(pilot, app, "thinking")
            now += 4
            engine.go("thought")
            await until(pilot, app, "268 tokens")
            await until(pilot, app, "How do I find the la")
            picture = app.export_screenshot(title="localchat")
    # The picture asks for no font from the network: whoever looks at it has a monospaced one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    target.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALCHAT_HOME"] = home
        (Path(home) / "settings.toml").write_text("sidebar = true\ntitles = false\n")
        fill()
        asyncio.run(draw(HERE / "screenshot.svg"))
