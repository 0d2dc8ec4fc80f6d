"""Nothing that is put on the page reaches the terminal as a control sequence: every view of it, every payload (T6)."""

from __future__ import annotations

import pytest

from localchat.chats.records import Attachment
from localchat.errors import LocalchatError
from localchat.protocol import Usage
from tests.escapes import PAYLOADS, unsafe
from tests.tui.pages import PageApp, answer, prompt, say


def assert_clean(app: PageApp) -> None:
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            assert not segment.control
            assert not segment.style or not segment.style.link
            assert not unsafe(segment.text) and "\n" not in segment.text and "\t" not in segment.text


def in_markdown(text: str) -> str:
    code = f"```{text}\n{text}\n```\n\n~~~py\n{text}\n"
    table = f"|{text}|b|\n|-|-|\n|{text}|\n\n"
    return (
        f"{text}\n\n# {text}\n\n- {text}\n\n> {text}\n\n[{text}]({text}) ![{text}](<{text}>) `{text}`\n\n{table}{code}"
    )


@pytest.mark.parametrize("size", [(90, 40), (60, 20), (20, 8)])
async def test_in_every_view_of_the_page(size: tuple[int, int]) -> None:
    everything = " ".join(PAYLOADS if size[0] > 20 else PAYLOADS[::25])
    app = PageApp(figures_open=True, thinking_open=True)
    async with app.run_test(size=size) as pilot:
        app.page.welcome(everything, True, everything)
        await pilot.pause()
        assert_clean(app)
        item = answer(
            in_markdown(everything),
            2,
            2,
            3,
            state="failed",
            reasoning=in_markdown(everything),
            error=LocalchatError(everything),
            warnings=[everything],
            model=everything,
            usage=Usage(1, 2, 3),
        )
        app.page.show([prompt(everything, 1, 1, 2, Attachment(everything, everything)), item])
        app.page.set_seen(2, "the model no longer sees what is above")
        app.page.show_queued(everything)
        app.page.focus()
        app.page.to("top")
        while not app.page.is_vertical_scroll_end:
            await pilot.pause()
            assert_clean(app)
            app.page.move(max(1, size[1] - 3), "line")
        await pilot.pause()
        assert_clean(app)
        app.page.text_select_all()
        assert not unsafe(app.screen.get_selected_text() or "")
        assert not any(unsafe(link) for link in app.page.links())


@pytest.mark.parametrize("start", range(10))
async def test_each_split_at_every_byte(start: int) -> None:
    app = PageApp()
    async with app.run_test(size=(60, 12)) as pilot:
        item = answer(state="waiting")
        app.page.add(item)
        for payload in PAYLOADS[start::10]:
            for character in payload:
                say(item.content, character)  # type: ignore[arg-type]
                app.page.update(0.0)
                assert_clean(app)
            say(item.content, "\n\n")  # type: ignore[arg-type]
        await pilot.pause()
        assert_clean(app)
