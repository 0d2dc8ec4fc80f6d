"""The page: what it shows, that it holds still, how one reads it by keys, and that its cost does not grow."""

from __future__ import annotations

import random

import pytest
from textual import events

from localchat.chats.records import Attachment
from localchat.errors import LocalchatError
from localchat.protocol import Timings, Usage
from localchat.tui.widgets.roll import _OPEN_SHEETS
from tests.tui.pages import ANSWER, Counted, PageApp, answer, chat, prompt, say, written

SIZE = (100, 34)


async def test_a_long_chat_opens_at_its_end_and_sets_only_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        counted = Counted(monkeypatch)
        app.page.show(chat(1000))
        await pilot.pause()
        assert "Answer 999." in app.shown
        assert app.lines[-1] == "" and "450 nm" in app.lines[-2]
        assert counted.blocks < 60
        assert app.page.virtual_size.height > 10_000


async def test_a_message_far_away_is_jumped_to_and_marked() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(1000), at=1001)
        app.page.focus()
        await pilot.pause()
        assert app.lines[1].endswith("Question 500.")
        assert app.lines[1].startswith("▏")
        assert app.page.current is not None and app.page.current.node == 1001
        assert not app.page.following


async def test_scrolling_never_makes_the_text_jump() -> None:
    """Whatever was guessed wrong above: a line moves by as many lines as were scrolled."""
    app = PageApp()
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    items = []
    for n in range(120):
        words = "\n\n".join(f"{n}.{k} " + "word " * rng.randrange(60) for k in range(rng.randrange(1, 9)))
        items += [prompt(f"Question {n}."), answer(words + "\n\n" + rng.choice([ANSWER, "", "- a\n- b\n"]))]
    async with app.run_test(size=(70, 24)) as pilot:
        app.page.show(items)
        await pilot.pause()
        for _ in range(60):
            before = app.lines
            by = rng.choice([-1, -3, -3, -10, -20, 5])
            if by < 0:
                app.page.scroll_relative(y=by, animate=False)
            else:
                app.page.move(by, "line")
            await pilot.pause()
            after = app.lines
            if by < 0:
                assert after[-by:] == before[:by], by
            elif not app.page.following:
                assert after[:-by] == before[by:]


async def test_scrolling_away_is_respected_also_at_the_end_of_the_answer() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(20))
        item = answer(state="waiting")
        app.page.add(prompt("Go."), item)
        say(item.content, "See [the notes][1].\n\n```py\n" + "x = 1\n" * 100)
        app.page.update(0.0)
        await pilot.pause()
        assert app.page.is_vertical_scroll_end
        app.page.post_message(
            events.MouseScrollUp(app.page, 10, 10, 0, -1, 0, False, False, False, screen_x=10, screen_y=10)
        )
        await pilot.pause()
        assert not app.page.following
        held = app.lines[:-1]
        assert "↓ more below" in app.lines[-1]
        say(item.content, "y = 2\n" * 30 + "```\n\nWords.\n\n[1]: https://example.org/notes\n")
        app.page.update(0.0)
        await pilot.pause()
        assert app.lines[:-1] == held
        item.content.finish(1.0)
        app.page.update(1.0)
        await pilot.pause()
        assert app.lines[:-1] == held
        assert "more below" not in app.shown
        app.page.to("bottom")
        await pilot.pause()
        assert "Words." in app.shown and app.page.following


async def test_it_follows_again_at_the_bottom_and_does_not_let_go_there() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(20))
        item = answer("", state="waiting")
        app.page.add(prompt("Go."), item)
        app.page.move(-1, "page")
        assert not app.page.following
        app.page.move(5, "page")
        app.page.move(1, "line")
        assert app.page.following
        for n in range(50):
            say(item.content, f"line {n}\n")
            app.page.update(0.0)
        await pilot.pause()
        assert "line 49" in app.shown


async def test_the_line_under_the_eye_stays_when_something_above_changes() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        items = chat(60)
        for item in items[1::2]:
            item.content.reasoning = "a thought\n\n" * 20
        app.page.show(items, at=81)
        await pilot.pause()
        top = app.lines[1]
        assert "Question 40." in top
        for change in (app.page.toggle_thinking, app.page.toggle_figures, app.page.toggle_thinking):
            change()
            await pilot.pause()
            assert app.lines[1] == top
        await pilot.resize_terminal(60, 30)
        await pilot.pause()
        assert "Question 40." in app.lines[1]


async def test_what_nobody_looks_at_is_let_go() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(300))
        for _ in range(200):
            app.page.move(-1, "page")
        await pilot.pause()
        assert sum(sheet.is_open for sheet in app.page.sheets) <= _OPEN_SHEETS + 1


@pytest.mark.parametrize("size", [SIZE, (20, 8)])
async def test_the_welcome(size: tuple[int, int]) -> None:
    app = PageApp()
    async with app.run_test(size=size) as pilot:
        assert "localchat" in app.shown
        app.page.show_model("other-2b")
        await pilot.pause()
        assert "other-2b" in app.shown
        app.page.welcome("other-2b", True, "Herbs\x1b[2J")
        await pilot.pause()
        if size == SIZE:
            assert "Ctrl L  continues your last chat: Herbs␛[2J" in app.shown
            assert "offline is set" in app.shown
        app.page.add(*chat(1))
        await pilot.pause()
        assert "will answer" not in app.shown


async def test_a_waiting_message_and_one_that_is_taken_back() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(1, "")[:1])
        app.page.show_queued("And then?")
        await pilot.pause()
        assert app.lines[3:5] == ["  ╎ And then?", "  ╎ waits for the end of the answer"]
        app.page.show_queued(None)
        app.page.withdraw()
        await pilot.pause()
        assert "Question" not in app.shown and "And then" not in app.shown


async def test_where_the_model_sees_no_more() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(3, "ok"))
        app.page.set_seen(3, "the model no longer sees what is above")
        await pilot.pause()
        assert app.line_with("the model no longer sees") + 2 == app.line_with("Question 1.")
        app.page.set_seen(5, "what is above was summarised for the model")
        await pilot.pause()
        assert app.line_with("was summarised") + 2 == app.line_with("Question 2.")
        app.page.set_seen(None, "")
        await pilot.pause()
        assert "───" not in app.shown


async def test_siblings_are_walked_by_mouse() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        items = chat(1, "ok")
        app.page.show(items)
        await pilot.pause()
        assert "of 3" not in app.shown
        items[0].place, items[0].places = 2, 3
        app.page.changed(1)
        await pilot.pause()
        line = app.line_with("‹ 2 of 3 ›")
        await pilot.click(offset=(4, line))
        await pilot.click(offset=(13, line))
        await pilot.click(offset=(40, line))
        assert app.told == [(1, -1), (1, 1)]


async def test_attachments_are_chips_and_a_long_prompt_is_folded() -> None:
    app = PageApp()
    async with app.run_test(size=(100, 90)) as pilot:
        files = [Attachment("notes\x1b.md", "é" * 700, 340), Attachment("", "x" * 12_000)]
        files += [Attachment(f"{n}.py", "x", 1) for n in range(9)]
        app.page.show([prompt("\n".join(f"line {n}" for n in range(300)), 1, 1, 1, *files)], at=1)
        await pilot.pause()
        assert "▪ notes␛.md  1 kB  340 tokens" in app.shown
        assert "▪ piped in  12 kB" in app.shown
        assert "and 3 more" in app.shown
        assert "line 59" in app.shown and "line 60" not in app.shown
        await pilot.click(offset=(6, app.line_with("more characters were sent")))
        await pilot.pause()
        assert "line 60" in app.shown
        app.page.focus()
        app.page.toggle_thinking(only_current=True)
        await pilot.pause()
        assert "line 60" not in app.shown


ENDINGS = [
    ({"state": "broken", "text": "Half"}, "broke off: the program ended in the middle (Ctrl O goes on)"),
    ({"state": "broken"}, "broke off: the program ended in the middle (Ctrl R asks again)"),
    ({"state": "stopped", "text": "Half"}, "stopped (Ctrl O goes on)"),
    ({"state": "stopped", "unsent": True}, "stopped before the message was sent"),
    ({"state": "failed", "error": LocalchatError("no\x1b memory")}, "no␛ memory (Ctrl R asks again)"),
    ({"state": "failed", "error": LocalchatError("it broke: ask again")}, "it broke: ask again (Ctrl R)"),
    (
        {"state": "failed", "error": LocalchatError("no memory"), "text": "Half"},
        "no memory (Ctrl O goes on, Ctrl R asks again)",
    ),
    ({"text": "Half", "finish_reason": "length"}, "cut off: the limit of tokens was reached (Ctrl O goes on)"),
    ({"text": ""}, "the model gave no answer (Ctrl R asks again)"),
    ({"text": "x", "warnings": ["slow\x1b"], "dropped_messages": 3}, "the model no longer saw the first 3 messages"),
]


@pytest.mark.parametrize(("how", "told"), ENDINGS)
async def test_how_an_answer_ended(how: dict[str, object], told: str) -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show([prompt("Go."), answer(**how)])  # type: ignore[arg-type]
        await pilot.pause()
        assert told in app.shown


async def test_an_answer_that_ended_goes_on() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        item = await written(app, pilot, "- one\n- two\n\n```py\n" + "x = 1\n" * 40)
        item.content.stop(1.0)
        app.page.update(1.0)
        await pilot.pause()
        assert "stopped" in app.shown
        item.content.state = "answering"
        say(item.content, "y = 2\n```\n\nDone.")
        app.page.update(2.0)
        item.content.finish(3.0)
        app.page.update(3.0)
        await pilot.pause()
        assert "stopped" not in app.shown and "Done." in app.shown and "y = 2" in app.shown


async def test_thinking_is_folded_and_opens_by_click_and_for_all() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        more = {"reasoning": "Let me see.\n\n- a thought", "reasoning_tokens": 9, "_thinking_from": 0.0}
        app.page.show([answer("One.", 1, _thinking_until=12.0, **more), answer("Two.", 2, **more)], at=1)
        await pilot.pause()
        assert "▸ thought for 12 s, about 9 tokens" in app.shown and "a thought" not in app.shown
        await pilot.click(offset=(6, app.line_with("12 s")))
        await pilot.pause()
        assert app.shown.count("• a thought") == 1
        app.page.toggle_thinking()
        await pilot.pause()
        assert app.shown.count("• a thought") == 2
        app.page.toggle_thinking()
        await pilot.pause()
        assert "a thought" not in app.shown


@pytest.mark.parametrize(("saved_ms", "is_told"), [(31_400.0, True), (1000.0, True), (999.0, False), (0.0, False)])
async def test_what_the_cache_saved_stands_under_the_answer(saved_ms: float, is_told: bool) -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        told = {"restored_from": "disk", "drafted_tokens": 40, "accepted_tokens": 31}
        app.page.show([prompt("Go."), answer("Yes.", cached_tokens=1497, saved_ms=saved_ms, **told)])
        await pilot.pause()
        said = f"read 1,497 tokens from cache, saved {int(saved_ms / 1000)} s"
        assert (said in app.shown) == is_told
        app.page.toggle_figures()
        await pilot.pause()
        few = {31_400.0: " (31 s saved)", 1000.0: " (1.0 s saved)", 999.0: " (1.0 s saved)", 0.0: ""}[saved_ms]
        assert f"1,497 from the disk cache{few} · " in app.shown.replace("\n", " ")
        assert "31 of 40 drafted tokens accepted" in app.shown.replace("\n    ", " ")


async def test_figures_on_request() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        told = {"usage": Usage(1240, 210, 1450), "timings": Timings(tokens_per_second=23.4, total_ms=9100)}
        app.page.show([prompt("Go."), answer("Yes.", cached_tokens=1200, model="/a/qwen3-4b.gguf", **told)])
        app.page.toggle_figures()
        await pilot.pause()
        assert "1,240 tokens read · 1,200 from cache · 210 made · 23 tokens/s · 9 s · qwen3-4b" in app.shown
        app.page.toggle_figures()
        await pilot.pause()
        assert "from cache" not in app.shown


async def test_reading_by_keys() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(50))
        assert app.page.current is not None and app.page.current.node == 100
        app.page.focus()
        await pilot.pause()
        app.page.move(-1, "message")
        assert app.page.current.node == 99
        for _ in range(8):
            app.page.move(-1, "message")
        assert app.page.current.node == 91
        await pilot.pause()
        assert any("Question 45." in line and line.startswith("▏") for line in app.lines)
        marked: list[str] = []
        for _ in range(7):
            app.page.move(1, "block")
            await pilot.pause()
            marked.append(next(line for line in app.lines if line.startswith("▎"))[4:])
        assert [line.split(" ")[0] for line in marked] == ["Question", "Answer", "Sunlight", "What", "1.", "2.", ""]
        assert app.page.current_code() == "def scattered(w: float) -> float:\n    return 1 / w**4"
        assert app.page.links() == ["https://example.org/r"]
        assert app.page.current_text().startswith("Answer 45.")
        app.page.to("top")
        assert app.page.current.node == 1
        app.page.move(-1, "message")
        assert app.page.current.node == 1
        app.page.to("bottom")
        assert app.page.current.node == 100 and app.page.following


async def test_who_comes_back_to_the_page_reads_at_its_end() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(2, "ok"))
        app.page.focus()
        await pilot.pause()
        app.page.move(-2, "message")
        assert app.page.current and app.page.current.node == 2
        app.screen.set_focus(None)
        app.page.add(*chat(1, "new"))
        app.page.focus()
        await pilot.pause()
        assert app.page.current.node == 2 and app.page.current_text().endswith("new")


async def test_every_block_is_reached_in_both_directions() -> None:
    app = PageApp()
    async with app.run_test(size=(60, 20)) as pilot:
        app.page.show(chat(12))
        app.page.focus()
        await pilot.pause()
        app.page.to("top")
        ways: list[list[tuple[int | None, object]]] = []
        for by in (1, -1):
            way = []
            for _ in range(200):
                app.page.move(by, "block")
                spot = app.page._block
                assert spot and app.page.current
                way.append((app.page.current.node, (spot.part, spot.number)))
                if not any(line.startswith("▎") for line in app.lines):
                    await pilot.pause()
                    assert any(line.startswith("▎") for line in app.lines)
            ways.append(list(dict.fromkeys(way)))
        assert ways[0][:-1] == ways[1][::-1]
        assert len(ways[0]) == 12 * 9


async def test_what_is_typed_goes_to_the_composer() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(2))
        app.page.focus()
        await pilot.press("z", "é", "y", "space", "ctrl+x")
        assert app.told == ["z", "é", " "]
        app.page._bindings.key_to_bindings.pop("escape")
        await pilot.press("escape")
        assert app.told[-1] == "left"


async def test_a_click_does_not_take_the_focus() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show(chat(2))
        app.screen.set_focus(None)
        await pilot.click(offset=(10, 10))
        assert not app.page.has_focus


async def test_the_mouse_selects_across_messages_and_while_more_comes() -> None:
    app = PageApp()
    async with app.run_test(size=SIZE) as pilot:
        app.page.show([prompt("First words."), answer("Some 漢字 here.\n\nMore."), prompt("Then.")])
        await pilot.pause()
        start, end = app.line_with("First"), app.line_with("Then.")
        await pilot.mouse_down(offset=(10, start))
        await pilot.hover(offset=(7, end))
        await pilot.mouse_up(offset=(7, end))
        assert app.screen.get_selected_text() == "words.\n\nSome 漢字 here.\n\nMore.\n\nThen"
        app.page.add(answer("x\n\n" * 50))
        await pilot.pause()
        assert app.screen.get_selected_text() == "words.\n\nSome 漢字 here.\n\nMore.\n\nThen"
        app.page.to("top")
        await pilot.pause()
        await pilot.click(offset=(8, app.line_with("漢字")), times=2)
        assert app.screen.get_selected_text() == "Some 漢字 here."
        await pilot.click(offset=(8, app.line_with("漢字")), times=3)
        assert app.screen.get_selected_text() == "Some 漢字 here.\n\nMore."


@pytest.mark.parametrize("kind", ["paragraph", "list", "code", "table"])
async def test_one_more_token_costs_the_same_at_the_end_of_a_long_answer(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: how much source is set again for one more token."""
    head, line = {
        "paragraph": ("", "Some words.\n\n"),
        "list": ("", "- item\n"),
        "code": ("```py\n", "x = 1\n"),
        "table": ("|a|b|\n|-|-|\n", "|1|2|\n"),
    }[kind]
    app = PageApp()
    counted = Counted(monkeypatch)
    async with app.run_test(size=SIZE) as pilot:
        item = await written(app, pilot, head + line * 2000, by=4000)
        counted.clear()
        for character in "yes":
            say(item.content, character)
            app.page.update(0.0)
            await pilot.pause()
        assert counted.chars <= 3 * 20 * len(line)
        assert app.page.virtual_size.height >= 2000
        # Nor is everything set again when the answer is over, or the width changes.
        item.content.finish(1.0)
        counted.clear()
        app.page.update(1.0)
        await pilot.resize_terminal(70, 30)
        await pilot.pause()
        assert counted.chars <= 400 * len(line)
